"""How long the proxy waits for a request as a whole, and what it tells those for whom there is no server."""

import pytest
from clients import Wire, head, read_answer
from forwarding import forwarding

#: Nobody listens there: the port is for something else, and reserved.
NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize("begun", [b"", b"GET / HT"])
async def test_the_head_is_a_part_of_it(begun: bytes) -> None:
    async with forwarding(NOBODY, client={"request_timeout": "100ms", "header_timeout": "10s"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(begun)
            assert (await read_answer(wire, "GET")).status == 408


async def test_the_body_is_a_part_of_it() -> None:
    sections = {"client": {"request_timeout": "100ms"}, "request": {"buffering": "full"}}
    async with forwarding(NOBODY, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Content-Length: 10") + b"12345")
            assert (await read_answer(wire, "POST")).status == 408


async def test_without_a_server_it_says_when_to_come_back() -> None:
    async with forwarding(NOBODY, errors={"connect": 503, "retry_after": "7s"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/"))
            answer = await read_answer(wire, "GET")
    assert answer.status == 503
    assert answer.headers["retry-after"] == "7"
