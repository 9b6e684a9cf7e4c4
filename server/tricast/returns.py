"""When those come back whom a server that goes down sends away. Pure arithmetic, without I/O."""

import random

from tricast.config import DrainSection

#: The least by which the times are spread, as a part of ``drain.retry_after``.
_LEAST_SPREAD = 0.5


class Returns:
    """One budget of reconnects, from which the clients of all transports are told when to come back.

    Clients are told one after the other within ``drain.period``, and each then waits for ``drain.retry_after`` and its
    part of the spread. So they come back one after the other as well, to the rest of a fleet or to the successor, and
    not more of them in a second than ``drain.reconnects_per_second``, whatever each of them speaks.

    Args:
        drain: the configuration.
        randomness: for those who are in no order.
    """

    def __init__(self, drain: DrainSection, randomness: random.Random) -> None:
        self._drain = drain
        self._random = randomness
        self._spread = drain.retry_after * _LEAST_SPREAD

    def plan_for(self, clients: int) -> None:
        """Makes the spread as wide as so many clients need who are told evenly over the period."""
        needed = clients / self._drain.reconnects_per_second - self._drain.period
        self._spread = max(self._spread, needed)

    def delay(self, told: float | None = None) -> float:
        """The seconds after which a client that is told now is to come back.

        Args:
            told: which part of all clients was told before this one, from 0 to 1; the default is any.
        """
        part = self._random.random() if told is None else told
        return self._drain.retry_after + self._spread * part
