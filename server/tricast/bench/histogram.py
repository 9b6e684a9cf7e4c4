"""Latencies counted in buckets of equal relative width, as HdrHistogram does it (Gil Tene, hdrhistogram.org).

The package of that name takes six times as long to count a value, which is too long for every event of every
subscriber, and brings setuptools along. Knows nothing of what is counted.
"""

from collections.abc import Mapping
from typing import Self

#: A bucket is at most 1/128 of its values wide.
_PRECISION_BITS = 7
_LARGEST_EXACT = 2 << _PRECISION_BITS
#: Enough for values of 63 bits: nanoseconds for 292 years.
_BUCKETS = (64 - _PRECISION_BITS) << _PRECISION_BITS


class Histogram:
    """How often which value was seen: exact below 256, and from there within 0.8 percent; the largest is exact.

    Attributes:
        largest: the largest value, or 0.
    """

    __slots__ = ("_counts", "largest")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.largest = 0

    def record(self, value: int) -> None:
        """Counts one value; a negative one, which only a clock that was set back makes, counts as 0."""
        shift = value.bit_length() - _PRECISION_BITS - 1
        if value < _LARGEST_EXACT:
            self._counts[max(value, 0)] += 1
        else:
            self._counts[(shift << _PRECISION_BITS) + (value >> shift)] += 1
        if value > self.largest:  # noqa: PLR1730 - max() takes longer than all the rest
            self.largest = value

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self._counts)

    def percentiles(self, *percents: float) -> list[int]:
        """For each percentage, a value that so many of the counted ones are not above; 0 when nothing was counted.

        Args:
            percents: each above 0 and at most 100, ascending.
        """
        found: list[int] = []
        total, seen, index = self.count, 0, -1
        for percent in percents:
            # At least one value; and no rounding error may ask for more than there are.
            rank = min(max(1, -int(-total * percent // 100)), total)
            while seen < rank:
                index += 1
                seen += self._counts[index]
            found.append(min(_highest_in(index), self.largest) if total else 0)
        return found

    def merge(self, other: Self) -> None:
        """Adds what another one has counted."""
        self._counts = [ours + theirs for ours, theirs in zip(self._counts, other._counts, strict=True)]
        self.largest = max(self.largest, other.largest)

    def to_dict(self) -> dict[int, int]:
        """The buckets that are not empty, and under -1 the largest value, for another process."""
        return {-1: self.largest, **{index: count for index, count in enumerate(self._counts) if count}}

    @classmethod
    def from_dict(cls, written: Mapping[int, int]) -> Self:
        """What ``to_dict`` wrote."""
        made = cls()
        for index, count in written.items():
            if index == -1:
                made.largest = count
            else:
                made._counts[index] = count
        return made


def _highest_in(index: int) -> int:
    """The largest value that is counted in a bucket."""
    if index < _LARGEST_EXACT:
        return index
    shift = (index >> _PRECISION_BITS) - 1
    return ((index - (shift << _PRECISION_BITS) + 1) << shift) - 1
