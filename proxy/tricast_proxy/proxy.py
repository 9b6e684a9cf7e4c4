"""The proxy: listeners, the nurseries that everything runs in, and how it goes down.

The tree: run > signals > background (timers), connections > listeners. Listeners end first, then the connections,
then what serves them.
"""

import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import ExitStack

import trio

from tricast.connection import Connection
from tricast.descriptors import raise_soft_limit
from tricast.errors import ConnectionLost, leaves
from tricast.logs import Logger, library_logger
from tricast.tls import TlsConnection, load_context
from tricast_proxy.clients import Client
from tricast_proxy.config import ProxyConfig, sped_up
from tricast_proxy.exchange import Choice, Shared
from tricast_proxy.fields import FieldPolicy
from tricast_proxy.heads import Fields, RequestHead
from tricast_proxy.servers import Server
from tricast_proxy.timers import Timers
from tricast_proxy.upstream import Pool

#: Connections taken per wake-up, so that a storm of them does not hold up those that are there.
_ACCEPTS_PER_TURN = 16
_CLOSE_RESTARTING = 1012

#: What starts a proxy in a nursery: ``serve``, with everything but its ``task_status``.
Begin = Callable[..., Awaitable[object]]


class RoundRobin:
    """Each server in turn."""

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers
        self._next = 0

    def choose(self, request: RequestHead | None, peer: str, exclude: Container[Server]) -> Choice | None:  # noqa: ARG002
        """See ``Balancer.choose``."""
        for _ in self._servers:
            server = self._servers[self._next % len(self._servers)]
            self._next += 1
            if server not in exclude:
                return Choice(server, [])
        return None

    def without_cookie(self, fields: Fields) -> Fields:
        """See ``Balancer.without_cookie``."""
        return fields


class Proxy:
    """A running proxy, as ``serve`` hands it to whoever started it.

    Attributes:
        url: where it listens.
        port: where it listens.
        servers: behind it.
        clients: all that are connected.
    """

    def __init__(self, shared: Shared, servers: list[Server], url: str, port: int) -> None:
        self._shared = shared
        self._drain_asked = trio.Event()
        self._stopped = trio.Event()
        self._emptied = trio.Event()
        self.servers = servers
        self.url = url
        self.port = port
        self.clients: set[Client] = set()
        self.is_draining = False

    def drain(self) -> None:
        """Begins to go down: ``serve`` returns when all connections have ended, or the grace is over."""
        self.is_draining = True
        self._drain_asked.set()

    def left(self, client: Client) -> None:
        """Says that a client has gone."""
        self.clients.discard(client)
        if not self.clients:
            self._emptied.set()

    async def wait_empty(self) -> None:
        """Returns when there are no clients; none come any more when this is asked."""
        while self.clients:
            self._emptied = trio.Event()
            await self._emptied.wait()

    async def wait_drain_asked(self) -> None:
        """Returns when ``drain`` was called."""
        await self._drain_asked.wait()

    async def wait_stopped(self) -> None:
        """Returns when the last connection has ended."""
        await self._stopped.wait()

    def stopped(self) -> None:
        """Says that the last connection has ended; called by ``serve``."""
        self._stopped.set()


async def serve(
    config: ProxyConfig,
    *,
    logger: Logger | None = None,
    task_status: trio.TaskStatus[Proxy] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Forwards until drained or cancelled. Cancelling ends all connections at once.

    Args:
        config: the configuration; its timers are divided by ``proxy.speed`` here.
        logger: where to log; the default is the standard library's logger ``tricast``.
        task_status: started with the ``Proxy`` once it listens.

    Raises:
        ConfigError: the certificate cannot be used.
        OSError: the address cannot be had.
    """
    logger = logger if logger is not None else library_logger()
    config = sped_up(config)
    tls = load_context(config.tls)
    servers = [Server(entry) for entry in config.server]
    timers = Timers()
    shared = Shared(
        config,
        RoundRobin(servers),
        FieldPolicy(config.headers),
        Pool(config.upstream, timers),
        timers,
        random.Random(),  # noqa: S311 - jitter
    )
    with ExitStack() as at_the_end, ExitStack() as sockets:
        listeners = await _listen(config, sockets)
        scheme = "http" if tls is None else "https"
        host, port = listeners[0].getsockname()[:2]
        url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        proxy = Proxy(shared, servers, url, port)
        at_the_end.callback(proxy.stopped)
        at_the_end.callback(shared.pool.close)
        async with trio.open_nursery() as background:
            background.start_soon(timers.run)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as listening:

                    def welcome(sock: socket.socket, address: tuple[str, int]) -> None:
                        sock.setblocking(False)
                        peer, peer_port = address[:2]
                        timeout = config.client.send_timeout
                        connection = (
                            Connection(sock, peer, write_timeout=timeout)
                            if tls is None
                            else TlsConnection(
                                sock,
                                peer,
                                tls,
                                write_timeout=timeout,
                                handshake_timeout=config.client.header_timeout,
                            )
                        )
                        if len(proxy.clients) >= config.proxy.max_connections > 0:
                            connection.close()
                            return
                        client = Client(shared, connection, peer_port, port, scheme)
                        proxy.clients.add(client)
                        connections.start_soon(_serve_client, proxy, client, logger)

                    for listener in listeners:
                        listening.start_soon(_accept_forever, listener, welcome)
                    logger.info(f"listening on {url}")
                    task_status.started(proxy)
                    await proxy.wait_drain_asked()
                    listening.cancel_scope.cancel()
                sockets.close()
                connections.start_soon(_end_connections, proxy, connections, config)
            background.cancel_scope.cancel()


async def _end_connections(proxy: Proxy, connections: trio.Nursery, config: ProxyConfig) -> None:
    """Lets what is under way come to its end within the grace, and then cuts the rest."""
    for client in list(proxy.clients):
        client.drain()
    with trio.move_on_after(config.drain.grace):
        await proxy.wait_empty()
    if config.drain.cut == "close-frame":
        for client in list(proxy.clients):
            if client.tunnel is not None:
                client.tunnel.say_goodbye(_CLOSE_RESTARTING)
    connections.cancel_scope.cancel()


async def _accept_forever(listener: socket.socket, welcome: object) -> None:
    assert callable(welcome)
    while True:
        await trio.lowlevel.wait_readable(listener)
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                break
            except OSError:
                await trio.sleep(0.05)
                break
            welcome(sock, address)


async def _serve_client(proxy: Proxy, client: Client, logger: Logger) -> None:
    """The guard around a connection: whatever fails in it is its own affair."""
    try:
        await client.connection.open()
        await client.run()
    except* ConnectionLost:
        pass
    except* Exception as group:
        for error in leaves(group):
            logger.exception("connection failed", peer=client.connection.peer, exc_info=error)
    finally:
        proxy.left(client)
        client.connection.close()


async def _listen(config: ProxyConfig, sockets: ExitStack) -> list[socket.socket]:
    host, port = config.proxy.host, config.proxy.port
    try:
        return await _open(host, port, config.proxy.backlog, sockets)
    except OSError as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise OSError(error.errno, error.strerror, where) from error


async def _open(host: str, port: int, backlog: int, sockets: ExitStack) -> list[socket.socket]:
    found = await trio.socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    for family, kind, protocol, _, address in found:
        listener = sockets.enter_context(socket.socket(family, kind, protocol))
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        chosen = listeners[0].getsockname()[1] if listeners else port
        listener.bind((address[0], chosen, *address[2:]))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.listen(backlog)
        listeners.append(listener)
    return listeners


async def run_program(begin: Begin, logger: Logger) -> None:
    """Forwards as a program does: raises the descriptor limit, and goes down on SIGTERM or SIGINT.

    The first signal drains, the second ends it at once.

    Args:
        begin: ``serve``, with everything but its ``task_status``.
        logger: where to log.

    Raises:
        ConfigError: see ``serve``.
        OSError: see ``serve``.
    """
    raise_soft_limit()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            proxy: Proxy = await nursery.start(begin)
            nursery.start_soon(_obey_signals, signals, proxy, logger, nursery.cancel_scope)
            await proxy.wait_stopped()
            logger.info("stopped")
            nursery.cancel_scope.cancel()


async def _obey_signals(
    signals: AsyncIterator[int], proxy: Proxy, logger: Logger, everything: trio.CancelScope
) -> None:
    async for number in signals:
        name = signal.Signals(number).name
        if proxy.is_draining:
            logger.warning("ending at once", signal=name)
            everything.cancel()
        else:
            logger.info("draining", signal=name, connections=len(proxy.clients))
            proxy.drain()
