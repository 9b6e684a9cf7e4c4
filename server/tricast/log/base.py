"""What a log is to the rest of the server. Which log it is, only ``server.py`` knows."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from tricast.errors import RemoteProtocolError
from tricast.event import Draft, Event, Gap, Position, TopicSet
from tricast.log.statistics import Statistics

#: Called with events in id order, each exactly once, as soon as they are in the log; with none, when a log that could
#: not be read may be read again.
Committed = Callable[[Sequence[Event]], None]
#: Called with a position when events at or before it were dropped, or are too many, to be handed over one by one:
#: what was committed up to there is read from the log, which tells what is missing.
Skipped = Callable[[Position], None]


class IdempotencyKey(NamedTuple):
    """What makes two appends the same one.

    Attributes:
        name: what the publisher named it.
        fingerprint: what was to be published, digested.
        window: seconds for which the log remembers it.
        max_keys: how many keys the log remembers at most; the oldest are forgotten first.
    """

    name: bytes
    fingerprint: bytes
    window: float
    max_keys: int


class Slice(NamedTuple):
    """What a log holds for a set of topics behind a position.

    Attributes:
        events: in id order.
        gap: what is missing between the position and ``upto``, if anything; events up to ``gap.resumed_at`` that are
            still kept are among ``events``.
        upto: the position after this slice, never behind ``last_id``. For the topics asked for, nothing between the
            position and here is absent without being covered by the gap.
        complete: whether the slice reaches the end of the log as it was when it was read.
    """

    events: Sequence[Event]
    gap: Gap | None
    upto: Position
    complete: bool


class Log(Protocol):
    """A totally ordered log of events, kept per topic."""

    @property
    def last_id(self) -> Position:
        """The newest position: all up to it was handed over in this process, or skipped, and nothing behind it."""
        ...

    @property
    def waits(self) -> bool:
        """Whether an append takes longer than a few microseconds, so that no answer should be held back for it."""
        ...

    @property
    def problem(self) -> str | None:
        """Why nothing can be appended now, in a few words; None while all is well."""
        ...

    @property
    def statistics(self) -> Statistics:
        """What it has gone through, and how far behind it is."""
        ...

    def shards_of(self, topics: TopicSet) -> Sequence[int] | None:
        """The shards that events of these topics are in, which is what their ids have to tell of.

        Equal sets get equal answers, which can be hashed; None where the log is not in shards.
        """
        ...

    def open(self, committed: Committed, skipped: Skipped | None = None) -> AbstractAsyncContextManager[None]:
        """The scope in which the log works, and hands over what is appended, by whomever.

        Args:
            committed: takes the events.
            skipped: is told where events are not handed over; None where nobody has to know.

        Raises:
            LogUnavailable: the log cannot be used.
        """
        ...

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> Sequence[Position]:
        """Gives the drafts ids and keeps them, all or none. Cancelling leaves open which of the two it was.

        Args:
            drafts: at least one.
            key: where it is known, nothing is appended, and the ids are those of the first time.

        Raises:
            LogUnavailable: none of them was kept, as far as this log can know.
            RemoteProtocolError: the key was used for something else, or the drafts cannot be kept all or none.
        """
        ...

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """What the log holds for the topics behind a position.

        Another process may have come further: where the position is behind ``last_id``, this waits until what the log
        holds up to there has been handed over.

        Args:
            topics: names and patterns.
            after: the position; ``BEGINNING`` asks for all that is kept, so what was dropped before is not missing.
            max_bytes: about how much data to return; at least one event is returned where there is one.

        Raises:
            LogUnavailable: the log cannot be read now.
        """
        ...


def ignore(_: object) -> None:
    """Takes what is committed or skipped while nobody is there for it."""


def key_reused() -> RemoteProtocolError:
    """The answer to a key that comes back with other content."""
    return RemoteProtocolError(
        "this Idempotency-Key was used for another request", code="idempotency-key-reused", status=422
    )
