"""One epoll loop: who has something to read or room to write, what is due, and what the coordinator says.

Plain ``select.epoll`` and no Trio, for a task per subscriber would cost more than what it does. Knows descriptors and
times, and nothing of what they are for.
"""

import heapq
import itertools
import select
import time
from collections.abc import Callable
from typing import Protocol

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT

_MOST_AT_ONCE = 1024
#: epoll's timeout is in whole milliseconds; for what is due sooner than this, select's is exact.
_EXACT_BELOW_SECONDS = 0.02


class Party(Protocol):
    """Somebody with a descriptor."""

    def ready(self, mask: int) -> None:
        """Reads, writes, or sees what is wrong.

        Args:
            mask: what epoll says of the descriptor.
        """
        ...


class Engine:
    """The loop of a process. Its first descriptor is a low one, so it is made before any connection."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._parties: dict[int, Party] = {}
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._is_running = True

    def watch(self, descriptor: int, party: Party, mask: int) -> None:
        """Calls ``ready`` from now on, when one of these is possible."""
        self._parties[descriptor] = party
        self._epoll.register(descriptor, mask)

    def change(self, descriptor: int, mask: int) -> None:
        """Waits for something else from now on."""
        self._epoll.modify(descriptor, mask)

    def forget(self, descriptor: int) -> None:
        """Calls ``ready`` no more. The descriptor is closed afterwards."""
        del self._parties[descriptor]
        self._epoll.unregister(descriptor)

    def call_at(self, when: int, function: Callable[[], None]) -> None:
        """Calls the function once, at this time in nanoseconds of the monotonic clock or soon after."""
        heapq.heappush(self._due, (when, next(self._order), function))

    def call_in(self, seconds: float, function: Callable[[], None]) -> None:
        """Calls the function once, after so many seconds."""
        self.call_at(time.monotonic_ns() + round(seconds * 1e9), function)

    def run(self) -> None:
        """Goes round until ``stop`` is called."""
        parties = self._parties
        while self._is_running:
            for descriptor, mask in self._wait():
                # An earlier one in this round may have closed a later one.
                if (party := parties.get(descriptor)) is not None:
                    party.ready(mask)
            self._call_due()
        self._epoll.close()

    def stop(self) -> None:
        """Ends ``run`` after this round."""
        self._is_running = False

    def _wait(self) -> list[tuple[int, int]]:
        if not self._due:
            return self._epoll.poll(-1, _MOST_AT_ONCE)
        seconds = max(0.0, (self._due[0][0] - time.monotonic_ns()) / 1e9)
        if seconds < _EXACT_BELOW_SECONDS:
            select.select([self._epoll], [], [], seconds)
            seconds = 0.0
        return self._epoll.poll(seconds, _MOST_AT_ONCE)

    def _call_due(self) -> None:
        now = time.monotonic_ns()
        while self._due and self._due[0][0] <= now and self._is_running:
            heapq.heappop(self._due)[2]()
