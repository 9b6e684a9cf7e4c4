"""The cycle collector: what is young is looked at so often that it never takes long."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tricast.garbage import AIM_SECONDS, LONGEST_PAUSE, SHORTEST_PAUSE, calm_collector, collect_young, next_pause


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def _calm() -> Iterator[None]:
    """The collector as the program has it, but that it never begins by itself."""
    thresholds = gc.get_threshold()
    calm_collector()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("_calm")
async def test_what_is_young_is_collected() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_young)
        for _ in range(3):
            cycle = weakref.ref(Cycle())
            while cycle() is not None:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


def test_the_pause_follows_what_a_look_takes() -> None:
    assert next_pause(0.04, AIM_SECONDS) == 0.04
    assert next_pause(0.04, AIM_SECONDS / 1.6) == pytest.approx(0.064)
    assert next_pause(0.04, 1.6 * AIM_SECONDS) == pytest.approx(0.025)
    # One look that was held up, or that found nothing at all, does not change everything.
    assert next_pause(0.04, 1.0) == 0.02
    assert next_pause(0.04, 0.0) == 0.08


@given(
    pause=st.floats(SHORTEST_PAUSE, LONGEST_PAUSE), took=st.lists(st.floats(0, 10, allow_subnormal=False), max_size=20)
)
def test_it_stays_within_its_bounds(pause: float, took: list[float]) -> None:
    for seconds in took:
        pause = next_pause(pause, seconds)
        assert SHORTEST_PAUSE <= pause <= LONGEST_PAUSE


def test_it_finds_its_way_back() -> None:
    pause = LONGEST_PAUSE
    for took, end in ((1.0, SHORTEST_PAUSE), (0.0, LONGEST_PAUSE)):
        for _ in range(10):
            pause = next_pause(pause, took)
        assert pause == end
