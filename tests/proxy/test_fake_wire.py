"""The fake connection is trusted with judging faults, so it is judged first."""

import pytest
import trio
from proxy.fake_wire import FakeWire
from trio.testing import MockClock

from tricast.errors import ConnectionLost
from tricast.sent import ALL


async def test_what_comes_comes_at_its_time(autojump_clock: MockClock) -> None:
    wire = FakeWire(b"a", 1.0, b"b", 1.0, leaves=True)
    assert await wire.receive() == b"a"
    assert wire.receive_now() is None
    with trio.move_on_after(0.5):
        await wire.receive()
    assert await wire.receive() == b"b"
    assert trio.current_time() == pytest.approx(1.0)
    assert [await wire.receive(), await wire.receive(), wire.receive_now()] == [b"", b"", b""]
    assert trio.current_time() == pytest.approx(2.0)
    staying = FakeWire(b"a", b"b")
    assert [staying.receive_now(), await staying.receive(), staying.receive_now()] == [b"a", b"b", None]


async def test_what_goes_is_noted(autojump_clock: MockClock) -> None:
    wire = FakeWire()
    await wire.open()
    await wire.send(b"a")
    await trio.sleep(1.5)
    assert wire.send_now(b"b") is ALL
    await wire.drain()
    await wire.flush()
    await wire.linger()
    await wire.finish()
    assert (wire.is_closed, wire.data) == (False, b"ab")
    wire.close()
    wire.reset()
    assert wire.got == [(0.0, b"a"), (1.5, b"b"), (1.5, "fin")]
    with pytest.raises(ConnectionLost):
        await wire.send(b"c")
    with pytest.raises(ConnectionLost):
        await wire.receive()


async def test_who_waits_learns_that_it_is_closed(autojump_clock: MockClock) -> None:
    wire = FakeWire()

    async def receive() -> None:
        with pytest.raises(ConnectionLost, match="closed"):
            await wire.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        wire.reset()
    assert wire.got == [(0.0, "rst")]
