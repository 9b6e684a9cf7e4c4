"""What it means when connections ended, or did not."""

from collections.abc import Sequence

import pytest
from probe.outcomes import PLAN, alive, cut, idle_cut, outcome, record

from tricast.probe.blame import Culprit
from tricast.probe.cells import POOL, TRANSPORTS, Mode, Outcome, State, plan_of
from tricast.probe.findings import Finding, Verdict
from tricast.probe.link import End
from tricast.probe.verdicts.timers import timers, timing

ALL_WS = (Mode.IDLE, Mode.SERVER, Mode.CLIENT, Mode.BOTH, Mode.KEEPALIVE, Mode.PINGED)


def finding(outcomes: Sequence[Outcome], title: str, direct: Sequence[Outcome] = ()) -> Finding:
    (found,) = [each for each in timers(outcomes, PLAN, direct) if each.title == title]
    return found


def test_a_server_that_ends_nothing_is_accused_of_nothing() -> None:
    outcomes = [
        *alive("ws", ALL_WS, 130),
        *alive("sse", (Mode.IDLE, Mode.SERVER, Mode.PINGED), 130),
        *alive("poll", (Mode.IDLE,), 130),
        *alive("keepalive", (Mode.IDLE,), 130),
        outcome(POOL, Mode.IDLE, State.CUT, 0.5, seen=record(end="fin", ended=0.5, last_sent=0.5)),
    ]
    found = list(timers(outcomes, PLAN))
    assert {each.verdict for each in found} == {Verdict.OK, Verdict.INFO}
    assert "130.0 s" in finding(outcomes, "ws idle").summary
    assert finding(outcomes, "ws with 15 s pings").summary.startswith("inconclusive")


def test_an_idle_timer() -> None:
    outcomes = idle_cut("ws", [60.02, 60.0, 60.03], 125)
    found = timing(outcomes, "ws", PLAN)
    assert found.idle is not None
    assert (found.idle.low, found.idle.constant, found.idle.count) == (60.0, 60, 3)
    assert found.idle.spread == pytest.approx(0.03)
    assert (found.total, found.counts, found.tcp_keepalive, found.pinged) == (None, "either", False, True)
    assert found.culprit == Culprit.PATH
    said = finding(outcomes, "ws idle")
    assert said.verdict is Verdict.OK
    assert said.summary.startswith("cut after 60.0 s by something on the way; your 15 s pings fit (x3, spread 0.03; ")
    assert "FIN here, FIN at the server" in said.summary
    assert "nginx proxy_read_timeout" in said.summary
    assert finding(outcomes, "ws with 15 s pings").verdict is Verdict.OK


def test_results_are_at_the_speed_that_the_timers_have_in_earnest() -> None:
    plan = plan_of(130, speed=20)
    found = timing(idle_cut("ws", [3.0, 3.01], 6.5), "ws", plan)
    assert found.idle is not None
    assert found.idle.low == pytest.approx(60.0)
    assert found.idle.constant == 60


def test_an_idle_timer_that_is_too_short() -> None:
    outcomes = idle_cut("ws", [20.0], 125)
    assert (finding(outcomes, "ws idle").verdict, finding(outcomes, "ws idle").advice) == (Verdict.ADVICE, "idle")
    assert finding(outcomes, "ws with 15 s pings").verdict is Verdict.OK


def test_pings_that_come_too_late() -> None:
    outcomes = [
        *(cut("ws", mode, 12.0) for mode in (Mode.IDLE, Mode.PINGED)),
        *alive("ws", (Mode.SERVER, Mode.CLIENT, Mode.BOTH), 125),
    ]
    found = finding(outcomes, "ws with 15 s pings")
    assert (found.verdict, found.advice) == (Verdict.BROKEN, "idle")


def test_a_total_clock() -> None:
    outcomes = [cut("sse", mode, 30.0) for mode in (Mode.IDLE, Mode.SERVER, Mode.PINGED)]
    found = timing(outcomes, "sse", PLAN)
    assert found.idle is None
    assert found.total is not None
    assert (found.total.low, found.counts) == (30.0, "none")
    said = finding(outcomes, "sse idle")
    assert (said.verdict, said.advice) == (Verdict.ADVICE, "total")
    assert "Google Cloud" in said.summary
    assert finding(outcomes, "sse with 15 s pings").advice == "total"


def test_a_total_clock_behind_an_idle_timer() -> None:
    outcomes = [
        *(cut("ws", mode, 30.0) for mode in (Mode.IDLE, Mode.KEEPALIVE)),
        *(cut("ws", mode, 100.0) for mode in (Mode.SERVER, Mode.CLIENT, Mode.BOTH, Mode.PINGED)),
    ]
    found = timing(outcomes, "ws", PLAN)
    assert found.idle is not None
    assert found.total is not None
    assert (found.idle.low, found.total.low) == (30.0, 100.0)


@pytest.mark.parametrize(
    ("dead", "counts"),
    [
        ((), "either"),
        ((Mode.CLIENT,), "server"),
        ((Mode.SERVER,), "client"),
        ((Mode.CLIENT, Mode.SERVER), "both"),
    ],
)
def test_whose_bytes_count(dead: tuple[Mode, ...], counts: str) -> None:
    busy = (Mode.SERVER, Mode.CLIENT, Mode.BOTH, Mode.PINGED)
    outcomes = [cut("ws", Mode.IDLE, 60.0), *alive("ws", [mode for mode in busy if mode not in dead], 125)]
    outcomes += [cut("ws", mode, 60.1) for mode in dead]
    found = timing(outcomes, "ws", PLAN)
    assert (found.counts, found.total) == (counts, None)


def test_too_little_time_to_find_out_whose_bytes_count() -> None:
    outcomes = idle_cut("ws", [127.0], 130)
    found = timing(outcomes, "ws", PLAN)
    assert (found.counts, found.pinged) == ("unknown", None)
    assert finding(outcomes, "ws with 15 s pings").verdict is Verdict.UNKNOWN


def test_tcp_keepalive_that_is_enough() -> None:
    outcomes = [cut("ws", Mode.IDLE, 60.0), *alive("ws", (Mode.KEEPALIVE,), 100)]
    assert timing(outcomes, "ws", PLAN).tcp_keepalive
    assert "TCP's own keepalive" in finding(outcomes, "ws idle").summary


def test_what_is_forgotten_in_silence() -> None:
    rungs = [outcome("ws", Mode.RUNG, State.ANSWERED, gap, gap=gap) for gap in (20.0, 57.0, 239.0)]
    rungs += [outcome("ws", Mode.RUNG, State.LOST, gap + 5, gap=gap, seen=record()) for gap in (241.0, 245.0)]
    outcomes = [*alive("ws", ALL_WS, 300), *rungs]
    found = timing(outcomes, "ws", PLAN)
    assert found.idle is not None
    assert (found.idle.low, found.idle.high, found.idle.constant) == (239.0, 241.0, 240)
    assert (found.culprit, found.pinged) == (Culprit.SILENT, True)
    said = finding(outcomes, "ws idle")
    assert (said.verdict, said.advice) == (Verdict.ADVICE, "idle")
    assert "Azure" in said.summary


def test_what_the_server_sent_and_closed_and_did_not_arrive_is_not_the_servers_fault() -> None:
    lost = outcome("sse", Mode.RUNG, State.LOST, 40, gap=35.0, seen=record(end="own", ended=37.0))
    answered = outcome("sse", Mode.RUNG, State.ANSWERED, 20, gap=20.0)
    assert timing([*alive("sse", (Mode.IDLE,), 130), lost, answered], "sse", PLAN).culprit == Culprit.SILENT


def test_what_is_reset_when_the_server_uses_it_was_lost_before() -> None:
    def culprit(ended: float) -> str:
        lost = outcome("sse", Mode.RUNG, State.LOST, 40, gap=35.0, seen=record(end="rst", ended=ended))
        answered = outcome("sse", Mode.RUNG, State.ANSWERED, 20, gap=20.0)
        return timing([*alive("sse", (Mode.IDLE,), 130), lost, answered], "sse", PLAN).culprit

    assert culprit(35.01) == Culprit.SILENT
    assert culprit(30.0) == Culprit.SERVER_SIDE


def test_an_end_at_the_server_alone() -> None:
    seen = record(end="fin", ended=60.0)
    outcomes = [outcome("ws", Mode.IDLE, State.HALF, 60.0, seen=seen), *alive("ws", (Mode.PINGED,), 120)]
    assert timing(outcomes, "ws", PLAN).culprit == Culprit.SERVER_SIDE
    assert finding(outcomes, "ws idle").verdict is Verdict.ADVICE


def test_an_end_that_the_server_makes_itself_is_not_held_against_the_way() -> None:
    own = idle_cut("ws", [60.0], 120, at_server="own", how=End.CLOSE, code=1012)
    assert finding(own, "ws idle").verdict is Verdict.INFO
    assert "the server itself" in finding(own, "ws idle").summary
    unknown = [cut("ws", Mode.IDLE, 20.0), *alive("ws", (Mode.PINGED, Mode.SERVER, Mode.CLIENT), 120)]
    direct = [cut("ws", Mode.IDLE, 21.0), *alive("ws", (Mode.PINGED, Mode.SERVER, Mode.CLIENT), 120)]
    assert finding(unknown, "ws idle").verdict is Verdict.ADVICE
    assert finding(unknown, "ws idle", direct).verdict is Verdict.INFO
    elsewhere = [cut("ws", Mode.IDLE, 90.0), *alive("ws", (Mode.PINGED,), 120)]
    assert finding(unknown, "ws idle", elsewhere).verdict is Verdict.ADVICE


def test_an_end_that_looks_like_a_proper_one() -> None:
    outcomes = idle_cut("sse", [60.0], 120, how=End.COMPLETE)
    assert finding(outcomes, "sse idle").verdict is Verdict.ADVICE
    assert "Caddy" in finding(outcomes, "sse idle").summary


def test_the_longest_poll() -> None:
    values = {"how": End.STATUS, "code": 504, "page": "server: nginx"}
    assert finding([cut("poll", Mode.IDLE, 60.0, **values)], "longest poll").verdict is Verdict.OK
    short = finding([cut("poll", Mode.IDLE, 15.0, **values)], "longest poll")
    assert (short.verdict, short.advice) == (Verdict.BROKEN, "poll")
    assert "server: nginx" in short.summary
    assert short.summary.startswith("cut after 15.0 s by something on the way; your 25 s polls (poll.timeout) fail")


@pytest.mark.parametrize("calls", [1, 2])  # one, where another server saw the other one
def test_a_poll_that_was_sent_again_is_cut_when_the_server_saw_it_cut(calls: int) -> None:
    twice = cut("poll", Mode.IDLE, 120.0, how=End.STATUS, code=504, calls=calls, seen=record(end="fin", ended=60.0))
    found = timing([twice], "poll", PLAN)
    assert found.idle is not None
    assert (found.idle.low, found.calls) == (60.0, 2)
    assert finding([twice], "polls sent again").advice == "retries"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_could_not_be_measured_is_not_known(transport: str) -> None:
    refused = outcome(transport, Mode.IDLE, State.REFUSED, 0.0, why="status 403")
    (found,) = [each for each in timers([refused], plan_of(130, transports=[transport]), ()) if each.check != "P17"]
    assert (found.verdict, found.summary) == (Verdict.UNKNOWN, "status 403")


def test_a_foreign_server_may_say_something_whenever_it_likes() -> None:
    plan = plan_of(130, is_foreign=True)
    spoke = outcome("ws", Mode.IDLE, State.CUT, 80.0, quiet=60.0, how=End.FIN)
    found = timing([spoke], "ws", plan)
    assert found.idle is not None
    assert (found.idle.low, found.culprit) == (60.0, Culprit.UNKNOWN)


def test_a_foreign_server_that_speaks_is_not_silent() -> None:
    plan = plan_of(130, is_foreign=True)
    alive_and_talking = outcome("ws", Mode.IDLE, State.OPEN, 130.0, quiet=3.0, silence=20.0)
    found = timing([alive_and_talking], "ws", plan)
    assert found.idle is not None
    assert (found.idle.low, found.idle.high) == (20.0, None)
    cut_while_talking = outcome("ws", Mode.IDLE, State.CUT, 100.0, quiet=3.0, silence=20.0, how=End.FIN)
    found = timing([cut_while_talking], "ws", plan)
    assert found.total is not None
    assert (found.idle, found.total.low) == (None, 100.0)


@pytest.mark.parametrize("how", [End.CLOSE, End.COMPLETE])
def test_a_foreign_server_may_end_what_it_likes(how: End) -> None:
    plan = plan_of(130, is_foreign=True, transports=["sse"])
    found = list(timers([outcome("sse", Mode.IDLE, State.CUT, 20.0, quiet=20.0, silence=20.0, how=how)], plan))
    assert found[0].verdict is Verdict.INFO


@pytest.mark.parametrize(("status", "culprit"), [(504, Culprit.PATH), (500, Culprit.UNKNOWN), (503, Culprit.UNKNOWN)])
def test_a_status_that_a_foreign_server_may_have_said_itself(status: int, culprit: Culprit) -> None:
    plan = plan_of(130, is_foreign=True)
    found = timing([outcome("sse", Mode.IDLE, State.CUT, 5.0, quiet=5.0, how=End.STATUS, code=status)], "sse", plan)
    assert found.culprit == culprit


# P17


@pytest.mark.parametrize(("age", "culprit"), [(61.0, Culprit.CLIENT_SIDE), (59.0, Culprit.UNKNOWN)])
def test_what_the_server_saw_before_the_end_here_says_nothing_of_it(age: float, culprit: Culprit) -> None:
    outcomes = [cut("ws", Mode.IDLE, 60.0, seen=record(age=age)) for _ in range(3)]
    assert timing(outcomes, "ws", PLAN).culprit == culprit


def pooled(end: str | None, idle: float, *, asked_again: float = 0.0) -> Outcome:
    ended = None if end is None else 0.5 + idle
    seen = record(kind="echo", end=end, ended=ended, last_sent=0.5, last_received=asked_again, age=100.0)
    return outcome(POOL, Mode.IDLE, State.OPEN if end is None else State.CUT, 0.5 + idle, seen=seen)


@pytest.mark.parametrize(
    ("outcomes", "verdict", "words"),
    [
        ([pooled("fin", 0.0), pooled("own", 0.0)], Verdict.OK, "none is kept"),
        ([pooled("fin", 60.0), pooled("fin", 59.0), pooled("fin", 0.0)], Verdict.OK, "after 60.0 s"),
        ([pooled("rst", 15.0)], Verdict.OK, "after 15.0 s"),
        (
            [pooled("own", 75.0), pooled("fin", 60.0)],
            Verdict.ADVICE,
            "the server ends one first, after 75.0 s",
        ),
        ([pooled("own", 75.0)], Verdict.ADVICE, "limits.idle_timeout has to be longer"),
        ([pooled(None, 0.0), pooled("fin", 0.0)], Verdict.INFO, "within 99.5 s"),
        ([pooled(None, 0.0), pooled("fin", 60.0)], Verdict.INFO, "within 99.5 s"),
        ([pooled("fin", 3.0, asked_again=2.0), pooled("fin", 60.0)], Verdict.OK, "after 60.0 s"),
        ([pooled("fin", 3.0, asked_again=2.0), pooled(None, 0.0)], Verdict.INFO, "within 99.5 s"),
        ([pooled("fin", 3.0, asked_again=2.0)], Verdict.UNKNOWN, "others used those that were kept"),
        ([], Verdict.UNKNOWN, "not measured"),
    ],
)
def test_who_ends_a_kept_connection_first(outcomes: list[Outcome], verdict: Verdict, words: str) -> None:
    found = finding(outcomes, "kept connections")
    assert found.verdict is verdict
    assert words in found.summary
