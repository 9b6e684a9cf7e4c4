"""Who ended a connection, from how that looked at both ends."""

import pytest

from tricast.probe.blame import Culprit, blame
from tricast.probe.link import End
from tricast.wire.probe import Record


def seen(end: str | None) -> Record:
    return Record(nonce="n", kind="ws", conn=1, number=1, peer="p", end=end, ended=None if end is None else 60.0)


@pytest.mark.parametrize(
    ("how", "code", "server", "culprit", "form", "hint"),
    [
        (End.CLOSE, 1012, "own", Culprit.SERVER, "a close frame (1012)", ""),
        (End.FIN, None, "own", Culprit.SERVER, "FIN", ""),
        (End.RST, None, "own", Culprit.SERVER, "RST", ""),
        (End.STATUS, 504, "own", Culprit.SERVER, "status 504", ""),
        ("", None, "own", Culprit.SERVER, "nothing", ""),
        (End.CLOSE, 1001, "close", Culprit.PATH, "a close frame (1001) here, a close frame at the server", "Caddy"),
        (End.FIN, None, "fin", Culprit.PATH, "FIN here, FIN at the server", ""),
        (End.FIN, None, "rst", Culprit.PATH, "FIN here, RST at the server", "HAProxy"),
        (End.RST, None, "rst", Culprit.PATH, "RST here, RST at the server", "firewall"),
        (End.RST, None, None, Culprit.PATH, "RST here, still open at the server", "firewall"),
        (End.FIN, None, None, Culprit.CLIENT_SIDE, "FIN here, still open at the server", "still holds"),
        (End.COMPLETE, None, "fin", Culprit.PATH, "as if the answer were whole", "Caddy up to 2.6"),
        (End.STATUS, 504, "fin", Culprit.PATH, "status 504 here, FIN at the server", "whoever signs"),
        (End.GARBLED, None, "fin", Culprit.PATH, "no HTTP or WebSocket here", ""),
        ("", None, None, Culprit.SILENT, "nothing here, nothing at the server", "NAT"),
        ("", None, "timeout", Culprit.SILENT, "nothing here, nothing at the server", "NAT"),
        ("", None, "fin", Culprit.SERVER_SIDE, "still open here, FIN at the server", "watchdog"),
        ("", None, "rst", Culprit.SERVER_SIDE, "still open here, RST at the server", "watchdog"),
    ],
)
def test_both_ends_are_looked_at(
    how: str, code: int | None, server: str | None, culprit: Culprit, form: str, hint: str
) -> None:
    found = blame(how, code, seen(server))
    assert found.culprit is culprit
    assert form in found.form
    assert hint in found.hint
    assert bool(hint) == bool(found.hint)


@pytest.mark.parametrize("how", [End.FIN, End.RST, End.CLOSE, End.COMPLETE, ""])
def test_without_the_servers_word_nobody_is_accused(how: str) -> None:
    assert blame(how, None, None).culprit is Culprit.UNKNOWN


def test_an_error_page_is_not_the_servers_own() -> None:
    assert blame(End.STATUS, 504, None).culprit is Culprit.PATH


def test_anybody_may_end_an_idle_connection() -> None:
    assert blame(End.FIN, None, seen("own"), is_idle_http=True).culprit is Culprit.UNKNOWN
