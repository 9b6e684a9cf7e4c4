"""What waits to be appended to a shard in Redis: bounded, and taken in groups, each of which is one round trip."""

from collections import deque
from collections.abc import Sequence

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


class Append:
    """A batch that a task waits for.

    Attributes:
        batch: what to append.
    """

    __slots__ = ("batch", "done", "drafts", "result", "size")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.drafts = sum(len(part) for part in batch.parts)
        self.size = sum(_size_of(draft) for part in batch.parts for draft in part)
        self.done = trio.Event()
        self.result: Result | None = None


class Appends:
    """What waits to be appended, the oldest first."""

    def __init__(self) -> None:
        self._unanswered: dict[Append, None] = {}
        self._waiting: deque[Append] = deque()
        self._size = 0
        self._bell = trio.Event()

    async def append(self, batch: Batch) -> list[list[EventId]]:
        """Waits for its turn, and returns the ids in each of its shards.

        Cancelling leaves open whether it is appended.

        Raises:
            LogUnavailable: too much is waiting already, or that is the answer.
            RemoteProtocolError: that is the answer.
        """
        if len(self._unanswered) >= _MAX_WAITING or self._size >= _MAX_WAITING_BYTES:
            raise LogUnavailable("too many publishes are waiting for Redis")
        append = Append(batch)
        self._unanswered[append] = None
        self._waiting.append(append)
        self._size += append.size
        self._bell.set()
        await append.done.wait()
        if isinstance(append.result, LogUnavailable | RemoteProtocolError):
            raise append.result
        assert append.result is not None
        return append.result

    async def next_group(self) -> list[Append]:
        """What goes next, as soon as there is something. It has to be answered, or failed with all others."""
        if not self._waiting:
            self._bell = trio.Event()
            await self._bell.wait()
        group: list[Append] = []
        drafts = size = 0
        while self._waiting and size < _MAX_GROUP_BYTES:
            drafts += self._waiting[0].drafts
            size += self._waiting[0].size
            if group and (drafts > _MAX_GROUP_DRAFTS or size > _MAX_GROUP_BYTES):
                break
            group.append(self._waiting.popleft())
        return group

    def answer(self, group: Sequence[Append], results: Sequence[Result]) -> None:
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
