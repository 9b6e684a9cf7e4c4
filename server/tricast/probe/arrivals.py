"""Whether a stream of events flows: when each was sent, and when it came. Does no I/O.

The two clocks need not agree: what is compared is the time between two events at the sender with the time between the
same two at the receiver. A delay that is the same for all of them cannot be seen that way, so that what waits for a
timer shows in how events that are sent quickly come in clusters.
"""

import itertools
from collections.abc import Mapping, Sequence
from enum import StrEnum
from statistics import median
from typing import NamedTuple

#: Events that come closer together than this, or than a third of the time between their sending, came together.
_TOGETHER_SECONDS = 0.02
#: A stream of which everything comes within this share of the time that it was sent in, was held.
_HELD_SHARE = 0.3
#: When at least this share of the clusters hold several events, they are being collected. A pause of the machine that
#: measures makes one such cluster, or two.
_CROWDED_SHARE = 0.5
#: Below this, it is not said that bytes were counted rather than time.
_SMALLEST_STEP = 512
#: A timer lets nobody wait much longer than itself, and is seldom longer than this.
_LONGEST_TIMER = 0.5


class Flow(StrEnum):
    """How a stream comes."""

    STREAMING = "streaming"  # as it is sent
    COALESCED = "coalesced"  # in clusters, one each period
    HELD = "held"  # all at the end
    STEPWISE = "stepwise"  # in clusters, each of about as many bytes
    CUT = "cut"  # it ended early
    REFUSED = "refused"  # there was no stream
    CHANGED = "changed"  # what came is not what was sent


class Arrival(NamedTuple):
    """One event.

    Attributes:
        sent: seconds, by the sender's clock.
        arrived: seconds, by the receiver's clock.
        size: bytes of the event.
    """

    sent: float
    arrived: float
    size: int


class Stream(NamedTuple):
    """One stream, as it came.

    Attributes:
        asked: when it was asked for, by the receiver's clock.
        head: when the head of the answer came; None if none did.
        ended: when it ended; None if it did not while it was looked at.
        arrivals: the events that came.
        expected: how many were to come.
        status: of the answer.
        encoding: Content-Encoding of the answer.
        is_readable: whether the events could be read as they were sent.
        pieces: when bytes of the body came, whatever is in them, and how many.
    """

    asked: float
    head: float | None
    ended: float | None
    arrivals: Sequence[Arrival]
    expected: int
    status: int = 200
    encoding: str = ""
    is_readable: bool = True
    pieces: Sequence[tuple[float, int]] = ()


class Verdict(NamedTuple):
    """How a stream came, with the figures.

    Attributes:
        flow: in a word.
        period: seconds between clusters, when it is coalesced.
        step: bytes that were released at a time, when it is stepwise.
        delay: the longest that an event came later than the quickest one, in seconds.
        head_delay: seconds for which the head was held until the first event, 0 if it was not.
    """

    flow: Flow
    period: float = 0.0
    step: int = 0
    delay: float = 0.0
    head_delay: float = 0.0


def judge(stream: Stream) -> Verdict:
    """How one stream came."""
    if (stream.head is None and stream.ended is not None) or not 200 <= stream.status < 300:
        return Verdict(Flow.REFUSED)
    if not stream.is_readable:
        return Verdict(Flow.CHANGED)
    arrivals = stream.arrivals
    if len(arrivals) < stream.expected:  # what should have come long ago, and has not when it is given up, is held
        return Verdict(Flow.HELD if stream.ended is None else Flow.CUT)
    delay, head_delay = _delay(arrivals), _head_delay(stream)
    sent_within = arrivals[-1].sent - arrivals[0].sent
    if arrivals[-1].arrived - arrivals[0].arrived <= sent_within * _HELD_SHARE:
        return Verdict(Flow.HELD, delay=delay)
    found = clusters(arrivals)
    crowded = sum(len(cluster) > 1 for cluster in found)
    if crowded > 1 and crowded >= len(found) * _CROWDED_SHARE:
        return _collected(found, _steps(stream), delay, head_delay)
    return Verdict(Flow.STREAMING, delay=delay, head_delay=head_delay)


def _collected(found: list[list[Arrival]], steps: list[int], delay: float, head_delay: float) -> Verdict:
    """By time or by bytes? The last cluster is set free by the end, so that it says nothing."""
    step = int(median(steps[:-1] or steps or [0]))
    begins = [cluster[0].arrived for cluster in found[:-1]]
    gaps = [after - before for before, after in itertools.pairwise(begins)]
    longest = max((cluster[-1].sent - cluster[0].sent for cluster in found), default=0.0)
    if step >= _SMALLEST_STEP and longest > _LONGEST_TIMER:
        return Verdict(Flow.STEPWISE, step=step, delay=delay, head_delay=head_delay)
    return Verdict(Flow.COALESCED, period=median(gaps) if gaps else delay, delay=delay, head_delay=head_delay)


def _steps(stream: Stream) -> list[int]:
    """How many bytes came at a time: events may be cut in two by that."""
    sizes: list[int] = []
    last = -1.0
    for at, size in stream.pieces:
        if sizes and at - last <= _TOGETHER_SECONDS:
            sizes[-1] += size
        else:
            sizes.append(size)
        last = at
    return sizes


def clusters(arrivals: Sequence[Arrival]) -> list[list[Arrival]]:
    """The events by who came together, though they were sent one after the other."""
    found: list[list[Arrival]] = []
    for arrival in arrivals:
        before = found[-1][-1] if found else None
        if before is not None and arrival.arrived - before.arrived <= _together(before, arrival):
            found[-1].append(arrival)
        else:
            found.append([arrival])
    return found


def _together(before: Arrival, arrival: Arrival) -> float:
    return min(_TOGETHER_SECONDS, (arrival.sent - before.sent) / 3)


def _delay(arrivals: Sequence[Arrival]) -> float:
    on_the_way = [arrival.arrived - arrival.sent for arrival in arrivals]
    return max(on_the_way) - min(on_the_way)


def _head_delay(stream: Stream) -> float:
    """How long the head waited for the first event, which the server sends some time after it."""
    assert stream.head is not None
    first, second = stream.arrivals[:2] if len(stream.arrivals) > 1 else (None, None)
    if first is None or second is None:
        return 0.0
    gap = second.sent - first.sent
    waited = stream.head - stream.asked
    return waited if first.arrived - stream.head < gap * _HELD_SHARE and waited > gap * (1 - _HELD_SHARE) else 0.0


def released_after(by_size: Mapping[int, Verdict]) -> tuple[int, int] | None:
    """The size of the buffer, from streams with events of several sizes.

    Args:
        by_size: bytes of an event to how they came.

    Returns:
        The largest size that was held and the smallest that was not; None if they all came alike.
    """
    held = [size for size, verdict in by_size.items() if verdict.flow in (Flow.HELD, Flow.STEPWISE)]
    passed = [size for size, verdict in by_size.items() if verdict.flow in (Flow.STREAMING, Flow.COALESCED)]
    if not held or not passed or max(held) > min(passed):
        return None
    return max(held), min(passed)
