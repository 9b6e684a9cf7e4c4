"""The task that passes on what comes: whose turn it is, whom it tells of an end, and what cancelling leaves."""

import socket
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tricast_proxy.pump import Pump
from tricast_proxy.timers import UPSTREAM, Rule, Timers, Watch


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    mine, its = socket.socketpair()
    its.setblocking(False)
    with mine, its:
        yield mine, its


@asynccontextmanager
async def pumping() -> AsyncIterator[Pump]:
    """A pump that runs during the block, and has nothing to do after it."""
    pump = Pump()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        yield pump
        nursery.cancel_scope.cancel()
    assert len(pump) == 0
    pump.close()


class Taker:
    """Takes a byte each time, until it is a full stop.

    Attributes:
        taken: what it took.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.taken = b""

    def step(self) -> bool:
        byte = self._sock.recv(1)
        self.taken += byte
        return byte not in (b".", b"")


async def test_a_step_is_taken_as_long_as_there_is_something() -> None:
    with pair() as (mine, its):
        taker = Taker(its)
        async with pumping() as pump:
            mine.send(b"all of it, though each takes a byte. And no more")
            await pump.flow(its.fileno(), taker.step)
        assert taker.taken == b"all of it, though each takes a byte."


async def test_nothing_is_done_while_nothing_comes() -> None:
    with pair() as (mine, its):
        taker = Taker(its)
        async with pumping() as pump, trio.open_nursery() as nursery:
            nursery.start_soon(pump.flow, its.fileno(), taker.step)
            await wait_all_tasks_blocked()
            assert taker.taken == b""
            mine.send(b"a")
            await wait_all_tasks_blocked()
            assert taker.taken == b"a"
            mine.send(b".")
        assert taker.taken == b"a."


async def test_a_descriptor_may_flow_again() -> None:
    with pair() as (mine, its):
        taker = Taker(its)
        async with pumping() as pump:
            mine.send(b"one.two.")
            await pump.flow(its.fileno(), taker.step)
            await pump.flow(its.fileno(), taker.step)
        assert taker.taken == b"one.two."


async def test_the_end_of_a_connection_is_something_that_comes() -> None:
    with pair() as (mine, its):
        taker = Taker(its)
        async with pumping() as pump:
            mine.close()
            await pump.flow(its.fileno(), taker.step)


async def test_what_fails_fails_in_its_own_task() -> None:
    with pair() as (mine, its), pair() as (other, others):
        taker = Taker(others)

        def fail() -> bool:
            raise OSError("no more")

        async with pumping() as pump, trio.open_nursery() as nursery:
            nursery.start_soon(pump.flow, others.fileno(), taker.step)
            mine.send(b"x")
            with pytest.raises(OSError, match="no more"):
                await pump.flow(its.fileno(), fail)
            other.send(b"goes on.")
        assert taker.taken == b"goes on."


async def test_nothing_is_left_of_what_has_failed() -> None:
    class Fails:
        def step(self) -> bool:
            raise OSError("no more")

    with pair() as (mine, its):
        fails = Fails()
        left = weakref.ref(fails)
        async with pumping() as pump:
            mine.send(b"x")
            with suppress(OSError):
                await pump.flow(its.fileno(), fails.step)
        del fails
        assert left() is None  # without waiting for the collector of cycles


async def test_a_flow_that_another_one_ends_in_the_same_turn_takes_no_step() -> None:
    with pair() as (mine, its), pair() as (other, others):
        taken: list[socket.socket] = []
        scopes = {its: trio.CancelScope(), others: trio.CancelScope()}

        async def flow(pump: Pump, sock: socket.socket, ended: socket.socket) -> None:
            def step() -> bool:
                taken.append(sock)
                scopes[ended].cancel()
                return False

            with scopes[sock]:
                await pump.flow(sock.fileno(), step)

        async with pumping() as pump, trio.open_nursery() as nursery:
            mine.send(b"x")
            other.send(b"x")
            nursery.start_soon(flow, pump, its, others)
            nursery.start_soon(flow, pump, others, its)
        assert len(taken) == 1


async def test_cancelling_ends_it_between_two_steps() -> None:
    with pair() as (mine, its):
        taker = Taker(its)
        async with pumping() as pump:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pump.flow, its.fileno(), taker.step)
                    mine.send(b"ab")
                    await wait_all_tasks_blocked()
                    scope.cancel()
            mine.send(b"c")
            await wait_all_tasks_blocked()
        assert taker.taken == b"ab"
        assert its.recv(10) == b"c"


async def test_others_have_their_turn_while_it_is_busy() -> None:
    with pair() as (mine, its):
        turns = 0

        def step() -> bool:  # takes nothing, so that there is always something
            return turns < 100

        async with pumping() as pump, trio.open_nursery() as nursery:
            mine.send(b"x")
            nursery.start_soon(pump.flow, its.fileno(), step)
            while turns < 100:
                await trio.lowlevel.checkpoint()
                turns += 1


async def test_all_that_have_something_are_heard_before_a_timer_blames_them(mock_clock: MockClock) -> None:
    timers = Timers()
    watches = [Watch(timers) for _ in range(200)]

    async def flow(pump: Pump, sock: socket.socket, watch: Watch) -> None:
        def step() -> bool:
            watch.touch(UPSTREAM)
            return sock.recv(1) != b"."

        with watch.scope:
            await pump.flow(sock.fileno(), step)

    with ExitStack() as pairs:
        async with pumping() as pump, trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            senders = []
            for watch in watches:
                mine, its = pairs.enter_context(pair())
                senders.append(mine)
                watch.obey(Rule("silence", 1.0, by_upstream=True))
                nursery.start_soon(flow, pump, its, watch)
            await wait_all_tasks_blocked()
            for mine in senders:
                mine.send(b"x")
            mock_clock.jump(2)  # and all that time nobody looked
            await wait_all_tasks_blocked()
            assert sum(bool(watch.expired) for watch in watches) == 0
            nursery.cancel_scope.cancel()
