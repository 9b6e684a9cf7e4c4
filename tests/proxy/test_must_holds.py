"""What the proxy must hold to, whatever comes: nothing refused goes up, nobody gets what is another's."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from clients import Closed, Wire, head, read_head
from forwarding import forwarding
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxy.origins import Visit, origin, read_any
from proxy.test_heads import CHOSEN, HEADS, REFUSED, STRICTNESSES
from wire.test_bodies import BROKEN

from tricast.wire.http1 import LAST_CHUNK, chunk

#: What a request that is refused has in front of it, and behind it: neither changes anything.
BEHIND = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"


def refused_at(level: int) -> dict[str, bytes]:
    """Everything that is refused at a level of strictness, by name."""
    heads = {name: data for name, (data, statuses) in HEADS.items() if statuses[level]}
    lines = {name: line for name, (line, _) in REFUSED.items()}
    lines |= {name: line for name, (line, statuses) in CHOSEN.items() if statuses[level]}
    return heads | {name: b"POST / HTTP/1.1\r\nHost: test\r\n" + line + b"\r\n\r\n" for name, line in lines.items()}


class Door:
    """An origin that notes every byte that comes.

    Attributes:
        received: all of it.
    """

    def __init__(self) -> None:
        self.received = b""

    async def handle(self, visit: Visit) -> None:
        while await visit.wire.receive():
            self.received += visit.wire.buffer
            visit.wire.buffer.clear()


async def in_parallel(tasks: list[Callable[[], Awaitable[None]]]) -> None:
    """Does many things, a few of them at the same time."""
    limit = trio.CapacityLimiter(20)

    async def one(task: Callable[[], Awaitable[None]]) -> None:
        async with limit:
            await task()

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(one, task)


@pytest.mark.parametrize("level", range(3))
async def test_no_byte_of_a_refused_request_reaches_a_server(level: int) -> None:
    door = Door()

    async def knock(url: str, data: bytes, size: int) -> None:
        with await Wire.open(url) as wire:
            try:
                for at in range(0, len(data), size):
                    await wire.send(data[at : at + size])
            except Closed:
                pass
            got = await read_any(wire)
            assert got.status in (400, 501, 505), got
            assert got.headers["connection"] == "close"
            assert await wire.rest() == b""

    async with (
        origin(door.handle) as server,
        forwarding(server.url, proxy={"strict": STRICTNESSES[level]}) as proxy,
    ):
        vectors = refused_at(level).values()
        assert len(vectors) > 70
        tasks = [partial(knock, proxy.url, data + BEHIND, size) for data in vectors for size in (10**6, 5)]
        await in_parallel(tasks)
        assert (door.received, server.visits) == (b"", [])
        assert proxy.counters.requests.total() == len(tasks)


async def test_nor_do_limits_let_anything_through() -> None:
    door = Door()
    limits = {"request_line": 100, "header_line": 100, "header_total": 400, "header_count": 5, "body": 10}
    too_much = [
        (414, head("GET", "/" + "x" * 100)),
        (431, head("GET", "/", "X: " + "y" * 100)),
        (431, head("GET", "/", *("X: " + "y" * 90 for _ in range(5)))),
        (431, head("GET", "/", *(f"X{n}:" for n in range(5)))),
        (413, head("POST", "/", "Content-Length: 11") + b"x" * 11),
        (413, head("POST", "/", "Transfer-Encoding: chunked") + b"1000\r\n" + b"x" * 11),
    ]
    async with origin(door.handle) as server, forwarding(server.url, limits=limits) as proxy:
        for status, data in too_much:
            with await Wire.open(proxy.url) as wire:
                await wire.send(data + BEHIND)
                got = await read_any(wire)
                assert (got.status, got.headers["connection"]) == (status, "close")
                assert await wire.rest() == b""
        assert door.received == b""


@pytest.mark.parametrize("buffering", ["off", "full"])
async def test_a_broken_body_in_one_piece_with_its_head_reaches_no_server(buffering: str) -> None:
    door = Door()

    async def knock(url: str, data: bytes) -> None:
        with await Wire.open(url) as wire:
            await wire.send(data)
            got = await read_any(wire)
            assert (got.status, got.headers["connection"]) == (400, "close")
            assert await wire.rest() == b""

    async with origin(door.handle) as server, forwarding(server.url, request={"buffering": buffering}) as proxy:
        start = head("POST", "/", "Transfer-Encoding: chunked")
        vectors = [start + begun + wrong + BEHIND for begun, wrong in BROKEN]
        await in_parallel([partial(knock, proxy.url, vector) for vector in vectors])
        assert door.received == b""


async def test_a_body_that_breaks_on_its_way_up_is_never_finished() -> None:
    seen: list[bytes] = []

    async def listen(visit: Visit) -> None:
        await visit.head()
        seen.append(await visit.wire.rest())

    async with origin(listen) as server, forwarding(server.url) as proxy:
        for framing, body, leaves in (
            ("Transfer-Encoding: chunked", b"5\r\nhello\r\n", False),
            ("Transfer-Encoding: chunked", b"5\r\nhello\r\n", True),
            ("Content-Length: 10", b"hello", True),
        ):
            with await Wire.open(proxy.url) as wire:
                await wire.send(head("POST", "/", framing) + body)
                await server.wait_requests(len(seen) + 1)
                if leaves:
                    wire.finish_sending()
                    assert await wire.rest() == b""
                else:
                    await wire.send(b"nonsense" + BEHIND)
                    assert (await read_any(wire)).status == 400
                    assert await wire.rest() == b""
            await server.wait_left()
        assert seen == [b"5\r\nhello\r\n", b"5\r\nhello\r\n", b"hello"]


# Nobody gets what is another's


def answer_to(mark: bytes, form: int) -> bytes:
    """A proper answer that says for whom it is, in one of several forms."""
    body = b"for %b." % mark
    marked = b"X-Mark: %b\r\n" % mark
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    return (
        b"HTTP/1.1 200 OK\r\n" + marked + length + body,
        b"HTTP/1.1 200 OK\r\n" + marked + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(body) + LAST_CHUNK,
        b"HTTP/1.1 103 Early\r\n" + marked + b"\r\nHTTP/1.1 204 No\r\n" + marked + b"\r\n",
        b"HTTP/1.1 304 Not Modified\r\n" + marked + length,
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + marked + length + body,
    )[form]


#: What is done to an answer: cut out, put in, said twice, said in pieces, followed by something.
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), st.integers(0, 150), st.integers(1, 20)),
        st.tuples(st.just("put"), st.integers(0, 150), st.sampled_from(
            [b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b"\x00", b" ", b"HTTP/1.1 200 OK\r\n", b"Content-Length: 0\r\n",
             b"Content-Length: 999\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"5\r\nhello\r\n"]
        )),
        st.tuples(st.just("say"), st.just(0), st.sampled_from(
            [b"HTTP/1.1 200 OK\r\nX-Mark: evil\r\nContent-Length: 4\r\n\r\nevil", b"evil", b"\r\n", b"0\r\n\r\n"]
        )),
        st.tuples(st.just("twice"), st.just(0), st.just(b"")),
    ),
    max_size=3,
)  # fmt: skip


def mutated(data: bytes, mutations: list[tuple[str, int, Any]]) -> bytes:
    """The data with all of it done."""
    for kind, at, what in mutations:
        if kind == "cut":
            data = data[:at] + data[at + what :]
        elif kind == "put":
            data = data[:at] + what + data[at:]
        elif kind == "say":
            data += what
        else:
            data += data
    return data


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 4), MUTATIONS), min_size=1, max_size=4), st.sampled_from(["GET", "HEAD"]))
@example([(0, [("say", 0, b"HTTP/1.1 200 OK\r\nX-Mark: evil\r\nContent-Length: 4\r\n\r\nevil")])] * 3, "GET")
@example([(0, [("twice", 0, b"")])] * 3, "HEAD")
def test_whatever_a_server_says_each_client_gets_its_own_answer_or_an_error(
    script: list[tuple[int, list[tuple[str, int, Any]]]], method: str
) -> None:
    trio.run(_each_gets_its_own, script, method)


async def _each_gets_its_own(script: list[tuple[int, list[tuple[str, int, Any]]]], method: str) -> None:
    steps = iter(script)

    async def misbehave(visit: Visit) -> None:
        while True:
            asked = await visit.request()
            form, mutations = next(steps, (0, []))
            answer = answer_to(asked.all("x-mark")[0].encode(), form)
            await visit.wire.send(mutated(answer, mutations))

    upstream = {"response_header_timeout": "100ms", "read_timeout": "100ms"}
    async with origin(misbehave) as server, forwarding(server.url, upstream=upstream, retry={"on": []}) as proxy:
        for n in range(len(script) + 2):
            mark = f"mark-{n}"
            with await Wire.open(proxy.url) as wire:
                await wire.send(head(method, "/", f"X-Mark: {mark}", "Connection: close"))
                try:
                    while (got := await read_head(wire)).status < 200:
                        assert mark in got.headers.get("x-mark", mark)
                    body = await wire.rest()
                except (Closed, AssertionError):
                    continue
                if "proxy-status" in got.headers:
                    continue
                others = [f"mark-{other}" for other in range(n)]
                said = str(got.headers) + body.decode("latin-1")
                assert not any(f"{other}." in said or f"'{other}'" in said for other in others), (mark, said)
                # What a server says behind an answer is not said to whoever comes next.
                if not script[n : n + 1]:
                    assert got.headers["x-mark"] == mark, said
                    assert "evil" not in said
