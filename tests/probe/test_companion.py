"""The companion endpoints, and the probe's own client, against each other on real sockets."""

from contextlib import AsyncExitStack
from dataclasses import replace

import msgspec
import pytest
import trio
from clients import Wire, ask, frame, head, open_websocket, read_head
from encryption import client_context, tls_section
from probe.probing import TOKEN, probed, target_of
from probe.relays import Fault, relay
from serving import pause, serving, serving_process, until
from structlog.testing import LogCapture

from tricast import Config, ConfigError, load_config
from tricast.client.failures import Lost
from tricast.client.settings import ClientSettings
from tricast.companion.records import MAX_NONCES, Records
from tricast.probe.asking import Refused, asking, echo, find_companion, merge, reports
from tricast.probe.asking import ask as ask_companion
from tricast.probe.checks.holding import keep_alive
from tricast.probe.http_link import open_http
from tricast.probe.link import Cut, End
from tricast.probe.target import Target, new_nonce
from tricast.probe.websocket_link import Kind
from tricast.probe.websocket_link import open_websocket as open_probe_websocket
from tricast.wire.probe import Record

ENDPOINTS = ("echo", "sse", "poll", "ws", "hdr", "sink", "once", "report")
BEARER = f"Authorization: Bearer {TOKEN}"


async def ended(target: Target, nonce: str) -> Record:
    """The record of this nonce, once its connection has ended."""
    while (seen := (await reports(target, [nonce])).get(nonce)) is None or seen.record.end is None:
        await pause()
    return seen.record


# Who may


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_without_a_token_in_the_configuration_there_is_nothing(name: str) -> None:
    async with serving() as server:
        for method in ("GET", "POST"):
            answer = await ask(server.url, method, f"/.tricast/probe/{name}?token=", "Authorization: Bearer ")
            assert answer.status == 404


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_only_those_who_know_the_token_may(name: str) -> None:
    async with probed() as (server, _):
        path, method = f"/.tricast/probe/{name}", "POST" if name == "sink" else "GET"
        for target, *headers in (
            (path,),
            (path, "Authorization: Bearer wrong"),
            (path, f"Authorization: Basic {TOKEN}"),
            (f"{path}?token=wrong",),
            (f"{path}?token={TOKEN}&token={TOKEN}",),
            (f"{path}?token=%F0%9F%98%80",),
        ):
            answer = await ask(server.url, method, target, *headers)
            assert answer.status in (400, 401), target
            assert TOKEN.encode() not in answer.body
        assert server._runtime.counters.refusals["no-token"] >= 5


async def test_the_token_is_taken_from_either_place() -> None:
    async with probed() as (server, _):
        path = "/.tricast/probe/echo"
        assert (await ask(server.url, "GET", path, BEARER)).status == 200
        assert (await ask(server.url, "GET", path, f"Authorization: bearer {TOKEN}")).status == 200
        assert (await ask(server.url, "GET", f"{path}?token={TOKEN}")).status == 200
        assert (await ask(server.url, "GET", f"{path}?token={TOKEN}", "Authorization: Basic dTpw")).status == 200
        assert (await ask(server.url, "GET", f"{path}?token={TOKEN}", "Authorization: Bearer x")).status == 200


async def test_the_probe_finds_out_where_the_token_arrives() -> None:
    async with probed() as (server, target):
        assert await find_companion(target) == target
        with pytest.raises(Refused, match=r"not the server's probe\.token"):
            await find_companion(target_of(server.url, "another-token-of-somebody"))
        in_query = replace(target, token_in_query=True)
        assert await find_companion(in_query) == in_query
    async with serving() as server:
        with pytest.raises(Refused, match=r"set probe\.token"):
            await find_companion(target_of(server.url))


@pytest.mark.parametrize(
    ("status", "token", "asked"), [(401, TOKEN, 2), (403, TOKEN, 2), (404, TOKEN, 1), (401, "", 1)]
)
async def test_the_token_is_in_the_url_for_those_alone_who_ask_for_one(status: int, token: str, asked: int) -> None:
    requests: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            requests.append(bytes(await stream.receive_some(65536)))
            await stream.send_all(b"HTTP/1.1 %d\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        with pytest.raises(Refused):
            await find_companion(target_of(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", token))
        nursery.cancel_scope.cancel()
    assert [b"?token=" in request for request in requests] == [False, True][:asked]


async def test_the_token_is_not_logged() -> None:
    records = LogCapture()
    async with probed(records=records, logging={"access": True, "level": "debug"}) as (server, _):
        assert (await ask(server.url, "GET", f"/.tricast/probe/echo?token={TOKEN}")).status == 200
        assert (await ask(server.url, "GET", f"/%2etricast/probe/echo?%74oken={TOKEN}")).status == 200
        assert (await ask(server.url, "GET", "/.tricast/probe/echo", BEARER)).status == 200
    logged = [entry for entry in records.entries if entry["event"] == "request"]
    assert [entry["target"] for entry in logged] == [
        "/.tricast/probe/echo",
        "/%2etricast/probe/echo",
        "/.tricast/probe/echo",
    ]
    assert TOKEN not in str(records.entries)


@pytest.mark.parametrize(
    "token", ["short", "has a space in it, really", "ümlaut-ümlaut-ümlaut", 1234567890123456, "x" * 201]
)
def test_a_token_that_is_none_is_not_repeated(token: object) -> None:
    with pytest.raises(ConfigError, match=r"probe\.token: expected empty, or 16 to 200 visible ASCII") as caught:
        load_config(overrides={"probe": {"token": token}})
    assert str(token) not in str(caught.value)
    assert TOKEN not in repr(Config.model_validate({"probe": {"token": TOKEN}}))


# What came


async def test_echo_tells_the_request_as_it_came() -> None:
    async with probed() as (server, _):
        with await Wire.open(server.url) as wire:
            for number in (1, 2):
                await wire.send(
                    b"GET /.tricast/probe/echo?b=1&a=%20 HTTP/1.1\r\nhOsT: test\r\n" + BEARER.encode() + b"\r\n"
                    b"X-One: 1\r\nx-two: \xe4\r\nX-One: 2\r\n\r\n"
                )
                answer = await read_head(wire)
                seen = msgspec.json.decode(await wire.exactly(int(answer.headers["content-length"])))
                assert answer.headers["cache-control"] == "no-store"
                sent = [["hOsT", "test"], ["Authorization", f"Bearer {TOKEN}"]]
                assert seen["headers"] == [*sent, ["X-One", "1"], ["x-two", "ä"], ["X-One", "2"]]
                assert (seen["method"], seen["http_version"]) == ("GET", "1.1")
                assert seen["target"] == "/.tricast/probe/echo?b=1&a=%20"
                assert (seen["conn"], seen["number"]) == (1, number)
                assert seen["peer"].startswith("127.0.0.1")
        seen, _ = await echo(target_of(server.url))
        assert (seen.conn, seen.number) == (2, 1)


async def test_a_header_of_a_size() -> None:
    async with probed() as (_, target):
        for size in (0, 70_000):
            answer = await ask_companion(target, "hdr", [("n", size)])
            assert len(answer.head.header("x-tricast-probe") or "") == size
        assert (await ask_companion(target, "hdr", [("n", 10**6)])).status == 400


async def test_sink_tells_when_a_body_came() -> None:
    async with probed() as (_, target), open_http(target) as http:
        fields = [*target.credentials(), ("Transfer-Encoding", "chunked"), ("Expect", "100-continue")]
        await http.ask("POST", target.companion("sink"), fields, has_more=True)
        assert await http.informational() == 100
        await http.send_body(b"one", has_more=True)
        await http.send_body(b"", has_more=False)
        answer = await http.answer()
        assert answer.head.informational == (100,)
        sunk = msgspec.json.decode(answer.body)
        assert (sunk["expect"], sunk["is_chunked"], sunk["bytes"]) == ("100-continue", True, 3)
        assert [size for _, size in sunk["timeline"]] == [3]
        assert 0 <= sunk["timeline"][0][0] <= sunk["end"]
        assert http.is_reusable()


async def test_sink_takes_only_so_much() -> None:
    async with probed() as (_, target), open_http(target) as http:
        await http.ask(
            "POST", target.companion("sink"), [*target.credentials(), ("Transfer-Encoding", "chunked")], has_more=True
        )
        with pytest.raises(Cut):  # noqa: PT012
            while True:
                await http.send_body(bytes(2**20), has_more=True)
        assert (await http.head()).status == 413


async def test_once_hangs_up_the_first_time() -> None:
    async with probed() as (_, target):
        nonce = new_nonce()
        for method, body in (("GET", b""), ("POST", b"data")):
            nonce = new_nonce()
            fields = [*target.credentials(), *([("Content-Length", str(len(body)))] if body else [])]
            async with open_http(target) as http:
                await http.ask(method, target.companion("once", [("nonce", nonce)]), fields, body)
                with pytest.raises(Cut) as cut:
                    await http.head()
                assert cut.value.ending.how is End.FIN
            async with open_http(target) as http:
                await http.ask(method, target.companion("once", [("nonce", nonce)]), fields, body)
                answer = await http.answer()
                assert (answer.status, msgspec.json.decode(answer.body)["calls"]) == (200, 2)
        assert (await ask_companion(target, "once")).status == 400


# What stays open


async def test_an_event_stream_by_script() -> None:
    async with probed() as (_, target):
        query = [("n", 3), ("gap", 0.05), ("first", 0), ("pad", 100), ("nonce", "abc"), ("last_id", "7")]
        async with asking(target, "sse", [*query, ("cc", "no-transform"), ("xab", 1), ("inc", 1)]) as http:
            answer = await http.answer()
        assert answer.head.header("content-type") == "text/event-stream"
        assert answer.head.header("cache-control") == "no-transform"
        assert answer.head.header("x-accel-buffering") == "no"
        assert answer.head.header("incremental") == "?1"
        events = [msgspec.json.decode(line[6:]) for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
        assert [event["i"] for event in events] == [0, 1, 2]
        assert events[0]["last_event_id"] == "7"
        assert events[2]["t_send"] - events[0]["t_send"] >= 0.1
        assert answer.body.count(b"." * 100) == 3
        assert (await ended(target, "abc")).end == "own"


async def test_an_event_stream_stays_silent_unless_told_to_speak() -> None:
    async with probed(sse={"keepalive": "20ms"}) as (server, target):
        async with asking(target, "sse", [("n", 1), ("first", 0), ("hold", 60), ("nonce", "silent")]) as silent:
            assert (await silent.head()).header("x-accel-buffering") is None
            await silent.piece()
            async with asking(target, "sse", [("n", 0), ("hold", 60), ("every", 0.02)]) as talking:
                for _ in range(10):
                    assert (piece := await talking.piece()) is not None
                    assert piece.data == b":\n"
            assert silent.link.received_bytes == (await reports(target, ["silent"]))["silent"].record.sent_bytes
            await until(lambda: server.connections == 1)
        record = await ended(target, "silent")
        assert record.end == "fin"
        assert record.received_bytes == 0
        assert record.last_sent is not None
        assert record.last_sent < (record.ended or 0)


async def test_a_poll_comes_late_and_its_client_may_leave() -> None:
    async with probed() as (_, target):
        answer = await ask_companion(target, "poll", [("delay", 0.05), ("nonce", "stayed")])
        assert msgspec.json.decode(answer.body)["delay"] == 0.05
        async with asking(target, "poll", [("delay", 60), ("nonce", "left")]):
            pass
        assert (await ended(target, "left")).end == "fin"
        stayed = await ended(target, "stayed")
        assert stayed.end == "own"
        assert (stayed.ended or 0) >= 0.05
        with await Wire.open(str(target.endpoint)) as wire:
            await wire.send(head("GET", "/.tricast/probe/poll?delay=60&nonce=reset", BEARER))
            while "reset" not in await reports(target, ["reset"]):
                await pause()
            wire.reset()
        assert (await ended(target, "reset")).end == "rst"


async def test_a_websocket_that_echoes() -> None:
    async with probed() as (_, target):
        async with open_probe_websocket(target) as ws:
            path = target.companion("ws", [("mode", "echo"), ("nonce", "echo")])
            assert (await ws.shake_hands(path, target.credentials())).is_open
            assert b'"nonce":"echo"' in (await ws.frame()).payload
            await ws.send("said")
            assert (await ws.frame()).payload == b"said"
            assert (await ws.pong_of(b"p")).kind is Kind.PONG
            await ws.send_close(1001)
            with pytest.raises(Cut) as cut:
                await ws.frame()
            assert (cut.value.ending.how, cut.value.ending.code) == (End.CLOSE, 1001)
        record = await ended(target, "echo")
        assert (record.end, record.close_code) == ("close", 1001)
        assert record.received_bytes > 0


async def test_a_websocket_that_talks_or_is_silent() -> None:
    async with probed() as (_, target):
        async with open_probe_websocket(target) as ws:
            await ws.shake_hands(
                target.companion("ws", [("mode", "talk"), ("gap", 0.02), ("hold", 60)]), target.credentials()
            )
            await ws.ping(b"unheard")
            frames = [await ws.frame() for _ in range(4)]
            assert [frame.kind for frame in frames] == [Kind.MESSAGE, Kind.PING, Kind.PING, Kind.PING]
        async with open_probe_websocket(target) as ws:
            await ws.shake_hands(
                target.companion("ws", [("mode", "talk"), ("gap", 0.02), ("hold", 0.1)]), target.credentials()
            )
            with pytest.raises(Cut) as cut:  # noqa: PT012
                while True:
                    await ws.frame()
            assert (cut.value.ending.how, cut.value.ending.code) == (End.CLOSE, 1000)
        async with open_probe_websocket(target) as ws:
            await ws.shake_hands(target.companion("ws", [("mode", "sink"), ("hold", 0.2)]), target.credentials())
            await ws.frame()
            await ws.ping(b"unheard")
            with pytest.raises(Cut) as cut:
                await ws.frame()
            assert cut.value.ending.how is End.CLOSE


async def test_a_websocket_takes_what_came_with_the_handshake_and_refuses_what_is_none() -> None:
    async with probed() as (server, target):
        path = f"/.tricast/probe/ws?nonce=ws&token={TOKEN}"
        with await open_websocket(server.url, path, behind=frame(1, b"early")) as ws:
            await ws.message()
            assert await ws.message() == "early"
            await ws.wire.send(b"\xff\xff\xff")
            await ws.wire.rest()
        assert (await ended(target, "ws")).end == "garbled"
        assert (await ask(server.url, "GET", path)).status == 426


@pytest.mark.parametrize(
    "query",
    [
        "gap=-1",
        "every=0.000001",
        "gap=1e9",
        "n=-1",
        "n=99999",
        "n=x",
        "hold=99999",
        "pad=999999999",
        "cc=a%0d%0aSet-Cookie:%20x",
        "nonce=%0a",
    ],
)
async def test_what_is_out_of_bounds_is_refused(query: str) -> None:
    async with probed() as (server, _):
        answer = await ask(server.url, "GET", f"/.tricast/probe/sse?{query}", BEARER)
        assert (answer.status, answer.code) == (400, "bad-query")


@pytest.mark.parametrize(("query", "status"), [("mode=x", 400), ("mode=talk&gap=0", 400)])
async def test_a_websocket_that_is_out_of_bounds(query: str, status: int) -> None:
    async with probed() as (_, target), open_probe_websocket(target) as ws:
        handshake = await ws.shake_hands(f"/.tricast/probe/ws?{query}", target.credentials())
        assert (handshake.is_open, handshake.head.status) == (False, status)


async def test_who_is_held_is_let_go_when_the_server_goes_down() -> None:
    async with probed(drain={"period": "50ms", "grace": "5s"}) as (server, target):
        async with (
            asking(target, "sse", [("n", 0), ("hold", 60)]) as stream,
            asking(target, "poll", [("delay", 60)]) as poll,
            open_probe_websocket(target) as ws,
        ):
            await ws.shake_hands(target.companion("ws"), target.credentials())
            await ws.frame()
            await stream.head()
            await until(lambda: server.connections == 3)
            server.drain()
            assert await stream.piece() is None
            assert (await poll.answer()).status == 200
            with pytest.raises(Cut) as cut:
                await ws.frame()
            assert cut.value.ending.code == 1012
        await server.wait_stopped()


async def test_what_is_no_websocket_and_no_http_is_garbled() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        answers = [b"\x00\x01\x02\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore"]

        async def answer(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.receive_some()
                await stream.send_all(answers.pop(0))

        nursery.start_soon(trio.serve_listeners, answer, listeners)
        target = target_of(f"http://127.0.0.1:{port}")
        async with open_http(target) as http:
            await http.ask("GET", "/")
            with pytest.raises(Cut) as cut:
                await http.head()
            assert cut.value.ending.how is End.GARBLED
        async with open_http(target) as http:
            await http.ask("GET", "/")
            assert (await http.answer()).body == b""
            assert not http.is_reusable()
        nursery.cancel_scope.cancel()


# What is told about it


async def test_an_idle_connection_that_the_server_ends_first_is_its_own() -> None:
    async with probed(limits={"idle_timeout": "500ms"}) as (_, target):
        async with asking(target, "echo", [("nonce", "kept")]) as http:
            await http.answer()
            with pytest.raises(Cut) as cut:
                await http.link.receive()
            assert cut.value.ending.how is End.FIN
        record = await ended(target, "kept")
        assert record.end == "own"
        assert (record.ended or 0) - (record.last_sent or 0) >= 0.5
    async with probed() as (_, target):
        async with asking(target, "echo", [("nonce", "left")]) as http:
            await http.answer()
        assert (await ended(target, "left")).end == "fin"


def test_records_are_bounded_and_forget_the_oldest() -> None:
    now = 0.0
    records = Records(lambda: now)
    for number in range(MAX_NONCES + 1):
        records.begin(number % 7, Record(nonce=str(number), kind="echo", conn=1, number=1, peer="p"))
    assert len(records) == MAX_NONCES
    assert records.find("0") is None
    now = 2.5
    found = records.find(str(MAX_NONCES))
    assert found is not None
    assert found.age == 2.5
    for connection in range(7):
        records.ended(connection, "left")
    assert (found.end, found.ended) == ("fin", 2.5)
    records.ended("unknown", "left")


def test_a_nonce_that_comes_again_is_counted() -> None:
    records = Records(lambda: 0.0)
    for connection in "ab":
        records.begin(connection, Record(nonce="n", kind="once", conn=1, number=1, peer="p"))
    records.ended("a", "left")
    found = records.find("n")
    assert found is not None
    assert (found.calls, found.end) == (2, None)


def test_what_several_servers_saw_is_put_together() -> None:
    def record(age: float, calls: int) -> Record:
        return Record(nonce="n", kind="poll", conn=1, number=1, peer="p", calls=calls, age=age)

    for servers in ({"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}):
        merged = merge({name: {"n": record(age, int(age))} for name, age in servers.items()})
        assert (merged["n"].server, merged["n"].calls) == ("b", 3)
    assert merge({"a": {}, "b": {}}) == {}


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_what_is_seen_behind_tls_is_the_same(how: str) -> None:
    """The cut is one of TCP, without a word of TLS's own: as a balancer that knows nothing of TLS makes it."""
    told = trio.Event()
    async with probed(tls=tls_section()) as (server, _), relay(server.port, Fault(told=told, how=how)) as url:
        settings = ClientSettings(ssl_context=client_context())
        target = replace(target_of(url.replace("http://", "https://")), settings=settings)
        await find_companion(target)
        async with asking(target, "sse", [("first", 0), ("hold", 60), ("nonce", "tls")]) as stream:
            await stream.head()
            assert await stream.piece() is not None
            keep_alive(stream.link, 1.0)
            told.set()
            with pytest.raises(Cut) as cut:
                await stream.piece()
            assert cut.value.ending.how == how
        assert (await ended(replace(target_of(server.url), settings=settings), "tls")).end == how


async def test_what_nobody_has_seen_is_not_known() -> None:
    async with probed() as (_, target):
        assert await reports(target, ["nobody"]) == {}
        assert len(await reports(target, [str(number) for number in range(300)])) == 0
    with pytest.raises(Lost):
        await reports(target, ["nobody"])


async def test_every_process_behind_a_url_is_asked() -> None:
    """Of several workers, each knows what it has seen itself."""
    async with serving_process(server={"port": 0, "workers": 2}, probe={"token": TOKEN}) as server:
        target = target_of(server.url)
        nonces = [new_nonce() for _ in range(24)]
        async with AsyncExitStack() as stack:
            for nonce in nonces:
                query = [("first", 0), ("hold", 60), ("nonce", nonce)]
                stream = await stack.enter_async_context(asking(target, "sse", query))
                await stream.head()
            seen = await reports(target, nonces)
        assert set(seen) == set(nonces)
        assert len({each.server for each in seen.values()}) == 2
        assert {each.record.end for each in seen.values()} == {None}


def test_a_later_request_on_the_connection_is_told_of_from_its_beginning_on() -> None:
    now = 0.0
    records = Records(lambda: now)
    records.begin("connection", Record(nonce="first", kind="echo", conn=1, number=1, peer="p"))
    now = 1.0
    records.touch("connection")
    first = records.find("first")
    assert first is not None
    assert (first.last_received, first.last_sent) == (1.0, 1.0)
    now = 5.0
    records.begin("connection", Record(nonce="later", kind="sse", conn=1, number=2, peer="p"))
    now = 6.0
    records.ended("connection", "left")
    assert (first.last_received, first.last_sent, first.ended) == (5.0, 1.0, 6.0)
