"""Tricast: one ordered stream of events over long polling, Server-Sent Events and WebSocket.

To embed a server into a Trio program::

    async with trio.open_nursery() as nursery:
        server = await nursery.start(tricast.serve, tricast.Config())
        await server.hub.publish("news", {"n": 1})
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tricast.config import Config, load_config
    from tricast.errors import (
        ConfigError,
        ConnectionLost,
        LimitExceeded,
        LogUnavailable,
        RemoteProtocolError,
        TricastError,
        Unavailable,
        WorkerFailed,
    )
    from tricast.event import Event, EventId, Position, ShardedId
    from tricast.hub import Hub
    from tricast.server import Server, serve
    from tricast.transports.websocket import Session
    from tricast.workers.program import run

__version__ = "0.1.0"

__all__ = [
    "Config",
    "ConfigError",
    "ConnectionLost",
    "Event",
    "EventId",
    "Hub",
    "LimitExceeded",
    "LogUnavailable",
    "Position",
    "RemoteProtocolError",
    "Server",
    "Session",
    "ShardedId",
    "TricastError",
    "Unavailable",
    "WorkerFailed",
    "load_config",
    "run",
    "serve",
]

#: Where the names above are. They are imported when they are first used: importing the package for its version, or
#: for ``tricast --help``, must not load a server.
_MODULES = {
    "Config": "config",
    "load_config": "config",
    "Event": "event",
    "EventId": "event",
    "Position": "event",
    "ShardedId": "event",
    "Hub": "hub",
    "Server": "server",
    "run": "workers.program",
    "serve": "server",
    "Session": "transports.websocket",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
