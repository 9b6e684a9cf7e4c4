"""What a check has found: plain data that a report can print and a program can read.

Knows neither how it was found nor how it is shown.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import msgspec


class Verdict(StrEnum):
    """How a finding is to be taken, from good to bad; ``UNKNOWN`` stands apart."""

    OK = "ok"
    INFO = "info"
    ADVICE = "advice"
    BROKEN = "broken"
    UNKNOWN = "unknown"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one check, or of one of its parts.

    Attributes:
        check: which check: ``P1`` to ``P17``.
        title: what was asked, in a few words: ``ws idle``.
        verdict: how to take it.
        summary: the answer, in one line for a human.
        detail: the numbers behind it, as JSON has them; times in seconds.
        advice: the key of what to do about it, where there is something to be done: ``idle``.
    """

    check: str
    title: str
    verdict: Verdict
    summary: str
    detail: dict[str, Any] = {}
    advice: str | None = None


def exit_code(findings: Iterable[Finding]) -> int:
    """0 when all is fine, 1 when there is advice, 2 when something is broken."""
    verdicts = {finding.verdict for finding in findings}
    return 2 if Verdict.BROKEN in verdicts else 1 if Verdict.ADVICE in verdicts else 0
