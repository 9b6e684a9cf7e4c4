"""How much each of many has: never more than allowed, and nothing is kept of those who are gone."""

import pytest
from clocks import Clock
from hypothesis import given
from hypothesis import strategies as st

from tricast.quotas import Buckets, Lapsing, Seats, Tally


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


def test_what_lapses_is_given_back_by_itself(clock):
    given: Lapsing[str] = Lapsing(2, 30, clock=clock)
    assert [given.take("a"), given.take("a"), given.take("a"), given.take("b")] == [True, True, False, True]
    clock.now += 29
    assert [given.take("a"), given.take("b"), given.take("b")] == [False, True, False]
    clock.now += 1
    assert [given.take("a"), given.take("a"), given.take("a"), given.take("b")] == [True, True, False, True]
    assert len(given) == 4
    clock.now += 30
    assert given.take("c")
    assert len(given) == 1


def test_without_a_limit_nothing_that_lapses_is_kept(clock):
    given: Lapsing[str] = Lapsing(0, 30, clock=clock)
    assert all(given.take("a") for _ in range(100))
    assert len(given) == 0


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


def test_what_is_waited_for(clock):
    buckets: Buckets[str] = Buckets(10, 3, clock=clock)
    assert buckets.wait("a") == 0
    assert buckets.take("a", 3) == 0
    assert buckets.wait("a") == pytest.approx(0.1)
    clock.now += 0.1
    assert buckets.wait("a") == pytest.approx(0)
    assert Buckets[str](0, 1, clock=clock).wait("a") == 0


def test_who_is_forgotten_begins_anew(clock):
    buckets: Buckets[str] = Buckets(10, 3, clock=clock)
    assert buckets.take("a", 3) == 0
    buckets.forget("a")
    buckets.forget("b")
    assert len(buckets) == 0
    assert buckets.take("a", 3) == 0


# Seats


def test_a_holder_has_one_of_each():
    seats: Seats[int, str] = Seats(2)
    assert [seats.hold(number, "ab") for number in range(2)] == [None, None]
    assert seats.hold(2, "ca") == "a"
    assert (seats.count("a"), seats.count("c"), len(seats)) == (2, 0, 2)
    assert seats.hold(0, "ab") is None
    seats.let_go(0)
    seats.let_go(0)
    seats.let_go(7)
    assert seats.hold(2, "ca") is None


def test_a_holder_that_wants_others_gives_back_what_it_had():
    seats: Seats[int, str] = Seats(1)
    assert seats.hold(0, "ab") is None
    assert seats.hold(0, "bc") is None
    assert seats.hold(1, "a") is None
    assert seats.hold(0, "ca") == "a"
    assert [seats.count(key) for key in "abc"] == [1, 1, 1]


def test_any_number_of_seats_is_nothing_to_keep():
    seats: Seats[int, str] = Seats(0)
    assert not any(seats.hold(number, "a") for number in range(10))
    seats.let_go(0)
    assert len(seats) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.frozensets(st.sampled_from("abc")))), st.integers(1, 3))
def test_no_key_has_more_seats_taken_than_it_has_and_each_is_somebody_s(steps, allowed):
    seats: Seats[int, str] = Seats(allowed)
    held: dict[int, frozenset[str]] = {}
    for holder, keys in steps:
        if keys is None:
            seats.let_go(holder)
            held.pop(holder, None)
        else:
            refused = seats.hold(holder, keys)
            others = [each for other, each in held.items() if other != holder]
            full = {key for key in keys if sum(key in each for each in others) == allowed}
            assert refused in full if full else refused is None
            if refused is None:
                held[holder] = keys
        assert len(seats) == len(held)
        for key in "abc":
            assert seats.count(key) == sum(key in each for each in held.values()) <= allowed
