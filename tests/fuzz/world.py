"""The server's side of one connection, for a fuzzer: a socket pair, and a clock that moves on when nothing else does.

What a client sends is in the kernel before the server begins, so that nothing depends on who comes first; it is read
whole or in steps. A target that raises has found something.
"""

import io
import random
import socket
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TextIO

import trio
import trio.testing

from tricast.access.access import Access
from tricast.config import Config
from tricast.connection import RECEIVE_BYTES, Connection
from tricast.errors import ConnectionLost
from tricast.hub import Hub
from tricast.log.memory import MemoryLog
from tricast.logs import Logger, program_logger
from tricast.runtime import Runtime
from tricast.sweep import Wheel

#: An hour of the server's time is none of ours, so this is only for what never ends.
_FOREVER_SECONDS = 24 * 3600.0
_NOW = 1_000_000.0

Serve = Callable[[Connection, Runtime], Awaitable[None]]


@cache
def _connection_class(step: int) -> type[Connection]:
    return type("_Stepping", (Connection,), {"__slots__": (), "_receive_bytes": step})


def _make_runtime(config: Config, logger: Logger) -> Runtime:
    """What connections share, with a log that is empty."""
    log = MemoryLog(history=100, history_age=3600, history_size=2**20, clock=lambda: _NOW)
    hub = Hub(
        log,
        max_topic_bytes=config.limits.topic_size,
        max_event_bytes=config.publish.max_event,
        wake=lambda: None,
    )
    return Runtime(
        config,
        hub,
        wheel=Wheel(tick=1.0),
        randomness=random.Random(0),
        clock=lambda: _NOW,
        logger=logger,
        handlers={},
        access=Access(config.auth, clock=lambda: _NOW, logger=logger),
    )


def converse(
    serve: Serve,
    data: bytes,
    config: Config,
    *,
    step: int = RECEIVE_BYTES,
    leaves: bool = False,
    said: TextIO | None = None,
) -> bytes:
    """What a client gets that sends this and then only listens.

    Args:
        serve: the server's side; ``ConnectionLost`` is one of its ends, everything else it raises is a find.
        data: what the client sends; no more than a socket buffer holds.
        config: the server's.
        step: how many bytes the server gets at a time.
        leaves: whether the client says that it sends no more.
        said: where the server's log goes; nowhere by default.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        if leaves:
            ours.shutdown(socket.SHUT_WR)
        theirs.setblocking(False)
        logger = program_logger(config.logging, said if said is not None else io.StringIO())
        trio.run(_serve, serve, theirs, config, step, logger, clock=trio.testing.MockClock(autojump_threshold=0))
        theirs.close()
        return _received(ours)


async def _serve(serve: Serve, sock: socket.socket, config: Config, step: int, logger: Logger) -> None:
    runtime = _make_runtime(config, logger)
    connection = _connection_class(step)(sock, "fuzzer", write_timeout=config.limits.write_timeout)
    with trio.fail_after(_FOREVER_SECONDS):
        async with runtime.hub.open(), trio.open_nursery() as background:
            background.start_soon(runtime.wheel.run)
            try:
                await serve(connection, runtime)
            except* ConnectionLost:
                pass
            background.cancel_scope.cancel()


def _received(sock: socket.socket) -> bytes:
    parts = []
    try:
        while part := sock.recv(2**20):
            parts.append(part)
    except ConnectionResetError:  # it was closed while something was unread
        pass
    return b"".join(parts)
