"""Processes that have a log in Redis streams open."""

from collections.abc import AsyncIterator

import pytest
import trio
from clocks import HANG_SECONDS
from log.redis_worlds import Process, Processes
from services import RedisServer

from tricast.log import redis as redis_module


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has appended finds it in its own process, however busy the machine is."""
    monkeypatch.setattr(redis_module, "_PATIENCE", HANG_SECONDS)


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            yield Processes(nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def process(redis: RedisServer, processes: Processes) -> Process:
    return await processes.begin(redis.url)
