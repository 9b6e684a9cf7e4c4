"""What is counted, and how the counts of several processes become one."""

from collections.abc import Iterable
from typing import Self

import msgspec

from tricast.bench.histogram import Histogram


class Counts(msgspec.Struct, kw_only=True):
    """What the subscribers of one transport in one process have counted, as it is handed on.

    Attributes:
        subscribers: how many were to be opened.
        opened: how many were.
        opening_seconds: how long that took.
        deliveries: measured events that came.
        last_delivery: when the last of them came, in nanoseconds of the monotonic clock; 0 for never.
        events: all events that came since measuring began.
        received_bytes: what came since then, with framing and heads, in the plain text of TLS.
        requests: HTTP requests made since then.
        lost: events that did not come, without a word.
        missed: events that did not come, which the server announced.
        duplicates: events that came twice.
        out_of_order: events that came behind later ones.
        gaps: how many gaps were announced, by the reason given.
        reconnects: connections made again.
        errors: what went wrong, by kind.
        away: subscribers that were not connected at the end, by what had ended their last connection.
        latency: the buckets of ``Histogram.to_dict``, in nanoseconds.
    """

    subscribers: int = 0
    opened: int = 0
    opening_seconds: float = 0.0
    deliveries: int = 0
    last_delivery: int = 0
    events: int = 0
    received_bytes: int = 0
    requests: int = 0
    lost: int = 0
    missed: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    gaps: dict[str, int] = {}
    reconnects: int = 0
    errors: dict[str, int] = {}
    away: dict[str, int] = {}
    latency: dict[int, int] = {}


_SUMS = (
    "subscribers", "opened", "deliveries", "events", "received_bytes", "requests", "lost", "missed", "duplicates",
    "out_of_order", "reconnects",
)  # fmt: skip


class Tally(Counts, kw_only=True):
    """The same while it is counted.

    Attributes:
        histogram: the latencies, in nanoseconds.
    """

    histogram: Histogram = msgspec.field(default_factory=Histogram)

    def error(self, kind: str) -> None:
        """Counts something that went wrong."""
        self.errors[kind] = self.errors.get(kind, 0) + 1

    def begin_measuring(self) -> None:
        """Forgets what the way there has cost."""
        self.events = self.received_bytes = self.requests = 0

    def counts(self) -> Counts:
        """What was counted, to be handed on."""
        values = {name: getattr(self, name) for name in Counts.__struct_fields__}
        return Counts(**(values | {"latency": self.histogram.to_dict()}))

    @classmethod
    def of(cls, many: Iterable[Counts]) -> Self:
        """The sum of what several have counted."""
        total = cls()
        for counts in many:
            for name in _SUMS:
                setattr(total, name, getattr(total, name) + getattr(counts, name))
            total.opening_seconds = max(total.opening_seconds, counts.opening_seconds)
            total.last_delivery = max(total.last_delivery, counts.last_delivery)
            add_up(total.gaps, counts.gaps)
            add_up(total.errors, counts.errors)
            add_up(total.away, counts.away)
            total.histogram.merge(Histogram.from_dict(counts.latency))
        return total


def add_up(total: dict[str, int], more: dict[str, int]) -> None:
    """Adds counts by name."""
    for name, count in more.items():
        total[name] = total.get(name, 0) + count
