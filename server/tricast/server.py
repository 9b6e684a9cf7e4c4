"""The server: listeners, the nurseries that everything runs in, and how it goes down.

The tree: run > signals > background (flush, sweep; the log's scope around them), connections > listeners. Listeners
end first, then the connections, then what serves them.
"""

import importlib
import inspect
import math
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from tricast import metrics
from tricast.access.access import Access
from tricast.access.uses import SharedUses
from tricast.certificates import open_keys
from tricast.config import UNIX_HOST, Config, ServerTlsSection, differences, workers_of
from tricast.connection import Connection
from tricast.descriptors import Spare, raise_soft_limit, room_for_connections
from tricast.errors import ConfigError, ConfigProblem, ConnectionLost, Unavailable, leaf
from tricast.garbage import calm_collector, collect_young
from tricast.http import HttpConnection, Router
from tricast.hub import Hub
from tricast.leases import Leases
from tricast.lifetime import Lifetime
from tricast.listeners import url_of
from tricast.listening import Acceptor, Door, Entrance, announce, listen
from tricast.log.base import Log
from tricast.logs import Logger, library_logger, log_problems, program_logger
from tricast.routes import RESERVED_PATHS, admin_routes, public_routes
from tricast.runtime import Handler, Runtime
from tricast.service_manager import ServiceManager
from tricast.stores import announce_log, log_of
from tricast.sweep import Wheel, share_out
from tricast.terminal import Terminal

#: How often per second connections are ended while draining.
_DRAIN_STEPS_PER_SECOND = 20


#: What SIGHUP does to a server; returns whether there was anything to do but to go down.
HangUp = Callable[["Server"], bool]


class Share(NamedTuple):
    """What a process has of a server that consists of several, from the one that supervises them.

    Attributes:
        listeners: where it lets clients in.
        others: listeners of other processes, which it can take over (``Server.accept_from``). The server closes its
            copies of both when it goes down.
        admin_listeners: the same for the admin listener.
        boards: where all of them leave their numbers for the metrics.
        folder: what they have in common beside that, and nobody else; None where there is none.
        tickets: what all of them remember of tickets that were used.
    """

    listeners: Sequence[socket.socket]
    others: Sequence[socket.socket]
    admin_listeners: Sequence[socket.socket]
    boards: metrics.Noticeboards
    folder: Path | None = None
    tickets: SharedUses | None = None


class Server(Lifetime):
    """A running server, as ``serve`` hands it to whoever started it.

    Attributes:
        urls: where it listens; the admin listener is not among them.
        admin_urls: where the admin listener is, if there is one.
        hub: publishes from the same Trio run: ``await server.hub.publish("news", {"n": 1})``.
    """

    def __init__(
        self,
        runtime: Runtime,
        urls: tuple[str, ...],
        admin_urls: tuple[str, ...],
        entrance: Entrance,
        admin_entrance: Entrance,
    ) -> None:
        super().__init__()
        self._runtime = runtime
        self._entrance = entrance
        self._admin_entrance = admin_entrance
        self.urls = urls
        self.admin_urls = admin_urls
        self.hub = runtime.hub

    @property
    def url(self) -> str:
        """The first of ``urls``."""
        return self.urls[0]

    @property
    def port(self) -> int:
        """The port of ``url``; 0 where that is a Unix socket."""
        return 0 if self.url.startswith(UNIX_HOST) else int(self.url.rpartition(":")[2])

    @property
    def has_tls(self) -> bool:
        """Whether it speaks TLS, and nothing else."""
        return self._runtime.keys is not None

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._runtime.open)

    def accept_from(self, listeners: Iterable[socket.socket]) -> None:
        """Lets clients in by these listeners and no others, until it goes down."""
        self._entrance.accept_from(listeners)

    def close_doors(self) -> None:
        """Lets nobody in any more, also not by the admin listener. Those who are in are served as before."""
        self._entrance.close()
        self._admin_entrance.close()

    def renew_certificate(self, config: ServerTlsSection | None = None) -> None:
        """Shows the certificate that is in its files now to all who come from now on, and ends nobody's connection.

        Args:
            config: where its files are; the default is that they are where they were.

        Raises:
            ConfigError: it cannot be used, and then nothing has changed; or there is no TLS.
        """
        if self._runtime.keys is None:
            raise ConfigError([ConfigProblem("configuration", "tls.certificate", "there is none in use")])
        self._runtime.keys.renew(config)

    def drain(self) -> None:
        """See ``Lifetime.drain``."""
        self._runtime.is_leaving = True
        # A notice is for those who might come in yet.
        if not self._runtime.config.drain.notice or self._entrance.is_closed:
            self._runtime.is_draining = True
        super().drain()


async def serve(
    config: Config,
    *,
    log: Log | None = None,
    logger: Logger | None = None,
    share: Share | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until drained or cancelled. Cancelling ends all connections at once.

    This is one process, whatever ``config.server.workers`` says: see ``tricast.run`` for several.

    Args:
        config: the configuration.
        log: where events are kept; the default is what ``config.log`` says.
        logger: where to log; the default is the standard library's logger ``tricast``.
        share: what to listen on, for a process that is one of several; the default is to open ``config.server``'s
            own address.
        task_status: started with the ``Server`` once it listens: ``server = await nursery.start(serve, config)``.

    Raises:
        ConfigError: a WebSocket handler cannot be imported, or the certificate or the log cannot be used.
        LogUnavailable: the log cannot be used.
        OSError: a listener's address cannot be had.
    """
    logger = logger if logger is not None else library_logger()
    keys = open_keys(config.tls, clock=time.time, logger=logger)
    used_log = log or log_of(config, logger)
    wake = _Bell()
    uses = None if share is None else share.tickets
    access = Access(config.auth, clock=time.time, logger=logger, uses=uses)
    randomness = random.Random()  # noqa: S311 - jitter
    hub = Hub(
        used_log,
        max_topic_bytes=config.limits.topic_size,
        max_event_bytes=config.publish.max_event,
        max_topic_subscribers=config.limits.subscribers_per_topic,
        wake=wake.ring,
    )
    runtime = Runtime(
        config,
        hub,
        wheel=Wheel(tick=_tick_of(config)),
        randomness=randomness,
        clock=time.time,
        logger=logger,
        handlers=load_handlers(config),
        keys=keys,
        access=access,
        leases=Leases(share.folder if share is not None and access.is_on else None),
    )
    # Two scopes: what the drain closes first, and what stays to the end.
    with ExitStack() as at_the_end, ExitStack() as sockets:
        spare = Spare()
        at_the_end.callback(spare.give_up)
        expose = metrics.alone(runtime) if share is None else share.boards.exposing(runtime)
        routes = public_routes(runtime, expose)
        listeners, admin_listeners = await _listeners_of(config, share, sockets, at_the_end)
        async with hub.open(), access.open(), trio.open_nursery() as background:
            background.start_soon(_flush_forever, hub, wake)
            background.start_soon(runtime.wheel.run)
            background.start_soon(runtime.memory.watch)
            background.start_soon(runtime.leases.serve)
            for turnstile in (runtime.catching_up, runtime.ending, runtime.shaking_hands):
                background.start_soon(turnstile.run)
            admin_entrance = _admin_entrance(runtime, expose, background, spare)
            admin_entrance.accept_from(admin_listeners)
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
                        keys=keys,
                        is_public=True,
                    )
                    entrance = Entrance(acceptor, listening)
                    entrance.accept_from(listeners)
                    urls = tuple(url_of(listener, has_tls=keys is not None) for listener in listeners)
                    admin_urls = tuple(map(url_of, admin_listeners))
                    server = Server(runtime, urls, admin_urls, entrance, admin_entrance)
                    at_the_end.callback(server.stopped)
                    if share is None:
                        _announce_all(listeners, admin_listeners, config, logger, is_log_configured=log is None)
                    else:
                        background.start_soon(share.boards.post_forever, runtime)
                    task_status.started(server)
                    await server.wait_drain_asked()
                    with trio.move_on_after(config.drain.notice):
                        await entrance.wait_closed()
                    runtime.is_draining = True
                    entrance.close()
                sockets.close()
                await _end_connections(runtime, connections)
                connections.cancel_scope.deadline = trio.current_time() + config.drain.grace
            background.cancel_scope.cancel()


async def run(config: Config, *, logger: Logger | None = None, reload: Callable[[], Config] | None = None) -> None:
    """Serves as a program of one process does: raises the descriptor limit, and goes down on SIGTERM or SIGINT.

    The first signal drains, the second ends it at once. SIGHUP drains, too, when it comes because the terminal was
    closed; otherwise it renews the certificate. A service manager that the environment names is told how it is.

    Args:
        config: the configuration.
        logger: where to log; the default is stderr.
        reload: loads the configuration again for SIGHUP; the default is that it does not change.

    Raises:
        ConfigError: see ``serve``.
        OSError: see ``serve``.
    """
    logger = logger if logger is not None else program_logger(config.logging)
    before, after = raise_soft_limit()

    async def begun(server: Server, nursery: trio.Nursery) -> None:
        if before == after:
            logger.info("descriptors", limit=after)
        else:
            logger.info("descriptors", limit=after, raised_from=before)
        manager.ready(_status_of(server))
        nursery.start_soon(manager.keep_watched, str)  # that this task gets its turn is all there is to tell
        await server.wait_drain_asked()
        manager.stopping(config.drain.seconds)

    terminal = Terminal()

    def hang_up(server: Server) -> bool:
        if not terminal.is_gone:
            manager.reloading()
            _reload(server, config, reload or (lambda: config), logger)
            manager.ready(_status_of(server))
        return not terminal.is_gone

    with ServiceManager.take(os.environ, os.getpid(), logger) as manager:
        await run_process(config, logger, begun, hang_up=hang_up)


def _status_of(server: Server) -> str:
    return f"listening on {', '.join(server.urls)}"


async def run_process(
    config: Config,
    logger: Logger,
    begun: Callable[[Server, trio.Nursery], Awaitable[None]],
    *,
    hang_up: HangUp | None = None,
    share: Share | None = None,
) -> None:
    """Serves as all that a process does: obeys its signals, and keeps the garbage collector calm.

    Args:
        config: the configuration.
        logger: where to log.
        begun: called once it listens, with a nursery for what has to be done beside the server.
        hang_up: does what SIGHUP is for; None where that is somebody else's.
        share: see ``serve``.

    Raises:
        ConfigError: see ``serve``.
        OSError: see ``serve``.
    """
    obey = partial(_obey_signals, hang_up) if hang_up else _obey_signals_of_one_of_several
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(partial(serve, config, logger=logger, share=share))
            calm_collector()
            nursery.start_soon(collect_young)
            nursery.start_soon(obey, signals, server, logger, nursery.cancel_scope)
            await begun(server, nursery)
            await server.wait_stopped()
            logger.info("stopped")
            nursery.cancel_scope.cancel()


def _reload(server: Server, config: Config, reload: Callable[[], Config], logger: Logger) -> None:
    """Does what one process can of a configuration that is loaded again: the certificate; and tells the rest."""
    try:
        asked = reload()
        if server.has_tls:
            server.renew_certificate(asked.tls)
    except ConfigError as error:
        log_problems(logger, "not reloaded: the configuration is wrong", error)
        return
    others = [key for key in differences(config, asked) if not (server.has_tls and key.startswith("tls."))]
    if others or not server.has_tls:
        what = {"keys": ", ".join(others)} if others else {}
        logger.warning("not reloaded: that needs server.workers of 2 or more, or a restart", **what)


async def _obey_signals(
    hang_up: HangUp, signals: AsyncIterator[int], server: Server, logger: Logger, everything: trio.CancelScope
) -> None:
    async for number in signals:
        name = signal.Signals(number).name
        if number == signal.SIGHUP and hang_up(server):
            continue
        if not server.is_draining:
            logger.info("draining", signal=name, connections=server.connections)
            server.drain()
        elif number != signal.SIGHUP:  # the kernel and the shell may both tell that the terminal is gone
            logger.warning("ending at once", signal=name)
            everything.cancel()


async def _obey_signals_of_one_of_several(
    signals: AsyncIterator[int], server: Server, logger: Logger, everything: trio.CancelScope
) -> None:
    """As above, where a supervisor counts.

    To stop a service is to send SIGTERM to all of its processes: this one may get it from outside and be told to drain
    by the supervisor as well, in whatever order. So no number of them ends it at once, but SIGINT does.
    """
    async for number in signals:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            logger.warning("ending at once", signal=name)
            everything.cancel()
        elif number == signal.SIGTERM and not server.is_draining:
            logger.info("draining", signal=name, connections=server.connections)
            server.drain()


def _announce_all(
    listeners: Sequence[socket.socket],
    admin_listeners: Sequence[socket.socket],
    config: Config,
    logger: Logger,
    *,
    is_log_configured: bool,
) -> None:
    if workers_of(config) > 1:
        logger.warning("this is one process: only tricast.run starts several", workers=config.server.workers)
    announce(listeners, admin_listeners, config, logger)
    if is_log_configured:
        announce_log(config, logger)


async def _listeners_of(
    config: Config, share: Share | None, public: ExitStack, admin: ExitStack
) -> tuple[Sequence[socket.socket], Sequence[socket.socket]]:
    """What to listen on for clients, and for those who run the server; closed with these stacks.

    Raises:
        OSError: a listener's address cannot be had.
    """
    if share is not None:
        for listener in (*share.listeners, *share.others):
            public.enter_context(listener)
        for listener in share.admin_listeners:
            admin.enter_context(listener)
        return share.listeners, share.admin_listeners
    listeners = await listen(public, config.server.host, config.server.port, config)
    if not config.admin.enabled:
        return listeners, []
    return listeners, await listen(admin, config.admin.host, config.admin.port, config)


class _Bell:
    """Wakes one task; rings while it is awake are heard when it next waits."""

    def __init__(self) -> None:
        self._rung = trio.Event()
        self._rung_at = 0.0

    def ring(self) -> None:
        if not self._rung.is_set():
            self._rung.set()
            self._rung_at = trio.current_time()

    async def wait(self) -> float:
        """Returns once it has rung; when that was, by ``trio.current_time()``."""
        await self._rung.wait()
        self._rung = trio.Event()
        return self._rung_at


async def _flush_forever(hub: Hub, bell: _Bell) -> None:
    flushed_at = trio.current_time()
    while True:
        rung_at = await bell.wait()
        # While the flush before was at work, nobody else was.
        await share_out(hub.flush(), max(rung_at, flushed_at))
        flushed_at = trio.current_time()


def _tick_of(config: Config) -> float:
    """A quarter of the shortest interval that is swept for, within what is neither busy nor late."""
    websocket, limits = config.websocket, config.limits
    shortest = min(
        config.server.max_connection_age or math.inf,
        config.sse.keepalive,
        websocket.ping_interval,
        websocket.ping_timeout,
        config.poll.timeout,
        limits.head_timeout,
        limits.idle_timeout,
    )
    return min(max(shortest / 4, 0.005), 0.25)


def _admin_entrance(runtime: Runtime, expose: metrics.Expose, background: trio.Nursery, spare: Spare) -> Entrance:
    """Lets those in who run the server, to the very end: that it is not ready must be seen while it goes down.

    Their connections come out of the reserve, so that health can be asked for when all others are in use.
    """
    serve_one = partial(_serve_connection, runtime, admin_routes(runtime, expose))
    reserve = runtime.config.limits.reserved_descriptors
    acceptor = Acceptor(runtime, serve_one, background, spare, capacity=reserve // 4, max_refusing=reserve // 8)
    return Entrance(acceptor, background)


def _capacity_of(config: Config) -> int:
    room = room_for_connections(config.limits.reserved_descriptors)
    return min(room, config.limits.connections or room)


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


async def _serve_connection(runtime: Runtime, route: Router, connection: Connection, door: Door) -> None:
    """One connection from its first byte to its end. The one guard: whatever it raises, it is the only one to end."""
    how = "own"
    try:
        async with trio.open_nursery() as nursery:
            if await door.enter(connection):
                stream = await HttpConnection(connection, runtime, route).run()
                if stream is not None:
                    await stream.run(nursery)
            nursery.cancel_scope.cancel()
        how = "left" if connection.has_ended else "own"
    except* ConnectionLost as group:
        lost = leaf(group)
        how = lost.reason
        runtime.counters.lost[lost.reason] += 1
        runtime.logger.debug("connection lost", why=str(lost), **connection.named())
        del lost  # else its traceback holds this frame, which holds it: for the garbage collector, with all the rest
    except* Unavailable as group:
        # The log says once what is wrong with it; this is one of those who could not be served meanwhile.
        runtime.counters.unavailable += 1
        runtime.logger.debug("connection ended", why=str(leaf(group)), **connection.named())
    except* Exception:
        runtime.counters.failed += 1
        runtime.logger.exception("connection failed", **connection.named())
    finally:
        runtime.open.pop(connection, None)
        steps: list[Callable[[], object]] = [connection.close, partial(door.left, connection)]
        if (ended := runtime.at_end.pop(connection, None)) is not None:
            steps.append(partial(ended, how))
        for step in steps:
            try:
                step()
            except Exception:  # nobody is above this who could tell it from the end of the server
                runtime.counters.failed += 1
                runtime.logger.exception("connection failed at its end", **connection.named())


async def _end_connections(runtime: Runtime, connections: trio.Nursery) -> None:
    """Tells every connection to end, one after the other over ``drain.period``."""
    period, returns = runtime.config.drain.period, runtime.returns
    everybody = list(runtime.open)
    runtime.random.shuffle(everybody)
    returns.plan_for(len(everybody))
    steps = max(1, round(period * _DRAIN_STEPS_PER_SECOND))
    for step in range(steps):
        for number in range(step * len(everybody) // steps, (step + 1) * len(everybody) // steps):
            busy_with = runtime.open.get(everybody[number])
            if busy_with is not None:
                busy_with.drain(returns.delay(number / len(everybody)))
        if not connections.child_tasks:
            return
        await trio.sleep(period / steps)
