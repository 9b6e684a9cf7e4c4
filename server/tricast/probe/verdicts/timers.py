"""What it means when connections that were held ended, or did not: P12, P13, P14 and P17. Does no I/O.

Times in results are those of the timers, at the speed that they have in earnest.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from tricast.probe import advice
from tricast.probe.blame import Blame, Culprit, blame
from tricast.probe.cells import POOL, Mode, Outcome, Plan, State, bracket, is_outdated, of
from tricast.probe.findings import Finding, Verdict
from tricast.probe.known import snap
from tricast.probe.link import End

#: How far two measurements of one timer may be apart.
_ALIKE = 0.1
#: How long who measures may be held up, on the wire.
_HELD_UP_SECONDS = 0.5
#: What Tricast does unless it is told otherwise: ``poll.timeout``, and how often it lets itself be heard.
_POLL_TIMEOUT = 25.0
_HEARD_EVERY = 15.0
_ENDED = (State.CUT, State.HALF, State.LOST)
_STREAMS = ("ws", "sse")
#: These are said by gateways, of a server that did not answer (RFC 9110 15.6); others a server may say as well.
_GATEWAYS = (460, 502, 504, 524)
#: How an end looks at the server that is not its own.
_AWAY = ("fin", "rst")
#: What was silent for less was ended with its client.
_KEPT_SECONDS = 0.3
#: What is to be done about a server that keeps connections for too short a time.
SERVER_KEEPALIVE = "server-keepalive"


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """How long a timer is, in seconds.

    Attributes:
        low: at least.
        high: at most; None where it is only known that it is longer.
        spread: between the shortest and the longest of several measurements.
        count: of measurements.
        constant: a known timer that this can be.
        owners: whose that one is.
    """

    low: float
    high: float | None
    spread: float = 0.0
    count: int = 1
    constant: float | None = None
    owners: str = ""

    @property
    def seconds(self) -> float:
        """What to reckon with: the known timer, or the lower end."""
        return self.constant if self.constant is not None else self.low


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one transport.

    Attributes:
        transport: ``ws``, ``sse``, ``poll`` or ``keepalive``.
        refused: why nothing could be measured; empty where it could.
        idle: how long a silence may be; for a poll, how long it may take.
        total: how long a connection may last whatever is said on it; None where nothing tells of such a limit.
        counts: whose bytes keep it alive: ``either``, ``server``, ``client``, ``both`` where one side alone does not
            do, ``none``; ``unknown`` where it was not idle long enough to find out.
        tcp_keepalive: whether TCP's own keepalive does; None where it was not found out.
        pinged: whether it outlives its idle timer when something is said every 15 s; None as above.
        culprit: who ends it.
        how: what the client sees of that, see ``link.End``; empty for nothing.
        form: how that looks.
        hint: who is known for it.
        page: who signs the answer, where there is one.
        calls: how often a poll that took too long came to the server.
    """

    transport: str
    refused: str = ""
    idle: Estimate | None = None
    total: Estimate | None = None
    counts: str = "unknown"
    tcp_keepalive: bool | None = None
    pinged: bool | None = None
    culprit: str = ""
    how: str = ""
    form: str = ""
    hint: str = ""
    page: str = ""
    calls: int = 1


# From outcomes to timings


def timing(outcomes: Sequence[Outcome], transport: str, plan: Plan) -> Timing:
    """What the outcomes tell of one transport."""
    idle = of(outcomes, transport, Mode.IDLE)
    usable = [outcome for outcome in idle if outcome.state is not State.REFUSED]
    if not usable:
        return Timing(transport=transport, refused=next((o.why for o in idle if o.why), "not measured"))
    cut = [outcome for outcome in usable if outcome.state in (State.CUT, State.HALF)]
    silent = bracket(outcomes, transport, is_refined=True)
    if cut:
        return _cut_timing(outcomes, transport, plan, cut)
    if silent is not None:
        return _silent_timing(outcomes, transport, plan, silent)
    alive = min(outcome.silence if plan.is_foreign else outcome.age for outcome in usable) * plan.speed
    return Timing(transport=transport, idle=Estimate(low=alive, high=None, count=len(usable)))


def _cut_timing(outcomes: Sequence[Outcome], transport: str, plan: Plan, cut: Sequence[Outcome]) -> Timing:
    lengths = [_length(outcome, plan) * plan.speed for outcome in cut]
    after = min(lengths)
    found = _estimate(lengths, transport)
    first = cut[0]
    how = first.how if first.state is State.CUT else ""
    seen = None if is_outdated(first) else first.seen
    whose = blame(how, first.code, seen, is_idle_http=transport == "keepalive")
    if plan.is_foreign and first.code not in _GATEWAYS:
        whose = whose._replace(culprit=Culprit.UNKNOWN)
    total = _total(outcomes, transport, plan, after)
    is_only_total = total is not None and (plan.is_foreign or _is_same(outcomes, transport, plan, after))
    return Timing(
        transport=transport,
        idle=None if is_only_total else found,
        total=total,
        counts="none" if is_only_total else _counts(outcomes, transport, plan, after),
        tcp_keepalive=_outlives(outcomes, transport, Mode.KEEPALIVE, plan, after),
        pinged=_outlives(outcomes, transport, Mode.PINGED, plan, after),
        culprit=whose.culprit,
        how=how,
        form=whose.form,
        hint=whose.hint,
        page=first.page if first.how == End.STATUS else "",
        calls=max(_calls(outcome) for outcome in cut) or 1,
    )


def _silent_timing(outcomes: Sequence[Outcome], transport: str, plan: Plan, silent: tuple[float, float]) -> Timing:
    low, high = silent[0] * plan.speed, silent[1] * plan.speed
    known = snap(high, transport, low=low)
    whose = _silent_blame(outcomes, transport)
    return Timing(
        transport=transport,
        idle=Estimate(low=low, high=high, constant=known[0] if known else None, owners=known[1] if known else ""),
        total=None,
        counts=_counts(outcomes, transport, plan, high),
        tcp_keepalive=None,  # a connection that is not cut looks alive to its owner, whatever keeps it so
        pinged=_outlives(outcomes, transport, Mode.PINGED, plan, high),
        culprit=whose.culprit,
        form=whose.form,
        hint=whose.hint,
    )


def _silent_blame(outcomes: Sequence[Outcome], transport: str) -> Blame:
    """Who drops it: both ends are open, as far as each of them can see."""
    for outcome in of(outcomes, transport, Mode.RUNG):
        if outcome.state is State.LOST and outcome.seen is not None:
            seen = outcome.seen
            # What it sent and closed did not arrive either; and what ends by being used was lost before.
            is_by_use = seen.end == "own" or (seen.ended is not None and seen.ended >= outcome.cell.gap)
            return blame("", None, msgspec.structs.replace(seen, end=None) if is_by_use else seen)
    return Blame(Culprit.SILENT, "nothing arrives any more")


def _length(outcome: Outcome, plan: Plan) -> float:
    """How long the timer was: where a request was sent again by who gave up, as the server saw the first time."""
    if plan.is_foreign:
        return outcome.quiet if outcome.state in _ENDED else outcome.age  # it says something whenever it likes
    seen = outcome.seen
    if seen is None or seen.ended is None:
        return outcome.age
    if outcome.cell.transport == "poll":
        return seen.ended if _calls(outcome) > 1 else outcome.age
    # The silence begins with the last byte, which the server may have been slow to send.
    return min(outcome.age, seen.ended - max(seen.last_received, seen.last_sent or 0.0))


def _lasted(outcome: Outcome) -> float:
    """How long it has lasted since the server knows of it, so that it can be compared with others."""
    seen = outcome.seen
    if seen is None:
        return outcome.age
    return min(outcome.age, seen.age if seen.ended is None else seen.ended)


def _calls(outcome: Outcome) -> int:
    """How often a request came to the server, or to several of them: each was left alone after the same time."""
    seen = outcome.seen
    if outcome.how != End.STATUS or seen is None or not seen.ended:
        return outcome.calls
    return max(outcome.calls, round(outcome.age / seen.ended))


def _estimate(lengths: Sequence[float], transport: str) -> Estimate:
    # A timer is never early, but whatever tells of it may be late; and of several that differ, the shortest matters.
    shortest = min(lengths)
    known = snap(shortest, transport)
    return Estimate(
        low=shortest,
        high=shortest,
        spread=max(lengths) - min(lengths),
        count=len(lengths),
        constant=known[0] if known else None,
        owners=known[1] if known else "",
    )


def _total(outcomes: Sequence[Outcome], transport: str, plan: Plan, after: float) -> Estimate | None:
    """The clock that nothing resets, if there is one: what is busy in both directions ends as well."""
    if plan.is_foreign and (total := _foreign_total(outcomes, transport, plan)) is not None:
        return total
    busy = _busy(outcomes, transport)
    if not busy or not all(outcome.state in _ENDED for outcome in busy):
        return None
    lengths = [outcome.age * plan.speed for outcome in busy]
    # An idle timer that is shorter than the interval ends them as well.
    return _estimate(lengths, transport) if after > plan.interval * plan.speed * (1 + _ALIKE) else None


def _is_same(outcomes: Sequence[Outcome], transport: str, plan: Plan, after: float) -> bool:
    """Whether what is busy ends when what is silent does."""
    busy = [_lasted(outcome) for outcome in _busy(outcomes, transport)]
    return min(busy) * plan.speed <= after + _margin(after, plan)


def _busy(outcomes: Sequence[Outcome], transport: str) -> list[Outcome]:
    return of(outcomes, transport, Mode.BOTH if transport == "ws" else Mode.SERVER)


def _foreign_total(outcomes: Sequence[Outcome], transport: str, plan: Plan) -> Estimate | None:
    """The same where a server says what it likes: what has ended after less silence than it had lived through."""
    ended = [outcome for outcome in of(outcomes, transport, Mode.IDLE) if outcome.state in _ENDED]
    if not ended or not all(outcome.quiet < outcome.silence * (1 - _ALIKE) for outcome in ended):
        return None
    return _estimate([outcome.age * plan.speed for outcome in ended], transport)


def _counts(outcomes: Sequence[Outcome], transport: str, plan: Plan, after: float) -> str:
    server = _outlives(outcomes, transport, Mode.SERVER, plan, after)
    if transport == "sse":
        return {True: "either", False: "none", None: "unknown"}[server]
    client = _outlives(outcomes, transport, Mode.CLIENT, plan, after)
    if server is None or client is None:
        both = _outlives(outcomes, transport, Mode.BOTH, plan, after)
        return "either" if both and transport == "ws" and plan.is_foreign else "unknown"
    if server or client:
        return "either" if server and client else "server" if server else "client"
    return "both" if _outlives(outcomes, transport, Mode.BOTH, plan, after) else "none"


def _outlives(outcomes: Sequence[Outcome], transport: str, mode: Mode, plan: Plan, after: float) -> bool | None:
    """Whether cells of this mode live on when idle ones do not; None where they did not live to show it."""
    found = [outcome for outcome in of(outcomes, transport, mode) if outcome.state is not State.REFUSED]
    if not found:
        return None
    limit = after / plan.speed + plan.interval  # what was said last may have been just before
    margin = _margin(after, plan) / plan.speed
    if all(_lasted(outcome) > limit + (margin if outcome.state in _ENDED else 0.0) for outcome in found):
        return True
    return False if all(outcome.state in _ENDED for outcome in found) else None


def _margin(after: float, plan: Plan) -> float:
    """How much later than another one a cell may end that was ended by the same timer."""
    return max(_ALIKE * after, _HELD_UP_SECONDS * plan.speed)


# From timings to findings


def timers(outcomes: Sequence[Outcome], plan: Plan, direct: Sequence[Outcome] = ()) -> Iterator[Finding]:
    """P12, P13, P14 and P17.

    Args:
        outcomes: through whatever is in the way.
        plan: what was held.
        direct: the same at the server itself, if that could be reached: what ends there as well is not held against
            the way.
    """
    for transport in plan.transports:
        found = timing(outcomes, transport, plan)
        if direct and _is_servers(found, timing(direct, transport, plan)):
            found = msgspec.structs.replace(found, culprit=Culprit.SERVER, hint="the same at the server itself")
        if transport == "poll":
            yield _poll(found)
            yield from _poll_retried(found)
        else:
            yield _idle(found)
        if transport in _STREAMS and not found.refused:
            yield _pinged(found)
    if not plan.is_foreign:
        yield _pool(of(outcomes, POOL), plan)


def _is_servers(found: Timing, at_server: Timing) -> bool:
    ours, theirs = found.total or found.idle, at_server.total or at_server.idle
    if ours is None or theirs is None or ours.high is None or theirs.high is None:
        return False
    return abs(ours.high - theirs.high) <= _ALIKE * max(ours.high, theirs.high)


class _About(NamedTuple):
    """What a finding is about."""

    check: str
    title: str
    found: Timing

    def finding(self, verdict: Verdict, summary: str, key: str | None = None) -> Finding:
        detail = msgspec.to_builtins(self.found)
        return Finding(check=self.check, title=self.title, verdict=verdict, summary=summary, detail=detail, advice=key)


def _idle(found: Timing) -> Finding:
    """P13."""
    about = _About("P13", f"{found.transport} idle", found)
    if found.refused:
        return about.finding(Verdict.UNKNOWN, found.refused)
    limit = found.total or found.idle
    assert limit is not None
    if limit.high is None:
        return about.finding(Verdict.OK, f"nothing ends a silence of {_seconds(limit.low)}")
    summary = _in_words(found)
    # An end by the protocol's own word is the server's right, where it cannot be asked whether it was its own.
    is_word = found.culprit == Culprit.UNKNOWN and found.how in (End.CLOSE, End.COMPLETE)
    if found.culprit == Culprit.SERVER or found.transport == "keepalive" or is_word:
        return about.finding(Verdict.INFO, summary)
    if found.total is not None:
        return about.finding(Verdict.ADVICE, summary, advice.TOTAL)
    is_cleanly_cut = (
        found.culprit in (Culprit.PATH, Culprit.UNKNOWN) and "as if the answer were whole" not in found.form
    )
    is_long = limit.low >= 2 * _HEARD_EVERY
    if is_cleanly_cut and is_long:
        return about.finding(Verdict.OK, summary)
    return about.finding(Verdict.ADVICE, summary, advice.IDLE)


def _pinged(found: Timing) -> Finding:
    """P14."""
    about = _About("P14", f"{found.transport} with {_HEARD_EVERY:g} s pings", found)
    limit = found.idle
    if found.total is None and (limit is None or limit.high is None):
        low = 0.0 if limit is None else limit.low
        summary = f"inconclusive: a silence of {_seconds(low)} does no harm either"
        return about.finding(Verdict.INFO, summary)
    if found.total is not None:
        summary = f"no: whatever is said, it ends after {_about(found.total)}; come back with the last id"
        return about.finding(Verdict.ADVICE, summary, advice.TOTAL)
    if found.pinged:
        return about.finding(Verdict.OK, "yes: what is pinged outlives what is silent")
    if found.pinged is None:
        return about.finding(Verdict.UNKNOWN, "not found out: too little time")
    if found.culprit == Culprit.SERVER:
        return about.finding(Verdict.INFO, "no: the server ends it")
    return about.finding(Verdict.BROKEN, "no: what is pinged ends like what is silent", advice.IDLE)


def _poll(found: Timing) -> Finding:
    """P12."""
    about = _About("P12", "longest poll", found)
    if found.refused:
        return about.finding(Verdict.UNKNOWN, found.refused)
    limit = found.idle
    assert limit is not None
    if limit.high is None:
        return about.finding(Verdict.OK, f"a poll may take {_seconds(limit.low)}, and maybe more")
    summary = _in_words(found)
    if found.culprit == Culprit.SERVER:
        return about.finding(Verdict.INFO, summary)
    if limit.seconds > _POLL_TIMEOUT * (1 + _ALIKE):
        return about.finding(Verdict.OK, summary)
    return about.finding(Verdict.BROKEN, summary, advice.POLL)


def _poll_retried(found: Timing) -> Iterator[Finding]:
    if found.calls > 1:
        summary = f"a poll that took too long came to the server {found.calls} times"
        yield _About("P12", "polls sent again", found).finding(Verdict.ADVICE, summary, advice.RETRIES)


def _pool(outcomes: Sequence[Outcome], plan: Plan) -> Finding:
    """P17: who ends a connection first that is kept to the server.

    Where that is the server, a request that was just sent on it is lost.
    """
    asked = [outcome.seen for outcome in outcomes if outcome.state is not State.REFUSED and outcome.seen is not None]
    # One that ended in the middle of a later request, of another client, ended for that.
    seen = [record for record in asked if record.last_received <= (record.last_sent or 0.0)]
    idle = {end: [(r.ended or 0.0) - (r.last_sent or 0.0) for r in seen if r.end == end] for end in (*_AWAY, "own")}
    kept = {end: [s for s in lengths if s >= _KEPT_SECONDS] for end, lengths in idle.items()}
    away = [seconds * plan.speed for end in _AWAY for seconds in kept[end]]
    is_open = [(record.age - (record.last_sent or 0.0)) * plan.speed for record in seen if record.end is None]
    # The server's own timers are not sped up.
    detail = {"kept": max(away, default=None), "kept_by_server": max(kept["own"], default=None), "count": len(seen)}

    def finding(verdict: Verdict, summary: str, key: str | None = None) -> Finding:
        return Finding(
            check="P17", title="kept connections", verdict=verdict, summary=summary, detail=detail, advice=key
        )

    if not seen:
        why = "others used those that were kept" if asked else "not measured"
        return finding(Verdict.UNKNOWN, next((o.why for o in outcomes if o.why), why))
    if kept["own"]:
        summary = f"the server ends one first, after {_seconds(min(kept['own']))}: a request that comes then is lost; "
        summary += "limits.idle_timeout has to be longer than connections are kept on the way"
        return finding(Verdict.ADVICE, summary, SERVER_KEEPALIVE)
    longest = max(is_open, default=0.0)
    if away and longest <= max(away):
        return finding(
            Verdict.OK, f"the proxy closes those to the server first, after {_seconds(max(away))} of silence"
        )
    if is_open:
        return finding(Verdict.INFO, f"nobody ended one within {_seconds(longest)}")
    return finding(Verdict.OK, "none is kept when its client has left")


def _in_words(found: Timing) -> str:
    """What it comes to first, and then how that was found."""
    limit = found.total or found.idle
    assert limit is not None
    words = [f"{_CUT.get(found.transport, 'cut')} after {_about(limit)}"]
    if found.total is not None:
        words.append(", whatever is said,")
    if found.culprit:
        words.append(f" by {_CULPRITS[Culprit(found.culprit)]}")
    is_ours = found.culprit not in (Culprit.SERVER, Culprit.UNKNOWN) and found.pinged is not False
    if found.total is None and found.transport in _OFTEN and is_ours:
        words.append(f"; {_fit(found.transport, limit)}")
    if found.counts in _COUNTS:
        words.append(f"; {_COUNTS[found.counts]}")
    if found.tcp_keepalive:
        words.append("; TCP's own keepalive keeps it alive")
    measured = [f"x{limit.count}, spread {limit.spread:.2f}"] if limit.count > 1 else []
    measured += [found.form] if found.form else []
    if measured:
        words.append(f" ({'; '.join(measured)})")
    hints = [hint for hint in (found.page, found.hint, limit.owners) if hint]
    return "".join(words) + (f" -> {'; '.join(hints)}" if hints else "")


def _fit(transport: str, limit: Estimate) -> str:
    """Whether what Tricast does by default comes in time."""
    if transport == "poll":
        is_fine = limit.seconds > _POLL_TIMEOUT * (1 + _ALIKE)
        return f"{_OFTEN[transport]} fit" if is_fine else f"{_OFTEN[transport]} (poll.timeout) fail"
    if limit.low >= 2 * _HEARD_EVERY:
        return f"{_OFTEN[transport]} fit"
    return f"{_OFTEN[transport]} {'hardly fit' if limit.low > _HEARD_EVERY else 'come too late'}"


_CUT = {"keepalive": "the client's own connection, idle between requests, is closed"}
#: What Tricast sends, or asks for, by default.
_OFTEN = {
    "ws": f"your {_HEARD_EVERY:g} s pings",
    "sse": f"your {_HEARD_EVERY:g} s comments",
    "poll": f"your {_POLL_TIMEOUT:g} s polls",
}
_COUNTS = {
    "server": "only what the server says keeps it alive",
    "client": "only what the client says keeps it alive",
    "both": "only what both say keeps it alive",
}
_CULPRITS = {
    Culprit.SERVER: "the server itself",
    Culprit.PATH: "something on the way",
    Culprit.CLIENT_SIDE: "a hop near the client",
    Culprit.SERVER_SIDE: "a hop near the server",
    Culprit.SILENT: "something on the way that forgets it in silence",
    Culprit.UNKNOWN: "the other side, whoever that is",
}


def _about(estimate: Estimate) -> str:
    if estimate.high is not None and estimate.high - estimate.low > 0.05 * estimate.high:
        return f"{_seconds(estimate.low)} to {_seconds(estimate.high)}"
    return _seconds(estimate.low)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"
