"""Every deadline and limit of the client, with its default."""

import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """How patient a client is, and how much it takes. All times are in seconds.

    Attributes:
        connect_timeout: for name, TCP and TLS together.
        first_bytes_timeout: for the WebSocket handshake, and for the first bytes of an event stream. A proxy
            that buffers whole responses never delivers them, which is how it is found out.
        silence_timeout: how long nothing at all may be heard on a connection. Longer than the keepalive of
            the server and than its ``poll.timeout``; a WebSocket is pinged after half of it.
        answer_timeout: for the answer to a publish.
        backoff_first: the longest wait after the first failure; it doubles with every further one.
        backoff_longest: where that doubling ends. A connection that held so long makes up for past failures.
        retry_longest: the longest wait that a server can ask for.
        max_message_bytes: the largest event, and the largest answer to a poll. More ends the subscription.
        publish_attempts: how often publishing is tried when the connection fails.
        ssl_context: how to verify the server behind an ``https`` URL; None trusts what the system trusts.
    """

    connect_timeout: float = 10.0
    first_bytes_timeout: float = 5.0
    silence_timeout: float = 60.0
    answer_timeout: float = 30.0
    backoff_first: float = 0.5
    backoff_longest: float = 30.0
    retry_longest: float = 300.0
    max_message_bytes: int = 4 * 2**20
    publish_attempts: int = 4
    ssl_context: ssl.SSLContext | None = None
