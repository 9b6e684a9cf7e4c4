"""When clients come back: never more of them in a second than the budget has, in any second."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast import Config
from tricast.returns import Returns


def returns_of(**drain: object) -> Returns:
    return Returns(Config.model_validate({"drain": drain}).drain, random.Random(1))


@given(
    clients=st.integers(1, 500),
    period=st.integers(0, 100_000),
    retry_after=st.integers(1, 100_000),
    budget=st.integers(1, 1000),
)
def test_no_second_has_more_than_the_budget(clients: int, period: int, retry_after: int, budget: int) -> None:
    returns = returns_of(period=f"{period}ms", retry_after=f"{retry_after}ms", reconnects_per_second=budget)
    returns.plan_for(clients)
    parts = [number / clients for number in range(clients)]
    times = [part * period / 1000 + returns.delay(part) for part in parts]
    assert times[0] == pytest.approx(retry_after / 1000)
    for first, last in zip(times, times[budget:], strict=False):
        assert last - first >= 1.0 - 1e-6


def test_a_few_are_spread_by_half_as_much_again() -> None:
    returns = returns_of(period="0s", retry_after="10s")
    returns.plan_for(10)
    assert [returns.delay(part) for part in (0.0, 0.5, 1.0)] == [10.0, 12.5, 15.0]


def test_who_is_in_no_order_comes_at_any_time() -> None:
    returns = returns_of(period="0s", retry_after="10s", reconnects_per_second=10)
    returns.plan_for(1000)
    delays = [returns.delay() for _ in range(1000)]
    assert min(delays) >= 10.0
    assert max(delays) <= 110.0
    assert sum(delays) / 1000 == pytest.approx(60.0, abs=5.0)


def test_a_long_period_is_spread_enough() -> None:
    returns = returns_of(period="100s", retry_after="2s", reconnects_per_second=10)
    returns.plan_for(1000)
    assert returns.delay(1.0) == 3.0
