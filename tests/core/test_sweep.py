"""The wheel: never early, at most a tick late, and indifferent to what is taken off it meanwhile."""

import os
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tricast.hub import Hub
from tricast.server import _Bell, _flush_forever
from tricast.sweep import LONGEST_SHARE_SECONDS, Turnstile, Wheel, share_out


class Item:
    """Remembers when it was looked at."""

    def __init__(self, name: str = "item", then: Callable[[float], float | None] = lambda now: None) -> None:
        self.slot = -1
        self.name = name
        self.seen: list[float] = []
        self._then = then

    def sweep(self, now: float) -> float | None:
        self.seen.append(now)
        return self._then(now)


def test_an_item_is_looked_at_behind_its_deadline_and_once() -> None:
    wheel, item = Wheel(tick=0.5), Item()
    wheel.add(item, 10.2)
    for now in (0.0, 9.9, 10.1, 10.4):
        list(wheel.turn(now))
        assert item.seen == []
        assert len(wheel) == 1
    list(wheel.turn(10.5))
    assert item.seen == [10.5]
    assert wheel.now == 10.5
    list(wheel.turn(20.0))
    assert item.seen == [10.5]
    assert (len(wheel), item.slot) == (0, -1)


def test_a_deadline_that_has_passed_is_met_at_the_next_turn() -> None:
    wheel, item = Wheel(tick=0.5), Item()
    list(wheel.turn(10.0))
    wheel.add(item, 3.0)
    list(wheel.turn(10.4))
    assert item.seen == []
    list(wheel.turn(10.5))
    assert item.seen == [10.5]


def test_an_item_is_looked_at_again_when_it_says_so() -> None:
    wheel, item = Wheel(tick=0.5), Item(then=lambda now: now + 2)
    wheel.add(item, 0.0)
    for now in range(10):
        list(wheel.turn(float(now)))
    assert item.seen == [1.0, 4.0, 7.0]


def test_an_item_that_says_now_waits_for_the_next_turn() -> None:
    wheel, item = Wheel(tick=0.5), Item(then=lambda now: now - 100)
    wheel.add(item, 0.0)
    list(wheel.turn(0.5))
    assert item.seen == [0.5]
    list(wheel.turn(1.0))
    assert item.seen == [0.5, 1.0]


def test_adding_again_moves() -> None:
    wheel, item = Wheel(tick=0.5), Item()
    wheel.add(item, 1.0)
    wheel.add(item, 5.0)
    assert len(wheel) == 1
    list(wheel.turn(4.0))
    assert item.seen == []
    list(wheel.turn(6.0))
    assert item.seen == [6.0]


def test_discarding() -> None:
    wheel, item, other = Wheel(tick=0.5), Item(), Item()
    wheel.discard(item)
    wheel.add(item, 1.0)
    wheel.add(other, 1.0)
    wheel.discard(item)
    wheel.discard(item)
    list(wheel.turn(2.0))
    assert (item.seen, other.seen) == ([], [2.0])
    wheel.add(item, 3.0)
    wheel.discard(item)
    assert len(wheel) == 0


def test_an_item_that_takes_all_others_off() -> None:
    wheel = Wheel(tick=0.5)
    items: list[Item] = []

    def discard_all(now: float) -> float:
        for item in items:
            wheel.discard(item)
        return now + 1

    items += [Item(str(n), discard_all) for n in range(10)]
    for item in items:
        wheel.add(item, 1.0)
    list(wheel.turn(2.0))
    assert sum(len(item.seen) for item in items) == 1
    assert len(wheel) == 1, "what was looked at is on again, and nothing else"


def test_an_item_that_puts_others_on() -> None:
    wheel, other = Wheel(tick=0.5), Item()
    item = Item(then=lambda now: wheel.add(other, now))
    wheel.add(item, 1.0)
    list(wheel.turn(2.0))
    assert other.seen == []
    list(wheel.turn(2.5))
    assert other.seen == [2.5]


@pytest.mark.parametrize("tick", [0.1, 0.25, 0.005, 0.0125, 1 / 3])
async def test_running_sleeps_from_tick_to_tick(tick: float, autojump_clock: trio.testing.MockClock) -> None:
    # Multiples of most of these are rounded, and a wheel that turns in vain would never let this clock jump.
    wheel, item = Wheel(tick=tick), Item(then=lambda now: now)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        await trio.lowlevel.checkpoint()
        wheel.add(item, trio.current_time())
        await trio.sleep(100 * tick)
        nursery.cancel_scope.cancel()
    assert 48 <= len(item.seen) <= 101
    assert item.seen == sorted(set(item.seen))


@settings(deadline=None, max_examples=100, derandomize="CI" in os.environ)
@given(
    tick=st.sampled_from([0.1, 0.25, 0.005, 0.0125, 0.3]),
    steps=st.lists(
        st.tuples(
            st.floats(0, 1, allow_subnormal=False),
            st.floats(-1, 3, allow_subnormal=False),
            st.sampled_from(["leave", "move", "discard"]),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_never_early_and_at_most_a_tick_late(tick: float, steps: list[tuple[float, float, str]]) -> None:
    trio.run(_turn_and_look, tick, steps, clock=trio.testing.MockClock(autojump_threshold=0))


async def _turn_and_look(tick: float, steps: list[tuple[float, float, str]]) -> None:
    wheel = Wheel(tick=tick)
    #: item, when it was added, its deadline
    due: list[tuple[Item, float, float]] = []
    gone: list[Item] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        await trio.lowlevel.checkpoint()
        for pause, distance, then in steps:
            await trio.sleep(pause)
            now = trio.current_time()
            item = Item(then=lambda _: None)
            wheel.add(item, now + distance)
            if then == "move":
                distance += 1  # noqa: PLW2901
                wheel.add(item, now + distance)
            if then == "discard":
                wheel.discard(item)
                gone.append(item)
            else:
                due.append((item, now, now + distance))
        await trio.sleep(6)
        nursery.cancel_scope.cancel()
    assert len(wheel) == 0
    assert not any(item.seen for item in gone)
    for item, added, deadline in due:
        (seen,) = item.seen
        assert seen > deadline
        assert seen <= max(deadline, added) + tick * 1.000001


# Many at once


@pytest.fixture
def three_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.sweep.ITEMS_PER_TURN", 3)
    monkeypatch.setattr("tricast.sweep.ENDED_WEIGHT", 1)


def wheel_of(items: list[Item], deadline: float = 1.0) -> Wheel:
    wheel = Wheel(tick=0.5)
    for item in items:
        wheel.add(item, deadline)
    return wheel


@pytest.mark.parametrize(("count", "turns"), [(0, 0), (1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (10, 3)])
def test_others_get_a_turn_after_so_many_items(three_a_turn: None, count: int, turns: int) -> None:
    items = [Item() for _ in range(count)]
    wheel = wheel_of(items)
    seen = [sum(len(item.seen) for item in items) for _ in wheel.turn(2.0)]
    assert seen == [3 * (n + 1) for n in range(turns)]
    assert all(item.seen == [2.0] for item in items)
    assert len(wheel) == 0


def test_items_that_end_count_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.sweep.ITEMS_PER_TURN", 6)
    monkeypatch.setattr("tricast.sweep.ENDED_WEIGHT", 3)

    def seen_by_turns(items: list[Item]) -> list[int]:
        return [sum(len(item.seen) for item in items) for _ in wheel_of(items).turn(2.0)]

    assert seen_by_turns([Item() for _ in range(7)]) == [2, 4, 6]
    assert seen_by_turns([Item(then=lambda now: now + 9) for _ in range(13)]) == [6, 12]


def test_items_of_several_slots_are_counted_together(three_a_turn: None) -> None:
    items = [Item() for _ in range(7)]
    wheel = Wheel(tick=0.5)
    for n, item in enumerate(items):
        wheel.add(item, n / 2)
    seen = [[len(item.seen) for item in items] for _ in wheel.turn(10.0)]
    assert seen == [[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]
    assert items[-1].seen == [10.0]


def test_what_is_taken_off_between_two_turns_is_not_looked_at(three_a_turn: None) -> None:
    items = [Item(then=lambda now: now + 5) for _ in range(10)]
    wheel = wheel_of(items)
    turn = wheel.turn(2.0)
    next(turn)
    waiting = [item for item in items if not item.seen]
    gone, again = waiting[:3], next(item for item in items if item.seen)
    for item in (*gone, again):
        wheel.discard(item)
    list(turn)
    assert sum(len(item.seen) for item in items) == 7
    assert not any(item.seen for item in gone)
    assert len(wheel) == 6
    list(wheel.turn(10.0))
    assert again.seen == [2.0]
    assert all(item.seen == [2.0, 10.0] for item in items if item is not again and item not in gone)


def test_taking_off_all_that_wait_between_two_turns(three_a_turn: None) -> None:
    items = [Item() for _ in range(10)]
    wheel = wheel_of(items)
    for _ in wheel.turn(2.0):
        for item in items:
            wheel.discard(item)
    assert sum(len(item.seen) for item in items) == 3
    assert len(wheel) == 0


@pytest.mark.parametrize("deadline", [0.0, 1.0, 1.9, 2.0, 7.0])
def test_what_is_put_on_between_two_turns_is_looked_at_in_its_time_and_once(
    three_a_turn: None, deadline: float
) -> None:
    wheel = wheel_of([Item() for _ in range(4)])
    new = Item()
    turn = wheel.turn(2.2)
    next(turn)
    wheel.add(new, deadline)
    list(turn)
    assert new.seen in ([], [2.2])
    assert not (new.seen and deadline > 2.2)
    list(wheel.turn(2.5))
    assert len(new.seen) == (deadline < 2.5)
    list(wheel.turn(8.0))
    assert len(new.seen) == 1
    assert len(wheel) == 0


def test_what_is_moved_between_two_turns_is_looked_at_at_its_new_time(three_a_turn: None) -> None:
    items = [Item() for _ in range(4)]
    wheel = wheel_of(items)
    turn = wheel.turn(2.0)
    next(turn)
    (last,) = [item for item in items if not item.seen]
    wheel.add(last, 5.0)
    list(turn)
    assert last.seen == []
    list(wheel.turn(5.5))
    assert last.seen == [5.5]


async def test_running_gives_others_a_turn(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr("tricast.sweep.ITEMS_PER_TURN", 1)
    order: list[str] = []
    begun = trio.Event()

    def sweep(now: float) -> None:
        order.append("item")
        begun.set()

    async def other() -> None:
        await begun.wait()
        while order.count("item") < 20:
            order.append("other")
            await trio.lowlevel.checkpoint()

    wheel = Wheel(tick=0.5)
    for _ in range(20):
        wheel.add(Item(then=sweep), 1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        nursery.start_soon(other)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert order.count("item") == 20
    # Both run once in each of the scheduler's rounds, in any order.
    assert "item item item" not in " ".join(order)


# A turnstile


async def test_a_turnstile_lets_a_few_through_at_a_time_in_their_order() -> None:
    turnstile, passed = Turnstile(per_turn=3), []

    async def come(number: int) -> None:
        await turnstile.pass_through()
        passed.append(number)

    async with trio.open_nursery() as background:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(come, number)
                await trio.testing.wait_all_tasks_blocked()
            assert passed == [0, 1, 2]  # who finds nobody waiting
            background.start_soon(turnstile.run)
            seen = []
            while len(passed) < 8:
                await trio.lowlevel.checkpoint()
                seen.append(len(passed))
        assert sorted(passed) == list(range(8))
        assert (
            max(after - before for before, after in pairwise([0, *seen])) <= 6
        )  # who looks may look before one turn and behind the next
        assert [set(passed[:3]), set(passed[3:6]), set(passed[6:])] == [{0, 1, 2}, {3, 4, 5}, {6, 7}]
        # It is there for those who come later as well.
        for number in range(8, 10):
            await come(number)
        assert passed[8:] == [8, 9]
        background.cancel_scope.cancel()


async def test_who_is_cancelled_leaves_the_queue() -> None:
    turnstile = Turnstile(per_turn=1)
    async with trio.open_nursery() as background:
        with trio.CancelScope() as scope:
            scope.cancel()
            await turnstile.pass_through()
        assert scope.cancelled_caught
        background.start_soon(turnstile.run)
        await turnstile.pass_through()
        background.cancel_scope.cancel()


# Work that takes many turns


@pytest.mark.parametrize("others_ms", [0, 1, 5, 8])
async def test_work_gets_as_much_of_the_time_as_all_others(mock_clock: trio.testing.MockClock, others_ms: int) -> None:
    turns = 0

    def work() -> Iterator[None]:
        for _ in range(50):
            mock_clock.jump(0.003)
            yield

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            mock_clock.jump(others_ms / 1000)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await share_out(work(), trio.current_time())
        nursery.cancel_scope.cancel()
    theirs = turns * others_ms / 1000
    assert theirs <= 50 * 0.003 + 3 * others_ms / 1000
    # Nor does it take much more. Trio may give one of two tasks two turns in a row.
    assert theirs + (2 * turns + 2) * 0.003 >= 50 * 0.003


async def test_work_stops_for_others_however_long_they_take(mock_clock: trio.testing.MockClock) -> None:
    done: list[int] = [0]

    def work() -> Iterator[None]:
        for _ in range(50):
            mock_clock.jump(0.003)
            done[-1] += 1
            yield

    async def others() -> None:
        while True:
            done.append(0)
            mock_clock.jump(1)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await share_out(work(), trio.current_time())
        nursery.cancel_scope.cancel()
    assert sum(done) == 50
    assert max(done) <= 2 * (LONGEST_SHARE_SECONDS / 0.003 + 1)


async def test_work_that_waited_for_long_begins_with_more(mock_clock: trio.testing.MockClock) -> None:
    done: list[int] = []

    def work() -> Iterator[None]:
        for number in range(10):
            mock_clock.jump(0.003)
            done.append(number)
            yield

    async with trio.open_nursery() as nursery:
        mock_clock.jump(0.01)
        nursery.start_soon(share_out, work(), 0.0)
        while not done:
            await trio.lowlevel.checkpoint()
        assert len(done) >= 4
    assert len(done) == 10


async def test_the_time_of_one_flush_is_not_that_of_others_for_the_next(mock_clock: trio.testing.MockClock) -> None:
    done: list[int] = [0]
    bell = _Bell()

    class Busy(Hub):
        def __init__(self) -> None:
            self.flushes = 0

        def flush(self) -> Iterator[None]:
            self.flushes += 1
            for _ in range(10):
                bell.ring()  # somebody publishes all the time
                mock_clock.jump(0.003)
                done[-1] += 1
                yield

    hub = Busy()
    bell.ring()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_flush_forever, hub, bell)
        while hub.flushes < 5:
            done.append(0)
            mock_clock.jump(0.001)
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert max(done) <= 2  # Trio may give one of two tasks two turns in a row
