"""Relay policies: what is held, when it goes on, and that nothing is lost on the way, nor kept."""

import random
import tempfile
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from clocks import HANG_SECONDS
from hypothesis import given
from hypothesis import strategies as st
from proxy.fake_bodies import EndlessSource, FakeSink, FakeSource, response_head
from serving import until
from trio.testing import MockClock, wait_all_tasks_blocked

from tricast.errors import ConnectionLost
from tricast_proxy.buffering import IncrementalRefused, buffers_request, relay_for
from tricast_proxy.config import ProxyConfig, ResponseSection
from tricast_proxy.heads import RequestHead
from tricast_proxy.relay import Cut, Source

EVENTS = [b"data: %d\n\n" % number for number in range(5)]
#: Events half a second apart, and then a pause of two before the end.
STREAM: list[bytes | float | Cut] = [item for event in EVENTS for item in (0.5, event)] + [2.0]
TIMES = [0.5, 1.0, 1.5, 2.0, 2.5]
END = 4.5
#: Each policy with everything that changes it.
POLICIES: dict[str, dict[str, Any]] = {
    "off": {},
    "nginx": {"buffering": "nginx"},
    "nginx without a file": {"buffering": "nginx", "spool": 0},
    "nginx with a small file": {"buffering": "nginx", "buffer_size": 16, "buffers": 2, "spool": 100},
    "full": {"buffering": "full"},
    "full with a small file": {"buffering": "full", "buffer_size": 16, "buffers": 2, "spool": 100},
    "fixed": {"buffering": "fixed", "buffer_size": 64, "flush_interval": "100ms"},
    "fixed without a time": {"buffering": "fixed", "buffer_size": 64},
    "corked": {"cork": "200ms"},
    "gzip": {"gzip": True},
    "gzip without a flush": {"gzip": True, "gzip_flush": False, "buffering": "nginx"},
}


def request(*fields: tuple[bytes, bytes], method: bytes = b"GET") -> RequestHead:
    return RequestHead(method, b"/events", [(b"Host", b"a"), *fields], b"1.1")


ANY = request((b"Accept-Encoding", b"gzip"))


def section(**keys: object) -> ResponseSection:
    return ResponseSection.model_validate(keys)


async def relay(source: Source, sink: FakeSink, **keys: object) -> None:
    """Relays it to somebody who understands gzip."""
    await relay_for(ANY, source, section(**keys)).to(sink)


async def stream(
    script: Sequence[bytes | float | Cut], *fields: tuple[bytes, bytes], is_chunked: bool = True, **keys: object
) -> FakeSink:
    """What a client gets of an event stream."""
    sink = FakeSink()
    head = response_head(*fields, content_type=b"text/event-stream")
    await relay(FakeSource(script, head=head, is_chunked=is_chunked), sink, **keys)
    return sink


def timed(*pairs: tuple[float, bytes]) -> list[tuple[float, bytes]]:
    return list(pairs)


def unzipped(body: bytes) -> bytes:
    """What can be read of it, whether it is whole or not."""
    return zlib.decompressobj(wbits=31).decompress(body)


async def test_as_it_comes(autojump_clock: MockClock) -> None:
    sink = await stream(STREAM)
    assert sink.events == list(zip(TIMES, EVENTS, strict=True))
    assert (sink.at("head"), sink.at("end")) == (0, END)


async def test_a_head_goes_on_alone_unless_something_came_with_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[float] = []
    begin = FakeSink.begin

    async def note(sink: FakeSink) -> None:
        began.append(trio.current_time())
        await begin(sink)

    monkeypatch.setattr(FakeSink, "begin", note)
    together = await stream([b"a", 1.0, b"b"])
    assert (together.events, began) == ([(0, b"a"), (1, b"b")], [])
    sink = FakeSink()
    with pytest.raises(Cut):
        await relay(FakeSource([Cut("lost")]), sink)
    assert [got.what for got in sink.got] == ["head"]


async def test_nginx_passes_chunks_and_holds_the_head_until_the_first(autojump_clock: MockClock) -> None:
    sink = await stream(STREAM, buffering="nginx")
    assert sink.events == list(zip(TIMES, EVENTS, strict=True))
    assert (sink.at("head"), sink.at("end")) == (0.5, END)


@pytest.mark.parametrize("length", [None, 45])
async def test_nginx_holds_what_is_not_in_chunks_to_its_end(autojump_clock: MockClock, length: int | None) -> None:
    sink = FakeSink()
    await relay(FakeSource(STREAM, is_chunked=False, length=length), sink, buffering="nginx")
    assert sink.events == [(END, b"".join(EVENTS))]
    assert (sink.at("head"), sink.at("end")) == (END, END)


async def test_nginx_passes_full_buffers_of_which_the_first_holds_the_head(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    head = response_head((b"X-Long", b"x" * 1000))
    await relay(FakeSource([0.1, b"a" * 500] * 30, head=head, is_chunked=False), sink, buffering="nginx")
    # Of 4096 bytes the head takes 1055, so that the seventh piece fills the first buffer.
    assert [(seconds, len(payload)) for seconds, payload in sink.events] == [
        (0.7, 3041),
        (1.5, 4096),
        (2.3, 4096),
        (3.0, 15000 - 3041 - 2 * 4096),
    ]


async def test_several_full_buffers_go_on_at_once(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    await relay(FakeSource([b"a" * 10_000, 1.0], is_chunked=False), sink, buffering="nginx")
    (first, _), (second, rest) = sink.events
    assert (first, second, len(rest)) == (0, 1, (10_000 + 45) % 4096)


@pytest.mark.parametrize("value", [b"no", b"No"])
@pytest.mark.parametrize("buffering", ["nginx", "full", "fixed"])
async def test_a_server_turns_buffering_off(autojump_clock: MockClock, buffering: str, value: bytes) -> None:
    field = (b"X-Accel-Buffering", value)
    sink = await stream(STREAM, field, is_chunked=False, buffering=buffering, x_accel_buffering="honour")
    assert sink.events == list(zip(TIMES, EVENTS, strict=True))
    assert sink.at("head") == 0


@pytest.mark.parametrize(
    ("keys", "is_held"),
    [
        ({}, True),
        ({"buffering": "nginx"}, True),
        ({"buffering": "full"}, True),
        ({"x_accel_buffering": "ignore"}, False),
    ],
)
async def test_a_server_turns_buffering_on(autojump_clock: MockClock, keys: dict[str, Any], is_held: bool) -> None:
    field = (b"X-Accel-Buffering", b"yes")
    sink = await stream(STREAM, field, is_chunked=False, **{"x_accel_buffering": "honour", **keys})
    assert (len(sink.events) == 1) is is_held


@pytest.mark.parametrize(("policy", "is_left"), [("honour", False), ("ignore", True)])
@pytest.mark.parametrize("value", [b"no", b"yes", b"else"])
async def test_who_obeys_the_field_removes_it(policy: str, is_left: bool, value: bytes) -> None:
    source = FakeSource([], head=response_head((b"x-accel-Buffering", value), (b"X-Other", b"1")))
    relaying = relay_for(request(), source, section(x_accel_buffering=policy))
    assert (relaying.source.head.get(b"x-accel-buffering") is not None) is is_left
    assert relaying.source.head.get(b"x-other") == b"1"


async def test_the_whole_is_stored_before_any_of_it_goes_on(autojump_clock: MockClock) -> None:
    sink = await stream(STREAM, buffering="full")
    assert sink.events == [(END, b"".join(EVENTS))]
    assert (sink.at("head"), sink.at("end")) == (END, END)


async def test_what_is_larger_than_the_store_is_relayed_as_it_comes(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    await relay(FakeSource([0.5, b"abcd"] * 5), sink, buffering="full", buffer_size=6, buffers=1, spool=5)
    # Two pieces fit into memory, of which one lies across, and one into the file.
    assert sink.events == [(2.0, b"abcdabcd"), (2.0, b"abcd"), (2.0, b"abcd"), (2.5, b"abcd")]


async def test_what_is_held_goes_on_after_its_time_or_when_it_is_enough(autojump_clock: MockClock) -> None:
    script = [0.5, b"ab", 0.2, b"cd", 1.0, b"x" * 10, 0.1, b"e"]
    sink = FakeSink()
    await relay(FakeSource(script), sink, buffering="fixed", buffer_size=8, flush_interval="300ms")
    assert sink.events == [(0.8, b"abcd"), (1.7, b"x" * 10), (1.8, b"e")]
    assert (sink.at("head"), sink.at("end")) == (0.3, 1.8)


async def test_without_a_time_it_is_held_until_it_is_enough(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    await relay(FakeSource([1.0, b"abcd"] * 5), sink, buffering="fixed", buffer_size=8)
    assert sink.events == [(2.0, b"abcdabcd"), (4.0, b"abcdabcd"), (5.0, b"abcd")]
    assert sink.at("head") == 2.0


async def test_a_cork_holds_each_event_and_joins_those_that_are_near(autojump_clock: MockClock) -> None:
    sink = await stream(STREAM, cork="200ms")
    assert sink.events == [(pytest.approx(seconds + 0.2), event) for seconds, event in zip(TIMES, EVENTS, strict=True)]
    assert (sink.at("head"), sink.at("end")) == (0.2, END)
    sink = await stream([1.0, b"a", 0.1, b"b", 0.05, b"c", 0.1, b"d"], cork="200ms")
    assert sink.events == [(1.2, b"abc"), (1.2, b"d")]


async def test_a_cork_lets_full_segments_through(autojump_clock: MockClock) -> None:
    sink = await stream([1.0, b"x" * 2**15, 0.1, b"y" * 2**15, 1.0], cork="200ms")
    assert [(seconds, len(payload)) for seconds, payload in sink.events] == [(1.1, 2**16)]


@pytest.mark.parametrize(("length", "first"), [(None, 0.5), (45, 0.7)])
async def test_only_what_says_where_it_ends_is_corked(
    autojump_clock: MockClock, length: int | None, first: float
) -> None:
    sink = FakeSink()
    await relay(FakeSource(STREAM, is_chunked=False, length=length), sink, cork="200ms")
    assert sink.events[0] == (first, EVENTS[0])


@pytest.mark.parametrize("keys", [{"buffering": "full"}, {"cork": "200ms"}, {"buffering": "nginx"}])
async def test_event_streams_are_let_through(autojump_clock: MockClock, keys: dict[str, Any]) -> None:
    sink = await stream(STREAM, is_chunked=False, event_stream="unbuffered", **keys)
    assert sink.events == list(zip(TIMES, EVENTS, strict=True))
    other = FakeSink()
    await relay(FakeSource(STREAM, length=45, is_chunked=False), other, event_stream="unbuffered", **keys)
    assert other.events[0][0] > 0.5


@pytest.mark.parametrize("value", [b"?1", b" ?1 ", b"?1;x=y"])
async def test_an_incremental_answer_is_forwarded_as_it_comes(autojump_clock: MockClock, value: bytes) -> None:
    field = (b"Incremental", value)
    sink = await stream(STREAM, field, buffering="full", incremental="honour")
    assert sink.events == list(zip(TIMES, EVENTS, strict=True))
    with pytest.raises(IncrementalRefused):
        await stream(STREAM, field, buffering="full", incremental="refuse")
    sink = await stream(STREAM, field, incremental="refuse")
    assert len(sink.events) == 5
    sink = await stream(STREAM, field, buffering="full")
    assert len(sink.events) == 1


@pytest.mark.parametrize("fields", [[b"?0"], [b"1"], [b"?1", b"?1"], [b"?1, ?1"], []])
async def test_what_does_not_say_so_is_not_incremental(autojump_clock: MockClock, fields: list[bytes]) -> None:
    for policy in ("honour", "refuse"):
        sink = await stream(STREAM, *((b"Incremental", f) for f in fields), buffering="full", incremental=policy)
        assert len(sink.events) == 1


@pytest.mark.parametrize(
    ("buffering", "incremental", "value", "expected"),
    [
        ("off", "honour", b"?1", False),
        ("off", "refuse", b"?1", False),
        ("full", "ignore", b"?1", True),
        ("full", "honour", b"?1", False),
        ("full", "honour", b"?0", True),
        ("full", "refuse", b"?0", True),
        ("full", "refuse", b"?1", None),
    ],
)
def test_which_requests_are_buffered(buffering: str, incremental: str, value: bytes, expected: bool | None) -> None:
    config = ProxyConfig.model_validate({"request": {"buffering": buffering}, "response": {"incremental": incremental}})
    asked = request((b"Incremental", value), method=b"POST")
    if expected is None:
        with pytest.raises(IncrementalRefused):
            buffers_request(asked, config)
    else:
        assert buffers_request(asked, config) is expected


@pytest.mark.parametrize(
    ("keys", "what", "head"),
    [
        ({}, [(0.0, b"abc")], 0),
        ({"buffering": "nginx"}, [(0.0, b"abc")], 0),
        ({"buffering": "fixed", "buffer_size": 100}, [(1.0, b"abc")], 1),
        ({"cork": "20s"}, [(1.0, b"abc")], 1),
        ({"buffering": "full"}, [], None),
        ({"buffering": "full", "buffers": 1, "buffer_size": 2, "spool": 0}, [(0.0, b"abc")], 0),
    ],
)
async def test_what_had_come_is_sent_before_a_cut(
    autojump_clock: MockClock, keys: dict[str, Any], what: list[tuple[float, bytes]], head: float | None
) -> None:
    sink = FakeSink()
    with pytest.raises(Cut, match="gone"):
        await relay(FakeSource([b"ab", b"c", 1.0, Cut("gone")]), sink, **keys)
    assert b"".join(payload for _, payload in sink.events) == b"".join(payload for _, payload in what)
    assert [seconds for seconds, _ in sink.events][-1:] == [seconds for seconds, _ in what]
    assert sink.at("head") == head
    assert sink.trailers is None


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_nginx_sends_the_head_alone_or_the_held_part_at_a_cut(
    autojump_clock: MockClock, is_chunked: bool
) -> None:
    sink = FakeSink()
    with pytest.raises(Cut):
        await relay(FakeSource([1.0, Cut("gone")], is_chunked=is_chunked), sink, buffering="nginx")
    assert (sink.at("head"), sink.events) == (1.0, [])
    sink = FakeSink()
    with pytest.raises(Cut):
        await relay(FakeSource([b"ab", 1.0, Cut("gone")], is_chunked=is_chunked), sink, buffering="nginx")
    assert sink.body == b"ab"


@pytest.mark.parametrize("keys", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_cut_behind_a_slow_client_comes_after_everything(
    autojump_clock: MockClock, keys: dict[str, Any], is_chunked: bool
) -> None:
    sink = FakeSink(bytes_per_second=10)
    with pytest.raises(Cut):
        await relay(FakeSource([b"abcdefgh", Cut("gone")], is_chunked=is_chunked), sink, **keys)
    body = unzipped(sink.body) if "gzip" in keys else sink.body
    assert body == (b"" if keys == POLICIES["full"] or keys == POLICIES["full with a small file"] else b"abcdefgh")


@pytest.mark.parametrize("keys", POLICIES.values(), ids=POLICIES)
async def test_trailers_and_an_empty_body(autojump_clock: MockClock, keys: dict[str, Any]) -> None:
    for script in ([b"abc"], []):
        sink = FakeSink()
        await relay(FakeSource(script, trailers=[(b"X-Sum", b"1")]), sink, **keys)
        assert sink.trailers == [(b"X-Sum", b"1")]
        assert (unzipped(sink.body) if "gzip" in keys else sink.body) == b"".join(script)


@pytest.mark.parametrize("keys", POLICIES.values(), ids=POLICIES)
async def test_a_client_that_is_gone(autojump_clock: MockClock, keys: dict[str, Any]) -> None:
    sink = FakeSink()
    sink.lost = ConnectionLost("gone")
    with pytest.raises(ConnectionLost, match="gone"):
        await relay(FakeSource([1.0, b"x" * 1000, 100.0]), sink, **keys)
    assert trio.current_time() <= 101.0


async def test_an_idle_stream_whose_client_leaves_is_left_at_the_next_event(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    source = FakeSource([1.0, b"a", 1.0, b"b", 1000.0, b"c"])

    def leave(payload: bytes) -> None:
        sink.lost = ConnectionLost("gone") if payload == b"b" else None

    sink.before_send = leave
    with pytest.raises(ConnectionLost):
        await relay(source, sink, buffering="nginx")
    assert (sink.body, trio.current_time()) == (b"a", 2.0)


@pytest.mark.parametrize(
    ("keys", "ahead"),
    [
        ({}, 2**16),
        ({"buffering": "fixed", "buffer_size": "32KiB"}, 2**16),
        ({"cork": "200ms"}, 2**16),
        # The buffers and the piece that lies across, the piece that is sent, and the one that waits for room.
        ({"buffering": "nginx", "spool": 0}, 4 * 2**16),
        ({"buffering": "nginx", "spool": "1MiB"}, 4 * 2**16 + 2**20),
        ({"gzip": True}, 2**16),
    ],
)
async def test_a_server_waits_for_a_client_that_takes_nothing(keys: dict[str, Any], ahead: int) -> None:
    source = EndlessSource(2**30, piece=random.Random(1).randbytes(2**16))
    sink = FakeSink()
    async with trio.open_nursery() as nursery:
        sink.block()
        nursery.start_soon(lambda: relay(source, sink, **keys))
        with trio.fail_after(HANG_SECONDS):
            await until(lambda: source.given >= ahead / 4)
        taken = -1
        while taken != source.given:
            taken = source.given
            await wait_all_tasks_blocked(0.05)
        assert source.given <= ahead
        nursery.cancel_scope.cancel()


async def test_nginx_reads_a_server_to_its_end_while_the_client_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = EndlessSource(30 * 2**20)
    sink = FakeSink()
    async with trio.open_nursery() as nursery:
        sink.block()
        nursery.start_soon(lambda: relay(source, sink, buffering="nginx"))
        with trio.fail_after(HANG_SECONDS):
            await until(lambda: source.given == 30 * 2**20 and sum(spools(tmp_path)) > 29 * 2**20)
        assert names(tmp_path) == []
        sink.unblock()
    assert sink.taken == 30 * 2**20
    assert spools(tmp_path) == []


def spools(folder: Path) -> list[int]:
    """The sizes of the files without a name in a folder that this process has open."""
    sizes = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()).startswith(f"{folder}/"):
                sizes.append(entry.stat().st_size)
        except FileNotFoundError:
            continue
    return sizes


def names(folder: Path) -> list[str]:
    """What can be seen in a folder."""
    return [entry.name for entry in folder.iterdir()]


@pytest.mark.parametrize("buffering", ["nginx", "full"])
@pytest.mark.parametrize("waits", [True, False])
async def test_cancelling_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, buffering: str, waits: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = EndlessSource(2**40)
    sink = FakeSink()
    sink.block()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: relay(source, sink, buffering=buffering, spool="4MiB" if waits else "1GiB"))
            with trio.fail_after(HANG_SECONDS):
                await until(lambda: any(spools(tmp_path)))
            if waits:
                await wait_all_tasks_blocked(0.1)
            scope.cancel()
    assert scope.cancelled_caught
    assert spools(tmp_path) == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("buffering", ["nginx", "full"])
async def test_a_spool_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, buffering: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    sink = FakeSink()
    sink.block()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unblock_when_all_wait, sink)
        with pytest.raises(Cut, match="spooled: No such file"):
            await relay(EndlessSource(2**20), sink, buffering=buffering)
    assert (sink.taken > 0) == (buffering == "nginx")


async def unblock_when_all_wait(sink: FakeSink) -> None:
    await wait_all_tasks_blocked(0.05)
    sink.unblock()


@pytest.mark.parametrize(
    ("keys", "volume"),
    [
        ({}, 2**30),
        ({"buffering": "nginx", "spool": "8MiB"}, 2**28),  # a file of a fraction of it is written again and again
        ({"buffering": "full", "spool": "8MiB"}, 2**30),
        ({"buffering": "fixed", "buffer_size": "64KiB", "flush_interval": "1s"}, 2**30),
    ],
    ids=["off", "nginx", "full", "fixed"],
)
async def test_memory_is_bounded_for_any_body(keys: dict[str, Any], volume: int) -> None:
    source = EndlessSource(volume, piece=bytes(2**17))
    sink = FakeSink(keeps=False)
    widest = 0

    def look(payload: bytes) -> None:
        nonlocal widest
        widest = max(widest, source.given - sink.taken)

    sink.before_send = look
    sink.block()
    tracemalloc.start(1)
    try:
        async with trio.open_nursery() as nursery:
            # Everything behind what it can read ahead waits in the file before it goes on.
            nursery.start_soon(unblock_when_all_wait, sink)
            await relay(source, sink, **keys)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sink.taken == volume
    assert widest <= 9 * 2**20
    assert peak < 3 * 2**20


def pieces() -> st.SearchStrategy[list[bytes | float]]:
    payload = st.binary(min_size=1, max_size=200)
    return st.lists(st.one_of(payload, st.sampled_from([0.01, 0.15, 1.0])), max_size=30)


@pytest.mark.parametrize("keys", POLICIES.values(), ids=POLICIES)
@given(
    script=pieces(),
    is_chunked=st.booleans(),
    rate=st.sampled_from([float("inf"), 1000.0, 50.0]),
    is_cut=st.booleans(),
)
def test_what_goes_in_comes_out(
    keys: dict[str, Any], script: list[bytes | float], is_chunked: bool, rate: float, is_cut: bool
) -> None:
    async def main() -> None:
        sink = FakeSink(bytes_per_second=rate)
        source = FakeSource([*script, Cut("gone")] if is_cut else script, is_chunked=is_chunked)
        with pytest.raises(Cut) if is_cut else trio.CancelScope():
            await relay(source, sink, **keys)
        body = unzipped(sink.body) if "gzip" in keys else sink.body
        whole = b"".join(piece for piece in script if isinstance(piece, bytes))
        if is_cut:
            assert keys.get("buffering") == "full" or body == whole
            assert whole.startswith(body)
        else:
            assert body == whole
        assert (sink.trailers is None) == is_cut

    trio.run(main, clock=MockClock(autojump_threshold=0))
