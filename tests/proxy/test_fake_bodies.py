"""The fake server and the fake client are trusted with judging the relay policies, so they are judged first."""

import pytest
import trio
from proxy.fake_bodies import EndlessSource, FakeSink, FakeSource, Got
from trio.testing import MockClock, wait_all_tasks_blocked

from tricast.errors import ConnectionLost
from tricast_proxy.relay import Cut, relay_at_once


async def test_a_source_gives_each_piece_at_its_time_however_late_it_is_asked(autojump_clock: MockClock) -> None:
    source = FakeSource([b"a", 1.0, b"b", b"c", 1.0], trailers=[(b"x", b"y")])
    began = trio.current_time()
    assert source.receive_now() == b"a"
    assert source.receive_now() is None
    with trio.move_on_after(0.5):
        await source.receive()
    assert await source.receive() == b"b"
    assert trio.current_time() - began == pytest.approx(1.0)
    await trio.sleep(3)
    assert [await source.receive() for _ in range(3)] == [b"c", b"", b""]
    assert source.receive_now() == b""
    assert source.given == 3
    assert trio.current_time() - began == pytest.approx(4.0)


async def test_a_source_goes_on_breaking_off(autojump_clock: MockClock) -> None:
    source = FakeSource([1.0, Cut("gone")])
    assert source.receive_now() is None
    for _ in range(2):
        with pytest.raises(Cut, match="gone"):
            await source.receive()
    with pytest.raises(Cut, match="gone"):
        source.receive_now()


async def test_an_endless_source_ends() -> None:
    source = EndlessSource(10, piece=b"abcd")
    assert [await source.receive() for _ in range(5)] == [b"abcd", b"abcd", b"ab", b"", b""]
    assert source.given == 10


async def test_a_sink_notes_what_comes_when(autojump_clock: MockClock) -> None:
    sink = FakeSink(bytes_per_second=10)
    await relay_at_once(FakeSource([1.0, b"12345", 2.0], trailers=[(b"x", b"y")]), sink)
    assert sink.got == [Got(0, "head"), Got(pytest.approx(1.5), b"12345"), Got(pytest.approx(3), "end")]
    assert (sink.body, sink.taken, sink.trailers) == (b"12345", 5, [(b"x", b"y")])
    assert sink.events == [(1.5, b"12345")]
    assert (sink.at("head"), sink.at("end")) == (0, 3)
    with pytest.raises(AssertionError, match="ended already"):
        await sink.finish([])
    with pytest.raises(AssertionError, match="ended"):
        await sink.send(b"x")
    with pytest.raises(AssertionError, match="head"):
        await sink.begin()


async def test_a_sink_that_is_blocked_or_lost(autojump_clock: MockClock) -> None:
    sink = FakeSink(keeps=False)
    assert sink.at("head") is None
    with pytest.raises(AssertionError, match="nothing"):
        await sink.send(b"")
    sink.block()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.send, b"x")
        await wait_all_tasks_blocked()
        assert sink.taken == 0
        sink.unblock()
    assert (sink.taken, sink.body) == (1, b"")
    sink.lost = ConnectionLost("gone")
    with pytest.raises(ConnectionLost):
        await sink.send(b"x")
