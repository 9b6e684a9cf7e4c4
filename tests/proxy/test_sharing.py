"""Answers that several clients share, in a proxy that runs."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from clients import Closed, Wire, ask, head, publish, read_head, subscribe
from clocks import HANG_SECONDS, jump
from forwarding import forwarding
from proxy.origins import OK, Visit, always, origin, read_any, read_chunk, silent
from serving import open_descriptors, serving, until
from trio.testing import MockClock, wait_all_tasks_blocked

SHARED: dict[str, Any] = {"cache": "coalesce"}
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Stages:
    """An origin whose answer goes on when it is told to.

    Attributes:
        is_open: how many of its answers are under way.
    """

    def __init__(self, head_: bytes = CHUNKED) -> None:
        self._head = head_
        self._steps: list[tuple[trio.Event, bytes]] = []
        self.is_open = 0

    def step(self, data: bytes) -> Callable[[], None]:
        """Adds a step; returns what lets it happen."""
        event = trio.Event()
        self._steps.append((event, data))
        return event.set

    async def __call__(self, visit: Visit) -> None:
        await visit.request()
        self.is_open += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with, visit.wire, nursery.cancel_scope)
                await visit.wire.send(self._head)
                for event, data in self._steps:
                    await event.wait()
                    await visit.wire.send(data)
                nursery.cancel_scope.cancel()
        finally:
            self.is_open -= 1
        await always(OK)(visit)

    async def _end_with(self, wire: Wire, scope: trio.CancelScope) -> None:
        while await wire.receive():
            pass
        scope.cancel()


async def asked(url: str, *headers: str, method: str = "GET", target: str = "/") -> Wire:
    """A client that has asked."""
    wire = await Wire.open(url)
    await wire.send(head(method, target, *headers))
    return wire


async def test_one_event_stream_for_all() -> None:
    # What Tricast says of its streams is that they are not to be shared.
    headers = {"response_remove": ["Cache-Control"]}
    async with serving() as server, forwarding(server.url, response=SHARED, headers=headers) as proxy:
        with await subscribe("sse", proxy.url, "t") as first:
            await publish(server.url, "t", "past")
            assert (await first.event()).data == "past"
            with await subscribe("sse", proxy.url, "t") as second:
                assert (await second.event()).data == "past"
                await publish(server.url, "t", "now")
                assert [(await stream.event()).data for stream in (first, second)] == ["now", "now"]
                first.wire.close()
                await until(lambda: len(proxy.clients) == 1)
                await publish(server.url, "t", "later")
                assert (await second.event()).data == "later"
            assert proxy.counters.opened == 1
            # Another URL is another stream.
            with await subscribe("sse", proxy.url, "t", "u"):
                assert proxy.counters.opened == 2


async def test_the_past_comes_first_and_the_whole_from_what_is_kept() -> None:
    stages = Stages()
    go_on, end = stages.step(b"3\r\none\r\n"), stages.step(b"3\r\ntwo\r\n0\r\n\r\n")
    async with origin(stages) as server, forwarding(server.url, response=SHARED) as proxy:
        with await asked(proxy.url) as first:
            go_on()
            assert "age" in (await read_head(first)).headers
            assert await read_chunk(first) == b"one"
            with await asked(proxy.url) as second:
                await read_head(second)
                assert await read_chunk(second) == b"one"
                end()
                for wire in (first, second):
                    assert await read_chunk(wire) == b"two"
                    assert await read_chunk(wire) == b""
                    assert await wire.exactly(2) == b"\r\n"
                # Their connections go on.
                await second.send(head("GET", "/"))
                kept = await read_any(second)
                assert (kept.body, kept.headers["content-length"]) == (b"onetwo", "6")
        assert (await ask(proxy.url, "GET", "/")).body == b"onetwo"
        assert len(server.requests) == 1
        # The connection to the server has been given back.
        assert (await ask(proxy.url, "POST", "/", body=b"x")).body == b"ok"
        assert len(server.visits) == 1


@pytest.mark.parametrize(
    ("method", "fields"),
    [("GET", ["Cookie: a=b"]), ("GET", ["Authorization: Basic x"]), ("GET", ["Range: bytes=0-"]), ("HEAD", [])],
)
async def test_what_is_personal_is_not_shared(method: str, fields: list[str]) -> None:
    async with origin(silent) as server, forwarding(server.url, response=SHARED) as proxy:
        with await asked(proxy.url), await asked(proxy.url, *fields, method=method):
            await server.wait_requests(2)
            with await asked(proxy.url, *fields, method=method):
                await server.wait_requests(3)


async def test_what_changes_something_is_not_shared() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, response=SHARED) as proxy:
        for count in range(1, 4):
            assert (await ask(proxy.url, "POST", "/", body=b"x")).body == b"ok"
            assert len(server.requests) == count


@pytest.mark.parametrize("leaves", ["abort", "on-write"])
async def test_a_client_that_leaves_does_not_end_it(leaves: str) -> None:
    stages = Stages()
    begin, go_on = stages.step(b"3\r\none\r\n"), stages.step(b"3\r\ntwo\r\n0\r\n\r\n")
    async with origin(stages) as server, forwarding(server.url, response=SHARED, client={"leaves": leaves}) as proxy:
        with await asked(proxy.url) as first:
            begin()
            await read_head(first)
        if leaves == "abort":
            await until(lambda: not proxy.clients)
        with await asked(proxy.url) as second:
            await read_head(second)
            assert await read_chunk(second) == b"one"
            go_on()
            assert await read_chunk(second) == b"two"
            assert await read_chunk(second) == b""
        await until(lambda: not proxy.clients)
        assert (await ask(proxy.url, "GET", "/")).body == b"onetwo"
        assert len(server.requests) == 1


@pytest.mark.parametrize("stage", ["waits", "reads"])
async def test_a_client_that_joined_and_leaves_is_noticed(stage: str) -> None:
    """Nothing more has to be sent to it."""
    stages = Stages()
    begin = stages.step(b"3\r\none\r\n")
    stages.step(b"never")
    handler = silent if stage == "waits" else stages
    async with origin(handler) as server, forwarding(server.url, response=SHARED) as proxy:
        with await asked(proxy.url) as first:
            await server.wait_requests(1)
            if stage == "reads":
                begin()
                await read_head(first)
            before = open_descriptors()
            with await asked(proxy.url) as second:
                await until(lambda: len(proxy.clients) == 2)
                if stage == "reads":
                    await read_head(second)
                    assert await read_chunk(second) == b"one"
                await wait_all_tasks_blocked()
            await until(lambda: len(proxy.clients) == 1)
            await until(lambda: not open_descriptors() - before)
            assert proxy.counters.cuts["client"] == 1
        assert len(server.requests) == 1


async def test_a_server_that_fails_lets_those_go_on_who_wait() -> None:
    """One after the other asks for itself: somebody may have more luck."""
    answers = iter([b"", b"garbage\r\n\r\n", OK])

    async def fail_twice(visit: Visit) -> None:
        await visit.request()
        await go_on.wait()
        await visit.wire.send(next(answers))

    async def ask_one() -> None:
        statuses.append((await ask(proxy.url, "GET", "/")).status)

    statuses: list[int] = []
    go_on = trio.Event()
    async with origin(fail_twice) as server, forwarding(server.url, response=SHARED) as proxy:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask_one)
            await until(lambda: len(proxy.clients) == 6)
            await server.wait_requests(1)
            await wait_all_tasks_blocked()
            assert len(server.requests) == 1
            go_on.set()
        assert statuses == [502, 502, 200, 200, 200, 200]
        assert len(server.requests) == 3


async def test_an_answer_that_is_not_to_be_shared_lets_all_ask() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nCache-Control: private\r\n\r\nok"

    async def wait_and_answer(visit: Visit) -> None:
        await visit.request()
        await (first if visit.number == 1 else others).wait()
        await visit.wire.send(answer)

    first, others = trio.Event(), trio.Event()
    async with (
        origin(wait_and_answer) as server,
        forwarding(server.url, response=SHARED) as proxy,
        trio.open_nursery() as nursery,
    ):
        for _ in range(4):
            nursery.start_soon(ask, proxy.url, "GET", "/")
        await until(lambda: len(proxy.clients) == 4)
        await server.wait_requests(1)
        first.set()
        await server.wait_requests(4)  # at once: none of the others has been answered
        others.set()


async def test_an_answer_that_breaks_off_breaks_off_for_all() -> None:
    async def break_off(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(CHUNKED + b"3\r\none\r\n")
        await go_on.wait()

    go_on = trio.Event()
    async with origin(break_off) as server, forwarding(server.url, response=SHARED) as proxy:
        with await asked(proxy.url) as first, await asked(proxy.url) as second:
            for wire in (first, second):
                await read_head(wire)
                assert await read_chunk(wire) == b"one"
            assert len(server.requests) == 1
            go_on.set()
            for wire in (first, second):
                with pytest.raises(Closed):
                    await read_chunk(wire)
        go_on = trio.Event()
        with await asked(proxy.url) as third:
            await read_head(third)
            assert len(server.requests) == 2
            go_on.set()


async def test_trailers_that_must_not_be_break_off_for_all() -> None:
    answer = CHUNKED + b"3\r\none\r\n0\r\nX: y\r\n\r\n"
    async with (
        origin(always(answer)) as server,
        forwarding(server.url, response=SHARED | {"trailers": "refuse"}) as proxy,
    ):
        for count in (1, 2):
            with await asked(proxy.url) as wire:
                await read_head(wire)
                assert await read_chunk(wire) == b"one"
                with pytest.raises(Closed):
                    await read_chunk(wire)
            assert len(server.requests) == count


async def test_silence_is_timed_as_of_the_server_and_not_of_the_head(running_clock: MockClock) -> None:
    stages = Stages()
    begin, go_on = stages.step(b"3\r\none\r\n"), stages.step(b"3\r\ntwo\r\n0\r\n\r\n")
    timers = {"response_header_timeout": "30s", "read_timeout": "1h"}
    async with origin(stages) as server, forwarding(server.url, response=SHARED, upstream=timers) as proxy:
        with await asked(proxy.url) as first, await asked(proxy.url) as second:
            begin()
            for wire in (first, second):
                await read_head(wire)
                assert await read_chunk(wire) == b"one"
            await jump(running_clock, 40)  # longer than a head may take
            go_on()
            for wire in (first, second):
                assert await read_chunk(wire) == b"two"
                assert await read_chunk(wire) == b""


async def test_a_server_that_falls_silent_is_given_up_for_all(running_clock: MockClock) -> None:
    stages = Stages(CHUNKED + b"3\r\none\r\n")
    stages.step(b"never")
    timers = {"read_timeout": "30s"}
    async with origin(stages) as server, forwarding(server.url, response=SHARED, upstream=timers) as proxy:
        with await asked(proxy.url) as first, await asked(proxy.url) as second:
            for wire in (first, second):
                await read_head(wire)
                assert await read_chunk(wire) == b"one"
            await jump(running_clock, 30)
            for wire in (first, second):
                with pytest.raises(Closed):
                    await read_chunk(wire)
        assert len(server.requests) == 1
        await server.wait_left()


async def test_sticky_cookies_are_not_shared() -> None:
    balance = {"sticky": True, "cookie_secret": "a secret that is long enough for it"}
    async with origin(always(OK)) as server, forwarding(server.url, response=SHARED, balance=balance) as proxy:
        first, second = [await ask(proxy.url, "GET", "/") for _ in range(2)]
        assert first.headers["set-cookie"].startswith("tricast_server=")
        assert "set-cookie" not in second.headers
        assert second.body == b"ok"
        assert len(server.requests) == 1


async def test_faults_are_for_one_client_alone() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: a\r\n\r\nok"
    faults = [
        {"transport": "sse", "drop_response_header": ["ETag"], "inject_1xx": [103]},
        {"transport": "websocket", "close_before_response": True},
    ]
    async with origin(always(answer)) as server, forwarding(server.url, response=SHARED, fault=faults) as proxy:
        for _ in range(2):
            with await asked(proxy.url, "Accept: text/event-stream") as wire:
                assert (await read_head(wire)).status == 103
                assert "etag" not in (await read_any(wire)).headers
            assert (await ask(proxy.url, "GET", "/")).headers["etag"] == "a"
        assert len(server.requests) == 1


async def test_a_shared_answer_may_be_closed_before() -> None:
    async with origin(always(OK)) as server:
        sections: dict[str, Any] = {"fault": [{"close_before_response": True, "transport": "sse"}], "response": SHARED}
        async with forwarding(server.url, **sections) as proxy:
            assert (await ask(proxy.url, "GET", "/")).body == b"ok"
            with await asked(proxy.url, "Accept: text/event-stream") as wire:
                assert await wire.rest() == b""
            assert len(server.requests) == 1


async def test_what_must_go_on_at_once_is_refused_and_given_up() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nIncremental: ?1\r\n\r\nok"
    response = SHARED | {"incremental": "refuse", "buffering": "full"}
    async with origin(always(answer)) as server, forwarding(server.url, response=response) as proxy:
        for _ in range(2):
            assert (await ask(proxy.url, "GET", "/")).status == 501
        assert len(server.requests) == 1


@pytest.mark.parametrize("has_clients", [False, True])
async def test_going_down_while_one_is_under_way(has_clients: bool) -> None:
    stages = Stages()
    begin = stages.step(b"3\r\none\r\n")
    stages.step(b"never")
    async with origin(stages) as server, forwarding(server.url, response=SHARED, drain={"grace": "200ms"}) as proxy:
        with await asked(proxy.url) as first, await asked(proxy.url) as second:
            begin()
            for wire in (first, second):
                await read_head(wire)
                assert await read_chunk(wire) == b"one"
            if not has_clients:
                first.close()
                second.close()
                await until(lambda: not proxy.clients)
            assert stages.is_open == 1
            proxy.drain()
            with trio.fail_after(HANG_SECONDS):
                await proxy.wait_stopped()
                await server.wait_left()
