"""What each account has and does: connections it subscribes with, events it publishes a second, tickets it is given.

An account is whom a limit counts for, as text: the subject of a token, an API key, or the address of somebody unknown.
This module does not care which.
"""

from collections.abc import Callable, Hashable

from tricast.config import Config
from tricast.errors import LimitExceeded, TooFast
from tricast.quotas import Buckets, Lapsing, Seats
from tricast.wire.http1 import Headers, retry_after
from tricast.wire.rate_limit import rate_limit_headers

#: The policy's name in ``RateLimit``.
_PUBLISHING = "publish"


class Accounts:
    """The accounts of one server.

    Args:
        config: the configuration.
        clock: seconds that only ever grow.
    """

    def __init__(self, config: Config, *, clock: Callable[[], float]) -> None:
        self._seats: Seats[Hashable, str] = Seats(config.limits.connections_per_subject)
        self._published: Buckets[str] = Buckets(config.publish.rate, config.publish.burst, clock=clock)
        auth = config.auth
        self._tickets: Lapsing[str] = Lapsing(auth.max_tickets_per_subject, auth.ticket_lifetime, clock=clock)

    @property
    def is_limited(self) -> bool:
        """Whether any limit counts subscribers or publishers by account."""
        return bool(self._seats.allowed or self._published.rate)

    # Subscribing

    def let_in(self, subscriber: Hashable, account: str) -> None:
        """Counts a subscriber for an account, and no longer for the one it was counted for before.

        Raises:
            LimitExceeded: the account has as many as it may have; nothing has changed.
        """
        if self._seats.hold(subscriber, (account,)) is not None:
            allowed = self._seats.allowed
            raise LimitExceeded("limits.connections_per_subject", allowed, status=429, close_code=1013)

    def let_go(self, subscriber: Hashable) -> None:
        """Counts a subscriber no longer, if it is counted."""
        self._seats.let_go(subscriber)

    # Tickets

    def count_ticket(self, account: str) -> None:
        """Counts a ticket that an account is about to be given, for as long as one may be good, used or not.

        Raises:
            LimitExceeded: the account has as many as it may have; nothing has changed.
        """
        if not self._tickets.take(account):
            raise LimitExceeded("auth.max_tickets_per_subject", self._tickets.allowed, status=429)

    # Publishing

    def charge(self, account: str, events: int) -> None:
        """Counts events that an account is about to publish. More than ``publish.burst`` at once count in full.

        Raises:
            TooFast: it may not publish so many yet, and none was counted.
        """
        if wait := self._published.take(account, events):
            raise self._too_fast(account, wait)

    def check(self, account: str) -> None:
        """Lets those pass who may publish at least one event.

        Raises:
            TooFast: it may not yet.
        """
        if wait := self._published.wait(account):
            raise self._too_fast(account, wait)

    def publishing_headers(self, account: str) -> Headers:
        """What an answer to a publisher tells of its rate: nothing where there is no limit."""
        if not self._published.rate:
            return ()
        return self._fields(account, self._published.full_in(account))

    def _too_fast(self, account: str, wait: float) -> TooFast:
        # Retry-After should not come before the end of the time that RateLimit names (6), so both name the same.
        headers = (retry_after(wait), *self._fields(account, wait))
        return TooFast("publish.rate", self._published.rate, wait, headers=headers)

    def _fields(self, account: str, seconds: float) -> Headers:
        bucket = self._published
        return rate_limit_headers(_PUBLISHING, bucket.rate, bucket.burst, left=bucket.left(account), seconds=seconds)
