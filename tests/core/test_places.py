"""Who may come in: each client has as many places as it may have, whatever others do, and nothing stays behind."""

from collections import Counter
from typing import Any

import pytest
from clocks import Clock
from hypothesis import given
from hypothesis import strategies as st

from tricast.addresses import Networks
from tricast.config import LimitsSection
from tricast.errors import LimitExceeded
from tricast.places import Places

PROXIES = Networks(("10.0.0.0/8",))
PROXY, CLIENT, OTHER = "10.0.0.1", "192.0.2.1", "192.0.2.2"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def places(clock: Clock, **limits: Any) -> Places:
    return Places(LimitsSection.model_validate(limits), PROXIES, clock=clock, jitter=lambda seconds: seconds)


def refusal(places: Places, address: str, holder: object = None) -> LimitExceeded:
    """Why this one must not come in."""
    before = len(places)
    with pytest.raises(LimitExceeded) as caught:
        places.arrive(holder, address)
    assert len(places) == before
    return caught.value


def test_as_many_as_a_client_may_have(clock: Clock) -> None:
    found = places(clock, connections_per_address=2)
    found.arrive(1, CLIENT)
    found.arrive(2, CLIENT)
    error = refusal(found, CLIENT)
    assert (error.reason, error.status, error.allowed) == ("limits.connections_per_address", 429, 2)
    assert error.headers == ((b"retry-after", b"5"),)
    found.arrive(3, OTHER)
    found.give_back(1)
    found.arrive(4, CLIENT)
    refusal(found, CLIENT)


def test_of_ipv6_a_client_is_its_network(clock: Clock) -> None:
    found = places(clock, connections_per_address=1)
    found.arrive(1, "2001:db8:0:1::1")
    refusal(found, "2001:db8:0:1:ffff::2")
    found.arrive(2, "2001:db8:0:2::1")


def test_a_proxys_connections_are_not_its_own(clock: Clock) -> None:
    found = places(clock, connections_per_address=1, accept_rate_per_address=1)
    for number in range(100):
        found.arrive(number, PROXY)
        found.take(number, PROXY)
    assert len(found) == 0
    found.take(1, CLIENT)
    with pytest.raises(LimitExceeded):
        found.take(2, CLIENT)
    found.give_back(1)
    found.take(2, CLIENT)


def test_as_fast_as_a_client_may_come(clock: Clock) -> None:
    found = places(clock, accept_rate_per_address=3)
    for number in range(3):
        found.arrive(number, CLIENT)
    error = refusal(found, CLIENT)
    assert (error.reason, error.status, error.allowed) == ("limits.accept_rate_per_address", 429, 3)
    found.arrive(3, OTHER)
    clock.now += 0.34
    found.arrive(4, CLIENT)
    refusal(found, CLIENT)


def test_as_fast_as_all_may_come(clock: Clock) -> None:
    found = places(clock, accept_rate=3, connections_per_address=10)
    for number, address in enumerate((CLIENT, OTHER, PROXY)):
        found.arrive(number, address)
    error = refusal(found, "192.0.2.3")
    assert (error.reason, error.status, error.allowed) == ("limits.accept_rate", 503, 3)
    assert refusal(found, PROXY).reason == "limits.accept_rate"
    clock.now += 0.34
    found.arrive(4, "192.0.2.3")


@pytest.mark.parametrize("own", ["connections_per_address", "accept_rate_per_address"])
def test_who_is_turned_away_for_himself_takes_nothing_from_the_others(clock: Clock, own: str) -> None:
    found = places(clock, accept_rate=10, **{own: 1})
    found.arrive("first", CLIENT)
    for _ in range(1000):
        assert refusal(found, CLIENT).reason == f"limits.{own}"
    for number in range(9):
        found.arrive(number, f"203.0.113.{number}")


def test_few_of_one_client_are_told_at_length(clock: Clock) -> None:
    found = places(clock)
    assert Counter(found.is_told(CLIENT) for _ in range(1000)) == {True: 10, False: 990}
    assert found.is_told(OTHER)
    clock.now += 1.01
    assert Counter(found.is_told(CLIENT) for _ in range(1000)) == {True: 2, False: 998}


def test_without_limits_nothing_is_kept(clock: Clock) -> None:
    found = places(clock)
    for number in range(1000):
        found.arrive(number, CLIENT)
    assert len(found) == 0
    found.give_back(1)


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from((CLIENT, OTHER, PROXY)), st.booleans())))
def test_nobody_has_more_than_allowed_and_nothing_stays_behind(steps: list[tuple[int, str, bool]]) -> None:
    """Invariant: the places held of each client are those of its holders, two at most; a proxy has none."""
    found = places(Clock(), connections_per_address=2)
    held: dict[int, str] = {}
    for holder, address, enters in steps:
        if not enters:
            found.give_back(holder)
            held.pop(holder, None)
        elif holder not in held:
            is_full = Counter(held.values())[address] == 2
            if is_full:
                refusal(found, address, holder)
            else:
                found.arrive(holder, address)
                if address != PROXY:
                    held[holder] = address
        assert len(found) == len(held)
    for holder in list(held):
        found.give_back(holder)
    assert len(found) == found._seats.count(CLIENT) == found._seats.count(OTHER) == 0


def test_who_has_a_place_already_takes_no_second(clock: Clock) -> None:
    found = places(clock, connections_per_address=1)
    for address in (CLIENT, CLIENT, OTHER):
        found.take("proxied", address)
    found.take("another", CLIENT)
    with pytest.raises(LimitExceeded):
        found.take("more", OTHER)
    assert len(found) == 2
