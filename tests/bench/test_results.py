"""What is made of counts, and how it is shown."""

import io
import json
import re
from pathlib import Path

import msgspec
import pytest

from tricast.bench.coordinator import State
from tricast.bench.display import Lines, Rates, print_json, print_table, shown
from tricast.bench.messages import Published, Usage
from tricast.bench.results import Measured, Result, Settings, advice, result_of
from tricast.bench.schedule import Feed
from tricast.bench.tally import Counts, Tally

MS = 10**6
SECOND = 10**9


def tally(*latencies_ms: int, **counts) -> Tally:
    made = Tally(**{"subscribers": 10, "opened": 10, "opening_seconds": 0.5} | counts)
    for latency in latencies_ms:
        made.histogram.record(latency * MS)
    return made


def measured(tallies=None, *, settings=None, published=None, usages=None, was_interrupted=False) -> Measured:
    asked = {
        "url": "http://x", "transport": "sse", "subscribers": 10, "rate": 10.0, "size": 160, "duration": 9.0,
        "warm_up": 1.0, "topic": "t", "topics": 1, "publishers": 1, "processes": 0,
    }  # fmt: skip
    report = {
        "published": [100], "given_up": {}, "seconds": 9.9, "requests": 50, "late_ns": 2 * MS, "errors": {},
        "refusal": "", "usage": Usage(9, 1, 0),
    }  # fmt: skip
    return Measured(
        settings=Settings(**asked | (settings or {})),
        feed=Feed("r", "t", 1, 1, 10.0, 160, 10.0),
        tallies=tallies or {"sse": tally(5, 5, 7, deliveries=900, last_delivery=8 * SECOND)},
        published=Published(**report | (published or {})),
        usages=usages or [Usage(9, 4.5, 0.9), Usage(9, 0.9, 0)],
        measured_from=1 * SECOND,
        was_interrupted=was_interrupted,
    )


def test_rates_and_costs():
    counts = {"events": 1000, "received_bytes": 230_000, "requests": 100, "deliveries": 900, "last_delivery": SECOND}
    result = result_of(measured({"sse": tally(5, 5, 7, **counts)}))
    assert (result.deliveries_per_second, result.published_per_second) == (100, 10)
    assert (result.planned, result.published) == (90, 90)  # without the warm-up, as everything else
    assert (result.bytes_per_event, result.requests_per_event, result.events_per_publish) == (230, 0.1, 2)
    assert (result.opened_per_second, result.publish_late_ms) == (20, 2)
    assert result.latency_ms.p50 == pytest.approx(5, rel=0.01)
    assert result.latency_ms.max == 7
    assert (result.generator.processes, result.generator.busiest_cpu, result.generator.longest_wait) == (2, 0.5, 0.1)
    assert result.warnings == []
    assert result.is_faultless


def test_what_comes_late_lowers_the_rate():
    late = tally(5, deliveries=900, last_delivery=19 * SECOND)
    assert result_of(measured({"sse": late})).deliveries_per_second == 50


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tallies": {"sse": tally(opened=9)}}, "only 9 of 10 subscribers"),
        ({"published": {"published": [82]}}, "published 8 events/s instead of 10"),
        ({"published": {"seconds": 19.0}}, "published 5 events/s instead of 10"),
        ({"usages": [Usage(10, 9.5, 0)]}, "the generator was the bottleneck: one of its processes used 95% of a core"),
        ({"usages": [Usage(10, 1, 4)]}, "the generator waited for a core 40% of the time"),
    ],
)
def test_warnings(changes, words):
    (warning,) = result_of(measured(**changes)).warnings
    assert warning.startswith(words)


def test_who_interrupts_is_not_warned_of_what_is_missing():
    result = result_of(measured(published={"published": [20], "seconds": 4.0}, was_interrupted=True))
    assert (result.warnings, result.published_per_second) == ([], 3.333)


def test_a_server_that_was_away_for_a_while_is_no_slow_publisher():
    away = {"published": [82], "errors": {"publishing: connection refused": 9}}
    (warning,) = result_of(measured(published=away)).warnings
    assert warning == "published 8 events/s instead of 10: the server did not always take events"


def test_a_wait_in_a_second_tells_nothing_of_the_machine():
    assert result_of(measured(usages=[Usage(2.9, 1, 2), Usage(2.9, 1, 0)])).warnings == []


def test_who_has_no_server_at_the_end_is_told_and_failed():
    gone = tally(5, deliveries=1, away={"connection refused": 7, "no subscription in time": 3})
    result = result_of(measured({"sse": gone}, published={"published": [40], "given_up": {"connection refused": 60}}))
    assert result.failures == [
        "10 of 10 subscribers were not connected at the end: connection refused (7), no subscription in time (3)",
        "60 of 100 planned events found no server to take them: connection refused",
    ]
    assert not result.is_faultless
    assert result.warnings == []  # publishing could have kept up
    out = io.StringIO()
    print_table([result], out, compared=False)
    assert f"\nfailed: {result.failures[1]}\n" in out.getvalue()


@pytest.mark.parametrize("seconds", [0.0, 0.9])
def test_nothing_was_measured_before_it_was_interrupted(seconds):
    nothing = {"published": [0], "requests": 0, "late_ns": 0, "seconds": seconds}
    early = tally(events=9, received_bytes=900, requests=9)  # in the warm-up
    result = result_of(measured({"sse": early}, published=nothing, was_interrupted=True))
    for value in (result.bytes_per_event, result.requests_per_event, result.publish_late_ms):
        assert value is None
    assert set(msgspec.structs.asdict(result.latency_ms).values()) == {None}
    assert "-0.0" not in msgspec.json.encode(result).decode()
    out = io.StringIO()
    print_table([result], out, compared=False)
    found = {line.split()[-1] for line in out.getvalue().splitlines() if line.startswith(("latency", "bytes"))}
    assert found == {"—"}
    assert not any("p99" in words or "bytes" in words for words in advice([result]))


@pytest.mark.parametrize("name", ["lost", "duplicates", "out_of_order"])
def test_faults(name):
    assert not result_of(measured({"sse": tally(5, deliveries=1, **{name: 1})})).is_faultless


def test_nothing_came_at_all():
    result = result_of(measured({"sse": tally()}, published={"published": [0], "requests": 0}))
    assert not result.is_faultless
    assert (result.deliveries_per_second, result.latency_ms.p99, result.bytes_per_event) == (0, None, None)


def test_a_mix_has_its_parts():
    parts = {
        "poll": tally(5, deliveries=3, lost=1, errors={"reset": 1}, gaps={"slow": 1}),
        "ws": tally(9, deliveries=4, errors={"reset": 2}, gaps={"slow": 1, "evicted": 1}),
    }
    result = result_of(measured(parts, settings={"transport": "mix"}, published={"errors": {"publishing: x": 1}}))
    assert (result.transport, result.subscribers, result.deliveries, result.lost) == ("mix", 20, 7, 1)
    assert result.errors == {"reset": 3, "publishing: x": 1}
    assert result.gaps == {"slow": 2, "evicted": 1}
    assert {name: part.deliveries for name, part in result.by_transport.items()} == {"poll": 3, "ws": 4}
    assert result.by_transport["poll"].errors == {"reset": 1}


def test_counts_are_handed_on_and_added_up():
    written = msgspec.json.encode(tally(5, 9, deliveries=2, errors={"x": 1}, last_delivery=7).counts())
    read = msgspec.json.decode(written, type=Counts)
    total = Tally.of([read, tally(7, deliveries=1, last_delivery=3).counts()])
    assert (total.deliveries, total.subscribers, total.last_delivery, total.errors) == (3, 20, 7, {"x": 1})
    assert total.histogram.count == 3
    assert total.histogram.largest == 9 * MS


def compared() -> list[Result]:
    counted = {
        "poll": tally(50, deliveries=9, events=9, received_bytes=4000),
        "sse": tally(10, deliveries=9, events=9, received_bytes=2000),
        "ws": tally(10, deliveries=9, events=9, received_bytes=2050),
    }
    return [result_of(measured({name: found}, settings={"transport": name})) for name, found in counted.items()]


def test_advice():
    latency, size, *_ = advice(compared())
    assert latency == "lowest p99 latency: SSE and WebSocket"
    assert size == "fewest bytes per event: SSE and WebSocket"
    faulty = msgspec.structs.replace(compared()[0], lost=1)
    assert "not everything came" in advice([faulty, *compared()[1:]])[0]


def test_the_table():
    out = io.StringIO()
    errors = {"closed by the server": 3}
    faulty = msgspec.structs.replace(
        compared()[0], errors=errors, gaps={"slow": 2}, warnings=["w"], was_interrupted=True
    )
    print_table([faulty, *compared()[1:]], out, compared=True)
    text = out.getvalue()
    assert text.splitlines()[0].split() == ["long", "polling", "SSE", "WebSocket"]
    assert [line for line in text.splitlines() if line.endswith(" ")] == []
    for words in ("interrupted", "error: closed by the server: 3 times", "gap announced: slow: 2 times", "warning: w"):
        assert f"long polling: {words}" in text
    out = io.StringIO()
    print_table([faulty], out, compared=False)
    assert "\nwarning: w\n" in out.getvalue()
    assert "lowest p99" not in out.getvalue()


def test_the_example_in_the_readme_is_what_is_printed():
    out = io.StringIO()
    print_table(compared(), out, compared=True)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    shown = readme.partition(" --compare ")[2].partition("\n```")[0].splitlines()[1:]
    assert [_without_figures(line) for line in shown] == [
        _without_figures(line) for line in out.getvalue().splitlines()
    ]


def _without_figures(line: str) -> str:
    """The label of a row, or what comes before the figures of a line of advice."""
    return re.split("  +|: ", line)[0]


def test_json_has_one_object():
    out = io.StringIO()
    print_json(compared()[:1], out, compared=False)
    assert json.loads(out.getvalue())["transport"] == "poll"
    out = io.StringIO()
    print_json(compared(), out, compared=True)
    assert list(json.loads(out.getvalue())) == ["poll", "sse", "ws"]


# While it runs


def state(**changes) -> State:
    usual = {
        "transport": "ws", "phase": "publishing", "subscribers": 10, "opened": 9, "planned": 100, "published": 50,
        "events": 450, "errors": 2, "p99_ms": 12.3, "seconds": 4.0,
    }  # fmt: skip
    return State(**usual | changes)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_display_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    with shown(out) as show:
        show(state())
        show(state(errors=0, seconds=0.0))
        show(state(events=0))
    text = out.getvalue()
    assert "— " in text
    for words in ("WebSocket: publishing 4 s", "subscribers", "450", "12.3 ms"):
        assert words in text
    # What it wrote is gone at its end.
    assert text.endswith("\x1b[2K")


def test_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with shown(out) as show:
        show(state())
    assert out.getvalue() == ""  # too early
    lines = Lines(out)
    lines._next = 0
    lines.show(state())
    lines.show(state())
    assert out.getvalue() == (
        "WebSocket, publishing: 9 of 10 subscribers, 50 of 100 events published, 450 delivered, 2 errors\n"
    )


def test_the_rate_of_the_moment(monkeypatch):
    times = iter([10.0, 12.0, 13.0, 13.0])
    monkeypatch.setattr("tricast.bench.display.time.monotonic", lambda: next(times))
    rates = Rates()
    rates.of(state(events=100))
    assert rates.of(state(events=300)) == 100
    assert rates.of(state(events=50)) == 50  # it began anew
    assert rates.of(state(events=60)) == 50
