"""Pages and cookies: whose pages may use what their visitors' browsers send by themselves."""

import pytest
from clients import WEBSOCKET_HEADERS, Answer, Wire, head, read_head
from credentials import AUTH, bearer, token
from serving import serving

from tricast.config import Config

HOST = "test:8080"
OWN, FRIEND, FOREIGN = f"http://{HOST}", "https://friend.test", "https://elsewhere.test"
WITH_COOKIE = {"auth": AUTH | {"cookie": "tricast_token"}, "server": {"cors_origins": [FRIEND]}}
SSE = ("Accept: text/event-stream",)
#: method, target, headers, and the status of who is let in.
DOORS = {
    "poll": ("HEAD", "/events?topic=news", (), 200),
    "sse": ("GET", "/events?topic=news", SSE, 200),
    "ws": ("GET", "/ws?topic=news", WEBSOCKET_HEADERS, 101),
    "publish": ("POST", "/publish?topic=news", ("Content-Length: 1",), 200),
    "ticket": ("POST", "/ticket", ("Content-Length: 0",), 200),
    "refresh": ("POST", "/refresh?stream=none", ("Content-Length: 0",), 404),
}
READING = ("poll", "sse")


async def knock(url: str, door: str, *headers: str) -> Answer:
    """The answer at one of the doors, of a stream its head."""
    method, target, own, _ = DOORS[door]
    with await Wire.open(url) as wire:
        body = b"1" if "Content-Length: 1" in own else b""
        await wire.send(head(method, target, *own, *headers, host=HOST) + body)
        return await read_head(wire)


def cookie() -> str:
    return f"Cookie: session=1; tricast_token={token()}"


@pytest.mark.parametrize("door", DOORS)
async def test_a_cookie_counts_for_pages_of_the_same_origin_and_of_configured_ones(door: str) -> None:
    async with serving(**WITH_COOKIE) as server:
        for page in (
            (f"Origin: {OWN}",),
            (f"Origin: {FRIEND}",),
            (f"Origin: {OWN}", "Sec-Fetch-Site: same-origin"),
            (f"Origin: {FRIEND}", "Sec-Fetch-Site: cross-site"),
            ("Sec-Fetch-Site: same-origin",),
            ("Sec-Fetch-Site: none",),
        ):
            assert (await knock(server.url, door, cookie(), *page)).status == DOORS[door][3], page


@pytest.mark.parametrize("door", DOORS)
async def test_a_cookie_does_not_count_for_other_pages(door: str) -> None:
    async with serving(**WITH_COOKIE) as server:
        pages = [
            (f"Origin: {FOREIGN}",),
            ("Origin: null",),
            (f"Origin: {FOREIGN}", "Sec-Fetch-Site: same-origin"),
            ("Sec-Fetch-Site: cross-site",),
            ("Sec-Fetch-Site: same-site",),
        ]
        for page in pages:
            answer = await knock(server.url, door, cookie(), *page)
            assert answer.status == 403, page
        refusals = server._runtime.counters.refusals
        assert refusals["origin-not-allowed"] + refusals["cross-site"] == len(pages)
        assert server.hub.statistics().published == 0
        assert not server._runtime.counters.streams


@pytest.mark.parametrize("door", DOORS)
async def test_a_cookie_that_nothing_is_said_of_counts_only_for_reading(door: str) -> None:
    # As old browsers send it, and all of them over plain HTTP for a GET of the same origin.
    async with serving(**WITH_COOKIE) as server:
        status = (await knock(server.url, door, cookie())).status
        assert status == (200 if door in READING else 403)


@pytest.mark.parametrize("door", ["poll", "sse"])
async def test_a_token_that_a_page_shows_itself_is_left_to_cors(door: str) -> None:
    async with serving(**WITH_COOKIE) as server:
        answer = await knock(server.url, door, bearer(token()), f"Origin: {FOREIGN}")
        assert answer.status == 200
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("door", ["publish", "ticket", "refresh", "ws"])
async def test_other_pages_get_nothing_with_a_token_either(door: str) -> None:
    async with serving(**WITH_COOKIE) as server:
        assert (await knock(server.url, door, bearer(token()), f"Origin: {FOREIGN}")).status == 403


async def test_behind_a_trusted_proxy_its_origin_is_the_own_one() -> None:
    sections = WITH_COOKIE | {"server": {"trusted_proxies": ["127.0.0.1"]}}
    told = ("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: App.example")
    async with serving(**sections) as server:
        for door, (_, _, _, status) in DOORS.items():
            page = ("Origin: https://app.example", cookie())
            assert (await knock(server.url, door, *told, *page)).status == status
            assert (await knock(server.url, door, *page)).status == 403
            for other in (f"Origin: {OWN}", "Origin: http://app.example"):
                assert (await knock(server.url, door, *told, other, cookie())).status == 403


# CORS


@pytest.mark.parametrize("path", ["/events", "/publish", "/ticket", "/refresh"])
async def test_a_preflight_lets_a_page_show_a_token(path: str) -> None:
    async with serving(**WITH_COOKIE) as server:
        with await Wire.open(server.url) as wire:
            asked = (f"Origin: {FRIEND}", "Access-Control-Request-Method: POST")
            await wire.send(head("OPTIONS", path, *asked, "Access-Control-Request-Headers: authorization", host=HOST))
            answer = await read_head(wire)
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert answer.headers["access-control-allow-credentials"] == "true"
        allowed = answer.headers["access-control-allow-headers"].split(", ")
        assert {"authorization", "x-api-key"} <= set(allowed)
        assert "*" not in allowed


@pytest.mark.parametrize("door", ["poll", "sse", "publish", "ticket"])
async def test_a_configured_page_can_read_answers_and_refusals(door: str) -> None:
    async with serving(**WITH_COOKIE) as server:
        for shown, status in ((cookie(), 200), ("Cookie: tricast_token=nonsense", 401), ("X: y", 401)):
            answer = await knock(server.url, door, shown, f"Origin: {FRIEND}")
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == FRIEND
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert "origin" in answer.headers["vary"]


async def test_without_a_cookie_there_are_no_credentials_to_allow() -> None:
    async with serving(auth=AUTH, server={"cors_origins": [FRIEND]}) as server:
        answer = await knock(server.url, "poll", bearer(token()), f"Origin: {FRIEND}")
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert "access-control-allow-credentials" not in answer.headers
        assert (await knock(server.url, "poll", cookie())).status == 401
    async with serving(auth=AUTH, server={"cors_origins": ["*"]}) as server:
        answer = await knock(server.url, "poll", bearer(token()), f"Origin: {FOREIGN}")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


def test_a_cookie_for_every_page_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Config.model_validate({"auth": AUTH | {"cookie": "token"}, "server": {"cors_origins": ["*"]}})


@pytest.mark.parametrize("name", ["a b", "a=b", "a;b", 'a"b', "a,b", "é", "a\n"])
def test_names_that_no_cookie_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a cookie"):
        Config.model_validate({"auth": {"cookie": name}})
