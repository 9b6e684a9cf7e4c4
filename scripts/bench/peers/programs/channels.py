"""A memory channel per subscriber, for the programs on Trio."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import trio
from publishing import QUEUED

T = TypeVar("T")


class Topics(Generic[T]):
    """Who gets what. A subscriber whose channel is full is cut off: its channel ends."""

    def __init__(self) -> None:
        self._senders: defaultdict[str, set[trio.MemorySendChannel[T]]] = defaultdict(set)

    @contextmanager
    def subscribed(self, topic: str) -> Iterator["trio.MemoryReceiveChannel[T]"]:
        """The events of a topic for as long as the block runs."""
        sender, receiver = trio.open_memory_channel[T](QUEUED)
        self._senders[topic].add(sender)
        try:
            yield receiver
        finally:
            self._senders[topic].discard(sender)
            if not self._senders[topic]:
                del self._senders[topic]

    def publish(self, topic: str, event: T) -> None:
        """Puts an event into the channels of a topic's subscribers."""
        for sender in list(self._senders.get(topic, ())):
            try:
                sender.send_nowait(event)
            except trio.WouldBlock:
                self._senders[topic].discard(sender)
                sender.close()

    def publish_everywhere(self, event: T) -> None:
        """The same for all topics."""
        for topic in list(self._senders):
            self.publish(topic, event)
