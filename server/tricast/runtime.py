"""What the connections of one server share. Built by ``server.py``, handed to everything below it."""

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any, Protocol

from tricast.access.access import Access
from tricast.access.identity import Identity
from tricast.config import Config
from tricast.connection import Connection
from tricast.errors import RemoteProtocolError, Unavailable
from tricast.hub import Hub
from tricast.logs import Logger
from tricast.sweep import Wheel
from tricast.wire.http1 import Response, encode_headers, problem_of

#: An application's WebSocket handler: any ``async def handler(session)``.
Handler = Callable[[Any], Awaitable[object]]

_SERVER = (b"server", b"tricast")


class Drainable(Protocol):
    """Whatever a connection is busy with, seen from a server that goes down."""

    def drain(self, retry_after: float) -> None:
        """Brings the connection to its end: tells the client when to come back (in seconds), and does not wait."""
        ...


class Leased(Protocol):
    """A stream whose client was let in for a while, and may bring something newer meanwhile."""

    def renew(self, identity: Identity) -> None:
        """Lives on with a newer identity of the same account, or on an error as before.

        Raises:
            Forbidden: it is another account's, or does not allow all that the stream follows.
            RemoteProtocolError: the stream is ending.
        """
        ...


class NothingToEnd:
    """A connection that has not begun, or is over already: it sees the draining itself, or need not."""

    def drain(self, retry_after: float) -> None:
        """See ``Drainable.drain``."""


class Counters:
    """What happened, counted. Plain numbers: they are read when somebody asks for the metrics."""

    def __init__(self) -> None:
        self.accepted = 0
        self.refused = 0
        self.failed = 0
        self.unavailable = 0
        self.lost: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()  # by what was refused: a code of ours, or the key of a limit
        self.requests: Counter[tuple[str, int]] = Counter()
        self.streams: Counter[str] = Counter()


class Runtime:
    """The shared parts of one server.

    Attributes:
        config: the configuration.
        hub: the hub.
        wheel: where keepalives, pings and dead-peer checks are done.
        random: for jitter only, so it need not be secret.
        logger: where to log.
        counters: what happened.
        handlers: path to application WebSocket handler.
        access: who may do what.
        leases: the event streams that can be renewed, by their names.
        open: every connection with what it is busy with.
        at_end: told how it ended, for connections that somebody asked that for: ``left``, ``own`` where this side
            ended it, or the reason of a ``ConnectionLost``.
        is_draining: whether the server is going down.
    """

    def __init__(
        self,
        config: Config,
        hub: Hub,
        *,
        wheel: Wheel,
        randomness: random.Random,
        clock: Callable[[], float],
        logger: Logger,
        handlers: dict[str, Handler],
        access: Access,
    ) -> None:
        self.config = config
        self.hub = hub
        self.wheel = wheel
        self.random = randomness
        self.logger = logger
        self.handlers = handlers
        self.access = access
        self.leases: dict[str, Leased] = {}
        self.counters = Counters()
        self.open: dict[Connection, Drainable] = {}
        self.at_end: dict[Connection, Callable[[str], None]] = {}
        self.is_draining = False
        self._clock = clock
        self._common = (0, b"")
        self._serial = 0

    def common_headers(self) -> bytes:
        """What every response carries, as lines of its head: ``Date`` (RFC 9110 5.6.7) and ``Server``.

        Made once a second.
        """
        now = int(self._clock())
        if self._common[0] != now:
            self._common = (now, encode_headers(((b"date", formatdate(now, usegmt=True).encode()), _SERVER)))
        return self._common[1]

    def refusal(self, error: RemoteProtocolError | Unavailable) -> Response:
        """The answer to what cannot be done, which is counted."""
        self.counters.refusals[error.reason] += 1
        return problem_of(error)

    def time_left(self, identity: Identity) -> float:
        """The seconds for which somebody has been let in; infinite where that has no end."""
        return math.inf if identity.expires_at is None else identity.expires_at - self._clock()

    def next_serial(self) -> int:
        """A number for a connection, which no other one of this server has."""
        self._serial += 1
        return self._serial

    def jitter(self, seconds: float) -> float:
        """The seconds and up to half as many again, so that clients that were told the same do not come at once."""
        return seconds * self.random.uniform(1.0, 1.5)
