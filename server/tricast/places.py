"""Who may come in: how many connections a client may have, and how fast they may come. Bookkeeping, without I/O.

A client is its address, of IPv6 its network: what a person can have many of for nothing is no measure. Proxies that are
trusted are nobody here, for their connections are many people's: of those, each request that is being answered counts,
for the client that the proxy tells.
"""

from collections.abc import Callable, Hashable

from tricast.addresses import Networks, network_of
from tricast.config import LimitsSection
from tricast.errors import LimitExceeded
from tricast.quotas import Buckets, Seats
from tricast.wire.http1 import retry_after

#: As many answers a second does a client get of those that are read to their end, and so many at once. See ``is_told``.
_TOLD_RATE, _TOLD_AT_ONCE = 2.0, 10
_ALL = ""


class Places:
    """The places of one server.

    Args:
        limits: how many there are.
        proxies: whose connections are not their own.
        clock: seconds that only ever grow.
        jitter: spreads the seconds after which those who are turned away come back.
    """

    def __init__(
        self,
        limits: LimitsSection,
        proxies: Networks,
        *,
        clock: Callable[[], float],
        jitter: Callable[[float], float],
    ) -> None:
        self._proxies = proxies
        self._jitter = jitter
        self._retry_after = limits.retry_after
        self._seats: Seats[Hashable, str] = Seats(limits.connections_per_address)
        self._arrivals: Buckets[str] = Buckets(
            limits.accept_rate_per_address, limits.accept_rate_per_address, clock=clock
        )
        self._all_arrivals: Buckets[str] = Buckets(limits.accept_rate, limits.accept_rate, clock=clock)
        self._told: Buckets[str] = Buckets(_TOLD_RATE, _TOLD_AT_ONCE, clock=clock)

    def __len__(self) -> int:
        return len(self._seats)

    def arrive(self, holder: Hashable, address: str) -> None:
        """Lets a connection in, which then has a place until it is given back.

        Args:
            holder: the connection.
            address: the client's.

        Raises:
            LimitExceeded: its client comes too often or has all it may have, or all clients together come too often.
        """
        if address not in self._proxies:
            self._check(self._arrivals, network_of(address), "limits.accept_rate_per_address", 429)
            self.take(holder, address)
        # Last: who is turned away for himself takes nothing from the others.
        try:
            self._check(self._all_arrivals, _ALL, "limits.accept_rate", 503)
        except LimitExceeded:
            self.give_back(holder)
            raise

    def take(self, holder: Hashable, address: str) -> None:
        """Gives a holder one of its client's places, in place of the one that it has, if it has one.

        Raises:
            LimitExceeded: the client has all it may have.
        """
        if address not in self._proxies and self._seats.hold(holder, (network_of(address),)) is not None:
            raise self._refusal("limits.connections_per_address", self._seats.allowed, 429)

    def give_back(self, holder: Hashable) -> None:
        """Takes the holder's place back, if it has one."""
        self._seats.let_go(holder)

    def is_told(self, address: str) -> bool:
        """Whether a client is turned away so that it sees for sure why, which costs this side more than the client."""
        return self._told.take(network_of(address)) == 0.0

    def _check(self, buckets: Buckets[str], key: str, limit: str, status: int) -> None:
        wait = buckets.take(key)
        if wait:
            raise self._refusal(limit, buckets.burst, status, wait)

    def _refusal(self, limit: str, allowed: int, status: int, wait: float = 0.0) -> LimitExceeded:
        seconds = self._jitter(max(wait, self._retry_after))
        return LimitExceeded(limit, allowed, status=status, headers=(retry_after(seconds),), close_code=1013)
