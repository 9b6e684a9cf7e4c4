"""The server with TLS, and all kinds of clients: proper ones, others, and those that speak something else.

That events, positions and gaps are as without TLS is for the behaviour suite, which runs over both.
"""

import gc
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trio
from cli.running import run, running, serving_command
from clients import (
    TEXT,
    TRANSPORTS,
    WEBSOCKET_HEADERS,
    Ended,
    EventStream,
    WebSocket,
    Wire,
    ask,
    frame,
    head,
    open_websocket,
    publish,
    read_answer,
    read_head,
    subscribe,
)
from clocks import HANG_SECONDS
from encryption import (
    TlsSocket,
    authority_file,
    certificate_file,
    client_context,
    connected,
    tls_section,
)
from httpx_sse import aconnect_sse
from serving import ended, open_descriptors, serving, until
from websockets.sync.client import connect

import tricast

TLS = {"tls": tls_section()}
QUICK = {"period": "0s", "grace": "1h"}


async def subscribed(server: tricast.Server, count: int = 1) -> None:
    await until(lambda: server.hub.statistics().subscribers >= count)


async def rest(wire: Wire) -> bytes:
    """What comes up to the end, which TLS must have told."""
    while await wire.receive():
        pass
    return bytes(wire.buffer)


# Clients that others wrote


async def test_httpx_publishes_polls_and_follows() -> None:
    async with (
        serving(drain={"period": "0s"}, **TLS) as server,
        httpx.AsyncClient(base_url=server.url, verify=client_context()) as client,
    ):
        ids = []
        for n in range(4):
            response = await client.post("/publish", params={"topic": "news"}, json={"n": n, "text": "x" * 50_000})
            response.raise_for_status()
            ids.append(response.json()["id"])
        answer = (await client.get("/events", params={"topic": "news", "last_id": ids[0]})).json()
        assert [event["id"] for event in answer["events"]] == ids[1:]
        assert server._runtime.counters.accepted == 1
        seen = []
        headers = {"Last-Event-ID": ids[1]}
        async with aconnect_sse(client, "GET", "/events", params={"topic": "news"}, headers=headers) as source:
            async for event in source.aiter_sse():
                seen += [event.json()["n"]] if event.data else []
                if seen == [2, 3]:
                    server.drain()
    assert seen == [2, 3]


async def test_websockets() -> None:
    async with serving(**TLS) as server:

        def talk() -> list[object]:
            with connect(f"{server.url.replace('http', 'ws')}/events?topic=news", ssl=client_context()) as connection:
                assert json.loads(connection.recv())["ok"] == "subscribe"
                connection.send(json.dumps({"op": "publish", "topic": "news", "data": "x" * 50_000}))
                received = [json.loads(connection.recv()), json.loads(connection.recv())]
                assert connection.ping().wait(HANG_SECONDS)
                return [len(message["data"]) for message in received if "data" in message]

        with trio.fail_after(HANG_SECONDS):
            assert await trio.to_thread.run_sync(talk) == [50_000]
        await until(lambda: server.connections == 0)


async def test_curl_sees_proper_ends() -> None:
    curl = shutil.which("curl")
    assert curl is not None
    async with serving(**TLS) as server:
        for version in ("--tlsv1.3", "--tls-max=1.2"):
            options = [version.partition("=")[0], *version.split("=")[1:], "--cacert", authority_file()]
            process = await trio.run_process(
                [curl, "-sS", "--fail-with-body", "-H", "Connection: close", *options, f"{server.url}/healthz"],
                capture_stdout=True,
            )
            assert b'"status":"ok"' in process.stdout


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with TLS in it, for the command, which is made to trust it."""
    for variable in [name for name in os.environ if name.startswith("TRICAST_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("SSL_CERT_FILE", authority_file())
    file = tmp_path / "server.toml"
    file.write_text(f'[tls]\ncertificate = "{certificate_file()}"\n[admin]\nenabled = true\nport = 0\n')
    return str(file)


@pytest.mark.parametrize("transport", ["ws", "sse", "poll"])
async def test_the_command(configuration: str, transport: str) -> None:
    with trio.fail_after(HANG_SECONDS):
        async with (
            serving_command("--config", configuration) as (server, url),
            running("subscribe", "news", "--url", url, "--transport", transport) as subscriber,
        ):
            assert url.startswith("https://127.0.0.1:")
            assert (await subscriber.err.next()).startswith("connected by ")
            code, given, _ = await run("publish", "news", '{"n": 1}', "--url", url)
            assert code == 0
            assert json.loads(await subscriber.out.next())["id"] == given.strip()
            # Those who run the server ask on a listener of their own, which is not reached from outside.
            admin = (await server.err.until("admin listening on ")).partition("listening on ")[2].strip()
            assert admin.startswith("http://127.0.0.1:")
            assert (await ask(admin, "GET", "/healthz")).status == 200
            subscriber.process.send_signal(signal.SIGINT)
            assert await subscriber.end() == (130, "", "")


async def test_the_command_trusts_not_everybody(configuration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with trio.fail_after(HANG_SECONDS):
        async with serving_command("--config", configuration) as (_, url):
            code, _, said = await run("publish", "news", "1", "--url", url)
            assert code != 0
            assert "certificate" in said


# Records


@asynccontextmanager
async def byte_by_byte(url: str) -> AsyncIterator[str]:
    """Yields a URL behind which every byte, in both directions, comes by itself."""

    async def forward(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in source:
                for byte in data:
                    await sink.send_all(bytes([byte]))
                    await trio.lowlevel.checkpoint()
            await sink.send_eof()

    async def relay(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(forward, client, server)
            nursery.start_soon(forward, server, client)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, relay, [listener])
        yield f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_records_may_be_split_anywhere(transport: str) -> None:
    async with serving(**TLS) as server, byte_by_byte(server.url) as url:
        with await subscribe(transport, url, "news") as subscriber:
            await subscribed(server)
            for n in range(3):
                await publish(url, "news", {"n": n, "text": "x" * 500})
                assert (await subscriber.event()).data["n"] == n


async def test_a_request_that_comes_with_the_last_of_the_handshake() -> None:
    async with serving(**TLS) as server:
        with Wire(TlsSocket(await connected(server.url))) as wire:
            sock = wire._sock
            assert isinstance(sock, TlsSocket)
            await sock.shake_hands()
            for target in ("/healthz", "/readyz"):
                sock.seal(head("GET", target))
            sock.seal(head("GET", "/ws", *WEBSOCKET_HEADERS) + frame(TEXT, b'{"op":"ping"}'))
            await sock.raw.send(sock.sealed())
            assert (await read_answer(wire)).status == 200
            assert (await read_answer(wire)).status == 200
            assert (await read_head(wire)).status == 101
            assert await WebSocket(wire, None).reply() == {"ok": "ping"}


async def test_requests_and_records_need_not_begin_together() -> None:
    async with serving(**TLS) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/healthz") * 3)  # in one record
            for _ in range(3):
                assert (await read_answer(wire)).status == 200
            sock = wire._sock
            assert isinstance(sock, TlsSocket)
            body = head("POST", "/publish?topic=news", "Content-Length: 4") + b"true"
            for byte in body + head("GET", "/healthz")[:10]:
                sock.seal(bytes([byte]))
            await sock.flush()
            assert (await read_answer(wire)).status == 200
            await wire.send(head("GET", "/healthz")[10:])
            assert (await read_answer(wire)).status == 200


async def test_a_large_body_and_a_large_answer_over_many_records() -> None:
    size = 1_000_000
    sections = {"publish": {"max_event": "4MiB", "max_body": "4MiB"}, "websocket": {"max_message": "4MiB"}}
    async with serving(**TLS, **sections) as server:
        with await subscribe("sse", server.url, "news") as stream, await subscribe("ws", server.url, "news") as ws:
            await publish(server.url, "news", json.dumps("x" * size))
            assert (await stream.event()).data == (await ws.event()).data == "x" * size


async def test_new_keys_in_the_middle() -> None:
    openssl = shutil.which("openssl")
    assert openssl is not None
    async with serving(**TLS) as server:
        address = server.url.removeprefix("https://")
        process = await trio.lowlevel.open_process(
            [openssl, "s_client", "-connect", address, "-CAfile", authority_file()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        async with ended(process):
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(head("GET", "/events?topic=news", "Accept: text/event-stream"))
            await subscribed(server)
            seen = b""
            for n in range(3):
                await server.hub.publish("news", f"event {n}")
                while f"event {n}".encode() not in seen:
                    data = await process.stdout.receive_some()
                    assert data, seen
                    seen += data
                await process.stdin.send_all(b"K\n")  # asks for new keys on both sides
            await process.stdin.aclose()


# Ends


async def test_an_answer_that_is_the_last_is_followed_by_the_end_of_tls() -> None:
    async with serving(**TLS) as server:
        for request in (
            head("GET", "/healthz", "Connection: close"),
            b"nonsense\r\n\r\n",
            head("GET", "/", version="1.0"),
        ):
            with await Wire.open(server.url) as wire:
                await wire.send(request)
                await read_answer(wire)
                assert await rest(wire) == b""


async def test_an_idle_connection_is_told_of_the_end() -> None:
    async with serving(limits={"idle_timeout": "10ms"}, **TLS) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/healthz"))
            await read_answer(wire)
            assert await rest(wire) == b""


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_end_by_a_drain(transport: str, is_slow: bool) -> None:
    async with serving(drain=QUICK, limits={"send_buffer": 4096}, **TLS) as server:
        with await subscribe(transport, server.url, "news", receive_buffer=4096) as subscriber:
            await subscribed(server)
            count = 0
            if is_slow and transport != "poll":
                while server.hub.statistics().behind == 0:
                    await server.hub.publish("news", "x" * 2000)
                    await trio.lowlevel.checkpoint()
                    count += 1
            server.drain()
            await until(lambda: server.hub.statistics().subscribers == 0)
            if isinstance(subscriber, WebSocket):
                # Where it was behind, what was sent before is whole.
                assert (await subscriber.closed()).code == 1012
            elif isinstance(subscriber, EventStream):
                with pytest.raises(Ended):
                    await subscriber.events(count + 1)
            else:
                assert (await read_answer(subscriber.wire)).headers["connection"] == "close"
            assert await rest(subscriber.wire) == b""


async def test_a_stream_without_chunks_has_no_other_end() -> None:
    async with serving(drain=QUICK, **TLS) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/events?topic=news", "Accept: text/event-stream", version="1.0"))
            await subscribed(server)
            server.drain()
            assert b"retry: " in (await rest(wire)).partition(b"\r\n\r\n")[2]


async def test_idle_connections_and_silent_ones_end_at_once_by_a_drain() -> None:
    async with serving(drain={"period": "0s", "grace": "1h"}, **TLS) as server:
        with await Wire.open(server.url) as idle, await connected(server.url) as silent:
            await idle.send(head("GET", "/healthz"))
            await read_answer(idle)
            await until(lambda: server.connections == 2)
            server.drain()
            await until(lambda: server.connections == 0)
            assert await rest(idle) == b""
            assert await silent.recv(100) == b""


async def test_who_is_shaking_hands_in_a_drain_is_still_answered() -> None:
    async with serving(drain={"period": "0s", "grace": "1h"}, **TLS) as server:
        with Wire(TlsSocket(await connected(server.url))) as wire:
            sock = wire._sock
            assert isinstance(sock, TlsSocket)
            with pytest.raises(ssl.SSLWantReadError):
                sock.tls.do_handshake()
            hello = sock.sealed()
            await sock.raw.send(hello[:50])
            await until(lambda: server.connections == 1)
            await until(lambda: all(connection.has_begun for connection in server._runtime.open))  # type: ignore[attr-defined]
            server.drain()
            await sock.raw.send(hello[50:])
            await sock.shake_hands()
            await sock.flush()
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).headers["connection"] == "close"
            assert await rest(wire) == b""


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("how", ["tls", "tcp", "reset"])
async def test_clients_may_end_in_any_way(transport: str, how: str) -> None:
    async with serving(**TLS) as server:
        with await subscribe(transport, server.url, "news") as subscriber:
            await subscribed(server)
            sock = subscriber.wire._sock
            assert isinstance(sock, TlsSocket)
            if how == "tls":
                sock.say_end()  # and the connection stays
            elif how == "tcp":
                sock.raw.shutdown(socket.SHUT_WR)  # and TLS says nothing
            else:
                subscriber.wire.reset()
            await until(lambda: server.connections == 0)
            assert server.hub.statistics().subscribers == 0


async def test_a_handler_sees_the_end() -> None:
    handlers = {"handler": [{"path": "/echo", "handler": "tricast.handlers:echo"}]}
    async with serving(websocket=handlers, **TLS) as server:
        with await open_websocket(server.url, "/echo") as websocket:
            await websocket.wire.send(frame(TEXT, b"x" * 40_000))
            assert await websocket.message() == "x" * 40_000
            await websocket.wire.send(b"\x88\x80\0\0\0\0")
            await websocket.closed()
            assert await rest(websocket.wire) == b""


# Those who do not shake hands


def hello() -> bytes:
    """The first that a client says."""
    outgoing = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("part", ["nothing", "half", "all", "more"])
async def test_who_stops_in_the_handshake_is_ended_and_leaves_nothing(part: str) -> None:
    said = {"nothing": b"", "half": hello()[:100], "all": hello(), "more": hello() + b"\x14\x03\x03\0\1\1"}
    async with serving(limits={"head_timeout": "300ms"}, **TLS) as server:
        before = open_descriptors()
        with await connected(server.url) as sock:
            if said[part]:
                await sock.send(said[part])
            while await sock.recv(65536):
                pass
        await until(lambda: server.connections == 0)
        assert not open_descriptors() - before
        assert server._runtime.counters.lost["tls-timeout"] == 1
        assert not server._runtime.open


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("said", [b"", hello()[:100], hello()], ids=["nothing", "half", "hello"])
async def test_who_leaves_in_the_handshake_leaves_nothing(said: bytes, leave: str) -> None:
    async with serving(**TLS) as server:
        before = open_descriptors()
        wire = Wire(await connected(server.url))
        await until(lambda: server.connections == 1)
        await wire.send(said)
        getattr(wire, leave)()
        await until(lambda: server.connections == 0)
        assert not open_descriptors() - before


@pytest.mark.parametrize(
    "request_",
    [
        head("GET", "/events?topic=news"),
        head("OPTIONS", "/publish"),
        head("DELETE", "/"),
        head("CONNECT", "a:1"),
        head("POST", "/publish?topic=news", "Content-Length: 500000") + b"x" * 500_000,
        b"SSH-2.0-OpenSSH_9.9\r\n",
    ],
    ids=lambda data: data[:5].decode(),
)
async def test_who_speaks_http_is_told_so_in_http(request_: bytes) -> None:
    async with serving(**TLS) as server:
        with await Wire.open(server.url.replace("https", "http")) as wire:
            await wire.send(request_)
            answer = await read_answer(wire)
            assert (answer.status, answer.code) == (400, "https-required")
            assert answer.headers["connection"] == "close"
            assert not await wire.receive()
        await until(lambda: server.connections == 0)
        assert server._runtime.counters.lost["tls"] == 1


@pytest.mark.parametrize(
    ("garbage", "alert"),
    [
        (b"\x16\x03\x01\x00\x05hello", b"\x15\x03\x03\x00\x02\x02\x0a"),  # unexpected_message (RFC 8446 6)
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", b"\x15\x03\x03\x00\x02\x02\x32"),  # decode_error
        # What is not TLS at all gets no answer: OpenSSL's decision.
        (b"\x00" * 1000, b""),
        (b"\xff" * 100_000, b""),
    ],
    ids=["no handshake", "an empty hello", "zeros", "ones"],
)
async def test_garbage_gets_an_alert(garbage: bytes, alert: bytes) -> None:
    async with serving(**TLS) as server:
        with await Wire.open(server.url.replace("https", "http")) as wire:
            await wire.send(garbage)
            wire._sock.shutdown(socket.SHUT_WR)
            received = await wire.rest()
            assert received == alert
        await until(lambda: server.connections == 0)


def old_context(highest: ssl.TLSVersion) -> ssl.SSLContext:
    """What a client of the time before offers."""
    context = client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = highest
    return context


async def test_old_protocols_are_refused() -> None:
    async with serving(**TLS) as server:
        with await connected(server.url) as sock, pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await TlsSocket.over(sock, old_context(ssl.TLSVersion.TLSv1_1))
        with await connected(server.url) as sock:
            wire = Wire(await TlsSocket.over(sock, old_context(ssl.TLSVersion.TLSv1_2)))
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).status == 200


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)]
)
async def test_only_http_1_1_is_chosen(offered: list[str], chosen: str | None) -> None:
    # RFC 7301 3.2 wants an alert where there is nothing to choose. The ssl module has none; a client sees that its
    # protocol was not chosen.
    async with serving(**TLS) as server:
        sock = await TlsSocket.over(await connected(server.url), client_context(*offered))
        with Wire(sock) as wire:
            assert sock.tls.selected_alpn_protocol() == chosen
            if offered == ["h2"]:
                await wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                assert (await read_answer(wire)).status == 505
                assert await rest(wire) == b""
            else:
                await wire.send(head("GET", "/healthz"))
                assert (await read_answer(wire)).status == 200


# More than there is room for


async def test_one_more_than_allowed_is_told_so() -> None:
    async with serving(limits={"connections": 1}, **TLS) as server:
        with await subscribe("sse", server.url, "news") as stream:
            for _ in range(5):
                with await Wire.open(server.url) as wire:
                    await wire.send(head("GET", "/healthz"))
                    answer = await read_answer(wire)
                    assert (answer.status, answer.code) == (503, "overloaded")
                    assert await rest(wire) == b""
            await server.hub.publish("news", 1)
            assert (await stream.event()).data == 1
            assert server._runtime.counters.refused == 5


async def test_those_who_are_turned_away_and_do_not_shake_hands_hold_up_nobody() -> None:
    async with serving(limits={"connections": 1, "reserved_descriptors": 8}, **TLS) as server:
        before = open_descriptors()
        with ExitStack() as socks:
            with await subscribe("sse", server.url, "news"):
                silent = [socks.enter_context(await connected(server.url)) for _ in range(8)]
                await until(lambda: server._runtime.counters.refused == 8)
                for sock in silent:
                    assert await sock.recv(100) == b""
            await until(lambda: server.connections == 0)
            assert (await ask(server.url, "GET", "/healthz")).status == 200
        await until(lambda: not open_descriptors() - before)


# What stays


async def test_connections_leave_nothing_in_memory() -> None:
    def what_is_there() -> Counter[str]:
        gc.collect()
        names = [f"{type(found).__module__}.{type(found).__qualname__}" for found in gc.get_objects()]
        # Not what Trio and the log have, who tidy up later than this.
        ours = [name for name in names if re.match("tricast|ssl|_ssl|h11|wsproto", name)]
        return Counter(name for name in ours if not name.startswith("tricast.event."))

    async with serving(**TLS) as server:
        before, descriptors = what_is_there(), open_descriptors()
        for n in range(200):
            with await subscribe(TRANSPORTS[n % len(TRANSPORTS)], server.url, "news") as subscriber:
                await subscribed(server)
                await server.hub.publish("news", None)
                await subscriber.event()
                del subscriber
            await until(lambda: server.connections == 0)
        assert sum((what_is_there() - before).values()) < 20
        assert not open_descriptors() - descriptors


# Certificates


@contextmanager
def nobody() -> Iterator[None]:
    """Not being root, who may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_key_that_may_not_be_read(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    shutil.copy(certificate_file(), key)
    key.chmod(0)
    with nobody(), pytest.raises(tricast.ConfigError) as caught:
        trio.run(tricast.serve, tricast.Config.model_validate({"tls": {"certificate": str(key)}}))
    assert [str(problem) for problem in caught.value.problems] == [
        f"configuration: tls.certificate: {key}: Permission denied"
    ]


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('certificate = "missing.pem"', ": tls.certificate: missing.pem: No such file or directory"),
        ('key = "key.pem"', "expected a certificate as well, where there is a key"),
        (
            'certificate = "server.toml"',
            ": tls.certificate: server.toml: holds no certificate in PEM format",
        ),
    ],
)
async def test_the_command_says_what_is_wrong_with_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, keys: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.toml").write_text(f"[tls]\n{keys}\n")
    arguments = ["check", "server.toml"] if command == "check" else ["serve", "--port", "0", "--config", "server.toml"]
    code, out, err = await run(*arguments)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert said in line


async def test_check_takes_a_good_certificate(configuration: str) -> None:
    code, out, err = await run("check", configuration)
    assert (code, err) == (0, "")
    assert out.startswith(f"{configuration}: ok, with a certificate for 127.0.0.1, localhost until ")
