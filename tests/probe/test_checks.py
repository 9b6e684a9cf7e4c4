"""The checks that wait for no timers, against a server itself and through relays that misbehave."""

import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

import pytest
import trio
from clocks import HANG_SECONDS
from forwarding import forwarding
from probe.again import WITHIN, until_right
from probe.misbehaving import relaying
from probe.probing import TOKEN, probed, target_of

from tricast.probe.asking import find_companion
from tricast.probe.checks import blackbox, connections, requests, streams
from tricast.probe.checks.asked import Way
from tricast.probe.findings import Verdict, exit_code
from tricast.probe.fingerprint import suspects
from tricast.probe.run import Outcome, Plan, examine


@asynccontextmanager
async def served(count=1):
    """Servers with companion endpoints; yields their ports."""
    async with trio.open_nursery() as nursery:
        ports = [await nursery.start(_serve) for _ in range(count)]
        yield ports
        nursery.cancel_scope.cancel()


async def _serve(*, task_status):
    async with probed(server={"port": 0}, within=WITHIN) as (server, _):
        task_status.started(urlsplit(server.url).port)
        await trio.sleep_forever()


async def outcome_of(url, origin=None, token=TOKEN, transports=("ws", "sse", "poll")):
    outcome = Outcome(plan=Plan(url=url, origin=origin, token=token, transports=transports))
    with trio.fail_after(HANG_SECONDS):
        await examine(outcome)
    return outcome


def found(outcome, check, title=None):
    (finding,) = [f for f in outcome.findings if f.check == check and title in (None, f.title)]
    return finding


def faults(outcome):
    """What is held against the way."""
    return {(f.check, f.title) for f in outcome.findings if f.verdict in (Verdict.ADVICE, Verdict.BROKEN)}


@pytest.mark.parametrize("with_origin", [False, True])
async def test_the_server_itself_is_accused_of_nothing(with_origin):
    outcomes = {}

    async def measure(url, _):
        outcomes[url] = await outcome_of(url, url if with_origin else None)

    def check(url):
        outcome = outcomes[url]
        assert faults(outcome) == set()
        assert exit_code(outcome.findings) == 0
        assert outcome.is_companion
        assert outcome.proxies == []
        assert {f.check for f in outcome.findings} == {
            "P1",
            "P2",
            "P3",
            "P4",
            "P5",
            "P6",
            "P7",
            "P8",
            "P9",
            "P10",
            "P11",
            "P16",
        }
        assert not [f for f in outcome.findings if f.verdict is Verdict.UNKNOWN]

    async with served() as (port,):
        await until_right([f"http://127.0.0.1:{port}"], measure, check)


# One check at a time


async def checked(check, *, ports, **options):
    """What one check finds through a relay with these options, in front of servers on these ports."""
    async with relaying(*ports, **options) as url:
        way = Way(target_of(url), [])
        direct = Way(target_of(f"http://127.0.0.1:{ports[0]}"), [])
        with trio.fail_after(HANG_SECONDS):
            findings = await check(way, direct)
    return findings if isinstance(findings, list) else [findings], way


def titles(findings, *verdicts):
    return {finding.title for finding in findings if finding.verdict in (verdicts or (Verdict.ADVICE, Verdict.BROKEN))}


def by_title(findings, title):
    (finding,) = [finding for finding in findings if finding.title == title]
    return finding


@pytest.mark.parametrize(
    ("upgrade", "policy"),
    [("pass", "forwarded"), ("strip", "stripped"), ("deny", "denied"), ("dead", "broken"), ("lie", "broken")],
)
async def test_upgrade(upgrade, policy, monkeypatch):
    found = {}

    async def measure(upgrade, slower):
        monkeypatch.setattr(connections, "_PATIENCE", slower)
        (found[upgrade],), _ = await checked(connections.check_websocket, ports=ports, upgrade=upgrade)

    def check(upgrade):
        assert found[upgrade].detail["policy"] == policy
        assert found[upgrade].verdict is (Verdict.OK if upgrade == "pass" else Verdict.BROKEN)
        assert found[upgrade].advice == (None if upgrade == "pass" else "no-ws")

    async with served() as ports:
        await until_right([upgrade], measure, check)


#: What a relay does to event streams; how those like Tricast's come then, and plain ones; and what is a fault of it.
STREAMS = {
    "nothing": ({}, "streaming", "streaming", set()),
    "held": ({"hold": True}, "held", "held", {"SSE"}),
    "in steps": ({"step": 4096}, "held", "held", {"SSE"}),
    "collected": ({"period": 0.2}, "coalesced", "coalesced", {"SSE"}),
    "held unless told": ({"hold": True, "honours_accel": True}, "streaming", "held", set()),
    "compressed": ({"gzip": "flushed"}, "streaming", "streaming", set()),
    "compressed and held": ({"gzip": "held"}, "streaming", "streaming", {"compression"}),
    "compressed unless told": ({"gzip": "held", "honours_no_transform": True}, "streaming", "streaming", set()),
    "shared": ({"shares": True}, "streaming", "streaming", {"shared or cached"}),
    "kept": ({"shares": True, "keeps": True}, "streaming", "streaming", {"shared or cached"}),
}


async def test_event_streams():
    """All at the same time, since they take seconds each."""
    found = {}

    async def measure(name, _):
        found[name], _ = await checked(streams.check_streams, ports=ports, **STREAMS[name][0])

    def check(name):
        _, kind, plain, faulty = STREAMS[name]
        ours = by_title(found[name], "SSE")
        others = [finding for finding in found[name] if finding.title == "SSE without these fields"]
        assert (ours.detail["kind"], others[0].detail["kind"] if others else ours.detail["kind"]) == (kind, plain)
        assert titles(found[name]) == faulty
        check_details(name, found[name])

    async with served() as ports:
        await until_right(STREAMS, measure, check)


def check_details(name, findings):
    compression = by_title(findings, "compression").detail
    sharing = by_title(findings, "shared or cached").detail
    match name:
        case "in steps":
            assert by_title(findings, "SSE").detail["buffer_bytes"] == pytest.approx(4096, rel=0.05)
        case "collected":
            assert 0.15 < by_title(findings, "SSE").detail["period"] < 1.0
        case "held unless told":
            assert by_title(findings, "SSE without these fields").verdict is Verdict.INFO
        case "compressed":
            assert compression["encoding"] == "gzip"
        case "compressed and held":
            assert compression["kind"] == "held"
        case "compressed unless told":
            found = compression["encoding"], compression["plain_encoding"], compression["plain"]
            assert found == ("", "gzip", "held")
        case "shared" | "kept":
            assert (sharing["is_shared"], sharing["is_cached"]) == (True, name == "kept")


async def test_how_the_program_itself_is_held_up():
    flows = {}

    async def measure(name, _):
        flows[name] = await streams.own_flow()

    def check(name):
        assert flows[name] == "coalesced"

    async def hold_up():
        while True:
            time.sleep(0.2)  # noqa: ASYNC251 - nothing else may run meanwhile
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_up)
        await until_right(["own"], measure, check)
        nursery.cancel_scope.cancel()


def joined(fields):
    """What came twice, in one."""
    names = dict.fromkeys(name for name, _ in fields)
    return [(name, b", ".join(value for other, value in fields if other == name)) for name in names]


def without(*names):
    return lambda fields: [item for item in fields if item[0].lower() not in names]


def with_host(fields):
    return [(name, b"inner" if name.lower() == b"host" else value) for name, value in fields]


def with_cookie(more):
    return lambda fields: [(name, value + more if name.lower() == b"cookie" else value) for name, value in fields]


async def check_fields(way, direct):
    return (await requests.check_fields(way, direct))[0]


@pytest.mark.parametrize(
    ("change", "change_of", "faulty"),
    [
        (joined, ["joined", "X-Probe-Twice"], set()),
        (without(b"x-probe-custom"), ["removed", "X-Probe-Custom"], set()),
        (without(b"last-event-id"), ["removed", "Last-Event-ID"], {"lost fields"}),
        (with_host, ["changed", "Host"], {"Host"}),
        (with_cookie(b"; srv=a"), ["changed", "Cookie"], set()),
        (lambda fields: [*fields, (b"X-Forwarded-For", b"192.0.2.1")], ["added", "X-Forwarded-For"], set()),
        (lambda fields: [(name.lower(), value) for name, value in fields], ["case", "X-Probe-Custom"], set()),
    ],
)
async def test_fields(change, change_of, faulty):
    async with served() as ports:
        findings, _ = await checked(check_fields, ports=ports, request=change)
    assert change_of in [each[:2] for each in by_title(findings, "other fields").detail["changes"]]
    assert titles(findings) == faulty


async def test_a_target_that_is_rewritten():
    async with served() as ports:
        findings, _ = await checked(check_fields, ports=ports, target=lambda target: target.replace(b"%2F", b"/"))
    assert titles(findings) == {"request target"}


async def test_a_token_in_a_target_that_is_rewritten_is_not_told():
    token = "hidden/0123456789+hidden="

    def rewritten(target):
        return target.replace(b"%2F", b"/").replace(b"%20", b"+")

    async with probed(probe={"token": token}) as (server, _), relaying(server.port, target=rewritten) as url:
        way = Way(replace(target_of(url, token), token_in_query=True), [])
        findings, _, _ = await requests.check_fields(way, None)
    assert by_title(findings, "request target").verdict is Verdict.ADVICE
    assert "hidden" not in repr(findings)


async def test_a_limit_and_who_has_it():
    async with served() as ports:
        findings, way = await checked(requests.check_limits, ports=ports, longest_field=3000)
    field = by_title(findings, "one field")
    assert field.detail["passes"] <= 3000 < field.detail["fails"]
    assert field.detail["status"] == 400
    assert field.verdict is Verdict.ADVICE
    assert [suspect.proxy for suspect in suspects(way.seen)] == ["nginx"]
    assert "by the server" in by_title(findings, "request target").summary


@pytest.mark.parametrize("holds", [False, True])
async def test_bodies(holds, monkeypatch):
    found = {}

    async def check_uploads(way, _):
        return await requests.check_uploads(way)

    async def measure(name, slower):
        monkeypatch.setattr(requests, "_PIECE_SECONDS", 0.05 * slower)
        (found[name],), _ = await checked(check_uploads, ports=ports, holds_request=holds, answers_expect=holds)

    def check(name):
        assert found[name].verdict is (Verdict.INFO if holds else Verdict.OK)
        assert found[name].detail["expect_reached"] is not holds
        assert found[name].detail["interim"] == [100]

    async with served() as ports:
        await until_right(["relay"], measure, check)


@pytest.mark.parametrize(
    ("methods", "calls", "verdict"),
    [
        ((), {"GET": 1, "POST": 1}, Verdict.OK),
        (("GET",), {"GET": 2, "POST": 1}, Verdict.INFO),
        (("GET", "POST"), {"GET": 2, "POST": 2}, Verdict.ADVICE),
    ],
)
async def test_retries(methods, calls, verdict):
    async def check(way, _):
        return await requests.check_retries(way)

    async with served() as ports:
        (retries,), _ = await checked(check, ports=ports, retries=methods)
    assert retries.detail["calls"] == calls
    assert retries.verdict is verdict


@pytest.mark.parametrize("cookie", ["", "srv"])
async def test_several_servers(cookie):
    async def check(way, _):
        return await connections.check_stickiness(way)

    async with served(2) as ports:
        (servers,), _ = await checked(check, ports=ports, cookie=cookie)
    assert servers.detail["servers"] == 2
    assert servers.detail["is_sticky"] is bool(cookie)
    assert servers.detail["cookies"] == ([cookie] if cookie else [])


async def test_a_cookie_that_is_not_ascii():
    async def check(way, _):
        return await connections.check_stickiness(way)

    async with served(2) as ports:
        (servers,), _ = await checked(check, ports=ports, cookie="é")
    assert servers.detail["is_sticky"]


# Whole runs


async def test_a_token_that_does_not_get_through_is_sent_otherwise():
    async with served() as ports, relaying(*ports, request=without(b"authorization")) as url:
        outcome = await outcome_of(url, transports=("poll",))
    assert outcome.is_companion
    assert TOKEN not in repr(outcome.findings)
    assert faults(outcome) == {("P7", "lost fields")}
    assert found(outcome, "P7", "lost fields").detail == {"fields": ["Authorization"]}


async def test_a_path_that_refuses_a_token_that_is_not_its_own():
    async def refuse(port, stream):
        async with stream, await trio.open_tcp_stream("127.0.0.1", port) as server:
            request = await stream.receive_some(65536)
            if b"\r\nAuthorization:" in request:
                await stream.send_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
                return
            await server.send_all(request)
            await stream.send_all(await server.receive_some(65536))

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with served() as (port,), trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, partial(refuse, port), listeners)
        target = await find_companion(target_of(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"))
        findings, _, _ = await requests.check_fields(Way(target, []), None)
        nursery.cancel_scope.cancel()
    assert titles(findings) == set()


# Without the server's help


async def test_a_server_without_endpoints():
    async with served() as ports, relaying(*ports, upgrade="strip") as url:
        outcome = await outcome_of(url, f"http://127.0.0.1:{ports[0]}", token="", transports=("ws",))
    assert not outcome.is_companion
    assert "no --token was given" in outcome.notes[0]
    assert found(outcome, "P3").detail["policy"] == "stripped"
    assert faults(outcome) == {("P3", "WebSocket")}


async def test_a_stream_that_never_begins(monkeypatch):
    monkeypatch.setattr(blackbox, "_STREAM_SECONDS", 2.0)
    async with served() as ports, relaying(*ports, hold=True) as url:
        outcome = await outcome_of(url, token="", transports=("sse",))
    assert faults(outcome) == {("P4", "SSE")}


async def foreign(answer, stream):
    """A server that is no Tricast, and gives everybody the same answer."""
    async with stream:
        received = b""
        while b"\r\n\r\n" not in received and (data := await stream.receive_some(65536)):
            received += data
        with suppress(trio.BrokenResourceError):
            await stream.send_all(answer)
            while b"event-stream" in answer:
                await trio.sleep(0.1)
                await stream.send_all(b"data: tick\n\n")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"HTTP/1.0 200 OK\r\nServer: SimpleHTTP\r\nContent-Type: text/html\r\n\r\n<p>", Verdict.UNKNOWN),
        (b"HTTP/1.0 404 Not Found\r\nContent-Type: application/problem+json\r\n\r\n{}", Verdict.UNKNOWN),
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", Verdict.OK),
    ],
)
async def test_a_foreign_server_is_accused_of_nothing(answer, verdict, monkeypatch):
    outcomes = {}

    async def measure(url, slower):
        monkeypatch.setattr(blackbox, "_STREAM_SECONDS", 2.0 * slower)
        outcomes[url] = await outcome_of(url)

    def check(url):
        assert "no Tricast server" in outcomes[url].notes[0]
        assert found(outcomes[url], "P4").verdict is verdict
        assert faults(outcomes[url]) == set()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, partial(foreign, answer), listeners)
        await until_right([f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"], measure, check)
        nursery.cancel_scope.cancel()


async def test_servers_that_are_spared_after_a_fault_are_not_taken_for_limits():
    """As nginx does it, an answer that it refuses and one that does not come take a server out for 10 s."""
    outcomes = {}

    async def measure(name, _):
        async with served(2) as ports:
            servers = [f"127.0.0.1:{port}" for port in ports]
            async with forwarding(*servers, proxy={"profile": "nginx-websocket"}, within=WITHIN) as proxy:
                outcomes[name] = await outcome_of(proxy.url)

    def check(name):
        outcome = outcomes[name]
        assert found(outcome, "P16").verdict is not Verdict.UNKNOWN
        for finding in outcome.findings:
            # What an answer's field is refused with is really that.
            assert "502" not in finding.summary or finding.title == "an answer's field", finding

    await until_right(["two servers"], measure, check)


@pytest.mark.parametrize(("timer", "kept"), [("60s", 60.0), ("1h", None)])
async def test_connections_that_other_checks_use_as_well_are_not_taken_for_closed(timer, kept):
    outcomes = {}

    async def measure(name, _):
        async with probed(within=WITHIN) as (server, _):
            own = {"profile": "plain", "speed": 10}
            async with forwarding(server.url, proxy=own, upstream={"keepalive_timeout": timer}) as proxy:
                plan = Plan(url=proxy.url, token=TOKEN, seconds=110.0, speed=10.0)
                outcomes[name] = Outcome(plan=plan)
                await examine(outcomes[name])

    def check(name):
        finding = found(outcomes[name], "P17")
        if kept is None:
            assert (finding.verdict, finding.detail["kept"]) == (Verdict.INFO, None), finding
        else:
            assert finding.detail["kept"] == pytest.approx(kept, rel=0.1), finding

    await until_right(["a pool"], measure, check)
