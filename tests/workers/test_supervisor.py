"""When a worker is replaced that died."""

import random

from tricast.workers.supervisor import Backoff


def test_the_first_is_replaced_at_once_and_the_others_ever_later() -> None:
    backoff = Backoff(random.Random(1))
    delays = [backoff.next_delay(lived=1.0) for _ in range(50)]
    assert delays[0] == 0
    for deaths, delay in enumerate(delays[1:]):
        longest = min(30.0, 0.5 * 2**deaths)
        assert longest / 2 <= delay <= longest
    assert len(set(delays)) == 50


def test_one_that_lived_for_long_is_the_first_again() -> None:
    backoff = Backoff(random.Random(1))
    assert [backoff.next_delay(lived) > 0 for lived in (0.0, 1.0, 29.0, 30.0, 1.0)] == [False, True, True, False, True]
