"""Waiting before the next attempt."""

import random

import pytest

from tricast.client import ClientSettings
from tricast.client.backoff import Backoff

SETTINGS = ClientSettings(backoff_first=1.0, backoff_longest=10.0, retry_longest=60.0)


class Highest(random.Random):
    """Always draws the highest number."""

    def uniform(self, a, b):
        return b


class Lowest(random.Random):
    """Always draws the lowest number."""

    def uniform(self, a, b):
        return a


def test_the_ceiling_doubles_up_to_the_longest():
    backoff = Backoff(SETTINGS, Highest())
    assert [backoff.next_delay() for _ in range(6)] == [1, 2, 4, 8, 10, 10]


def test_jitter_is_full():
    backoff = Backoff(SETTINGS, Lowest())
    assert [backoff.next_delay() for _ in range(3)] == [0, 0, 0]


def test_it_begins_again_after_a_reset():
    backoff = Backoff(SETTINGS, Highest())
    backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() == 1


@pytest.mark.parametrize(("asked", "delay"), [(3.0, 4.0), (10.0**9, 61.0)])
def test_what_the_server_asks_for_comes_on_top(asked, delay):
    assert Backoff(SETTINGS, Highest()).next_delay(asked) == delay
