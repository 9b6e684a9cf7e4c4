"""How a stream came, told from times alone."""

import random

import pytest

from tricast.probe.arrivals import Arrival, Flow, Stream, clusters, judge, released_after

GAP = 0.25


def stream(arrivals, *, head=0.002, ended=None, expected=None, **more):
    if ended is None and arrivals:
        ended = arrivals[-1].arrived + 0.001
    return Stream(0.0, head, ended, arrivals, len(arrivals) if expected is None else expected, **more)


def sent(count, gap=GAP, clock=5000.0):
    """Sending times by another clock."""
    return [clock + gap * (index + 1) for index in range(count)]


def through(count, way, *, gap=GAP, size=100):
    """Events whose way takes what ``way`` says about the seconds since the first was asked for."""
    begin = 5000.0
    return [Arrival(at, way(at - begin), size) for at in sent(count, gap)]


def test_what_is_passed_on_at_once():
    assert judge(stream(through(8, lambda at: at + 0.001))).flow is Flow.STREAMING


def test_a_long_way_is_no_fault():
    verdict = judge(stream(through(8, lambda at: at + 0.4), head=0.4))
    assert verdict.flow is Flow.STREAMING
    assert verdict.delay == pytest.approx(0)


@pytest.mark.parametrize("seed", range(20))
def test_jitter_is_no_fault(seed):
    randomness = random.Random(seed)
    arrivals = []
    for at in sent(8):
        earliest = arrivals[-1].arrived if arrivals else 0.0
        arrivals.append(Arrival(at, max(earliest, at - 5000 + randomness.uniform(0, 0.06)), 100))
    assert judge(stream(arrivals)).flow is Flow.STREAMING


def test_one_hiccup_is_no_fault():
    """The receiver slept for half a second."""
    late = through(20, lambda at: max(at, 0.7) if at < 0.7 and at > 0.2 else at, gap=0.05)
    assert judge(stream(late)).flow is Flow.STREAMING


def test_what_is_held_to_the_end():
    verdict = judge(stream(through(8, lambda at: 2.1)))
    assert verdict.flow is Flow.HELD
    assert verdict.delay == pytest.approx(7 * GAP)


@pytest.mark.parametrize("period", [0.1, 0.2, 0.4])
def test_what_is_sent_on_by_a_timer(period):
    verdict = judge(stream(through(30, lambda at: (at // period + 1) * period, gap=0.04)))
    assert verdict.flow is Flow.COALESCED
    assert verdict.period == pytest.approx(period, rel=0.1)


def test_what_waits_for_a_timer_that_begins_with_it():
    """A delay that is the same for every slow event shows in quick ones alone."""
    arrivals, free = [], 0.0
    for at in (time - 5000 for time in sent(20, 0.05)):
        if at > free:
            free = at + 0.2
        arrivals.append(Arrival(at + 5000, free, 100))
    verdict = judge(stream(arrivals))
    assert verdict.flow is Flow.COALESCED
    assert 0.2 <= verdict.period <= 0.3
    slow = through(8, lambda at: at + 0.2)
    assert judge(stream(slow)).flow is Flow.STREAMING


def test_what_is_released_in_steps_of_bytes():
    held, arrivals = [], []
    for at in sent(16):
        held.append(at)
        if len(held) == 4:
            arrivals += [Arrival(each, at - 5000, 1024) for each in held]
            held.clear()
    pieces = [(arrival.arrived, arrival.size) for arrival in arrivals]
    verdict = judge(stream(arrivals, pieces=pieces))
    assert verdict.flow is Flow.STEPWISE
    assert verdict.step == 4096


def test_a_head_that_waits_for_the_first_event():
    held = judge(stream(through(8, lambda at: at), head=0.249))
    assert held.flow is Flow.STREAMING
    assert held.head_delay == pytest.approx(0.249)
    assert judge(stream(through(8, lambda at: at), head=0.01)).head_delay == 0


def test_a_slow_answer_is_not_a_held_head():
    assert judge(stream(through(8, lambda at: at + 0.5), head=0.5)).head_delay == 0


@pytest.mark.parametrize(
    ("given", "flow"),
    [
        (stream([], head=None, ended=1.0, expected=8), Flow.REFUSED),
        (stream([], head=None, expected=8), Flow.HELD),
        (stream([], status=502, expected=8), Flow.REFUSED),
        (stream([], ended=1.0, expected=8), Flow.CUT),
        (stream([], expected=8), Flow.HELD),
        (stream(through(5, lambda at: at), expected=8), Flow.CUT),
        (stream([], expected=8, is_readable=False), Flow.CHANGED),
    ],
)
def test_what_is_no_stream(given, flow):
    assert judge(given).flow is flow


def test_clusters():
    found = clusters([Arrival(0, 1, 1), Arrival(0.1, 1.001, 1), Arrival(0.2, 1.002, 1), Arrival(0.3, 1.1, 1)])
    assert [len(cluster) for cluster in found] == [3, 1]


def verdict(flow):
    return judge(
        stream(through(8, {"held": lambda at: 2.1, "streaming": lambda at: at, "cut": lambda at: at}[flow]))
        if flow != "cut"
        else stream([], ended=1.0, expected=1)
    )


@pytest.mark.parametrize(
    ("by_size", "expected"),
    [
        ({0: "held", 1024: "held", 4096: "streaming", 8192: "streaming"}, (1024, 4096)),
        ({0: "streaming", 1024: "streaming"}, None),
        ({0: "held", 1024: "held"}, None),
        ({0: "streaming", 1024: "held"}, None),
        ({0: "held", 1024: "cut", 4096: "streaming"}, (0, 4096)),
    ],
)
def test_the_size_of_a_buffer(by_size, expected):
    assert released_after({size: verdict(flow) for size, flow in by_size.items()}) == expected
