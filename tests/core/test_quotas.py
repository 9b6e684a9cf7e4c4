"""How much each of many has: never more than allowed, and nothing is kept of those who are gone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.quotas import Buckets, Tally


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_each_has_its_own_count():
    tally: Tally[str] = Tally(2)
    assert [tally.take(key) for key in "aabab"] == [True, True, True, False, True]
    assert (tally.count("a"), tally.count("b"), tally.count("c")) == (2, 2, 0)
    tally.give_back("a")
    assert tally.take("a")


def test_any_number():
    tally: Tally[str] = Tally(0)
    assert all(tally.take("a") for _ in range(1000))
    assert tally.count("a") == 1000


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))), st.integers(1, 3))
def test_nobody_has_more_than_allowed_and_nobody_who_has_nothing_is_kept(steps, allowed):
    tally: Tally[str] = Tally(allowed)
    counts = dict.fromkeys("abc", 0)
    for takes, key in steps:
        if takes:
            assert tally.take(key) is (counts[key] < allowed)
            counts[key] = min(counts[key] + 1, allowed)
        elif counts[key]:
            tally.give_back(key)
            counts[key] -= 1
        assert {key: tally.count(key) for key in counts} == counts
        assert len(tally) == sum(map(bool, counts.values()))


def test_a_burst_and_then_the_rate(clock):
    buckets: Buckets[str] = Buckets(10, 3, clock=clock)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    assert (buckets.left("a"), buckets.full_in("a")) == (0, pytest.approx(0.3))
    assert buckets.take("a") == pytest.approx(0.1)
    assert buckets.take("b") == 0
    clock.now += 0.1
    assert buckets.take("a") == 0
    assert buckets.take("a") == pytest.approx(0.1)
    clock.now += 60
    assert (buckets.left("a"), buckets.full_in("a")) == (3, 0)


def test_more_at_once_than_there_is_room_for(clock):
    buckets: Buckets[str] = Buckets(10, 3, clock=clock)
    assert buckets.take("a", 13) == 0
    assert buckets.take("a") == pytest.approx(1.1)
    clock.now += 1.1
    assert buckets.take("a", 13) == pytest.approx(0.2)
    assert buckets.take("a") == 0


def test_no_rate(clock):
    buckets: Buckets[str] = Buckets(0, 1, clock=clock)
    assert not any(buckets.take("a") for _ in range(1000))
    assert len(buckets) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)), min_size=1), st.integers(1, 20), st.integers(1, 5))
def test_no_more_than_the_burst_and_the_rate(steps, rate, burst):
    clock = Clock()
    buckets: Buckets[str] = Buckets(rate, burst, clock=clock)
    begun, taken = clock.now, 0
    for tenths, count in steps:
        clock.now += tenths / 10
        if count <= burst and buckets.take("a", count) == 0:
            taken += count
        assert taken <= burst + (clock.now - begun) * rate + 1e-6


def test_who_waits_as_long_as_told_is_let_through(clock):
    buckets: Buckets[str] = Buckets(7, 3, clock=clock)
    for count in (3, 2, 1, 3, 2):
        while wait := buckets.take("a", count):
            clock.now += wait


def test_full_buckets_are_forgotten(clock):
    buckets: Buckets[int] = Buckets(10, 3, clock=clock)
    for number in range(100_000):
        buckets.take(number)
        clock.now += 0.01
        assert len(buckets) <= 1100
