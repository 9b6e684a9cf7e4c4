"""What measurements mean, for the checks that wait for no timers."""

import pytest

from tricast.probe.arrivals import Arrival, Flow, Stream
from tricast.probe.arrivals import Verdict as Kind
from tricast.probe.checks.blackbox import Looked, judge_stream
from tricast.probe.differences import Difference
from tricast.probe.differences import Kind as Change
from tricast.probe.findings import Finding, Verdict
from tricast.probe.fingerprint import Suspect
from tricast.probe.limits import Limit
from tricast.probe.verdicts.connections import (
    Echoes,
    Handshake,
    Visits,
    fingerprint,
    guess,
    stickiness,
    versions,
    websocket,
)
from tricast.probe.verdicts.requests import Refusal, Upload, fields, limit, retries, uploads
from tricast.probe.verdicts.streams import Sharing, Streams, buffering, compression, in_words, sharing

OK, INFO, ADVICE, BROKEN, UNKNOWN = Verdict.OK, Verdict.INFO, Verdict.ADVICE, Verdict.BROKEN, Verdict.UNKNOWN
OPEN = Handshake(101, is_accepted=True, is_alive=True)


@pytest.mark.parametrize(
    ("received", "connections", "verdict", "words"),
    [
        ("1.1", [1, 1, 1], OK, "used again"),
        ("1.1", [1, 2, 3], INFO, "a new connection for each"),
        ("1.0", [1, 2, 3], INFO, "may be held back"),
    ],
)
def test_versions(received, connections, verdict, words):
    finding = versions(Echoes("1.1", [received] * 3, [("a", number) for number in connections], is_kept=True))
    assert (finding.verdict, finding.detail["http_version"]) == (verdict, received)
    assert words in finding.summary


def test_who_is_in_front():
    finding = fingerprint([Suspect("cloudflare", 5, ("CF-RAY: 1",)), Suspect("nginx", 2, ("Server: nginx",))])
    assert finding.detail["proxies"] == ["cloudflare", "nginx"]
    assert finding.summary == "Cloudflare (CF-RAY: 1), then nginx (Server: nginx)"
    assert fingerprint([]).verdict is INFO


@pytest.mark.parametrize(
    ("path", "direct", "verdict", "policy"),
    [
        (OPEN, None, OK, "forwarded"),
        (OPEN._replace(is_alive=False), OPEN, BROKEN, "broken"),
        (Handshake(101), OPEN, BROKEN, "broken"),
        (Handshake(None, why="reset"), OPEN, BROKEN, "broken"),
        (Handshake(426, reached=False, is_servers=True), OPEN, BROKEN, "stripped"),
        (Handshake(404, reached=False), None, BROKEN, "stripped"),
        (Handshake(400), None, BROKEN, "stripped"),
        (Handshake(403), OPEN, BROKEN, "denied"),
        (Handshake(502, reached=True), None, BROKEN, "denied"),
        (Handshake(403, reached=True, is_servers=True), None, INFO, "refused"),
        (Handshake(403), Handshake(403), INFO, "denied"),
        (Handshake(426, reached=False), Handshake(None), INFO, "stripped"),
    ],
)
def test_websockets(path, direct, verdict, policy):
    finding = websocket(path, direct)
    assert (finding.verdict, finding.detail["policy"]) == (verdict, policy)
    assert finding.advice == ("no-ws" if verdict is BROKEN else None)


FLOWS = {flow: Kind(flow, period=0.2, step=4096) for flow in Flow}


def streams(slow, quick=None, **more):
    return Streams(FLOWS[slow], FLOWS[quick or slow], **more)


@pytest.mark.parametrize(
    ("ours", "plain", "direct", "verdicts"),
    [
        (streams(Flow.STREAMING), streams(Flow.STREAMING), None, [OK]),
        (streams(Flow.STREAMING, Flow.COALESCED), streams(Flow.STREAMING, Flow.COALESCED), None, [ADVICE]),
        (streams(Flow.HELD), streams(Flow.HELD), streams(Flow.STREAMING), [BROKEN]),
        (streams(Flow.STEPWISE), streams(Flow.HELD), None, [BROKEN, INFO]),
        (streams(Flow.STREAMING), streams(Flow.HELD), None, [OK, INFO]),
        (streams(Flow.HELD), streams(Flow.HELD), streams(Flow.HELD), [INFO]),
        (streams(Flow.REFUSED), streams(Flow.REFUSED), None, [BROKEN]),
        (streams(Flow.CUT), streams(Flow.CUT), None, [BROKEN]),
    ],
)
def test_buffering(ours, plain, direct, verdicts):
    findings = list(buffering(ours, plain, direct))
    assert [finding.verdict for finding in findings] == verdicts
    assert [finding.advice for finding in findings] == ["buffered" if v in (ADVICE, BROKEN) else None for v in verdicts]
    assert findings[0].detail["kind"] == ours.kind.flow


def test_a_timer_that_is_sped_up_is_no_fault_of_the_way():
    cut, fine = streams(Flow.CUT), streams(Flow.STREAMING)
    assert [finding.verdict for finding in buffering(cut, cut, speed=20.0)] == [UNKNOWN]
    assert [finding.verdict for finding in buffering(fine, fine, speed=20.0)] == [OK]
    assert [finding.verdict for finding in buffering(cut, cut, speed=1.0)] == [BROKEN]


def test_who_is_held_up_itself_does_not_say_that_events_are():
    ours, plain = streams(Flow.STREAMING, Flow.COALESCED), streams(Flow.STREAMING)
    assert [finding.verdict for finding in buffering(ours, plain, is_held_up=True)] == [UNKNOWN]
    assert [finding.verdict for finding in buffering(plain, plain, is_held_up=True)] == [OK]
    held = streams(Flow.HELD)
    assert [finding.verdict for finding in buffering(held, held, is_held_up=True)] == [BROKEN]


@pytest.mark.parametrize(
    ("kind", "padded", "words"),
    [
        (FLOWS[Flow.COALESCED], {}, "every 200 ms"),
        (FLOWS[Flow.STEPWISE], {}, "about 4,096 bytes"),
        (FLOWS[Flow.HELD], {}, "until the stream ends"),
        (FLOWS[Flow.HELD], {1024: FLOWS[Flow.STEPWISE]}, "ends, or until there are about 4,096 bytes"),
        (
            FLOWS[Flow.HELD],
            {1024: FLOWS[Flow.HELD], 4096: FLOWS[Flow.STREAMING]},
            "more than 1,024 bytes and at most 4,096",
        ),
        (FLOWS[Flow.CHANGED], {}, "not an event stream any more"),
    ],
)
def test_streams_in_words(kind, padded, words):
    assert words in in_words(kind, padded)


def stream(encoding="", *, held=False):
    arrivals = [Arrival(i / 4, 2.0 if held else i / 4, 100) for i in range(8)]
    return Stream(0.0, 0.0, 2.0, arrivals, 8, encoding=encoding)


@pytest.mark.parametrize(
    ("ours", "plain", "verdict", "words"),
    [
        (stream(), stream(), OK, "left as they are"),
        (stream("gzip", held=True), stream("gzip", held=True), BROKEN, "held back"),
        (stream("gzip"), stream("gzip"), INFO, "events still flow"),
        (stream(), stream("gzip", held=True), INFO, "no-transform is obeyed"),
        (stream(), stream("gzip"), OK, "no-transform is obeyed"),
    ],
)
def test_compression(ours, plain, verdict, words):
    finding = compression(ours, plain, without=Flow.STREAMING, plain_without=Flow.STREAMING)
    assert finding.verdict is verdict
    assert words in finding.summary


def test_compression_is_not_to_blame_for_what_is_held_anyway():
    held = stream("gzip", held=True)
    assert compression(held, held, without=Flow.HELD, plain_without=Flow.HELD).verdict is INFO


@pytest.mark.parametrize(
    ("ours", "plain", "verdict"),
    [
        (("a", "b", "c"), ("d", "e", "f"), OK),
        (("a", "a", "c"), ("d", "d", "f"), BROKEN),
        (("a", "b", "b"), ("d", "e", "f"), BROKEN),
        (("a", "b", "c"), ("d", "d", "d"), INFO),
        ((None, None, None), (None, None, None), UNKNOWN),
        (("a", None, "c"), ("d", "e", "f"), UNKNOWN),
    ],
)
def test_sharing(ours, plain, verdict):
    assert sharing(Sharing(ours), Sharing(plain)).verdict is verdict


SENT = [("Host", "a"), ("Last-Event-ID", "1"), ("X-Custom", "1"), ("Connection", "X-Hop"), ("X-Hop", "1")]


@pytest.mark.parametrize(
    ("received", "direct", "expected"),
    [
        (SENT, (), [("other fields", OK)]),
        (SENT[:3], (), [("other fields", OK)]),
        ([*SENT, ("Via", "1.1 a")], (), [("other fields", INFO)]),
        ([SENT[0], *SENT[2:]], (), [("lost fields", BROKEN), ("other fields", OK)]),
        ([("Host", "b"), *SENT[1:]], (), [("Host", ADVICE), ("other fields", OK)]),
        ([*SENT, ("Via", "1.1 a")], [Difference(Change.ADDED, "Via", "", "1.1 a")], [("other fields", OK)]),
    ],
)
def test_fields(received, direct, expected):
    findings = fields(SENT, received, ("/a", "/a"), direct)
    assert [(finding.title, finding.verdict) for finding in findings] == expected


def test_a_token_is_not_told():
    sent, received = [("Authorization", "Bearer secret")], [("Authorization", "Basic other")]
    assert "secret" not in repr(list(fields(sent, received, ("/a", "/a"))))


@pytest.mark.parametrize(
    ("path", "direct", "verdict", "words"),
    [
        (Refusal(Limit(128000, None), None), None, INFO, "at least 128,000 bytes"),
        (Refusal(Limit(8000, 8100), 400), None, INFO, "on the way with 400"),
        (Refusal(Limit(16000, 16100), 431, is_servers=True), None, INFO, "by the server with 431"),
        (Refusal(Limit(2000, 2100), 400), None, ADVICE, "little"),
        (Refusal(Limit(2000, 2100), 400, is_servers=True), None, INFO, "by the server"),
        (Refusal(Limit(2000, 2100), 400), Refusal(Limit(2000, 2100), 400), INFO, "by the server"),
        (Refusal(Limit(2000, 2100), 400), Refusal(Limit(16000, 16100), 431), ADVICE, "on the way"),
        (Refusal(Limit(8000, 8100), 400), Refusal(Limit(8000, 8100), 431), INFO, "on the way with 400"),
        (Refusal(Limit(8000, 8100), 502), Refusal(Limit(8000, 8100), 431), INFO, "by the server with 502"),
        (Refusal(Limit(2000, 2100), None), None, INFO, "refused by closing the connection"),
    ],
)
def test_limits(path, direct, verdict, words):
    finding = limit("one field", path, direct)
    assert finding.verdict is verdict
    assert words in finding.summary


def test_a_limit_of_nobody_knows_whom():
    finding = limit("one field", Refusal(Limit(2000, 2100), 400), is_servers_known=False)
    assert finding.verdict is INFO
    assert "on the way" not in finding.summary
    assert "by the server" not in finding.summary


@pytest.mark.parametrize(
    ("upload", "verdict"),
    [
        (Upload(1.8, 1.8), OK),
        (Upload(1.8, 0.0), INFO),
        (Upload(1.8, 1.8, True, (100, 100)), INFO),
        (Upload(1.8, None), UNKNOWN),
    ],
)
def test_uploads(upload, verdict):
    assert uploads(upload).verdict is verdict


@pytest.mark.parametrize(
    ("calls", "verdict"),
    [
        ({"GET": 1, "POST": 1}, OK),
        ({"GET": 2, "POST": 1}, INFO),
        ({"GET": 2, "POST": 2}, ADVICE),
        ({"GET": None, "POST": 1}, UNKNOWN),
    ],
)
def test_retries(calls, verdict):
    assert retries(calls).verdict is verdict


@pytest.mark.parametrize(
    ("without", "with_cookies", "cookies", "words"),
    [
        ("aaa", "aaa", [], "one server"),
        ("aba", "aaa", ["srv"], "by the cookie srv"),
        ("aaa", "bbb", [], "without a cookie"),
        ("aba", "aba", [], "any of them"),
    ],
)
def test_stickiness(without, with_cookies, cookies, words):
    assert words in stickiness(Visits(without, with_cookies, cookies)).summary


FLOWING = Looked(200, "text/event-stream", 0.01, [0.01])
SILENT = Looked(200, "text/event-stream", 0.01, [])


@pytest.mark.parametrize(
    ("path", "there", "is_tricast", "verdict"),
    [
        (FLOWING, None, True, OK),
        (FLOWING, None, False, OK),
        (Looked(), None, True, BROKEN),
        (SILENT, None, True, BROKEN),
        (SILENT, None, False, UNKNOWN),
        (Looked(), FLOWING, False, BROKEN),
        (Looked(), SILENT, False, UNKNOWN),
        (Looked(404, "text/html"), None, False, UNKNOWN),
        (Looked(200, "text/html"), FLOWING, False, UNKNOWN),
    ],
)
def test_a_stream_that_is_only_looked_at(path, there, is_tricast, verdict):
    assert judge_stream(path, there, is_tricast=is_tricast).verdict is verdict


def owned(transport, owners, culprit="path"):
    idle = {"low": 50.0, "high": 50.0, "constant": 50.0, "owners": owners}
    detail = {"transport": transport, "idle": idle, "total": None, "culprit": culprit, "hint": ""}
    return Finding(check="P13", title=transport, verdict=Verdict.OK, summary="", detail=detail)


@pytest.mark.parametrize(
    ("findings", "proxy"),
    [
        ([owned("ws", "HAProxy timeout client"), owned("sse", "HAProxy timeout client")], "haproxy"),
        ([owned("ws", "HAProxy timeout client")], None),
        ([owned("ws", "HAProxy timeout client", "server"), owned("sse", "HAProxy timeout client")], None),
        ([owned("ws", "nginx proxy_read_timeout, Apache Timeout"), owned("sse", "nginx or Apache")], None),
        ([owned("ws", "Azure App Service"), owned("sse", "Azure App Service")] * 2, "azure"),
    ],
)
def test_who_is_guessed_by_timers(findings, proxy):
    found = guess(findings)
    assert (found and found.proxy) == proxy


def test_one_piece():
    looked = Looked(200, "text/event-stream", 0.1, [0.1])
    assert "and brings 1 piece in" in judge_stream(looked, None, is_tricast=True).summary
