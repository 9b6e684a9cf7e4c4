"""The largest that passes: a ladder first, then halving the interval. Does no I/O."""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

#: What is asked next; the answer to ``send`` is whether that passed.
Search = Generator[int, bool, "Limit"]


class Limit(NamedTuple):
    """What is known of a limit.

    Attributes:
        passes: the largest that passed; 0 if nothing did.
        fails: the smallest that did not; None if everything passed.
    """

    passes: int
    fails: int | None


def search(ladder: Sequence[int], resolution: Callable[[int], int]) -> Search:
    """Looks for a limit.

    Args:
        ladder: sizes to begin with, the smallest first.
        resolution: how exact the limit has to be, for one that is about so large.
    """
    passes = 0
    for size in ladder:
        if not (yield size):
            break
        passes = size
    else:
        return Limit(passes, None)
    fails = size
    while fails - passes > max(1, resolution(fails)):
        middle = (passes + fails) // 2
        if (yield middle):
            passes = middle
        else:
            fails = middle
    return Limit(passes, fails)


def attributed(path: Limit, direct: Limit | None) -> bool:
    """Whether a limit is the path's, and not the server's own.

    Args:
        path: as found through the proxies.
        direct: as found at the server; None if that is not known.
    """
    if path.fails is None:
        return False
    return direct is None or direct.fails is None or path.fails < direct.passes
