"""What a profile may do otherwise than the program that it is named after, and why; and all of it as tables."""

import re
from collections.abc import Iterator
from enum import Enum
from fnmatch import fnmatch
from typing import NamedTuple

from proxies.matrix import Outcomes
from proxies.programs import PROGRAMS
from proxies.scenarios import MATRICES, SCENARIOS, Outcome


class Verdict(Enum):
    """How a profile compares with its program in one scenario."""

    SAME = "same"
    STRICTER = "stricter"
    ACCEPTED = "accepted"
    DIFFERENT = "different"


class Accepted(NamedTuple):
    """A difference that stays.

    Attributes:
        scenarios: pattern of their names.
        programs: pattern of their names.
        reason: why it stays.
    """

    scenarios: str
    programs: str
    reason: str


ACCEPTED = (
    Accepted("c-end-20?-*", "varnish-*", "Varnish takes an answer without a body, but with a length, for a broken one."),
)


def compared(scenario: str, program: str, real: Outcome, profile: Outcome) -> Verdict:
    """How what the profile did compares with what the program did."""
    if real == profile:
        return Verdict.SAME
    strict = SCENARIOS[scenario].strict
    if strict and re.fullmatch(strict, str(profile)):
        return Verdict.STRICTER
    return Verdict.ACCEPTED if reason_for(scenario, program) else Verdict.DIFFERENT


def reason_for(scenario: str, program: str) -> str:
    """Why a difference there is accepted; empty if it is not."""
    for one in ACCEPTED:
        if fnmatch(scenario, one.scenarios) and fnmatch(program, one.programs):
            return one.reason
    return ""
