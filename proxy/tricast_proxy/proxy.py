"""The proxy: listeners, the nurseries that everything runs in, and how it goes down.

The tree: run > signals > background (timers, health checks, the admin listener), connections > listeners. Listeners
end first, then the connections, then what serves them.
"""

import gc
import itertools
import random
import secrets
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import trio

from tricast.certificates import load_encryption
from tricast.connection import Connection
from tricast.descriptors import raise_soft_limit
from tricast.errors import ConnectionLost, leaves
from tricast.lifetime import Lifetime
from tricast.listeners import open_listeners, url_of
from tricast.logs import Logger, library_logger
from tricast.tls import TlsConnection
from tricast_proxy import admin
from tricast_proxy.balance import Balancer
from tricast_proxy.clients import Client
from tricast_proxy.coalesce import Coalescer
from tricast_proxy.config import FaultEntry, ProxyConfig, divided, sped_up
from tricast_proxy.counted import CountedSocket
from tricast_proxy.faults import FaultPlan
from tricast_proxy.fields import FieldPolicy, Hop
from tricast_proxy.health import check_forever, log_changes
from tricast_proxy.overview import ConnectionView, Counters
from tricast_proxy.pump import Pump
from tricast_proxy.reports import Reports
from tricast_proxy.servers import Health, Server, servers_of
from tricast_proxy.shared import Background, Shared
from tricast_proxy.timers import Timers
from tricast_proxy.upstream import Pool

#: Connections taken per wake-up, so that a storm of them does not hold up those that are there.
_ACCEPTS_PER_TURN = 16
#: RFC 6455 7.4.1 and its registry: the service is restarting.
_CLOSE_RESTARTING = 1012
#: So long after the grace, clients may still read the last that they are told.
_LAST_WORDS_SECONDS = 1.0

#: What starts a proxy in a nursery: ``serve``, with everything but its ``task_status``.
Begin = Callable[..., Awaitable[object]]


class Proxy(Lifetime):
    """A running proxy, as ``serve`` hands it to whoever started it; an ``Overview``.

    Args:
        shared: what all exchanges share.
        servers: behind it.
        faults: as they were configured.
        url: where it listens.

    Attributes:
        servers: behind it.
        url: where it listens.
        admin_urls: where the admin listener is, if there is one.
    """

    def __init__(self, shared: Shared, servers: Sequence[Server], faults: Sequence[FaultEntry], url: str) -> None:
        super().__init__()
        self._shared = shared
        self._faults = faults
        self._clients: set[Client] = set()
        self._emptied = trio.Event()
        self.servers = servers
        self.url = url
        self.admin_urls: tuple[str, ...] = ()

    @property
    def port(self) -> int:
        """The port of ``url``."""
        return int(self.url.rpartition(":")[2])

    @property
    def grace(self) -> float:
        """For how many seconds draining waits."""
        return self._shared.config.drain.grace

    @property
    def counters(self) -> Counters:
        """See ``Overview.counters``."""
        return self._shared.counters

    @property
    def faults(self) -> Sequence[FaultEntry]:
        """See ``Overview.faults``."""
        return self._faults

    def set_faults(self, faults: Sequence[FaultEntry]) -> None:
        """See ``Overview.set_faults``."""
        self._faults = tuple(faults)
        speed = self._shared.config.proxy.speed
        self._shared.faults.replace([divided(entry, speed) for entry in faults])

    def connections(self) -> Iterator[ConnectionView]:
        """See ``Overview.connections``."""
        now = trio.current_time()
        return (client.view(now) for client in tuple(self._clients))

    def ask_of(self, server: Server, wanted: Health) -> None:
        """See ``Overview.ask_of``."""
        server.ask(wanted, trio.current_time())
        if wanted is not Health.UP:
            self._shared.pool.close(server)

    @property
    def clients(self) -> tuple[Client, ...]:
        """All that are connected."""
        return tuple(self._clients)

    def came(self, client: Client) -> None:
        """Says that a client is there; called by ``serve``."""
        self._shared.counters.accepted += 1
        self._clients.add(client)

    def left(self, client: Client) -> None:
        """Says that a client has gone; called by ``serve``."""
        self._clients.discard(client)
        view = client.view(trio.current_time())
        self.counters.received += view.received
        self.counters.sent += view.sent
        if not self._clients:
            self._emptied.set()

    async def wait_empty(self) -> None:
        """Returns when there are no clients."""
        while self._clients:
            self._emptied = trio.Event()
            await self._emptied.wait()


async def serve(
    config: ProxyConfig,
    *,
    logger: Logger | None = None,
    about: Mapping[str, object] | None = None,
    is_behind: bool = False,
    task_status: trio.TaskStatus[Proxy] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Forwards until drained or cancelled. Cancelling ends all connections at once.

    Args:
        config: the configuration; its timers are divided by ``proxy.speed`` here.
        logger: where to log; the default is the standard library's logger ``tricast``.
        about: what the log says of it when it listens; None is what ``about`` tells of its configuration.
        is_behind: whether it has clients of its own making alone, so that nobody need know where it listens.
        task_status: started with the ``Proxy`` once it listens.

    Raises:
        ConfigError: the certificate cannot be used.
        OSError: an address cannot be had.
    """
    logger = logger if logger is not None else library_logger()
    faults = config.fault
    told = about if about is not None else about_one(config)
    config = sped_up(config)
    encryption = load_encryption(config.tls)
    tls = encryption.context if encryption is not None else None
    randomness = random.Random()  # noqa: S311 - jitter
    with ExitStack() as at_the_end, ExitStack() as sockets:
        (listeners,) = await open_listeners(
            sockets, config.proxy.host, config.proxy.port, partial(_prepare, config=config)
        )
        async with trio.open_nursery() as background:
            shared, servers = _shared_of(config, logger, randomness, background)
            proxy = Proxy(shared, servers, faults, url_of(listeners[0], has_tls=tls is not None))
            at_the_end.callback(proxy.stopped)
            at_the_end.callback(shared.pool.close)
            at_the_end.callback(shared.pump.close)
            background.start_soon(shared.timers.run)
            background.start_soon(shared.pump.run)
            background.start_soon(check_forever, servers, config.health, randomness)
            if config.admin.enabled:
                proxy.admin_urls = await background.start(admin.serve, config.admin, proxy, logger)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as listening:
                    door = _Door(proxy, shared, connections, tls)
                    for listener in listeners:
                        listening.start_soon(door.accept_forever, listener)
                        url = url_of(listener, has_tls=tls is not None)
                        if is_behind:
                            logger.debug(f"behind it: {config.proxy.profile} on {url}")
                        else:
                            logger.info(f"listening on {url}", **told)
                    for url in proxy.admin_urls:
                        logger.info(f"admin listening on {url}")
                    task_status.started(proxy)
                    await proxy.wait_drain_asked()
                    listening.cancel_scope.cancel()
                sockets.close()
                connections.start_soon(_end_connections, proxy, connections, config)
            background.cancel_scope.cancel()


def about_one(config: ProxyConfig) -> dict[str, object]:
    """Who a proxy is, and for whom: what the log says of it."""
    speed = {"speed": f"{config.proxy.speed:g}"} if config.proxy.speed != 1 else {}
    return {"profile": config.proxy.profile, **speed, "servers": ",".join(server.address for server in config.server)}


def _shared_of(
    config: ProxyConfig, logger: Logger, randomness: random.Random, nursery: trio.Nursery
) -> tuple[Shared, Sequence[Server]]:
    background = Background(nursery, logger)
    is_shared = config.response.cache == "coalesce"
    servers = servers_of(config, log_changes(logger))
    timers, counters = Timers(), Counters()
    return Shared(
        config,
        Balancer(servers, config.balance, randomness, trio.current_time),
        FieldPolicy(config.headers, time.time, partial(secrets.token_hex, 8)),
        Pool(config.upstream, timers, counters),
        timers,
        Pump(),
        randomness,
        counters,
        logger,
        FaultPlan(config.fault, config.faults.seed),
        itertools.count(),
        Coalescer(config.response, background) if is_shared else None,
        background,
        Reports(config, logger),
    ), servers


class _Door:
    """Lets clients in.

    Args:
        proxy: keeps account of them.
        shared: what all exchanges share.
        connections: where they are served.
        tls: what they share of TLS; None for none.
    """

    def __init__(self, proxy: Proxy, shared: Shared, connections: trio.Nursery, tls: ssl.SSLContext | None) -> None:
        self._proxy = proxy
        self._shared = shared
        self._connections = connections
        self._tls = tls

    async def accept_forever(self, listener: socket.socket) -> None:
        """Accepts until cancelled."""
        own_port = listener.getsockname()[1]
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(_ACCEPTS_PER_TURN):
                try:
                    sock, address = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    # No descriptors, or a client that broke off before it was accepted (accept(2)).
                    self._shared.logger.warning("cannot accept", error=error.strerror)
                    await trio.sleep(0.05)
                    break
                self._take(sock, address[0], address[1], own_port)
            await trio.lowlevel.checkpoint()

    def _take(self, sock: socket.socket, peer: str, port: int, own_port: int) -> None:
        config = self._shared.config
        if len(self._proxy.clients) >= config.proxy.max_connections > 0:
            self._shared.counters.refused["connections"] += 1
            sock.close()
            return
        counted = CountedSocket(sock)
        timeout, scheme = config.client.send_timeout, "http"
        connection = Connection(counted, peer, write_timeout=timeout)
        if self._tls is not None:
            scheme = "https"
            connection = TlsConnection(
                counted,
                peer,
                self._tls,
                write_timeout=timeout,
                handshake_timeout=config.client.header_timeout,
            )
        client = Client(self._shared, connection, counted, Hop(peer, port, scheme, own_port))
        self._proxy.came(client)
        self._connections.start_soon(_serve_client, self._proxy, client, self._shared.logger)


async def _serve_client(proxy: Proxy, client: Client, logger: Logger) -> None:
    """The guard around a connection: whatever fails in it is its own affair."""
    try:
        with client.scope:
            await client.run()
    except* ConnectionLost:
        pass
    except* Exception as group:
        for error in leaves(group):
            logger.exception("connection failed", peer=client.connection.peer, exc_info=error)
    finally:
        proxy.left(client)
        client.connection.close()


async def _end_connections(proxy: Proxy, connections: trio.Nursery, config: ProxyConfig) -> None:
    """Lets what is under way come to its end within the grace, and then cuts the rest."""
    for client in proxy.clients:
        client.drain()
    with trio.move_on_after(config.drain.grace):
        await proxy.wait_empty()
    for client in proxy.clients:
        client.cut(_CLOSE_RESTARTING if config.drain.cut == "close-frame" else 0)
    with trio.move_on_after(_LAST_WORDS_SECONDS):
        await proxy.wait_empty()
    connections.cancel_scope.cancel()


def _prepare(listener: socket.socket, config: ProxyConfig) -> None:
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what is accepted
    listener.listen(config.proxy.backlog)


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
            _calm_garbage_collector()
            nursery.start_soon(_obey_signals, signals, proxy, logger, nursery.cancel_scope)
            await proxy.wait_stopped()
            nursery.cancel_scope.cancel()
        logger.info("stopped")


def _calm_garbage_collector() -> None:
    """Keeps the cycle collector from walking what lives as long as the process, and all connections, again and again.

    A request makes dozens of container objects, and an exchange that waits keeps them, so with the default threshold of
    700 a few requests would start a collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 100, 20)


async def _obey_signals(
    signals: AsyncIterator[int], proxy: Proxy, logger: Logger, everything: trio.CancelScope
) -> None:
    async for number in signals:
        name = signal.Signals(number).name
        if proxy.is_draining:
            logger.warning("ending at once", signal=name)
            everything.cancel()
        else:
            count = len(proxy.clients)
            connections = f"{count} connection{'' if count == 1 else 's'}"
            logger.info(
                f"draining: waiting up to {proxy.grace:g} s for {connections}; again ends it at once", signal=name
            )
            proxy.drain()
