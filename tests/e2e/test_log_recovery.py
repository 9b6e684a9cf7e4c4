"""Those who wait for a log that could not be read go on as soon as it can be."""

from collections.abc import AsyncIterator

import pytest
import trio
from clients import ask, open_websocket, publish, subscribe
from clocks import HANG_SECONDS
from services import RedisServer
from serving import serving, until
from structlog.testing import LogCapture

import tricast
from tricast.event import EventId, TopicSet
from tricast.log.base import Slice
from tricast.log.memory import MemoryLog
from tricast.runtime import Runtime
from tricast.server import Server

TRANSPORTS = ("sse", "ws")


@pytest.fixture(autouse=True)
async def patient(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Nobody looks again by himself."""
    monkeypatch.setattr(Runtime, "jitter", lambda _, seconds: seconds + 1e6)
    with trio.fail_after(HANG_SECONDS):
        yield


class AwayLog(MemoryLog):
    """One that cannot be read."""

    def __init__(self) -> None:
        super().__init__(history=100, history_age=1000.0, history_size=10**6, clock=lambda: 1000.0)
        self.is_away = True
        self.fails_late = False

    def recover(self) -> None:
        self.is_away = False
        self._committed(())

    async def read(self, topics: TopicSet, after: EventId, *, max_bytes: int) -> Slice:
        if self.is_away:
            if self.fails_late:
                self.recover()
            raise tricast.LogUnavailable("gone fishing")
        return await super().read(topics, after, max_bytes=max_bytes)


async def wait_for_waiting(server: Server, count: int) -> None:
    await until(lambda: server._runtime.log_recovered.statistics().tasks_waiting == count)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_waits_is_told(transport: str) -> None:
    log = AwayLog()
    async with serving(log=log) as server:
        first, second = [await publish(server.url, "a", number) for number in range(2)]
        with await subscribe(transport, server.url, "a", last_id=first) as subscriber:
            await wait_for_waiting(server, 1)
            log.recover()
            assert (await subscriber.event()).id == second


async def test_it_recovers_before_the_failure_is_noticed() -> None:
    log = AwayLog()
    log.fails_late = True
    async with serving(log=log) as server:
        first, second = [await publish(server.url, "a", number) for number in range(2)]
        with await subscribe("sse", server.url, "a", last_id=first) as subscriber:
            assert (await subscriber.event()).id == second


async def test_redis_is_back(redis: RedisServer) -> None:
    section = {"url": redis.url, "cache_size": "1B", "reconnect": "10ms", "reconnect_max": "50ms"}
    async with serving(log=section, records=LogCapture()) as server:
        ids = [await publish(server.url, "a", number) for number in range(3)]
        redis.kill()
        await until(lambda: server.hub.problem is not None)
        with (
            await subscribe("sse", server.url, "a", last_id=ids[0]) as one,
            await subscribe("ws", server.url, "a", last_id=ids[1]) as other,
        ):
            await wait_for_waiting(server, 2)
            redis.start()
            assert [event.id for event in await one.events(2)] == ids[1:]
            assert (await other.event()).id == ids[2]


async def test_clients_are_not_told_where_it_is(redis: RedisServer) -> None:
    records = LogCapture()
    section = {"url": redis.url, "reconnect": "10ms", "reconnect_max": "50ms"}
    async with serving(log=section, records=records) as server:
        redis.kill()
        why = "no connection to Redis: Connection refused"
        await until(lambda: server.hub.problem == f"{redis.address}: {why}")
        for method, target in (("GET", "/readyz"), ("POST", "/publish?topic=a")):
            answer = await ask(server.url, method, target)
            assert (answer.status, answer.json()["detail"]) == (503, f"the log is not available: {why}")
        with await open_websocket(server.url, "/ws") as websocket:
            reply = await websocket.operate(op="publish", topic="a", data=1)
            assert reply["error"]["message"] == f"the log is not available: {why}"
