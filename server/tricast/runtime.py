"""What the connections of one server share. Built by ``server.py``, handed to everything below it."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any, Protocol

from tricast.config import Config
from tricast.connection import Connection
from tricast.errors import RemoteProtocolError, Unavailable
from tricast.hub import Hub
from tricast.logs import Logger
from tricast.returns import Returns
from tricast.sweep import Turnstile, Wheel
from tricast.wire.http1 import Response, encode_headers, problem_of

#: An application's WebSocket handler: any ``async def handler(session)``.
Handler = Callable[[Any], Awaitable[object]]

_SERVER = (b"server", b"tricast")
#: Each reads 64 KiB from the log and sends them, which takes half a millisecond on a busy machine.
_CATCH_UPS_PER_TURN = 4


class Drainable(Protocol):
    """Whatever a connection is busy with, seen from a server that goes down."""

    def drain(self, retry_after: float) -> None:
        """Brings the connection to its end: tells the client when to come back (in seconds), and does not wait."""
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
        catching_up: what everybody passes who reads on from the log, for each part that is read.
        random: for jitter only, so it need not be secret.
        logger: where to log.
        counters: what happened.
        handlers: path to application WebSocket handler.
        open: every connection with what it is busy with.
        at_end: told how it ended, for connections that somebody asked that for: ``left``, ``own`` where this side
            ended it, or the reason of a ``ConnectionLost``.
        returns: when those come back whom a server that goes down sends away.
        is_leaving: whether the server is about to go down, and new work is better given to another one.
        is_draining: whether it goes down, and takes no new work.
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
    ) -> None:
        self.config = config
        self.hub = hub
        self.wheel = wheel
        self.catching_up = Turnstile(per_turn=_CATCH_UPS_PER_TURN)
        self.random = randomness
        self.logger = logger
        self.handlers = handlers
        self.counters = Counters()
        self.open: dict[Connection, Drainable] = {}
        self.at_end: dict[Connection, Callable[[str], None]] = {}
        self.returns = Returns(config.drain, randomness)
        self.is_leaving = False
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

    def next_serial(self) -> int:
        """A number for a connection, which no other one of this server has."""
        self._serial += 1
        return self._serial

    def jitter(self, seconds: float) -> float:
        """The seconds and up to half as many again, so that clients that were told the same do not come at once."""
        return seconds * self.random.uniform(1.0, 1.5)
