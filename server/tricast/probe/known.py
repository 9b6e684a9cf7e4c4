"""Timers that are known from programs and services, and whose they are. A hint for who reads, never a proof."""

from typing import NamedTuple


class Constant(NamedTuple):
    """A timer with its usual owners.

    Attributes:
        seconds: how long.
        owners: whose it is, by name and setting.
        transports: where it shows.
    """

    seconds: float
    owners: str
    transports: frozenset[str]


_STREAMS = frozenset({"ws", "sse"})
_WS = frozenset({"ws"})
_SSE = frozenset({"sse"})
_POLL = frozenset({"poll"})
_HTTP = frozenset({"sse", "poll"})
_ALL = frozenset({"ws", "sse", "poll"})
_KEPT = frozenset({"keepalive"})

#: From the vendors' documentation, and where the program is free software, from its source.
CONSTANTS = (
    Constant(5, "Apache KeepAliveTimeout or Varnish timeout_idle", _KEPT),
    Constant(10, "Fastly between_bytes_timeout", _SSE),
    Constant(15, "Envoy route timeout", _HTTP),
    Constant(15, "Fastly first_byte_timeout", _POLL),
    Constant(30, "Google Cloud backend service timeout", _ALL),
    Constant(30, "Heroku router (H12)", _POLL),
    Constant(50, "HAProxy timeout client or server, as Debian configures it", _ALL | _KEPT),
    Constant(55, "Heroku router (H15)", _STREAMS),
    Constant(60, "nginx proxy_read_timeout, Apache Timeout, Varnish or AWS ALB", _ALL),
    Constant(60, "AWS ALB", _KEPT),
    Constant(75, "nginx keepalive_timeout, or limits.idle_timeout of Tricast itself", _KEPT),
    Constant(90, "Heroku router", _KEPT),
    Constant(100, "Cloudflare proxy read timeout", _ALL),
    Constant(120, "Cloudflare proxy read timeout", _ALL),
    Constant(180, "Traefik idleTimeout", _KEPT | _WS),
    Constant(230, "Azure App Service", _ALL | _KEPT),
    Constant(240, "Azure Load Balancer or Application Gateway", _ALL | _KEPT),
    Constant(300, "Envoy stream_idle_timeout or Azure Front Door", _ALL),
    Constant(300, "Caddy idle_timeout", _KEPT),
    Constant(350, "AWS NLB", _ALL | _KEPT),
    Constant(400, "Cloudflare", _KEPT),
    Constant(600, "Google Cloud", _KEPT),
    Constant(610, "Google Cloud", _KEPT),
    Constant(900, "Cloudflare", _KEPT),
    Constant(3600, "HAProxy timeout tunnel, as its documentation has it", _WS),
    Constant(3600, "Envoy idle_timeout", _KEPT),
)
#: How far a measurement may be off and still be taken for a constant: a part of it, or so many seconds.
_TOLERANCE = 0.01
_TOLERANCE_SECONDS = 1.5


def snap(seconds: float, transport: str, *, low: float | None = None) -> tuple[float, str] | None:
    """The known timer that this can be, with its owners, or None.

    Args:
        seconds: what was measured, or the upper end of where it lies.
        transport: ``ws``, ``sse``, ``poll`` or ``keepalive``.
        low: the lower end of where it lies.
    """
    low = seconds if low is None else low

    def distance(constant: Constant) -> float:
        return max(low - constant.seconds, constant.seconds - seconds, 0.0)

    fitting = [
        constant
        for constant in CONSTANTS
        if transport in constant.transports
        and distance(constant) <= max(_TOLERANCE * constant.seconds, _TOLERANCE_SECONDS)
    ]
    if not fitting:
        return None
    nearest = min(fitting, key=lambda constant: (distance(constant), abs(constant.seconds - seconds))).seconds
    return nearest, ", ".join(constant.owners for constant in fitting if constant.seconds == nearest)
