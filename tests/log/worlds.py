"""A log of each kind with what stands around it: a clock, and what the log has handed over."""

import resource
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import TypeVar

import trio
from serving import capturing_logger, pause
from structlog.testing import LogCapture

from tricast.errors import LogUnavailable
from tricast.event import BEGINNING, Draft, Event, EventId, TopicSet
from tricast.log.base import IdempotencyKey, Log, Slice
from tricast.log.memory import MemoryLog
from tricast.log.sqlite import SqliteLog

T = TypeVar("T")

PLENTY = 2**20
#: In a file with the newest events in memory as well, and with hardly any of them there.
KINDS = ("memory", "sqlite", "sqlite without cache")


#: How often a log is opened at most that has a short timeout.
_TRIES = 4


@asynccontextmanager
async def opened(begin: Callable[[], AbstractAsyncContextManager[object]]) -> AsyncIterator[None]:
    """What is begun, open. Tried again where a test's short timeout is too short for a busy machine."""
    async with AsyncExitStack() as stack:
        for further in reversed(range(_TRIES)):
            try:
                await stack.enter_async_context(begin())
            except LogUnavailable:
                if not further:
                    raise
                await pause()
            else:
                break
        yield


class Clock:
    """Stands still unless moved."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


def sqlite_log(
    path: Path,
    clock: Clock,
    *,
    history: int = 100,
    history_age: float = 60,
    history_size: int = 10**6,
    cache_size: int = 10**6,
    synchronous: str = "off",
    grace: float = 0.0,
    patience: float = 60.0,
    records: LogCapture | None = None,
) -> SqliteLog:
    """A log in a file that says what is unusual to the records."""
    return SqliteLog(
        path,
        history=history,
        history_age=history_age,
        history_size=history_size,
        cache_size=cache_size,
        synchronous=synchronous,
        clock=clock,
        logger=capturing_logger(records if records is not None else LogCapture()),
        grace=grace,
        patience=patience,
    )


async def looked(log: SqliteLog) -> None:
    """Returns when the log has seen what others have committed so far, and has dropped what it has to drop."""
    assert log._writer is not None
    log._writer._trim_at = 0.0
    for _ in range(2):  # it drops behind the first look
        await log._look()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No new ones can be had; those that are there stay."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class World:
    """A log, a clock, and what the log has handed over."""

    def __init__(self, log: MemoryLog | SqliteLog, path: Path, clock: Clock) -> None:
        self.log = log
        self.path = path
        self.clock = clock
        self.committed: list[Event] = []
        self.skipped: list[EventId] = []

    async def append(self, *topics: str, data: bytes = b"1", key: IdempotencyKey | None = None) -> list[EventId]:
        return await self.log.append([Draft(topic, "message", data) for topic in topics], key)

    async def read(self, *topics: str, after: EventId = BEGINNING, max_bytes: int = PLENTY) -> Slice:
        return await self.log.read(TopicSet(topics), after, max_bytes=max_bytes)

    async def ids(self, *topics: str, after: EventId = BEGINNING) -> list[EventId]:
        return ids_of((await self.read(*topics, after=after)).events)

    async def wait(self, seconds: float) -> None:
        """Time goes on, and the log has done what is due then."""
        self.clock.seconds += seconds
        if isinstance(self.log, SqliteLog):
            await looked(self.log)

    def kept(self) -> tuple[int, int]:
        """How many events are kept, and how many bytes they take by the log's own count."""
        if isinstance(self.log, MemoryLog):
            return self.log.kept, self.log.size
        with closing(sqlite3.connect(self.path)) as database:
            ((kept, size, count),) = database.execute("SELECT kept, size, (SELECT count(*) FROM events) FROM log")
        assert kept == count
        return kept, size


@asynccontextmanager
async def world_of(
    kind: str,
    path: Path,
    *,
    clock: Clock | None = None,
    history: int = 100,
    history_age: float = 60,
    history_size: int = 10**6,
    grace: float = 0.0,
) -> AsyncIterator[World]:
    """A world whose log is open.

    Args:
        kind: one of ``KINDS``.
        path: of the file, if it is one.
        clock: a new one where none is given.
        history: as for the log, like all that follow.
    """
    clock = clock or Clock()
    log: MemoryLog | SqliteLog
    if kind == "memory":
        log = MemoryLog(history=history, history_age=history_age, history_size=history_size, clock=clock)
    else:
        log = sqlite_log(
            path,
            clock,
            history=history,
            history_age=history_age,
            history_size=history_size,
            cache_size=history_size if kind == "sqlite" else 1,
            grace=grace,
        )
    world = World(log, path, clock)
    as_log: Log = log
    async with as_log.open(world.committed.extend, world.skipped.append):
        yield world


async def held(scope: AbstractAsyncContextManager[T], task_status: trio.TaskStatus[T]) -> None:
    """Enters a scope in a task of its own and stays there: the tasks of a test and of its fixtures do not nest."""
    async with scope as entered:
        task_status.started(entered)
        await trio.sleep_forever()


def ids_of(events: Sequence[Event]) -> list[EventId]:
    return [event.id for event in events]
