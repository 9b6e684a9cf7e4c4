"""Processes that have a log in Redis streams open."""

from collections.abc import AsyncIterator

import pytest
import trio
from log.redis_worlds import Process, Processes
from services import RedisServer


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            yield Processes(nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def process(redis: RedisServer, processes: Processes) -> Process:
    return await processes.begin(redis.url)
