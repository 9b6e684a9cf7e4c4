"""What goes wrong in a round, and when: drawn from a seed, and nothing else."""

import random
from collections.abc import Sequence
from typing import NamedTuple

#: Seconds from one fault to the next, on average; they may overlap.
PERIOD = 1.5
#: Seconds without a fault at the start, and between two faults of one thing.
_WARM_UP = 2.0
_REST = 0.7


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
        what: its name.
        lane: the things that it can happen to, of which each has one fault at a time: "server", "log" or "relay".
        targets: how many of them there are.
        weight: how often it happens, to that of others.
        shortest: how long it lasts, in seconds.
        longest: the same.
        is_for_all: whether it happens to all of them at once.
    """

    what: str
    lane: str
    targets: int
    weight: float
    shortest: float
    longest: float
    is_for_all: bool = False


class Fault(NamedTuple):
    """Something that goes wrong.

    Attributes:
        at: seconds from the start.
        seconds: after which it is mended.
        what: see ``Kind``.
        lane: see ``Kind``.
        targets: the numbers of those to whom it happens.
    """

    at: float
    seconds: float
    what: str
    lane: str
    targets: tuple[int, ...]

    def __str__(self) -> str:
        whom = " ".join(map(str, self.targets))
        return f"{self.at:7.2f} s for {self.seconds:5.2f} s: {self.what} {self.lane} {whom}"


def plan_of(seed: int, seconds: float, kinds: Sequence[Kind], *, period: float = PERIOD) -> list[Fault]:
    """The faults of a round, in the order in which they begin; a shorter one begins like a longer one.

    Args:
        seed: the same makes the same.
        seconds: in which they all begin and end.
        kinds: what can happen.
        period: seconds from one fault to the next, on average, as far as there is a thing without one.
    """
    numbers = random.Random(seed)
    weights = [kind.weight for kind in kinds]
    free_at: dict[tuple[str, int], float] = {}
    faults = []
    at = _WARM_UP
    while at < seconds - 1:
        (kind,) = numbers.choices(kinds, weights)
        lasts = numbers.uniform(kind.shortest, kind.longest)
        target = numbers.randrange(kind.targets)
        targets = tuple(range(kind.targets)) if kind.is_for_all else (target,)
        lanes = [(kind.lane, each) for each in targets]
        if all(free_at.get(lane, 0.0) <= at for lane in lanes):
            faults.append(Fault(round(at, 2), round(min(lasts, seconds - at), 2), kind.what, kind.lane, targets))
            free_at.update(dict.fromkeys(lanes, at + lasts + _REST))
        at += numbers.expovariate(1 / period)
    return faults
