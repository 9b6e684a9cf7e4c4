"""What ``--fail-on`` names: the findings that somebody does not want to live with. Does no I/O."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from tricast.errors import TricastError
from tricast.probe import advice
from tricast.probe.findings import Finding, Verdict
from tricast.probe.measured import idle_of, timers_of


class BadCondition(TricastError):
    """What is wrong with a condition, in words."""


class Condition(NamedTuple):
    """One of them.

    Attributes:
        text: as it was given.
        holds: whether it does, for the findings of a run.
        is_known: whether that it does not hold was found out, rather than not looked at.
        needs_time: whether it cannot be known without waiting for timers.
        transports: at least one of which has to be looked at for it; empty where none has to be.
    """

    text: str
    holds: Callable[[Sequence[Finding]], bool]
    is_known: Callable[[Sequence[Finding]], bool]
    needs_time: bool = False
    transports: frozenset[str] = frozenset()


def parse(text: str) -> list[Condition]:
    """The conditions of a list with commas.

    Raises:
        BadCondition: there is no such condition, or none at all.
    """
    return [_condition(word) for word in (word.strip() for word in text.split(",")) if word] or [_condition("")]


def _condition(word: str) -> Condition:
    match = re.fullmatch(r"(idle|poll)<([0-9]{1,6}(?:\.[0-9]{1,3})?)", word, re.ASCII)
    if match is not None:
        shortest, limit = _SHORTEST[match[1]], float(match[2])
        transports = _TRANSPORTS[match[1]]
        return Condition(
            word,
            lambda findings: (shortest(findings) or limit) < limit,
            lambda findings: _are_held(findings, transports, limit),
            needs_time=True,
            transports=transports,
        )
    if word == "total":
        return Condition(
            word,
            lambda findings: timers_of(findings).total is not None,
            lambda findings: _are_held(findings, _TRANSPORTS["idle"] | _TRANSPORTS["poll"], 0.0),
            needs_time=True,
        )
    if word in _BY_PROBLEM:
        check = _BY_PROBLEM[word]
        return Condition(
            word,
            lambda findings: any(_is_about(finding, word) for finding in findings),
            lambda findings: any(_tells_of(finding, check) for finding in findings),
            transports=_SEEN_WITH.get(word, frozenset()),
        )
    known = ", ".join([*_BY_PROBLEM, "total", "idle<SECONDS", "poll<SECONDS"])
    raise BadCondition(f"expected any of {known}, found {word!r}")


def _is_about(finding: Finding, problem: str) -> bool:
    return finding.advice == problem and finding.verdict in (Verdict.ADVICE, Verdict.BROKEN)


def _tells_of(finding: Finding, check: str) -> bool:
    # That a stream begins says nothing of what becomes of events that come later, unless some were seen to.
    pieces = finding.detail.get("pieces", ())
    has_flowed = len(pieces) >= _SEVERAL and pieces[-1] - pieces[0] >= _FLOWING_SECONDS
    only_begins = check == "P4" and finding.detail.get("kind") == "begins" and not has_flowed
    return finding.check == check and finding.verdict is not Verdict.UNKNOWN and not only_begins


def _are_held(findings: Sequence[Finding], transports: Collection[str], limit: float) -> bool:
    """Whether connections of these transports were held for so long, or as long as they lasted."""
    details = [
        finding.detail
        for finding in findings
        if finding.check in ("P12", "P13") and finding.detail.get("transport") in transports
    ]
    limits = [detail.get("total") or detail.get("idle") for detail in details]
    return bool(limits) and all(each and (each["high"] is not None or each["low"] >= limit) for each in limits)


#: So many pieces, with so long between the first and the last, are a stream that flows.
_SEVERAL, _FLOWING_SECONDS = 3, 2.0
#: Which check tells of each.
_BY_PROBLEM = {
    advice.NO_WEBSOCKET: "P3",
    advice.BUFFERED: "P4",
    advice.COMPRESSED: "P5",
    advice.SHARED: "P6",
    advice.HOST: "P7",
    advice.RETRIES: "P11",
}
_TRANSPORTS = {"idle": frozenset({"ws", "sse"}), "poll": frozenset({"poll"})}
_SEEN_WITH = {
    advice.NO_WEBSOCKET: frozenset({"ws"}),
    advice.BUFFERED: frozenset({"sse"}),
    advice.COMPRESSED: frozenset({"sse"}),
    advice.SHARED: frozenset({"sse"}),
}
_SHORTEST: dict[str, Callable[[Iterable[Finding]], float | None]] = {
    "idle": idle_of,
    "poll": lambda findings: timers_of(findings).poll,
}
