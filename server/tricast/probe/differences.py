"""What became of a request on its way: its head as it was sent beside its head as the server got it. Does no I/O."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

Fields = Sequence[tuple[str, str]]

#: RFC 9110 7.6.1: these are for the next hop alone, so that a proxy does right to take them.
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "trailer"}
)
#: What a proxy adds about the client and about itself.
FORWARDED = frozenset(
    {
        "forwarded",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-forwarded-server",
        "x-real-ip",
        "x-request-id",
    }
)


class Kind(enum.Enum):
    """What can become of a field."""

    REMOVED = "removed"
    ADDED = "added"
    CHANGED = "changed"
    JOINED = "joined"
    CASE = "case"


class Difference(NamedTuple):
    """One field that is not as it was sent.

    Attributes:
        kind: what became of it.
        name: as it was sent, or as it was added.
        before: its value as it was sent; empty if it was added.
        after: its value as it was received; empty if it was removed.
    """

    kind: Kind
    name: str
    before: str = ""
    after: str = ""


def differences(sent: Fields, received: Fields) -> list[Difference]:
    """Each field that is not as it was sent, in the order in which they were sent; then those that were added.

    Args:
        sent: the request as it was sent.
        received: as the server got it.
    """
    before, after = _by_name(sent), _by_name(received)
    found = []
    for name, values in before.items():
        written = next(given for given, _ in sent if given.lower() == name)
        if name not in after:
            found.append(Difference(Kind.REMOVED, written, ", ".join(values)))
        elif after[name] != values:
            joined = len(after[name]) < len(values) and _spaceless(after[name]) == _spaceless(values)
            kind = Kind.JOINED if joined else Kind.CHANGED
            found.append(Difference(kind, written, ", ".join(values), ", ".join(after[name])))
    found += [
        Difference(Kind.ADDED, next(given for given, _ in received if given.lower() == name), "", ", ".join(values))
        for name, values in after.items()
        if name not in before
    ]
    return found + _case(sent, received)


def habits(sent: Fields, received: Fields, http_version: str) -> set[str]:
    """What the way does to requests, in the words that ``fingerprint.suspects`` takes.

    Args:
        sent: the request as it was sent, with fields whose names are in mixed case.
        received: as the server got it.
        http_version: in which the server got it, such as ``1.1``.
    """
    found = {difference.name.lower() for difference in differences(sent, received) if difference.kind is Kind.ADDED}
    known = {"x-forwarded-server", "x-forwarded-host", "x-forwarded-port", "x-real-ip", "accept-encoding"}
    words = found & known
    if _case(sent, received) and all(name == name.lower() for name, _ in received):
        words.add("lower case")
    if any(difference.kind is Kind.JOINED for difference in differences(sent, received)):
        words.add("joined")
    if http_version == "1.0":
        words.add("http/1.0")
    names = {name.lower() for name, _ in received}
    if any("_" in name and name.lower() not in names for name, _ in sent):
        words.add("underscores")
    options = {
        option.strip().lower()
        for name, value in received
        if name.lower() == "connection"
        for option in value.split(",")
    }
    if options & {
        option.strip().lower() for name, value in sent if name.lower() == "connection" for option in value.split(",")
    } - {"close", "keep-alive", "upgrade"}:
        words.add("kept connection")
    return words


def _case(sent: Fields, received: Fields) -> list[Difference]:
    written = {name.lower(): name for name, _ in received}
    names = dict.fromkeys(name for name, _ in sent)
    return [
        Difference(Kind.CASE, name, name, written[name.lower()])
        for name in names
        if written.get(name.lower(), name) != name
    ]


def _by_name(fields: Fields) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(name.lower(), []).append(value)
    return found


def _spaceless(values: Sequence[str]) -> str:
    return "".join(",".join(values).split())
