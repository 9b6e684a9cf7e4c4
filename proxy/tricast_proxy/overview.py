"""What the proxy tells of itself: its connections, what was counted, and one line for each request."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

from tricast.logs import Logger
from tricast_proxy.config import FaultEntry
from tricast_proxy.servers import Health, Server


class State(Enum):
    """What a client's connection is busy with."""

    IDLE = "idle"  # nothing: the next request has not begun
    HEAD = "head"  # some of a request's head has come, or of a TLS handshake
    REQUEST = "request"  # the request's body is on its way
    WAITING = "waiting"  # for the server's answer
    RESPONSE = "response"  # the answer is on its way
    TUNNEL = "tunnel"  # bytes both ways


class ConnectionView(NamedTuple):
    """A client's connection as it is at the moment.

    Attributes:
        peer: the client's address and port.
        state: what it is busy with.
        request: method and target of the request that it is busy with; empty for none.
        server: the label of the server that has it; empty for none.
        received: bytes that came from the client.
        sent: bytes that went to it.
        age: seconds since it was accepted.
        idle_received: seconds since anything came from the client.
        idle_sent: seconds since anything was sent to it.
    """

    peer: str
    state: State
    request: str
    server: str
    received: int
    sent: int
    age: float
    idle_received: float
    idle_sent: float


class Counters:
    """What has happened since the beginning; counted where it happens.

    Attributes:
        accepted: connections of clients.
        requests: answers by the class of their status, such as ``2xx``; tunnels are ``1xx``.
        tunnels: connections that became one.
        retries: attempts behind the first one of a request.
        opened: connections to servers.
        reused: requests that went on a connection that was there already.
        cuts: exchanges and tunnels that did not come to their proper end, by the word that says why.
        refused: what the proxy has answered itself instead of asking a server, by the word that says why.
        received: bytes from clients that have left.
        sent: bytes to clients that have left.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.requests: Counter[str] = Counter()
        self.tunnels = 0
        self.retries = 0
        self.opened = 0
        self.reused = 0
        self.cuts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.received = 0
        self.sent = 0

    def answered(self, status: int) -> None:
        """Counts an answer."""
        self.requests[f"{status // 100}xx"] += 1


class Overview(Protocol):
    """The proxy as whoever runs it sees it, and what can be asked of it."""

    @property
    def servers(self) -> Sequence[Server]:
        """Those behind it."""
        ...

    @property
    def counters(self) -> Counters:
        """What has happened."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether it goes down."""
        ...

    @property
    def faults(self) -> Sequence[FaultEntry]:
        """What goes wrong on purpose, as it was configured."""
        ...

    def connections(self) -> Iterable[ConnectionView]:
        """The clients' connections that are open."""
        ...

    def drain(self) -> None:
        """Begins to go down."""
        ...

    def ask_of(self, server: Server, wanted: Health) -> None:
        """Asks for a state of a server; connections to it that wait for use are closed unless it is up."""
        ...

    def set_faults(self, faults: Sequence[FaultEntry]) -> None:
        """Has other things go wrong from now on.

        Raises:
            ConfigError: they cannot be.
        """
        ...


# The access log


class Access(NamedTuple):
    """A request that has come to its end, one way or other.

    Attributes:
        peer: the client's address.
        method: as sent.
        target: as sent, without what is secret in it.
        status: what the client was told; 0 for nothing.
        sent: bytes of the answer's body, or all of a tunnel's to the client.
        seconds: from its head to its end.
        server: the label of the server that answered, or was asked last; empty for none.
        why: how it ended, in a word.
    """

    peer: str
    method: bytes
    target: bytes
    status: int
    sent: int
    seconds: float
    server: str
    why: str

    def fields(self) -> dict[str, Any]:
        """The same for a log: nothing in it can begin a line or move a cursor, and nothing is lost."""
        return {
            "peer": self.peer,
            "method": escaped(self.method),
            "target": escaped(self.target),
            "status": self.status,
            "bytes": self.sent,
            "seconds": round(self.seconds, 3),
            "server": self.server,
            "why": self.why,
        }


def log_access(logger: Logger, access: Access) -> None:
    """Writes the line of one request, as text or JSON, whichever the logger writes."""
    logger.info("request", **access.fields())


_NOT_PRINTABLE = re.compile(rb"[^ -\[\]-~]")


def escaped(data: bytes) -> str:
    r"""What a client has sent, with control characters, backslashes and what is not ASCII as ``\xNN``."""
    return _NOT_PRINTABLE.sub(lambda match: b"\\x%02x" % ord(match[0]), data).decode("ascii")
