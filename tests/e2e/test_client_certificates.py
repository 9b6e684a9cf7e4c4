"""Client certificates: who has to show one to publish, who is known by one, and whose is not taken."""

import json
import ssl
import time
from pathlib import Path

import jwt
import pytest
import trustme
from clients import (
    TEXT,
    TRANSPORTS,
    WEBSOCKET_HEADERS,
    Answer,
    WebSocket,
    Wire,
    ask,
    frame,
    head,
    publish,
    read_answer,
    read_head,
    subscribe,
)
from encryption import (
    TlsSocket,
    authority,
    authority_file,
    certificate_file,
    client_certificate,
    client_context,
    connected,
    tls_section,
)
from serving import serving, until

import tricast
from tricast.access.identity import ANYBODY, Certified, Identity, identity_of
from tricast.transports.stream import Stream

ASKED = {"tls": tls_section() | {"client_ca": authority_file()}}
REQUIRED = ASKED | {"publish": {"require_client_certificate": True}}
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


async def opened(server: tricast.Server, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Wire:
    """A connection of this client's."""
    sock = TlsSocket(await connected(server.url), context, session=session)
    try:
        await sock.shake_hands()
        await sock.flush()
    except BaseException:
        sock.close()
        raise
    return Wire(sock)


async def publish_over(wire: Wire) -> Answer:
    await wire.send(head("POST", "/publish?topic=news", "Content-Length: 1") + b"1")
    return await read_answer(wire)


async def alert_for(server: tricast.Server, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> str:
    """What a client whose certificate is not taken is told; with TLS 1.3 its own part of the handshake is done then."""
    with pytest.raises(ssl.SSLError) as caught, await opened(server, context, session) as wire:
        await wire._sock.recv(1)
    return str(caught.value.reason)


def certified(server: tricast.Server) -> Certified | None:
    """Who the only client is."""
    (connection,) = server._runtime.open
    return connection.certified


# Publishing


async def test_who_shows_a_certificate_may_publish_and_who_does_not_may_not() -> None:
    async with serving(**REQUIRED) as server:
        with await opened(server, client_certificate(called="press")) as wire:
            for _ in range(2):
                assert (await publish_over(wire)).status == 200
        for count in (1, 2):
            with await opened(server, client_context()) as wire:
                answer = await publish_over(wire)
                assert (answer.status, answer.code) == (403, "client-certificate-missing")
                assert server._runtime.counters.refusals == {"client-certificate-missing": count}


async def test_over_websocket_it_is_the_same() -> None:
    operation = frame(TEXT, b'{"op":"publish","topic":"news","data":1,"ref":7}')
    async with serving(**REQUIRED) as server:
        for context, expected in (
            (client_certificate(called="press"), "ok"),
            (client_context(), "error"),
        ):
            with await opened(server, context) as wire:
                await wire.send(head("GET", "/ws", *WEBSOCKET_HEADERS))
                assert (await read_head(wire)).status == 101
                websocket = WebSocket(wire, None)
                await wire.send(operation * 2)
                for _ in range(2):
                    reply = await websocket.reply()
                    assert reply["ref"] == 7
                    assert expected in reply
                if expected == "error":
                    assert reply["error"]["code"] == "client-certificate-missing"
        assert server._runtime.counters.refusals == {"client-certificate-missing": 2}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_everybody_may_subscribe(transport: str) -> None:
    async with serving(**REQUIRED) as server:
        with await subscribe(transport, server.url, "news") as subscriber:
            await until(lambda: server.hub.statistics().subscribers == 1)
            with await opened(server, client_certificate(called="press")) as wire:
                assert (await publish_over(wire)).status == 200
            assert (await subscriber.event()).data == 1


async def test_where_it_is_not_required_everybody_may_publish() -> None:
    async with serving(**ASKED) as server:
        await publish(server.url, "news", 1)


async def test_one_that_expires_while_the_body_comes_publishes_nothing() -> None:
    async with serving(**REQUIRED) as server:
        with await opened(server, client_certificate(called="press", expires=1)) as wire:
            await wire.send(head("POST", "/publish?topic=news", "Content-Length: 1", "Expect: 100-continue"))
            assert (await read_head(wire)).status == 100
            clock = server._runtime._clock
            server._runtime._clock = lambda: clock() + 2 * 86400
            await wire.send(b"1")
            assert (await read_answer(wire)).code == "client-certificate-expired"
        assert server.hub.statistics().published == 0


async def test_one_that_expires_while_its_connection_lives_is_none_any_more() -> None:
    async with serving(**REQUIRED) as server:
        with await opened(server, client_certificate(called="press", expires=1)) as wire:
            assert (await publish_over(wire)).status == 200
            clock = server._runtime._clock
            server._runtime._clock = lambda: clock() + 2 * 86400
            answer = await publish_over(wire)
            assert (answer.status, answer.code) == (403, "client-certificate-expired")


def test_what_nobody_could_show_is_not_required() -> None:
    with pytest.raises(ValueError, match=r"Input should be a tls\.client_ca as well"):
        tricast.Config.model_validate({"publish": {"require_client_certificate": True}, "tls": tls_section()})
    with pytest.raises(ValueError, match="Input should be a certificate as well, where there is a client_ca"):
        tricast.Config.model_validate({"tls": {"client_ca": authority_file()}})


# Who it is


@pytest.mark.parametrize(
    ("names", "called", "name"),
    [
        ((), "press", "press"),
        (("press.example",), None, "press.example"),
        (("press.example", "other.example"), "the press", "the press"),
        (("press@example.org",), None, "press@example.org"),
    ],
)
async def test_the_name(names: tuple[str, ...], called: str | None, name: str) -> None:
    async with serving(**ASKED) as server:
        with await opened(server, client_certificate(*names, called=called)) as wire:
            assert (await publish_over(wire)).status == 200
            found = certified(server)
            assert found is not None
            assert found.name == name


def test_the_identity() -> None:
    anonymous = Identity("", None, ("news",), (), is_anonymous=True)
    found = identity_of(Certified("press", 5.0), anonymous)
    assert found == Identity("cert:press", None, ("news",), (">",), 5.0)
    assert not found.is_anonymous
    assert identity_of(Certified("press", 5.0), ANYBODY).subscribe == (">",)


async def test_where_not_everybody_may_a_certificate_is_enough_to_publish() -> None:
    async with serving(auth={"anonymous_subscribe": ["news"]}, **ASKED) as server:
        answer = await ask(server.url, "POST", "/publish?topic=news", body=b"1")
        assert (answer.status, answer.code) == (401, "token-missing")
        with await opened(server, client_certificate(called="press")) as wire:
            assert (await publish_over(wire)).status == 200
            # To subscribe it is worth nothing.
            await wire.send(head("GET", "/events?topic=other", "Accept: text/event-stream"))
            assert (await read_answer(wire)).status == 403


@pytest.mark.parametrize("is_on", [True, False])
async def test_a_stream_belongs_to_who_is_in_the_certificate(is_on: bool) -> None:
    auth = {"anonymous_subscribe": ["news"]} if is_on else {}
    async with serving(auth=auth, **ASKED) as server:
        with await opened(server, client_certificate(called="press", expires=1)) as wire:
            await wire.send(head("GET", "/events?topic=news", "Accept: text/event-stream"))
            await until(lambda: server.hub.statistics().subscribers == 1)
            (stream,) = server._runtime.open.values()
            assert isinstance(stream, Stream)
            assert stream.identity.account == "cert:press"
            found = certified(server)
            assert found is not None
            assert stream.identity.expires_at == found.expires_at


async def test_who_shows_a_token_as_well_may_do_what_that_says() -> None:
    secret = "a secret of thirty-two characters"
    auth = {"key": [{"algorithm": "HS256", "secret": secret}]}
    claims = {"sub": "press", "publish": ["other"], "exp": int(time.time()) + 600}
    token = jwt.encode(claims, secret, algorithm="HS256")
    async with serving(auth=auth, **REQUIRED) as server:
        for topic, status in (("other", 200), ("news", 403)):
            target = f"/publish?topic={topic}"
            request = head("POST", target, f"Authorization: Bearer {token}", "Content-Length: 1") + b"1"
            with await opened(server, client_certificate(called="press")) as wire:
                await wire.send(request)
                assert (await read_answer(wire)).status == status
            # And the token alone is not enough.
            with await opened(server, client_context()) as wire:
                await wire.send(request)
                assert (await read_answer(wire)).code == "client-certificate-missing"


async def test_who_shows_none_is_nobody() -> None:
    for sections in (ASKED, {"tls": tls_section()}, {}):
        async with serving(**sections) as server:
            with await Wire.open(server.url) as wire:
                await wire.send(head("GET", "/healthz"))
                await read_answer(wire)
                assert certified(server) is None


@pytest.mark.parametrize("highest", VERSIONS)
async def test_it_is_the_same_in_a_session_that_is_resumed(highest: ssl.TLSVersion) -> None:
    context = client_certificate(called="press")
    context.maximum_version = highest
    async with serving(**REQUIRED) as server:
        session = None
        for _ in range(3):
            with await opened(server, context, session) as wire:
                assert (await publish_over(wire)).status == 200
                sock = wire._sock
                assert isinstance(sock, TlsSocket)
                assert sock.tls.session_reused is (session is not None)
                session = sock.tls.session
                found = certified(server)
                assert found is not None
                assert found.name == "press"
            await until(lambda: server.connections == 0)


# Whose is not taken


@pytest.mark.parametrize("highest", VERSIONS)
@pytest.mark.parametrize("what", ["stranger", "expired"])
async def test_one_that_is_not_good_is_told_in_the_handshake(highest: ssl.TLSVersion, what: str) -> None:
    context = client_certificate(called="press", by=trustme.CA()) if what == "stranger" else expired_certificate()
    context.maximum_version = highest
    alert = "UNKNOWN_CA" if what == "stranger" else "CERTIFICATE_EXPIRED"
    async with serving(**ASKED) as server:
        assert alert in await alert_for(server, context)
        await until(lambda: server.connections == 0)
        assert server._runtime.counters.lost == {"client-certificate": 1}
        assert (await ask(server.url, "GET", "/healthz")).status == 200


def expired_certificate() -> ssl.SSLContext:
    return client_certificate(called="press", expires=-1)


async def test_who_may_not_any_more_is_not_let_in_by_an_old_session(tmp_path: Path) -> None:
    file = tmp_path / "clients.pem"
    authority().cert_pem.write_to_path(file)
    context = client_certificate(called="press")
    async with serving(**REQUIRED | {"tls": tls_section() | {"client_ca": str(file)}}) as server:
        with await opened(server, context) as wire:
            assert (await publish_over(wire)).status == 200
            sock = wire._sock
            assert isinstance(sock, TlsSocket)
            session = sock.tls.session
            trustme.CA().cert_pem.write_to_path(file)
            server.renew_certificate()
            assert "UNKNOWN_CA" in await alert_for(server, context, session)
            # Who is there stays.
            assert (await publish_over(wire)).status == 200


async def test_an_authority_need_not_be_at_the_root(tmp_path: Path) -> None:
    root = trustme.CA()
    publishers = root.create_child_ca()
    file = tmp_path / "clients.pem"
    publishers.cert_pem.write_to_path(file)
    tls = {"certificate": certificate_file(), "client_ca": str(file)}
    async with serving(tls=tls, publish={"require_client_certificate": True}) as server:
        with await opened(server, client_certificate(called="press", by=publishers)) as wire:
            assert (await publish_over(wire)).status == 200
        for other in (root, root.create_child_ca()):
            assert "UNKNOWN_CA" in await alert_for(server, client_certificate(called="press", by=other))


async def test_a_clients_own_certificate_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "clients.pem"
    nobody = trustme.CA()
    first, second = (nobody.issue_cert(common_name=name) for name in ("first", "second"))
    first.cert_chain_pems[0].write_to_path(file)
    tls = {"certificate": certificate_file(), "client_ca": str(file)}
    async with serving(tls=tls, publish={"require_client_certificate": True}) as server:
        context = client_context()
        first.configure_cert(context)
        with await opened(server, context) as wire:
            assert json.loads((await publish_over(wire)).body)["id"]
        context = client_context()
        second.configure_cert(context)
        assert "UNKNOWN_CA" in await alert_for(server, context)
