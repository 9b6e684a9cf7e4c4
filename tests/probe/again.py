"""What is measured again where it is not as expected: a machine may be too busy for what is measured at once.

What is late for want of a processor is late by chance; what is wrong stays wrong, however slowly it is measured, and
with nothing beside it.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio
from clocks import HANG_SECONDS

Name = TypeVar("Name")

#: How much slower the rounds are than the first, and how many of those that are left are measured at a time.
ROUNDS = ((1.0, 1000), (1.5, 4), (2.0, 2), (2.0, 1), (3.0, 1), (4.0, 1))

#: Seconds that all rounds may take.
WITHIN = 4 * HANG_SECONDS


async def until_right(
    names: Iterable[Name],
    measure: Callable[[Name, float], Awaitable[None]],
    check: Callable[[Name], None],
    *,
    stagger: float = 0.0,
) -> None:
    """Measures all, then once more what is not as expected, and so on.

    Args:
        names: what there is to measure.
        measure: measures one, so much more slowly than the first time.
        check: raises AssertionError, KeyError or ValueError where what was found is not as expected.
        stagger: seconds from the beginning of one to that of the next.

    Raises:
        AssertionError: with what is wrong of each that never was as expected.
    """
    left, wrong = list(names), ""
    for slower, at_once in ROUNDS:
        limiter = trio.CapacityLimiter(at_once)

        async def one(name: Name, slower: float = slower, limiter: trio.CapacityLimiter = limiter) -> None:
            async with limiter:
                await measure(name, slower)

        async with trio.open_nursery() as nursery:
            for name in left:
                nursery.start_soon(one, name)
                await trio.sleep(stagger)
        faults = {name: fault for name in left if (fault := _fault(check, name))}
        left, wrong = list(faults), "\n".join(f"{name}: {fault}" for name, fault in faults.items())
        if not left:
            return
        print(f"{slower:g} x slower, {at_once} at a time, wrong:\n{wrong}")
    raise AssertionError(wrong)


def _fault(check: Callable[[Name], None], name: Name) -> str:
    try:
        check(name)
    except (AssertionError, KeyError, ValueError) as error:  # of findings that tell less than they should
        return repr(error)
    return ""
