"""Polling again and again on one connection: what is answered when, in one piece, and what is left of it."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from clients import Answer, Closed, Wire, head, read_answer, read_head
from serving import serving, until

import tricast
from tricast.event import EventId, TopicSet
from tricast.log.base import Slice
from tricast.log.memory import MemoryLog

NEVER = {"head_timeout": "1h", "body_timeout": "1h", "idle_timeout": "1h", "write_timeout": "1h"}
#: What a client does not read soon fills both buffers.
SMALL = {"send_buffer": 4096}
LATE = {"timeout": "1h"}


@asynccontextmanager
async def polling(
    *, log: MemoryLog | None = None, receive_buffer: int = 0, **sections: Any
) -> AsyncIterator[tuple[tricast.Server, Wire]]:
    """A server and a client's connection, behind which nothing may be left."""
    sections = {"limits": NEVER, "poll": LATE} | sections
    async with serving(log=log, **sections) as server:
        with await Wire.open(server.url, receive_buffer=receive_buffer) as wire:
            yield server, wire
        await nothing_is_left(server)


async def nothing_is_left(server: tricast.Server) -> None:
    await until(lambda: server.connections == 0)
    statistics = server.hub.statistics()
    assert (statistics.subscribers, statistics.feeds, statistics.behind) == (0, 0, 0)
    assert len(server._runtime.wheel) == 0
    assert not server._runtime.open


def poll(last_id: str | None = None, *headers: str, version: str = "1.1") -> bytes:
    """A request for what is behind a position."""
    position = [f"Last-Event-ID: {last_id}"] if last_id is not None else []
    return head("GET", "/events?topic=news", *position, *headers, version=version)


async def waits(server: tricast.Server, count: int = 1) -> None:
    """Returns when so many polls wait."""
    await until(lambda: server.hub.statistics().subscribers == count)


def told(answer: Answer) -> list[Any]:
    """The data of the answer's events."""
    assert answer.status == 200
    body = answer.json()
    assert body["last_id"] == answer.headers["last-event-id"] == body["events"][-1]["id"]
    return [event["data"] for event in body["events"]]


# The cycle


async def test_many_cycles_on_one_connection() -> None:
    async with polling() as (server, wire):
        last_id = None
        for n in range(200):
            await wire.send(poll(last_id))
            await waits(server)
            event_id = str(await server.hub.publish("news", n))
            answer = await read_answer(wire)
            last_id = answer.headers["last-event-id"]
            assert (told(answer), last_id) == ([n], event_id)
            assert "connection" not in answer.headers
        assert server._runtime.counters.accepted == 1
        assert server._runtime.counters.requests["/events", 200] == 200
        assert server._runtime.counters.streams["poll"] == 200


async def test_what_happens_between_two_polls_is_not_missed() -> None:
    async with polling() as (server, wire):
        last_id = str(await server.hub.publish("other", 1))
        seen: list[int] = []
        for n in range(0, 150, 3):
            await server.hub.publish("news", n)
            await wire.send(poll(last_id))
            if n % 2:
                await server.hub.publish("news", n + 1)
            answer = await read_answer(wire)
            seen += told(answer)
            await wire.send(poll(answer.headers["last-event-id"]))
            if not n % 2:
                await waits(server)
                await server.hub.publish("news", n + 1)
            if not n % 2 or seen[-1] == n:
                answer = await read_answer(wire)
                seen += told(answer)
            else:
                await waits(server)
                await server.hub.publish("news", n + 2)
                answer = await read_answer(wire)
                assert told(answer) == [n + 2]
            last_id = answer.headers["last-event-id"]
        assert seen == [n for n in range(150) if n % 3 < 2]


async def test_all_who_wait_get_the_same_at_once() -> None:
    async with serving(limits=NEVER, poll=LATE) as server:
        wires = [await Wire.open(server.url) for _ in range(50)]
        last_ids: set[str | None] = {None}
        for n in range(20):
            (last_id,) = last_ids
            for wire in wires:
                await wire.send(poll(last_id))
            await waits(server, len(wires))
            await server.hub.publish("news", n)
            answers = [await read_answer(wire) for wire in wires]
            assert [told(answer) for answer in answers] == [[n]] * len(wires)
            last_ids = {answer.headers["last-event-id"] for answer in answers}
        for wire in wires:
            wire.close()
        await nothing_is_left(server)


async def test_every_cycle_may_end_without_events() -> None:
    async with polling(poll={"timeout": "100ms"}) as (server, wire):
        last_id = str(await server.hub.publish("news", 0))
        for n in range(10):
            await wire.send(poll(last_id))
            answer = await read_answer(wire)
            assert (answer.status, answer.headers["last-event-id"]) == (204, last_id)
            assert "connection" not in answer.headers
            last_id = str(await server.hub.publish("other", n))
            await wire.send(poll(answer.headers["last-event-id"]))
            answer = await read_answer(wire)
            # What it waited for did not happen; the position has moved on all the same.
            assert (answer.status, answer.headers["last-event-id"]) == (204, last_id)
        await server.hub.publish("news", "at last")
        await wire.send(poll(last_id))
        assert told(await read_answer(wire)) == ["at last"]


async def test_other_requests_between_polls() -> None:
    async with polling() as (server, wire):
        for n in range(20):
            await wire.send(poll())
            await waits(server)
            await server.hub.publish("news", n)
            assert told(await read_answer(wire)) == [n]
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).json() == {"status": "ok"}
            body = json.dumps(n).encode()
            await wire.send(head("POST", "/publish?topic=other", f"Content-Length: {len(body)}") + body)
            assert (await read_answer(wire)).status == 200
            await wire.send(head("HEAD", "/events?topic=news"))
            assert (await read_answer(wire, "HEAD")).headers["last-event-id"] == str(server.hub.last_id)


async def test_requests_in_pieces_between_cycles() -> None:
    async with polling() as (server, wire):
        for n in range(5):
            for byte in poll():
                await wire.send(bytes([byte]))
            await waits(server)
            await server.hub.publish("news", n)
            assert told(await read_answer(wire)) == [n]


async def test_a_poll_becomes_a_stream() -> None:
    async with polling() as (server, wire):
        await wire.send(poll())
        await waits(server)
        event_id = str(await server.hub.publish("news", 1))
        await read_answer(wire)
        await wire.send(poll(event_id, "Accept: text/event-stream"))
        assert (await read_head(wire)).headers["content-type"] == "text/event-stream"
        await server.hub.publish("news", "on the stream")
        await wire.until(b"on the stream")


# Behind a waiting poll


async def test_pipelined_polls_are_answered_one_after_another() -> None:
    async with polling() as (server, wire):
        last_id = str(await server.hub.publish("news", "before"))
        await wire.send(poll(last_id) * 50)
        for n in range(50):
            await waits(server)
            await server.hub.publish("news", n)
            # The others ask for the same, which is there by then.
            assert told(await read_answer(wire)) == [0]
            if n == 0:
                assert [told(await read_answer(wire)) for _ in range(49)] == [[0]] * 49
                break


async def test_polls_for_what_comes_wait_for_one_event_each() -> None:
    async with polling() as (server, wire):
        await wire.send(poll() * 20)
        for n in range(20):
            await waits(server)
            await server.hub.publish("news", n)
            assert told(await read_answer(wire)) == [n]


async def test_requests_around_waiting_polls_keep_their_place() -> None:
    async with polling() as (server, wire):
        body = b'"by itself"'
        publish = head("POST", "/publish?topic=other", f"Content-Length: {len(body)}") + body
        behind = head("GET", "/healthz") + publish + head("HEAD", "/nothing") + head("GET", "/nothing")
        await wire.send(head("GET", "/readyz") + poll() + behind + poll())
        # What came before the poll is answered although that one waits.
        assert (await read_answer(wire)).json() == {"status": "ready"}
        for n in range(2):
            await waits(server)
            await server.hub.publish("news", n)
            assert told(await read_answer(wire)) == [n]
            if n == 0:
                assert (await read_answer(wire)).json() == {"status": "ok"}
                assert (await read_answer(wire)).json()["id"] == str(server.hub.last_id)
                assert (await read_answer(wire, "HEAD")).status == 404
                assert (await read_answer(wire)).status == 404


async def test_answers_before_a_poll_with_a_flood_behind_it_do_not_wait() -> None:
    async with polling() as (server, wire):
        flood = head("GET", "/nothing") * 4000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, poll() + head("GET", "/healthz") + poll() + flood)
            await waits(server)
            # As much was read ahead as will be, so there is nothing to wait for behind the second poll.
            await until(lambda: ahead(server) >= 2**16)
            await server.hub.publish("news", 1)
            assert told(await read_answer(wire)) == [1]
            assert (await read_answer(wire)).json() == {"status": "ok"}
            await server.hub.publish("news", 2)
            assert told(await read_answer(wire)) == [2]
            for _ in range(4000):
                assert (await read_answer(wire)).status == 404


def ahead(server: tricast.Server) -> int:
    """How much was read behind the request that is being answered."""
    (connection,) = server._runtime.open.values()
    return len(connection._ahead)  # type: ignore[attr-defined]


async def test_the_next_request_half_sent_while_a_poll_waits() -> None:
    async with polling() as (server, wire):
        for n in range(5):
            request = poll()
            await wire.send(request + head("GET", "/healthz")[:10])
            await waits(server)
            await until(lambda: ahead(server) == 10)
            await server.hub.publish("news", n)
            assert told(await read_answer(wire)) == [n]
            await wire.send(head("GET", "/healthz")[10:])
            assert (await read_answer(wire)).json() == {"status": "ok"}


async def test_a_request_that_cannot_be_read_behind_a_poll() -> None:
    async with polling() as (server, wire):
        await wire.send(poll() + b"no request\r\n\r\n")
        await waits(server)
        await server.hub.publish("news", 1)
        assert told(await read_answer(wire)) == [1]
        answer = await read_answer(wire)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await wire.rest() == b""


# The last poll


@pytest.mark.parametrize(
    ("headers", "version"), [(("Connection: close",), "1.1"), ((), "1.0"), (("Connection: keep-alive",), "1.0")]
)
@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_poll_that_is_the_last(headers: Sequence[str], version: str, is_kept: bool) -> None:
    async with polling() as (server, wire):
        before = str(await server.hub.publish("news", 1))
        await wire.send(poll())
        await waits(server)
        await server.hub.publish("news", 2)
        await read_answer(wire)
        await wire.send(poll(before if is_kept else None, *headers, version=version))
        if not is_kept:
            await waits(server)
            await server.hub.publish("news", 2)
        answer = await read_answer(wire)
        assert (told(answer), answer.headers["connection"]) == ([2], "close")
        assert await wire.rest() == b""


async def test_a_last_poll_without_events() -> None:
    async with polling(poll={"timeout": "20ms"}) as (_, wire):
        await wire.send(poll(None, "Connection: close"))
        answer = await read_answer(wire)
        assert (answer.status, answer.headers["connection"]) == (204, "close")
        assert await wire.rest() == b""


async def test_a_poll_with_a_body_that_nobody_reads_is_the_last() -> None:
    async with polling() as (server, wire):
        await wire.send(poll(None, "Content-Length: 5"))
        await waits(server)
        await server.hub.publish("news", 1)
        answer = await read_answer(wire)
        assert (told(answer), answer.headers["connection"]) == ([1], "close")


# Clients that leave


@pytest.mark.parametrize("leave", ["close", "reset", "finish_sending"])
@pytest.mark.parametrize("cycles", [0, 1, 5])
async def test_leaving_while_a_poll_waits(leave: str, cycles: int) -> None:
    async with polling() as (server, wire):
        for n in range(cycles):
            await wire.send(poll())
            await waits(server)
            await server.hub.publish("news", n)
            assert told(await read_answer(wire)) == [n]
        await wire.send(poll())
        await waits(server)
        getattr(wire, leave)()
        await nothing_is_left(server)
        # Nobody is there to be told.
        await server.hub.publish("news", "unheard")
        lost = server._runtime.counters.lost
        assert lost["left"] + lost["reset"] == 1


async def test_who_only_sends_no_more_is_told_that_there_is_nothing() -> None:
    async with polling() as (server, wire):
        await wire.send(head("GET", "/healthz") + poll(None))
        await waits(server)
        wire.finish_sending()
        assert (await read_answer(wire)).json() == {"status": "ok"}
        answer = await read_answer(wire)
        assert (answer.status, answer.headers["connection"]) == (204, "close")
        assert answer.headers["last-event-id"]
        assert await wire.rest() == b""


@pytest.mark.parametrize("leave", ["close", "reset", "finish_sending"])
async def test_leaving_after_the_answer(leave: str) -> None:
    async with polling() as (server, wire):
        await wire.send(poll())
        await waits(server)
        await server.hub.publish("news", 1)
        assert told(await read_answer(wire)) == [1]
        getattr(wire, leave)()
        await nothing_is_left(server)
        assert server._runtime.counters.lost["left"] == 0


@pytest.mark.parametrize("leave", ["close", "reset", "finish_sending"])
async def test_leaving_as_the_answer_comes(leave: str) -> None:
    for rounds in range(20):
        async with polling() as (server, wire):
            await wire.send(poll())
            await waits(server)
            getattr(wire, leave)()
            for _ in range(rounds % 4):
                await trio.lowlevel.checkpoint()
            await server.hub.publish("news", "x" * 50_000)
            await nothing_is_left(server)


# Deadlines


@pytest.mark.parametrize("waits_for", ["1h", "20ms"])
@pytest.mark.parametrize("cycles", [1, 3])
async def test_who_asks_nothing_any_more_is_closed(waits_for: str, cycles: int) -> None:
    async with polling(poll={"timeout": waits_for}, limits=NEVER | {"idle_timeout": "1s"}) as (server, wire):
        for n in range(cycles):
            await wire.send(poll())
            if waits_for == "1h":
                await waits(server)
                await server.hub.publish("news", n)
                assert told(await read_answer(wire)) == [n]
            else:
                assert (await read_answer(wire)).status == 204
        assert await wire.rest() == b""


async def test_half_a_head_behind_an_answered_poll_is_not_waited_for() -> None:
    async with polling(limits=NEVER | {"head_timeout": "500ms"}) as (server, wire):
        await wire.send(poll())
        await waits(server)
        await server.hub.publish("news", 1)
        assert told(await read_answer(wire)) == [1]
        await wire.send(poll()[:20])
        assert (await read_answer(wire)).status == 408
        assert await wire.rest() == b""


# Draining

DRAIN = {"period": "0s", "grace": "1h", "retry_after": "7s"}


async def test_a_drain_answers_a_poll_that_waits() -> None:
    async with polling(drain=DRAIN) as (server, wire):
        await wire.send(poll())
        await waits(server)
        last_id = str(await server.hub.publish("news", 1))
        await read_answer(wire)
        await wire.send(poll(last_id) + head("GET", "/healthz"))
        await waits(server)
        server.drain()
        answer = await read_answer(wire)
        assert (answer.status, answer.headers["last-event-id"]) == (204, last_id)
        assert 7 <= int(answer.headers["retry-after"]) <= 11
        assert answer.headers["connection"] == "close"
        assert await wire.rest() == b"", "what is behind it is for another server"
        wire.close()
        await server.wait_stopped()


async def test_a_drain_closes_after_an_answered_poll() -> None:
    async with polling(drain=DRAIN) as (server, wire):
        await wire.send(poll())
        await waits(server)
        await server.hub.publish("news", 1)
        assert told(await read_answer(wire)) == [1]
        server.drain()
        assert await wire.rest() == b""
        wire.close()
        await server.wait_stopped()


async def test_a_drain_while_an_answer_is_not_read_waits_for_that_only() -> None:
    async with polling(drain=DRAIN, limits=NEVER | SMALL, receive_buffer=4096) as (server, wire):
        await wire.send(poll())
        await waits(server)
        await server.hub.publish("news", "x" * 60_000)
        (connection,) = server._runtime.open
        await until(lambda: connection.has_tail)
        server.drain()
        await until(lambda: server._runtime.is_draining)
        assert told(await read_answer(wire)) == ["x" * 60_000]
        assert await wire.rest() == b""
        wire.close()
        await server.wait_stopped()


class SlowLog(MemoryLog):
    """Reads only once it is let."""

    let = trio.Event()
    asked = trio.Event()

    async def read(self, topics: TopicSet, after: EventId, *, max_bytes: int) -> Slice:
        self.asked.set()
        await self.let.wait()
        return await super().read(topics, after, max_bytes=max_bytes)


def slow_log() -> SlowLog:
    log = SlowLog(history=10, history_age=60, history_size=2**20, clock=lambda: 1.0)
    log.let, log.asked = trio.Event(), trio.Event()
    return log


async def test_a_slow_log_reads_when_it_is_let() -> None:
    log = slow_log()
    async with log.open(lambda events: None), trio.open_nursery() as nursery:
        found: list[Slice] = []

        async def read() -> None:
            found.append(await log.read(TopicSet(frozenset({"news"})), log.last_id, max_bytes=1))

        nursery.start_soon(read)
        await log.asked.wait()
        assert found == []
        log.let.set()
    assert len(found) == 1


async def test_a_drain_while_the_log_is_read_answers_all_the_same() -> None:
    log = slow_log()
    async with polling(log=log, drain=DRAIN) as (server, wire):
        last_id = str(server.hub.last_id)
        await wire.send(poll(last_id))
        await log.asked.wait()
        server.drain()
        # The only round, in which this connection had nothing to end.
        await trio.testing.wait_all_tasks_blocked()
        log.let.set()
        answer = await read_answer(wire)
        assert (answer.status, answer.headers["last-event-id"]) == (204, last_id)
        assert 7 <= int(answer.headers["retry-after"]) <= 11
        assert answer.headers["connection"] == "close"
        assert await wire.rest() == b""
        wire.close()
        await server.wait_stopped()


# Clients that do not read


async def test_who_reads_large_answers_late_gets_them_whole_and_goes_on() -> None:
    async with polling(limits=NEVER | SMALL, receive_buffer=4096) as (server, wire):
        for n in range(5):
            await wire.send(poll())
            await waits(server)
            await server.hub.publish("news", "x" * 60_000)
            (connection,) = server._runtime.open
            await until(lambda: connection.has_tail)  # noqa: B023
            if n % 2:  # the next request comes before the answer was read
                await wire.send(head("GET", "/healthz"))
            assert told(await read_answer(wire)) == ["x" * 60_000]
            if n % 2:
                assert (await read_answer(wire)).json() == {"status": "ok"}


async def test_who_never_reads_is_lost() -> None:
    limits = NEVER | SMALL | {"write_timeout": "50ms"}
    async with polling(limits=limits, receive_buffer=4096) as (server, wire):
        await wire.send(poll())
        await waits(server)
        await server.hub.publish("news", "x" * 60_000)
        await nothing_is_left(server)
        assert server._runtime.counters.lost["write-timeout"] == 1
        with pytest.raises(Closed):
            await read_answer(wire)


@pytest.mark.parametrize("status", [200, 204])
async def test_a_poll_is_answered_behind_answers_that_are_not_read(status: int) -> None:
    # The last one waits while the kernel has no room for what comes before it.
    timeout = "1h" if status == 200 else "1s"
    async with polling(limits=NEVER | SMALL, poll={"timeout": timeout}, receive_buffer=4096) as (server, wire):
        page = len((await ask_for_page(wire)).body)
        count = 50_000 // page
        await wire.send(head("GET", "/") * count + poll())
        await waits(server)
        (connection,) = server._runtime.open
        await until(lambda: connection.has_tail)
        if status == 200:
            await server.hub.publish("news", 1)
        await until(lambda: server._runtime.counters.requests["/events", status] == 1)
        for _ in range(count):
            assert len((await read_answer(wire)).body) == page
        answer = await read_answer(wire)
        assert answer.status == status
        await wire.send(head("GET", "/healthz"))
        assert (await read_answer(wire)).json() == {"status": "ok"}


async def ask_for_page(wire: Wire) -> Answer:
    await wire.send(head("GET", "/"))
    return await read_answer(wire)


# In one piece


async def test_an_answer_is_one_send() -> None:
    async with polling() as (server, wire):
        for n in range(5):
            await wire.send(poll())
            await waits(server)
            await server.hub.publish("news", "x" * 1000)
            await wire.more()  # one receive
            assert len(told(await read_whole(wire))) == 1
            assert not wire.buffer
            assert n < 5


async def read_whole(wire: Wire) -> Answer:
    """An answer of which nothing is missing any more."""
    _, _, body = bytes(wire.buffer).partition(b"\r\n\r\n")
    answer = await read_head(wire)
    assert int(answer.headers["content-length"]) == len(body)
    return answer._replace(body=await wire.exactly(len(body)))
