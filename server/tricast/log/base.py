"""What a log is to the rest of the server. Which log it is, only ``server.py`` knows."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from tricast.event import Draft, Event, EventId, Gap, TopicSet

#: Called with events in id order, each exactly once, as soon as they are in the log.
Committed = Callable[[Sequence[Event]], None]


class Slice(NamedTuple):
    """What a log holds for a set of topics behind a position.

    Attributes:
        events: in id order.
        gap: what is missing between the position and ``upto``, if anything; events up to ``gap.resumed_at`` that are
            still kept are among ``events``.
        upto: the position after this slice. For the topics asked for, nothing between the position and here is
            absent without being covered by the gap.
        complete: whether the slice reaches the end of the log as it was when it was read.
    """

    events: Sequence[Event]
    gap: Gap | None
    upto: EventId
    complete: bool


class Log(Protocol):
    """A totally ordered log of events, kept per topic."""

    @property
    def last_id(self) -> EventId:
        """The newest position: every event committed so far is at or before it."""
        ...

    def open(self, committed: Committed) -> AbstractAsyncContextManager[None]:
        """The scope in which the log works, and hands over what is appended, by whomever."""
        ...

    async def append(self, drafts: Sequence[Draft]) -> list[EventId]:
        """Gives the drafts ids and keeps them, all or none. Cancelling leaves open which of the two it was.

        Raises:
            LogUnavailable: none of them was kept.
        """
        ...

    async def read(self, topics: TopicSet, after: EventId, *, max_bytes: int) -> Slice:
        """What the log holds for the topics behind a position.

        Args:
            topics: names and patterns.
            after: the position; ``BEGINNING`` asks for all that is kept, so what was dropped before is not missing.
            max_bytes: about how much data to return; at least one event is returned where there is one.

        Raises:
            LogUnavailable: the log cannot be read now.
        """
        ...
