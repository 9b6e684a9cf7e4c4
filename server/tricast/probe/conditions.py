"""What ``--fail-on`` names: the findings that somebody does not want to live with. Does no I/O."""

import re
from collections.abc import Callable, Iterable, Sequence
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
        needs_time: whether it cannot be known without waiting for timers.
        transports: at least one of which has to be looked at for it; empty where none has to be.
    """

    text: str
    holds: Callable[[Sequence[Finding]], bool]
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
        transports = frozenset({"poll"} if match[1] == "poll" else {"ws", "sse"})
        return Condition(
            word, lambda findings: (shortest(findings) or limit) < limit, needs_time=True, transports=transports
        )
    if word == "total":
        return Condition(word, lambda findings: timers_of(findings).total is not None, needs_time=True)
    if word in _BY_PROBLEM:
        transports = _SEEN_WITH.get(word, frozenset())
        return Condition(
            word, lambda findings: any(_is_about(finding, word) for finding in findings), transports=transports
        )
    known = ", ".join([*_BY_PROBLEM, "total", "idle<SECONDS", "poll<SECONDS"])
    raise BadCondition(f"expected any of {known}, found {word!r}")


def _is_about(finding: Finding, problem: str) -> bool:
    return finding.advice == problem and finding.verdict in (Verdict.ADVICE, Verdict.BROKEN)


_BY_PROBLEM = (advice.NO_WEBSOCKET, advice.BUFFERED, advice.COMPRESSED, advice.SHARED, advice.HOST, advice.RETRIES)
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
