"""The servers behind the proxy, as they are at the moment: who is up, how busy, and who leaves. No I/O, no clock.

What is known of a server comes from three sides: whoever runs the proxy asks for a state, checks find out whether it
answers, and the exchanges with it go well or do not. It gets requests when nothing speaks against it.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from enum import Enum

from tricast_proxy.config import HealthSection, ProxyConfig, ServerEntry

#: Of its weight, what a server has at least while it starts slowly: with none, it would not start at all.
_MIN_SHARE = 0.01


class Health(Enum):
    """Whether a server gets requests."""

    UP = "up"
    DOWN = "down"
    DRAINING = "draining"


#: Told of each change: the server, what it is from now on, and why.
Changed = Callable[["Server", Health, str], None]


def ignore_change(server: "Server", health: Health, reason: str) -> None:
    """Tells nobody."""


class Server:
    """One server.

    Args:
        entry: its configuration.
        rules: when it is believed to be down.
        is_alone: whether there is no other, so that there is nothing to be won by sparing it: failed exchanges do not
            take it down then, as with nginx.
        changed: is told when it goes down or comes up.

    Attributes:
        entry: its configuration.
        label: by which people know it.
        host: without brackets.
        port: to connect to.
        wanted: the state that was asked for; by itself it is up.
        passes_checks: whether active checks find it well; without any, it is.
        active: exchanges and tunnels that are with it now.
        counts: what happened with it, by name.
    """

    def __init__(
        self,
        entry: ServerEntry,
        rules: HealthSection | None = None,
        *,
        is_alone: bool = False,
        changed: Changed = ignore_change,
    ) -> None:
        self.entry = entry
        self.label = entry.label
        host, _, port = entry.address.rpartition(":")
        self.host = host.strip("[]")
        self.port = int(port)
        self.wanted = Health.UP
        self.passes_checks = True
        self.active = 0
        self.counts: Counter[str] = Counter()
        self._rules = rules if rules is not None else HealthSection()
        self._max_fails = 0 if is_alone or not self._rules.fail_timeout else self._rules.max_fails
        self._changed = changed
        self._fails: deque[float] = deque(maxlen=self._max_fails)
        self._spared_until = -math.inf
        self._is_on_trial = False
        self._last_check = True
        self._checks_alike = 0  # in a row; none only while there was none
        self._ramp_began: float | None = None

    @property
    def address(self) -> str:
        """``host:port``, as the configuration has it."""
        return self.entry.address

    @property
    def is_full(self) -> bool:
        """Whether it has as much to do as it may have."""
        return 0 < self.entry.max_connections <= self.active

    def health(self, now: float) -> Health:
        """Whether it gets requests; one that is draining gets them from those clients alone that stick to it."""
        if self.wanted is Health.DOWN or not self.passes_checks or now < self._spared_until:
            return Health.DOWN
        return self.wanted

    def weight(self, now: float) -> float:
        """Its share of the requests beside those of the others: less than configured while it starts slowly."""
        if self._ramp_began is None:
            return self.entry.weight
        share = (now - self._began_at(self._ramp_began)) / self._rules.slow_start
        if share >= 1:
            self._ramp_began = None
            return self.entry.weight
        return self.entry.weight * max(share, _MIN_SHARE)

    def _began_at(self, ramp_began: float) -> float:
        return max(ramp_began, self._spared_until)

    def ask(self, wanted: Health, now: float) -> None:
        """Asks for a state, which holds until another is asked for. What it is busy with goes on in any case."""
        if wanted is self.wanted:
            return
        if self.wanted is Health.DOWN:
            self._begin_ramp(now)
        self.wanted = wanted
        self._changed(self, wanted, "asked for")

    # What exchanges tell

    def failed(self, now: float) -> None:
        """An exchange failed, and it was the server's fault: no connection, no answer, or none that can be understood.

        So many of them within ``fail_timeout`` take it down for as long; the first one after that does so again.
        """
        self.counts["failed"] += 1
        if not self._max_fails or now < self._spared_until:
            return
        self._fails.append(now)
        is_enough = len(self._fails) == self._max_fails and now - self._fails[0] <= self._rules.fail_timeout
        if is_enough or self._is_on_trial:
            self._fails.clear()
            is_news = not self._is_on_trial
            self._is_on_trial = True
            self._spared_until = now + self._rules.fail_timeout
            self._begin_ramp(now)
            if is_news:
                self._changed(self, Health.DOWN, "exchanges fail")

    def succeeded(self, now: float) -> None:
        """An exchange went well, as far as it is up to the server."""
        if self._is_on_trial and now >= self._spared_until:
            self._is_on_trial = False
            self._changed(self, self.wanted, "exchanges succeed")

    # What checks tell

    def checked(self, now: float, *, is_well: bool, detail: str) -> None:
        """A check has ended: ``rise`` in a row bring it up, ``fall`` take it down; the very first one alone may do so.

        A server that checks bring up is not spared any longer for the exchanges that failed.

        Args:
            now: the time.
            is_well: how.
            detail: why, for people.
        """
        is_first = not self._checks_alike
        self._checks_alike = 1 if is_first or is_well != self._last_check else self._checks_alike + 1
        self._last_check = is_well
        if not is_first and self._checks_alike < (self._rules.rise if is_well else self._rules.fall):
            return
        if not is_well and self.passes_checks:
            self.passes_checks = False
            self._changed(self, Health.DOWN, detail)
        elif is_well and (not self.passes_checks or self._is_on_trial):
            self.passes_checks = True
            self._fails.clear()
            self._spared_until = now
            self._is_on_trial = False
            self._begin_ramp(now)
            self._changed(self, self.wanted, detail)

    def _begin_ramp(self, now: float) -> None:
        if self._rules.slow_start:
            self._ramp_began = now


def servers_of(config: ProxyConfig, changed: Changed = ignore_change) -> Sequence[Server]:
    """All servers of a configuration, in its order."""
    is_alone = len(config.server) == 1
    return [Server(entry, config.health, is_alone=is_alone, changed=changed) for entry in config.server]
