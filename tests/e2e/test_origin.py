"""Pages of other origins: what CORS does not protect, the server does (RFC 6455 10.2)."""

import httpx
import pytest
from clients import WEBSOCKET_HEADERS, Answer, Wire, ask, head, read_answer, read_head
from serving import serving

import tricast

ECHO = {"handler": [{"path": "/echo", "handler": "tricast.handlers:echo"}]}
#: method, target, headers, and the status of who is let in
DOORS = [
    pytest.param("GET", "/ws", WEBSOCKET_HEADERS, 101, id="ws"),
    pytest.param("GET", "/events?topic=news", WEBSOCKET_HEADERS, 101, id="events"),
    pytest.param("GET", "/echo", WEBSOCKET_HEADERS, 101, id="handler"),
    pytest.param("POST", "/publish?topic=news", ("Content-Length: 1",), 200, id="publish"),
]
FOREIGN = [
    "https://elsewhere.test",
    "http://test.elsewhere.test",
    "http://elsewhere.test:8080",
    "http://test:8081",
    "http://test",
    "http://a@test:8080",
    "null",
    "test:8080",
    "://test:8080.",
    "http://",
    "",
]


async def knock(url: str, method: str, target: str, *headers: str, host: str = "test:8080") -> Answer:
    """One request with a body of one byte where that is announced."""
    with await Wire.open(url) as wire:
        body = b"1" if method == "POST" else b""
        await wire.send(head(method, target, *headers, host=host) + body)
        return await read_answer(wire)


def nothing_happened(server: tricast.Server) -> bool:
    return server.hub.statistics().published == 0 and not server._runtime.counters.streams


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize(("method", "target", "headers", "status"), DOORS)
async def test_pages_of_another_origin_are_kept_out(
    method: str, target: str, headers: tuple[str, ...], status: int, origin: str
) -> None:
    async with serving(websocket=ECHO, server={"cors_origins": ["https://friend.test"]}) as server:
        answer = await knock(server.url, method, target, *headers, f"Origin: {origin}")
        assert (answer.status, answer.code) == (403, "origin-not-allowed")
        assert nothing_happened(server)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("test:8080", "http://test:8080"),
        ("test:8080", "https://test:8080"),
        ("test", "https://test"),
        ("TEST", "https://test"),
        ("test", "HTTPS://Test"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
@pytest.mark.parametrize(("method", "target", "headers", "status"), DOORS)
async def test_the_servers_own_pages_are_let_in(
    method: str, target: str, headers: tuple[str, ...], status: int, host: str, origin: str
) -> None:
    async with serving(websocket=ECHO) as server:
        answer = await knock(server.url, method, target, *headers, f"Origin: {origin}", host=host)
        assert answer.status == status


@pytest.mark.parametrize(("method", "target", "headers", "status"), DOORS)
async def test_what_is_no_page_is_let_in(method: str, target: str, headers: tuple[str, ...], status: int) -> None:
    async with serving(websocket=ECHO) as server:
        assert (await knock(server.url, method, target, *headers)).status == status


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        (["https://other.test", "https://friend.test"], "https://friend.test"),
        (["*"], "https://elsewhere.test"),
        (["*"], "null"),
    ],
)
@pytest.mark.parametrize(("method", "target", "headers", "status"), DOORS)
async def test_configured_origins_are_let_in(
    method: str, target: str, headers: tuple[str, ...], status: int, allowed: list[str], origin: str
) -> None:
    async with serving(websocket=ECHO, server={"cors_origins": allowed}) as server:
        assert (await knock(server.url, method, target, *headers, f"Origin: {origin}")).status == status


async def test_a_page_that_is_kept_out_does_not_end_its_connection() -> None:
    async with serving() as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/ws", *WEBSOCKET_HEADERS, "Origin: https://elsewhere.test"))
            assert (await read_answer(wire)).status == 403
            await wire.send(head("GET", "/ws", *WEBSOCKET_HEADERS))
            assert (await read_head(wire)).status == 101


async def test_what_cors_protects_is_left_to_the_browser() -> None:
    # Without Access-Control-Allow-Origin the page does not get to see the answer.
    async with serving() as server:
        await server.hub.publish("news", 1)
        answer = await ask(server.url, "GET", "/events?topic=news&last_id=0-0", "Origin: https://elsewhere.test")
        assert answer.status == 200
        assert "access-control-allow-origin" not in answer.headers


async def test_a_page_of_an_allowed_origin_can_read_what_became_of_its_event() -> None:
    origin = "https://app.example"
    async with serving(server={"cors_origins": [origin]}) as server:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        async with httpx.AsyncClient(base_url=server.url) as client:
            preflight = await client.options("/publish", headers=asked)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == origin
            assert preflight.headers["access-control-allow-methods"] == "POST"
            assert "idempotency-key" in preflight.headers["access-control-allow-headers"]
            for path, status in (("/publish?topic=news", 200), ("/publish?topic=*", 400)):
                answer = await client.post(path, content="1", headers={"Origin": origin})
                assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, origin)
            foreign = await client.options("/publish", headers=asked | {"Origin": "https://evil.example"})
            assert "access-control-allow-origin" not in foreign.headers
            assert "access-control-allow-methods" not in foreign.headers
