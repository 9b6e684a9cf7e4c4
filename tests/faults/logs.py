"""The logs that rounds are played on, each with what can happen to it."""

import random
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
from faults.plan import Kind
from faults.relay import Relay, Way
from services import KafkaServer, RedisCluster, RedisSentinel, RedisServer

from engines.daemon import Daemon, Service

SERVERS = 3
_TOPIC = "events"
#: What can happen to the servers themselves, whatever the log.
SERVER_KINDS = (
    Kind("kill", "server", SERVERS, 3, 0.1, 4),
    Kind("stop", "server", SERVERS, 3, 0.2, 6),
)
_RELAYED = tuple(way.value for way in Way if way is not Way.PASS)


def _relay_kinds(count: int) -> Iterator[Kind]:
    if count:
        yield Kind("drop", "relay", count, 1, 0, 0)
        yield Kind("drop", "relay", count, 1, 0, 0, is_for_all=True)
    for what in _RELAYED if count else ():
        yield Kind(what, "relay", count, 1.5, 0.2, 6)
        yield Kind(what, "relay", count, 0.5, 0.2, 4, is_for_all=True)


class FaultyLog(ABC):
    """A log that three servers share, and to which things happen.

    Attributes:
        kinds: what can happen to it.
        losing: the names of those after which events may be gone.
        loses_always: whether events may be gone whatever happens.
        may_part: whether it may be two logs for a while. Who leaves meanwhile is never told of the other one.
        keeps_what_is_acknowledged: whether only events may be gone that were not acknowledged.
    """

    kinds: Sequence[Kind] = ()
    losing: frozenset[str] = frozenset()
    loses_always = False
    may_part = False
    keeps_what_is_acknowledged = False

    @abstractmethod
    def sections(self, server: int) -> Mapping[str, Any]:
        """What the configuration of a server says of the log."""

    @asynccontextmanager
    async def open(self, numbers: random.Random) -> AsyncIterator[None]:
        """The scope in which it is there."""
        yield

    @abstractmethod
    async def begin(self, what: str, lane: str, target: int) -> None:
        """Has something happen to it."""

    @abstractmethod
    async def end(self, what: str, lane: str, target: int) -> None:
        """Mends it."""


class SqliteFile(FaultyLog):
    """A file, which others lock."""

    kinds = (Kind("lock", "log", 1, 2, 0.2, 9),)

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.db"
        self._lock: sqlite3.Connection | None = None

    def sections(self, server: int) -> Mapping[str, Any]:
        return {"url": f"sqlite:///{self._path}"}

    async def begin(self, what: str, lane: str, target: int) -> None:
        # From another thread it can be closed, and it waits for whoever writes.
        self._lock = await trio.to_thread.run_sync(self._locked)

    async def end(self, what: str, lane: str, target: int) -> None:
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def _locked(self) -> sqlite3.Connection | None:
        connection = sqlite3.connect(self._path, timeout=1, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:  # a stopped server has the lock: that is as good
            connection.close()
            return None
        return connection


class Engines(FaultyLog):
    """A log that is kept by servers of its own.

    Args:
        loses: whether it may lose its data.
        more: of the section ``log``.
    """

    #: How many relays there are: one for each server, one for all, or none where the log tells its own addresses.
    relays = 0
    #: How many engines there are.
    engines = 1
    #: Whether ids go on where they were when all data is lost, so that rules of order hold.
    can_lose = True
    #: Whether an engine may be paused. One that was replaced meanwhile takes events until it is told, and loses them.
    can_pause = True

    def __init__(self, *, loses: bool, more: Mapping[str, Any]) -> None:
        self._more = more
        self.keeps_what_is_acknowledged = bool(more.get("replicas")) and not loses
        self._service: Service
        self._relays: list[Relay] = []
        self.kinds = (
            Kind("kill", "log", self.engines, 2, 0.1, 4),
            *_relay_kinds(self.relays),
        )
        if self.can_pause:
            self.kinds = (*self.kinds, Kind("pause", "log", self.engines, 3, 0.2, 5))
        if loses and self.can_lose:
            self.kinds = (*self.kinds, Kind("lose", "log", self.engines, 1.5, 0.1, 3))
        self.losing = self.losing | {"lose"}

    @abstractmethod
    def service(self) -> Service:
        """The servers, which are not running yet; the relays listen already."""

    @abstractmethod
    def url(self, server: int) -> str:
        """The log's URL for a server."""

    def nodes(self) -> Sequence[Daemon]:
        """The engines by the number under which the plan knows them."""
        return self._service.daemons

    def sections(self, server: int) -> Mapping[str, Any]:
        return {"url": self.url(server), "timeout": "1s", "reconnect_max": "1s", **self._more}

    @asynccontextmanager
    async def open(self, numbers: random.Random) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            for _ in range(self.relays):
                relay = Relay(numbers)
                await nursery.start(relay.serve)
                self._relays.append(relay)
            self._service = self.service()
            try:
                await _in_thread(self._service.start)
                for relay in self._relays:
                    relay.upstream_port = self.nodes()[0].port
                await _in_thread(self.ready)
                yield
            finally:
                self._service.close()
            nursery.cancel_scope.cancel()

    def ready(self) -> None:
        """Does what has to be done before it can be used, whenever it was started without its data."""

    async def begin(self, what: str, lane: str, target: int) -> None:
        if lane == "relay":
            self._disturb(self._relays[target], what)
        elif what == "pause":
            self.nodes()[target].pause()
        else:
            await _in_thread(self.nodes()[target].kill)

    async def end(self, what: str, lane: str, target: int) -> None:
        if lane == "relay":
            self._relays[target].take(Way.PASS)
        elif what == "pause":
            self.nodes()[target].resume()
        else:
            if what == "lose":
                self.nodes()[target].wipe()
            await _in_thread(self.nodes()[target].start)
            if what == "lose":
                await _in_thread(self.ready)

    @staticmethod
    def _disturb(relay: Relay, what: str) -> None:
        if what == "drop":
            relay.drop()
        else:
            relay.take(Way(what))


class OneRedis(Engines):
    """One Redis, each server with a relay in front of it."""

    relays = SERVERS

    def service(self) -> Service:
        return RedisServer()

    def url(self, server: int) -> str:
        return f"redis://127.0.0.1:{self._relays[server].port}"


class Channel(OneRedis):
    """The same, which only passes events on: there is no more of them than what each server has seen."""

    loses_always = True

    def sections(self, server: int) -> Mapping[str, Any]:
        return {**super().sections(server), "delivery": "pubsub"}


class Cluster(Engines):
    """Three masters; while one of them is away, so are its slots."""

    engines = 3

    def service(self) -> Service:
        return RedisCluster()

    def url(self, server: int) -> str:
        return self._service.url


class ReplicatedCluster(Cluster):
    """Three masters with a replica each: who is away is replaced, and what the replica had not got is lost."""

    engines = 6
    can_pause = False
    losing = frozenset({"kill"})

    def service(self) -> Service:
        return RedisCluster(replicas=1)


class Sentinel(Engines):
    """A primary and a replica, of which Sentinel makes another primary; what it had not got is lost.

    One that is back before Sentinel has told it of the other takes nothing, for it has no replica.
    """

    engines = 2
    can_pause = False
    losing = frozenset({"kill"})
    config: Sequence[str] = ("min-replicas-to-write 1", "min-replicas-max-lag 1")

    def service(self) -> Service:
        return RedisSentinel(config=self.config)

    def nodes(self) -> Sequence[Daemon]:
        service = self._service
        assert isinstance(service, RedisSentinel)
        return service.servers

    def url(self, server: int) -> str:
        return self._service.url


class SplitSentinel(Sentinel):
    """The same, where for a while there are two primaries."""

    can_pause = True
    may_part = True
    losing = frozenset({"kill", "pause"})
    config = ()


class Kafka(Engines):
    """One broker, behind one relay: where clients are sent is the same for all of them."""

    relays = 1
    can_lose = False

    def service(self) -> Service:
        return KafkaServer(advertised_port=self._relays[0].port)

    def ready(self) -> None:
        assert isinstance(self._service, KafkaServer)
        self._service.create_topic(_TOPIC, partitions=self._more.get("shards", 1))

    def url(self, server: int) -> str:
        return f"kafka://127.0.0.1:{self._relays[0].port}/{_TOPIC}"


class KafkaBrokers(Engines):
    """Three brokers, each of which leads some partitions; who is away is replaced, and nothing acknowledged is lost."""

    engines = 3
    can_lose = False

    def service(self) -> Service:
        return KafkaServer(brokers=3)

    def ready(self) -> None:
        assert isinstance(self._service, KafkaServer)
        self._service.create_topic(_TOPIC, partitions=self._more.get("shards", 1))

    def url(self, server: int) -> str:
        return f"{self._service.url}/{_TOPIC}"


async def _in_thread(function: Callable[[], None]) -> None:
    # What was begun is waited for when this is cancelled, or a program would be left behind.
    await trio.to_thread.run_sync(function)


#: By the names under which one asks for them.
ENGINES: Mapping[str, type[Engines]] = {
    "redis": OneRedis,
    "redis-pubsub": Channel,
    "redis-cluster": Cluster,
    "redis-replicated": ReplicatedCluster,
    "redis-sentinel": Sentinel,
    "redis-sentinel-split": SplitSentinel,
    "kafka": Kafka,
    "kafka-brokers": KafkaBrokers,
}
LOGS = ("sqlite", *ENGINES)


@contextmanager
def log_named(name: str, *, loses: bool, more: Mapping[str, Any]) -> Iterator[FaultyLog]:
    """A log of the test's own, gone at the end of the block.

    Args:
        name: one of the ``LOGS``.
        loses: whether it may lose its data.
        more: of the section ``log``.
    """
    if name in ENGINES:
        yield ENGINES[name](loses=loses, more=more)
        return
    with tempfile.TemporaryDirectory(prefix="tricast-faults-") as folder:
        yield SqliteFile(Path(folder))
