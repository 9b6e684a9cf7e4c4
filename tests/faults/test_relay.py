"""The relay: what comes through it, and what does not."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from clocks import HANG_SECONDS
from faults.relay import Relay, Way


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


@asynccontextmanager
async def relay() -> AsyncIterator[Relay]:
    """A relay in front of an echo."""
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, echo, 0)
            port = listeners[0].socket.getsockname()[1]
            made = Relay(random.Random(1))
            made.upstream_port = port
            await nursery.start(made.serve)
            yield made
            nursery.cancel_scope.cancel()


async def connect(to: Relay) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", to.port)


async def exchange(stream: trio.SocketStream, data: bytes) -> bytes:
    await stream.send_all(data)
    return bytes(await stream.receive_some())


async def test_it_passes_on() -> None:
    async with relay() as between, await connect(between) as stream:
        assert await exchange(stream, b"one") == b"one"


@pytest.mark.parametrize("is_refused", [False, True])
async def test_it_drops_what_is_there(is_refused: bool) -> None:
    async with relay() as between, await connect(between) as stream:
        assert await exchange(stream, b"one") == b"one"
        if is_refused:
            between.take(Way.REFUSE)
        else:
            between.drop()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_it_refuses_what_is_new() -> None:
    async with relay() as between:
        between.take(Way.REFUSE)
        async with await connect(between) as stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        between.take(Way.PASS)
        async with await connect(between) as stream:
            assert await exchange(stream, b"one") == b"one"


async def test_a_hole_lets_everything_through_afterwards() -> None:
    async with relay() as between, await connect(between) as old, await connect(between) as other:
        assert await exchange(old, b"one") == b"one"
        between.take(Way.HOLE)
        async with await connect(between) as new:
            for stream in (old, new, other):
                await stream.send_all(b"two")
                with trio.move_on_after(0.05) as scope:  # nothing is to come, so there is nothing else to wait for
                    await stream.receive_some()
                assert scope.cancelled_caught
            between.take(Way.PASS)
            assert [await stream.receive_some() for stream in (old, new)] == [b"two", b"two"]


async def test_a_slow_one_keeps_the_order() -> None:
    async with relay() as between, await connect(between) as stream:
        between.take(Way.SLOW)
        received = b""
        await stream.send_all(b"one")
        await stream.send_all(b"two")
        while len(received) < 6:
            received += await stream.receive_some()
        assert received == b"onetwo"


async def test_ends_come_through() -> None:
    async with relay() as between, await connect(between) as stream:
        assert await exchange(stream, b"one") == b"one"
        await stream.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
