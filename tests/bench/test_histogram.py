"""Buckets of a fixed relative width, against sorting everything."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tricast.bench.histogram import Histogram

VALUES = st.lists(st.integers(0, 2**62) | st.integers(0, 1000) | st.integers(10**6, 10**9), min_size=1, max_size=300)
PERCENTS = (1.0, 50.0, 90.0, 99.0, 99.9, 100.0)


def histogram_of(values):
    made = Histogram()
    for value in values:
        made.record(value)
    return made


@given(VALUES)
def test_percentiles_are_within_their_precision(values):
    histogram = histogram_of(values)
    assert histogram.count == len(values)
    for percent, found in zip(PERCENTS, histogram.percentiles(*PERCENTS), strict=True):
        exact = sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
        assert exact <= found <= exact + exact / 128


@given(VALUES)
def test_the_largest_is_exact(values):
    histogram = histogram_of(values)
    assert histogram.largest == max(values)
    assert histogram.percentiles(100) == [max(values)]


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_merging_is_counting_together(parts):
    merged = Histogram()
    for part in parts:
        merged.merge(Histogram.from_dict(histogram_of(part).to_dict()))
    together = histogram_of(value for part in parts for value in part)
    assert merged.to_dict() == together.to_dict()
    assert merged.percentiles(*PERCENTS) == together.percentiles(*PERCENTS)


def test_nothing_was_counted():
    assert Histogram().percentiles(50, 99) == [0, 0]
    assert Histogram().to_dict() == {-1: 0}


def test_a_clock_that_was_set_back():
    assert histogram_of([-5, 7]).percentiles(50, 100) == [0, 7]


def test_a_part_of_a_percent_of_many():
    histogram = histogram_of([1] * 9990 + [200] * 10)
    assert histogram.percentiles(99.9, 99.91) == [1, 200]
