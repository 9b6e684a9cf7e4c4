"""Verdicts about event streams: P4 buffering, P5 compression, P6 sharing. Does no I/O."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tricast.probe import advice, arrivals
from tricast.probe.arrivals import Flow, Stream
from tricast.probe.findings import Finding, Verdict
from tricast.probe.verdicts import size

# P4 and P5


class Streams(NamedTuple):
    """How event streams came.

    Attributes:
        slow: events a quarter of a second apart.
        quick: events that are sent faster than timers of proxies are.
        padded: by how large an event is, when smaller ones were held.
    """

    slow: arrivals.Verdict
    quick: arrivals.Verdict
    padded: Mapping[int, arrivals.Verdict] = {}

    @property
    def kind(self) -> arrivals.Verdict:
        """The worse of the two."""
        return self.quick if self.slow.flow is Flow.STREAMING else self.slow


def buffering(
    ours: Streams,
    plain: Streams,
    direct: Streams | None = None,
    *,
    is_held_up: bool = False,
    speed: float = 1.0,
) -> Iterator[Finding]:
    """P4: whether event streams flow, with the header fields that Tricast sends, and without any.

    Args:
        ours: streams with ``X-Accel-Buffering: no`` and ``Cache-Control: no-cache, no-transform``.
        plain: streams without these.
        direct: those like Tricast's, from the server itself.
        speed: by how much the timers on the way are sped up: one of these may have ended a stream.
        is_held_up: whether who measures was held up so often that what is sent in between comes in clusters.
    """
    if is_held_up and Flow.COALESCED in (ours.kind.flow, plain.kind.flow):
        summary = "not known: this machine is too busy to tell whether events come together, or are taken together"
        yield Finding(
            check="P4", title="SSE", verdict=Verdict.UNKNOWN, summary=summary, detail=_detail(ours.kind, ours)
        )
        return
    if speed > 1.0 and ours.kind.flow is Flow.CUT:
        summary = f"not known: the stream ends before it is over, maybe by a timer that is {speed:g} times as fast"
        yield Finding(
            check="P4", title="SSE", verdict=Verdict.UNKNOWN, summary=summary, detail=_detail(ours.kind, ours)
        )
        return
    yield _flow("SSE", ours, direct, is_ours=True)
    if plain.kind.flow is not ours.kind.flow:
        yield _flow("SSE without these fields", plain, direct, is_ours=False)


_WORST = (Flow.HELD, Flow.REFUSED, Flow.CUT, Flow.CHANGED, Flow.STEPWISE)


def _flow(title: str, streams: Streams, direct: Streams | None, *, is_ours: bool) -> Finding:
    kind = streams.kind
    verdict = Verdict.BROKEN if kind.flow in _WORST else Verdict.ADVICE if kind.flow is Flow.COALESCED else Verdict.OK
    words = in_words(kind, streams.padded)
    is_servers = direct is not None and direct.kind.flow is kind.flow and verdict is not Verdict.OK
    if is_servers:
        verdict, words = Verdict.INFO, f"{words}; the same at the server itself"
    elif not is_ours:
        verdict = Verdict.INFO
        if kind.flow is not Flow.STREAMING:
            words += "; with X-Accel-Buffering: no, which Tricast sends, they are not"
    if verdict is Verdict.OK and streams.slow.head_delay:
        words += f"; the head waits for the first event ({streams.slow.head_delay * 1000:.0f} ms)"
    return Finding(
        check="P4",
        title=title,
        verdict=verdict,
        summary=words,
        detail=_detail(kind, streams),
        advice=advice.BUFFERED if verdict in (Verdict.BROKEN, Verdict.ADVICE) else None,
    )


def in_words(kind: arrivals.Verdict, padded: Mapping[int, arrivals.Verdict] = {}) -> str:
    """How a stream comes, in words."""
    match kind.flow:
        case Flow.COALESCED:
            return f"events are collected and come together, about every {kind.period * 1000:.0f} ms"
        case Flow.STEPWISE:
            return f"events are held back until there are about {size(kind.step)} of them"
        case Flow.HELD:
            return f"events are held back until the stream ends{_after(padded)}"
        case flow:
            return _IN_WORDS[flow]


_IN_WORDS = {
    Flow.STREAMING: "each event comes when it is sent",
    Flow.CUT: "the stream ends before it is over",
    Flow.CHANGED: "what comes is not an event stream any more",
    Flow.REFUSED: "the stream is refused",
}


def _after(padded: Mapping[int, arrivals.Verdict]) -> str:
    step, between = _buffer(padded)
    if step:
        return f", or until there are about {size(step)} of them"
    if between:
        return f", or until there are more than {size(between[0])} and at most {size(between[1])} of them"
    return ""


def _buffer(padded: Mapping[int, arrivals.Verdict]) -> tuple[int, tuple[int, int] | None]:
    steps = [verdict.step for _, verdict in sorted(padded.items()) if verdict.flow is Flow.STEPWISE]
    return (steps[0] if steps else 0), arrivals.released_after(padded)


def _detail(kind: arrivals.Verdict, streams: Streams) -> dict[str, Any]:
    detail: dict[str, Any] = {"kind": kind.flow.value, "delay": round(kind.delay, 3)}
    if kind.flow is Flow.COALESCED:
        detail["period"] = round(kind.period, 3)
    step, between = _buffer(streams.padded)
    if kind.flow is Flow.STEPWISE or step:
        detail["buffer_bytes"] = kind.step or step
    elif between:
        detail["buffer_bytes_between"] = list(between)
    if streams.slow.head_delay:
        detail["head_delay"] = round(streams.slow.head_delay, 3)
    return detail


def compression(ours: Stream, plain: Stream, *, without: Flow, plain_without: Flow) -> Finding:
    """P5: whether the way compresses event streams, and whether they still flow then.

    Args:
        ours: a stream like Tricast's, asked for with ``Accept-Encoding: gzip``.
        plain: one without the fields that Tricast sends.
        without: how one like Tricast's came that was asked for without.
        plain_without: how one without those fields came that was asked for without.
    """
    coded, plain_coded = ours.encoding, plain.encoding
    kind, plain_kind = arrivals.judge(ours), arrivals.judge(plain)
    verdict, problem = Verdict.OK, None
    if coded and kind.flow is not without and kind.flow is not Flow.STREAMING:
        verdict, problem = Verdict.BROKEN, advice.COMPRESSED
        words = f"{coded} is added on the way, although no-transform forbids it, and then {in_words(kind)}"
    elif coded:
        words, verdict = (
            f"{coded} is added on the way, although no-transform forbids it; events still flow",
            Verdict.INFO,
        )
    elif plain_coded and plain_kind.flow is not plain_without and plain_kind.flow is not Flow.STREAMING:
        words = f"no, for Tricast's no-transform is obeyed; other streams get {plain_coded}, and {in_words(plain_kind)}"
        verdict = Verdict.INFO
    elif plain_coded:
        words = f"no, for Tricast's no-transform is obeyed; other streams get {plain_coded}"
    else:
        words = "streams are left as they are"
    return Finding(
        check="P5",
        title="compression",
        verdict=verdict,
        summary=words,
        detail={
            "encoding": coded,
            "plain_encoding": plain_coded,
            "kind": kind.flow.value,
            "plain": plain_kind.flow.value,
        },
        advice=problem,
    )


# P6


class Sharing(NamedTuple):
    """Which of the server's streams three clients got that asked for the same URL.

    Attributes:
        streams: what names the stream: of the first; of the second, which came while that went on; and of the third,
            which came when both had ended. None where no stream came.
        age: the Age field of the third answer, or empty.
    """

    streams: tuple[str | None, str | None, str | None]
    age: str = ""

    @property
    def is_shared(self) -> bool:
        """Whether who came while one went on got the same."""
        return self.streams[0] is not None and self.streams[0] == self.streams[1]

    @property
    def is_cached(self) -> bool:
        """Whether who came later got one of the earlier ones."""
        return self.streams[2] is not None and self.streams[2] in self.streams[:2]


def sharing(ours: Sharing, plain: Sharing) -> Finding:
    """P6: whether clients get a stream each.

    Args:
        ours: what became of streams like Tricast's.
        plain: of those without the fields that Tricast sends.
    """
    is_bad = ours.is_shared or ours.is_cached
    verdict = Verdict.BROKEN if is_bad else Verdict.UNKNOWN if None in ours.streams else Verdict.OK
    words = _sharing_in_words(ours)
    if verdict is Verdict.OK and (plain.is_shared or plain.is_cached):
        verdict = Verdict.INFO
        words += f"; without Cache-Control: no-cache, which Tricast sends, {_sharing_in_words(plain)}"
    return Finding(
        check="P6",
        title="shared or cached",
        verdict=verdict,
        summary=words,
        detail={
            "is_shared": ours.is_shared,
            "is_cached": ours.is_cached,
            "is_plain_shared": plain.is_shared,
            "is_plain_cached": plain.is_cached,
            "age": ours.age,
        },
        advice=advice.SHARED if is_bad else None,
    )


def _sharing_in_words(found: Sharing) -> str:
    if found.is_shared and found.is_cached:
        return "one stream is for all who ask for the same, and a copy for who comes later"
    if found.is_shared:
        return "one stream is for all who ask for the same: later ones get what is past, or nothing"
    if found.is_cached:
        return "who comes later gets a copy of an earlier stream"
    if None in found.streams:
        return "not known: a stream was refused"
    return "no: each client gets a stream of its own"
