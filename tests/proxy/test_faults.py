"""Faults: who is hit is the same each time, and what becomes of a connection is what was asked for."""

import select
import socket
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from proxy.fake_wire import FakeWire
from pydantic import ValidationError
from trio.testing import MockClock, wait_all_tasks_blocked

from tricast.connection import Connection
from tricast.errors import ConnectionLost
from tricast_proxy.config import After, FaultEntry, ProxyConfig, divided, sped_up
from tricast_proxy.faults import NOTHING, Disturbed, Duplex, FaultPlan, Injected, transport_of
from tricast_proxy.heads import RequestHead

WEBSOCKET = [(b"Connection", b"upgrade"), (b"Upgrade", b"websocket")]


def request(*fields: tuple[bytes, bytes], target: bytes = b"/events") -> RequestHead:
    return RequestHead(b"GET", target, [(b"Host", b"a"), *fields], b"1.1")


def plan(*faults: dict[str, Any], seed: int = 0) -> FaultPlan:
    return FaultPlan([FaultEntry.model_validate(fault) for fault in faults], seed)


def injected(**keys: Any) -> Injected:
    return plan(keys).choose(1, request())


def disturbed(wire: Duplex, nursery: trio.Nursery, **keys: Any) -> Disturbed:
    """The connection with one fault."""
    result = injected(**keys).disturb(wire, nursery)
    assert result is not None
    return result


# The configuration


@pytest.mark.parametrize(
    ("written", "read", "printed"),
    [
        ("64KiB", After(size=65536), "64KiB"),
        (100, After(size=100), "100B"),
        ("0B", After(size=0), "0B"),
        ("3s", After(seconds=3), "3s"),
        ("1.5m", After(seconds=90), "90s"),
        ("off", After(), "off"),
        (After(seconds=0.5), After(seconds=0.5), "0.5s"),
    ],
)
def test_when_something_happens_is_a_size_or_a_duration(written: object, read: After, printed: str) -> None:
    entry = FaultEntry.model_validate({"reset_after": written})
    assert entry.reset_after == read
    assert entry.model_dump(mode="json")["reset_after"] == printed
    assert FaultEntry.model_validate_json(entry.model_dump_json()) == entry


@pytest.mark.parametrize("written", ["", "soon", "3", "-1s", -1, None, "3 apples", True])
def test_what_is_neither(written: object) -> None:
    with pytest.raises(ValidationError, match='a size such as "64KiB", a duration such as "3s", or "off"'):
        FaultEntry.model_validate({"close_after": written})


@pytest.mark.parametrize(
    ("key", "value"), [("status", 101), ("status", 600), ("path", "events"), ("inject_1xx", [200])]
)
def test_what_cannot_be(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        FaultEntry.model_validate({key: value})


def test_durations_are_divided_and_sizes_are_not() -> None:
    fault = {"delay_up": "2s", "jitter": "1s", "reset_after": "10s", "close_after": "1KiB", "rate_down": "1KiB"}
    config = ProxyConfig.model_validate({"proxy": {"speed": 10}, "fault": [fault]})
    (entry,) = sped_up(config).fault
    assert (entry.delay_up, entry.jitter, entry.rate_down) == (0.2, 0.1, 1024)
    assert (entry.reset_after, entry.close_after, entry.blackhole_after) == (
        After(seconds=1),
        After(size=1024),
        After(),
    )
    assert divided(config.fault[0], 10) == entry


# Who is hit


def test_the_same_exchanges_are_hit_each_time_whatever_their_order() -> None:
    faults = ({"probability": 0.3, "status": 500}, {"probability": 0.3, "stale_keepalive": True})
    one, other = plan(*faults), plan(*faults)
    found = [one.choose(number, request())[:-1] for number in range(300)]
    assert [other.choose(number, request())[:-1] for number in reversed(range(300))] == found[::-1]
    again = plan(*faults, seed=1)
    assert [again.choose(number, request())[:-1] for number in range(300)] != found
    hits = Counter((each[0] == 500, each[5]) for each in found)
    assert all(count > 10 for count in hits.values())
    assert len(hits) == 4
    assert one.hits == {0: hits[True, True] + hits[True, False], 1: hits[True, True] + hits[False, True]}


def test_always_and_never() -> None:
    assert all(plan({"status": 503}).choose(number, request()).status == 503 for number in range(100))
    never = plan({"status": 503, "probability": 0.0})
    assert all(never.choose(number, request()) is NOTHING for number in range(100))
    assert plan().choose(1, request()) is NOTHING


@pytest.mark.parametrize(
    ("fault", "asked", "is_hit"),
    [
        ({}, request(), True),
        ({}, None, True),
        ({"path": "/ev"}, request(), True),
        ({"path": "/ws"}, request(), False),
        ({"path": "/"}, None, False),
        ({"transport": "http"}, request(), True),
        ({"transport": "sse"}, request(), False),
        ({"transport": "sse"}, request((b"Accept", b"text/html, text/event-stream;q=0.9")), True),
        ({"transport": "websocket"}, request(*WEBSOCKET), True),
        ({"transport": "http"}, request(*WEBSOCKET), False),
        ({"transport": "websocket"}, None, False),
    ],
)
def test_which_requests_a_fault_concerns(fault: dict[str, Any], asked: RequestHead | None, is_hit: bool) -> None:
    assert plan({"status": 500, **fault}).choose(1, asked).status == (500 if is_hit else 0)


def test_transports() -> None:
    assert transport_of(request((b"Accept", b"Text/Event-Stream"), *WEBSOCKET)) == "websocket"
    assert transport_of(request((b"Upgrade", b"websocket"))) == "http"


def test_other_faults_while_it_runs() -> None:
    running = plan({"status": 500})
    assert running.choose(1, request()).status == 500
    running.replace([FaultEntry(status=404)])
    assert (running.choose(2, request()).status, running.hits) == (404, {0: 1})
    running.replace([])
    assert running.choose(3, request()) is NOTHING
    assert running.entries == ()


def test_several_at_once() -> None:
    chosen = plan(
        {
            "delay_up": "1s",
            "rate_down": "2KiB",
            "segment": 7,
            "inject_1xx": [103],
            "drop_request_header": ["Last-Event-ID"],
        },
        {"delay_up": "2s", "rate_down": "1KiB", "segment": 0, "inject_1xx": [102], "status": 404},
        {"reset_after": "3s", "status": 500, "duplicate_request": True, "close_before_response": True},
    ).choose(1, request())
    assert (chosen.wire.delay_up, chosen.wire.rate_down, chosen.wire.segment) == (3.0, 1024, 7)
    assert (chosen.inject_1xx, chosen.status) == ((103, 102), 404)
    assert (chosen.duplicate_request, chosen.close_before_response, chosen.stale_keepalive) == (True, True, False)
    assert [(end.how, end.after) for end in chosen.wire.ends] == [("reset", After(seconds=3))]
    assert chosen.request_fields([(b"last-event-id", b"1"), (b"Host", b"a")]) == [(b"Host", b"a")]


def test_dropped_fields() -> None:
    chosen = injected(drop_response_header=["ETag"])
    fields = [(b"etag", b"1"), (b"X", b"2"), (b"ETAG", b"3")]
    assert chosen.response_fields(fields) == [(b"X", b"2")]
    assert chosen.request_fields(fields) == fields


# What becomes of the connection


async def test_what_concerns_heads_alone_leaves_the_connection_alone() -> None:
    async with trio.open_nursery() as nursery:
        assert injected(status=500).disturb(FakeWire(), nursery) is None
        assert NOTHING.disturb(FakeWire(), nursery) is None


async def test_what_goes_down_is_late(autojump_clock: MockClock) -> None:
    wire = FakeWire(b"up")
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, delay_down="200ms")
        assert await connection.receive() == b"up"
        await connection.send(b"a")
        await trio.sleep(1)
        await connection.send(b"b")
    assert wire.got == [(0.2, b"a"), (1.4, b"b")]


async def test_what_comes_up_is_late(autojump_clock: MockClock) -> None:
    wire = FakeWire(b"a", 1.0, b"b", 1.0, leaves=True)
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, delay_up="300ms")
        times = []
        while data := await connection.receive():
            times.append((round(trio.current_time(), 3), data))
        assert times == [(0.3, b"a"), (1.3, b"b")]
        assert (trio.current_time(), connection.receive_now()) == (2.0, b"")


async def test_the_head_is_late_as_well(autojump_clock: MockClock) -> None:
    await injected(delay_up="300ms").hold_head()
    assert trio.current_time() == pytest.approx(0.3)
    await NOTHING.hold_head()
    assert trio.current_time() == pytest.approx(0.3)


async def test_a_delay_varies_by_no_more_than_its_jitter_and_in_the_same_way_each_time(
    autojump_clock: MockClock,
) -> None:
    runs = []
    for _ in range(2):
        wire = FakeWire()
        async with trio.open_nursery() as nursery:
            connection = disturbed(wire, nursery, delay_down="100ms", jitter="100ms")
            for _ in range(20):
                await connection.send(b"x")
        times = [0.0, *(seconds for seconds, _ in wire.got)]
        runs.append([round(after - before, 2) for before, after in pairwise(times)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 5
    assert all(0.1 <= each <= 0.2 for each in runs[0])


async def test_a_rate_is_kept_both_ways(autojump_clock: MockClock) -> None:
    wire = FakeWire(b"u" * 1000)
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, rate_down=1000, rate_up=500)
        await connection.send(b"d" * 2000)
        assert trio.current_time() == pytest.approx(2.0)
        assert max(len(piece) for _, piece in wire.got) == 50
        assert wire.data == b"d" * 2000
        data = b""
        began = trio.current_time()
        while len(data) < 1000:
            data += await connection.receive()
        # The first piece is there at once, and the last one when those before it had their time.
        assert trio.current_time() - began == pytest.approx(1.95)
        assert data == b"u" * 1000


async def test_a_rate_below_a_byte_at_once(autojump_clock: MockClock) -> None:
    wire = FakeWire()
    async with trio.open_nursery() as nursery:
        await disturbed(wire, nursery, rate_down=2).send(b"abc")
    assert wire.got == [(0.0, b"a"), (0.5, b"b"), (1.0, b"c")]


async def test_bytes_drip() -> None:
    wire = FakeWire(b"abc", leaves=True)
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, segment=1)
        await connection.send(b"123")
        assert [what for _, what in wire.got] == [b"1", b"2", b"3"]
        assert [await connection.receive() for _ in range(4)] == [b"a", b"b", b"c", b""]


@pytest.mark.parametrize(("key", "end"), [("reset_after", "rst"), ("close_after", "fin")])
async def test_it_ends_after_exactly_so_many_bytes(key: str, end: str) -> None:
    wire = FakeWire()
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, **{key: "5B"})
        await connection.send(b"abc")
        with pytest.raises(ConnectionLost, match="by a fault") as lost:
            await connection.send(b"defg")
        assert lost.value.reason == "fault"
        assert (wire.data, wire.got[-1][1], connection.is_closed) == (b"abcde", end, True)
        with pytest.raises(ConnectionLost):
            await connection.send(b"x")


async def test_it_ends_before_the_first_byte() -> None:
    wire = FakeWire()
    async with trio.open_nursery() as nursery:
        with pytest.raises(ConnectionLost):
            await disturbed(wire, nursery, reset_after="0B").send(b"abc")
    assert wire.data == b""


@pytest.mark.parametrize(("key", "end"), [("reset_after", "rst"), ("close_after", "fin")])
async def test_it_ends_after_so_long_although_nothing_goes_through(
    autojump_clock: MockClock, key: str, end: str
) -> None:
    wire = FakeWire()
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, **{key: "3s"})
        with pytest.raises(ConnectionLost):
            await connection.receive()
    assert wire.got == [(3.0, end)]


async def test_a_black_hole_swallows_both_ways_but_not_that_the_client_leaves(autojump_clock: MockClock) -> None:
    wire = FakeWire(1.0, b"a", 2.0, b"b", 1.0, leaves=True)
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, blackhole_after="2s")
        assert await connection.receive() == b"a"
        await connection.send(b"1")
        await trio.sleep(2)
        await connection.send(b"2")
        connection.send_now(b"3")
        connection.shutdown_write()
        await connection.finish()
        assert connection.receive_now() is None
        assert connection.stop() is connection
        with pytest.raises(ConnectionLost, match="left a black hole"):
            await connection.receive()
        with pytest.raises(ConnectionLost, match="left a black hole"):
            await connection.send(b"4")
    assert wire.got == [(1.0, b"1")]


async def test_who_has_left_before_there_was_a_black_hole_is_not_talked_to(autojump_clock: MockClock) -> None:
    wire = FakeWire(1.0, leaves=True)
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, blackhole_after="2s")
        assert await connection.receive() == b""
        await connection.send(b"1")  # it may have closed only its side
        await trio.sleep(2)
        with pytest.raises(ConnectionLost, match="left a black hole"):
            await connection.send(b"2")


async def test_a_black_hole_after_bytes_is_silent_until_the_client_leaves(autojump_clock: MockClock) -> None:
    wire = FakeWire(5.0, b"x", 5.0, leaves=True)
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, blackhole_after="4B", segment=3)
        await connection.send(b"abcdefgh")
        await connection.send(b"ijk")
        await connection.linger()
        assert (trio.current_time(), wire.data) == (10.0, b"abcd")
        assert [what for _, what in wire.got] == [b"abc", b"d"]
        connection.close()
        assert wire.is_closed


async def test_what_was_held_falls_into_the_black_hole(autojump_clock: MockClock) -> None:
    wire = FakeWire(1.8, b"late", 5.0, leaves=True)
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, blackhole_after="2s", delay_up="500ms")
        with pytest.raises(ConnectionLost, match="left a black hole"):
            await connection.receive()


async def test_what_is_held_for_the_next_exchange_is_not_disturbed_again(autojump_clock: MockClock) -> None:
    wire = FakeWire()
    async with trio.open_nursery() as nursery:
        first = disturbed(wire, nursery, delay_up="1s", delay_down="1s", segment=1, jitter="1s")
        first.hold(b"ab")
        connection = first.stop()
        assert connection is first
        second = disturbed(connection, nursery, delay_down="2s")
        began = trio.current_time()
        assert await second.receive() == b"ab"
        assert 1 <= trio.current_time() - began <= 2
        began = trio.current_time()
        await second.send(b"cd")
        assert trio.current_time() - began == 2  # the first has nothing to do with it any more
        assert second.stop() is wire
    assert [what for _, what in wire.got] == [b"cd"]


async def test_a_reset_behind_a_black_hole(autojump_clock: MockClock) -> None:
    wire = FakeWire()
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, blackhole_after="1s", reset_after="3s")
        with pytest.raises(ConnectionLost):
            await connection.receive()
    assert wire.got == [(3.0, "rst")]


async def test_the_next_exchange_has_the_connection_as_it_was(autojump_clock: MockClock) -> None:
    wire = FakeWire(b"more")
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, reset_after="3s", delay_up="1s", close_after="5B")
        await connection.send(b"abcd")
        assert connection.receive_now() is None
        assert connection.stop() is connection, "what is held would be lost"
        assert await connection.receive() == b"more"
        assert connection.stop() is wire
        await connection.send(b"abcd")
        await trio.sleep(10)
    assert not wire.is_closed


async def test_cancelling_loses_nothing_of_what_comes(autojump_clock: MockClock) -> None:
    wire = FakeWire(b"abcdef")
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, delay_up="2s", segment=4)
        for _ in range(3):
            with trio.move_on_after(0.5) as scope:
                await connection.receive()
            assert scope.cancelled_caught
        assert [await connection.receive(), connection.receive_now()] == [b"abcd", b"ef"]
        assert trio.current_time() == pytest.approx(2.0)


async def test_what_is_not_disturbed_goes_through(autojump_clock: MockClock) -> None:
    wire = FakeWire(b"a")
    async with trio.open_nursery() as nursery:
        connection = disturbed(wire, nursery, close_after="1000s")
        assert (connection.peer, connection.has_tail, connection.is_closed) == ("the client", False, False)
        await connection.open()
        assert connection.receive_now() == b"a"
        assert connection.receive_now() is None
        connection.send_now(b"x")
        await connection.flush()
        await connection.drain()
        await connection.finish()
        await connection.linger()
        connection.shutdown_write()
        connection.close()
        assert connection.is_closed
    assert wire.got == [(0.0, b"x"), (0.0, "fin")]
    assert trio.current_time() == 0
    async with trio.open_nursery() as nursery:
        wire = FakeWire()
        disturbed(wire, nursery, close_after="1000s").reset()
    assert wire.got == [(0.0, "rst")]


@pytest.mark.parametrize(("key", "error"), [("reset_after", ConnectionResetError), ("close_after", None)])
async def test_on_a_socket(key: str, error: type[OSError] | None) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        async with trio.open_nursery() as nursery:
            connection = disturbed(Connection(accepted, "", write_timeout=5), nursery, **{key: "3B"})
            with pytest.raises(ConnectionLost):
                await connection.send(b"abcd")
        select.select([client], [], [], 10)
        if error is None:
            assert (client.recv(10), client.recv(10)) == (b"abc", b"")
        else:
            with pytest.raises(error):  # noqa: PT012 - it may come behind what was sent before
                while client.recv(10):
                    continue


@given(
    down=st.lists(st.binary(max_size=40), max_size=8),
    up=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    segment=st.integers(0, 10),
    rate=st.sampled_from([0, 7, 100]),
    end=st.integers(0, 200),
)
def test_in_order_and_no_more_than_allowed(
    down: list[bytes], up: list[bytes], segment: int, rate: int, end: int
) -> None:
    async def main() -> None:
        wire = FakeWire(*up, leaves=True)
        keys: dict[str, Any] = {"segment": segment, "rate_up": rate, "rate_down": rate, "jitter": "1s"}
        async with trio.open_nursery() as nursery:
            connection = disturbed(wire, nursery, reset_after=f"{end}B", **keys)
            came = b""
            while data := await connection.receive():
                came += data
            assert came == b"".join(up)
            whole = b"".join(down)
            try:
                for piece in down:
                    await connection.send(piece)
            except ConnectionLost:
                assert len(whole) >= end
            assert wire.data == whole[:end]
            if segment:
                assert all(len(what) <= segment for _, what in wire.got if isinstance(what, bytes))

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_timer_ends_with_its_connection(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        disturbed(FakeWire(), nursery, reset_after="1000s").close()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
