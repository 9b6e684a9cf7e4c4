"""Real Redis and Kafka servers for a test, as context managers; the fixtures are known to every test."""

from collections.abc import Iterator

import pytest

from engines.daemon import NotStarted
from engines.redis import RedisServer
from engines.redis_cluster import RedisCluster
from engines.redis_sentinel import RedisSentinel
from engines.resp import ReplyError

__all__ = ["NotStarted", "RedisCluster", "RedisSentinel", "RedisServer", "ReplyError", "redis"]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    with RedisServer() as server:
        yield server
