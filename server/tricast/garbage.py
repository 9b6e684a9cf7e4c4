"""The cycle collector, such that nobody waits for it for long.

A connection makes some fifty container objects and no cycles, and each time it waits for its peer a dozen more, in
the place of those of the last time. The collector looks at all of them for nothing.
"""

import gc

import trio

#: How long a look at the youngest is to take, in seconds: some thousand objects.
AIM_SECONDS = 0.0005
#: Between two such looks, in seconds.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.005, 0.1
#: By which factor the pause changes at most: one look may have been held up by other programs.
_STEP = 2.0


def calm_collector() -> None:
    """Keeps the collector from walking what lives as long as the process, again and again.

    The youngest are walked at these thresholds when ``collect_young`` is late. The oldest, which take long (a tenth
    of a second with 10,000 connections), have hardly anything to find.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000, 4, 100_000)


async def collect_young() -> None:
    """Collects what was made since the last time, often enough for that to be short, until cancelled.

    By itself the collector counts what is made less what is freed. Where each new object takes the place of an old one,
    as with connections that come and go and wait again and again, that hardly ever comes to its threshold; when it
    did, there were 60,000 young objects, and everybody waited for 50 ms.
    """
    pause = LONGEST_PAUSE
    while True:
        await trio.sleep(pause)
        began = trio.current_time()
        gc.collect(1)  # what it leaves is old, and not looked at again
        pause = next_pause(pause, trio.current_time() - began)


def next_pause(pause: float, took: float) -> float:
    """Returns the seconds to the next look: as many as it takes for one of ``AIM_SECONDS`` to be due.

    Args:
        pause: the seconds before this look.
        took: the seconds that it took.
    """
    factor = AIM_SECONDS / max(took, AIM_SECONDS / _STEP)
    return min(max(pause * max(factor, 1 / _STEP), SHORTEST_PAUSE), LONGEST_PAUSE)
