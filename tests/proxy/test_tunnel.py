"""Tunnels between socket pairs: what keeps them, and how each end of them looks to both sides."""

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tricast.connection import Connection
from tricast_proxy.config import TunnelSection
from tricast_proxy.pump import Pump
from tricast_proxy.timers import Timers
from tricast_proxy.tunnel import Tunnel, rules_of

CLOSE_1001 = b"\x88\x02\x03\xe9"


class Side:
    """Who talks through the tunnel, and the tunnel's connection to it."""

    def __init__(self) -> None:
        mine, its = socket.socketpair()
        its.setblocking(False)
        self.sock = trio.socket.from_stdlib_socket(mine)
        self.connection = Connection(its, "peer", write_timeout=1000)

    async def send(self, data: bytes) -> None:
        await self.sock.send(data)

    async def receive(self) -> bytes:
        """What comes next; empty at the end."""
        return await self.sock.recv(2**16)

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()
        self.connection.close()


class World:
    """A tunnel that runs, and both who talk through it.

    Attributes:
        ended: when the tunnel ended.
    """

    def __init__(self, *, is_websocket: bool = True, **tunnel: Any) -> None:
        self.config = TunnelSection.model_validate(tunnel)
        self.client, self.upstream = Side(), Side()
        self.pump = Pump()
        self.tunnel = Tunnel(
            self.client.connection, self.upstream.connection, self.config, self.pump, is_websocket=is_websocket
        )
        self.timers = Timers()
        self.ended = trio.Event()
        self.ended_at = -1.0

    def start(self, nursery: trio.Nursery) -> None:
        """Has the tunnel run, and what it needs."""
        nursery.start_soon(self.timers.run)
        nursery.start_soon(self.pump.run)
        nursery.start_soon(self._run, random.Random(1))

    def close(self) -> None:
        self.pump.close()
        self.client.close()
        self.upstream.close()

    async def _run(self, rules_from: random.Random) -> None:
        await self.tunnel.run(self.timers, rules_of(self.config, rules_from))
        self.ended_at = trio.current_time()
        self.ended.set()

    async def lasts(self) -> float:
        """How long it lasts."""
        await self.ended.wait()
        return self.ended_at


@asynccontextmanager
async def tunnelling(**tunnel: Any) -> AsyncIterator[World]:
    """A tunnel that runs during the block."""
    world = World(**tunnel)
    async with trio.open_nursery() as nursery:
        world.start(nursery)
        yield world
        nursery.cancel_scope.cancel()
    world.close()


async def test_bytes_go_both_ways(autojump_clock: MockClock) -> None:
    async with tunnelling() as world:
        for n in range(3):
            await world.client.send(b"up %d" % n)
            await world.upstream.send(b"down %d" % n)
            assert await world.upstream.receive() == b"up %d" % n
            assert await world.client.receive() == b"down %d" % n
        assert world.tunnel.why == ""


async def test_a_side_that_takes_nothing_holds_up_nobody_but_who_sends_to_it(autojump_clock: MockClock) -> None:
    async with tunnelling() as world:
        sent = 0
        with trio.move_on_after(1):
            while True:
                sent += await world.client.sock.send(b"x" * 2**16)
        assert sent < 2**22
        await world.upstream.send(b"down")
        assert await world.client.receive() == b"down"
        while sent:
            sent -= len(await world.upstream.receive())


@pytest.mark.parametrize("talks", ["client", "upstream", "both", "nobody"])
@pytest.mark.parametrize("idle_reset", ["either", "upstream", "client", "never"])
async def test_what_resets_the_idle_timer(idle_reset: str, talks: str, autojump_clock: MockClock) -> None:
    async with tunnelling(idle_timeout="10s", idle_reset=idle_reset) as world:
        for second in (6, 12, 18):
            await trio.sleep_until(second)
            if not world.ended.is_set():
                if talks in ("client", "both"):
                    await world.client.send(b"x")
                if talks in ("upstream", "both"):
                    await world.upstream.send(b"x")
        resets = talks != "nobody" and (idle_reset == "either" or idle_reset == talks or talks == "both")
        assert await world.lasts() == (28 if resets and idle_reset != "never" else 10)
        assert (world.tunnel.why, world.tunnel.is_cut) == ("tunnel-idle", True)


async def test_a_tunnel_may_live_for_so_long_and_no_longer(autojump_clock: MockClock) -> None:
    async with tunnelling(idle_timeout="10s", max_lifetime="30s") as world:
        for second in range(5, 30, 5):
            await trio.sleep_until(second)
            await world.client.send(b"x")
        assert await world.lasts() == 30
        assert (world.tunnel.why, world.tunnel.is_cut) == ("tunnel-lifetime", True)


def test_lifetimes_may_differ() -> None:
    config = TunnelSection(max_lifetime="100s", max_lifetime_jitter=0.2)  # type: ignore[arg-type]
    randomness = random.Random(1)
    lifetimes = {rules_of(config, randomness)[1].seconds for _ in range(100)}
    assert len(lifetimes) == 100
    assert 80 <= min(lifetimes) < 85
    assert 115 < max(lifetimes) <= 120


@pytest.mark.parametrize(
    ("on_idle", "is_websocket", "last"),
    [("fin", True, b""), ("close-frame", True, CLOSE_1001), ("close-frame", False, b"")],
)
async def test_an_idle_tunnel_is_left_to_be_closed(
    on_idle: str, is_websocket: bool, last: bytes, autojump_clock: MockClock
) -> None:
    async with tunnelling(idle_timeout="10s", on_idle=on_idle, is_websocket=is_websocket) as world:
        assert await world.lasts() == 10
        assert not world.client.connection.is_closed
        world.client.connection.close()
        assert await world.client.receive() == last
        assert not last or await world.client.receive() == b""


async def test_an_idle_tunnel_may_be_reset(autojump_clock: MockClock) -> None:
    async with tunnelling(idle_timeout="10s", on_idle="rst") as world:
        assert await world.lasts() == 10
        assert world.client.connection.is_closed


@pytest.mark.parametrize("on_idle", ["silent", "silent-then-rst"])
async def test_an_idle_tunnel_may_fall_silent(on_idle: str, autojump_clock: MockClock) -> None:
    async with tunnelling(idle_timeout="10s", on_idle=on_idle) as world:
        await trio.sleep(20)
        assert not world.ended.is_set()
        assert not world.client.connection.is_closed
        await world.client.send(b"is anybody there?")
        await trio.sleep(20)
        assert world.client.connection.is_closed is (on_idle == "silent-then-rst")
        # The other side is told nothing either, until it says something.
        with trio.move_on_after(1):
            raise AssertionError(await world.upstream.receive())
        assert not world.upstream.connection.is_closed
        world.upstream.finish()
        if on_idle == "silent":
            world.client.finish()
        await world.lasts()


async def test_nobody_is_silent_for_ever(autojump_clock: MockClock) -> None:
    async with tunnelling(idle_timeout="10s", on_idle="silent") as world:
        assert 100 < await world.lasts() < 10_000


@pytest.mark.parametrize(
    ("half_close", "first", "is_forwarded"),
    [
        ("close-both", "client", False),
        ("close-both", "upstream", False),
        ("forward", "client", True),
        ("forward", "upstream", True),
        ("forward-client", "client", True),
        ("forward-client", "upstream", False),
    ],
)
async def test_one_side_may_end_before_the_other(
    half_close: str, first: str, is_forwarded: bool, autojump_clock: MockClock
) -> None:
    async with tunnelling(half_close=half_close) as world:
        ending, other = world.client, world.upstream
        if first == "upstream":
            ending, other = other, ending
        await ending.send(b"last")
        ending.finish()
        assert await other.receive() == b"last"
        await trio.testing.wait_all_tasks_blocked()
        assert world.ended.is_set() is not is_forwarded
        if is_forwarded:
            assert await other.receive() == b""
            await other.send(b"and so on")
            assert await ending.receive() == b"and so on"
            other.finish()
            await world.ended.wait()
        assert (world.tunnel.why, world.tunnel.is_cut) == (first, False)


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_side_that_is_lost_ends_it(side: str, autojump_clock: MockClock) -> None:
    async with tunnelling() as world:
        await trio.testing.wait_all_tasks_blocked()
        getattr(world, side).connection.close()
        await world.lasts()
        assert (world.tunnel.why, world.tunnel.is_cut) == ("closed", True)


async def test_it_can_be_ended(autojump_clock: MockClock) -> None:
    async with tunnelling(idle_timeout="10s", on_idle="rst") as world:
        await trio.testing.wait_all_tasks_blocked()
        world.tunnel.end("drain")
        assert await world.lasts() == 0
        assert (world.tunnel.why, world.tunnel.is_cut) == ("drain", False)
        assert not world.client.connection.is_closed
        assert len(world.timers) <= 1


async def test_what_comes_while_something_else_waits_for_room_waits_behind_it(autojump_clock: MockClock) -> None:
    async with tunnelling() as world:
        await world.upstream.send(b"first")
        assert await world.client.receive() == b"first"
        await trio.testing.wait_all_tasks_blocked()
        world.client.connection.send_now(b"x" * 2**22)  # as TLS answers by itself now and then
        assert world.client.connection.has_tail
        await world.upstream.send(b"last")
        received = b""
        with trio.move_on_after(1):
            while len(received) < 2**22 + 4:
                received += await world.client.receive()
        assert received == b"x" * 2**22 + b"last"


def test_before_it_runs_there_is_nothing_to_end() -> None:
    async def main() -> None:
        world = World()
        world.tunnel.end("drain")
        assert world.tunnel.why == ""
        world.close()

    trio.run(main)


async def test_goodbyes(autojump_clock: MockClock) -> None:
    async with tunnelling() as world:
        world.tunnel.say_goodbye(1012)
        assert await world.client.receive() == b"\x88\x02\x03\xf4"
        world.client.sock.close()
        world.tunnel.say_goodbye(1012)  # there is nobody to hear it
        world.client.connection.close()
        world.tunnel.say_goodbye(1012)
    async with tunnelling() as world:
        world.client.connection.send_now(b"x" * 2**22)
        assert world.client.connection.has_tail
        world.tunnel.say_goodbye(1012)  # in the middle of something else
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.client.connection.drain)
            received = b""
            while len(received) < 2**22:
                received += await world.client.receive()
        assert received == b"x" * 2**22


@pytest.mark.parametrize("stage", ["waits", "sends", "silent"])
async def test_cancelling_leaves_nothing(stage: str, autojump_clock: MockClock) -> None:
    world = World(idle_timeout="10s", on_idle="silent")
    async with trio.open_nursery() as nursery:
        world.start(nursery)
        if stage == "sends":
            with trio.move_on_after(1):
                while True:
                    await world.client.send(b"x" * 2**16)
        await trio.sleep(20 if stage == "silent" else 1)
        nursery.cancel_scope.cancel()
    assert not world.ended.is_set()
    assert world.tunnel.is_cut is (stage == "silent")
    # Nothing waits for the sockets any more, or they could not be waited for here.
    for side in (world.client, world.upstream):
        with trio.move_on_after(1):
            await side.connection.receive()
    assert len(world.pump) == 0
    world.close()
