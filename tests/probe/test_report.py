"""What is printed of a run."""

import io
import json

import pytest

from tricast.probe.findings import Finding, Verdict
from tricast.probe.report import Report, print_json, print_report
from tricast.probe.run import Outcome, Plan


class Terminal(io.StringIO):
    """A stream that says to be a terminal."""

    def isatty(self):
        return True


def finding(check, title, verdict, summary="words", advice=None, **detail):
    return Finding(check=check, title=title, verdict=verdict, summary=summary, advice=advice, detail=detail)


def timer(transport, seconds, check="P13"):
    idle = {"low": seconds, "high": seconds, "constant": None}
    return finding(check, f"{transport} idle", Verdict.OK, transport=transport, idle=idle, total=None, culprit="path")


def report(*findings, proxies=("nginx",), advised=None, exit_code=0, failed=(), **outcome):
    plan = Plan(url="http://127.0.0.1:1", token="secret")
    run = Outcome(plan=plan, findings=list(findings), proxies=list(proxies), **outcome)
    return Report(run, advised, exit_code, failed)


def printed(given, stream=None):
    stream = stream or io.StringIO()
    print_report(given, stream)
    return stream.getvalue()


STRIPPED = finding("P3", "WebSocket", Verdict.BROKEN, "no: taken out", advice="no-ws")


def test_plain_lines():
    text = printed(report(finding("P2", "in front", Verdict.INFO, "nginx"), STRIPPED, exit_code=2))
    assert "In front: nginx\n" in text
    assert "  broken  WebSocket                no: taken out\n" in text
    assert text.endswith("Broken: WebSocket.\n")
    assert "\x1b" not in text


def test_a_long_line_is_one_line_where_nobody_watches():
    words = "word " * 60
    assert words.strip() in printed(report(finding("P4", "SSE", Verdict.OK, words.strip())))


def test_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = printed(report(STRIPPED, finding("P4", "SSE", Verdict.OK, "word " * 60)), Terminal())
    assert "✗" in text
    assert "✓" in text
    assert "\x1b[" in text


def test_what_a_server_says_does_not_control_the_terminal():
    for stream in (io.StringIO(), Terminal()):
        assert "\x1b]0;" not in printed(report(finding("P4", "SSE", Verdict.OK, "x\x1b]0;owned\x07")), stream)
        assert "owned" in stream.getvalue()


def test_advice_is_for_what_failed_and_for_who_is_there():
    assert "proxy_set_header Upgrade" in printed(report(STRIPPED))
    assert "proxy_buffering" not in printed(report(STRIPPED))
    assert "What helps in Apache" in printed(report(STRIPPED, advised=("apache",)))
    assert "proxy_set_header" not in printed(report(finding("P3", "WebSocket", Verdict.INFO, advice="no-ws")))
    assert "--advice nginx" in printed(report(STRIPPED, proxies=()))
    assert "--advice" not in printed(report())


def test_settings_of_the_server():
    needed = printed(report(timer("ws", 10.0), timer("sse", 60.0)))
    assert '[websocket]\n    ping_interval = "4s"' in needed
    assert "These defaults of Tricast suit the timers: sse.keepalive = 15s." in needed
    assert "configuration of Tricast" not in printed(report(timer("ws", 60.0)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (report(finding("P4", "SSE", Verdict.OK)), "Nothing wrong was found."),
        (report(), "Nothing was found out."),
        (report(STRIPPED, was_interrupted=True), "Interrupted: this is what was known by then. Broken: WebSocket."),
        (report(STRIPPED, failed=("no-ws",)), "Not wanted, but so: no-ws."),
        (report(finding("P7", "Host", Verdict.ADVICE)), "To improve: Host."),
        (report(notes=["There is no Tricast server"]), "There is no Tricast server"),
    ],
)
def test_the_rest(given, words):
    assert words in printed(given)


def test_every_check_is_shown():
    checks = [f"P{number}" for number in range(1, 18) if number != 15]  # half-close is not looked at
    text = printed(
        report(*(finding(check, f"title of {check}", Verdict.OK, f"summary of {check}") for check in checks))
    )
    assert all(f"summary of {check}\n" in text for check in checks)


def test_what_has_been_said_is_not_said_again():
    idle = finding("P13", "ws idle", Verdict.UNKNOWN, "no WebSocket")
    assert "no WebSocket" in printed(report(idle))
    assert "no WebSocket" not in printed(report(STRIPPED, idle))


def test_json():
    stream = io.StringIO()
    print_json(report(STRIPPED, timer("ws", 10.0), exit_code=2, notes=["a note"]), stream)
    found = json.loads(stream.getvalue())
    assert (found["schema"], found["exit_code"], found["proxies"]) == (1, 2, ["nginx"])
    assert found["findings"][0] == {
        "check": "P3",
        "title": "WebSocket",
        "verdict": "broken",
        "summary": "no: taken out",
        "detail": {},
        "advice": "no-ws",
    }
    assert found["findings"][1]["advice"] is None
    assert found["settings"][0]["key"] == "ping_interval"
    assert found["advice"][0]["proxy"] == "nginx"
    assert "secret" not in stream.getvalue()
