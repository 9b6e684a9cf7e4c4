"""The server: listeners, the nurseries that everything runs in, and how it goes down.

The tree: run > signals > background (flush, sweep; the log's scope around them), connections > listeners. Listeners
end first, then the connections, then what serves them.
"""

import gc
import importlib
import inspect
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from functools import partial

import trio

from tricast.config import Config
from tricast.connection import Connection
from tricast.descriptors import Spare, raise_soft_limit, room_for_connections
from tricast.errors import ConfigError, ConfigProblem, ConnectionLost, leaf
from tricast.http import HttpConnection, Router
from tricast.hub import Hub
from tricast.listening import Acceptor, listen, url_of
from tricast.log.base import Log
from tricast.log.memory import MemoryLog
from tricast.logs import library_logger, program_logger
from tricast.publish import Idempotency
from tricast.routes import RESERVED_PATHS, admin_routes, public_routes
from tricast.runtime import Handler, Logger, Runtime
from tricast.sweep import Wheel
from tricast.tls import load_context

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
        ConfigError: a WebSocket handler cannot be imported, or the certificate cannot be used.
        OSError: a listener's address cannot be had.
    """
    logger = logger if logger is not None else library_logger()
    tls = load_context(config.tls)
    log = log or _log_of(config)
    wake = _Bell()
    hub = Hub(
        log,
        max_topic_bytes=config.limits.topic_size,
        max_event_bytes=config.publish.max_event,
        wake=wake.ring,
    )
    runtime = Runtime(
        config,
        hub,
        wheel=Wheel(tick=_tick_of(config)),
        randomness=random.Random(),  # noqa: S311 - jitter
        clock=time.time,
        logger=logger,
        handlers=load_handlers(config),
    )
    idempotency = Idempotency(
        window=config.publish.idempotency_window,
        max_keys=config.publish.idempotency_keys,
        clock=trio.current_time,
    )
    # Two scopes: what the drain closes first, and what stays to the end.
    with ExitStack() as at_the_end, ExitStack() as sockets:
        spare = Spare()
        at_the_end.callback(spare.give_up)
        routes = public_routes(runtime, idempotency)
        listeners = await listen(sockets, config.server.host, config.server.port, config)
        admin_listeners: list[socket.socket] = []
        if config.admin.enabled:
            admin_listeners = await listen(at_the_end, config.admin.host, config.admin.port, config)
        urls = tuple(url_of(listener, has_tls=tls is not None) for listener in listeners)
        server = Server(runtime, urls, tuple(map(url_of, admin_listeners)))
        at_the_end.callback(server.stopped)
        async with log.open(hub.committed), trio.open_nursery() as background:
            background.start_soon(_flush_forever, hub, wake)
            background.start_soon(runtime.wheel.run)
            if admin_listeners:
                _open_admin_door(runtime, admin_listeners, background, spare)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as listening:
                    serve_one = partial(_serve_connection, runtime, routes)
                    acceptor = Acceptor(
                        runtime,
                        serve_one,
                        connections,
                        spare,
                        capacity=_capacity_of(config),
                        max_refusing=config.limits.reserved_descriptors // 2,
                        tls=tls,
                    )
                    for listener in listeners:
                        listening.start_soon(acceptor.accept_forever, listener)
                    _announce(server, logger)
                    task_status.started(server)
                    await server.wait_drain_asked()
                    listening.cancel_scope.cancel()
                sockets.close()
                await _end_connections(runtime, connections)
                connections.cancel_scope.deadline = trio.current_time() + config.drain.grace
            background.cancel_scope.cancel()


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
            if before == after:
                logger.info("descriptors", limit=after)
            else:
                logger.info("descriptors", limit=after, raised_from=before)
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
    accept would start a collection. At 10,000 a collection of the youngest takes less than a millisecond; of the older
    ones there is one for 50,000 connections.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 100, 20)


def _announce(server: Server, logger: Logger) -> None:
    for url in server.urls:
        logger.info(f"listening on {url}")
    for url in server.admin_urls:
        logger.info(f"admin listening on {url}")


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
    websocket, limits = config.websocket, config.limits
    shortest = min(
        config.sse.keepalive,
        websocket.ping_interval,
        websocket.ping_timeout,
        config.poll.timeout,
        limits.head_timeout,
        limits.idle_timeout,
    )
    return min(max(shortest / 4, 0.005), 0.25)


def _open_admin_door(
    runtime: Runtime, listeners: Sequence[socket.socket], background: trio.Nursery, spare: Spare
) -> None:
    """Lets those in who run the server, to the very end: that it is not ready must be seen while it goes down.

    Their connections come out of the reserve, so that health can be asked for when all others are in use.
    """
    serve_one = partial(_serve_connection, runtime, admin_routes(runtime))
    reserve = runtime.config.limits.reserved_descriptors
    acceptor = Acceptor(runtime, serve_one, background, spare, capacity=reserve // 4, max_refusing=reserve // 8)
    for listener in listeners:
        background.start_soon(acceptor.accept_forever, listener)


def _capacity_of(config: Config) -> int:
    room = room_for_connections(config.limits.reserved_descriptors)
    return min(room, config.limits.connections or room)


def _log_of(config: Config) -> Log:
    return MemoryLog(
        history=config.events.history,
        history_age=config.events.history_age,
        history_size=config.events.history_size,
        clock=time.time,
    )


def load_handlers(config: Config) -> dict[str, Handler]:
    """Imports the configured application handlers, by path.

    Raises:
        ConfigError: one cannot be imported or is none, or its path is in use.
    """
    handlers: dict[str, Handler] = {}
    taken = set(RESERVED_PATHS)
    problems = []
    for index, entry in enumerate(config.websocket.handler):
        key = f"websocket.handler.{index}"
        if entry.path in taken:
            problems.append(ConfigProblem("configuration", f"{key}.path", f"{entry.path} is in use already"))
        taken.add(entry.path)
        try:
            handlers[entry.path] = _import_handler(entry.handler)
        except Exception as error:  # noqa: BLE001 - whatever the module raises when it is imported
            message = " ".join(f"{type(error).__name__}: {error}".split())  # a problem is one line
            problems.append(ConfigProblem("configuration", f"{key}.handler", message))
    if problems:
        raise ConfigError(problems)
    return handlers


def _import_handler(where: str) -> Handler:
    module, _, name = where.partition(":")
    handler: Handler = getattr(importlib.import_module(module), name)
    if not inspect.iscoroutinefunction(handler):
        raise TypeError(f"{where} is not an async def function")
    return handler


# Connections


async def _serve_connection(runtime: Runtime, route: Router, connection: Connection, left: Callable[[], None]) -> None:
    """One connection from its first byte to its end. The one guard: whatever it raises, it is the only one to end."""
    try:
        async with trio.open_nursery() as nursery:
            await connection.open()
            stream = await HttpConnection(connection, runtime, route).run()
            if stream is not None:
                await stream.run(nursery)
            nursery.cancel_scope.cancel()
    except* ConnectionLost as group:
        lost = leaf(group)
        runtime.counters.lost[lost.reason] += 1
        runtime.logger.debug("connection lost", peer=connection.peer, why=str(lost))
    except* Exception:
        runtime.counters.failed += 1
        runtime.logger.exception("connection failed", peer=connection.peer)
    finally:
        runtime.open.pop(connection, None)
        connection.close()
        left()


async def _end_connections(runtime: Runtime, connections: trio.Nursery) -> None:
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
        if not connections.child_tasks:
            return
        await trio.sleep(drain.period / steps)
