"""The logs that rounds are played on, each with what can happen to it."""

import random
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio
from faults.plan import Kind
from faults.relay import Relay, Way
from services import RedisServer

from engines.daemon import Daemon

SERVERS = 3
#: What can happen to the servers themselves, whatever the log.
SERVER_KINDS = (
    Kind("kill", "server", SERVERS, 3, 0.1, 4),
    Kind("stop", "server", SERVERS, 3, 0.2, 6),
)
_RELAYS = tuple(way.value for way in Way if way is not Way.PASS)


def _relay_kinds() -> Sequence[Kind]:
    kinds = [Kind("drop", "relay", SERVERS, 1, 0, 0), Kind("drop", "relay", SERVERS, 1, 0, 0, is_for_all=True)]
    for what in _RELAYS:
        kinds += [Kind(what, "relay", SERVERS, 1.5, 0.2, 6), Kind(what, "relay", SERVERS, 0.5, 0.2, 4, is_for_all=True)]
    return kinds


class FaultyLog(ABC):
    """A log that three servers share, and to which things happen.

    Attributes:
        kinds: what can happen to it.
        losing: the names of those after which events may be gone.
    """

    kinds: Sequence[Kind] = ()
    losing: frozenset[str] = frozenset()

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
    """A log that is kept by servers of its own, of which some have relays in front of them.

    Args:
        engines: by the number under which the plan knows them.
        relayed: the port behind the relays, if each server reaches the log through one.
        more: of the section ``log``.
    """

    def __init__(self, engines: Sequence[Daemon], *, relayed: int | None, more: Mapping[str, Any]) -> None:
        self._engines = engines
        self._more = more
        self._relayed = relayed
        self._relays: list[Relay] = []
        count = len(engines)
        self.kinds = (
            Kind("kill", "log", count, 2, 0.1, 4),
            Kind("pause", "log", count, 3, 0.2, 5),
            *(_relay_kinds() if relayed is not None else ()),
        )

    @abstractmethod
    def url(self, port: int | None) -> str:
        """The log's URL for a server, where there is a relay by way of this port."""

    def sections(self, server: int) -> Mapping[str, Any]:
        port = self._relays[server].port if self._relays else None
        return {"url": self.url(port), "timeout": "1s", "reconnect_max": "1s", **self._more}

    @asynccontextmanager
    async def open(self, numbers: random.Random) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            if self._relayed is not None:
                for _ in range(SERVERS):
                    relay = Relay(("127.0.0.1", self._relayed), numbers)
                    await nursery.start(relay.serve)
                    self._relays.append(relay)
            yield
            nursery.cancel_scope.cancel()

    async def begin(self, what: str, lane: str, target: int) -> None:
        if lane == "relay":
            self._disturb(self._relays[target], what)
        elif what == "pause":
            self._engines[target].pause()
        else:
            await _in_thread(self._engines[target].kill)

    async def end(self, what: str, lane: str, target: int) -> None:
        if lane == "relay":
            self._relays[target].take(Way.PASS)
        elif what == "pause":
            self._engines[target].resume()
        else:
            if what == "lose":
                self._engines[target].wipe()
            await _in_thread(self._engines[target].start)

    @staticmethod
    def _disturb(relay: Relay, what: str) -> None:
        if what == "drop":
            relay.drop()
        else:
            relay.take(Way(what))


class OneRedis(Engines):
    """One Redis, each server with a relay in front of it."""

    losing = frozenset({"lose"})

    def __init__(self, redis: RedisServer, *, loses: bool, more: Mapping[str, Any]) -> None:
        super().__init__([redis], relayed=redis.port, more=more)
        if loses:
            self.kinds = (*self.kinds, Kind("lose", "log", 1, 1.5, 0.1, 3))

    def url(self, port: int | None) -> str:
        return f"redis://127.0.0.1:{port}"


async def _in_thread(function: Callable[[], None]) -> None:
    # What was begun is waited for, or a server would be left behind.
    with suppress(RuntimeError):
        await trio.to_thread.run_sync(partial(function))
