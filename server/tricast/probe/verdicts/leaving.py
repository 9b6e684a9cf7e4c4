"""What it means how soon a server learns that its client has left: P9. Does no I/O."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from tricast.probe import advice
from tricast.probe.findings import Finding, Verdict

#: Sooner than this is at once: a round trip, and a moment for what is in between.
_AT_ONCE = 1.0


class Left(NamedTuple):
    """One client that has left.

    Attributes:
        kind: what it was connected to: ``ws``, ``sse``, ``silent sse`` or ``poll``.
        seconds: until the server knew; None if it did not while that was waited for.
        waited: how long it was waited for.
        says_every: how often the server said something; 0 for never.
        why: why it could not be measured; empty where it could.
    """

    kind: str
    seconds: float | None
    waited: float
    says_every: float = 0.0
    why: str = ""


def leaving(found: Sequence[Left], direct: Sequence[Left] = ()) -> Iterator[Finding]:
    """P9: a finding for each kind of client.

    Args:
        found: through whatever is in the way.
        direct: the same at the server itself, if that could be reached.
    """
    at_server = {left.kind: left for left in direct}
    for left in found:
        yield _finding(left, at_server)


def _finding(left: Left, at_server: Mapping[str, Left]) -> Finding:
    verdict, summary = _judged(left)
    direct = at_server.get(left.kind)
    if verdict is Verdict.ADVICE and direct is not None and not direct.why and direct.seconds is None:
        verdict, summary = Verdict.INFO, f"{summary}; the same at the server itself"
    detail = {"seconds": left.seconds, "waited": left.waited, "says_every": left.says_every}
    key = advice.LEAVERS if verdict is Verdict.ADVICE else None
    title = f"{left.kind} leaving"
    return Finding(check="P9", title=title, verdict=verdict, summary=summary, detail=detail, advice=key)


def _judged(left: Left) -> tuple[Verdict, str]:
    if left.why:
        return Verdict.UNKNOWN, left.why
    if left.seconds is not None and left.seconds <= _AT_ONCE:
        return Verdict.OK, f"the server knows after {left.seconds * 1000:.0f} ms"
    if left.seconds is not None and left.says_every and left.seconds <= 3 * left.says_every + _AT_ONCE:
        return Verdict.OK, f"the server knows after {left.seconds:.1f} s, when it has said something"
    summary = f"the server does not learn of it within {left.waited:.0f} s"
    if left.seconds is not None:
        summary = f"the server knows only after {left.seconds:.1f} s"
    if left.kind == "silent sse":
        return Verdict.INFO, f"{summary}, unless it says something"
    return Verdict.ADVICE, f"{summary}, and goes on for nobody until then"
