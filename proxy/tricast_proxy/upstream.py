"""Connections to servers: opening them, and keeping those that can be used again.

A connection goes back to the pool only when both sides are done with it to the last byte (RFC 9112 6.3): what else
comes on it could only be taken for the answer to somebody else's request.
"""

import math
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from tricast.command_line import in_words
from tricast.connection import Connection
from tricast.errors import ConnectionLost, TricastError, leaves
from tricast_proxy.config import UpstreamSection
from tricast_proxy.overview import Counters
from tricast_proxy.servers import Health, Server
from tricast_proxy.timers import Timers


class ConnectFailed(TricastError):
    """No connection to a server could be had.

    Attributes:
        has_timed_out: whether that is because nobody answered in time.
    """

    def __init__(self, detail: str, *, has_timed_out: bool = False) -> None:
        super().__init__(detail)
        self.has_timed_out = has_timed_out


class Upstream:
    """A connection to a server.

    Args:
        connection: it.
        server: which.

    Attributes:
        connection: it.
        server: which.
        data: what came in and nobody has taken yet.
        served: how many requests it has had.
        was_reset: whether sending found it reset: the kernel tells that once, and whoever receives then sees an end.
    """

    __slots__ = ("connection", "data", "served", "server", "was_reset")

    def __init__(self, connection: Connection, server: Server) -> None:
        self.connection = connection
        self.server = server
        self.data = bytearray()
        self.served = 0
        self.was_reset = False

    def end(self, *, with_reset: bool) -> None:
        """Closes it, with a reset or without."""
        if with_reset:
            self.connection.reset()
        else:
            self.connection.close()


def why_refused(error: OSError) -> str:
    """Why no connection could be had, in words; trio hides that behind an error that only says so."""
    cause = error.__cause__
    causes = list(leaves(cause)) if isinstance(cause, BaseExceptionGroup) else [cause]
    return next((in_words(one) for one in causes if isinstance(one, OSError)), in_words(error))


class _Idle:
    """A connection in the pool, with its timer.

    Args:
        upstream: it.
        pool: where it is.
    """

    __slots__ = ("_pool", "has_ended", "upstream")

    def __init__(self, upstream: Upstream, pool: deque["_Idle"]) -> None:
        self._pool = pool
        self.upstream = upstream
        self.has_ended = False

    def due(self, now: float) -> None:  # noqa: ARG002 - its timer is never put off
        """See ``Waits.due``."""
        if not self.has_ended:
            self._pool.remove(self)
            self.has_ended = True
            self.upstream.connection.close()


class _Attempt:
    """To connect, with its timer."""

    __slots__ = ("has_ended", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.has_ended = False

    def due(self, now: float) -> None:  # noqa: ARG002 - its timer is never put off
        """See ``Waits.due``."""
        if not self.has_ended:
            self.has_ended = True
            self.scope.cancel()


class Pool:
    """Connections to all servers, those that wait to be used again among them.

    Args:
        config: how many may wait, and how long.
        timers: closes those that waited for too long, and ends attempts that take too long.
        counters: of what happens.
    """

    def __init__(self, config: UpstreamSection, timers: Timers, counters: Counters) -> None:
        self._config = config
        self._timers = timers
        self._idle: dict[Server, deque[_Idle]] = {}
        self._counters = counters

    def take(self, server: Server) -> Upstream | None:
        """A connection that waits to be used again; None when there is none that still can."""
        idle = self._idle.get(server)
        while idle:
            entry = idle.pop()
            entry.has_ended = True
            self._timers.forget_one()
            # What the server has said meanwhile, be it its goodbye, is not the answer to anything.
            with suppress(ConnectionLost):
                if entry.upstream.connection.receive_now() is None:
                    self._counters.reused += 1
                    return entry.upstream
            entry.upstream.connection.close()
        return None

    def give_back(self, upstream: Upstream) -> None:
        """Keeps a connection that both sides are done with, or closes it: there are enough, or its server leaves."""
        idle = self._idle.setdefault(upstream.server, deque())
        is_worn_out = upstream.served >= self._config.keepalive_requests > 0
        if len(idle) >= self._config.keepalive or is_worn_out or upstream.server.wanted is not Health.UP:
            upstream.connection.close()
            return
        entry = _Idle(upstream, idle)
        idle.append(entry)
        if self._config.keepalive_timeout < math.inf:
            self._timers.add(trio.current_time() + self._config.keepalive_timeout, entry)

    async def open(self, server: Server) -> Upstream:
        """Opens a connection to a server.

        Raises:
            ConnectFailed: it could not be had.
        """
        with self._in_time():
            try:
                stream = await trio.open_tcp_stream(server.host, server.port)
            except OSError as error:
                raise ConnectFailed(f"cannot connect to {server.label}: {why_refused(error)}") from None
            sock = socket.socket(fileno=stream.socket.detach())
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._counters.opened += 1
            connection = Connection(sock, server.label, write_timeout=self._config.send_timeout)
            return Upstream(connection, server)
        raise ConnectFailed(f"{server.label} did not answer in {self._config.connect_timeout:g} s", has_timed_out=True)

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        # Not by trio's own deadline: it is met before what the kernel has told is acted on, and a server that took the
        # connection while this process had no time to look would be blamed for it.
        attempt = _Attempt()
        self._timers.add(trio.current_time() + self._config.connect_timeout, attempt)
        try:
            with attempt.scope:
                yield
        finally:
            if not attempt.has_ended:
                attempt.has_ended = True
                self._timers.forget_one()

    def close(self, server: Server | None = None) -> None:
        """Closes the connections that wait, of one server or of all."""
        for known, idle in self._idle.items():
            while idle and server in (None, known):
                entry = idle.pop()
                entry.has_ended = True
                self._timers.forget_one()
                entry.upstream.connection.close()
