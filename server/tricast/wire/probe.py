"""What ``tricast probe`` and the server that it probes say to each other, beside HTTP and WebSocket themselves."""

import msgspec

#: Under this are the endpoints with which a probe finds out what stands in front of a server.
PROBE_PREFIX = "/.tricast/probe/"
#: The longest that one of them holds anything, in seconds.
LONGEST_HOLD = 7200.0
#: How many nonces one report is about, at most.
MAX_REPORTED = 256


class Echo(msgspec.Struct, kw_only=True):
    """A request as it came to the server.

    Attributes:
        method: as sent.
        target: as sent.
        http_version: as the request line has it: ``1.1``.
        headers: (name, value) in wire order, names in the case in which they came; bytes as Latin-1.
        peer: the address at the other end.
        conn: the connection's number at this server.
        number: the request's on its connection, from 1 on.
        server: a name for the process that answers.
        nonce: what the probe calls the request.
    """

    method: str
    target: str
    http_version: str
    headers: list[tuple[str, str]]
    peer: str
    conn: int
    number: int
    server: str
    nonce: str


class Sunk(msgspec.Struct, kw_only=True):
    """A request's body as it came to the server.

    Attributes:
        expect: the Expect header, or None.
        is_chunked: whether it came in chunks.
        bytes: how long it was.
        timeline: when pieces of it came, in seconds since the request did, and how long each was.
        end: when it was complete.
        server: a name for the process that answers.
        nonce: what the probe calls the request.
    """

    expect: str | None
    is_chunked: bool
    bytes: int
    timeline: list[tuple[float, int]]
    end: float
    server: str
    nonce: str


class Record(msgspec.Struct, kw_only=True):
    """What the server saw of one request and of its connection. Times are seconds since the request came.

    Attributes:
        nonce: what the probe calls it.
        kind: the endpoint: ``sse``, ``ws``, ``poll``, ``echo``, ``once``, ``sink``.
        conn: the connection's number at this server.
        number: the request's on its connection.
        peer: the address at the other end.
        calls: how often a request with this nonce has come.
        received_bytes: what came in behind the head.
        sent_bytes: what went out.
        last_received: when the last byte came in, the head's included, and those of later requests on its connection.
        last_sent: when the last byte went out.
        end: how the connection ended: ``fin``, ``rst``, ``own`` for the server's side, ``close`` for the peer's close
            frame, ``garbled`` for frames that are none, ``timeout`` where nothing that was sent was acknowledged,
            ``tls``; None while it is open.
        ended: when it did.
        close_code: of the peer's WebSocket close frame, 1005 for none.
        age: how long ago the request came, when this was told.
    """

    nonce: str
    kind: str
    conn: int
    number: int
    peer: str
    calls: int = 1
    received_bytes: int = 0
    sent_bytes: int = 0
    last_received: float = 0.0
    last_sent: float | None = None
    end: str | None = None
    ended: float | None = None
    close_code: int | None = None
    age: float = 0.0


class Report(msgspec.Struct, kw_only=True):
    """What one server process saw of the connections that it was asked about.

    Attributes:
        server: a name for the process.
        seen: nonce to record; those of which it knows nothing are not there.
    """

    server: str
    seen: dict[str, Record]
