"""The timers among the findings. Does no I/O."""

from collections.abc import Iterable, Mapping
from typing import Any

from tricast.probe.findings import Finding
from tricast.probe.recommend import Timers


def timers_of(findings: Iterable[Finding]) -> Timers:
    """The timers of the way that were found; not those of the server itself."""
    findings = list(findings)
    by_transport = {
        finding.detail["transport"]: finding.detail
        for finding in findings
        if finding.check in ("P12", "P13") and "transport" in finding.detail and finding.detail["culprit"] != "server"
    }
    kept = [finding.detail.get("kept") for finding in findings if finding.check == "P17"]
    totals = [total for detail in by_transport.values() if (total := _length(detail, "total")) is not None]
    return Timers(
        websocket_idle=_length(by_transport.get("ws", {}), "idle"),
        stream_idle=_length(by_transport.get("sse", {}), "idle"),
        poll=_length(by_transport.get("poll", {}), "idle"),
        total=min(totals, default=None),
        pool=next((seconds for seconds in kept if seconds is not None), None),
    )


def _length(detail: Mapping[str, Any], name: str) -> float | None:
    """How long a timer is, or None where only a lower bound is known."""
    estimate = detail.get(name)
    if estimate is None or estimate["high"] is None:
        return None
    seconds: float = estimate["low"] if estimate["constant"] is None else estimate["constant"]
    return seconds


def idle_of(findings: Iterable[Finding]) -> float | None:
    """The shortest idle timer of WebSockets and event streams, or None where none was found."""
    timers = timers_of(findings)
    return min(
        (seconds for seconds in (timers.websocket_idle, timers.stream_idle) if seconds is not None), default=None
    )
