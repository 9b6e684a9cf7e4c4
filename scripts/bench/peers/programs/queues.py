"""A queue per subscriber, for the programs on asyncio."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from publishing import QUEUED

T = TypeVar("T")


class Topics(Generic[T]):
    """Who gets what. A subscriber whose queue is full is cut off: the last thing in its queue is None."""

    def __init__(self) -> None:
        self._queues: defaultdict[str, set[asyncio.Queue[T | None]]] = defaultdict(set)

    @contextmanager
    def subscribed(self, topic: str) -> Iterator["asyncio.Queue[T | None]"]:
        """The events of a topic for as long as the block runs."""
        queue = asyncio.Queue[T | None](QUEUED + 1)
        self._queues[topic].add(queue)
        try:
            yield queue
        finally:
            self._queues[topic].discard(queue)
            if not self._queues[topic]:
                del self._queues[topic]

    def publish(self, topic: str, event: T) -> None:
        """Puts an event into the queues of a topic's subscribers."""
        slow = []
        for queue in self._queues.get(topic, ()):
            if queue.qsize() < QUEUED:
                queue.put_nowait(event)
            else:
                queue.put_nowait(None)
                slow.append(queue)
        self._queues.get(topic, set()).difference_update(slow)

    def publish_everywhere(self, event: T) -> None:
        """The same for all topics."""
        for topic in list(self._queues):
            self.publish(topic, event)
