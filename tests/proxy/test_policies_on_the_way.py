"""Response policies in a proxy that runs, on real sockets: when something comes, and that all of it does."""

import gzip
import hashlib
import resource
import zlib
from pathlib import Path
from typing import Any

import pytest
import trio
from clients import Wire, ask, head, read_head
from clocks import jump
from forwarding import forwarding
from proxy.origins import OK, Visit, always, origin, read_any, read_chunk
from trio.testing import MockClock

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSES = b"HTTP/1.1 200 OK\r\n\r\n"
#: What is held does not come in this time; what is not held comes long before the test's deadline.
_HELD_SECONDS = 0.3


class Stages:
    """An origin whose answer goes on, and ends with the connection, when it is told to.

    Args:
        pieces: what it sends, of which the first comes at once.
    """

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self._steps = [trio.Event() for _ in pieces]
        self._steps[0].set()
        self._next = 1

    def go_on(self) -> None:
        """Has it send the next piece; when there is none, it closes."""
        self._steps[self._next].set()
        self._next += 1

    async def __call__(self, visit: Visit) -> None:
        await visit.request()
        for step, piece in zip(self._steps, self._pieces, strict=True):
            await step.wait()
            await visit.wire.send(piece)


async def hears_nothing(wire: Wire) -> None:
    """Fails where something comes."""
    with trio.move_on_after(_HELD_SECONDS):
        await wire.receive()
    assert not wire.buffer


NGINX: dict[str, Any] = {"buffering": "nginx", "x_accel_buffering": "honour"}
ONE_0 = {"http_version": "1.0"}


async def test_nginx_holds_what_the_end_of_the_connection_ends() -> None:
    stages = Stages(CLOSES + b"data: 1\n\n", b"data: 2\n\n", b"")
    async with origin(stages) as server, forwarding(server.url, response=NGINX, upstream=ONE_0) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await hears_nothing(wire)
            stages.go_on()
            await hears_nothing(wire)
            stages.go_on()
            answer = await read_any(wire)
            assert answer.body == b"data: 1\n\ndata: 2\n\n"
        assert server.requests[0].line == "GET / HTTP/1.0"
        assert server.requests[0].all("connection") == ["close"]


async def test_nginx_releases_a_full_buffer() -> None:
    stages = Stages(CLOSES + b"x" * 6000, b"")
    async with origin(stages) as server, forwarding(server.url, response=NGINX) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await read_head(wire)
            first = await read_chunk(wire)
            assert 3000 < len(first) < 4096
            await hears_nothing(wire)
            stages.go_on()
            assert await read_chunk(wire) == b"x" * (6000 - len(first))


async def test_nginx_passes_chunks_on() -> None:
    stages = Stages(CHUNKED + b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n")
    async with origin(stages) as server, forwarding(server.url, response=NGINX) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await read_head(wire)
            for piece in (b"one", b"two", b""):
                assert await read_chunk(wire) == piece
                if piece:
                    stages.go_on()


@pytest.mark.parametrize("buffering", ["nginx", "full"])
async def test_x_accel_buffering_releases_and_is_removed(buffering: str) -> None:
    stages = Stages(b"HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\n\r\none", b"two", b"")
    response = NGINX | {"buffering": buffering}
    async with origin(stages) as server, forwarding(server.url, response=response, upstream=ONE_0) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            assert "x-accel-buffering" not in (await read_head(wire)).headers
            assert await read_chunk(wire) == b"one"
            stages.go_on()
            assert await read_chunk(wire) == b"two"
            stages.go_on()
            assert await read_chunk(wire) == b""


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304), ("GET", 204)])
@pytest.mark.parametrize("obeys", ["honour", "ignore"])
async def test_x_accel_buffering_is_removed_where_there_is_no_body(method: str, status: int, obeys: str) -> None:
    answer = b"HTTP/1.1 %d X\r\nX-Accel-Buffering: no\r\nX-A: b\r\n\r\n" % status
    response = NGINX | {"x_accel_buffering": obeys}
    async with origin(always(answer)) as server, forwarding(server.url, response=response) as proxy:
        with await Wire.open(proxy.url) as wire:
            for _ in range(2):
                await wire.send(head(method, "/"))
                got = await read_any(wire, method)
                assert (got.status, got.headers["x-a"]) == (status, "b")
                assert ("x-accel-buffering" in got.headers) is (obeys == "ignore")
        assert len(server.visits) == 1


async def test_a_whole_answer_is_stored_first() -> None:
    stages = Stages(CHUNKED + b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n")
    async with origin(stages) as server, forwarding(server.url, response={"buffering": "full"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            for _ in range(2):
                await hears_nothing(wire)
                stages.go_on()
            assert (await read_any(wire)).body == b"onetwo"


async def test_a_whole_answer_that_never_was_is_an_error() -> None:
    stages = Stages(CHUNKED + b"3\r\none\r\n", b"")
    async with origin(stages) as server, forwarding(server.url, response={"buffering": "full"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await hears_nothing(wire)
            stages.go_on()
            assert (await read_any(wire)).status == 502


async def test_a_buffer_of_a_size() -> None:
    response = {"buffering": "fixed", "buffer_size": "10B"}
    stages = Stages(CHUNKED + b"4\r\n1234\r\n", b"6\r\n567890\r\n", b"1\r\nx\r\n", b"0\r\n\r\n")
    async with origin(stages) as server, forwarding(server.url, response=response) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await hears_nothing(wire)
            stages.go_on()
            await read_head(wire)
            assert await read_chunk(wire) == b"1234567890"
            stages.go_on()
            await hears_nothing(wire)
            stages.go_on()
            assert await read_chunk(wire) == b"x"
            assert await read_chunk(wire) == b""


@pytest.mark.parametrize("response", [{"buffering": "fixed", "flush_interval": "60s"}, {"cork": "60s"}])
async def test_what_is_held_for_a_time_goes_together(response: dict[str, str], running_clock: MockClock) -> None:
    stages = Stages(CHUNKED + b"3\r\none\r\n", b"3\r\ntwo\r\n", b"5\r\nthree\r\n", b"0\r\n\r\n")
    async with origin(stages) as server, forwarding(server.url, response=response) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            stages.go_on()
            await server.wait_requests(1)
            await jump(running_clock, 30)
            await hears_nothing(wire)
            await jump(running_clock, 30)
            await read_head(wire)
            assert await read_chunk(wire) == b"onetwo"
            stages.go_on()
            await jump(running_clock, 30)
            await hears_nothing(wire)
            await jump(running_clock, 30)
            assert await read_chunk(wire) == b"three"
            stages.go_on()
            assert await read_chunk(wire) == b""


EVENT_STREAM = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Type: text/event-stream\r\n\r\n")


async def test_compressed_and_flushed() -> None:
    stages = Stages(EVENT_STREAM + b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n")
    async with origin(stages) as server, forwarding(server.url, response={"gzip": True}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", "Accept-Encoding: gzip"))
            answer = await read_head(wire)
            assert (answer.headers["content-encoding"], answer.headers["vary"]) == ("gzip", "Accept-Encoding")
            unpacker = zlib.decompressobj(31)
            for piece in (b"one", b"two"):
                received = b""
                while len(received) < 3:
                    received += unpacker.decompress(await read_chunk(wire))
                assert received == piece
                stages.go_on()
            while chunk := await read_chunk(wire):
                assert unpacker.decompress(chunk) == b""
            assert unpacker.eof


async def test_compressed_and_not_flushed() -> None:
    stages = Stages(EVENT_STREAM + b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n")
    response = {"gzip": True, "gzip_flush": False}
    async with origin(stages) as server, forwarding(server.url, response=response) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", "Accept-Encoding: gzip"))
            assert (await read_head(wire)).headers["content-encoding"] == "gzip"
            for _ in range(2):
                await hears_nothing(wire)
                stages.go_on()
            body = b""
            while chunk := await read_chunk(wire):
                body += chunk
            assert gzip.decompress(body) == b"onetwo"
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            answer = await read_any(wire)
            assert "content-encoding" not in answer.headers
            assert answer.body == b"onetwo"


@pytest.mark.parametrize("buffering", ["nginx", "full", "fixed"])
async def test_what_must_go_on_at_once_is_refused(buffering: str) -> None:
    answer = OK.replace(b"\r\n\r\n", b"\r\nIncremental: ?1\r\n\r\n")
    response = {"buffering": buffering, "incremental": "refuse"}
    async with origin(always(answer)) as server, forwarding(server.url, response=response) as proxy:
        got = await ask(proxy.url, "GET", "/")
        assert (got.status, got.headers["proxy-status"]) == (501, "tricast; error=incremental_refused")
        assert len(server.requests) == 1


async def test_a_request_that_must_go_on_at_once_is_refused() -> None:
    sections: dict[str, Any] = {"response": {"incremental": "refuse"}, "request": {"buffering": "full"}}
    async with origin(always(OK)) as server, forwarding(server.url, **sections) as proxy:
        got = await ask(proxy.url, "POST", "/", "Incremental: ?1", body=b"x")
        assert (got.status, got.headers["proxy-status"]) == (501, "tricast; error=incremental_refused")
        assert not server.requests


# A lot


_PIECE = bytes(range(256)) * 256
_PIECES = 1024


def resident_bytes() -> int:
    """How much memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_much_for_a_client_that_takes_its_time() -> None:
    """The server is done with it long before the client begins to read, and it is not memory that it waits in."""
    is_sent = trio.Event()
    sent = hashlib.blake2b()

    async def pour(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (_PIECES * len(_PIECE)))
        for number in range(_PIECES):
            piece = number.to_bytes(4, "big") + _PIECE[4:]
            sent.update(piece)
            await visit.wire.send(piece)
        is_sent.set()

    received = hashlib.blake2b()
    async with origin(pour) as server, forwarding(server.url, response=NGINX) as proxy:
        before = resident_bytes()
        with await Wire.open(proxy.url, receive_buffer=8192) as wire:
            await wire.send(head("GET", "/"))
            await is_sent.wait()
            most = resident_bytes()
            await read_head(wire)
            left = _PIECES * len(_PIECE)
            while left:
                left -= len(wire.buffer)
                received.update(wire.buffer)
                wire.buffer.clear()
                most = max(most, resident_bytes())
                if left:
                    await wire.more()
        assert received.digest() == sent.digest()
        assert most - before < 24 * 2**20
