"""The log in a SQLite file, seen from outside; see ``tricast.log.inspection``."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from tricast.errors import LogUnavailable
from tricast.event import TopicSet
from tricast.log.database import Database, Retention
from tricast.log.inspection import Cut, Holding, Kept
from tricast.log.sqlite_file import in_words
from tricast.log.writer import Failure

#: Nothing is dropped but what is asked for: servers know what they keep.
_ALL = Retention(history=2**62, age=2.0**40, size=2**62, grace=0.0)
_PATIENCE_SECONDS = 5.0

Result = TypeVar("Result")


class SqliteInspection:
    """See ``Inspection``.

    Args:
        path: the file.
        synchronous: ``full``, ``normal`` or ``off``, as SQLite means it.
    """

    def __init__(self, path: Path, *, synchronous: str) -> None:
        self._path = path
        self._synchronous = synchronous
        self._database: Database

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """The scope in which it can be used.

        Raises:
            LogUnavailable: there is no log in the file, or it cannot be used.
        """
        if not self._path.exists():
            raise LogUnavailable(f"{self._path}: there is no such file")
        self._database = await self._in_thread(self._connect)
        try:
            yield
        finally:
            self._database.close()

    def _connect(self) -> Database:
        return Database(
            self._path,
            synchronous=self._synchronous,
            patience=_PATIENCE_SECONDS,
            retention=_ALL,
            clock=time.time,
            creates=False,
        )

    async def holding(self) -> Holding:
        """See ``Inspection.holding``."""
        return await self._in_thread(self._database.holding)

    async def newest(self, topics: TopicSet, count: int) -> list[Kept]:
        """See ``Inspection.newest``."""
        return await self._in_thread(self._database.newest_of, topics, count)

    async def drop(self, cut: Cut) -> int:
        """See ``Inspection.drop``. A little at a time, so that servers can append in between; so is it cancelled."""
        before = await self._in_thread(self._database.position_of, cut)
        total = 0
        while dropped := await self._in_thread(self._database.drop, before):
            total += dropped
        return total

    async def _in_thread(self, function: Callable[..., Result], *arguments: object) -> Result:
        try:
            return await trio.to_thread.run_sync(function, *arguments)
        except Failure as error:
            raise LogUnavailable(f"{self._path}: {in_words(error)}") from None
