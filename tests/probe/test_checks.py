"""The checks that wait for no timers, against a server itself and through relays that misbehave."""

from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import pytest
import trio
from probe.probing import TOKEN, probed
from probe.relays import relaying

from tricast.probe.findings import Verdict, exit_code
from tricast.probe.run import Outcome, Plan, examine


@asynccontextmanager
async def served(count=1):
    """Servers with companion endpoints; yields their ports."""
    async with trio.open_nursery() as nursery:
        ports = [await nursery.start(_serve) for _ in range(count)]
        yield ports
        nursery.cancel_scope.cancel()


async def _serve(*, task_status):
    async with probed(server={"port": 0}, within=60) as (server, _):
        task_status.started(urlsplit(server.url).port)
        await trio.sleep_forever()


async def outcome_of(url, origin=None, token=TOKEN, transports=("ws", "sse", "poll")):
    outcome = Outcome(plan=Plan(url=url, origin=origin, token=token, transports=transports))
    with trio.fail_after(50):
        await examine(outcome)
    return outcome


async def through(options, *, count=1, with_origin=True, **plan):
    """What is found through a relay with these options."""
    async with served(count) as ports, relaying(*ports, **options) as url:
        return await outcome_of(url, f"http://127.0.0.1:{ports[0]}" if with_origin else None, **plan)


def found(outcome, check, title=None):
    (finding,) = [f for f in outcome.findings if f.check == check and title in (None, f.title)]
    return finding


def faults(outcome):
    """What is held against the way."""
    return {(f.check, f.title) for f in outcome.findings if f.verdict in (Verdict.ADVICE, Verdict.BROKEN)}


@pytest.mark.parametrize("with_origin", [False, True])
async def test_the_server_itself_is_accused_of_nothing(with_origin):
    async with served() as (port,):
        url = f"http://127.0.0.1:{port}"
        outcome = await outcome_of(url, url if with_origin else None)
    assert faults(outcome) == set()
    assert exit_code(outcome.findings) == 0
    assert outcome.is_companion
    assert outcome.proxies == []
    assert {f.check for f in outcome.findings} == {"P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P10", "P11", "P16"}
    assert not [f for f in outcome.findings if f.verdict is Verdict.UNKNOWN]


@pytest.mark.parametrize(
    ("upgrade", "policy"),
    [("pass", "forwarded"), ("strip", "stripped"), ("deny", "denied"), ("dead", "broken"), ("lie", "broken")],
)
async def test_upgrade(upgrade, policy):
    outcome = await through({"upgrade": upgrade}, transports=("ws",), with_origin=upgrade != "deny")
    websocket = found(outcome, "P3")
    assert websocket.detail["policy"] == policy
    assert websocket.verdict is (Verdict.OK if upgrade == "pass" else Verdict.BROKEN)
    assert faults(outcome) == (set() if upgrade == "pass" else {("P3", "WebSocket")})


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"hold": True}, "held"),
        ({"step": 4096}, "held"),
        ({"period": 0.2}, "coalesced"),
        ({}, "streaming"),
    ],
)
async def test_buffering(options, kind):
    outcome = await through(options, transports=("sse",))
    stream = found(outcome, "P4", "SSE")
    assert stream.detail["kind"] == kind
    if kind == "coalesced":
        assert 0.15 < stream.detail["period"] < 0.35
        assert stream.verdict is Verdict.ADVICE
    if "step" in options:
        assert stream.detail["buffer_bytes"] == pytest.approx(4096, rel=0.05)
    assert faults(outcome) == (set() if kind == "streaming" else {("P4", "SSE")})


async def test_buffering_that_a_field_turns_off():
    outcome = await through({"hold": True, "honours_accel": True}, transports=("sse",))
    assert found(outcome, "P4", "SSE").detail["kind"] == "streaming"
    plain = found(outcome, "P4", "SSE without these fields")
    assert (plain.detail["kind"], plain.verdict) == ("held", Verdict.INFO)
    assert faults(outcome) == set()


@pytest.mark.parametrize(
    ("options", "kind", "faulty"),
    [
        ({"gzip": "held"}, "held", True),
        ({"gzip": "flushed"}, "streaming", False),
        ({"gzip": "held", "honours_no_transform": True}, "streaming", False),
    ],
)
async def test_compression(options, kind, faulty):
    outcome = await through(options, transports=("sse",))
    compression = found(outcome, "P5")
    assert compression.detail["kind"] == kind
    assert compression.detail["plain_encoding"] == "gzip"
    assert compression.detail["encoding"] == ("" if "honours_no_transform" in options else "gzip")
    assert faults(outcome) == ({("P5", "compression")} if faulty else set())


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_shared_stream(keeps):
    outcome = await through({"shares": True, "keeps": keeps}, transports=("sse",))
    assert found(outcome, "P6").detail["is_shared"]
    assert found(outcome, "P6").detail["is_cached"] is keeps
    assert faults(outcome) == {("P6", "shared or cached")}


def joined(fields):
    """What came twice, in one."""
    names = dict.fromkeys(name for name, _ in fields)
    return [(name, b", ".join(value for other, value in fields if other == name)) for name in names]


def without(*names):
    return lambda fields: [item for item in fields if item[0].lower() not in names]


def with_host(fields):
    return [(name, b"inner" if name.lower() == b"host" else value) for name, value in fields]


@pytest.mark.parametrize(
    ("change", "change_of", "faulty"),
    [
        (joined, ["joined", "X-Probe-Twice"], set()),
        (without(b"x-probe-custom"), ["removed", "X-Probe-Custom"], set()),
        (without(b"last-event-id"), ["removed", "Last-Event-ID"], {("P7", "lost fields")}),
        (with_host, ["changed", "Host"], {("P7", "Host")}),
        (lambda fields: [*fields, (b"X-Forwarded-For", b"192.0.2.1")], ["added", "X-Forwarded-For"], set()),
        (lambda fields: [(name.lower(), value) for name, value in fields], ["case", "X-Probe-Custom"], set()),
    ],
)
async def test_fields(change, change_of, faulty):
    outcome = await through({"request": change}, transports=("poll",))
    changes = [each[:2] for each in found(outcome, "P7", "other fields").detail["changes"]]
    assert change_of in changes
    assert faults(outcome) == faulty


async def test_a_token_that_does_not_get_through_is_sent_otherwise():
    outcome = await through({"request": without(b"authorization")}, transports=("poll",))
    assert outcome.is_companion
    assert TOKEN not in repr(outcome.findings)


async def test_a_target_that_is_rewritten():
    outcome = await through({"target": lambda target: target.replace(b"%2F", b"/")}, transports=("poll",))
    assert faults(outcome) == {("P7", "request target")}
    assert TOKEN not in repr(outcome.findings)


async def test_a_limit_and_who_has_it():
    outcome = await through({"longest_field": 3000}, transports=("poll",))
    field = found(outcome, "P8", "one field")
    assert field.detail["passes"] <= 3000 < field.detail["fails"]
    assert field.detail["status"] == 400
    assert ("P8", "one field") in faults(outcome)
    assert outcome.proxies == ["nginx"]
    assert "by the server" in found(outcome, "P8", "request target").summary


@pytest.mark.parametrize("holds", [False, True])
async def test_bodies(holds):
    outcome = await through({"holds_request": holds, "answers_expect": holds}, transports=("poll",))
    bodies = found(outcome, "P10")
    assert bodies.verdict is (Verdict.INFO if holds else Verdict.OK)
    assert bodies.detail["expect_reached"] is not holds
    assert bodies.detail["interim"] == [100]


@pytest.mark.parametrize(
    ("methods", "calls", "verdict"),
    [
        ((), {"GET": 1, "POST": 1}, Verdict.OK),
        (("GET",), {"GET": 2, "POST": 1}, Verdict.INFO),
        (("GET", "POST"), {"GET": 2, "POST": 2}, Verdict.ADVICE),
    ],
)
async def test_retries(methods, calls, verdict):
    outcome = await through({"retries": methods}, transports=("poll",))
    assert found(outcome, "P11").detail["calls"] == calls
    assert found(outcome, "P11").verdict is verdict


@pytest.mark.parametrize("cookie", ["", "srv"])
async def test_several_servers(cookie):
    outcome = await through({"cookie": cookie}, count=2, transports=("poll",), with_origin=False)
    servers = found(outcome, "P16")
    assert servers.detail["servers"] == 2
    assert servers.detail["is_sticky"] is bool(cookie)
    assert servers.detail["cookies"] == ([cookie] if cookie else [])


# Without the server's help


async def test_a_server_without_endpoints():
    outcome = await through({"upgrade": "strip"}, token="")
    assert not outcome.is_companion
    assert "no --token was given" in outcome.notes[0]
    assert found(outcome, "P3").detail["policy"] == "stripped"
    assert faults(outcome) == {("P3", "WebSocket")}


async def test_a_stream_that_never_begins():
    outcome = await through({"hold": True}, token="", transports=("sse",), with_origin=False)
    assert faults(outcome) == {("P4", "SSE")}


async def foreign(answer, stream):
    """A server that is no Tricast, and gives everybody the same answer."""
    async with stream:
        received = b""
        while b"\r\n\r\n" not in received and (data := await stream.receive_some(65536)):
            received += data
        await stream.send_all(answer)
        if b"event-stream" in answer:
            for _ in range(20):
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
async def test_a_foreign_server_is_accused_of_nothing(answer, verdict):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, partial(foreign, answer), listeners)
        outcome = await outcome_of(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        nursery.cancel_scope.cancel()
    assert "no Tricast server" in outcome.notes[0]
    assert found(outcome, "P4").verdict is verdict
    assert faults(outcome) == set()
