"""URLs, and connecting to them."""

import socket
import ssl

import pytest
import trio
import trustme
from client.scripted import ScriptedServer

from tricast.client import ClientError, ClientSettings, Lost, publish
from tricast.client.endpoint import Endpoint, dial


@pytest.mark.parametrize(
    ("url", "endpoint", "target"),
    [
        ("http://127.0.0.1:8080", (False, "127.0.0.1", 8080, "127.0.0.1:8080", ""), "/x?a=%C3%A9"),
        ("http://example.com/", (False, "example.com", 80, "example.com", ""), "/x?a=%C3%A9"),
        ("https://example.com:443", (True, "example.com", 443, "example.com", ""), "/x?a=%C3%A9"),
        ("HTTPS://Example.com:80/a/b/", (True, "example.com", 80, "example.com:80", "/a/b"), "/a/b/x?a=%C3%A9"),
        ("http://[::1]:81", (False, "::1", 81, "[::1]:81", ""), "/x?a=%C3%A9"),
        ("http://bücher.example/ä", (False, "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/%C3%A4"), None),
    ],
)
def test_url(url, endpoint, target):
    parsed = Endpoint.parse(url)
    assert parsed == endpoint
    assert target is None or parsed.target("/x", [("a", "é")]) == target
    assert Endpoint.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://a",
        "http://",
        "http://a:b",
        "http://a:99999",
        "http://a?b",
        "http://a#b",
        "http://u:p@a",
        "http://[::1",
        "http://" + "a" * 64,
    ],
)
def test_what_is_no_url_of_a_server(url):
    with pytest.raises(ClientError, match="expected the URL of a server"):
        Endpoint.parse(url)


async def test_nobody_listens():
    with socket.socket() as held:  # so that nobody else listens there meanwhile
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(Lost, match=rf"^cannot connect to http://127.0.0.1:{port}: connection refused$"):
            await dial(Endpoint.parse(f"http://127.0.0.1:{port}"), ClientSettings())


async def test_the_name_cannot_be_resolved(monkeypatch):
    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *args):
            raise trio.socket.gaierror(-2, "Name or service not known")

        async def getnameinfo(self, *args):
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(Resolver())
    with pytest.raises(Lost, match=r"^cannot connect to http://server\.test: name or service not known$"):
        await dial(Endpoint.parse("http://server.test"), ClientSettings())


async def test_connecting_takes_too_long(autojump_clock):
    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *args):
            await trio.sleep_forever()

        async def getnameinfo(self, *args):
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(Resolver())
    with pytest.raises(Lost, match="timed out"):
        await dial(Endpoint.parse("http://server.test"), ClientSettings())


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def server_context(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


async def answer(peer):
    await peer.read_request()
    await peer.respond(200, '{"id":"7-0"}')


async def test_https(authority, server_context):
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    server = ScriptedServer(answer)
    async with server.on_sockets(server_context):
        assert await publish(server.url, "news", "x", settings=ClientSettings(ssl_context=trusting)) == "7-0"


async def test_a_certificate_that_is_not_trusted(server_context):
    server = ScriptedServer()
    async with server.on_sockets(server_context):
        with pytest.raises(ClientError, match="its certificate is not trusted: "):
            await dial(Endpoint.parse(server.url), ClientSettings())


async def test_no_tls_where_it_was_expected():
    server = ScriptedServer(close_at_once)
    async with server.on_sockets():
        with pytest.raises(Lost, match="the TLS handshake failed"):
            await dial(Endpoint.parse(server.url.replace("http:", "https:")), ClientSettings())


async def close_at_once(peer):
    await peer.stream.receive_some(1)
    await peer.stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def test_cancelling_the_handshake_closes_the_connection():
    closed = trio.Event()

    async def never_answer(peer):
        handshaking.set()
        await peer.wait_closed()
        closed.set()

    handshaking = trio.Event()
    server = ScriptedServer(never_answer)
    async with server.on_sockets():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, Endpoint.parse(server.url.replace("http:", "https:")), ClientSettings())
            await handshaking.wait()
            nursery.cancel_scope.cancel()
        await closed.wait()
