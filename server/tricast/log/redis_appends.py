"""What waits to be appended to a shard in Redis: bounded, and taken in groups, each of which is one round trip."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import trio

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import Draft, EventId
from tricast.log.redis_stream import Answer, Batch

#: Appends that wait for their turn.
_MAX_WAITING = 10_000
_MAX_WAITING_BYTES = 64 * 2**20
#: What is appended in one step: while Redis does that, nobody else is served there. A batch that is larger goes alone.
_MAX_GROUP_DRAFTS = 500
_MAX_GROUP_BYTES = 2**20
#: What a draft that waits takes beside its text.
_DRAFT_BYTES = 200

#: What becomes of an append.
Result = Answer | LogUnavailable


T = TypeVar("T")


class Append(Generic[T]):
    """A batch that a task waits for.

    Attributes:
        batch: what to append.
        target: where to.
    """

    __slots__ = ("batch", "done", "drafts", "result", "size", "target")

    def __init__(self, batch: Batch, target: T) -> None:
        self.batch = batch
        self.target = target
        self.drafts = sum(map(len, batch.parts))
        self.size = sum(_size_of(draft) for part in batch.parts for draft in part)
        self.done = trio.Event()
        self.result: Result | None = None


class Appends(Generic[T]):
    """What waits to be appended, the oldest first."""

    def __init__(self) -> None:
        self._unanswered: dict[Append[T], None] = {}
        self._waiting: deque[Append[T]] = deque()
        self._size = 0
        self._bell = trio.Event()

    async def append(self, batch: Batch, target: T) -> list[list[EventId]]:
        """Waits for its turn, and returns the ids in each of its shards.

        Cancelling leaves open whether it is appended.

        Raises:
            LogUnavailable: too much is waiting already, or that is the answer.
            RemoteProtocolError: that is the answer.
        """
        if len(self._unanswered) >= _MAX_WAITING or self._size >= _MAX_WAITING_BYTES:
            raise LogUnavailable("too many publishes are waiting for Redis")
        append = Append(batch, target)
        self._unanswered[append] = None
        self._waiting.append(append)
        self._size += append.size
        self._bell.set()
        await append.done.wait()
        if isinstance(append.result, LogUnavailable | RemoteProtocolError):
            raise append.result
        assert append.result is not None
        return append.result

    async def wait(self, seconds: float = math.inf) -> bool:
        """Returns whether something waits, as soon as something does, or after so many seconds."""
        if not self._waiting:
            self._bell = trio.Event()
            with trio.move_on_after(seconds):
                await self._bell.wait()
        return bool(self._waiting)

    def take(self) -> list[Append[T]]:
        """What goes next, all of it to the same target. It has to be answered, or failed with all others."""
        group: list[Append[T]] = []
        drafts = size = 0
        while self._waiting:
            append = self._waiting[0]
            drafts += append.drafts
            size += append.size
            is_full = drafts > _MAX_GROUP_DRAFTS or size > _MAX_GROUP_BYTES
            if group and (is_full or append.target != group[0].target):
                break
            group.append(self._waiting.popleft())
        return group

    def answer(self, group: Sequence[Append[T]], results: Sequence[Result]) -> None:
        """Says what became of a group."""
        for append, result in zip(group, results, strict=True):
            del self._unanswered[append]
            self._size -= append.size
            append.result = result
            append.done.set()

    def fail_all(self, why: str) -> None:
        """Says of all that nobody knows whether they were appended, or that they will not be."""
        self._waiting.clear()
        group = list(self._unanswered)
        self.answer(group, [LogUnavailable(why) for _ in group])


def _size_of(draft: Draft) -> int:
    return _DRAFT_BYTES + len(draft.topic) + len(draft.type) + len(draft.data)
