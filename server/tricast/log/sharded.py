"""One log made of several, its shards: each has the events of some topics, in an order of its own.

A position tells where one is in each shard (see ``ShardedId``). What the shards hand over is put into one sequence as
it comes, and each process has another one; a client that goes from one process to another is nevertheless given what it
has not got, and nothing else, because its position tells that for each shard. All that is promised of the order is what
holds in each shard, so events of one topic are always in one.

What kind of log the shards are does not matter here.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from heapq import merge
from zlib import crc32

from tricast.errors import RemoteProtocolError
from tricast.event import (
    BEGINNING,
    Draft,
    Event,
    EventId,
    Gap,
    GapReason,
    Position,
    ShardedEvent,
    ShardedId,
    TopicSet,
    own_id,
)
from tricast.log.base import Committed, IdempotencyKey, Log, Skipped, Slice, ignore
from tricast.log.statistics import Statistics
from tricast.log.window import unknown_position

#: Appends drafts to several shards, all or none. Takes them by shard, and returns their ids in the same way.
AppendAll = Callable[[Mapping[int, Sequence[Draft]], IdempotencyKey | None], Awaitable[Mapping[int, Sequence[EventId]]]]


class ShardedLog:
    """See ``Log``.

    Args:
        shards: by number; their own positions are plain ids.
        shard_of: the number of the shard to which a topic's events are appended.
        shards_of: the numbers of those in which events of topics may be, in ascending order; the default is what
            ``shard_of`` says of names, and all of them for patterns.
        append_all: the default is to refuse what is for several shards.
        statistics: what the shards count in.
    """

    def __init__(
        self,
        shards: Mapping[int, Log],
        *,
        shard_of: Callable[[str], int],
        shards_of: Callable[[TopicSet], tuple[int, ...]] | None = None,
        append_all: AppendAll | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self._shards = dict(sorted(shards.items()))
        self._shard_of = shard_of
        self._shards_of = shards_of or self._shards_of_names
        self._append_all = append_all
        self._statistics = statistics or Statistics()
        self._committed: Committed = ignore
        self._skipped: Skipped = ignore

    @property
    def last_id(self) -> ShardedId:
        """See ``Log.last_id``."""
        return ShardedId(self._heads())

    @property
    def waits(self) -> bool:
        """See ``Log.waits``."""
        return any(shard.waits for shard in self._shards.values())

    @property
    def problem(self) -> str | None:
        """See ``Log.problem``: that of the first shard that has one."""
        for number, shard in self._shards.items():
            if shard.problem is not None:
                return f"shard {number}: {shard.problem}"
        return None

    @property
    def statistics(self) -> Statistics:
        """See ``Log.statistics``."""
        return self._statistics

    def shards_of(self, topics: TopicSet) -> tuple[int, ...]:
        """See ``Log.shards_of``."""
        return self._shards_of(topics)

    def _shards_of_names(self, topics: TopicSet) -> tuple[int, ...]:
        if topics.has_patterns:
            return tuple(self._shards)
        return tuple(sorted({self._shard_of(name) for name in topics.exact}))

    def _heads(self) -> dict[int, EventId]:
        return {number: _plain(shard.last_id) for number, shard in self._shards.items()}

    @asynccontextmanager
    async def open(self, committed: Committed, skipped: Skipped | None = None) -> AsyncIterator[None]:
        """See ``Log.open``."""
        self._committed, self._skipped = committed, skipped or ignore
        async with AsyncExitStack() as scopes:
            for number, shard in self._shards.items():
                scope = shard.open(partial(self._take, number), partial(self._skip, number))
                await scopes.enter_async_context(scope)
            yield

    def _take(self, number: int, events: Sequence[Event]) -> None:
        heads = self._heads()
        shown = (number,)
        self._committed(
            [
                ShardedEvent(ShardedId({**heads, number: own_id(event)}, shown), event.topic, event.type, event.data)
                for event in events
            ]
        )

    def _skip(self, number: int, position: Position) -> None:
        self._skipped(ShardedId({**self._heads(), number: _plain(position)}))

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[ShardedId]:
        """See ``Log.append``."""
        by_shard: dict[int, list[Draft]] = {}
        numbers = [self._shard_of(draft.topic) for draft in drafts]
        for number, draft in zip(numbers, drafts, strict=True):
            by_shard.setdefault(number, []).append(draft)
        if len(by_shard) == 1:
            ids = await self._shards[numbers[0]].append(drafts, key)
            return [ShardedId({numbers[0]: _plain(each)}, (numbers[0],)) for each in ids]
        if self._append_all is None:
            raise across_shards()
        found = await self._append_all(by_shard, key)
        given = {number: iter(ids) for number, ids in found.items()}
        return [ShardedId({number: next(given[number])}, (number,)) for number in numbers]

    # Reading

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """See ``Log.read``. What a position says nothing of begins now, behind a gap."""
        numbers = self._shards_of(topics)
        asked = self._asked(after, numbers)
        if asked is None:
            return unknown_position(after, ShardedId(self._heads(), numbers))
        if len(asked) < len(numbers):
            # Alone, before there is an event whose id would tell of these shards as well.
            begin = ShardedId({**self._heads(), **asked}, numbers)
            return Slice((), Gap(GapReason.UNKNOWN_ID, after, begin), begin, complete=False)
        found = await self._read_shards(topics, asked, max_bytes)
        heads = self._heads()
        gaps = {number: each.gap for number, each in found.items() if each.gap is not None}
        if gaps:
            return _with_gap(asked, heads, numbers, found, gaps)
        ends = {**asked, **{number: _plain(each.upto) for number, each in found.items()}}
        # While one of them was read, others may have gone on.
        is_read = len(found) == len(numbers) and all(each.complete for each in found.values())
        complete = is_read and all(ends[number] >= heads[number] for number in numbers)
        events = _placed(asked, numbers, {number: each.events for number, each in found.items()})
        return Slice(events, None, ShardedId({**heads, **ends}, numbers), complete)

    async def _read_shards(self, topics: TopicSet, asked: Mapping[int, EventId], max_bytes: int) -> dict[int, Slice]:
        """A share of each shard, as long as there is room: an event may be as long as what is asked for of all."""
        found = {}
        share, room = max(max_bytes // len(asked), 1), max_bytes
        # Where ids are times, the oldest come first.
        for number in sorted(asked, key=lambda number: (asked[number], number)):
            found[number] = await self._shards[number].read(topics, asked[number], max_bytes=min(share, room))
            room -= sum(event.size for event in found[number].events)
            if room <= 0:
                break
        return found

    def _asked(self, after: Position, numbers: Sequence[int]) -> dict[int, EventId] | None:
        """Where to read on in these shards; None for a position in another log."""
        if after == BEGINNING:
            return dict.fromkeys(numbers, BEGINNING)
        if not isinstance(after, ShardedId) or not self._shards.keys() >= after.parts.keys():
            return None
        return {number: after.parts[number] for number in numbers if number in after.parts}


def shard_of(topic: str, shards: int) -> int:
    """The number of the shard that a topic's events go to: by its first word in braces, or by all of it."""
    _, brace, rest = topic.partition("{")
    word, end, _ = rest.partition("}")
    return crc32((word if brace and end and word else topic).encode()) % shards


def across_shards() -> RemoteProtocolError:
    """The answer to a batch for several shards, where they cannot be appended to in one step."""
    return RemoteProtocolError(
        "a batch is kept all or none, and the topics of this one are not kept together: "
        "put the same word in braces into their names, as in orders.{7}.paid, to keep them together",
        code="batch-across-shards",
        status=422,
    )


def _with_gap(
    asked: Mapping[int, EventId],
    heads: Mapping[int, EventId],
    shown: tuple[int, ...],
    found: Mapping[int, Slice],
    gaps: Mapping[int, Gap],
) -> Slice:
    """What goes before a gap, up to where that is over in the shards that have one; all else is for the next read."""
    position = {**heads, **asked}
    ends = {number: _plain(gap.resumed_at) for number, gap in gaps.items()}
    # A position that never was is told of alone, before there is an event whose id goes back in that shard.
    ends = {number: end for number, end in ends.items() if end < asked[number]} or ends
    events = {number: [each for each in found[number].events if own_id(each) <= end] for number, end in ends.items()}
    upto = ShardedId({**position, **ends}, shown)
    begins = {number: _plain(gaps[number].after) for number in ends}
    gap = Gap(gaps[next(iter(ends))].reason, ShardedId({**asked, **begins}, shown), upto)
    return Slice(_placed(position, shown, events), gap, upto, complete=False)


def _placed(
    position: Mapping[int, EventId], shown: tuple[int, ...], events: Mapping[int, Sequence[Event]]
) -> list[ShardedEvent]:
    """The events of several shards in one sequence behind a position, which goes on with each of them."""
    parts = {number: position[number] for number in shown}
    # Ids of one shard mean nothing in another one, but where they are times this is their order.
    runs = [[(own_id(event), number, event) for event in each] for number, each in events.items()]
    placed = []
    for event_id, number, event in merge(*runs, key=lambda item: item[:2]):
        parts[number] = event_id
        placed.append(ShardedEvent(ShardedId(parts.copy(), shown), event.topic, event.type, event.data))
    return placed


def _plain(position: Position) -> EventId:
    assert isinstance(position, EventId)
    return position
