"""Real Redis and Kafka servers for a test, as context managers; the fixtures are known to every test."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from engines.daemon import NotStarted, guard, unguard, wait_until
from engines.kafka import KafkaServer, KafkaTopics
from engines.left import Left, end, remember
from engines.redis import RedisServer
from engines.redis_cluster import RedisCluster
from engines.redis_sentinel import RedisSentinel
from engines.resp import ReplyError

__all__ = [
    "PATIENT_MS",
    "KafkaServer",
    "KafkaTopics",
    "NotStarted",
    "RedisCluster",
    "RedisSentinel",
    "RedisServer",
    "ReplyError",
    "kafka",
    "redis",
    "redis_cluster",
    "shared_kafka",
    "wait_until",
]


#: After so long without a word a server is taken to be gone, in tests about something else: on a busy machine it may
#: only be late.
PATIENT_MS = 15_000


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """Three masters, for all tests of this process that do them no harm and have keys of their own."""
    with RedisCluster(node_timeout_ms=PATIENT_MS) as cluster:
        yield cluster


class SharedKafka(KafkaTopics):
    """A Kafka that some process of this run has started."""

    def __init__(self, address: str, internal_address: str) -> None:
        self._addresses = address, internal_address

    @property
    def address(self) -> str:
        return self._addresses[0]

    @property
    def internal_address(self) -> str:
        return self._addresses[1]


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[SharedKafka]:
    """One broker, for all tests of this run that do it no harm and have topics of their own."""
    own = tmp_path_factory.getbasetemp()
    with shared_kafka(own if worker_id == "master" else own.parent) as found:
        yield found


@contextmanager
def shared_kafka(folder: Path) -> Iterator[SharedKafka]:
    """A broker that is the same for all processes that name the same folder: the first starts it, the last ends it."""
    state = folder / "kafka.json"
    with (folder / "kafka.lock").open("w") as lock, (folder / "kafka.users").open("w") as users:
        with _held(lock):
            if _hold(users, fcntl.LOCK_EX):  # nobody else uses one
                _start(state)
            fcntl.flock(users, fcntl.LOCK_SH)
        facts = json.loads(state.read_text(encoding="utf-8"))
        left = Left(*facts["left"])
        guard(left.pid)
        try:
            yield SharedKafka(facts["address"], facts["internal_address"])
        finally:
            unguard(left.pid)
            with _held(lock):
                if _hold(users, fcntl.LOCK_EX):
                    end([left])
                    shutil.rmtree(facts["folder"])


def _start(state: Path) -> None:
    server = KafkaServer(config=[f"broker.session.timeout.ms={PATIENT_MS}"])
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    [left] = map(remember, server.leave())
    addresses = {"address": server.address, "internal_address": server.internal_address}
    state.write_text(json.dumps({"folder": str(server.folder), "left": left, **addresses}), encoding="utf-8")


@contextmanager
def _held(lock: IO[str]) -> Iterator[None]:
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)


def _hold(lock: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
