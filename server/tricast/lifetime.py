"""From its beginning to its end: how something that serves is asked to go down, and tells that it has."""

import trio


class Lifetime:
    """The end of something that serves; ``serve`` brings it about."""

    def __init__(self) -> None:
        self._drain_asked = trio.Event()
        self._stopped = trio.Event()

    @property
    def is_draining(self) -> bool:
        """Whether it goes down."""
        return self._drain_asked.is_set()

    def drain(self) -> None:
        """Begins to go down; ``serve`` returns when all connections have ended or the grace is over."""
        self._drain_asked.set()

    async def wait_drain_asked(self) -> None:
        """Returns when ``drain`` was called."""
        await self._drain_asked.wait()

    async def wait_stopped(self) -> None:
        """Returns when the last connection has ended."""
        await self._stopped.wait()

    def stopped(self) -> None:
        """Says that the last connection has ended; called by ``serve``."""
        self._stopped.set()
