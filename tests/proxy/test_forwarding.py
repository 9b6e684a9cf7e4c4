"""Requests and answers on their way through a proxy, on real sockets: what arrives at each side, and when."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
from clients import Wire, ask, head, read_answer, read_head
from forwarding import forwarding
from proxy.origins import OK, Visit, always, once, origin, read_any, read_chunk, silent
from serving import pause, until

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SPOOLED = {"response": {"buffering": "full"}}


async def test_a_request_and_its_answer() -> None:
    answer = b"HTTP/1.1 299 Good Enough\r\nX-A: 1\r\nx-a: 2\r\nKeep-Alive: 5\r\nContent-Length: 3\r\n\r\nyes"
    async with origin(always(answer)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            body = head("PURGE", "/%7Ea/../b?c=%zz", "Cookie: a", "Content-Length: 5", "TE: trailers") + b"hello"
            await wire.send(body)
            assert await wire.until(b"yes") == (
                b"HTTP/1.1 299 Good Enough\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\nyes"
            )
        [asked] = server.requests
        assert asked.line == "PURGE /%7Ea/../b?c=%zz HTTP/1.1"
        assert asked.body == b"hello"
        assert asked.fields == [
            ("Host", "test"),
            ("Cookie", "a"),
            ("X-Forwarded-For", "127.0.0.1"),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Host", "test"),
            ("Via", "1.1 tricast"),
            ("Content-Length", "5"),
        ]


async def test_the_pieces_of_an_answer_come_as_they_are_sent() -> None:
    step = trio.Event()

    async def steps(visit: Visit) -> None:
        nonlocal step
        await visit.request()
        await visit.wire.send(CHUNKED)
        for piece in (b"3;x=y\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\nX: y\r\nContent-Length: 7\r\n\r\n"):
            await step.wait()
            step = trio.Event()
            await visit.wire.send(piece)

    async with origin(steps) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            assert (await read_head(wire)).headers["transfer-encoding"] == "chunked"
            for expected in (b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\nX: y\r\n\r\n"):
                step.set()
                assert await wire.exactly(len(expected)) == expected


async def test_the_pieces_of_a_request_go_up_as_they_come() -> None:
    async with origin(always(OK)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Transfer-Encoding: chunked") + b"3;x\r\none\r\n")
            await server.wait_requests(1)
            visit = server.visits[0]
            await until(lambda: not visit.wire.buffer)
            await wire.send(b"3\r\ntwo\r\n0\r\nX: trailer\r\n\r\n")
            assert (await read_answer(wire)).status == 200
    [asked] = server.requests
    assert (asked.body, asked.all("transfer-encoding"), asked.all("content-length")) == (b"onetwo", ["chunked"], [])


async def pour(wire: Wire, progress: list[int]) -> None:
    """Sends chunks for ever, and tells how many bytes went away."""
    while True:
        await wire.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        progress[0] += 65536


async def stalls(progress: list[int]) -> int:
    """Returns when it does not go on any more: the sockets in between are full."""
    before = -1
    while not progress[0] or progress[0] != before:
        before = progress[0]
        await trio.sleep(0.2)
    return before


async def test_a_client_that_reads_slowly_holds_up_the_server() -> None:
    progress = [0]

    async def pour_down(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(CHUNKED)
        await pour(visit.wire, progress)

    async with origin(pour_down) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url, receive_buffer=8192) as wire:
            await wire.send(head("GET", "/"))
            stalled_at = await stalls(progress)
            assert 0 < stalled_at < 32 * 2**20
            await read_head(wire)
            while progress[0] == stalled_at:
                assert await read_chunk(wire) != b""


async def test_a_server_that_reads_slowly_holds_up_the_client() -> None:
    progress, go_on = [0], trio.Event()

    async def wait_and_read(visit: Visit) -> None:
        await visit.head()
        await go_on.wait()
        while True:
            assert await read_chunk(visit.wire) != b""

    async with origin(wait_and_read) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            async with trio.open_nursery() as nursery:
                await wire.send(head("POST", "/", "Transfer-Encoding: chunked"))
                nursery.start_soon(pour, wire, progress)
                stalled_at = await stalls(progress)
                assert 0 < stalled_at < 32 * 2**20
                go_on.set()
                await until(lambda: progress[0] > stalled_at)
                nursery.cancel_scope.cancel()


# How a body ends


@pytest.mark.parametrize(
    ("answer", "framing", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "content-length", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "content-length", b""),
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", "transfer-encoding", b"hello"),
        (CHUNKED + b"0\r\n\r\n", "transfer-encoding", b""),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "transfer-encoding", b"hello"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "transfer-encoding", b""),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", "transfer-encoding", b"hello"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "content-length", b"hello"),
    ],
)
async def test_how_an_answer_is_framed(answer: bytes, framing: str, body: bytes) -> None:
    async with origin(once(answer)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            for _ in range(2):
                await wire.send(head("GET", "/"))
                got = await read_any(wire)
                assert (got.body, got.headers.keys() & {"content-length", "transfer-encoding"}) == (body, {framing})
                assert "connection" not in got.headers
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", "Connection: keep-alive", version="1.0"))
            got = await read_any(wire)
            assert got.body == body
            # RFC 9112 9.3: a proxy keeps no connection with a client of HTTP/1.0.
            assert got.headers["connection"] == "close"
            assert "transfer-encoding" not in got.headers
            assert await wire.rest() == b""


@pytest.mark.parametrize(
    ("method", "answer", "fields"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", {"content-length": "5"}),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", {}),
        ("HEAD", b"HTTP/1.1 404 No\r\n\r\n", {}),
        (
            "GET",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: a\r\n\r\n",
            {"content-length": "5", "etag": "a"},
        ),
        ("GET", b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", {"x": "y"}),
    ],
)
async def test_answers_without_a_body_keep_both_connections(method: str, answer: bytes, fields: dict[str, str]) -> None:
    async with origin(always(answer)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            for _ in range(3):
                await wire.send(head(method, "/"))
                got = await read_any(wire, method)
                assert (got.status, got.headers) == (int(answer[9:12]), fields)
        assert len(server.visits) == 1


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!"),
        ("GET", CHUNKED + b"0\r\n\r\n\r\n"),
        ("GET", OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\nevil"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\nevil"),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ],
)
async def test_a_connection_with_anything_behind_the_answer_is_not_used_again(method: str, answer: bytes) -> None:
    async with origin(always(answer)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            for n in range(2):
                await wire.send(head(method, "/"))
                got = await read_any(wire, method)
                assert got.status in (200, 204, 304)
                assert b"evil" not in got.body
                assert "evil" not in str(got.headers)
                assert len(server.visits) == n + 1
            assert not wire.buffer
        await server.wait_left()


@pytest.mark.parametrize("size", [0, 1, 70_000])
async def test_what_comes_later_behind_an_answer_is_nobodys(size: int) -> None:
    late = trio.Event()

    async def say_more(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        await late.wait()
        await visit.wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await visit.wire.rest()

    async with origin(say_more) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            for n in range(2):
                await wire.send(head("GET", "/"))
                assert (await read_any(wire)).body == b"x" * size
                assert len(server.visits) == n + 1
                late.set()
                await until(lambda: server.visits[-1].wire is not None)
                for _ in range(20):
                    await trio.lowlevel.checkpoint()


# Interim answers


EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\nConnection: X\r\nX: y\r\nContent-Length: 3\r\n\r\n"


async def test_interim_answers_are_forwarded_as_they_come() -> None:
    go_on = trio.Event()

    async def hint(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(EARLY + b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + b"HTTP/1.1 100 Continue\r\n\r\n")
        await go_on.wait()
        await visit.wire.send(OK)

    async with origin(hint) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            assert await wire.until(b"\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
            assert [(await read_head(wire)).status for _ in range(4)] == [102, 102, 102, 100]
            go_on.set()
            assert (await read_answer(wire)).body == b"ok"
        with await Wire.open(proxy.url) as wire:  # RFC 9110 15.2: HTTP/1.0 knows none
            await wire.send(head("GET", "/", version="1.0"))
            assert (await read_answer(wire)).body == b"ok"


@pytest.mark.parametrize(
    ("how", "status", "body"),
    [("drop", 200, b"ok"), ("refuse", 502, None), ("as-final", 103, b"")],
)
async def test_interim_answers_may_be_treated_otherwise(how: str, status: int, body: bytes | None) -> None:
    async with origin(once(EARLY + OK)) as server, forwarding(server.url, response={"informational": how}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            got = await read_any(wire)
            assert got.status == status
            if how == "as-final":  # as nginx 1.22.1 does: what follows has no frame
                assert await wire.exactly(len(OK)) == OK
            elif body is not None:
                assert got.body == body


async def test_there_may_be_so_many_interim_answers_and_no_more() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    for count, status in ((3, 200), (4, 502)):
        async with (
            origin(once(interim * count + OK)) as server,
            forwarding(server.url, limits={"informational": 3}) as proxy,
        ):
            with await Wire.open(proxy.url) as wire:
                await wire.send(head("GET", "/"))
                for _ in range(3):
                    assert (await read_head(wire)).status == 102
                assert (await read_answer(wire)).status == status


# Expect


async def continuing(visit: Visit) -> None:
    """Says that the body may come when it is asked to, and then takes it."""
    while True:
        asked = await visit.head()
        if asked.all("expect"):
            await visit.wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await visit.wire.exactly(int(asked.all("content-length")[0]))
        await visit.wire.send(OK)


@pytest.mark.parametrize(
    ("sections", "seen"),
    [
        ({}, ["100-continue"]),
        ({"request": {"expect": "answer"}}, []),
        ({"request": {"buffering": "full"}}, ["100-continue"]),
        ({"request": {"buffering": "full", "expect": "answer"}}, []),
        ({"upstream": {"http_version": "1.0"}}, []),
    ],
)
async def test_a_client_that_waits_with_its_body(sections: dict[str, Any], seen: list[str]) -> None:
    async with origin(continuing) as server, forwarding(server.url, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            for _ in range(2):
                await wire.send(head("POST", "/", "Expect: 100-Continue", "Content-Length: 5"))
                assert (await read_head(wire)).status == 100
                await wire.send(b"hello")
                got = await read_answer(wire)  # and not a second 100
                assert (got.status, got.body) == (200, b"ok")
                assert [value.lower() for value in server.requests[-1].all("expect")] == seen


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({}, "Expect: a-miracle"),
        ({}, "Expect: 100-continue, more"),
        ({"request": {"expect": "reject"}}, "Expect: 100-continue"),
    ],
)
async def test_what_cannot_be_met_is_refused(sections: dict[str, Any], field: str) -> None:
    async with origin(silent) as server, forwarding(server.url, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", field, "Content-Length: 5"))
            got = await read_answer(wire)
            assert (got.status, got.headers["connection"]) == (417, "close")
            assert await wire.rest() == b""
        assert not server.visits


async def test_http_1_0_knows_no_expectations() -> None:
    async with origin(continuing) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Expect: anything", "Content-Length: 5", version="1.0") + b"hello")
            assert (await read_answer(wire)).status == 200
        assert server.requests[0].all("expect") == []


async def test_an_answer_instead_of_leave_to_go_on_is_the_answer() -> None:
    refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"

    async def refuse(visit: Visit) -> None:
        await visit.head()
        await visit.wire.send(refusal)
        await visit.wire.rest()

    async with origin(refuse) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Expect: 100-continue", "Content-Length: 5"))
            got = await read_answer(wire)
            assert (got.status, got.body, got.headers["connection"]) == (401, b"no", "close")
            assert await wire.rest() == b""
        await server.wait_left()


async def test_an_answer_before_the_whole_request_is_forwarded() -> None:
    async def refuse(visit: Visit) -> None:
        await visit.head()
        await visit.wire.exactly(1000)
        await visit.wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await visit.wire.rest()

    async with origin(refuse) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Content-Length: 5000000") + b"x" * 1000)
            got = await read_answer(wire)
            assert (got.status, got.body, got.headers["connection"]) == (413, b"no", "close")
            await wire.send(b"x" * 1_000_000)  # which it has not heard yet
            assert await wire.rest() == b""


# HTTP/1.0 upstream


async def test_a_server_may_be_spoken_to_in_http_1_0() -> None:
    answer = b"HTTP/1.0 200 OK\r\n\r\nhello"
    async with origin(once(answer)) as server, forwarding(server.url, upstream={"http_version": "1.0"}) as proxy:
        got = await ask_any(
            proxy.url, head("POST", "/", "Transfer-Encoding: chunked") + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        )
        assert got.body == b"hello"
        [asked] = server.requests
        assert (asked.line, asked.body) == ("POST / HTTP/1.0", b"onetwo")
        assert (asked.all("content-length"), asked.all("transfer-encoding"), asked.all("connection")) == (
            ["6"],
            [],
            ["close"],
        )


async def ask_any(url: str, data: bytes) -> Any:
    with await Wire.open(url) as wire:
        await wire.send(data)
        return await read_any(wire)


# Pipelining and keep-alive


async def test_pipelined_requests_are_answered_in_their_order_one_at_a_time() -> None:
    async def count(visit: Visit) -> None:
        while True:
            asked = await visit.request()
            assert not visit.wire.buffer  # the next one has not come yet
            await visit.wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + asked.line.split()[1].encode())

    async with origin(count) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(b"".join(head("POST", f"/{n}", "Content-Length: 2") + b"ab" for n in range(10)))
            for n in range(10):
                assert (await read_answer(wire)).body == b"/%d" % n
        assert len(server.visits) == 1


async def test_requests_pipelined_before_the_client_stopped_sending_are_answered() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, client={"leaves": "on-write"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/") * 3 + b"GET / HT")
            wire.finish_sending()
            for _ in range(3):
                assert (await read_answer(wire)).status == 200
            assert await wire.rest() == b""
        assert len(server.requests) == 3


async def test_a_client_may_read_ahead_of_itself_and_leave() -> None:
    # What is pipelined is read only up to a bound while an answer is waited for.
    async with origin(silent) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await server.wait_requests(1)
            with trio.move_on_after(0.3):
                await wire.send(b"x" * 2**24)
                raise AssertionError("all of it was taken")
        assert len(server.requests) == 1


async def test_a_connection_to_a_server_is_used_again_by_whoever_comes_next() -> None:
    async with origin(always(OK)) as server, forwarding(server.url) as proxy:
        for _ in range(3):
            assert (await ask(proxy.url, "GET", "/")).status == 200
        assert [asked.connection for asked in server.requests] == [1, 1, 1]
        assert (proxy.counters.opened, proxy.counters.reused) == (1, 2)


@pytest.mark.parametrize(
    ("upstream", "connections", "field"),
    [
        ({"keepalive": 0}, [1, 2, 3], ["close"]),
        ({"keepalive_requests": 2}, [1, 1, 2], []),
        ({"keepalive": 1}, [1, 1, 1], []),
    ],
)
async def test_how_long_connections_to_servers_last(
    upstream: dict[str, int], connections: list[int], field: list[str]
) -> None:
    async with origin(always(OK)) as server, forwarding(server.url, upstream=upstream) as proxy:
        for _ in range(3):
            assert (await ask(proxy.url, "GET", "/")).status == 200
        assert [asked.connection for asked in server.requests] == connections
        assert server.requests[0].all("connection") == field


async def test_connections_to_servers_do_not_wait_for_ever() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, upstream={"keepalive_timeout": "50ms"}) as proxy:
        await ask(proxy.url, "GET", "/")
        await server.wait_left()
        await ask(proxy.url, "GET", "/")
        assert [asked.connection for asked in server.requests] == [1, 2]


async def hang_up_on_the_second(visit: Visit) -> None:
    """Answers the first request on each connection, and closes when it sees the second: it was idle for too long."""
    await visit.request()
    await visit.wire.send(OK)
    await visit.head()


async def test_a_request_that_met_a_connection_being_closed_is_sent_again() -> None:
    async with origin(hang_up_on_the_second) as server, forwarding(server.url, retry={"on": []}) as proxy:
        for n in range(3):
            assert (await ask(proxy.url, "GET", f"/{n}")).status == 200
        assert [(asked.line[5], asked.connection) for asked in server.requests] == [
            ("0", 1),
            ("1", 1),
            ("1", 2),
            ("2", 2),
            ("2", 3),
        ]


async def test_a_request_that_must_not_come_twice_is_not_sent_again() -> None:
    # RFC 9110 9.2.2
    async with origin(hang_up_on_the_second) as server, forwarding(server.url) as proxy:
        assert (await ask(proxy.url, "POST", "/")).status == 200
        assert (await ask(proxy.url, "POST", "/")).status == 502
        assert len(server.requests) == 2
    async with origin(hang_up_on_the_second) as server, forwarding(server.url, retry={"non_idempotent": True}) as proxy:
        for _ in range(2):
            assert (await ask(proxy.url, "POST", "/")).status == 200


async def test_a_body_that_has_gone_up_is_sent_again_only_where_it_was_kept() -> None:
    for buffering, status in (("off", 502), ("full", 200)):
        async with (
            origin(hang_up_on_the_second) as server,
            forwarding(server.url, request={"buffering": buffering}) as proxy,
        ):
            assert (await ask(proxy.url, "PUT", "/", body=b"one")).status == 200
            assert (await ask(proxy.url, "PUT", "/", body=b"x" * 2_000_000)).status == status
            if status == 200:
                assert server.requests[-1].body == b"x" * 2_000_000


async def test_a_connection_that_was_closed_meanwhile_is_not_used() -> None:
    async with origin(once(OK)) as server, forwarding(server.url) as proxy:
        for _ in range(3):
            assert (await ask(proxy.url, "POST", "/")).status == 200
            await server.wait_left()
        assert [asked.connection for asked in server.requests] == [1, 2, 3]


# Clients


async def test_a_client_may_ask_so_often() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, client={"keepalive_requests": 2}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/") * 3)
            assert "connection" not in (await read_answer(wire)).headers
            assert (await read_answer(wire)).headers["connection"] == "close"
            assert await wire.rest() == b""


async def test_a_connection_that_has_grown_old_ends_after_an_answer() -> None:
    async def ends(wire: Wire) -> bool:
        await wire.send(head("GET", "/"))
        return (await read_answer(wire)).headers.get("connection") == "close"

    async with origin(always(OK)) as server:
        async with forwarding(server.url, client={"max_age": "1h"}) as proxy:
            with await Wire.open(proxy.url) as wire:
                assert not await ends(wire)
        async with forwarding(server.url, client={"max_age": "50ms"}) as proxy:
            with await Wire.open(proxy.url) as wire:
                while not await ends(wire):
                    await pause()
                assert await wire.rest() == b""


async def test_a_client_may_have_its_connection_closed() -> None:
    async with origin(always(OK)) as server, forwarding(server.url) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", "Connection: close") * 2)
            assert (await read_answer(wire)).headers["connection"] == "close"
            assert await wire.rest() == b""
        assert len(server.requests) == 1


async def test_http_1_0_need_not_be_spoken() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, client={"http_1_0": False}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", version="1.0"))
            got = await read_answer(wire)
            assert (got.status, got.headers["upgrade"]) == (426, "HTTP/1.1")
        assert not server.visits


async def test_there_may_be_so_many_clients() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, proxy={"max_connections": 2}) as proxy:
        with await Wire.open(proxy.url) as first, await Wire.open(proxy.url) as second:
            for wire in (first, second):
                await wire.send(head("GET", "/"))
                await read_answer(wire)
            with await Wire.open(proxy.url) as third:
                assert await third.rest() == b""
            assert proxy.counters.refused["connections"] == 1
        await until(lambda: not proxy.clients)
        assert (await ask(proxy.url, "GET", "/")).status == 200


async def test_ipv6() -> None:
    async with origin(always(OK), host="::1") as server, forwarding(server.url, proxy={"host": "::1"}) as proxy:
        assert proxy.url.startswith("http://[::1]:")
        assert (await ask(proxy.url, "GET", "/")).status == 200
        assert server.requests[0].all("x-forwarded-for") == ["::1"]


# Answers that the proxy gives


async def test_whoever_gets_it_last_answers_for_it() -> None:
    async with origin(always(OK)) as server, forwarding(server.url) as proxy:
        for method in ("TRACE", "OPTIONS"):
            assert (await ask(proxy.url, method, "/", "Max-Forwards: 0")).status == 501
        assert not server.requests
        assert (await ask(proxy.url, "OPTIONS", "/", "Max-Forwards: 3")).status == 200
        assert server.requests[0].all("max-forwards") == ["2"]


async def test_loops_end() -> None:
    async with origin(always(OK)) as server, forwarding(server.url) as proxy:
        got = await ask(proxy.url, "GET", "/", "Via: 1.1 other, 1.1 Tricast (x)")
        assert (got.status, got.headers["proxy-status"]) == (508, "tricast; error=http_request_error")
        assert not server.visits


@pytest.mark.parametrize("text", ["problem", "html", "empty"])
async def test_how_errors_look(text: str) -> None:
    headers = {"server": "me", "via": "edge"}
    async with origin(once(b"")) as server, forwarding(server.url, errors={"text": text}, headers=headers) as proxy:
        with await Wire.open(proxy.url) as wire:
            for method in ("GET", "HEAD"):
                await wire.send(head(method, "/"))
                got = await read_answer(wire, method)
                assert got.status == 502
                assert got.headers["server"] == "me"
                assert got.headers["cache-control"] == "no-store"
                assert got.headers["proxy-status"] == "edge; error=connection_terminated"
                assert (
                    got.headers.get("content-type")
                    == {
                        "problem": "application/problem+json",
                        "html": "text/html",
                        "empty": None,
                    }[text]
                )
                assert "connection" not in got.headers


async def test_bodies_may_be_so_long_and_no_longer() -> None:
    async with origin(always(OK)) as server, forwarding(server.url, limits={"body": 10}) as proxy:
        assert (await ask(proxy.url, "POST", "/", body=b"x" * 10)).status == 200
        assert (await ask(proxy.url, "POST", "/", body=b"x" * 11)).status == 413
        assert len(server.requests) == 1
        got = await ask_any(proxy.url, head("POST", "/", "Transfer-Encoding: chunked") + b"b\r\n" + b"x" * 11 + b"\r\n")
        assert (got.status, got.headers["connection"]) == (413, "close")
        assert len(server.requests) == 1


async def test_where_a_body_cannot_be_kept_the_client_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    async with origin(always(OK)) as server, forwarding(server.url, request={"buffering": "full"}) as proxy:
        got = await ask(proxy.url, "POST", "/", body=b"x" * 2**21)
        assert (got.status, got.headers["proxy-status"]) == (500, "tricast; error=proxy_internal_error")
        assert (await ask(proxy.url, "POST", "/", body=b"x")).status == 200
        assert len(server.requests) == 1


@pytest.mark.parametrize("trailers", ["forward", "drop", "refuse"])
async def test_trailers(trailers: str) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Mine\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nX-Mine: 1\r\nX-Yours: 2\r\n\r\n"
    )
    async with origin(always(answer)) as server, forwarding(server.url, response={"trailers": trailers}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            await read_head(wire)
            assert await read_chunk(wire) == b"ok"
            if trailers == "refuse":
                assert await wire.rest() == b""
                assert proxy.counters.cuts["cut"] == 1
            else:
                expected = b"0\r\nX-Yours: 2\r\n\r\n" if trailers == "forward" else b"0\r\n\r\n"
                assert await wire.exactly(len(expected)) == expected


async def test_what_is_wrong_with_a_body_is_told() -> None:
    async with origin(silent) as server, forwarding(server.url) as proxy:
        for begun in (b"", b"5\r\nhello\r\n"):
            with await Wire.open(proxy.url) as wire:
                await wire.send(head("POST", "/", "Transfer-Encoding: chunked") + begun + b"nonsense\r\n")
                got = await read_answer(wire)
                assert (got.status, got.headers["connection"]) == (400, "close")
                assert await wire.rest() == b""
        assert not server.requests
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n")
            await server.wait_requests(1)
            await wire.send(b"nonsense\r\n")
            assert (await read_answer(wire)).status == 400
        await server.wait_left()


async def test_an_interim_answer_and_the_final_one_in_one_piece_with_a_body_kept_whole() -> None:
    async with origin(once(EARLY + OK)) as server, forwarding(server.url, **SPOOLED) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            assert (await read_head(wire)).status == 103
            assert (await read_answer(wire)).body == b"ok"
