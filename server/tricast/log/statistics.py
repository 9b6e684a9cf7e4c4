"""What a log has gone through, for the metrics: how long it took, how often it was away, how far behind it is."""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

#: Upper bounds, in seconds, as in Prometheus; what takes longer is in a bucket of its own.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Timings:
    """A histogram of how long something took.

    Attributes:
        counts: one for each of ``BOUNDS``, and one for what took longer; not cumulative.
        sum: seconds, of all of them.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Counts what is done in its scope, unless it fails."""
        begin = perf_counter()
        yield
        self.observe(perf_counter() - begin)


class Statistics:
    """Plain numbers, read when somebody asks for the metrics.

    Attributes:
        appends: from when a publisher asked to when the log held it.
        reads: those that memory could not answer.
        reconnects: how often a connection to what holds the log was made again.
        left_out: what others wrote into it that is no event.
        lags: by shard, 0 where there are none: events that the log holds and this process has not handed over, when
            that was last looked at.
    """

    __slots__ = ("appends", "lags", "left_out", "reads", "reconnects")

    def __init__(self) -> None:
        self.appends = Timings()
        self.reads = Timings()
        self.reconnects = 0
        self.left_out = 0
        self.lags: dict[int, int] = {}
