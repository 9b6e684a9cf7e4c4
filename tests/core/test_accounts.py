"""What each account has and does: refused beyond its limits, and told by when."""

from typing import Any

import pytest
from clocks import Clock

from tricast.accounts import Accounts
from tricast.config import Config
from tricast.errors import LimitExceeded, TooFast


@pytest.fixture
def clock() -> Clock:
    return Clock()


def accounts_with(clock: Clock, **sections: Any) -> Accounts:
    return Accounts(Config.model_validate(sections), clock=clock)


def test_without_limits_nothing_is_counted(clock: Clock) -> None:
    accounts = accounts_with(clock)
    assert not accounts.is_limited
    for number in range(1000):
        accounts.let_in(number, "sub:a")
        accounts.check("sub:a")
        accounts.charge("sub:a", 1000)
    accounts.let_go(1)
    assert accounts.publishing_headers("sub:a") == ()


def test_connections_of_a_subject(clock: Clock) -> None:
    accounts = accounts_with(clock, limits={"connections_per_subject": 2})
    assert accounts.is_limited
    for number in range(2):
        accounts.let_in(number, "sub:a")
        accounts.let_in(10 + number, "sub:b")
    with pytest.raises(LimitExceeded) as refused:
        accounts.let_in(2, "sub:a")
    assert (refused.value.reason, refused.value.status) == ("limits.connections_per_subject", 429)
    accounts.let_go(0)
    accounts.let_go(0)
    accounts.let_in(2, "sub:a")


def test_a_connection_that_becomes_another_subject_s(clock: Clock) -> None:
    accounts = accounts_with(clock, limits={"connections_per_subject": 1})
    accounts.let_in(0, "sub:a")
    accounts.let_in(1, "sub:b")
    with pytest.raises(LimitExceeded):
        accounts.let_in(0, "sub:b")
    accounts.let_in(0, "sub:a")  # it has its place still
    accounts.let_in(0, "sub:c")
    accounts.let_in(2, "sub:a")


def test_tickets_of_a_subject(clock: Clock) -> None:
    accounts = accounts_with(clock, auth={"max_tickets_per_subject": 2, "ticket_lifetime": "30s"})
    for _ in range(2):
        accounts.count_ticket("sub:a")
        accounts.count_ticket("sub:b")
    with pytest.raises(LimitExceeded) as refused:
        accounts.count_ticket("sub:a")
    assert (refused.value.reason, refused.value.status) == ("auth.max_tickets_per_subject", 429)
    clock.now += 30
    accounts.count_ticket("sub:a")


def test_publishing(clock: Clock) -> None:
    accounts = accounts_with(clock, publish={"rate": 4, "burst": 10})
    accounts.charge("sub:a", 6)
    assert accounts.publishing_headers("sub:a") == (
        (b"ratelimit-policy", b'"publish";q=10;w=3'),
        (b"ratelimit", b'"publish";r=4;t=2'),
    )
    with pytest.raises(TooFast, match=r"publish.rate allows 4 a second; come back in 1\.0 s") as refused:
        accounts.charge("sub:a", 8)
    assert (refused.value.reason, refused.value.status, refused.value.wait) == ("publish.rate", 429, 1.0)
    assert dict(refused.value.headers) == {
        b"retry-after": b"1",
        b"ratelimit-policy": b'"publish";q=10;w=3',
        b"ratelimit": b'"publish";r=4;t=1',
    }
    accounts.charge("sub:b", 10)
    accounts.check("sub:a")
    accounts.charge("sub:a", 4)
    with pytest.raises(TooFast):
        accounts.check("sub:a")
    clock.now += 0.25
    accounts.check("sub:a")
