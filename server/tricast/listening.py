"""Listening sockets, and the door: who is let in, and who is told that there is no room."""

import errno
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Protocol

import trio

from tricast.activation import activated_listeners
from tricast.addresses import is_of_this_machine, of_peer
from tricast.certificates import Keys
from tricast.config import SYSTEMD_HOST, UNIX_HOST, Config
from tricast.connection import Connection
from tricast.descriptors import Spare
from tricast.errors import ConnectionLost, LimitExceeded, RemoteProtocolError, Unavailable
from tricast.exposure import exposures
from tricast.introduction import be_introduced
from tricast.listeners import open_listeners, url_of
from tricast.logs import Logger
from tricast.runtime import Drainable, NothingToEnd, Runtime
from tricast.tls import TlsConnection
from tricast.unix_sockets import open_unix_listener
from tricast.wire.http1 import encode_response

#: Connections taken per wake-up, so that a storm of them does not hold up those that are there: each of them then
#: parses a request in its first step, which takes some 200 µs. With 16 instead of 4, thousands that were thrown out and
#: come back at once made every turn last 15 ms.
_ACCEPTS_PER_TURN = 4
_REFUSAL_SECONDS = 1.0
_NO_ROOM = 503
_KEEPALIVE_SECONDS = 5
#: Which part of its greatest age a connection may be spared of.
_AGE_JITTER = 0.2
#: An accept fails with these for want of something that others may give back.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Door(Protocol):
    """Where a connection has come in."""

    async def enter(self, connection: Connection) -> bool:
        """Does all that comes before HTTP; returns False for who must not come in, and has been told so.

        Raises:
            ConnectionLost: the peer is gone, or cannot be agreed with.
        """
        ...

    def left(self, connection: Connection) -> None:
        """Says that the connection is over."""
        ...


#: Serves one connection to its end.
Serve = Callable[[Connection, Door], Awaitable[None]]


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

    Of a Unix socket, and of what systemd has opened, there is only one: all groups take from the same queue.

    Raises:
        OSError: the name cannot be looked up, or the address cannot be had; the filename is the host and the port.
    """
    prepare = partial(set_options, config=config)
    if host.startswith(UNIX_HOST):
        mode = int(config.server.unix_mode, 8)
        opened = [await open_unix_listener(sockets, host.removeprefix(UNIX_HOST), mode, prepare)]
    elif host.startswith(SYSTEMD_HOST):
        opened = activated_listeners(sockets, host.removeprefix(SYSTEMD_HOST), prepare)
    else:
        return await open_listeners(sockets, host, port, prepare, groups=groups)
    copies = [[sockets.enter_context(listener.dup()) for listener in opened] for _ in range(groups - 1)]
    return [opened, *copies]


def set_options(listener: socket.socket, config: Config) -> None:
    """Sets the backlog, and what accepted sockets inherit (on Linux), which saves a system call for each of them.

    May be done again with another configuration; a send buffer that was set stays set.
    """
    if listener.family != socket.AF_UNIX:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that vanished acknowledges nothing: without this the kernel goes on trying for a quarter of an hour.
        user_timeout_ms = min(int(config.limits.write_timeout * 1000), 2**31 - 1)  # the most there can be (tcp(7))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
        # Where nothing is sent either, as to who waits for a poll or is idle, the kernel asks whether the peer is
        # there; it has as long as that to answer.
        keepalive_seconds = min(max(1, round(config.limits.write_timeout)), 32_767)  # the most there can be (tcp(7))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive_seconds)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)
        # Beside what is on its way, on which the network decides: so it costs no speed, however far a client is.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, config.limits.send_ahead)
        if config.limits.send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.limits.send_buffer)
    listener.listen(config.server.backlog)


def announce(
    listeners: Sequence[socket.socket],
    admin_listeners: Iterable[socket.socket],
    config: Config,
    logger: Logger,
) -> None:
    """Logs where the server can be reached, in words that programs may look for; and warns where others can do that."""
    has_tls = config.tls.certificate != ""
    for listener in listeners:
        logger.info(f"listening on {url_of(listener, has_tls=has_tls)}")
    for listener in admin_listeners:
        logger.info(f"admin listening on {url_of(listener)}")
    if not all(is_of_this_machine(of_peer(it.getsockname())) for it in listeners):
        for exposure in exposures(config):
            logger.warning(exposure)


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


class _Arrival:
    """What a connection is busy with before its proxy has said whose it is.

    Args:
        connection: it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def drain(self, retry_after: float) -> None:  # noqa: ARG002 - nobody is there yet who could be told
        """See ``Drainable.drain``."""
        self._connection.close()


class Acceptor:
    """Takes connections off listeners, and turns those away for whom there is no room. See ``Door``.

    Args:
        runtime: what all connections share.
        serve: serves one connection to its end.
        connections: where it does that.
        spare: the descriptor for the moment when there are no others.
        capacity: how many connections there may be at a time.
        max_refusing: how many are refused politely at a time: their request is read first, so that the answer is seen.
        keys: the certificate that is shown; None for no TLS.
        is_public: whether it is for clients: then they have limits of their own, and proxies may introduce them.
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
        is_public: bool = False,
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
        self._is_public = is_public
        self._has_introductions = is_public and runtime.config.server.proxy_protocol
        # Here, and not made anew for each connection: a bound method is as large as an object with two slots.
        self._let_go = runtime.ending.pass_through
        self._turn = runtime.shaking_hands.pass_through

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
                self._take(sock, of_peer(address))
            await trio.lowlevel.checkpoint()

    def _take(self, sock: socket.socket, peer: str) -> None:
        connection = self._connection(sock, peer)
        try:
            self._check(connection)
        except (RemoteProtocolError, Unavailable) as error:
            self._refuse(connection, error)
            return
        self._inside += 1
        self._runtime.counters.accepted += 1
        if age := self._runtime.config.server.max_connection_age:
            # Not all at the same age: those who came at once are not to come back at once, ever again.
            rotates_after = age * self._runtime.random.uniform(1.0 - _AGE_JITTER, 1.0)
            connection.rotates_at = trio.current_time() + rotates_after
        self._runtime.open[connection] = _Arrival(connection) if self._has_introductions else _beginning_of(connection)
        self._connections.start_soon(self._serve, connection, self)

    def _check(self, connection: Connection) -> None:
        """Lets those pass for whom there is room, as far as that can be known already.

        Raises:
            RemoteProtocolError: it must not come in, or not so soon.
            Unavailable: there is no room for anybody.
        """
        if self._has_introductions and connection.peer not in self._runtime.proxies:
            raise RemoteProtocolError(
                "only proxies may connect here, those in server.trusted_proxies",
                code="proxy-protocol-untrusted",
                status=403,
                closes=True,
            )
        if self._inside >= self._capacity:
            raise self._overloaded("limits.connections")
        if self._is_public and not self._has_introductions:
            self._runtime.places.arrive(connection, connection.peer)

    def _overloaded(self, reason: str) -> Unavailable:
        seconds = self._runtime.jitter(self._runtime.config.limits.retry_after)
        return Unavailable("all connections are in use", code="overloaded", retry_after=seconds, reason=reason)

    def _connection(self, sock: socket.socket, peer: str) -> Connection:
        sock.setblocking(False)
        limits = self._runtime.config.limits
        if limits.send_buffer and sock.family == socket.AF_UNIX:  # which does not inherit it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer)
        if self._keys is None:
            return Connection(
                sock,
                peer,
                write_timeout=limits.write_timeout,
                write_rate=limits.write_rate,
                max_unsent=limits.unsent,
                let_go=self._let_go,
            )
        return TlsConnection(
            sock,
            peer,
            self._keys.context(),
            write_timeout=limits.write_timeout,
            write_rate=limits.write_rate,
            max_unsent=limits.unsent,
            let_go=self._let_go,
            handshake_timeout=limits.head_timeout,
            turn=self._turn,
        )

    async def enter(self, connection: Connection) -> bool:
        """See ``Door.enter``."""
        if self._has_introductions and not await self._is_introduced(connection):
            return False
        await connection.open()
        return True

    async def _is_introduced(self, connection: Connection) -> bool:
        """Whether the client that its proxy names may come in; otherwise it has been told why not."""
        try:
            await be_introduced(connection, self._runtime.config.limits.head_timeout)
        except RemoteProtocolError as error:
            await self._turn_away(connection, error, is_introduced=False)
            return False
        self._runtime.open[connection] = _beginning_of(connection)
        try:
            self._runtime.places.arrive(connection, connection.peer)
        except LimitExceeded as error:
            await self._turn_away(connection, error)
            return False
        return True

    def left(self, connection: Connection) -> None:
        """See ``Door.left``."""
        self._inside -= 1
        self._runtime.places.give_back(connection)

    # Those who are turned away

    def _refuse(self, connection: Connection, error: RemoteProtocolError | Unavailable) -> None:
        """Turns it away without waiting for it here."""
        if self._has_time_for(connection, error):
            self._refusing += 1
            self._connections.start_soon(self._refuse_politely, connection, error)
        else:
            self._dismiss(connection, error)

    async def _turn_away(
        self, connection: Connection, error: RemoteProtocolError, *, is_introduced: bool = True
    ) -> None:
        """Turns it away in its own task. See ``_tell``."""
        if self._has_time_for(connection, error):
            self._refusing += 1
            await self._refuse_politely(connection, error, is_introduced=is_introduced)
        else:
            self._dismiss(connection, error)

    def _has_time_for(self, connection: Connection, error: RemoteProtocolError | Unavailable) -> bool:
        """Whether this is worth a task and a handshake: not for each of the thousands that one client may open."""
        if self._refusing >= self._max_refusing:
            return False
        is_its_own_doing = isinstance(error, RemoteProtocolError) and error.status != _NO_ROOM
        return not is_its_own_doing or self._runtime.places.is_told(connection.peer)

    def _dismiss(self, connection: Connection, error: RemoteProtocolError | Unavailable) -> None:
        """Turns it away at once.

        Waiting for a free place would hold up those for whom there is room again. What the client has sent may make
        the kernel reset the connection behind this answer, so not everybody will see it.
        """
        answer = self._answer(connection, error)
        if self._keys is None:
            with suppress(ConnectionLost):
                connection.send_now(answer)
        connection.close()

    async def _refuse_politely(
        self, connection: Connection, error: RemoteProtocolError | Unavailable, *, is_introduced: bool = True
    ) -> None:
        try:
            await self._tell(connection, error, is_introduced=is_introduced)
        finally:
            self._refusing -= 1

    async def _tell(
        self, connection: Connection, error: RemoteProtocolError | Unavailable, *, is_introduced: bool
    ) -> None:
        """Turns it away so that it sees why, if it can.

        Args:
            connection: it.
            error: why.
            is_introduced: whether a request may follow; otherwise, with TLS, nobody is there who would understand.
        """
        answer = self._answer(connection, error)
        try:
            with trio.move_on_after(_REFUSAL_SECONDS):
                if is_introduced:
                    await connection.open()
                    await connection.receive()
                if is_introduced or self._keys is None:
                    await connection.send(answer)
                    await connection.linger()
        except ConnectionLost:
            return
        finally:
            connection.close()

    def _answer(self, connection: Connection, error: RemoteProtocolError | Unavailable) -> bytes:
        """The answer for those who are turned away, who are counted."""
        self._runtime.counters.refused += 1
        self._runtime.logger.debug("connection refused", why=error.reason, **connection.named())
        return encode_response(self._runtime.refusal(error)._replace(closes=True))

    async def _exhausted(self, listener: socket.socket, error: OSError) -> None:
        """Tells one client, on the spare descriptor, that there are no more; then gives the others time to end."""
        self._runtime.logger.warning("no descriptor for a connection", error=error.strerror)
        self._spare.give_up()
        try:
            sock, address = listener.accept()
        except OSError:
            pass
        else:
            await self._tell(
                self._connection(sock, of_peer(address)), self._overloaded("descriptors"), is_introduced=True
            )
        finally:
            self._spare.keep()  # also when this listener is given up meanwhile, for others have it still
        await trio.sleep(0.05)


def _beginning_of(connection: Connection) -> Drainable:
    """What the connection is busy with first."""
    return _Handshake(connection) if isinstance(connection, TlsConnection) else NothingToEnd()
