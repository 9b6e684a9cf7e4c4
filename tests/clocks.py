"""Clocks that tests set, and how long real time may be waited for."""

from trio.testing import MockClock, wait_all_tasks_blocked

#: After so long what a test waits for is taken never to come. No machine is that slow: only a test that fails waits so.
HANG_SECONDS = 300.0


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def jump(clock: MockClock, seconds: float) -> None:
    """Puts the test's ``running_clock`` forward, when there is nothing else to do.

    More than ``HANG_SECONDS`` in all would be taken for a test that hangs.
    """
    await wait_all_tasks_blocked()
    clock.jump(seconds)
