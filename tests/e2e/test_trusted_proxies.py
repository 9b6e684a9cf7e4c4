"""Behind proxies that are trusted, the client is whom they tell of; behind others it is they themselves."""

from types import SimpleNamespace
from typing import Any

import h11
import pytest
from clients import (
    TRANSPORTS,
    Answer,
    Wire,
    ask,
    attempt,
    head,
    query_of,
    read_answer,
    read_head,
    subscribe,
    subscription_headers,
)
from serving import serving, until
from structlog.testing import LogCapture

import tricast
from tricast import Session
from tricast.addresses import Networks
from tricast.config import Config
from tricast.http import Exchange
from tricast.wire.http1 import Request

TRUSTED = {"trusted_proxies": ["127.0.0.1"]}
A, B = "X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 2001:db8::1"
#: The URL's host, seen from an address that is not trusted.
STRANGER = "http://127.0.0.2@"


def as_stranger(server: tricast.Server) -> str:
    return server.url.replace("http://", STRANGER)


def refusals(server: tricast.Server) -> dict[str, int]:
    return dict(server._runtime.counters.refusals)


# Who it is


async def logged(records: LogCapture, url: str, *headers: str) -> dict[str, Any]:
    """What the access log says of a request."""
    before = len(records.entries)
    assert (await ask(url, "GET", "/healthz", *headers)).status == 200
    (entry,) = (entry for entry in records.entries[before:] if entry["event"] == "request")
    return {key: entry[key] for key in ("peer", "client") if key in entry}


async def test_the_access_log_names_peer_and_client() -> None:
    records = LogCapture()
    async with serving(records=records, server=TRUSTED, logging={"access": True}) as server:
        assert await logged(records, server.url) == {"peer": "127.0.0.1"}
        assert await logged(records, server.url, A) == {"peer": "127.0.0.1", "client": "192.0.2.1"}
        assert await logged(records, server.url, "X-Forwarded-For: unknown") == {"peer": "127.0.0.1"}
        assert await logged(records, as_stranger(server), A) == {"peer": "127.0.0.2"}
        assert await logged(records, as_stranger(server), "X-Forwarded-For: nonsense") == {"peer": "127.0.0.2"}


async def test_one_connection_may_be_many_clients() -> None:
    records = LogCapture()
    async with serving(records=records, server=TRUSTED, logging={"access": True}) as server:
        with await Wire.open(server.url) as wire:
            for header in (A, B, "X-Nothing: 1", A):
                await wire.send(head("GET", "/healthz", header))
                await read_answer(wire)
            await wire.send(head("GET", "/events?topic=news&last_id=0-1", A))
            await read_answer(wire)
        clients = [entry.get("client") for entry in records.entries if entry["event"] == "request"]
        assert clients == ["192.0.2.1", "2001:db8::1", None, "192.0.2.1", "192.0.2.1"]


async def test_only_the_field_that_is_configured_counts() -> None:
    records = LogCapture()
    section = TRUSTED | {"forwarded": "forwarded"}
    async with serving(records=records, server=section, logging={"access": True}) as server:
        rfc = "Forwarded: for=198.51.100.1"
        assert await logged(records, server.url, rfc, A) == {"peer": "127.0.0.1", "client": "198.51.100.1"}
        assert await logged(records, server.url, A) == {"peer": "127.0.0.1"}
        assert await logged(records, server.url, "X-Forwarded-For: nonsense") == {"peer": "127.0.0.1"}
    async with serving(records=records, server=TRUSTED, logging={"access": True}) as server:
        assert await logged(records, server.url, rfc) == {"peer": "127.0.0.1"}


@pytest.mark.parametrize(
    ("section", "header"),
    [
        ({}, "X-Forwarded-For: 192.0.2"),
        ({}, "X-Forwarded-Proto: gopher"),
        ({}, "X-Forwarded-Host: a b"),
        ({"forwarded": "forwarded"}, 'Forwarded: for="'),
    ],
)
async def test_what_cannot_be_read_is_refused_and_the_connection_goes_on(section: dict[str, str], header: str) -> None:
    async with serving(server=TRUSTED | section) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/healthz", header))
            answer = await read_answer(wire)
            assert (answer.status, answer.code) == (400, "bad-forwarded")
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).status == 200
        assert (await ask(as_stranger(server), "GET", "/healthz", header)).status == 200
        assert refusals(server) == {"bad-forwarded": 1}


async def test_a_handler_sees_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tell(session: Session) -> None:
        await session.send(session.peer)

    monkeypatch.setattr("tricast.handlers.tell", tell, raising=False)
    handler = {"path": "/tell", "handler": "tricast.handlers:tell"}
    async with serving(server=TRUSTED, websocket={"handler": [handler]}) as server:
        for url, peer in ((server.url, "192.0.2.1"), (as_stranger(server), "127.0.0.2")):
            with await Wire.open(url) as wire:
                await wire.send(head("GET", "/tell", *subscription_headers("ws"), A))
                assert (await read_head(wire)).status == 101
                assert (await wire.exactly(2 + len(peer)))[2:].decode() == peer


async def test_the_debug_log_names_the_client() -> None:
    records = LogCapture()
    async with serving(records=records, server=TRUSTED) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news", "Accept: text/event-stream", A))
            await read_head(wire)
        await until(lambda: server.connections == 0)
    (entry,) = (entry for entry in records.entries if entry["event"] == "connection lost")
    assert (entry["peer"], entry["client"]) == ("127.0.0.1", "192.0.2.1")


def exchange(*fields: tuple[bytes, bytes], **sections: Any) -> Exchange:
    """A request from 127.0.0.1 as a route sees it."""
    config = Config.model_validate(sections)
    runtime: Any = SimpleNamespace(config=config, proxies=Networks(config.server.trusted_proxies))
    connection: Any = SimpleNamespace(peer="127.0.0.1", client="127.0.0.1")
    request = Request(b"GET", b"/", fields, b"1.1")
    unused: Any = h11.Connection(h11.SERVER)
    found = Exchange(request, connection, runtime, unused, unused, serial=1, number=1)
    if connection.peer in runtime.proxies:
        found.take_origin()
    return found


TOLD = ((b"host", b"inside:8080"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"App.example"))


@pytest.mark.parametrize(
    ("sections", "fields", "seen"),
    [
        ({}, TOLD, ("http", "inside:8080")),
        ({"server": TRUSTED}, TOLD, ("https", "App.example")),
        ({"server": TRUSTED}, TOLD[:1], ("http", "inside:8080")),
        ({"server": TRUSTED}, TOLD[:2], ("https", "inside:8080")),
        ({"tls": {"certificate": "x"}}, TOLD[:1], ("https", "inside:8080")),
        ({"tls": {"certificate": "x"}, "server": TRUSTED}, ((b"x-forwarded-proto", b"http"),), ("http", "")),
    ],
)
def test_scheme_and_host_as_the_client_knows_them(
    sections: Any, fields: tuple[tuple[bytes, bytes], ...], seen: tuple[str, str]
) -> None:
    found = exchange(*fields, **sections)
    assert (found.scheme, found.authority) == seen


async def test_behind_a_refused_upgrade_nobody_is_believed() -> None:
    """The proxy may have become a pipe, and what comes then is the client's own."""
    refused = head("GET", "/nothing", *subscription_headers("ws"), A)
    async with serving(server=TRUSTED) as server:
        for url, goes_on in ((server.url, False), (as_stranger(server), True)):
            with await Wire.open(url) as wire:
                await wire.send(refused + head("GET", "/healthz", B))
                assert (await read_answer(wire)).status == 404
                assert (b"200 OK" in await wire.until(b"ok") if goes_on else await wire.rest() == b"") is True


# How many it may have

ONE_EACH = {"server": TRUSTED, "limits": {"connections_per_address": 1}}


async def refused(transport: str, server: tricast.Server, *headers: str) -> None:
    answer = await attempt(transport, server.url, query_of(["news"]), *headers)
    assert (answer.status, answer.code) == (429, "limit-exceeded")
    assert int(answer.headers["retry-after"]) >= 5


async def begin(transport: str, server: tricast.Server, *headers: str) -> Wire:
    """A subscription that the server has begun."""
    count = server.hub.statistics().subscribers
    wire = await Wire.open(server.url)
    await wire.send(head("GET", "/events?topic=news", *subscription_headers(transport), *headers))
    await until(lambda: server.hub.statistics().subscribers == count + 1)
    return wire


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_behind_a_proxy_each_client_has_its_own_places(transport: str) -> None:
    async with serving(**ONE_EACH) as server:
        with await begin(transport, server, A):
            await refused(transport, server, A)
            await refused(transport, server, "X-Forwarded-For: 203.0.113.9, 192.0.2.1")
            with await begin(transport, server, B):
                for other in TRANSPORTS:
                    await refused(other, server, "X-Forwarded-For: 2001:db8::2")
                # The proxy's own requests are nobody's.
                with await begin(transport, server), await begin(transport, server):
                    pass
                assert refusals(server) == {"limits.connections_per_address": 6}
        await until(lambda: server.connections == 0)
        assert len(server._runtime.places) == 0
        with await begin(transport, server, A):
            pass


async def test_who_is_not_trusted_cannot_be_many() -> None:
    async with serving(**ONE_EACH) as server:
        with await subscribe("sse", as_stranger(server), "news"):
            answer = await ask(as_stranger(server), "GET", "/healthz", B)
            assert (answer.status, answer.code) == (429, "limit-exceeded")
            assert answer.headers["connection"] == "close"


async def test_a_request_that_is_answered_gives_its_place_back() -> None:
    async with serving(**ONE_EACH, poll={"timeout": "20ms"}) as server:
        with await Wire.open(server.url) as one, await Wire.open(server.url) as other:
            for wire in (one, other, one):  # which end by themselves, and the connections stay
                await wire.send(head("GET", "/events?topic=news", A))
                assert (await read_answer(wire)).status == 204
        assert len(server._runtime.places) == 0
    async with serving(**ONE_EACH) as server:
        with await Wire.open(server.url) as one, await Wire.open(server.url) as other:
            for wire in (one, other, one):
                await wire.send(head("GET", "/healthz", A))
                assert (await read_answer(wire)).status == 200
            await one.send(head("GET", "/events?topic=news", A))
            await until(lambda: server.hub.statistics().subscribers == 1)
            await other.send(head("GET", "/healthz", A))
            assert (await read_answer(other)).status == 429
            await server.hub.publish("news", 1)
            assert (await read_answer(one)).status == 200
            await other.send(head("GET", "/healthz", A))
            assert (await read_answer(other)).status == 200, "it goes on after it was refused"
        assert len(server._runtime.places) == 0


async def test_pipelined_requests_of_one_client_are_one_at_a_time() -> None:
    async with serving(**ONE_EACH) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/healthz", A) * 5 + head("GET", "/none", A) + head("GET", "/healthz", B))
            statuses = [(await read_answer(wire)).status for _ in range(7)]
            assert statuses == [200] * 5 + [404, 200]
        assert len(server._runtime.places) == 0


async def test_a_request_that_makes_the_server_fail_leaves_no_place_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> Answer:
        raise ZeroDivisionError

    monkeypatch.setattr("tricast.hub.Hub.append", fail)
    records = LogCapture()
    async with serving(records=records, **ONE_EACH) as server:
        answer = await ask(server.url, "POST", "/publish?topic=news", A, body=b"1")
        assert answer.status == 500
        await until(lambda: server.connections == 0)
        assert len(server._runtime.places) == 0
