"""Tricast: one ordered stream of events over long polling, Server-Sent Events and WebSocket.

To embed a server into a Trio program::

    async with trio.open_nursery() as nursery:
        server = await nursery.start(tricast.serve, tricast.Config())
        await server.hub.publish("news", {"n": 1})
"""

from tricast.config import Config, load_config
from tricast.errors import (
    ConfigError,
    ConnectionLost,
    LimitExceeded,
    LogUnavailable,
    RemoteProtocolError,
    TricastError,
    Unavailable,
)
from tricast.event import Event, EventId
from tricast.hub import Hub
from tricast.server import Server, run, serve
from tricast.transports.websocket import Session

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
    "RemoteProtocolError",
    "Server",
    "Session",
    "TricastError",
    "Unavailable",
    "load_config",
    "run",
    "serve",
]
