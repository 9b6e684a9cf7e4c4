"""How the profiles compare with the programs that they are named after: what may differ, and why."""

import re
from collections.abc import Iterator
from enum import Enum
from fnmatch import fnmatch
from typing import NamedTuple

from proxies.matrix import Beginning, Outcomes, Wanted, play_programs, profile, real
from proxies.observed import unexpected
from proxies.programs import PROGRAMS
from proxies.scenarios import SCENARIOS, Outcome

#: How often what differs is played again, by both.
REPEATS = 3


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
        profile: pattern of what the profile does instead.
        reason: why it stays.
    """

    scenarios: str
    programs: str
    profile: str
    reason: str


_THEN_NEXT = ", then, 200 'next', stays open / 1 request"
ACCEPTED = (
    Accepted(
        *("c-end-20[04]-*", "varnish-*", f"204{_THEN_NEXT}"),
        "Varnish takes a 204 that speaks of a body for broken; RFC 9112 6.3 says that there is none, whatever it says.",
    ),
    Accepted(
        *("c-end-304-*", "varnish-*", f"304{_THEN_NEXT}"),
        "Varnish has asked for no 304, and takes it for broken; it is passed on.",
    ),
    Accepted(
        *("c-end-chunk-extensions", "varnish-*", f"200 'whole'{_THEN_NEXT}"),
        "Varnish takes chunk extensions for broken; RFC 9112 7.1.1 has them ignored.",
    ),
    Accepted(
        *("c-end-*-rst", "nginx-*", "200 'part' cut short, FIN / 1 request"),
        "What nginx still holds of an answer is lost when the origin resets; the profile sends it before it ends.",
    ),
    Accepted(
        *("c-end-chunk-*", "nginx-*", "200 cut short, FIN / 1 request"),
        "nginx drops the head that it still holds when the first chunk is broken; the profile sends it before it ends.",
    ),
    Accepted(
        *("c-end-chunk-with-bytes-too-many", "*", "200( cut short, FIN|, then, 200 'next', stays open) / 1 request"),
        "Of a broken answer, the bytes that came in one read with what is broken are not passed on.",
    ),
    Accepted(
        *("c-framing-six-fields-of-7-kb", "varnish-*", "400, FIN / nothing"),
        "Varnish closes without a word when a head is larger than its memory for it.",
    ),
    Accepted(
        *("c-body-100-that-was-not-asked-for-then-200", "apache-*", "100, 200 'whole', stays open / nothing"),
        "Apache keeps a 100 that nobody asked for to itself; RFC 9110 15.2 has it forwarded.",
    ),
    Accepted(
        *(
            "c-body-request-body-of-known-length",
            "varnish-*",
            "200 'whole', stays open / from its first bytes, a length",
        ),
        "Varnish sends the head with the first bytes that fill its buffer, if the length is known.",
    ),
    Accepted(
        *("c-body-expect-100-continue", "varnish-*", "100, 200 'whole', stays open / head before the body, no Expect"),
        "The same: Varnish sends no head before the body.",
    ),
    Accepted(
        *("c-leave-closes-in-the-middle-of-a-body", "varnish-*", "nothing / 5 bytes, FIN"),
        "The same: Varnish has sent nothing yet when the client leaves.",
    ),
    Accepted(
        *("c-slow-half-a-body", "varnish-*", "503 after T, FIN after T / 5 bytes, FIN after T"),
        "The same: Varnish sends the head when it gives up.",
    ),
    Accepted(
        *("c-slow-half-a-body", "caddy-2.6 with timers", "504 after T, FIN after T / 5 bytes, FIN after T"),
        "Caddy's timer for the answer's head begins when all of the request was sent; here also while a client pauses.",
    ),
    Accepted(
        *("c-body-expect-100-continue", "caddy-*", "100, 200 'whole', stays open / head before the body, Expect"),
        "Caddy says 100 itself and passes the origin's on as well; once is enough.",
    ),
    Accepted(
        *("c-body-final-response-before-the-body", "apache-*", "413 'no', stays open, behind the body's end / nothing"),
        "Apache closes the client's connection for some statuses, of which 413 is one.",
    ),
    Accepted(
        *("c-leave-ends-its-direction-while-it-waits", "caddy-*", "FIN / FIN"),
        "Caddy has an empty 200 for a client that it takes to have left; the profile has nothing.",
    ),
    Accepted(
        *("c-leave-stops-reading-a-large-body", "varnish-*", "nothing / waits"),
        "Varnish fetches into its storage as fast as it can; the profile lets the origin wait for the client.",
    ),
    Accepted(
        *("c-slow-silence-*", "varnish-*", "200 'part' cut short, FIN after T / FIN after T"),
        "Varnish holds the first bytes of a body back that do not come in chunks.",
    ),
    Accepted(
        *("c-slow-silence-*", "caddy-2.6 with timers", "200 cut short after T, FIN after T / FIN after T"),
        "Caddy sends what it holds when a timer ends the answer; the profile sends the head alone.",
    ),
    Accepted(
        *("c-slow-silence-before-the-end-*", "haproxy-tunnel", "200 'part', FIN after T / RST after T"),
        "For HAProxy an answer that ends with the connection is a tunnel, and has the tunnel's timer.",
    ),
)


class Played(NamedTuple):
    """What happened, with the real programs and with the profiles."""

    real: Outcomes
    profile: Outcomes

    def compared(self, program: str, scenario: str) -> Verdict:
        """How the two compare in one scenario."""
        return compared(program, scenario, self.real[program][scenario], self.profile[program][scenario])

    def different(self) -> dict[str, list[str]]:
        """The scenarios in which nothing excuses that they differ, by program."""
        pairs = [(program, name) for program, name in cells() if self.compared(program, name) is Verdict.DIFFERENT]
        return {program: [name for other, name in pairs if other == program] for program, _ in pairs}

    def doubtful(self) -> dict[str, set[str]]:
        """The scenarios to be played again, by program, each once: those of one name would be taken for each other."""
        found: dict[str, set[str]] = {}
        for doubts in (self.different(), unexpected(self.real)):
            for program, names in doubts.items():
                found.setdefault(program, set()).update(names)
        return found


def cells() -> Iterator[tuple[str, str]]:
    """Each program with each scenario."""
    return ((program, scenario) for program in PROGRAMS for scenario in SCENARIOS)


def compared(program: str, scenario: str, outcome_of_real: Outcome, outcome_of_profile: Outcome) -> Verdict:
    """How what the profile did compares with what the program did."""
    if outcome_of_profile == outcome_of_real:
        return Verdict.SAME
    strict = SCENARIOS[scenario].strict
    if strict and re.fullmatch(strict, str(outcome_of_profile)):
        return Verdict.STRICTER
    return Verdict.ACCEPTED if accepted(program, scenario, outcome_of_profile) else Verdict.DIFFERENT


def accepted(program: str, scenario: str, outcome_of_profile: Outcome) -> Accepted | None:
    """What excuses that the profile does this, if anything."""
    for one in ACCEPTED:
        is_meant = fnmatch(scenario, one.scenarios) and fnmatch(program, one.programs)
        if is_meant and re.fullmatch(one.profile, str(outcome_of_profile)):
            return one
    return None


async def play_everything() -> Played:
    """Plays all scenarios with the real programs and with the profiles.

    A machine that is busy can make anything late, and what is late is told in other words. So what is not as it should
    be is played again, with little else going on: what a program does comes again.
    """
    played = Played({}, {})
    await _play(played, None)
    for _ in range(REPEATS):
        if doubtful := played.doubtful():
            await _play(played, doubtful)
    return played


async def _play(played: Played, wanted: Wanted | None) -> None:
    async def play(outcomes: Outcomes, begin: Beginning) -> None:
        for program, found in (await play_programs(begin, wanted)).items():
            outcomes.setdefault(program, {}).update(found)

    await play(played.real, real)
    await play(played.profile, profile)
