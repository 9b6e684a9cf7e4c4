"""Keeps a shard connected to Redis: connects again when that fails, and says when it is away and when it is back."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import trio

from tricast.config import LogSection
from tricast.errors import LogUnavailable
from tricast.log.statistics import Statistics
from tricast.logs import Logger

_NOT_OPEN = "the log is not open"


@asynccontextmanager
async def beside(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """A scope beside which work goes on, until the scope is left. What is raised in it comes out as it is."""
    failure: Exception | None = None
    # Raised outside, where the nursery makes no group of it.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised below
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Link:
    """Connected, or on the way to it.

    Args:
        config: how long to wait before it connects again.
        label: what tells this shard from others.
        logger: where to say that the log is unavailable, and that it is back.
        chance: what spreads the attempts to connect again.
        statistics: what to count them in.

    Attributes:
        problem: why it is not connected, in a few words; None while it is.
    """

    def __init__(
        self,
        config: LogSection,
        *,
        label: Mapping[str, object],
        logger: Logger,
        chance: Callable[[], float],
        statistics: Statistics,
    ) -> None:
        self.problem: str | None = _NOT_OPEN
        self._config = config
        self._label = label
        self._logger = logger
        self._chance = chance
        self._statistics = statistics
        self._is_open = False
        self._outcome = trio.Event()

    @asynccontextmanager
    async def open(self, work: Callable[[], Awaitable[None]], fail: Callable[[str], None]) -> AsyncIterator[None]:
        """The scope in which it is kept; entered when it is connected.

        Args:
            work: connects, says so with ``is_back``, and goes on until that fails, with LogUnavailable.
            fail: told why, whenever it has failed, and at the end.

        Raises:
            LogUnavailable: the first attempt failed.
        """
        self._outcome = trio.Event()
        try:
            async with beside(partial(self._keep, work, fail)):
                await self._outcome.wait()
                if not self._is_open:
                    raise LogUnavailable(self.problem or _NOT_OPEN)
                yield
        finally:
            self._is_open = False
            self.problem = _NOT_OPEN
            fail(_NOT_OPEN)

    async def _keep(self, work: Callable[[], Awaitable[None]], fail: Callable[[str], None]) -> None:
        delay = self._config.reconnect
        while True:
            begin = trio.current_time()
            try:
                await work()
            except LogUnavailable as error:
                self._is_away(error.why)
                fail(error.why)
            if trio.current_time() - begin > self._config.reconnect_max:
                delay = self._config.reconnect
            # Not all at the same time, for what they all have lost.
            await trio.sleep(delay * (0.5 + 0.5 * self._chance()))
            delay = min(2 * delay, self._config.reconnect_max)
            self._statistics.reconnects += 1

    def is_back(self) -> bool:
        """It is connected; returns whether it was before."""
        was_open = self._is_open
        if was_open:
            self._logger.info("the log is available again", **self._label)
        self._is_open = True
        self.problem = None
        self._outcome.set()
        return was_open

    def _is_away(self, why: str) -> None:
        if self._is_open and self.problem is None:
            self._logger.error("the log is not available", why=why, **self._label)
        self.problem = why
        self._outcome.set()
