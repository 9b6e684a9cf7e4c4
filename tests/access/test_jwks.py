"""Keys that are fetched: how often, what happens when they cannot be, and that no answer can do harm."""

import json
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from access.making import NOW, SECRET, URL, Fixture, jwk, jwk_set, private_key, public_pem, raw_token, token
from clocks import HANG_SECONDS
from encryption import authority_file, certificate_file
from prometheus_client.parser import text_string_to_metric_families
from serving import capturing_logger, until
from trio.testing import MockClock

from tricast import metrics
from tricast.access.identity import Identity
from tricast.access.jwks import MAX_THREADS, fetching_in_threads
from tricast.access.keys import UnusableKey
from tricast.config import Config
from tricast.errors import Unauthorized, Unavailable
from tricast.hub import Hub
from tricast.log.memory import MemoryLog
from tricast.runtime import Runtime
from tricast.sweep import Wheel


class Site:
    """What is at the URL.

    Attributes:
        content: the set.
        problem: raised instead.
        delay: seconds until there is an answer.
        fetched: when it was asked for.
    """

    def __init__(self, *keys: object) -> None:
        self.content = jwk_set(*keys)
        self.problem: Exception | None = None
        self.delay = 0.0
        self.fetched: list[float] = []

    async def fetch(self, url: str, max_bytes: int, seconds: float) -> bytes:
        assert url.startswith(URL)
        self.fetched.append(trio.current_time())
        await trio.sleep(self.delay)
        if self.problem is not None:
            raise self.problem
        return self.content


def fixture_of(site: Site, **keys: object) -> Fixture:
    keys.setdefault("key", [])
    return Fixture(site.fetch, jwks_url=URL, **keys)


def signed(serial: int, algorithm: str = "ES256", **claims: object) -> str:
    """A token signed with the key of this number, which is its id as well."""
    return token(algorithm, private_key(algorithm, serial), {"kid": str(serial)}, **claims)


def key(serial: int, algorithm: str = "ES256") -> dict[str, object]:
    return jwk(algorithm, serial, kid=str(serial))


async def code_of(fixture: Fixture, text: str) -> str:
    """What the token is refused with; "" where it is good."""
    try:
        await fixture.identify(text)
    except (Unauthorized, Unavailable) as error:
        return error.code
    else:
        return ""


# When they are fetched


async def test_keys_are_fetched_at_the_start(autojump_clock: MockClock) -> None:
    site = Site(key(0), key(1, "RS256"))
    site.delay = 3.0
    fixture = fixture_of(site)
    async with fixture.access.open():
        # Who comes before they are there waits for them.
        assert await fixture.identify(signed(0)) == Identity("sub:bob", "bob", ("users.bob.>",), ("chat.*",), NOW + 70)
        assert trio.current_time() == pytest.approx(3.0)
        assert await code_of(fixture, signed(1, "RS256")) == ""
        assert await code_of(fixture, token("ES256", private_key("ES256", 0))) == ""
        assert await code_of(fixture, token("ES256", private_key("ES256", 1))) == "token-signature"
    assert len(site.fetched) == 1


async def test_an_unknown_key_has_them_fetched_again(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    fixture = fixture_of(site, jwks_cooldown="30s")
    text = signed(0)
    async with fixture.access.open():
        assert await code_of(fixture, text) == ""
        await trio.sleep(30)
        site.content = jwk_set(key(1))
        assert await code_of(fixture, signed(1)) == ""
        assert len(site.fetched) == 2
        # The old one is gone, also for tokens that were good before.
        assert await code_of(fixture, text) == "token-key-unknown"


async def test_tokens_with_keys_that_are_made_up_cause_no_storm(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    site.delay = 1.0
    fixture = fixture_of(site, jwks_cooldown="30s")
    codes = []

    async def knock(number: int) -> None:
        await trio.sleep(number / 5)
        codes.append(await code_of(fixture, signed(1, sub=str(number))))

    async with fixture.access.open():
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(knock, number)
        assert codes == ["token-key-unknown"] * 500
        assert trio.current_time() < 110
    assert len(site.fetched) == 4
    assert all(later - earlier >= 31 for earlier, later in zip(site.fetched, site.fetched[1:], strict=False))


async def test_a_key_that_is_known_has_nothing_fetched(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    fixture = fixture_of(site, key=[{"algorithm": "HS256", "secret": SECRET}])
    async with fixture.access.open():
        await code_of(fixture, signed(0))
        await trio.sleep(1000)
        wrong = token("ES256", private_key("ES256", 1), {"kid": "0"})
        assert await code_of(fixture, wrong) == "token-signature"
        assert await code_of(fixture, token(key=SECRET + "x")) == "token-signature"
        assert await code_of(fixture, token(headers={"kid": "new"}, key=SECRET + "x")) == "token-signature"
        assert await code_of(fixture, token()) == ""
        assert await code_of(fixture, raw_token('{"alg":"none"}', "{}")) == "token-algorithm"
    assert len(site.fetched) == 1


async def test_they_are_fetched_again_and_again(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    fixture = fixture_of(site, jwks_refresh="1h")
    async with fixture.access.open():
        await trio.sleep(3600 * 12)
    assert len(site.fetched) >= 10
    intervals = [later - earlier for earlier, later in zip(site.fetched, site.fetched[1:], strict=False)]
    assert all(3600 <= interval <= 3600 * 1.2 for interval in intervals)
    assert fixture.access.remote is not None
    assert fixture.access.remote.fetched_at == site.fetched[-1]


async def test_a_key_that_was_taken_out_counts_no_more(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    fixture = fixture_of(site, jwks_refresh="1h")
    text = signed(0)
    async with fixture.access.open():
        assert await code_of(fixture, text) == ""
        site.content = jwk_set(key(1))
        await trio.sleep(3600 * 1.2 + 1)
        # Also not for a token that is known already.
        assert await code_of(fixture, text) == "token-key-unknown"


# When they cannot be fetched


@pytest.mark.parametrize(
    "problem", [OSError("no route"), ConnectionResetError(), UnusableKey("the answer was 500"), TimeoutError()]
)
async def test_the_old_keys_are_kept(autojump_clock: MockClock, problem: Exception) -> None:
    site = Site(key(0))
    fixture = fixture_of(site, jwks_refresh="1h", jwks_cooldown="30s")
    async with fixture.access.open():
        assert await code_of(fixture, signed(0)) == ""
        site.problem = problem
        await trio.sleep(3600 * 1.2 + 1)
        assert len(site.fetched) >= 2
        assert await code_of(fixture, signed(0, sub="eve")) == ""
        # There may be a new key, and whether there is cannot be known: that is not the client's fault.
        assert await code_of(fixture, signed(1)) == "keys-unavailable"
        # It is tried again soon, and then all is well.
        site.problem, site.content = None, jwk_set(key(0), key(1))
        await trio.sleep(40)
        assert await code_of(fixture, signed(1)) == ""
        assert await code_of(fixture, signed(2)) == "token-key-unknown"
    warnings = [entry for entry in fixture.log.entries if entry["log_level"] == "warning"]
    assert fixture.access.remote is not None
    assert fixture.access.remote.failures == len(warnings) >= 1
    assert {(said["event"], said["keys_kept"]) for said in warnings} == {("keys could not be fetched", 1)}


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"keys":[]}', jwk_set({"kty": "oct", "k": "x"}), b"[" * 99999])
async def test_an_answer_that_is_no_set_changes_nothing(autojump_clock: MockClock, content: bytes) -> None:
    site = Site(key(0))
    fixture = fixture_of(site, jwks_cooldown="30s")
    async with fixture.access.open():
        await code_of(fixture, signed(0))
        site.content = content
        await trio.sleep(31)
        assert await code_of(fixture, signed(1)) == "keys-unavailable"
        assert await code_of(fixture, signed(0, sub="eve")) == ""


async def test_there_are_no_keys_yet(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    site.problem = OSError(111, "Connection refused")
    fixture = fixture_of(site, key=[{"algorithm": "ES256", "id": "1", "public": _pem(1)}], jwks_cooldown="7s")
    async with fixture.access.open():
        with pytest.raises(Unavailable) as caught:
            await fixture.identify(signed(0))
        assert (caught.value.code, caught.value.retry_after) == ("keys-unavailable", 7.0)
        assert "keys.example" not in caught.value.detail
        # Those of the configuration are there.
        assert await code_of(fixture, signed(1)) == ""
        assert await code_of(fixture, token("ES256", private_key("ES256", 0), {"kid": "1"})) == "token-signature"


async def test_without_the_scope_nothing_is_fetched() -> None:
    site = Site(key(0))
    fixture = fixture_of(site)
    assert await code_of(fixture, signed(0)) == "keys-unavailable"
    assert site.fetched == []


async def test_a_fetch_may_take_so_long(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    fixture = fixture_of(site, jwks_timeout="5s")
    site.delay = 4.9
    async with fixture.access.open():
        assert await code_of(fixture, signed(0)) == ""
        site.delay = 5.1
        await trio.sleep(31)
        before = trio.current_time()
        assert await code_of(fixture, signed(1)) == "keys-unavailable"
        assert trio.current_time() - before == pytest.approx(5.0)


async def test_who_is_cancelled_while_waiting_for_keys_leaves_the_others_waiting(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    site.delay = 2.0
    fixture = fixture_of(site)
    async with fixture.access.open(), trio.open_nursery() as nursery:
        with trio.move_on_after(1.0) as scope:
            await fixture.identify(signed(0))
        assert scope.cancelled_caught
        nursery.start_soon(partial(fixture.identify, signed(0)))
    assert len(site.fetched) == 1


async def test_ending_does_not_wait_for_a_fetch(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    site.delay = 4.0
    fixture = fixture_of(site)
    async with fixture.access.open():
        await trio.sleep(1.0)
    assert trio.current_time() == pytest.approx(1.0)


async def test_what_is_fetched_is_logged_without_what_may_be_secret(autojump_clock: MockClock) -> None:
    site = Site(key(0))
    fixture = Fixture(site.fetch, jwks_url=f"{URL}?key=hunter2", key=[])
    async with fixture.access.open():
        await code_of(fixture, signed(0))
        site.problem = OSError("no")
        await trio.sleep(31)
        await code_of(fixture, signed(1))
    assert len(fixture.log.entries) == 2
    assert "hunter2" not in json.dumps(fixture.log.entries)


def _pem(serial: int) -> str:
    return public_pem(private_key("ES256", serial))


async def test_the_metrics_tell_of_keys(autojump_clock: MockClock) -> None:
    site = Site(key(0), key(1))
    fixture = fixture_of(site)
    runtime = runtime_with(fixture)
    assert told_by(runtime) == {"keys": 0.0, "keys_stale": 1.0, "key_fetches_failed_total": 0.0}
    async with fixture.access.open():
        await code_of(fixture, signed(0))
        assert told_by(runtime) == {"keys": 2.0, "keys_stale": 0.0, "key_fetches_failed_total": 0.0}
        site.problem = OSError("no route")
        await trio.sleep(31)
        await code_of(fixture, signed(2))
        assert told_by(runtime) == {"keys": 2.0, "keys_stale": 1.0, "key_fetches_failed_total": 1.0}
    assert told_by(runtime_with(Fixture())) == {}


def runtime_with(fixture: Fixture) -> Runtime:
    log = MemoryLog(history=10, history_age=10.0, history_size=10**6, clock=fixture.clock)
    return Runtime(
        Config(),
        Hub(log, max_topic_bytes=100, max_event_bytes=100, wake=lambda: None),
        wheel=Wheel(tick=1.0),
        randomness=random.Random(1),
        clock=fixture.clock,
        logger=capturing_logger(fixture.log),
        handlers={},
        access=fixture.access,
    )


def told_by(runtime: Runtime) -> dict[str, float]:
    """What the metrics tell of keys."""
    families = text_string_to_metric_families(metrics.expose(metrics.registry_of(runtime)).decode())
    samples = [sample for family in families for sample in family.samples]
    prefix = "tricast_auth_"
    return {sample.name.removeprefix(prefix): sample.value for sample in samples if sample.name.startswith(prefix)}


# What answers over a network may do


@asynccontextmanager
async def answering(*parts: bytes, tls: bool = False, ends: bool = True) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers with these bytes, whatever it is asked; yields its URL and what it was asked."""
    heads: list[bytes] = []

    async def answer(stream: trio.abc.Stream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := await stream.receive_some()):
                return
            head += data
        heads.append(head)
        for part in parts:
            await stream.send_all(part)
        if not ends:
            await trio.sleep_forever()
        await stream.aclose()

    async def handle(stream: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await answer(stream)

    async with trio.open_nursery() as nursery:
        serve: Callable[..., object] = partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate_file())
            serve = partial(trio.serve_ssl_over_tcp, handle, 0, context, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        sock = (listener.transport_listener if tls else listener).socket
        yield f"{'https' if tls else 'http'}://127.0.0.1:{sock.getsockname()[1]}/jwks", heads
        nursery.cancel_scope.cancel()


def ok(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *headers, b"Connection: close", b"", body])


async def fetch(url: str, max_bytes: int = 1000, seconds: float = HANG_SECONDS) -> bytes:
    with trio.fail_after(HANG_SECONDS):
        return await fetching_in_threads()(url, max_bytes, seconds)


async def test_what_is_fetched() -> None:
    for answer in (
        ok(b"x" * 1000),
        ok(b"x" * 1000, b"Content-Length: 1000"),
        ok(b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    ):
        async with answering(answer) as (url, heads):
            assert await fetch(url) == b"x" * 1000
            assert heads[0].startswith(b"GET /jwks HTTP/1.1\r\n")
            assert b"Accept: application/jwk-set+json" in heads[0]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (ok(b"x" * 1001), "longer than auth.jwks_size: 1000 bytes"),
        (ok(b"x" * 1001, b"Content-Length: 1001"), "longer than auth.jwks_size: 1000 bytes"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "the answer was 302"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", "the answer was 302"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", "the answer was 500"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "the answer was 204"),
        (b"nonsense\r\n\r\n", ""),
        (b"", ""),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", ""),
        (ok(b"5\r\nab", b"Transfer-Encoding: chunked"), ""),
        (ok(b"nonsense", b"Transfer-Encoding: chunked"), ""),
    ],
)
async def test_answers_that_do_not_count(answer: bytes, why: str) -> None:
    async with answering(answer) as (url, _):
        fixture = Fixture(jwks_url=url, key=[], jwks_size=1000, jwks_timeout="60s")
        async with fixture.access.open():
            assert await code_of(fixture, signed(0)) == "keys-unavailable"
    (said,) = fixture.log.entries
    assert why in said["problem"]
    assert said["problem"]


async def test_an_answer_that_does_not_end() -> None:
    async with answering(ok(b"x", b"Content-Length: 2"), ends=False) as (url, _):
        fixture = Fixture(jwks_url=url, key=[], jwks_timeout="100ms")
        async with fixture.access.open():
            assert await code_of(fixture, signed(0)) == "keys-unavailable"


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 200 OK\r\nX: ", ok(b"")])
async def test_an_answer_that_comes_byte_by_byte_is_given_up(beginning: bytes) -> None:
    """Each byte comes in time, and all of them would not. The next fetch is not kept waiting for that."""
    asked, left = trio.Event(), trio.Event()

    async def drip(stream: trio.abc.Stream) -> None:
        if not await stream.receive_some():
            return
        asked.set()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(beginning)
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.01)
        left.set()

    fetching = fetching_in_threads()
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, drip, 0, host="127.0.0.1"))
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
            while not asked.is_set():  # on a busy machine its time may be over before it comes to that
                with pytest.raises(TimeoutError, match="took too long"):
                    await fetching(url, 10**6, 0.2)
            await left.wait()
            async with answering(ok(b"x")) as (other, _):
                assert await fetching(other, 1000, HANG_SECONDS) == b"x"
            nursery.cancel_scope.cancel()


async def test_a_handshake_that_does_not_end_is_given_up() -> None:
    asked, left = trio.Event(), trio.Event()

    async def drip(stream: trio.abc.Stream) -> None:
        if not await stream.receive_some():
            return
        asked.set()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB
            while True:
                await stream.send_all(b"\x02")
                await trio.sleep(0.01)
        left.set()

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, drip, 0, host="127.0.0.1"))
            while not asked.is_set():
                with pytest.raises(TimeoutError):
                    await fetch(f"https://127.0.0.1:{listener.socket.getsockname()[1]}/", seconds=0.2)
            await left.wait()
            nursery.cancel_scope.cancel()


async def test_a_fetch_that_was_given_up_makes_room_for_the_next() -> None:
    """Its thread has ended, or there would be no other at last."""
    async with answering(ends=False) as (url, heads):
        fetching = fetching_in_threads()
        with trio.fail_after(HANG_SECONDS):
            for number in range(1, 2 * MAX_THREADS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fetching, url, 1000, HANG_SECONDS)
                    await until(lambda so_many=number: len(heads) >= so_many)
                    nursery.cancel_scope.cancel()


async def test_names_whose_look_up_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a thread until it ends; the next fetch has another one, as long as there are not too many."""
    begun: list[str] = []
    goes_on = threading.Event()
    look_up = socket.getaddrinfo

    def stuck(host: str, *rest: Any, **options: Any) -> Any:
        if host != "stuck.example":
            return look_up(host, *rest, **options)
        begun.append(host)
        goes_on.wait(HANG_SECONDS)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr("socket.getaddrinfo", stuck)
    fetching = fetching_in_threads()
    try:
        async with answering(ok(b"x")) as (url, _):
            with trio.fail_after(HANG_SECONDS):
                for number in range(1, MAX_THREADS + 1):
                    assert await fetching(url, 1000, HANG_SECONDS) == b"x"
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(fetching, "https://stuck.example/", 1000, HANG_SECONDS)
                        while len(begun) < number:
                            await trio.lowlevel.checkpoint()
                        nursery.cancel_scope.cancel()
                for also in ("https://stuck.example/", url):
                    with pytest.raises(TimeoutError, match="took too long"):
                        await fetching(also, 1000, 0.1)
                assert len(begun) == MAX_THREADS
                goes_on.set()
                assert await fetching(url, 1000, HANG_SECONDS) == b"x"
    finally:
        goes_on.set()


async def test_https(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(ok(b"x"), tls=True) as (url, heads):
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await fetch(url)
        assert heads == []
        monkeypatch.setenv("SSL_CERT_FILE", authority_file())
        assert await fetch(url) == b"x"


async def test_no_proxy_is_asked_for_what_is_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with answering(ok(b"x")) as (url, _):
        assert await fetch(url) == b"x"


async def test_a_proxy_is_asked_for_what_is_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as (url, heads):
        monkeypatch.setenv("https_proxy", url.removesuffix("/jwks"))
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(OSError, match="502"):
            await fetch("https://keys.example/")
        assert heads[0].startswith(b"CONNECT keys.example:443 ")


def test_the_site_is_a_fake_that_counts() -> None:
    site = Site(key(0))
    assert trio.run(site.fetch, URL, 1, 1.0, clock=MockClock(autojump_threshold=0)) == jwk_set(key(0))
    assert len(site.fetched) == 1
    site.problem = OSError()
    with pytest.raises(OSError):  # noqa: PT011 - whatever was put there
        trio.run(site.fetch, URL, 1, 1.0)


def test_jitter_differs() -> None:
    """Workers that began together do not fetch together for ever."""
    pauses = set()
    for seed in range(5):
        fixture = fixture_of(Site(key(0)))
        remote = fixture.access.remote
        assert remote is not None
        remote._random = random.Random(seed)
        pauses.add(remote._pause())
    assert len(pauses) == 5
