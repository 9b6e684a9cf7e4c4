"""Settings that suit the timers on the way, and what can be asked of a run."""

import tomllib
from pathlib import Path

import pytest

from tricast import Config
from tricast.probe.conditions import BadCondition, parse
from tricast.probe.findings import Finding, Verdict
from tricast.probe.measured import idle_of, timers_of
from tricast.probe.recommend import Timers, recommend, remarks

SERVER_TOML = Path(__file__).parents[2] / "config" / "server.toml"


def settings(**timers):
    return {f"{each.section}.{each.key}": each for each in recommend(Timers(**timers))}


def test_nothing_is_known():
    assert recommend(Timers()) == []
    assert remarks(Timers()) == []


@pytest.mark.parametrize("seconds", [0.5, 3.0, 10.0, 30.0, 60.0, 350.0, 3600.0])
def test_every_setting_is_one_that_the_server_takes(seconds):
    documented = tomllib.loads(SERVER_TOML.read_text())
    found = recommend(Timers(seconds, seconds, seconds, seconds, seconds))
    assert len(found) == 5
    for setting in found:
        assert setting.key in documented[setting.section]
        assert setting.default == documented[setting.section][setting.key]
    values = {setting.section: {setting.key: setting.value} for setting in found}
    Config.model_validate(values)


def test_what_the_defaults_do_already():
    assert not any(each.is_needed for each in recommend(Timers(60.0, 60.0, 60.0, None, 60.0)))


def test_what_has_to_be_shorter():
    found = settings(websocket_idle=15.0, stream_idle=15.0, poll=15.0)
    assert {name: each.value for name, each in found.items() if each.is_needed} == {
        "websocket.ping_interval": "6s",
        "sse.keepalive": "6s",
        "poll.timeout": "12s",
    }


def test_what_has_to_be_longer():
    assert settings(pool=75.0)["limits.idle_timeout"].value == "90s"
    assert not settings(pool=60.0)["limits.idle_timeout"].is_needed
    assert not settings(pool=60.04)["limits.idle_timeout"].is_needed  # as a timer of 60 s is measured
    assert settings(pool=61.3)["limits.idle_timeout"].value == "76s"


def test_what_is_cut_anyway_ends_before():
    setting = settings(total=3600.0)["server.max_connection_age"]
    assert (setting.value, setting.is_needed) == ("3240s", True)


def test_what_no_setting_helps_against():
    (words,) = remarks(Timers(total=30.0))
    assert "after 30 s" in words


def timer(check, transport, low, high=None, *, constant=None, culprit="path", total=None):
    idle = {"low": low, "high": high, "constant": constant}
    detail = {"transport": transport, "idle": idle, "total": total, "culprit": culprit}
    return Finding(check=check, title=transport, verdict=Verdict.OK, summary="", detail=detail)


def problem(name, verdict=Verdict.BROKEN):
    return Finding(check="P3", title=name, verdict=verdict, summary="", advice=name)


def test_the_timers_among_findings():
    findings = [
        timer("P13", "ws", 59.8, 59.8, constant=60.0),
        timer("P13", "sse", 130.0),
        timer("P12", "poll", 20.0, 29.0),
        timer("P13", "keepalive", 5.0, 5.0, culprit="server"),
        Finding(check="P17", title="kept", verdict=Verdict.OK, summary="", detail={"kept": 75.0}),
    ]
    assert timers_of(findings) == Timers(60.0, None, 20.0, None, 75.0)
    assert idle_of(findings) == 60.0
    assert idle_of([]) is None


def test_what_the_server_ends_is_no_timer_of_the_way():
    assert timers_of([timer("P13", "ws", 10.0, 10.0, culprit="server")]) == Timers()


@pytest.mark.parametrize(
    ("text", "findings", "holds"),
    [
        ("no-ws", [problem("no-ws")], [True]),
        ("no-ws", [problem("no-ws", Verdict.INFO)], [False]),
        ("no-ws,buffered", [problem("buffered", Verdict.ADVICE)], [False, True]),
        ("idle<30", [timer("P13", "ws", 20.0, 20.0)], [True]),
        ("idle<30", [timer("P13", "ws", 30.0, 30.0)], [False]),
        ("idle<300", [timer("P13", "ws", 130.0)], [False]),
        ("poll<30.5", [timer("P12", "poll", 30.0, 30.0)], [True]),
        ("total", [timer("P13", "sse", 1.0, total={"low": 15.0, "high": 15.0, "constant": 15.0})], [True]),
        ("total", [], [False]),
    ],
)
def test_conditions(text, findings, holds):
    assert [condition.holds(findings) for condition in parse(text)] == holds


def found(check, verdict=Verdict.OK, **detail):
    return Finding(check=check, title=check, verdict=verdict, summary="", detail=detail)


@pytest.mark.parametrize(
    ("text", "findings", "is_known"),
    [
        ("no-ws", [], False),
        ("no-ws", [found("P3", Verdict.UNKNOWN)], False),
        ("no-ws", [found("P3")], True),
        ("buffered", [found("P4", kind="begins")], False),
        ("buffered", [found("P4", kind="begins", pieces=[0.1, 0.2, 0.3])], False),
        ("buffered", [found("P4", kind="begins", pieces=[0.1, 1.1, 2.1])], True),
        ("buffered", [found("P4", kind="streaming")], True),
        ("host", [found("P7", Verdict.INFO)], True),
        ("idle<60", [], False),
        ("idle<60", [timer("P13", "keepalive", 130.0)], False),
        ("idle<60", [timer("P13", "ws", 3.0)], False),
        ("idle<60", [timer("P13", "ws", 70.0), timer("P13", "sse", 130.0)], True),
        ("idle<60", [timer("P13", "ws", 70.0), found("P13", Verdict.UNKNOWN, transport="sse")], False),
        ("idle<60", [timer("P13", "ws", 20.0, 20.0, culprit="server")], True),
        ("poll<30", [timer("P13", "ws", 70.0)], False),
        ("total", [], False),
        ("total", [timer("P13", "ws", 70.0)], True),
    ],
)
def test_what_was_never_measured_is_not_known(text, findings, is_known):
    assert [condition.is_known(findings) for condition in parse(text)] == [is_known]


@pytest.mark.parametrize("text", ["nonsense", "idle<", "idle<x", "idle>3", "no-ws,idle"])
def test_no_condition(text):
    with pytest.raises(BadCondition, match="expected any of no-ws, buffered"):
        parse(text)
