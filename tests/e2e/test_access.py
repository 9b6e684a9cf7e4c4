"""Who may do what, over each transport: ten kinds of bad tokens, and what good ones allow."""

import json
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest
import trio
from clients import (
    WEBSOCKET_HEADERS,
    Answer,
    Wire,
    ask,
    head,
    open_websocket,
    query_of,
    read_answer,
    read_head,
    subscribe,
)
from credentials import API_KEY, API_KEY_HASH, AUTH, SECRET, bearer, token
from serving import failures, serving
from structlog.testing import LogCapture

import tricast

ECHO = {"handler": [{"path": "/echo", "handler": "tricast.handlers:echo"}]}
SSE = ("Accept: text/event-stream",)
NDJSON = "Content-Type: application/x-ndjson"


def unsigned() -> str:
    """A token with the algorithm "none" (RFC 7519 6)."""
    parts = [{"alg": "none", "typ": "JWT"}, {"sub": "ada", "exp": time.time() + 60, "subscribe": [">"]}]
    return ".".join(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


#: Each with the code that tells which check it was that failed, and the words that tell why.
BAD = {
    "nonsense": (lambda: "nonsense", "token-malformed", "no JSON Web Token"),
    "of another key": (lambda: token(secret="b" * 40), "token-signature", "not signed with the key"),
    "with an unknown key id": (lambda: token(kid="other"), "token-key-unknown", "no key"),
    "with no algorithm": (unsigned, "token-algorithm", "does not take"),
    "with another algorithm": (lambda: token(secret="c" * 64, algorithm="HS512"), "token-algorithm", "HS512"),
    "expired": (lambda: token(exp=time.time() - 12), "token-expired", r"expired [1-9]\d+ s ago"),
    "of the future": (lambda: token(nbf=time.time() + 3600), "token-not-yet", "not good before 3"),
    "for another audience": (lambda: token(aud="somebody"), "token-audience", "audience"),
    "of another issuer": (lambda: token(iss="https://elsewhere.test"), "token-issuer", "issuer"),
    "that never expires": (lambda: token(exp=None), "token-claims", "exp"),
    "that grants a number": (lambda: token(subscribe=5), "token-claims", "claims"),
    "an unknown API key": (lambda: "tricast_" + "x" * 43, "api-key-unknown", "API key"),
}

#: method, target, headers, and the body: everything that a token is asked for.
DOORS: dict[str, tuple[str, str, tuple[str, ...], bytes]] = {
    "poll": ("GET", "/events?topic=news", (), b""),
    "position": ("HEAD", "/events?topic=news", (), b""),
    "sse": ("GET", "/events?topic=news", SSE, b""),
    "ws": ("GET", "/events?topic=news", WEBSOCKET_HEADERS, b""),
    "ws alone": ("GET", "/ws", WEBSOCKET_HEADERS, b""),
    "handler": ("GET", "/echo", WEBSOCKET_HEADERS, b""),
    "publish": ("POST", "/publish?topic=news", (), b"1"),
    "batch": ("POST", "/publish", (NDJSON,), b'{"topic":"news","data":1}'),
    "ticket": ("POST", "/ticket", (), b""),
    "refresh": ("POST", "/refresh?stream=none", (), b""),
}


async def knock(url: str, door: str, *headers: str) -> Answer:
    """The answer at one of the doors; of a stream its head."""
    method, target, own, body = DOORS[door]
    length = (f"Content-Length: {len(body)}",) if method == "POST" else ()
    with await Wire.open(url) as wire:
        await wire.send(head(method, target, *own, *headers, *length) + body)
        answer = await read_head(wire)
        if "content-length" not in answer.headers or method == "HEAD":
            return answer
        return answer._replace(body=await wire.exactly(int(answer.headers["content-length"])))


async def at_all_doors(url: str, *headers: str) -> dict[str, Answer]:
    """The answers at all doors."""
    found: dict[str, Answer] = {}

    async def one(door: str) -> None:
        found[door] = await knock(url, door, *headers)

    async with trio.open_nursery() as nursery:
        for door in DOORS:
            nursery.start_soon(one, door)
    return found


def nothing_happened(server: tricast.Server) -> bool:
    return server.hub.statistics().published == 0 and not server._runtime.counters.streams


def refused_for(server: tricast.Server) -> dict[str, int]:
    return dict(server._runtime.counters.refusals)


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_token_is_told_which_kind_it_is_and_nothing_else(kind: str) -> None:
    make, code, words = BAD[kind]
    bad = make()
    logged = LogCapture()
    chatty = {"level": "debug", "access": True}
    auth = AUTH | {"cookie": "tricast_token", "token_in_query": True}
    async with serving(records=logged, auth=auth, websocket=ECHO, logging=chatty) as server:
        answers = await at_all_doors(server.url, bearer(bad))
        for door in ("ws", "ws alone", "handler"):
            entries = f"Sec-WebSocket-Protocol: tricast.v1, tricast.token.{bad}"
            answers[f"{door} by subprotocol"] = await knock(server.url, door, entries)
        origin = f"Origin: {server.url}"
        host = server.url.removeprefix("http://")
        for door in ("poll", "sse", "publish", "ticket"):
            method, target, own, body = DOORS[door]
            with await Wire.open(server.url) as wire:
                length = (f"Content-Length: {len(body)}",) if method == "POST" else ()
                cookie = f"Cookie: other=1; tricast_token={bad}"
                await wire.send(head(method, target, *own, origin, cookie, *length, host=host) + body)
                answers[f"{door} by cookie"] = await read_answer(wire)
        answers["poll by query"] = await ask(server.url, "GET", f"/events?topic=news&access_token={bad}")
        for door, answer in answers.items():
            assert answer.status == 401, (door, answer)
            assert answer.headers["www-authenticate"] == 'Bearer realm="tricast", error="invalid_token"'
            assert answer.headers["cache-control"] == "no-store"
            assert "sec-websocket-protocol" not in answer.headers
            if door != "position":
                assert answer.code == code, door
                tells_nothing_else(answer.json(), bad, words)
        assert refused_for(server) == {code: len(answers)}
        assert nothing_happened(server)
        await over_an_open_websocket(server, bad, code, words)
    text = str(logged.entries)
    assert "access_token=..." in text
    assert not failures(logged)
    assert all(part not in text for part in secrets_of(bad))


async def over_an_open_websocket(server: tricast.Server, bad: str, code: str, words: str) -> None:
    """The operation tells the same, and the connection goes on as before."""
    with await open_websocket(server.url, "/ws", bearer(token())) as websocket:
        reply = await websocket.operate(op="auth", token=bad, ref=7)
        assert (reply["error"]["code"], reply["ref"]) == (code, 7)
        tells_nothing_else({"detail": reply["error"]["message"]}, bad, words)
        assert (await websocket.operate(op="subscribe", topics=["news"]))["ok"] == "subscribe"


def tells_nothing_else(problem: dict[str, Any], bad: str, words: str) -> None:
    assert set(problem) <= {"type", "title", "status", "detail"}
    assert re.search(words, problem["detail"]), problem
    text = json.dumps(problem)
    assert all(part not in text for part in secrets_of(bad))
    assert all(value not in text for value in ("issuer.test", "ada", SECRET, '"tricast"'))


def secrets_of(bad: str) -> list[str]:
    """The token and its parts, as far as they are no common words."""
    return [bad, *(part for part in bad.split(".") if len(part) > 8)]


async def test_without_a_token_every_door_is_shut() -> None:
    async with serving(auth=AUTH, websocket=ECHO) as server:
        answers = await at_all_doors(server.url)
        for door, answer in answers.items():
            assert answer.status == 401, door
            assert answer.headers["www-authenticate"] == 'Bearer realm="tricast"'
            assert door == "position" or answer.code == "token-missing"
        assert refused_for(server) == {"token-missing": len(DOORS)}
        assert nothing_happened(server)


GOOD_STATUS = {
    "sse": 200, "ws": 101, "ws alone": 101, "handler": 101, "publish": 200, "batch": 200, "ticket": 200,
    "position": 200, "refresh": 404,
}  # fmt: skip


@pytest.mark.parametrize("door", GOOD_STATUS)
async def test_with_a_good_token_every_door_is_open(door: str) -> None:
    async with serving(auth=AUTH, websocket=ECHO) as server:
        answer = await knock(server.url, door, bearer(token()))
        assert answer.status == GOOD_STATUS[door]
        if door in ("sse", "position", "ticket", "refresh"):
            assert "no-store" in answer.headers["cache-control"]


@pytest.mark.parametrize("transport", ["poll", "sse", "ws"])
async def test_who_has_a_token_gets_the_events_of_its_topics(transport: str) -> None:
    async with serving(auth=AUTH) as server:
        shown = (bearer(token(subscribe=["news", "users.{sub}.>"])),)
        before = await server.hub.publish("other", 0)
        await server.hub.publish("news", 1)
        last_id = str(before)
        with await subscribe(
            transport, server.url, "news", "users.ada.>", last_id=last_id, credentials=shown
        ) as stream:
            assert (await stream.event()).data == 1
            await server.hub.publish("users.bob.x", 2)
            await server.hub.publish("users.ada.x", 3)
            assert (await stream.event()).data == 3


@pytest.mark.parametrize("wanted", ["other", "news.>", "*", ">", "users.bob", "users.*", "users.>", "news.*.a"])
@pytest.mark.parametrize("headers", [(), SSE, WEBSOCKET_HEADERS], ids=["poll", "sse", "ws"])
async def test_topics_that_are_not_granted_as_a_whole(wanted: str, headers: tuple[str, ...]) -> None:
    async with serving(auth=AUTH) as server:
        shown = bearer(token(subscribe=["news", "news.*", "users.{sub}"], publish=[">"]))
        await server.hub.publish("other", 1)
        # With a position as well: what was, is no more for anybody than what comes.
        target = f"/events?{query_of(['news', wanted], '0-0')}"
        answer = await ask(server.url, "GET", target, *headers, shown)
        assert (answer.status, answer.code) == (403, "topic-not-allowed")
        assert f"'{wanted}'" in answer.json()["detail"]
        assert not server._runtime.counters.streams
        assert refused_for(server) == {"topic-not-allowed": 1}


@pytest.mark.parametrize("wanted", ["news", "news.a", "news.*", "users.ada"])
async def test_topics_that_are_granted(wanted: str) -> None:
    async with serving(auth=AUTH) as server:
        shown = (bearer(token(subscribe=["news", "news.*", "users.{sub}"])),)
        with await subscribe("sse", server.url, wanted, credentials=shown) as stream:
            assert stream.last_id is not None


async def test_publishing_what_is_not_granted() -> None:
    async with serving(auth=AUTH) as server:
        shown = bearer(token(publish=["news"]))
        answer = await ask(server.url, "POST", "/publish?topic=other", shown, body=b"1")
        assert (answer.status, answer.code) == (403, "topic-not-allowed")
        lines = b'{"topic":"news","data":1}\n{"topic":"other","data":1}'
        answer = await ask(server.url, "POST", "/publish", shown, NDJSON, body=lines)
        assert (answer.status, answer.code) == (403, "topic-not-allowed")
        assert answer.json()["detail"].startswith("line 2: ")
        answer = await ask(server.url, "POST", "/publish?topic=*", shown, body=b"1")
        assert answer.status == 403
        assert nothing_happened(server)
        assert (await ask(server.url, "POST", "/publish?topic=news", shown, body=b"1")).status == 200
        assert (await ask(server.url, "POST", "/publish", shown, body=b"1")).code == "bad-topic"


async def test_what_is_refused_need_not_be_sent() -> None:
    # The head alone, with the length of a body that never comes.
    async with serving(auth=AUTH) as server:
        for headers in ((), (NDJSON,), (bearer(token(publish=["a"])),)):
            with await Wire.open(server.url) as wire:
                target = "/publish" if headers == (NDJSON,) else "/publish?topic=b"
                await wire.send(head("POST", target, "Content-Length: 1000", *headers))
                assert (await read_answer(wire)).status in (401, 403)


async def test_operations_obey_the_token() -> None:
    async with serving(auth=AUTH) as server:
        shown = bearer(token(subscribe=["news"], publish=["shouts"]))
        with await open_websocket(server.url, "/ws", shown) as websocket:
            for operation in (
                {"op": "subscribe", "topics": ["news", "other"]},
                {"op": "subscribe", "topics": [">"], "last_id": "0-0"},
                {"op": "publish", "topic": "news", "data": 1},
            ):
                assert (await websocket.operate(**operation))["error"]["code"] == "topic-not-allowed"
            assert refused_for(server) == {"topic-not-allowed": 3}
            assert nothing_published(server)
            assert (await websocket.operate(op="subscribe", topics=["news"]))["topics"] == ["news"]
            assert (await websocket.operate(op="publish", topic="shouts", data=1))["ok"] == "publish"


def nothing_published(server: tricast.Server) -> bool:
    return server.hub.statistics().published == 0


async def test_topics_for_everybody() -> None:
    auth = AUTH | {"anonymous_subscribe": ["public.>"], "anonymous_publish": ["feedback"]}
    async with serving(auth=auth, websocket=ECHO) as server:
        await server.hub.publish("public.a", 1)
        for transport in ("poll", "sse", "ws"):
            with await subscribe(transport, server.url, "public.>", last_id="0-0") as stream:
                assert (await stream.event()).data == 1
        for method, target in (("GET", "/events?topic=private"), ("POST", "/publish?topic=public.a")):
            answer = await ask(server.url, method, target)
            assert (answer.status, answer.code) == (401, "token-missing")
        assert (await ask(server.url, "POST", "/publish?topic=feedback", body=b"1")).status == 200
        # Who says who it is has no less than who does not; and what is wrong about that is not passed over.
        shown = bearer(token(subscribe=["private"], publish=[]))
        with await subscribe("sse", server.url, "public.a", "private", credentials=(shown,)):
            pass
        assert (await ask(server.url, "POST", "/publish?topic=feedback", shown, body=b"1")).status == 200
        answer = await ask(server.url, "GET", "/events?topic=public.a", bearer("nonsense"))
        assert answer.code == "token-malformed"
        # A handler is no topic.
        assert (await knock(server.url, "handler")).code == "token-missing"
        with await open_websocket(server.url, "/ws") as websocket:
            reply = await websocket.operate(op="subscribe", topics=["private"])
            assert reply["error"]["code"] == "token-missing"
            reply = await websocket.operate(op="auth", token=token())
            assert reply["error"]["code"] == "other-account"


async def test_a_handler_that_is_for_everybody() -> None:
    handler = {"handler": [ECHO["handler"][0] | {"anonymous": True}]}
    async with serving(auth=AUTH, websocket=handler) as server:
        with await open_websocket(server.url, "/echo") as websocket:
            await websocket.wire.send(b"\x81\x82\0\0\0\0hi")
            assert await websocket.message() == "hi"
        assert (await knock(server.url, "handler", bearer("nonsense"))).code == "token-malformed"


async def test_api_keys() -> None:
    auth = AUTH | {"api_key": [{"name": "billing", "hash": API_KEY_HASH, "publish": ["invoices.>"]}]}
    async with serving(auth=auth) as server:
        for shown in (f"X-API-Key: {API_KEY}", bearer(API_KEY)):
            assert (await ask(server.url, "POST", "/publish?topic=invoices.new", shown, body=b"1")).status == 200
            answer = await ask(server.url, "POST", "/publish?topic=news", shown, body=b"1")
            assert (answer.status, answer.code) == (403, "topic-not-allowed")
            assert (await ask(server.url, "GET", "/events?topic=invoices.new", shown)).status == 403
        answer = await ask(server.url, "POST", "/publish?topic=invoices.new", "X-API-Key: " + "x" * 43, body=b"1")
        assert (answer.status, answer.code) == (401, "api-key-unknown")


# Where credentials may stand


async def test_the_entry_with_the_token_is_not_repeated() -> None:
    secret = token()
    async with serving(auth=AUTH, websocket=ECHO) as server:
        for target, entries, chosen in (
            ("/ws", f"tricast.v1, tricast.token.{secret}", "tricast.v1"),
            ("/ws", f"tricast.token.{secret}, tricast.v1, tricast.token", "tricast.v1"),
            ("/echo", f"tricast.token, tricast.token.{secret}", "tricast.token"),
            ("/echo", f"tricast.token.{secret}, other", None),
        ):
            with await open_websocket(server.url, target, f"Sec-WebSocket-Protocol: {entries}") as websocket:
                assert websocket.subprotocol == chosen


async def test_a_subprotocol_is_no_place_for_a_token_without_a_websocket() -> None:
    async with serving(auth=AUTH) as server:
        answer = await ask(server.url, "GET", "/events?topic=news", f"Sec-WebSocket-Protocol: tricast.token.{token()}")
        assert answer.code == "token-missing"


async def test_a_token_in_the_url_is_refused_unless_it_is_configured() -> None:
    target = f"/publish?topic=news&access_token={token()}"
    async with serving(auth=AUTH) as server:
        answer = await ask(server.url, "POST", target, body=b"1")
        assert (answer.status, answer.code) == (401, "token-in-query")
    async with serving(auth=AUTH | {"token_in_query": True}) as server:
        assert (await ask(server.url, "POST", target, body=b"1")).status == 200


@pytest.mark.parametrize(
    "given",
    [
        lambda: [bearer(token()), bearer(token(sub="bob"))],
        lambda: [bearer(token()), f"X-API-Key: {API_KEY}"],
        lambda: [f"X-API-Key: {API_KEY}", f"X-API-Key: {API_KEY}"],
    ],
)
async def test_two_tokens_are_none(given: Callable[[], list[str]]) -> None:
    async with serving(auth=AUTH) as server:
        answer = await ask(server.url, "GET", "/events?topic=news", *given())
        assert (answer.status, answer.code) == (400, "credentials-twice")


async def test_another_scheme_is_for_somebody_else() -> None:
    # A proxy in front that asks for a password passes it on.
    async with serving(auth=AUTH, websocket=ECHO) as server:
        basic = "Authorization: Basic YWRhOmNvdW50ZXNz"
        assert (await ask(server.url, "GET", "/events?topic=news", basic)).code == "token-missing"
        assert (await ask(server.url, "HEAD", "/events?topic=news", basic, bearer(token()))).status == 200
        entries = f"Sec-WebSocket-Protocol: tricast.v1, tricast.token.{token()}"
        with await open_websocket(server.url, "/ws", basic, entries):
            pass
        assert (await ask(server.url, "GET", "/events?topic=news", "Authorization: Bearer")).code == "token-malformed"


async def test_where_access_is_open_to_all_tokens_do_not_matter() -> None:
    async with serving(websocket=ECHO) as server:
        assert (await ask(server.url, "POST", "/ticket")).status == 404
        assert (await ask(server.url, "POST", "/refresh?stream=x")).status == 404
        assert (await ask(server.url, "HEAD", "/events?topic=news&ticket=x", bearer("nonsense"))).status == 200
        with await open_websocket(server.url, "/ws", "Sec-WebSocket-Protocol: tricast.v1, tricast.token.x") as ws:
            assert ws.subprotocol == "tricast.v1"
            assert (await ws.operate(op="auth", token="nonsense")) == {"ok": "auth"}


async def test_what_is_open_stays_open() -> None:
    async with serving(auth=AUTH) as server:
        for path in ("/", "/tricast.js", "/healthz", "/readyz", "/metrics"):
            assert (await ask(server.url, "GET", path)).status == 200


# Idempotency keys


async def test_a_key_of_one_account_is_not_the_key_of_another() -> None:
    async with serving(auth=AUTH) as server:

        async def post(text: str, body: bytes, **claims: object) -> Answer:
            shown = bearer(token(**claims))
            return await ask(server.url, "POST", "/publish?topic=news", shown, f"Idempotency-Key: {text}", body=body)

        first = (await post("k", b"1")).json()
        assert (await post("k", b"1")).json() == first
        assert (await post("k", b"2")).code == "idempotency-key-reused"
        others = (await post("k", b"1", sub="bob")).json()
        assert others != first
        assert (await post("k", b"2", sub="eve")).status == 200
        assert server.hub.statistics().published == 3


# Application handlers


@pytest.mark.parametrize(
    ("claims", "code", "words"),
    [
        ({"subscribe": ["chat.lobby"], "publish": ["chat.lobby"]}, None, ""),
        ({"subscribe": ["chat.lobby"], "publish": []}, 4403, "may not publish"),
        ({"subscribe": [], "publish": ["chat.lobby"]}, 4403, "may not subscribe"),
    ],
)
async def test_a_handler_does_what_its_client_may(claims: dict[str, Any], code: int | None, words: str) -> None:
    chat = {"handler": [{"path": "/chat", "handler": "tricast.handlers:chat"}]}
    async with serving(auth=AUTH, websocket=chat) as server:
        with await open_websocket(server.url, "/chat", bearer(token(**claims))) as websocket:
            if code is None:
                assert (await websocket.event()).type == "joined"
            else:
                closed = await websocket.closed()
                assert closed.code == code
                assert words in closed.reason


async def test_an_operation_without_a_token_in_it() -> None:
    async with serving(auth=AUTH) as server:
        with await open_websocket(server.url, "/ws", bearer(token())) as websocket:
            for more in ({}, {"token": 5}, {"token": token(), "topics": []}):
                reply = await websocket.operate(op="auth", **more)
                assert reply["error"]["code"] == "bad-operation"
