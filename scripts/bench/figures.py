"""Arithmetic on measurements: percentiles, medians with their spread, and ratios within one repetition."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Several repetitions of one figure.

    Attributes:
        median: the figure to quote.
        low: the smallest.
        high: the largest.
        repetitions: how many there were.
    """

    median: float
    low: float
    high: float
    repetitions: int


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the smallest value that this share (0 to 1) of the values does not exceed; they come in order."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarize_latencies(nanoseconds: Iterable[int]) -> dict[str, float]:
    """Returns the percentiles that are reported, in milliseconds; nothing where nothing was sampled."""
    ordered = sorted(nanoseconds)
    if not ordered:
        return {}
    wanted = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "max_ms": 1.0}
    return {name: round(percentile(ordered, share) / 1e6, 3) for name, share in wanted.items()}


def spread(values: Iterable[float]) -> Spread | None:
    """Returns the median and the extremes, or None where there is no value."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))


def divide(above: Mapping[int, float], below: Mapping[int, float]) -> Spread | None:
    """Returns the ratio of two figures, taken within each repetition that has both, so that common noise cancels."""
    shared = above.keys() & below.keys()
    return spread(above[repetition] / below[repetition] for repetition in shared if below[repetition])
