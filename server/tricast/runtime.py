"""What the connections of one server share. Built by ``server.py``, handed to everything below it."""

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any, Protocol

import trio

from tricast.access.access import Access
from tricast.access.identity import Certified, Identity
from tricast.accounts import Accounts
from tricast.addresses import Networks
from tricast.certificates import Keys
from tricast.config import Config
from tricast.connection import Connection
from tricast.errors import Forbidden, RemoteProtocolError, Unavailable
from tricast.hub import Hub
from tricast.leases import Leases
from tricast.logs import Logger
from tricast.memory import Watermark
from tricast.places import Places
from tricast.quotas import Buckets
from tricast.returns import Returns
from tricast.sweep import Turnstile, Wheel
from tricast.wire.heads import EMPTY_LINES, HeadLimits
from tricast.wire.http1 import Response, encode_headers, problem_of, retry_after

#: An application's WebSocket handler: any ``async def handler(session)``.
Handler = Callable[[Any], Awaitable[object]]

_SERVER = (b"server", b"tricast")
#: RFC 6585 4, RFC 9110 15.6.4: too many requests, and not now.
_TRY_AGAIN = (429, 503)
#: Each reads 64 KiB from the log and sends them, which takes half a millisecond on a busy machine.
_CATCH_UPS_PER_TURN = 4
#: To unwind a connection takes some 200 µs, and when a proxy goes down, all of its connections end at the same moment.
_ENDS_PER_TURN = 4
#: Each is a signature and a key exchange: half a millisecond with RSA, a quarter with ECDSA.
_HANDSHAKES_PER_TURN = 4
#: What a request line has beside the target: the method, the version and two spaces.
_BESIDE_TARGET = 64


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
        head_limits: what it says of the heads of requests.
        hub: the hub.
        wheel: where keepalives, pings and dead-peer checks are done.
        catching_up: what everybody passes who reads on from the log, for each part that is read.
        ending: what every connection passes that its peer has ended, or that is given up.
        shaking_hands: what everybody passes who shakes hands in TLS, for each step of that.
        random: for jitter only, so it need not be secret.
        logger: where to log.
        counters: what happened.
        handlers: path to application WebSocket handler.
        access: who may do what.
        leases: the event streams that can be renewed.
        proxies: whose word counts on whom they forward for.
        places: how many connections each client may have.
        open: every connection with what it is busy with.
        at_end: told how it ended, for connections that somebody asked that for: ``left``, ``own`` where this side
            ended it, or the reason of a ``ConnectionLost``.
        keys: the certificate; None where there is no TLS.
        accounts: what each account has and does.
        memory: whether there is enough of it for new work.
        messages: how many messages and control frames each WebSocket may send.
        returns: when those come back whom a server that goes down sends away.
        log_recovered: set when the log can be read again that could not; another one from then on.
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
        keys: Keys | None = None,
        access: Access,
        leases: Leases | None = None,
    ) -> None:
        self.config = config
        limits = config.limits
        self.head_limits = HeadLimits(
            limits.target_size + _BESIDE_TARGET, limits.head_size, limits.head_size, limits.head_fields, EMPTY_LINES
        )
        self.hub = hub
        self.wheel = wheel
        self.catching_up = Turnstile(per_turn=_CATCH_UPS_PER_TURN)
        self.ending = Turnstile(per_turn=_ENDS_PER_TURN)
        self.shaking_hands = Turnstile(per_turn=_HANDSHAKES_PER_TURN)
        self.random = randomness
        self.logger = logger
        self.handlers = handlers
        self.keys = keys
        self.access = access
        self.leases = leases if leases is not None else Leases()
        self.proxies = Networks(config.server.trusted_proxies)
        self.places = Places(config.limits, self.proxies, clock=trio.current_time, jitter=self.jitter)
        self.counters = Counters()
        self.open: dict[Connection, Drainable] = {}
        self.at_end: dict[Connection, Callable[[str], None]] = {}
        self.returns = Returns(config.drain, randomness)
        self.log_recovered = trio.Event()
        hub.recovered = self._tell_of_recovery
        self.is_leaving = False
        self.is_draining = False
        self.accounts = Accounts(config, clock=trio.current_time)
        self.memory = Watermark(config.limits.memory, logger=logger)
        rate, burst = config.websocket.message_rate, config.websocket.message_burst
        self.messages: Buckets[object] = Buckets(rate, burst, clock=trio.current_time)
        self._clock = clock
        self._common = (0, b"")
        self._serial = 0
        self._warned: set[str] = set()

    def _tell_of_recovery(self) -> None:
        self.log_recovered.set()
        self.log_recovered = trio.Event()

    def common_headers(self) -> bytes:
        """What every response carries, as lines of its head: ``Date`` (RFC 9110 5.6.7) and ``Server``.

        Made once a second.
        """
        now = int(self._clock())
        if self._common[0] != now:
            self._common = (now, encode_headers(((b"date", formatdate(now, usegmt=True).encode()), _SERVER)))
        return self._common[1]

    def refusal(self, error: RemoteProtocolError | Unavailable) -> Response:
        """The answer to what cannot be done, which is counted; to what may be tried again, it says when."""
        self.counters.refusals[error.reason] += 1
        answer = problem_of(error)
        if answer.status in _TRY_AGAIN and all(name != b"retry-after" for name, _ in answer.headers):
            seconds = self.jitter(self.config.limits.retry_after)
            answer = answer._replace(headers=(*answer.headers, retry_after(seconds)))
        return answer

    def check_memory(self) -> None:
        """Takes no new work while the process takes too much memory.

        Raises:
            Unavailable: it does.
        """
        if self.memory.is_over:
            seconds = self.jitter(self.config.limits.retry_after)
            detail = "the server has no memory for new work"
            raise Unavailable(detail, code="overloaded", retry_after=seconds, reason="limits.memory")

    def certified(self, connection: Connection) -> Certified | None:
        """Who the client is by its certificate, which was good when the connection began, and has to be so still."""
        certified = connection.certified
        return certified if certified is not None and certified.expires_at > self._clock() else None

    def check_certified(self, connection: Connection) -> None:
        """Returns if the client may publish, as far as certificates are concerned.

        Raises:
            Forbidden: it has shown none, and has to; or it has expired since.
        """
        if not self.config.publish.require_client_certificate:
            return
        if connection.certified is None:
            detail = "publishing takes a client certificate of an authority that this server trusts"
            raise Forbidden(detail, code="client-certificate-missing")
        if self.certified(connection) is None:
            raise Forbidden("the client certificate has expired", code="client-certificate-expired")

    def time_left(self, identity: Identity) -> float:
        """The seconds for which somebody has been let in; infinite where that has no end."""
        return math.inf if identity.expires_at is None else identity.expires_at - self._clock()

    def warn_once(self, event: str, **about: object) -> None:
        """Logs what many clients may do, and whoever runs the server should hear of once."""
        if event not in self._warned:
            self._warned.add(event)
            self.logger.warning(event, **about, told="once")

    def next_serial(self) -> int:
        """A number for a connection, which no other one of this server has."""
        self._serial += 1
        return self._serial

    def jitter(self, seconds: float) -> float:
        """The seconds and up to half as many again, so that clients that were told the same do not come at once."""
        return seconds * self.random.uniform(1.0, 1.5)
