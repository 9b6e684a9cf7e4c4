"""Deadlines that are put off: by the autojump clock, which is at the next one as soon as there is nothing to do."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tricast_proxy.timers import CLIENT, UPSTREAM, Rule, Timers, Watch


@asynccontextmanager
async def running() -> AsyncIterator[Timers]:
    """Timers that are kept during the block."""
    timers = Timers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        yield timers
        nursery.cancel_scope.cancel()


async def expires(watch: Watch) -> tuple[str, float]:
    """What runs out, and when."""
    with watch.scope:
        await trio.sleep_forever()
    return watch.expired, trio.current_time()


async def test_the_first_rule_that_runs_out_counts(autojump_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        watch.obey(Rule("long", 20), Rule("short", 10), Rule("never", math.inf))
        assert await expires(watch) == ("short", 10)
        assert len(timers) == 0


async def test_traffic_puts_off_what_it_is_to_put_off(autojump_clock: MockClock) -> None:
    async def after(side: int | None, **rule: bool) -> float:
        watch = Watch(timers)
        began = trio.current_time()
        watch.obey(Rule("idle", 10, **rule))
        await trio.sleep(6)
        if side is not None:
            watch.touch(side)
        name, ended = await expires(watch)
        assert name == "idle"
        return ended - began

    async with running() as timers:
        assert await after(None, by_upstream=True, by_client=True) == 10
        assert await after(UPSTREAM, by_upstream=True) == 16
        assert await after(UPSTREAM, by_client=True) == 10
        assert await after(UPSTREAM, by_upstream=True, by_client=True) == 16
        assert await after(CLIENT, by_upstream=True) == 10
        assert await after(CLIENT, by_client=True) == 16
        assert await after(CLIENT, by_upstream=True, by_client=True) == 16
        assert await after(CLIENT) == 10


async def test_the_later_side_counts(autojump_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        watch.obey(Rule("idle", 10, by_upstream=True, by_client=True))
        await trio.sleep(3)
        watch.touch(CLIENT)
        await trio.sleep(3)
        watch.touch(UPSTREAM)
        assert await expires(watch) == ("idle", 16)


async def test_a_deadline_may_be_put_off_for_ever(autojump_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        watch.obey(Rule("idle", 10, by_client=True))
        for _ in range(1000):
            await trio.sleep(9)
            watch.touch(CLIENT)
            assert len(timers) == 1
        assert watch.expired == ""
        assert await expires(watch) == ("idle", 9010)


async def test_a_rule_may_have_begun_before(autojump_clock: MockClock) -> None:
    async with running() as timers:
        await trio.sleep(5)
        watch = Watch(timers)
        watch.obey(Rule("total", 10, since=2.0), Rule("idle", 10, by_client=True))
        assert await expires(watch) == ("total", 12)


async def test_other_rules_take_the_place_of_those_before(autojump_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        watch.obey(Rule("first", 10))
        await trio.sleep(9)
        watch.obey(Rule("second", 10))
        await trio.sleep(9)
        assert watch.expired == ""
        watch.obey(Rule("third", 1))  # earlier than what is waited for
        assert await expires(watch) == ("third", 19)


async def test_a_deadline_that_another_has_taken_the_place_of_costs_nothing(autojump_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        for seconds in range(50, 0, -1):
            watch.obey(Rule("idle", seconds, by_client=True))
        for _ in range(200):
            await trio.sleep(0.5)
            watch.touch(CLIENT)
        assert len(timers) == 1
        assert await expires(watch) == ("idle", 101)


async def test_a_rule_stands_still_while_nobody_waits_for_the_server(autojump_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        watch.obey(Rule("read", 10, by_upstream=True, when_awaited=True))
        await trio.sleep(100)
        watch.await_server()
        await trio.sleep(9)
        watch.touch(UPSTREAM)
        watch.stand_still()
        await trio.sleep(100)
        assert watch.expired == ""
        watch.await_server()
        assert await expires(watch) == ("read", 219)


async def test_who_stops_to_wait_and_goes_on_puts_nothing_off(autojump_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        watch.obey(Rule("read", 10, by_upstream=True, when_awaited=True))
        for _ in range(4):
            watch.await_server()
            await trio.sleep(2)
            watch.stand_still()
            await trio.sleep(5)
        watch.await_server()
        # Eight seconds of the ten were over, and twenty do not count.
        assert await expires(watch) == ("read", 30)


async def test_what_has_ended_does_not_run_out(autojump_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        watch.obey(Rule("idle", 10))
        assert not watch.has_ended
        watch.end()
        assert watch.has_ended
        await trio.sleep(20)
        assert watch.expired == ""
        assert not watch.scope.cancel_called
        assert len(timers) == 0
        unruly = Watch(timers)
        unruly.obey(Rule("never", math.inf))
        unruly.end()
        assert len(timers) == 0


async def test_what_runs_out_runs_out_once(autojump_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        watch.obey(Rule("one", 10))
        assert await expires(watch) == ("one", 10)
        watch.obey(Rule("two", 10))
        await trio.sleep(20)
        assert watch.expired == "one"


async def test_many_that_have_ended_are_forgotten_before_their_time(autojump_clock: MockClock) -> None:
    async with running() as timers:
        lasting = Watch(timers)
        lasting.obey(Rule("lasting", 500))
        most = 0
        for _ in range(10_000):
            watch = Watch(timers)
            watch.obey(Rule("idle", 1000))
            watch.end()
            most = max(most, len(timers))
        assert most < 2100
        assert await expires(lasting) == ("lasting", 500)


async def test_an_earlier_deadline_wakes_the_task(autojump_clock: MockClock) -> None:
    async with running() as timers:
        late, early = Watch(timers), Watch(timers)
        late.obey(Rule("late", 1000))
        await wait_all_tasks_blocked()
        early.obey(Rule("early", 1))
        assert await expires(early) == ("early", 1)
        assert await expires(late) == ("late", 1000)


async def test_who_was_held_up_hears_first_what_takes_some_turns(mock_clock: MockClock) -> None:
    async with running() as timers:
        watch = Watch(timers)
        watch.obey(Rule("silence", 100, by_upstream=True))
        mock_clock.jump(200)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        watch.touch(UPSTREAM)
        mock_clock.jump(99)
        await wait_all_tasks_blocked()
        assert not watch.expired
        mock_clock.jump(1)
        assert await expires(watch) == ("silence", 300)
