"""How exchanges end that do not go well: timers, broken answers, clients and servers that leave."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from clients import Closed, Wire, ask, head, read_answer, read_head
from clocks import jump
from encryption import tls_section
from forwarding import forwarding
from proxy.origins import OK, Origin, Visit, always, once, origin, read_any, read_chunk, silent
from serving import until
from trio.testing import MockClock, wait_all_tasks_blocked

from tricast_proxy.config import UpstreamSection
from tricast_proxy.errand import Clock, rules_before_the_head, rules_behind_the_head
from tricast_proxy.servers import Health

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def partly(answer: bytes, *, resets: bool = False) -> Callable[[Visit], Any]:
    """Answers with a part of something, and then closes, resets, or says nothing more."""
    return once(answer, resets=resets)


def stalling(answer: bytes) -> Callable[[Visit], Any]:
    """Answers with a part of something, and says nothing more."""

    async def handle(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(answer)
        await visit.wire.rest()

    return handle


BREAKS = {
    "a length that is not reached": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
    "no last chunk": CHUNKED + b"5\r\nhello\r\n",
    "in a chunk": CHUNKED + b"9\r\nhello",
    "in the size of a chunk": CHUNKED + b"5\r\nhello\r\n5",
    "in the trailers": CHUNKED + b"5\r\nhello\r\n0\r\nX: y",
    "nonsense instead of a chunk": CHUNKED + b"5\r\nhello\r\nnonsense\r\n",
    "nonsense behind a chunk": CHUNKED + b"5\r\nhellononsense\r\n",
    "a trailer that is none": CHUNKED + b"5\r\nhello\r\n0\r\nnonsense\r\n\r\n",
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("name", BREAKS)
async def test_an_answer_that_breaks_off_is_never_finished(name: str, resets: bool, scheme: str) -> None:
    tls = {"tls": tls_section()} if scheme == "https" else {}
    async with origin(partly(BREAKS[name], resets=resets)) as server, forwarding(server.url, **tls) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            got = await read_head(wire)
            assert got.status == 200
            rest = await wire.rest()
            assert not rest.endswith(b"0\r\n\r\n")
            assert len(rest.removeprefix(b"5\r\n")) < 9
        await server.wait_left()
        assert proxy.counters.cuts == {"cut": 1}


async def test_a_reset_is_not_the_end_of_an_answer() -> None:
    async with origin(once(b"HTTP/1.1 200 OK\r\n\r\nhello", resets=True)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            with pytest.raises(Closed):
                await read_any(wire)


async def test_a_reset_is_not_the_end_of_an_answer_either_where_it_was_found_by_sending() -> None:
    shown = trio.Event()

    async def answer_early(visit: Visit) -> None:
        await visit.head()
        await visit.wire.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await shown.wait()
        visit.wire.reset()

    async def send_for_ever(wire: Wire) -> None:
        with suppress(Closed):
            while True:
                await wire.send(b"x" * 2**20)

    async with origin(answer_early) as server, forwarding(server.url) as proxy:
        for _ in range(10):  # who finds it first is a matter of chance
            shown = trio.Event()
            with await Wire.open(proxy.url) as wire:
                async with trio.open_nursery() as nursery:
                    await wire.send(head("POST", "/", "Content-Length: 1000000000"))
                    nursery.start_soon(send_for_ever, wire)
                    await read_head(wire)
                    assert await read_chunk(wire) == b"hello"
                    await wait_all_tasks_blocked()
                    shown.set()
                    rest = b""
                    with suppress(Closed):
                        rest = await wire.rest()
                    assert rest == b""
                    nursery.cancel_scope.cancel()
        assert proxy.counters.cuts == {"cut": 10}


@pytest.mark.parametrize("on_cut", ["truncate", "clean", "rst"])
async def test_how_an_answer_that_breaks_off_looks(on_cut: str) -> None:
    shown = trio.Event()

    async def break_off(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(CHUNKED + b"5\r\nhello\r\n")
        await shown.wait()

    async with origin(break_off) as server, forwarding(server.url, response={"on_cut": on_cut}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await read_head(wire)
            got = await read_chunk(wire)
            assert got == b"hello"
            shown.set()
            if on_cut == "rst":
                with pytest.raises(Closed, match="reset"):
                    await wire.receive()
            elif on_cut == "clean":  # as Caddy 2.6.2 does, and goes on
                assert await wire.until(b"0\r\n\r\n") == b"0\r\n\r\n"
                shown.set()
                await wire.send(head("GET", "/"))
                assert (await read_any(wire)).body == b"hello"
            else:
                assert await wire.rest() == b""


async def test_nothing_of_an_answer_that_was_to_be_stored_is_shown_where_it_breaks_off() -> None:
    handler = partly(CHUNKED + b"5\r\nhello\r\n")
    async with origin(handler) as server, forwarding(server.url, response={"buffering": "full"}) as proxy:
        assert (await ask(proxy.url, "GET", "/")).status == 502
        assert proxy.counters.refused == {"cut": 1}


# No answer


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "connection_terminated"),
        (b"HTTP/1.1 200", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "http_protocol_error"),
        (b"nonsense\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2**17, "http_protocol_error"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n", "http_protocol_error"),
    ],
)
@pytest.mark.parametrize("resets", [False, True])
async def test_what_is_no_answer_becomes_one_of_the_proxy(answer: bytes, error: str, resets: bool) -> None:
    async with origin(partly(answer, resets=resets)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            for _ in range(2):  # the client's connection is none the worse for it
                await wire.send(head("GET", "/"))
                got = await read_answer(wire)
                assert got.status == 502
                assert got.headers["proxy-status"].startswith("tricast; error=")
                assert resets or got.headers["proxy-status"].endswith(error)


NOBODY = "127.0.0.1:1"


async def test_nobody_is_there() -> None:
    async with forwarding(NOBODY) as proxy:
        got = await ask(proxy.url, "POST", "/", body=b"x" * 1000)
        assert (got.status, got.headers["proxy-status"]) == (502, "tricast; error=connection_refused")


async def test_a_server_that_does_not_let_anybody_in_is_given_up() -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with forwarding(address, upstream={"connect_timeout": "100ms"}, retry={"on": []}) as proxy:
            with await Wire.open(f"http://{address}"):  # takes the only place
                got = await ask(proxy.url, "GET", "/", "Connection: close")
                assert (got.status, got.headers["proxy-status"]) == (504, "tricast; error=connection_timeout")


@pytest.mark.parametrize(
    ("upstream", "errors", "status"),
    [
        ({"response_header_timeout": "60s"}, {}, 504),
        ({"response_header_timeout": "60s"}, {"header_timeout": 502}, 502),
        ({"response_timeout": "60s"}, {}, 504),
        ({"response_timeout": "60s"}, {"response_timeout": 408}, 408),
        ({"max_stream_duration": "60s"}, {}, 504),
        ({"stream_idle_timeout": "60s"}, {"response_timeout": 408}, 408),
    ],
)
async def test_a_server_that_does_not_answer_is_given_up(
    upstream: dict[str, str], errors: dict[str, int], status: int, running_clock: MockClock
) -> None:
    async with origin(silent) as server, forwarding(server.url, upstream=upstream, errors=errors) as proxy:
        with await Wire.open(proxy.url) as wire:
            for n in range(2):
                await wire.send(head("GET", "/"))
                await server.wait_requests(n + 1)
                await jump(running_clock, 60)
                got = await read_answer(wire)
                assert (got.status, got.headers["proxy-status"]) == (status, "tricast; error=http_response_timeout")
        await server.wait_left()


@pytest.mark.parametrize(
    ("upstream", "reason"),
    [
        ({"read_timeout": "60s"}, "read-timeout"),
        ({"stream_idle_timeout": "60s"}, "stream-idle"),
        ({"response_timeout": "60s"}, "response-timeout"),
        ({"max_stream_duration": "60s"}, "stream-duration"),
    ],
)
@pytest.mark.parametrize("abort", ["fin", "rst"])
async def test_an_answer_that_does_not_go_on_is_cut(
    upstream: dict[str, str], reason: str, abort: str, running_clock: MockClock
) -> None:
    ends = []

    async def stall(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(CHUNKED + b"5\r\nhello\r\n")
        try:
            ends.append(await visit.wire.receive())
        except Closed:
            ends.append(None)

    async with origin(stall) as server, forwarding(server.url, upstream=upstream | {"abort": abort}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await read_head(wire)
            assert await read_chunk(wire) == b"hello"
            await jump(running_clock, 60)
            assert await wire.rest() == b""
        assert proxy.counters.cuts == {reason: 1}
        await server.wait_left()
        assert ends == [False if abort == "fin" else None]


@pytest.mark.parametrize("name", ["response_timeout", "max_stream_duration"])
async def test_interim_answers_do_not_put_the_end_off(name: str) -> None:
    async def stay_interim(visit: Visit) -> None:
        await visit.request()
        while True:
            await visit.wire.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            await trio.sleep(0.05)

    sections = {"upstream": {name: "200ms"}, "limits": {"informational": 10_000}, "response": {"informational": "drop"}}
    async with origin(stay_interim) as server, forwarding(server.url, **sections) as proxy:
        assert (await ask(proxy.url, "GET", "/")).status == 504


async def test_the_time_for_an_answer_begins_when_all_of_the_request_was_sent(running_clock: MockClock) -> None:
    async with origin(always(OK)) as server, forwarding(server.url, upstream={"response_timeout": "30s"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Content-Length: 10") + b"12345")
            await server.wait_requests(1)
            await jump(running_clock, 40)
            await wait_all_tasks_blocked()
            await wire.send(b"67890")
            assert (await read_answer(wire, "POST")).status == 200


def test_the_time_for_both_begins_with_the_request() -> None:
    config, clock = UpstreamSection(max_stream_duration=9.0, response_timeout=5.0), Clock(1.0, 3.0)
    for rules in (rules_before_the_head(config, clock), rules_behind_the_head(config, clock)):
        ends = {rule.name: rule.since + rule.seconds for rule in rules if rule.since is not None}
        assert ends == {"stream-duration": 10.0, "response-timeout": 8.0}


async def test_of_an_answer_that_was_held_too_long_nothing_is_shown() -> None:
    sections = {"upstream": {"response_timeout": "100ms"}, "response": {"buffering": "full"}}
    handler = stalling(CHUNKED + b"5\r\nhello\r\n")
    async with origin(handler) as server, forwarding(server.url, errors={"response_timeout": 503}, **sections) as proxy:
        assert (await ask(proxy.url, "GET", "/", "Connection: close")).status == 503


async def test_what_goes_on_is_not_cut(running_clock: MockClock) -> None:
    goes_on = trio.Semaphore(0)

    async def drip(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(CHUNKED)
        for _ in range(8):
            await goes_on.acquire()
            await visit.wire.send(b"1\r\nx\r\n")
        await visit.wire.send(b"0\r\n\r\n")

    upstream = {"read_timeout": "30s", "stream_idle_timeout": "30s"}
    async with origin(drip) as server, forwarding(server.url, upstream=upstream) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await read_head(wire)
            for _ in range(8):
                await jump(running_clock, 20)
                goes_on.release()
                assert await read_chunk(wire) == b"x"
            assert await read_chunk(wire) == b""


@pytest.mark.parametrize("buffering", ["off", "nginx", "fixed"])
async def test_the_server_is_not_blamed_for_a_client_that_reads_slowly(
    buffering: str, running_clock: MockClock
) -> None:
    size = 8 * 2**20
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    sections = {"upstream": {"read_timeout": "30s"}, "response": {"buffering": buffering, "spool": "1MiB"}}
    async with origin(always(answer)) as server, forwarding(server.url, **sections) as proxy:
        with await Wire.open(proxy.url, receive_buffer=8192) as wire:
            await wire.send(head("GET", "/"))
            await read_head(wire)
            await wait_all_tasks_blocked(0.1)
            await jump(running_clock, 40)
            assert len(await wire.exactly(size)) == size
        assert not proxy.counters.cuts


async def test_a_client_that_takes_nothing_is_cut() -> None:
    async def pour(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await visit.wire.send(b"x" * 65536)

    async with origin(pour) as server, forwarding(server.url, client={"send_timeout": "200ms"}) as proxy:
        with await Wire.open(proxy.url, receive_buffer=8192) as wire:
            await wire.send(head("GET", "/"))
            await server.wait_requests(1)
            await server.wait_left()
            await until(lambda: not proxy.clients)
        assert proxy.counters.cuts == {"client": 1}


async def test_a_server_that_takes_nothing_is_given_up() -> None:
    async def take_nothing(visit: Visit) -> None:
        await visit.head()
        await trio.sleep_forever()

    sections = {"upstream": {"send_timeout": "200ms", "response_header_timeout": "400ms"}}
    async with origin(take_nothing) as server, forwarding(server.url, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Content-Length: 100000000"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_on, wire)
                assert (await read_answer(wire)).status == 504
                nursery.cancel_scope.cancel()


async def _send_on(wire: Wire) -> None:
    try:
        while True:
            await wire.send(b"x" * 65536)
    except Closed:
        return


# What clients are waited for


async def test_a_client_that_says_nothing_is_not_waited_for() -> None:
    for reply, begun, status in (("408", b"", 408), ("408", b"GET / HT", 408), ("close", b"GET / HT", None)):
        client = {"header_timeout": "100ms", "header_timeout_reply": reply}
        async with forwarding(NOBODY, client=client) as proxy:
            with await Wire.open(proxy.url) as wire:
                await wire.send(begun)
                if status is None:
                    assert await wire.rest() == b""
                else:
                    got = await read_answer(wire)
                    assert (got.status, got.headers["connection"]) == (status, "close")
                    assert await wire.rest() == b""


async def test_dripping_does_not_buy_time() -> None:
    async with forwarding(NOBODY, client={"header_timeout": "200ms"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drip, wire)
                assert (await read_answer(wire)).status == 408
                nursery.cancel_scope.cancel()


async def _drip(wire: Wire) -> None:
    try:
        while True:
            await wire.send(b"G")
            await trio.sleep(0.02)
    except Closed:
        return


async def test_a_client_that_asks_for_nothing_more_is_left_without_a_word() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, client={"keepalive_timeout": "100ms"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await read_answer(wire)
            assert await wire.rest() == b""


async def test_behind_an_answer_the_time_for_a_head_begins_with_its_first_byte(running_clock: MockClock) -> None:
    client = {"keepalive_timeout": "200s", "header_timeout": "60s"}
    async with origin(always(OK)) as server, forwarding(server.url, client=client) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/") + b"G")
            assert (await read_answer(wire)).status == 200
            await jump(running_clock, 60)
            assert (await read_answer(wire)).status == 408
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            assert (await read_answer(wire)).status == 200
            await wire.send(b"G")
            await jump(running_clock, 60)
            assert (await read_answer(wire)).status == 408


@pytest.mark.parametrize("buffering", ["off", "full"])
@pytest.mark.parametrize("begun", [b"", b"5\r\nhello\r\n"])
async def test_a_body_that_does_not_come_is_not_waited_for(begun: bytes, buffering: str) -> None:
    sections = {"client": {"body_timeout": "100ms"}, "request": {"buffering": buffering}}
    async with origin(silent) as server, forwarding(server.url, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Transfer-Encoding: chunked") + begun)
            got = await read_answer(wire)
            assert (got.status, got.headers["connection"]) == (408, "close")
            assert await wire.rest() == b""
        await server.wait_left()


# Clients that leave


async def waits_for_an_answer(wire: Wire, server: Origin) -> None:
    await wire.send(head("GET", "/"))
    await server.wait_requests(1)


async def sends_its_body(wire: Wire, server: Origin) -> None:
    await wire.send(head("POST", "/", "Content-Length: 9") + b"hello")
    await server.wait_requests(1)


async def reads_the_answer(wire: Wire, server: Origin) -> None:
    await wire.send(head("GET", "/"))
    assert (await read_head(wire)).status == 200
    assert await read_chunk(wire) == b"hello"


async def _answer_forever(visit: Visit) -> None:
    asked = await visit.head()
    if asked.line.startswith("POST") or asked.all("x-silent"):
        await visit.wire.rest()
        return
    await visit.wire.send(CHUNKED + b"5\r\nhello\r\n")
    await visit.wire.rest()


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset, Wire.finish_sending])
@pytest.mark.parametrize("stage", [waits_for_an_answer, sends_its_body, reads_the_answer])
async def test_a_server_is_told_at_once_that_the_client_has_left(
    stage: Callable[[Wire, Origin], Any], leave: Callable[[Wire], None]
) -> None:
    handler = silent if stage is waits_for_an_answer else _answer_forever
    async with origin(handler) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await stage(wire, server)
            leave(wire)
            await server.wait_left()
            await until(lambda: not proxy.clients)
        assert proxy.counters.cuts == {"client": 1}


async def test_a_server_may_be_told_with_a_reset_that_the_client_has_left() -> None:
    ends = []

    async def wait(visit: Visit) -> None:
        await visit.head()
        try:
            ends.append(await visit.wire.receive())
        except Closed:
            ends.append(None)

    async with origin(wait) as server, forwarding(server.url, upstream={"abort": "rst"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await waits_for_an_answer(wire, server)
            wire.close()
            await server.wait_left()
        assert ends == [None]


@pytest.mark.parametrize("leaves", ["on-write", "never"])
async def test_a_server_need_not_be_told_that_the_client_has_left(leaves: str) -> None:
    go_on, sent = trio.Event(), []

    async def answer_later(visit: Visit) -> None:
        await visit.request()
        await go_on.wait()
        await visit.wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + CHUNKED)
        for n in range(100):
            await visit.wire.send(b"5\r\nhello\r\n")
            await trio.sleep(0.01 if leaves == "on-write" else 0)
            sent.append(n)
        await visit.wire.send(b"0\r\n\r\n")
        await visit.request()

    async with origin(answer_later) as server, forwarding(server.url, client={"leaves": leaves}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await waits_for_an_answer(wire, server)
            wire.close()
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert server.open == 1
        go_on.set()
        if leaves == "never":  # the server does not notice, and its connection is used again
            await until(lambda: len(sent) == 100 and not proxy.clients)
            assert server.open == 1
            assert not proxy.counters.cuts
        else:
            await server.wait_left()
            assert len(sent) < 100
            assert proxy.counters.cuts == {"client": 1}


async def test_a_client_that_has_only_stopped_sending_may_be_answered() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, client={"leaves": "on-write"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            wire.finish_sending()
            assert (await read_answer(wire)).status == 200
            assert await wire.rest() == b""


async def test_that_a_client_has_reset_its_connection_need_not_be_told_either() -> None:
    for leaves in ("on-write", "never"):
        async with origin(silent) as server, forwarding(server.url, client={"leaves": leaves}) as proxy:
            with await Wire.open(proxy.url) as wire:
                await waits_for_an_answer(wire, server)
                wire.reset()
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert server.open == 1


async def test_a_client_that_leaves_before_anything_comes_is_no_matter() -> None:
    async with forwarding(NOBODY) as proxy:
        for begun in (b"", b"GET / HT", b"\r\n"):
            for leave in (Wire.close, Wire.reset, Wire.finish_sending):
                with await Wire.open(proxy.url) as wire:
                    await wire.send(begun)
                    await until(lambda: bool(proxy.clients))
                    leave(wire)
                    await until(lambda: not proxy.clients)


# Retries


def by_connection(*handlers: Callable[[Visit], Any]) -> Callable[[Visit], Any]:
    """Each connection has the next handler, and those behind the last have that one."""

    async def handle(visit: Visit) -> None:
        await handlers[min(visit.number, len(handlers)) - 1](visit)

    return handle


FAILURES = {
    "empty": once(b""),
    "invalid": once(b"nonsense\r\n\r\n"),
    "timeout": silent,
    "502": once(b"HTTP/1.1 502 No\r\nContent-Length: 2\r\n\r\nno"),
    "503": once(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"),
    "504": once(b"HTTP/1.1 504 No\r\nContent-Length: 2\r\n\r\nno"),
}


@pytest.mark.parametrize(
    ("method", "sections", "is_retried"),
    [
        ("GET", {}, True),
        ("PUT", {}, False),
        ("PUT", {"request": {"buffering": "full"}}, True),
        ("POST", {"request": {"buffering": "full"}}, False),
        ("POST", {"request": {"buffering": "full"}, "retry": {"non_idempotent": True}}, True),
        ("GET", {"retry": {"tries": 1}}, False),
        ("GET", {"retry": {"on": []}}, False),
        ("GET", {"retry": {"methods": ["HEAD"]}}, False),
    ],
)
@pytest.mark.parametrize("failure", FAILURES)
async def test_another_server_may_be_asked(
    failure: str, method: str, sections: dict[str, Any], is_retried: bool, running_clock: MockClock
) -> None:
    async def let_it_run_out() -> None:
        await bad.wait_requests(1)
        await jump(running_clock, 60)

    retry = {"on": [failure]} | sections.get("retry", {})
    upstream = {"response_header_timeout": "60s"}
    balance = {"method": "first"}
    async with (
        origin(FAILURES[failure]) as bad,
        origin(always(OK)) as good,
        forwarding(bad.url, good.url, upstream=upstream, balance=balance, **(sections | {"retry": retry})) as proxy,
        trio.open_nursery() as nursery,
    ):
        if failure == "timeout":
            nursery.start_soon(let_it_run_out)
        got = await ask(proxy.url, method, "/", body=b"hello" if method != "GET" else b"")
        if is_retried:
            assert (got.status, got.body, proxy.counters.retries) == (200, b"ok", 1)
            assert good.requests[0].body == (b"hello" if method != "GET" else b"")
        else:
            assert got.status >= 500
            assert not good.requests


async def test_what_the_client_has_seen_the_beginning_of_is_not_asked_for_again() -> None:
    retry = {"on": ["empty", "invalid", "timeout"]}
    async with (
        origin(partly(CHUNKED + b"5\r\nhello\r\n")) as bad,
        origin(always(OK)) as good,
        forwarding(bad.url, good.url, retry=retry, balance={"method": "first"}) as proxy,
    ):
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            assert (await read_head(wire)).status == 200
            await wire.rest()
        assert not good.requests


async def test_after_some_time_nothing_is_tried_again() -> None:
    retry = {"on": ["timeout"], "timeout": "50ms"}
    async with (
        origin(silent) as bad,
        origin(always(OK)) as good,
        forwarding(
            bad.url, good.url, retry=retry, balance={"method": "first"}, upstream={"response_header_timeout": "100ms"}
        ) as proxy,
    ):
        assert (await ask(proxy.url, "GET", "/")).status == 504
        assert not good.requests


async def test_a_request_that_reached_nobody_goes_to_another_whatever_it_is() -> None:
    async with origin(always(OK)) as good, forwarding(NOBODY, good.url, balance={"method": "first"}) as proxy:
        assert (await ask(proxy.url, "POST", "/", body=b"hello")).status == 200
        assert good.requests[0].body == b"hello"


async def test_the_last_that_is_asked_is_believed() -> None:
    bad = FAILURES["503"]
    async with (
        origin(bad) as first,
        origin(bad) as second,
        forwarding(first.url, second.url, retry={"on": ["503"]}) as proxy,
    ):
        got = await ask(proxy.url, "GET", "/")
        assert (got.status, got.body) == (503, b"no")
        assert len(first.requests) == len(second.requests) == 1


async def test_where_nobody_else_can_be_asked_the_first_is_believed() -> None:
    retry = {"on": ["503"], "tries": 3}
    async with origin(FAILURES["503"]) as server, forwarding(server.url, "127.0.0.1:1", retry=retry) as proxy:
        proxy.ask_of(proxy.servers[1], Health.DOWN)
        got = await ask(proxy.url, "GET", "/")
        assert (got.status, got.body) == (503, b"no")
