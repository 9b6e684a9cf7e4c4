"""What is shown of a run while it goes on."""

import io

import trio

from tricast.probe.cells import plan_of
from tricast.probe.checks.timers import Timers
from tricast.probe.display import line, shown
from tricast.probe.run import Outcome, Plan


class Terminal(io.StringIO):
    """A stream that says to be a terminal."""

    def isatty(self):
        return True


def an_outcome(**more):
    return Outcome(plan=Plan(url="http://127.0.0.1:1", seconds=130.0), doing="limits", **more)


def timers(target=None):
    plan = plan_of(130.0)
    return Timers(target, plan)


async def test_a_line(autojump_clock):
    began = trio.current_time()
    outcome = an_outcome()
    await trio.sleep(7)
    assert line(outcome, began) == "limits, 7 s"
    outcome.timers = timers()
    words = line(outcome, began)
    assert words.startswith("limits, 7 s of at most 130 s: ws idle: refused; ")


async def test_lines_now_and_then(autojump_clock):
    stream, outcome = io.StringIO(), an_outcome()
    async with shown(outcome, stream):
        await trio.sleep(11)
        outcome.doing = "servers"
        await trio.sleep(5)
    assert stream.getvalue() == "limits, 5 s\nlimits, 10 s\nservers, 15 s\n"


async def test_a_run_that_is_soon_over_says_nothing(autojump_clock):
    stream = io.StringIO()
    async with shown(an_outcome(), stream):
        await trio.sleep(1)
    assert not stream.getvalue()


async def test_a_terminal(autojump_clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    async with shown(an_outcome(timers=timers()), stream):
        await trio.sleep(1.1)
    assert "limits, 1 s of at most 130 s" in stream.getvalue()
    assert "ws idle: refused" in stream.getvalue()
