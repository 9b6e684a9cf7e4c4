"""Whatever a connection raises stays in that connection: every phase is made to raise, once."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from clients import (
    TEXT,
    Closed,
    Ended,
    EventStream,
    Subscription,
    WebSocket,
    ask,
    frame,
    open_websocket,
    publish,
    subscribe,
)
from serving import failures, open_descriptors, serving, until
from structlog.testing import LogCapture

import tricast
from tricast.connection import Connection
from tricast.event import Draft, EventId, TopicSet
from tricast.hub import Hub
from tricast.log.base import IdempotencyKey, Slice
from tricast.log.memory import MemoryLog
from tricast.transports.event_stream import EventStream as ServerEventStream
from tricast.transports.long_poll import LongPoll as ServerLongPoll
from tricast.transports.stream import Stream
from tricast.transports.websocket import Session


class Bug(Exception):
    """What no code expects."""


class Ward:
    """A server with two clients that must not notice anything, and the means to ask them."""

    def __init__(self, server: tricast.Server, records: LogCapture, witnesses: Sequence[Subscription]) -> None:
        self.server = server
        self.url = server.url
        self._records = records
        self._witnesses = witnesses

    async def failed_once(self) -> None:
        """Returns when one connection has ended by a bug, which was logged and counted once, and nobody else cares."""
        counters = self.server._runtime.counters
        await until(lambda: counters.failed == 1)
        await until(lambda: self.server.connections == len(self._witnesses))
        assert self.server.hub.statistics().subscribers == len(self._witnesses)
        (failure,) = failures(self._records)
        assert "connection failed" in failure
        # The flush goes on, and the sweep does.
        await publish(self.url, "witness", "all is well")
        for witness in self._witnesses:
            assert (await witness.event()).data == "all is well"
            if isinstance(witness, EventStream):
                await witness.wait_comment()
        assert counters.failed == 1


@asynccontextmanager
async def ward(*, log: MemoryLog | None = None, **sections: Any) -> AsyncIterator[Ward]:
    records = LogCapture()
    async with serving(records=records, log=log, sse={"keepalive": "30ms"}, **sections) as server:
        with (
            await subscribe("sse", server.url, "witness") as stream,
            await subscribe("ws", server.url, "witness") as websocket,
        ):
            yield Ward(server, records, [stream, websocket])


def raise_for_victim(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Has a method of a subscriber raise when that one is subscribed to ``victim``."""
    original: Callable[..., Any] = getattr(owner, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.feed is not None and "victim" in self.feed.topics:
            raise Bug(name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, method)


def raise_for_events_of_victim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has publishing raise when it is to the topic ``victim``."""
    original = Hub.append

    async def append(self: Hub, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[EventId]:
        if drafts[0].topic == "victim":
            raise Bug
        return await original(self, drafts, key)

    monkeypatch.setattr(Hub, "append", append)


# The end of a connection


@pytest.mark.parametrize("step", ["close", "at_end"])
async def test_an_end_that_raises_is_the_end_of_one_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with ward() as guarded:
        runtime, told = guarded.server._runtime, list[str]()
        before = open_descriptors()
        with await subscribe("sse", guarded.url, "victim"):
            (victim,) = (it for it, stream in runtime.open.items() if "victim" in stream.feed.topics)  # type: ignore[attr-defined]
            runtime.at_end[victim] = told.append
            if step == "close":
                original = Connection.close
                monkeypatch.setattr(Connection, "close", lambda self: fail_behind(original, self, is_it=self is victim))
            else:
                runtime.at_end[victim] = fail
        await guarded.failed_once()
        assert not open_descriptors() - before
        assert told == ([] if step == "at_end" else ["left"])


def fail(*_: object) -> None:
    raise Bug


def fail_behind(original: Callable[..., None], *arguments: Any, is_it: bool) -> None:
    original(*arguments)
    if is_it:
        raise Bug


# Requests


async def test_a_route_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_for_events_of_victim(monkeypatch)
    async with ward() as guarded:
        answer = await ask(guarded.url, "POST", "/publish?topic=victim", body=b"1")
        assert (answer.status, answer.code) == (500, "internal-error")
        assert answer.headers["connection"] == "close"
        await guarded.failed_once()


async def test_a_publish_operation_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_for_events_of_victim(monkeypatch)
    async with ward() as guarded:
        with await open_websocket(guarded.url, "/ws") as websocket:
            await websocket.wire.send(frame(TEXT, b'{"op":"publish","topic":"victim","data":1}'))
            assert (await websocket.closed()).code == 1011
        await guarded.failed_once()


# Subscribers


@pytest.mark.parametrize("transport", ["poll", "sse", "ws"])
async def test_a_push_that_raises_in_the_flush(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    for owner in (ServerLongPoll, ServerEventStream, Session):
        raise_for_victim(monkeypatch, owner, "push")
    async with ward() as guarded:
        with await subscribe(transport, guarded.url, "victim", "witness") as victim:
            await until(lambda: guarded.server.hub.statistics().subscribers == 3)
            await guarded.server.hub.publish("victim", 1)
            if transport == "poll":
                with pytest.raises(AssertionError, match="500"):
                    await victim.event()
            else:
                with pytest.raises(Closed):
                    await victim.event()
        await guarded.failed_once()


class FailingLog(MemoryLog):
    """Cannot be read for the topic ``victim``."""

    def __init__(self) -> None:
        super().__init__(history=100, history_age=1000.0, history_size=10**6, clock=lambda: 1000.0)
        self.error: Exception = Bug("read")

    async def read(self, topics: TopicSet, after: EventId, *, max_bytes: int) -> Slice:
        if "victim" in topics:
            raise self.error
        return await super().read(topics, after, max_bytes=max_bytes)


@pytest.mark.parametrize("transport", ["poll", "sse", "ws"])
async def test_a_log_that_raises_while_a_subscriber_catches_up(transport: str) -> None:
    async with ward(log=FailingLog()) as guarded:
        with (
            await subscribe(transport, guarded.url, "victim", last_id=str(guarded.server.hub.last_id)) as victim,
            pytest.raises(AssertionError if transport == "poll" else Closed),
        ):
            await victim.event()
        await guarded.failed_once()


async def test_a_long_poll_is_told_when_the_log_cannot_be_read() -> None:
    log = FailingLog()
    log.error = tricast.LogUnavailable("gone fishing")
    async with serving(log=log) as server:
        answer = await ask(server.url, "GET", "/events?topic=victim&last_id=0-0")
        assert (answer.status, answer.code) == (503, "log-unavailable")
        assert answer.headers["retry-after"]


@pytest.mark.parametrize(("transport", "owner"), [("sse", ServerEventStream), ("ws", Session)])
async def test_a_keepalive_that_raises_in_the_sweep(
    monkeypatch: pytest.MonkeyPatch, transport: str, owner: type
) -> None:
    raise_for_victim(monkeypatch, owner, "keep_alive")
    # The one who must not notice anything answers no ping either while nobody reads what it got.
    timing = {"ping_interval": "30ms", "ping_timeout": "1h", "max_pings": 10**6}
    async with ward(websocket=timing) as guarded:
        with await subscribe(transport, guarded.url, "victim") as victim, pytest.raises(Closed):
            await victim.event()
        await guarded.failed_once()


@pytest.mark.parametrize(("transport", "owner"), [("sse", ServerEventStream), ("ws", Session)])
async def test_a_goodbye_that_raises_in_the_drain(monkeypatch: pytest.MonkeyPatch, transport: str, owner: type) -> None:
    raise_for_victim(monkeypatch, owner, "say_goodbye")
    records = LogCapture()
    async with serving(records=records, drain={"period": "50ms"}) as server:
        with (
            await subscribe("sse", server.url, "witness") as witness,
            await subscribe(transport, server.url, "victim") as victim,
        ):
            server.drain()
            with pytest.raises(Ended):
                await witness.event()
            with pytest.raises(Closed):
                await victim.event()
            await until(lambda: server.connections == 0)
    assert len(failures(records)) == 1


@pytest.mark.parametrize("transport", ["sse", "ws"])
async def test_a_subscription_that_raises_when_it_begins(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    original = Stream.follow

    def follow(self: Stream, topics: TopicSet, start: Any) -> None:
        original(self, topics, start)
        if "victim" in topics:
            raise Bug

    monkeypatch.setattr(Stream, "follow", follow)
    async with ward() as guarded:
        with await subscribe(transport, guarded.url, "victim") as victim:
            if isinstance(victim, WebSocket):
                assert (await victim.closed()).code == 1011
            else:
                with pytest.raises(Closed):
                    await victim.event()
        await guarded.failed_once()


# Applications


async def before_any_message(session: Session) -> None:
    raise Bug


async def at_a_message(session: Session) -> None:
    async for message in session:
        await session.send(message)
        raise Bug


async def after_the_messages(session: Session) -> None:
    async for _ in session:
        pass
    raise Bug


async def in_a_task(session: Session) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at_a_message, session)
        nursery.start_soon(trio.sleep_forever)


async def while_subscribed(session: Session) -> None:
    await session.subscribe("victim")
    await at_a_message(session)


@pytest.mark.parametrize("handler", [before_any_message, at_a_message, after_the_messages, in_a_task, while_subscribed])
async def test_an_application_that_raises(monkeypatch: pytest.MonkeyPatch, handler: Callable[..., Any]) -> None:
    monkeypatch.setattr("tricast.handlers.failing", handler, raising=False)
    entry = {"path": "/failing", "handler": "tricast.handlers:failing"}
    async with ward(websocket={"handler": [entry]}) as guarded:
        with await open_websocket(guarded.url, "/failing") as websocket:
            if handler is after_the_messages:
                # The client has said goodbye, and gets its answer; what fails then is nobody else's business.
                await websocket.wire.send(b"\x88\x80\0\0\0\0")
                assert (await websocket.closed()).code is None
            else:
                await websocket.wire.send(frame(TEXT, b"hello"))
                assert (await websocket.closed()).code == 1011
        await guarded.failed_once()


async def test_an_application_that_raises_while_its_client_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.handlers.failing", after_the_messages, raising=False)
    entry = {"path": "/failing", "handler": "tricast.handlers:failing"}
    async with ward(websocket={"handler": [entry]}) as guarded:
        with await open_websocket(guarded.url, "/failing") as websocket:
            websocket.wire.finish_sending()
            await websocket.wire.rest()
        await guarded.failed_once()
