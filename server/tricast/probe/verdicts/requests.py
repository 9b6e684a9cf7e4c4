"""Verdicts about requests: P7 fields, P8 limits, P10 bodies, P11 retries. Does no I/O."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from tricast.probe import advice
from tricast.probe.differences import FORWARDED, HOP_BY_HOP, Difference, Fields, Kind, differences
from tricast.probe.findings import Finding, Verdict
from tricast.probe.limits import Limit, attributed
from tricast.probe.verdicts import size

#: A limit below this is in the way of cookies and tokens that are not unusual.
_TIGHT_BYTES = 4096
_TIGHT_FIELDS = 40
#: Fields without which something does not work, and what that is.
_NEEDED = {
    "last-event-id": "event streams cannot resume by themselves",
    "authorization": "tokens do not reach the server",
    "cookie": "sessions do not reach the server",
    "origin": "the server cannot tell which page asks",
    "sec-websocket-protocol": "subprotocols cannot be negotiated",
}


# P7


def fields(
    sent: Fields, received: Fields, target: tuple[str, str], direct: Sequence[Difference] = ()
) -> Iterator[Finding]:
    """P7: what becomes of a request's fields and of its target.

    Args:
        sent: as it was sent.
        received: as the server got it.
        target: as it was sent, and as the server got it.
        direct: what became of the same request sent to the server itself.
    """
    found = [difference for difference in differences(sent, received) if difference not in direct]
    lost = {d.name: _NEEDED[d.name.lower()] for d in found if _is_loss(d)}
    if lost:
        yield Finding(
            check="P7",
            title="lost fields",
            verdict=Verdict.BROKEN,
            summary="; ".join(f"{name}: {what}" for name, what in lost.items()),
            detail={"fields": list(lost)},
        )
    for difference in found:
        if difference.name.lower() == "host" and difference.kind is Kind.CHANGED:
            yield _host(difference)
    if target[0] != target[1]:
        yield Finding(
            check="P7",
            title="request target",
            verdict=Verdict.ADVICE,
            summary=f"{target[0]} becomes {target[1]}",
            detail={"sent": target[0], "received": target[1]},
        )
    # RFC 9110 7.6.1: what Connection names is for the next hop alone, as it is itself.
    options = ",".join(value for name, value in sent if name.lower() == "connection")
    yield _others(found, [option.strip().lower() for option in options.split(",")])


def _is_loss(difference: Difference) -> bool:
    is_gone = difference.kind in (Kind.REMOVED, Kind.CHANGED)
    if is_gone and difference.name.lower() == "cookie":  # balancers add their own, and take it out again
        is_gone = not _cookies(difference.before) <= _cookies(difference.after)
    return is_gone and difference.name.lower() in _NEEDED


def _cookies(value: str) -> set[str]:
    return {pair for found in re.split("[;,]", value) if (pair := found.strip())}


def _host(difference: Difference) -> Finding:
    return Finding(
        check="P7",
        title="Host",
        verdict=Verdict.ADVICE,
        summary=f"{difference.before} becomes {difference.after}: pages of its own site are foreign to the server",
        detail={"sent": difference.before, "received": difference.after},
        advice=advice.HOST,
    )


def _others(found: Collection[Difference], nominated: Collection[str]) -> Finding:
    names: dict[Kind, list[str]] = {}
    for difference in found:
        lowered = difference.name.lower()
        if lowered not in {*HOP_BY_HOP, *nominated, "host"} and not _is_loss(difference):
            names.setdefault(difference.kind, []).append(difference.name)
    words = [f"{_BECAME[kind]}: {_listed(kind, names[kind])}" for kind in _BECAME if kind in names]
    adds_client = any(d.kind is Kind.ADDED and d.name.lower() in FORWARDED for d in found)
    return Finding(
        check="P7",
        title="other fields",
        verdict=Verdict.INFO if words else Verdict.OK,
        summary="; ".join(words) or "all come as they are sent",
        detail={
            "changes": [_as_data(difference) for difference in found],
            "is_client_told": adds_client,
        },
    )


def _as_data(difference: Difference) -> list[str]:
    kind, name, *values = difference
    # What is there is the token, or somebody else's.
    return [kind.value, name, *(["", ""] if name.lower() == "authorization" else values)]


_BECAME = {
    Kind.REMOVED: "removed",
    Kind.CHANGED: "changed",
    Kind.JOINED: "joined to one",
    Kind.ADDED: "added",
    Kind.CASE: "in another case",
}
_MOST_NAMES = 6


def _listed(kind: Kind, names: Sequence[str]) -> str:
    if kind is Kind.CASE and len(names) > 2:
        return "all"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


# P8


class Refusal(NamedTuple):
    """The limit of one thing, and how what is larger is refused.

    Attributes:
        limit: as it was found.
        status: of the answer to what is larger; None if there was none.
        is_servers: whether that was known to be the server's own.
    """

    limit: Limit
    status: int | None
    is_servers: bool = False


def limit(name: str, path: Refusal, direct: Refusal | None = None, *, is_servers_known: bool = True) -> Finding:
    """P8: how much of one thing comes through.

    Args:
        name: what it is: ``one field``, ``number of fields``.
        path: what was found.
        direct: what was found at the server itself.
        is_servers_known: whether an answer that is not known to be the server's own cannot be the server's.
    """
    unit = (lambda number: f"{number} of them") if name.startswith("number") else size
    passes, fails = path.limit
    verdict, problem = Verdict.INFO, None
    if fails is None:
        words = f"at least {unit(passes)}"
    else:
        whose = _whose(path, direct, is_servers_known=is_servers_known)
        is_ways = whose == "on the way"
        how = "by closing the connection" if path.status is None else f"with {path.status}"
        words = " ".join(f"{unit(passes)} come through; more is refused {whose} {how}".split())
        tight = _TIGHT_FIELDS if name.startswith("number") else _TIGHT_BYTES
        if is_ways and passes < tight and name != "an answer's field":  # Tricast's answers need little
            verdict = Verdict.ADVICE
            words += ", which is little for cookies and tokens"
    return Finding(
        check="P8",
        title=name,
        verdict=verdict,
        summary=words,
        detail={
            "passes": passes,
            "fails": fails,
            "status": path.status,
            "direct": None if direct is None else list(direct.limit),
        },
        advice=problem,
    )


def _whose(path: Refusal, direct: Refusal | None, *, is_servers_known: bool) -> str:
    if path.is_servers:
        return "by the server"
    is_answered = is_servers_known and path.status is not None
    if direct is None:
        return "on the way" if is_answered else ""
    if attributed(path.limit, direct.limit):
        return "on the way"
    # Both have about the same limit. A 5xx on the way may come of what the server has refused.
    is_another = is_answered and path.status != direct.status and (path.status or 0) < 500
    return "on the way" if is_another else "by the server"


# P10


class Upload(NamedTuple):
    """A request body that is sent slowly.

    Attributes:
        sent: seconds from the first to the last piece, as they were sent.
        arrived: seconds from the first to the last, as the server got them; None if it did not get them.
        expect_reached: whether the server saw ``Expect: 100-continue``; None if that is not known.
        interim: the statuses that came before the answer.
        is_chunked: whether the body still was in chunks when the server got it.
    """

    sent: float
    arrived: float | None
    expect_reached: bool | None = None
    interim: Sequence[int] = ()
    is_chunked: bool | None = None


def uploads(path: Upload) -> Finding:
    """P10: whether request bodies come as they are sent."""
    detail = {
        "sent_within": round(path.sent, 3),
        "arrived_within": None if path.arrived is None else round(path.arrived, 3),
        "expect_reached": path.expect_reached,
        "interim": list(path.interim),
        "is_chunked": path.is_chunked,
    }
    if path.arrived is None:
        words, verdict = "not known: a body that is sent slowly was refused", Verdict.UNKNOWN
    elif path.arrived < path.sent / 3:
        words, verdict = "bodies are held back until they are complete, which does publishing no harm", Verdict.INFO
    else:
        words, verdict = "bodies come as they are sent", Verdict.OK
    if path.interim.count(100) > 1:
        words, verdict = f"{words}; Expect is answered {path.interim.count(100)} times", Verdict.INFO
    return Finding(check="P10", title="request bodies", verdict=verdict, summary=words, detail=detail)


# P11


def retries(calls: Mapping[str, int | None]) -> Finding:
    """P11: whether a request is sent again when the server closes without an answer.

    Args:
        calls: method to how often the server got the request; None if that is not known.
    """
    repeated = [method for method, count in calls.items() if count is not None and count > 1]
    if None in calls.values():
        words, verdict = "not known: the report did not come from the same server", Verdict.UNKNOWN
    elif "POST" in repeated:
        words = f"POST is sent {calls['POST']} times when the server closes: give publishes an Idempotency-Key"
        verdict = Verdict.ADVICE
    elif repeated:
        words, verdict = f"GET is sent {calls['GET']} times when the server closes, POST once", Verdict.INFO
    else:
        words, verdict = "none: each request is sent once", Verdict.OK
    return Finding(
        check="P11",
        title="retries",
        verdict=verdict,
        summary=words,
        detail={"calls": dict(calls)},
        advice=advice.RETRIES if verdict is Verdict.ADVICE else None,
    )
