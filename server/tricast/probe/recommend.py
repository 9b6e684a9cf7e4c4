"""The settings of a Tricast server that suit the timers on the way to it. Does no I/O."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from tricast.config import Config

#: Pings and comments come at least this often a timer, so that one that is lost does no harm.
_PER_TIMER = 2.5
#: An answer that has to be there before a timer ends has so many seconds for its way.
_MARGIN_SECONDS = 5.0
#: A connection is rotated after this part of the time after which it would be cut: the clock of each begins elsewhere.
_PART_OF_TOTAL = 0.9
#: How much longer than a proxy the server keeps idle connections.
_POOL_MARGIN_SECONDS = 15.0


class Timers(NamedTuple):
    """What is known of the timers on the way, in seconds; None where none was found.

    Attributes:
        websocket_idle: after so much silence a WebSocket is cut.
        stream_idle: the same of an event stream.
        poll: so long an answer may take.
        total: every connection is cut after so long, whatever is sent.
        pool: so long the proxy keeps idle connections to the server.
    """

    websocket_idle: float | None = None
    stream_idle: float | None = None
    poll: float | None = None
    total: float | None = None
    pool: float | None = None


class Setting(NamedTuple):
    """A value for one key of the server's configuration.

    Attributes:
        section: of the file.
        key: in the section.
        value: as it is written.
        default: what it is when nothing is written.
        why: in words.
        is_needed: whether the default does not do.
    """

    section: str
    key: str
    value: str
    default: str
    why: str
    is_needed: bool


def recommend(timers: Timers) -> list[Setting]:
    """The settings that the timers call for, whether or not the defaults do already; nothing for what is not known."""
    return list(_settings(timers, Config()))


def _settings(timers: Timers, defaults: Config) -> Iterator[Setting]:
    if timers.websocket_idle is not None:
        why = f"a silent WebSocket is cut after {_seconds(timers.websocket_idle)}"
        yield _at_most("websocket", "ping_interval", defaults.websocket.ping_interval, timers.websocket_idle, why)
    if timers.stream_idle is not None:
        why = f"a silent event stream is cut after {_seconds(timers.stream_idle)}"
        yield _at_most("sse", "keepalive", defaults.sse.keepalive, timers.stream_idle, why)
    if timers.poll is not None:
        default = defaults.poll.timeout
        most = timers.poll - min(_MARGIN_SECONDS, timers.poll / 5)
        why = f"an answer has to begin within {_seconds(timers.poll)}"
        yield Setting("poll", "timeout", _written(min(default, most)), _written(default), why, default > most)
    if timers.pool is not None:
        default = defaults.limits.idle_timeout
        # What tells of the end is late by a little, so that the timer is the whole seconds before.
        least = math.floor(timers.pool) + _POOL_MARGIN_SECONDS
        why = f"the proxy keeps idle connections for {_seconds(timers.pool)}"
        yield Setting("limits", "idle_timeout", _written(max(default, least)), _written(default), why, default < least)
    if timers.total is not None:
        why = f"every connection is cut after {_seconds(timers.total)}: one that ends before is told when to come back"
        value = _written(timers.total * _PART_OF_TOTAL)
        yield Setting("server", "max_connection_age", value, "0s", why, is_needed=True)


def _at_most(section: str, key: str, default: float, idle: float, why: str) -> Setting:
    most = idle / _PER_TIMER
    return Setting(section, key, _written(min(default, most)), _written(default), why, default > most)


def remarks(timers: Timers) -> list[str]:
    """What no setting does away with, in words."""
    if timers.total is None:
        return []
    after = f"Connections are cut after {_seconds(timers.total)} whatever is sent, and the server can only be first"
    return [f"{after}: clients come back by themselves, and get what they missed. Raise that limit where you can."]


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _written(seconds: float) -> str:
    """A duration as the configuration has it, rounded down to what is easy to read."""
    if seconds >= 10:
        return f"{int(seconds)}s"
    return f"{int(seconds * 10) / 10:g}s" if seconds >= 1 else f"{max(1, int(seconds * 1000))}ms"
