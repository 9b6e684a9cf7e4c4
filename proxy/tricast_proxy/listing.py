"""The profiles as a table for ``--list-profiles``: what each does to what Tricast's transports need."""

from tricast_proxy.config import OFF, ProxyConfig, ResponseSection
from tricast_proxy.profiles import load_profile, profile_names

_HEADER = ("profile", "Upgrade", "tunnel idle", "to the head", "events", "what it is")
_NONE = "-"


def list_of_profiles() -> str:
    """All profiles, one a line, below a line of titles."""
    rows = [_HEADER, *map(_row, profile_names())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _row(name: str) -> tuple[str, ...]:
    profile = load_profile(name)
    config = ProxyConfig.model_validate(profile.values())
    head = _seconds(config.upstream.response_header_timeout)
    return (
        name,
        config.tunnel.upgrade,
        _tunnel(config),
        head if head == _NONE else f"{head}, then {config.errors.header_timeout}",
        _events(config.response, speaks_http_10=config.upstream.http_version == "1.0"),
        profile.description,
    )


def _seconds(seconds: float) -> str:
    if seconds == OFF:
        return _NONE
    return f"{seconds:g} s" if seconds < 3600 else f"{seconds / 3600:g} h"


def _tunnel(config: ProxyConfig) -> str:
    if config.tunnel.upgrade in ("strip", "deny"):
        return _NONE
    idle = _seconds(config.tunnel.idle_timeout)
    return f"{idle}, {config.tunnel.on_idle}" if config.tunnel.on_idle.startswith("silent") else idle


def _events(response: ResponseSection, *, speaks_http_10: bool) -> str:
    if response.cache != "off":
        return "shared by all clients"
    if response.event_stream == "unbuffered" and response.buffering != "full":
        return "at once"
    if response.cork:
        return f"{response.cork * 1000:.0f} ms late"
    if response.buffering == "nginx" and not speaks_http_10:
        return "at once, in chunks"
    if response.buffering == "off":
        return "at once"
    return "held until there are enough" if response.buffering == "fixed" else "held to the end"
