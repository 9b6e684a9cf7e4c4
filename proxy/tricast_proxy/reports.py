"""What whoever runs the proxy reads in its log of what went wrong: whom a timer cut, and which server does not answer.

Each cut is a line of its own, with the key that did it. A server that fails is told of once for each reason, until it
answers again: a dead one fails with every request.
"""

from tricast.logs import Logger
from tricast.schema import format_duration
from tricast_proxy.config import ProxyConfig

#: How an exchange or a tunnel ended, and the timers that may have done it.
_TIMERS: dict[str, tuple[str, ...]] = {
    "timeout": ("upstream.response_header_timeout", "upstream.send_timeout"),
    "request-timeout": ("upstream.response_header_timeout",),
    "response-timeout": ("upstream.response_timeout",),
    "read-timeout": ("upstream.read_timeout",),
    "stream-idle": ("upstream.stream_idle_timeout",),
    "stream-duration": ("upstream.max_stream_duration",),
    "tunnel-idle": ("tunnel.idle_timeout",),
    "tunnel-lifetime": ("tunnel.max_lifetime",),
    "request-head": ("client.header_timeout", "client.request_timeout"),
    "request-body": ("client.body_timeout", "client.request_timeout"),
}
#: Failures of a server that ended an exchange without an answer.
_FAILED = frozenset(("connect", "connect-timeout", "empty", "invalid", "cut", "upgrade", "no-server"))


class Reports:
    """Tells of what went wrong.

    Args:
        config: with timers divided already.
        logger: where to.
    """

    def __init__(self, config: ProxyConfig, logger: Logger) -> None:
        self._config = config
        self._logger = logger
        self._told: dict[str, set[str]] = {}

    def ended(self, why: str, *, peer: str, server: str, seconds: float, detail: str = "") -> None:
        """An exchange, a tunnel, or the wait for one has ended.

        Args:
            why: in a word.
            peer: the client, with its port.
            server: the label of the server that had it; empty for none.
            seconds: how long it took; 0 where nobody knows.
            detail: what went wrong, for people.
        """
        if why in _TIMERS:
            self._cut(why, peer, server, seconds)
        elif why in _FAILED:
            self._failed(server, detail or why)

    def answered(self, server: str) -> None:
        """A server has answered."""
        if self._told:
            self._told.pop("", None)
            if self._told.pop(server, None) is not None:
                self._logger.info(f"{server} answers again")

    def _cut(self, why: str, peer: str, server: str, seconds: float) -> None:
        by = self._timer_of(why)
        of_server = {"server": server} if server else {}
        took = {"after": f"{seconds:.1f}s"} if seconds else {}
        self._logger.info(f"cut by {by}", peer=peer, **of_server, **took)

    def _timer_of(self, why: str) -> str:
        """The timer that ran out, with its value: of several, the shorter one."""
        speed = self._config.proxy.speed
        timers = {}
        for dotted in _TIMERS[why]:
            section, _, key = dotted.partition(".")
            timers[dotted] = getattr(getattr(self._config, section), key)
        dotted = min(timers, key=timers.__getitem__)
        written = f"{dotted} = {format_duration(round(timers[dotted] * speed, 6))}"
        return written if speed == 1 else f"{written} ({timers[dotted]:g} s at speed {speed:g})"

    def _failed(self, server: str, detail: str) -> None:
        told = self._told.setdefault(server, set())
        if detail not in told:
            told.add(detail)
            self._logger.warning(f"{detail}; told once, until a request is answered")
