"""The admin listener: what it tells, what it does when asked, and whom it does not listen to."""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from clients import Answer, Closed, Wire, head, read_answer
from clocks import HANG_SECONDS
from prometheus_client.parser import text_string_to_metric_families
from serving import capturing_logger, failures, pause
from structlog.testing import LogCapture

from tricast.config import AdminSection
from tricast.errors import ConfigError, ConfigProblem
from tricast.wire.http1 import Request
from tricast_proxy import admin
from tricast_proxy.admin_routes import Admin
from tricast_proxy.config import FaultEntry, ServerEntry
from tricast_proxy.overview import ConnectionView, Counters, State
from tricast_proxy.servers import Health, Server

LOCAL = "localhost:9091"


class FakeProxy:
    """A proxy of which only what the admin listener asks for is there."""

    def __init__(self) -> None:
        entries = (
            ServerEntry(address="127.0.0.1:8081", name="one", weight=3),
            ServerEntry(address="127.0.0.1:8082", backup=True, max_connections=7),
        )
        self.servers: Sequence[Server] = [Server(entry) for entry in entries]
        self.counters = Counters()
        self.is_draining = False
        self.faults: Sequence[FaultEntry] = ()
        self.views: list[ConnectionView] = []

    def connections(self) -> Iterable[ConnectionView]:
        return iter(self.views)

    def drain(self) -> None:
        self.is_draining = True

    def ask_of(self, server: Server, wanted: Health) -> None:
        server.ask(wanted, trio.current_time())

    def set_faults(self, faults: Sequence[FaultEntry]) -> None:
        if any(fault.path == "/refused" for fault in faults):
            raise ConfigError([ConfigProblem("", "path", "refused on purpose")])
        self.faults = faults


class World:
    """A proxy, and where its admin listener is."""

    def __init__(self, proxy: FakeProxy, url: str) -> None:
        self.proxy = proxy
        self.url = url

    async def ask(self, method: str, target: str, *fields: str, body: bytes = b"", host: str = LOCAL) -> Answer:
        length = [f"Content-Length: {len(body)}"] if body else []
        with await Wire.open(self.url) as wire:
            await wire.send(head(method, target, *fields, *length, host=host) + body)
            return await read_answer(wire, method)

    async def get(self, target: str) -> Any:
        answer = await self.ask("GET", target)
        assert answer.status == 200, answer
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        return answer.json()

    async def metrics(self) -> dict[tuple[str, ...], float]:
        answer = await self.ask("GET", "/metrics")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return {
            (sample.name.removeprefix("tricast_proxy_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            if family.name.startswith("tricast_proxy_")
            for sample in family.samples
        }


@asynccontextmanager
async def listening() -> AsyncIterator[World]:
    proxy, records = FakeProxy(), LogCapture()
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            config = AdminSection(enabled=True, port=0)
            (url,) = await nursery.start(partial(admin.serve, config, proxy, capturing_logger(records)))
            yield World(proxy, url)
            nursery.cancel_scope.cancel()
    assert not failures(records)


# What it tells


async def test_health_and_readiness() -> None:
    async with listening() as world:
        assert await world.get("/healthz") == {"status": "ok"}
        assert await world.get("/readyz") == {"status": "ready"}
        for server in world.proxy.servers:
            server.ask(Health.DRAINING, trio.current_time())
        answer = await world.ask("GET", "/readyz")
        assert (answer.status, answer.code) == (503, "no-server")
        world.proxy.servers[1].ask(Health.UP, trio.current_time())
        assert await world.get("/readyz") == {"status": "ready"}
        world.proxy.drain()
        answer = await world.ask("GET", "/readyz")
        assert (answer.status, answer.code) == (503, "draining")
        assert await world.get("/healthz") == {"status": "ok"}


VIEWS = [
    ConnectionView("192.0.2.1", State.TUNNEL, "GET /ws", "one", 12, 3456, 61.23456, 0.5, 2.0),
    ConnectionView("2001:db8::1", State.IDLE, "", "", 0, 0, 0.04, 0.04, 0.04),
]


async def test_connections() -> None:
    async with listening() as world:
        assert await world.get("/connections") == {"connections": []}
        world.proxy.views = VIEWS
        first, second = (await world.get("/connections?format=json"))["connections"]
        assert first == {
            "peer": "192.0.2.1",
            "state": "tunnel",
            "request": "GET /ws",
            "server": "one",
            "received": 12,
            "sent": 3456,
            "age": 61.235,
            "idle_received": 0.5,
            "idle_sent": 2.0,
        }
        assert (second["peer"], second["state"], second["server"]) == ("2001:db8::1", "idle", "")


async def test_connections_as_a_table() -> None:
    async with listening() as world:
        world.proxy.views = [*VIEWS, VIEWS[0]._replace(request="GET /\x1b[2J\né")]
        answer = await world.ask("GET", "/connections?format=text")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        lines = answer.body.decode().splitlines()
        headings = "peer state request server received sent age idle received idle sent"
        assert " ".join(lines[0].split()) == headings
        assert lines[1].split() == ["192.0.2.1", "tunnel", "GET", "/ws", "one", "12", "3456", "61.2", "0.5", "2.0"]
        assert lines[2].split() == ["2001:db8::1", "idle", "0", "0", "0.0", "0.0", "0.0"]
        assert r"GET /\x1b[2J\x0a\xc3\xa9" in lines[3]
        assert len(lines) == 4
        columns = {line.index(cell) for line, cell in zip(lines[:2], ("server", "one"), strict=True)}
        assert len(columns) == 1
        assert (await world.ask("GET", "/connections?format=xml")).code == "bad-query"


async def test_servers() -> None:
    async with listening() as world:
        server = world.proxy.servers[0]
        server.active = 5
        server.counts["failed"] = 2
        server.checked(trio.current_time(), is_well=False, detail="gone")
        one, other = (await world.get("/servers"))["servers"]
        assert one == {
            "name": "one",
            "address": "127.0.0.1:8081",
            "health": "down",
            "wanted": "up",
            "passes_checks": False,
            "weight": 3,
            "weight_now": 3,
            "backup": False,
            "active": 5,
            "max_connections": 0,
            "counts": {"failed": 2},
            "url": "/servers/one",
        }
        assert (other["name"], other["backup"], other["health"]) == ("127.0.0.1:8082", True, "up")
        for state in (one, other):
            assert await world.get(state["url"]) == state
        assert await world.get("/servers/127.0.0.1:8082") == other


async def test_metrics() -> None:
    async with listening() as world:
        counters = world.proxy.counters
        counters.accepted, counters.tunnels, counters.retries, counters.opened, counters.reused = 9, 1, 2, 3, 4
        counters.received, counters.sent = 1000, 2000
        for status in (200, 204, 502):
            counters.answered(status)
        counters.cuts["tunnel-idle"] += 6
        counters.refused["no-server"] += 7
        world.proxy.views = VIEWS
        world.proxy.servers[0].active = 5
        world.proxy.servers[0].failed(trio.current_time())
        world.proxy.servers[1].ask(Health.DRAINING, trio.current_time())
        assert await world.metrics() == {
            **{("connections", state.value): 0 for state in State},
            ("connections", "tunnel"): 1,
            ("connections", "idle"): 1,
            ("draining",): 0,
            ("connections_accepted_total",): 9,
            ("requests_total", "2xx"): 2,
            ("requests_total", "5xx"): 1,
            ("tunnels_total",): 1,
            ("retries_total",): 2,
            ("upstream_connections_opened_total",): 3,
            ("upstream_connections_reused_total",): 4,
            ("cuts_total", "tunnel-idle"): 6,
            ("refused_total", "no-server"): 7,
            ("received_bytes_total",): 1000 + 12,
            ("sent_bytes_total",): 2000 + 3456,
            ("server_up", "one"): 0,
            ("server_up", "127.0.0.1:8082"): 0,
            ("server_active", "one"): 5,
            ("server_active", "127.0.0.1:8082"): 0,
            ("server_events_total", "failed", "one"): 1,
        }


async def test_the_process_is_among_the_metrics() -> None:
    async with listening() as world:
        text = (await world.ask("GET", "/metrics")).body.decode()
    assert "process_open_fds " in text
    for family in text_string_to_metric_families(text):
        assert family.documentation.endswith(".") or not family.name.startswith("tricast") or "draining" in family.name


# What it does


async def test_draining_the_proxy() -> None:
    async with listening() as world:
        answer = await world.ask("POST", "/drain")
        assert (answer.status, answer.json()) == (202, {"status": "draining"})
        assert world.proxy.is_draining
        assert (await world.metrics())["draining",] == 1


@pytest.mark.parametrize(
    ("state", "wanted"),
    [("drain", "draining"), ("draining", "draining"), ("down", "down"), ("up", "up")],
)
async def test_asking_for_the_state_of_a_server(state: str, wanted: str) -> None:
    async with listening() as world:
        server = world.proxy.servers[1]
        server.ask(Health.DOWN if state == "up" else Health.UP, trio.current_time())
        answer = await world.ask("POST", f"/servers/127.0.0.1%3A8082?state={state}")
        assert (answer.status, answer.json()["wanted"], answer.json()["health"]) == (200, wanted, wanted)
        assert server.wanted is Health(wanted)
        assert world.proxy.servers[0].wanted is Health.UP


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/servers/one", 400, "bad-query"),
        ("/servers/one?state=", 400, "bad-query"),
        ("/servers/one?state=gone", 400, "bad-query"),
        ("/servers/one?state=up&state=down", 400, "bad-query"),
        ("/servers/two?state=up", 404, "not-found"),
        ("/servers/?state=up", 404, "not-found"),
        ("/one?state=up", 404, "not-found"),
    ],
)
async def test_what_cannot_be_asked_of_a_server(target: str, status: int, code: str) -> None:
    async with listening() as world:
        answer = await world.ask("POST", target)
        assert (answer.status, answer.code) == (status, code)
        assert all(server.wanted is Health.UP for server in world.proxy.servers)


async def test_faults() -> None:
    faults = [{"path": "/events", "delay_up": "2s", "rate_down": "1KiB"}, {"reset_after": "10KiB"}]
    async with listening() as world:
        assert await world.get("/fault") == []
        answer = await world.ask("PUT", "/fault", body=json.dumps(faults).encode())
        assert (answer.status, answer.json()) == (200, faults)
        assert world.proxy.faults == (
            FaultEntry(path="/events", delay_up=2.0, rate_down=1024),
            FaultEntry(reset_after="10KiB"),
        )
        assert await world.get("/fault") == faults
        assert (await world.ask("PUT", "/fault", body=b"[]")).json() == []
        assert world.proxy.faults == ()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "body: Invalid JSON"),
        (b"{}", "body: Input should be a valid array"),
        (b'[{"delay": "1s"}]', "0.delay: unknown key 'delay'; did you mean 'delay_"),
        (b'[{}, {"delay_up": 1, "probability": 2}]', "1.delay_up: Input should be a duration"),
        (b'[{}, {"delay_up": 1, "probability": 2}]', "1.probability: Input should be less than or equal to 1"),
        (b'[{"reset_after": "nonsense"}]', "0.reset_after: Input should be a size such as"),
        (b'[{"path": "/refused"}]', "path: refused on purpose"),
    ],
)
async def test_what_are_no_faults(body: bytes, told: str) -> None:
    async with listening() as world:
        world.proxy.faults = before = (FaultEntry(path="/x"),)
        answer = await world.ask("PUT", "/fault", body=body)
        assert (answer.status, answer.code) == (400, "bad-faults")
        assert told in answer.json()["detail"]
        assert world.proxy.faults is before


# Whom it does not listen to

CHANGES = [("POST", "/drain", b""), ("POST", "/servers/one?state=down", b""), ("PUT", "/fault", b"[{}]")]


@pytest.mark.parametrize(("method", "target", "body"), CHANGES)
@pytest.mark.parametrize(
    "field",
    [
        "Origin: https://elsewhere.test",
        "Origin: null",
        f"Origin: http://{LOCAL}",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: none",
    ],
)
async def test_pages_can_change_nothing(method: str, target: str, body: bytes, field: str) -> None:
    async with listening() as world:
        answer = await world.ask(method, target, field, body=body)
        assert (answer.status, answer.code) == (403, "origin-not-allowed")
        assert not world.proxy.is_draining
        assert not world.proxy.faults
        assert world.proxy.servers[0].wanted is Health.UP
        assert (await world.ask(method, target, body=body)).status in (200, 202)


@pytest.mark.parametrize("target", ["/drain", "/servers/one?state=down", "/fault"])
async def test_reading_changes_nothing(target: str) -> None:
    async with listening() as world:
        for method in ("GET", "HEAD"):
            await world.ask(method, target)
        assert not world.proxy.is_draining
        assert world.proxy.servers[0].wanted is Health.UP


@pytest.mark.parametrize(
    "host", ["elsewhere.test", "elsewhere.test:9091", "127.0.0.1.elsewhere.test", "", "[::1", "[::1].test"]
)
@pytest.mark.parametrize(("method", "target", "body"), [*CHANGES, ("GET", "/connections", b"")])
async def test_a_name_that_somebody_else_points_here_is_not_ours(
    method: str, target: str, body: bytes, host: str
) -> None:
    async with listening() as world:
        answer = await world.ask(method, target, body=body, host=host)
        assert answer.status in (400, 421)
        assert not world.proxy.is_draining
        assert not world.proxy.faults


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9091", "[::1]", "[::1]:9091"])
async def test_names_that_mean_this_machine(host: str) -> None:
    async with listening() as world:
        assert (await world.ask("GET", "/connections", host=host)).status == 200


async def test_where_others_can_connect_names_are_theirs_to_give() -> None:
    # What is scraped by a name in a network of containers, for one.
    page = Admin(FakeProxy(), lambda: 0.0)
    request = Request(b"GET", b"/metrics", [(b"host", b"proxy:9091")], b"1.1")
    assert page.answer(request, b"", is_local=False).status == 200
    assert page.answer(request, b"", is_local=True).status == 421


# As a server of HTTP


async def test_one_connection_after_another_request() -> None:
    async with listening() as world:
        with await Wire.open(world.url) as wire:
            asked = head("GET", "/healthz", host=LOCAL)
            await wire.send(asked + head("HEAD", "/connections", host=LOCAL) + asked[:20])
            assert (await read_answer(wire)).json() == {"status": "ok"}
            answer = await read_answer(wire, "HEAD")
            assert (answer.status, answer.headers["content-length"]) == (200, str(len(b'{"connections":[]}\n')))
            await wire.send(asked[20:])
            assert (await read_answer(wire)).json() == {"status": "ok"}
            await wire.send(head("PUT", "/fault", "Content-Length: 2", "Expect: 100-continue", host=LOCAL))
            assert await wire.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await wire.send(b"[]")
            assert (await read_answer(wire)).json() == []
            await wire.send(head("GET", "/healthz", "Connection: close", host=LOCAL))
            assert (await read_answer(wire)).headers["connection"] == "close"
            assert await wire.rest() == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"PUT /fault HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1_100_000, 413),
    ],
)
async def test_mistakes(data: bytes, status: int) -> None:
    async with listening() as world:
        with await Wire.open(world.url) as wire:
            await wire.send(data)
            answer = await read_answer(wire)
            assert answer.status == status
            if status != 404:
                assert answer.headers["connection"] == "close"
                wire.finish_sending()
                assert await wire.rest() == b""
        assert await world.get("/healthz") == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("DELETE", "/fault", "GET, PUT"),
        ("GET", "/drain", "POST"),
        ("POST", "/metrics", "GET"),
        ("PATCH", "/servers/one", "GET, POST"),
    ],
)
async def test_methods_that_are_not_known(method: str, target: str, allowed: str) -> None:
    async with listening() as world:
        answer = await world.ask(method, target)
        assert (answer.status, answer.headers["allow"]) == (405, allowed)


async def test_clients_that_leave_in_the_middle() -> None:
    async with listening() as world:
        for data in (b"", b"GET / HT", head("PUT", "/fault", "Content-Length: 9", host=LOCAL) + b"["):
            for is_reset in (False, True):
                with await Wire.open(world.url) as wire:
                    await wire.send(data)
                    if is_reset:
                        wire.reset()
        assert await world.get("/healthz") == {"status": "ok"}


async def test_no_more_connections_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_MAX_CONNECTIONS", 2)
    async with listening() as world:
        with await Wire.open(world.url) as first, await Wire.open(world.url) as second:
            for wire in (first, second):
                await wire.send(head("GET", "/healthz", host=LOCAL))
                await read_answer(wire)
            with await Wire.open(world.url) as third:
                assert await third.rest() == b""
            await first.send(head("GET", "/healthz", "Connection: close", host=LOCAL))
            await read_answer(first)
            first.finish_sending()
            assert await first.rest() == b""
            await second.send(head("GET", "/healthz", host=LOCAL))
            assert (await read_answer(second)).status == 200
        while not await is_let_in(world):
            await pause()


async def is_let_in(world: World) -> bool:
    try:
        return (await world.ask("GET", "/healthz")).status == 200
    except Closed:
        return False


async def test_a_client_that_asks_for_nothing_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_PATIENCE_SECONDS", 0.02)
    async with listening() as world:
        with await Wire.open(world.url) as wire:
            assert await wire.rest() == b""
