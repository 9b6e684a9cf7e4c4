"""The timers among the findings. Does no I/O."""

from collections.abc import Iterable

from tricast.probe.findings import Finding
from tricast.probe.recommend import Timers


def timers_of(findings: Iterable[Finding]) -> Timers:
    """The timers that were found."""
    del findings
    return Timers()


def idle_of(findings: Iterable[Finding]) -> float | None:
    """The shortest idle timer of any transport."""
    timers = timers_of(findings)
    return min(
        (seconds for seconds in (timers.websocket_idle, timers.stream_idle) if seconds is not None), default=None
    )
