"""Listening sockets, and the door: who is let in, and who is told that there is no room."""

import errno
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack, suppress
from functools import partial

import trio

from tricast.certificates import Keys
from tricast.config import Config
from tricast.connection import Connection
from tricast.descriptors import Spare
from tricast.errors import ConnectionLost
from tricast.listeners import open_listeners, url_of
from tricast.logs import Logger
from tricast.runtime import NothingToEnd, Runtime
from tricast.tls import TlsConnection
from tricast.wire.http1 import problem, retry_after

#: Connections taken per wake-up, so that a storm of them does not hold up those that are there: each of them then
#: parses a request in its first step, which takes some 200 µs.
_ACCEPTS_PER_TURN = 16
_REFUSAL_SECONDS = 1.0
#: Which part of its greatest age a connection may be spared of.
_AGE_JITTER = 0.2
#: An accept fails with these for want of something that others may give back.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


#: Serves one connection to its end, and says when it is over.
Serve = Callable[[Connection, Callable[[], None]], Awaitable[None]]


async def listen(sockets: ExitStack, host: str, port: int, config: Config) -> list[socket.socket]:
    """Listening sockets for every address that the host name has, all on the same port.

    Raises:
        OSError: the name cannot be looked up, or the address cannot be had.
    """
    (listeners,) = await listen_in_groups(sockets, host, port, config, groups=1)
    return listeners


async def listen_in_groups(
    sockets: ExitStack, host: str, port: int, config: Config, *, groups: int
) -> list[list[socket.socket]]:
    """As ``listen``, several times on the same port: the kernel spreads connections over the groups (SO_REUSEPORT).

    Raises:
        OSError: the name cannot be looked up, or the address cannot be had; the filename is the host and the port.
    """
    return await open_listeners(sockets, host, port, partial(set_options, config=config), groups=groups)


def set_options(listener: socket.socket, config: Config) -> None:
    """Sets the backlog, and what accepted sockets inherit (on Linux), which saves a system call for each of them.

    May be done again with another configuration; a send buffer that was set stays set.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that vanished acknowledges nothing: without this the kernel goes on trying for a quarter of an hour.
    user_timeout_ms = int(config.limits.write_timeout * 1000)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
    if config.limits.send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.limits.send_buffer)
    listener.listen(config.server.backlog)


def announce(
    listeners: Iterable[socket.socket],
    admin_listeners: Iterable[socket.socket],
    logger: Logger,
    *,
    has_tls: bool,
) -> None:
    """Logs where the server can be reached, in words that programs may look for."""
    for listener in listeners:
        logger.info(f"listening on {url_of(listener, has_tls=has_tls)}")
    for listener in admin_listeners:
        logger.info(f"admin listening on {url_of(listener)}")


class Entrance:
    """Listeners that may be opened and closed while connections come in.

    Args:
        acceptor: takes connections off them.
        nursery: where it does that.
    """

    def __init__(self, acceptor: "Acceptor", nursery: trio.Nursery) -> None:
        self._acceptor = acceptor
        self._nursery = nursery
        self._open: dict[socket.socket, trio.CancelScope] = {}
        self._closed = trio.Event()

    def accept_from(self, listeners: Iterable[socket.socket]) -> None:
        """Accepts from these listeners and no others from now on; does nothing once it is closed."""
        if self._closed.is_set():
            return
        wanted = dict.fromkeys(listeners)
        for listener in self._open.keys() - wanted.keys():
            self._open.pop(listener).cancel()
        for listener in wanted.keys() - self._open.keys():
            scope = self._open[listener] = trio.CancelScope()
            self._nursery.start_soon(self._accept, listener, scope)

    def close(self) -> None:
        """Lets nobody in any more. The listeners stay open, for others who accept from them."""
        self.accept_from(())
        self._closed.set()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Returns when it was closed."""
        await self._closed.wait()

    async def _accept(self, listener: socket.socket, scope: trio.CancelScope) -> None:
        with scope:
            await self._acceptor.accept_forever(listener)


class _Handshake:
    """What a connection is busy with before HTTP begins on it.

    Args:
        connection: it.
    """

    def __init__(self, connection: TlsConnection) -> None:
        self._connection = connection

    def drain(self, retry_after: float) -> None:  # noqa: ARG002 - nothing can be told yet
        """See ``Drainable.drain``: ends it where nothing has come in; otherwise a request is on its way."""
        if not self._connection.has_begun:
            self._connection.close()


class Acceptor:
    """Takes connections off listeners, and turns those away for which there is no room.

    Args:
        runtime: what all connections share.
        serve: serves one connection to its end.
        connections: where it does that.
        spare: the descriptor for the moment when there are no others.
        capacity: how many connections there may be at a time.
        max_refusing: how many are refused politely at a time: their request is read first, so that the answer is seen.
        keys: the certificate that is shown; None for no TLS.
    """

    def __init__(
        self,
        runtime: Runtime,
        serve: Serve,
        connections: trio.Nursery,
        spare: Spare,
        *,
        capacity: int,
        max_refusing: int,
        keys: Keys | None = None,
    ) -> None:
        self._keys = keys
        self._capacity = capacity
        self._inside = 0
        self._runtime = runtime
        self._serve = serve
        self._connections = connections
        self._max_refusing = max_refusing
        self._refusing = 0
        self._spare = spare

    async def accept_forever(self, listener: socket.socket) -> None:
        """Accepts until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(_ACCEPTS_PER_TURN):
                try:
                    sock, address = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    # Else it was the client that broke off before it was accepted (accept(2)).
                    if error.errno in _EXHAUSTED:
                        await self._exhausted(listener, error)
                    break
                self._take(sock, str(address[0]))
            await trio.lowlevel.checkpoint()

    def _take(self, sock: socket.socket, peer: str) -> None:
        connection = self._connection(sock, peer)
        if self._inside >= self._capacity:
            self._refuse(connection)
        else:
            self._inside += 1
            self._runtime.counters.accepted += 1
            if age := self._runtime.config.server.max_connection_age:
                # Not all at the same age: those who came at once are not to come back at once, ever again.
                rotates_after = age * self._runtime.random.uniform(1.0 - _AGE_JITTER, 1.0)
                connection.rotates_at = trio.current_time() + rotates_after
            begins_with = _Handshake(connection) if isinstance(connection, TlsConnection) else NothingToEnd()
            self._runtime.open[connection] = begins_with
            self._connections.start_soon(self._serve, connection, self._left)

    def _connection(self, sock: socket.socket, peer: str) -> Connection:
        sock.setblocking(False)
        limits = self._runtime.config.limits
        if self._keys is None:
            return Connection(sock, peer, write_timeout=limits.write_timeout)
        context = self._keys.context()
        return TlsConnection(
            sock, peer, context, write_timeout=limits.write_timeout, handshake_timeout=limits.head_timeout
        )

    def _left(self) -> None:
        self._inside -= 1

    def _refuse(self, connection: Connection) -> None:
        if self._refusing < self._max_refusing:
            self._refusing += 1
            self._connections.start_soon(self._refuse_politely, connection)
        else:
            # Waiting for a free place would hold up those for whom there is room again. What the client has sent may
            # make the kernel reset the connection behind this answer, so not everybody will see it.
            self._runtime.counters.refused += 1
            if self._keys is None:
                with suppress(ConnectionLost):
                    connection.send_now(_overloaded(self._runtime))
            connection.close()

    async def _refuse_politely(self, connection: Connection) -> None:
        try:
            await self._answer_503(connection)
        finally:
            self._refusing -= 1

    async def _answer_503(self, connection: Connection) -> None:
        self._runtime.counters.refused += 1
        try:
            with trio.move_on_after(_REFUSAL_SECONDS):
                await connection.open()
                await connection.receive()
                await connection.send(_overloaded(self._runtime))
                await connection.linger()
        except ConnectionLost:
            return
        finally:
            connection.close()

    async def _exhausted(self, listener: socket.socket, error: OSError) -> None:
        """Tells one client, on the spare descriptor, that there are no more; then gives the others time to end."""
        self._runtime.logger.warning("no descriptor for a connection", error=error.strerror)
        self._spare.give_up()
        try:
            sock, address = listener.accept()
        except OSError:
            pass
        else:
            await self._answer_503(self._connection(sock, str(address[0])))
        finally:
            self._spare.keep()  # also when this listener is given up meanwhile, for others have it still
        await trio.sleep(0.05)


def _overloaded(runtime: Runtime) -> bytes:
    """The answer for those for whom there is no room; written by hand, for nothing was parsed."""
    seconds = runtime.jitter(runtime.config.limits.retry_after)
    answer = problem(503, "all connections are in use", code="overloaded", headers=(retry_after(seconds),))
    headers = (*answer.headers, (b"content-length", b"%d" % len(answer.body)), (b"connection", b"close"))
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 503 Service Unavailable\r\n%b\r\n%b" % (lines, answer.body)
