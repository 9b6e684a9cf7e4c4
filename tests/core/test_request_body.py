"""Bodies of requests on a socket: in time, within their limits, and others have their turn meanwhile."""

import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from core.test_connection import Pair

from tricast.config import LimitsSection
from tricast.errors import LimitExceeded, RemoteProtocolError, TooSlow
from tricast.request_body import RequestBody
from tricast.wire.heads import Framing
from tricast.wire.http1 import CONTINUE

NONE = Framing(b"a", is_chunked=False, length=None)
CHUNKED = Framing(b"a", is_chunked=True, length=None)
LIMITS = LimitsSection(body_timeout="30s", receive_rate="512B")  # type: ignore[arg-type]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def body_of(pair: Pair, framing: Framing = NONE, *, ahead: bytes = b"", expects: bool = False) -> RequestBody:
    """The body of a request, of which this much has come."""
    return RequestBody(framing, pair.connection, bytearray(ahead), LIMITS, expects=expects)


def of_length(length: int) -> Framing:
    return Framing(b"a", is_chunked=False, length=length)


async def read(body: RequestBody, limit: int = 10_000) -> bytes:
    return await body.read("publish.max_body", limit)


async def test_what_came_with_the_head_is_not_waited_for(pair: Pair) -> None:
    body = body_of(pair, of_length(5), ahead=b"helloGET /")
    assert not body.is_complete
    assert await read(body) == b"hello"
    assert body.is_complete
    assert body.behind() == b"GET /"
    assert await body.read_piece() == b""


async def test_no_body(pair: Pair) -> None:
    for body in (body_of(pair, ahead=b"GET /"), body_of(pair, of_length(0), ahead=b"GET /")):
        assert body.is_complete
        assert await read(body) == b""
        assert body.behind() == b"GET /"


async def test_the_rest_is_waited_for(pair: Pair) -> None:
    body = body_of(pair, of_length(5), ahead=b"he")
    pair.peer.send(b"llo")
    assert await read(body) == b"hello"
    chunked = body_of(pair, CHUNKED, ahead=b"2\r\nhe")
    pair.peer.send(b"\r\n3\r\nllo\r\n0\r\n\r\nGET")
    assert await read(chunked) == b"hello"
    assert chunked.behind() == b"GET"


async def test_pieces_come_as_they_are_sent(pair: Pair) -> None:
    body = body_of(pair, CHUNKED)
    pair.peer.send(b"2\r\nhe\r\n")
    assert await body.read_piece() == b"he"
    pair.peer.send(b"3\r\nllo\r\n0\r\n\r\n")
    assert await body.read_piece() == b"llo"
    assert await body.read_piece() == b""


@pytest.mark.parametrize("ahead", [3, 100])
@pytest.mark.parametrize(
    ("framing", "sent"),
    [(of_length(10), b"0123456789"), (CHUNKED, b"5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n")],
)
async def test_as_long_as_may_be(pair: Pair, framing: Framing, sent: bytes, ahead: int) -> None:
    pair.peer.send(sent[ahead:])
    assert await read(body_of(pair, framing, ahead=sent[:ahead]), 10) == b"0123456789"
    pair.peer.send(sent[ahead:])
    with pytest.raises(LimitExceeded) as caught:
        await read(body_of(pair, framing, ahead=sent[:ahead]), 9)
    error = caught.value
    assert (error.reason, error.status, error.closes) == ("publish.max_body", 413, True)


async def test_a_length_that_is_too_much_is_not_waited_for(pair: Pair) -> None:
    with pytest.raises(LimitExceeded, match="found 11"):
        await read(body_of(pair, of_length(11)), 10)


# In time


async def read_while(
    pair: Pair, body: RequestBody, clock: trio.testing.MockClock, *steps: tuple[float, bytes]
) -> bytes:
    """Reads it while the client sends: after so many seconds each, these bytes."""

    async def send() -> None:
        for seconds, data in steps:
            await trio.testing.wait_all_tasks_blocked()
            clock.jump(seconds)
            await trio.testing.wait_all_tasks_blocked()
            pair.peer.send(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        return await read(body)
    raise AssertionError


async def test_a_body_has_so_much_time(pair: Pair, mock_clock: trio.testing.MockClock) -> None:
    assert await read_while(pair, body_of(pair, of_length(2)), mock_clock, (29.9, b"ok")) == b"ok"
    with pytest.RaisesGroup(TooSlow) as caught:
        await read_while(pair, body_of(pair, of_length(2)), mock_clock, (30.1, b"ok"))
    error = caught.value.exceptions[0]
    assert (error.status, error.code, error.reason, error.closes) == (408, "too-slow", "limits.body_timeout", True)
    assert "30 s" in error.detail
    assert "512 bytes" in error.detail


async def test_what_comes_buys_time(pair: Pair, mock_clock: trio.testing.MockClock) -> None:
    much = b"x" * 1024
    body = body_of(pair, of_length(1026))
    assert await read_while(pair, body, mock_clock, (29.0, much), (2.9, b"ok")) == much + b"ok"
    with pytest.RaisesGroup(TooSlow):
        await read_while(pair, body_of(pair, of_length(1026)), mock_clock, (29.0, much), (3.1, b"ok"))


async def test_a_byte_now_and_then_buys_next_to_nothing(pair: Pair, mock_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(TooSlow):
        await read_while(pair, body_of(pair, of_length(100)), mock_clock, *((1.0, b"x"),) * 40)
    assert mock_clock.current_time() <= 41


async def test_time_counts_from_when_it_is_waited_for(pair: Pair, mock_clock: trio.testing.MockClock) -> None:
    body = body_of(pair, of_length(2))
    mock_clock.jump(1000.0)
    assert await read_while(pair, body, mock_clock, (29.9, b"ok")) == b"ok"


# Who waits to be asked (RFC 9110 10.1.1)


@pytest.mark.parametrize(
    ("ahead", "expects", "is_asked"), [(b"", True, True), (b"h", True, False), (b"", False, False)]
)
async def test_who_expects_to_be_asked_is_asked(pair: Pair, ahead: bytes, expects: bool, is_asked: bool) -> None:
    body = body_of(pair, of_length(5), ahead=ahead, expects=expects)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, body)
        await trio.testing.wait_all_tasks_blocked()
        if is_asked:
            assert pair.peer.recv(100) == CONTINUE
        with pytest.raises(BlockingIOError):
            pair.peer.recv(100)
        pair.peer.send(b"hello"[len(ahead) :])
    with pytest.raises(BlockingIOError):
        pair.peer.recv(100)


async def test_who_expects_is_not_asked_for_what_is_not_read(pair: Pair) -> None:
    body = body_of(pair, of_length(50), expects=True)
    with pytest.raises(LimitExceeded):
        await read(body, 49)
    assert await read(body_of(pair, of_length(0), expects=True)) == b""
    with pytest.raises(BlockingIOError):
        pair.peer.recv(100)


# What goes wrong


@pytest.mark.parametrize("framing", [of_length(10), CHUNKED])
async def test_a_body_that_breaks_off(pair: Pair, framing: Framing) -> None:
    pair.peer.send(b"5\r\nhe")
    pair.peer.shutdown(socket.SHUT_WR)
    with pytest.raises(RemoteProtocolError, match="in the middle of the body") as caught:
        await read(body_of(pair, framing))
    assert (caught.value.status, caught.value.code, caught.value.closes) == (400, "bad-http", True)


async def test_a_frame_that_is_broken(pair: Pair) -> None:
    body = body_of(pair, CHUNKED, ahead=b"5\r\nhello!")
    with pytest.raises(RemoteProtocolError, match="no CRLF") as caught:
        await read(body)
    assert (caught.value.status, caught.value.code, caught.value.closes) == (400, "bad-http", True)
    assert not body.is_complete


async def test_cancelling_leaves_a_body_that_is_not_complete(pair: Pair) -> None:
    body = body_of(pair, of_length(5), ahead=b"he")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, body)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert not body.is_complete


async def test_chunks_of_one_byte_let_others_have_their_turn(pair: Pair) -> None:
    count = 20_000
    body = body_of(pair, CHUNKED, ahead=b"1\r\nx\r\n" * count + b"0\r\n\r\n")
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        assert await read(body, count) == b"x" * count
        nursery.cancel_scope.cancel()
    assert turns > count // 300
