"""The server: listeners, the nurseries that everything runs in, and how it goes down.

The tree: run > signals > background (flush, sweep; the log's scope around them), connections > listeners. Listeners
end first, then the connections, then what serves them.
"""

import errno
import gc
import importlib
import random
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial

import trio

from tricast.config import Config
from tricast.connection import Connection
from tricast.descriptors import Spare, raise_soft_limit, room_for_connections
from tricast.errors import ConfigError, ConfigProblem, ConnectionLost
from tricast.http import HttpConnection, Router
from tricast.hub import Hub
from tricast.log.base import Log
from tricast.log.memory import MemoryLog
from tricast.logs import library_logger, program_logger
from tricast.publish import Idempotency
from tricast.routes import admin_routes, public_routes
from tricast.runtime import Handler, Logger, Runtime
from tricast.sweep import Wheel
from tricast.wire.http1 import problem, retry_after

#: Connections taken per wake-up, so that a storm of them does not hold up those that are there.
_ACCEPTS_PER_TURN = 64
#: Connections that are being refused at a time; others wait in the kernel's queue meanwhile.
_MAX_REFUSALS = 16
_REFUSAL_SECONDS = 1.0
#: An accept fails with these for want of something that others may give back.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: How often per second connections are ended while draining.
_DRAIN_STEPS_PER_SECOND = 20


class Server:
    """A running server, as ``serve`` hands it to whoever started it.

    Attributes:
        urls: where it listens; the admin listener is not among them.
        admin_urls: where the admin listener is, if there is one.
        hub: publishes from the same Trio run: ``await server.hub.publish("news", {"n": 1})``.
    """

    def __init__(self, runtime: Runtime, urls: tuple[str, ...], admin_urls: tuple[str, ...]) -> None:
        self._runtime = runtime
        self._drain_asked = trio.Event()
        self._stopped = trio.Event()
        self.urls = urls
        self.admin_urls = admin_urls
        self.hub = runtime.hub

    @property
    def url(self) -> str:
        """The first of ``urls``."""
        return self.urls[0]

    @property
    def port(self) -> int:
        """The port of ``url``."""
        return int(self.url.rpartition(":")[2])

    @property
    def is_draining(self) -> bool:
        """Whether it is going down."""
        return self._runtime.is_draining

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._runtime.open)

    def drain(self) -> None:
        """Begins to go down; ``serve`` returns when all connections have ended or the grace is over."""
        self._runtime.is_draining = True
        self._drain_asked.set()

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
    config: Config,
    *,
    log: Log | None = None,
    logger: Logger | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until drained or cancelled. Cancelling ends all connections at once.

    Args:
        config: the configuration.
        log: where events are kept; the default is what ``config.log`` says.
        logger: where to log; the default is the standard library's logger ``tricast``.
        task_status: started with the ``Server`` once it listens: ``server = await nursery.start(serve, config)``.

    Raises:
        ConfigError: a WebSocket handler cannot be imported.
        OSError: a listener's address cannot be had.
    """
    logger = logger if logger is not None else library_logger()
    log = log or _log_of(config)
    wake = _Bell()
    hub = Hub(log, max_topic_bytes=config.limits.topic_size, wake=wake.ring)
    runtime = Runtime(
        config,
        hub,
        wheel=Wheel(tick=_tick_of(config)),
        randomness=random.Random(),  # noqa: S311 - jitter
        clock=time.time,
        logger=logger,
        handlers=_load_handlers(config),
    )
    idempotency = Idempotency(
        window=config.publish.idempotency_window,
        max_keys=config.publish.idempotency_keys,
        clock=trio.current_time,
    )
    with ExitStack() as sockets:
        routes = public_routes(runtime, idempotency)
        listeners = await _listen(sockets, config.server.host, config.server.port, config.server.backlog)
        admin_listeners: list[socket.socket] = []
        if config.admin.enabled:
            admin_listeners = await _listen(sockets, config.admin.host, config.admin.port, config.server.backlog)
        server = Server(runtime, tuple(map(_url_of, listeners)), tuple(map(_url_of, admin_listeners)))
        async with log.open(hub.committed), trio.open_nursery() as background:
            background.start_soon(_flush_forever, hub, wake)
            background.start_soon(runtime.wheel.run)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as listening:
                    front = _Acceptor(runtime, routes, connections)
                    for listener in listeners:
                        listening.start_soon(front.accept_forever, listener)
                    if admin_listeners:
                        back = _Acceptor(runtime, admin_routes(runtime), connections)
                        for listener in admin_listeners:
                            listening.start_soon(back.accept_forever, listener)
                    _announce(server, logger)
                    task_status.started(server)
                    await server.wait_drain_asked()
                    listening.cancel_scope.cancel()
                sockets.close()
                await _end_connections(runtime)
                connections.cancel_scope.deadline = trio.current_time() + config.drain.grace
            background.cancel_scope.cancel()
        server.stopped()


async def run(config: Config, *, logger: Logger | None = None) -> None:
    """Serves as a program does: raises the descriptor limit, and goes down on SIGTERM or SIGINT.

    The first signal drains, the second ends it at once.

    Raises:
        ConfigError: see ``serve``.
        OSError: see ``serve``.
    """
    logger = logger if logger is not None else program_logger(config.logging)
    before, after = raise_soft_limit()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(partial(serve, config, logger=logger))
            logger.info("descriptors", soft_limit=after, raised_from=before)
            _calm_garbage_collector()
            nursery.start_soon(_obey_signals, signals, server, logger, nursery.cancel_scope)
            await server.wait_stopped()
            logger.info("stopped")
            nursery.cancel_scope.cancel()


async def _obey_signals(
    signals: AsyncIterator[int], server: Server, logger: Logger, everything: trio.CancelScope
) -> None:
    async for number in signals:
        name = signal.Signals(number).name
        if server.is_draining:
            logger.warning("ending at once", signal=name)
            everything.cancel()
        else:
            logger.info("draining", signal=name, connections=server.connections)
            server.drain()


def _calm_garbage_collector() -> None:
    """Keeps the cycle collector from walking what lives as long as the process, again and again.

    A connection makes some twenty container objects and no cycles, so with the default threshold of 700 every 35th
    accept would start a collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


class _Bell:
    """Wakes one task; rings while it is awake are heard when it next waits."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung = trio.Event()


async def _flush_forever(hub: Hub, bell: _Bell) -> None:
    while True:
        await bell.wait()
        for _ in hub.flush():
            await trio.lowlevel.checkpoint()


def _tick_of(config: Config) -> float:
    """A quarter of the shortest interval that is swept for, within what is neither busy nor late."""
    shortest = min(config.sse.keepalive, config.websocket.ping_interval, config.websocket.ping_timeout)
    return min(max(shortest / 4, 0.005), 0.25)


def _log_of(config: Config) -> Log:
    return MemoryLog(
        history=config.events.history,
        history_age=config.events.history_age,
        history_size=config.events.history_size,
        clock=time.time,
    )


def _load_handlers(config: Config) -> dict[str, Handler]:
    handlers: dict[str, Handler] = {}
    problems = []
    for index, entry in enumerate(config.websocket.handler):
        module, _, name = entry.handler.partition(":")
        try:
            handlers[entry.path] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            problems.append(ConfigProblem("configuration", f"websocket.handler.{index}.handler", str(error)))
    if problems:
        raise ConfigError(problems)
    return handlers


# Listening


async def _listen(sockets: ExitStack, host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listening sockets for every address that the host name has, all on the same port."""
    found = await trio.socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    for family, kind, protocol, _, address in found:
        listener = sockets.enter_context(socket.socket(family, kind, protocol))
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it on Linux, which saves a system call each.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Port 0 is chosen with the first address, and then used for all.
        chosen = listeners[0].getsockname()[1] if listeners else port
        listener.bind((address[0], chosen, *address[2:]))
        listener.listen(backlog)
        listeners.append(listener)
    return listeners


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(server: Server, logger: Logger) -> None:
    for url in server.urls:
        logger.info(f"listening on {url}")
    for url in server.admin_urls:
        logger.info(f"admin listening on {url}")


class _Acceptor:
    """Takes connections off listeners, and turns those away for which there is no room.

    Args:
        runtime: what all connections share.
        route: answers requests.
        connections: where each connection's task runs.
    """

    def __init__(self, runtime: Runtime, route: Router, connections: trio.Nursery) -> None:
        limits = runtime.config.limits
        room = room_for_connections(limits.reserved_descriptors)
        self._capacity = min(room, limits.connections or room)
        self._runtime = runtime
        self._route = route
        self._connections = connections
        self._refusals = trio.Semaphore(_MAX_REFUSALS)
        self._spare = Spare()

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
                await self._take(sock, str(address[0]))
            await trio.lowlevel.checkpoint()

    async def _take(self, sock: socket.socket, peer: str) -> None:
        limits = self._runtime.config.limits
        sock.setblocking(False)
        if limits.send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer)
        connection = Connection(sock, peer, write_timeout=limits.write_timeout)
        if len(self._runtime.open) >= self._capacity:
            await self._refuse(connection)
        else:
            self._runtime.counters.accepted += 1
            self._runtime.open[connection] = _Starting()
            self._connections.start_soon(_serve_connection, connection, self._runtime, self._route)

    async def _refuse(self, connection: Connection) -> None:
        # Waiting here for a free place leaves the others in the kernel's queue, instead of spinning.
        try:
            await self._refusals.acquire()
        except BaseException:
            connection.close()
            raise
        self._runtime.counters.refused += 1
        self._connections.start_soon(self._answer_503, connection)

    async def _answer_503(self, connection: Connection) -> None:
        try:
            with trio.move_on_after(_REFUSAL_SECONDS):
                await connection.receive()
                await connection.send(_overloaded(self._runtime))
                await connection.linger()
        except ConnectionLost:
            return
        finally:
            connection.close()
            self._refusals.release()

    async def _exhausted(self, listener: socket.socket, error: OSError) -> None:
        """Tells one client, on the spare descriptor, that there are no more; then gives the others time to end."""
        self._runtime.logger.warning("no descriptor for a connection", error=error.strerror)
        self._spare.give_up()
        try:
            sock, address = listener.accept()
        except OSError:
            pass
        else:
            sock.setblocking(False)
            connection = Connection(sock, str(address[0]), write_timeout=_REFUSAL_SECONDS)
            await self._refusals.acquire()
            self._runtime.counters.refused += 1
            await self._answer_503(connection)
        self._spare.keep()
        await trio.sleep(0.05)


class _Starting:
    """A connection that was accepted and has not run yet: nothing to be told, it sees the draining itself."""

    def drain(self, retry_after: float) -> None:
        """See ``Drainable.drain``."""


def _overloaded(runtime: Runtime) -> bytes:
    """The answer for those for whom there is no room; written by hand, for nothing was parsed."""
    seconds = runtime.jitter(runtime.config.limits.retry_after)
    answer = problem(503, "all connections are in use", code="overloaded", headers=(retry_after(seconds),))
    headers = (*answer.headers, (b"content-length", b"%d" % len(answer.body)), (b"connection", b"close"))
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 503 Service Unavailable\r\n%b\r\n%b" % (lines, answer.body)


# Connections


async def _serve_connection(connection: Connection, runtime: Runtime, route: Router) -> None:
    """One connection from its first byte to its end. The one guard: whatever it raises, it is the only one to end."""
    try:
        async with trio.open_nursery() as nursery:
            stream = await HttpConnection(connection, runtime, route).run()
            if stream is not None:
                await stream.run(nursery)
            nursery.cancel_scope.cancel()
    except* ConnectionLost as lost:
        runtime.counters.lost["reset or timed out"] += 1
        runtime.logger.debug("connection lost", peer=connection.peer, why=str(lost.exceptions[0]))
    except* Exception:
        runtime.counters.failed += 1
        runtime.logger.exception("connection failed", peer=connection.peer)
    finally:
        runtime.open.pop(connection, None)
        connection.close()


async def _end_connections(runtime: Runtime) -> None:
    """Tells every connection to end, spread over ``drain.period``."""
    drain = runtime.config.drain
    everybody = list(runtime.open.items())
    runtime.random.shuffle(everybody)
    steps = max(1, round(drain.period * _DRAIN_STEPS_PER_SECOND))
    for step in range(steps):
        for connection, _ in everybody[step::steps]:
            busy_with = runtime.open.get(connection)
            if busy_with is not None:
                busy_with.drain(runtime.jitter(drain.retry_after))
        if not runtime.open:
            return
        await trio.sleep(drain.period / steps)
