"""Who ended a connection, told from how that looked at both of its ends."""

from enum import StrEnum
from typing import NamedTuple

from tricast.probe.link import End
from tricast.wire.probe import Record


class Culprit(StrEnum):
    """Who it was."""

    SERVER = "server"
    PATH = "path"  # something between client and server
    CLIENT_SIDE = "client-side hop"
    SERVER_SIDE = "server-side hop"
    SILENT = "silent drop"
    UNKNOWN = "unknown"


class Blame(NamedTuple):
    """Who it was, and by what that is known.

    Attributes:
        culprit: who.
        form: how it looked, in words.
        hint: who does it in this way, where that is known.
    """

    culprit: Culprit
    form: str
    hint: str = ""


#: What the client saw, in words.
_FORMS = {
    End.FIN: "FIN",
    End.RST: "RST",
    End.COMPLETE: "the last chunk, as if the answer were whole,",
    End.GARBLED: "something that is no HTTP or WebSocket",
}
#: What the server saw, in words; anything else is a name of its own.
_AT_SERVER = {None: "still open", "timeout": "no acknowledgements", "close": "a close frame"}
#: Who is known for it, by what the client saw, and by what the server did where that matters.
_HINTS = {
    (End.STATUS, ""): "whoever signs the answer",
    (End.CLOSE, ""): "Caddy does so when it is reloaded",
    (End.COMPLETE, ""): "Caddy up to 2.6 makes a cut look like an end",
    (End.FIN, "open"): "the server still holds what its client has lost",
    (End.FIN, "rst"): "HAProxy does so",
    (End.RST, ""): "a firewall or balancer of TCP, or nginx with reset_timedout_connection",
}


def blame(how: str, code: int | None, server: Record | None, *, is_idle_http: bool = False) -> Blame:
    """Who ended a connection that had to stay.

    Args:
        how: what the client saw, see ``End``; empty for nothing.
        code: the close code or the status that it saw.
        server: what the server saw, or None where it cannot be asked.
        is_idle_http: whether it was idle between requests, where anybody may end it with a mere FIN.
    """
    form = _form(how, code)
    if is_idle_http:
        return Blame(Culprit.UNKNOWN, form)
    if server is None:
        return Blame(Culprit.PATH if how == End.STATUS else Culprit.UNKNOWN, form)
    if server.end == "own":
        return Blame(Culprit.SERVER, f"{form}; the server ended it itself")
    if not how:
        return _nothing_seen(server)
    seen_by_both = f"{form} here, {_AT_SERVER.get(server.end, (server.end or '').upper())} at the server"
    if how in (End.FIN, End.RST):
        seen_by_both += ", no close frame or last chunk"
    hint = _HINTS.get((End(how), server.end or "open"), _HINTS.get((End(how), ""), ""))
    culprit = Culprit.CLIENT_SIDE if how == End.FIN and server.end is None else Culprit.PATH
    return Blame(culprit, seen_by_both, hint)


def _form(how: str, code: int | None) -> str:
    if how == End.CLOSE:
        return f"a close frame ({code})"
    if how == End.STATUS:
        return f"status {code}"
    return _FORMS.get(End(how), how) if how else "nothing"


def _nothing_seen(server: Record) -> Blame:
    if server.end is None or server.end == "timeout":
        return Blame(Culprit.SILENT, "nothing here, nothing at the server", "a balancer of TCP, NAT or firewall")
    at_server = _AT_SERVER.get(server.end, server.end.upper())
    return Blame(
        Culprit.SERVER_SIDE, f"still open here, {at_server} at the server", "clients need a watchdog of their own"
    )
