"""What there is to see of a log beside the servers that use it, and how old events are dropped by hand.

Used by commands, and by no server. Looking changes nothing; nothing is made where there is no log yet.
"""

import heapq
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from tricast.errors import RemoteProtocolError
from tricast.event import Event, EventId, Position, ShardedEvent, ShardedId, TopicSet, own_id


class Holding(NamedTuple):
    """What a shard holds.

    Attributes:
        first: the oldest event; None where there is none.
        last: the newest position, whether its event is still there or not.
        events: how many there are, or how many there are at most.
        topics: how many topics they are of; None where that cannot be told.
        size: bytes that they take, about, where they are; None where that cannot be told.
        since: when the oldest one came, in seconds since the epoch; None where there is none.
        is_counted: whether there are exactly so many events.
    """

    first: EventId | None
    last: EventId
    events: int
    topics: int | None
    size: int | None
    since: float | None
    is_counted: bool = True


class Cut(NamedTuple):
    """Where history is cut off; one of these is given.

    Attributes:
        before: what is before this position is dropped.
        older_than: what came before this time is dropped, in seconds since the epoch.
        keep: all but so many of the newest events is dropped; at least 1.
    """

    before: EventId | None = None
    older_than: float | None = None
    keep: int | None = None


class Kept(NamedTuple):
    """An event with the time at which it came, in seconds since the epoch."""

    at: float
    event: Event


class Inspection(Protocol):
    """A log that is not in shards, or one shard, seen from outside. All of this raises LogUnavailable."""

    async def holding(self) -> Holding:
        """What it holds now."""
        ...

    async def newest(self, topics: TopicSet, count: int) -> Sequence[Kept]:
        """So many of the newest events of topics, or fewer where there are no more, in id order."""
        ...

    async def drop(self, cut: Cut) -> int:
        """Drops what is before a cut, and returns how many events that were; at most, where they are not counted.

        Servers may use the log meanwhile. What they have in memory they have for a while still; after that, whoever
        comes back for what was dropped is told of a gap.
        """
        ...


class Inspected(NamedTuple):
    """A whole log.

    Attributes:
        shards: by number; one, with the number 0, where the log is not in shards.
        is_sharded: whether positions tell of shards.
    """

    shards: Mapping[int, Inspection]
    is_sharded: bool

    async def head(self) -> Position:
        """The newest position."""
        heads = {number: (await shard.holding()).last for number, shard in self.shards.items()}
        return ShardedId(heads) if self.is_sharded else heads[0]

    async def newest(self, topics: TopicSet, count: int) -> list[Event]:
        """As ``Inspection.newest``, of all shards together by their time, and in the order of each."""
        found = []
        for number, shard in self.shards.items():
            kept = await shard.newest(topics, count)
            found.append([(at, number, self._placed(number, event)) for at, event in kept])
        merged = list(heapq.merge(*found, key=lambda item: item[:2]))
        return [event for _, _, event in islice(merged, max(0, len(merged) - count), None)]

    def _placed(self, number: int, event: Event) -> Event:
        if not self.is_sharded:
            return event
        position = ShardedId({number: own_id(event)}, (number,))
        return ShardedEvent(position, event.topic, event.type, event.data)

    def cuts(self, before: Position) -> dict[int, Cut]:
        """The cut in each shard that a position tells of.

        Raises:
            RemoteProtocolError: it is no position in this log.
        """
        if isinstance(before, EventId) and not self.is_sharded:
            return {0: Cut(before=before)}
        if isinstance(before, ShardedId) and self.is_sharded and before.parts.keys() <= self.shards.keys():
            return {number: Cut(before=part) for number, part in before.parts.items()}
        expected = f"<shard>.<id> with shards from {', '.join(map(str, self.shards))}" if self.is_sharded else "<id>"
        raise RemoteProtocolError(f"{before} is no position in this log, where they are {expected}", code="bad-last-id")
