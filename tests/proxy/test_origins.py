"""The origins of these tests do as they are told."""

import pytest
from clients import Closed, Wire, head
from proxy.origins import OK, Visit, always, once, origin, read_any, read_chunked, silent


async def test_requests_are_noted_as_they_came() -> None:
    async with origin(always(OK, b"HTTP/1.1 204 No\r\n\r\n")) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("POST", "/a", "X: 1", "x: 2", "Content-Length: 2") + b"hi")
            assert (await read_any(wire)).body == b"ok"
            await wire.send(head("POST", "/b", "Transfer-Encoding: chunked") + b"2\r\nhi\r\n0\r\n\r\n")
            assert (await read_any(wire)).status == 204
        await server.wait_left()
        first, second = await server.wait_requests(2)
        assert (first.connection, first.line, first.all("X"), first.body) == (1, "POST /a HTTP/1.1", ["1", "2"], b"hi")
        assert (second.line, second.body) == ("POST /b HTTP/1.1", b"hi")


async def test_they_end_as_they_are_told() -> None:
    async with origin(once(b"HTTP/1.1 200 OK\r\n\r\nopen")) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/"))
            assert (await read_any(wire)).body == b"open"
    async with origin(once(b"", resets=True)) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/"))
            with pytest.raises(Closed):
                await wire.more()
    async with origin(silent) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/"))
            await server.wait_requests(1)
            assert server.open == 1


async def test_an_answer_that_is_not_whole_is_none() -> None:
    async def cut(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")

    async with origin(cut) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/"))
            with pytest.raises(Closed):
                await read_any(wire)
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/"))
            await wire.until(b"\r\n\r\n")
            with pytest.raises(Closed):
                await read_chunked(wire)
