"""What is measured of timers: connections of all kinds that are held at once, each silent or busy in its own way.

Pure: which cells there are, and when enough is known. Times are seconds on the wire; ``Plan.speed`` says how many
seconds of the timers that are looked for one of these is.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from statistics import median
from typing import NamedTuple

import msgspec

from tricast.wire.probe import LONGEST_HOLD, Record

TRANSPORTS = ("ws", "sse", "poll", "keepalive")
#: The other side of the way: connections that something keeps to the server, when their client has long left.
POOL = "pool"
_POOLED = 4
#: Each just above a timer that is known: 15, 30, 50, 55, 60, 90, 100, 120; 180, 230, 240, 300, 350, 400; 600 to 3600.
LADDER = (20.0, 35, 50, 57, 65, 95, 115, 130, 185, 235, 245, 305, 355, 365, 420, 610, 905, 1205, 1805, 3605)
#: For polls: just below and above the timers for a first byte; and as above, since what is dropped in silence shows in
#: nothing but an answer that does not come.
POLL_LADDER = (5.0, 20, 29, 35, 55, 65, 95, 110, 125, *(gap for gap in LADDER if gap > 130))
_MAX_COPIES = 3
_SHORT_BITE = 2.0


class Mode(StrEnum):
    """What happens on a connection while it is held."""

    IDLE = "I"  # nothing
    SERVER = "S"  # the server speaks
    CLIENT = "C"  # the client speaks
    BOTH = "B"
    KEEPALIVE = "K"  # only TCP's own keepalive
    PINGED = "P"  # as a server with its pings does, every 15 s
    RUNG = "R"  # nothing for a while, and then something that must arrive


_MODES = {
    "ws": (Mode.IDLE, Mode.SERVER, Mode.CLIENT, Mode.BOTH, Mode.KEEPALIVE, Mode.PINGED),
    "sse": (Mode.IDLE, Mode.SERVER, Mode.KEEPALIVE, Mode.PINGED),
    "poll": (Mode.IDLE,),
    "keepalive": (Mode.IDLE, Mode.KEEPALIVE),
}
#: Against a server that does not know what it is asked, only what a client can do alone.
_FOREIGN_MODES = {
    "ws": (Mode.IDLE, Mode.BOTH, Mode.KEEPALIVE, Mode.PINGED),
    "sse": (Mode.IDLE, Mode.KEEPALIVE),
    "keepalive": (Mode.IDLE, Mode.KEEPALIVE),
}


class Cell(NamedTuple):
    """One connection that is held.

    Attributes:
        transport: ``ws``, ``sse``, ``poll``, ``keepalive`` or ``pool``.
        mode: what happens on it.
        gap: for a rung, how long nothing does.
        copy: which of several that are the same.
        is_refining: whether it is a rung of the second round.
    """

    transport: str
    mode: Mode
    gap: float = 0.0
    copy: int = 0
    is_refining: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is held, for how long, and how often something is said. Times on the wire, in seconds.

    Attributes:
        horizon: how long.
        speed: by how much the timers of what is probed are sped up; results are multiplied by it.
        interval: between what is said to find out which direction counts. Below the shortest timer looked for.
        ping: between what a server says to keep a connection alive.
        patience: how long to wait for what must arrive at once.
        ladder: how long the rungs are silent.
        poll_ladder: after how long polls are answered.
        refined: rungs in the second round.
        copies: of the idle cells; of the others one less.
        transports: which.
        is_foreign: whether the server has no companion endpoints.
    """

    horizon: float
    speed: float
    interval: float
    ping: float
    patience: float
    ladder: tuple[float, ...]
    poll_ladder: tuple[float, ...]
    refined: int = 16
    copies: int = _MAX_COPIES
    transports: tuple[str, ...] = TRANSPORTS
    is_foreign: bool = False

    @property
    def shortest(self) -> float:
        """What ends sooner was refused, rather than ended by a timer."""
        return _SHORT_BITE / self.speed

    @property
    def hold(self) -> float:
        """How long the server is asked to hold what it is to end in no case."""
        return min(self.horizon * 3 + 60, LONGEST_HOLD)

    def cells(self) -> list[Cell]:
        """All that is held from the start."""
        modes = _FOREIGN_MODES if self.is_foreign else _MODES
        found = [
            Cell(transport, mode, copy=copy)
            for transport in self.transports
            for mode in modes.get(transport, ())
            for copy in range(self.copies if mode is Mode.IDLE else max(1, self.copies - 1))
        ]
        for transport in self.transports:
            if transport in modes and not (self.is_foreign and transport == "sse"):
                ladder = self.poll_ladder if transport == "poll" else self.ladder
                found += [Cell(transport, Mode.RUNG, gap=gap) for gap in ladder]
        return found if self.is_foreign else [*found, *(Cell(POOL, Mode.IDLE, copy=copy) for copy in range(_POOLED))]

    def finer(self, transport: str, low: float, high: float) -> list[Cell]:
        """Rungs of a second round, within where a silent timer lies."""
        step = (high - low) / (self.refined + 1)
        return [
            Cell(transport, Mode.RUNG, gap=low + step * number, is_refining=True)
            for number in range(1, self.refined + 1)
        ]


def plan_of(
    horizon: float = 130.0,
    *,
    speed: float = 1.0,
    transports: Sequence[str] = TRANSPORTS,
    is_foreign: bool = False,
    copies: int = _MAX_COPIES,
) -> Plan:
    """A plan that finds all timers up to a little less than the horizon.

    Args:
        horizon: in seconds of the timers that are looked for.
        speed: by how much these are sped up.
        transports: which.
        is_foreign: whether the server has no companion endpoints.
        copies: of the idle cells.
    """
    return Plan(
        horizon=horizon / speed,
        speed=speed,
        interval=5.0 / speed,
        ping=15.0 / speed,
        # A round trip does not get faster with the timers, and HAProxy may hold an event for 200 ms.
        patience=max(5.0 / speed, 1.5),
        ladder=tuple(gap / speed for gap in LADDER if gap <= horizon),
        poll_ladder=tuple(gap / speed for gap in POLL_LADDER if gap <= horizon),
        transports=tuple(transports),
        is_foreign=is_foreign,
        copies=copies,
    )


class State(StrEnum):
    """What has become of a cell."""

    OPEN = "open"  # not ended so far
    CUT = "cut"  # somebody ended it
    LOST = "lost"  # nobody ended it, but what must arrive does not
    ANSWERED = "answered"  # a rung that held
    HALF = "half"  # the server's end is over, this one is open
    REFUSED = "refused"  # it never was what it should be
    DROPPED = "dropped"  # nothing more was to be learnt from it


class Outcome(msgspec.Struct, kw_only=True):
    """What has become of one cell.

    Attributes:
        cell: which.
        nonce: what the server calls it.
        began: ``trio.current_time()`` of its request; 0 before.
        state: what has become of it.
        age: seconds from its request to its end, or until it was last looked at.
        quiet: seconds of silence before that.
        silence: the longest that it has lived through.
        how: see ``link.End``; empty where nothing was seen.
        code: the close code or the status.
        why: in words, where it was refused.
        page: who says to be the author of an answer: its Server and Via headers.
        received_bytes: what came behind the head.
        seen: what the server saw of it.
        calls: how often the request came to the server.
    """

    cell: Cell
    nonce: str = ""
    began: float = 0.0
    state: State = State.OPEN
    age: float = 0.0
    quiet: float = 0.0
    silence: float = 0.0
    how: str = ""
    code: int | None = None
    why: str = ""
    page: str = ""
    received_bytes: int = 0
    seen: Record | None = None
    calls: int = 0


def of(outcomes: Iterable[Outcome], transport: str, *modes: Mode) -> list[Outcome]:
    """The outcomes of one transport, in these modes or in all."""
    return [o for o in outcomes if o.cell.transport == transport and (not modes or o.cell.mode in modes)]


def cut_after(outcomes: Iterable[Outcome], transport: str) -> float | None:
    """After how long idle connections are cut for all to see, by what is known so far."""
    idle = of(outcomes, transport, Mode.IDLE)
    ended = [outcome.age for outcome in idle if outcome.state in (State.CUT, State.HALF)]
    return median(ended) if ended else None


def bracket(outcomes: Iterable[Outcome], transport: str, *, is_refined: bool = False) -> tuple[float, float] | None:
    """Between which silences connections stop to work without being cut, by what is known so far.

    Args:
        outcomes: of all cells.
        transport: which.
        is_refined: whether the second round counts, too.
    """
    rungs = [o for o in of(outcomes, transport, Mode.RUNG) if is_refined or not o.cell.is_refining]
    lost = [rung.cell.gap for rung in rungs if rung.state is State.LOST]
    if not lost:
        return None
    high = min(lost)
    return max((r.cell.gap for r in rungs if r.state is State.ANSWERED and r.cell.gap < high), default=0.0), high


def is_outdated(outcome: Outcome) -> bool:
    """Whether what the server saw was asked for before the end here, and not again: it may have seen that as well."""
    seen = outcome.seen
    is_over = outcome.state in (State.CUT, State.LOST)
    return is_over and seen is not None and seen.end is None and seen.age < outcome.age


def is_decided(outcomes: Sequence[Outcome], transport: str, plan: Plan) -> bool:
    """Whether holding on tells nothing more about this transport."""
    found = of(outcomes, transport)
    if all(outcome.state is not State.OPEN for outcome in found):
        return True
    idle = of(found, transport, Mode.IDLE)
    if idle and all(outcome.state is State.REFUSED for outcome in idle):
        return True
    after = cut_after(found, transport)
    if after is None or any(outcome.state is State.OPEN for outcome in idle):
        silent = bracket(found, transport)
        if silent is None:
            return False
        # The second round tells when; what is pinged must have outlived it.
        refining = [o for o in found if o.cell.is_refining]
        if not refining or any(o.state is State.OPEN for o in refining):
            return False
        after = silent[1]
    return all(
        outcome.state is not State.OPEN or outcome.age >= after + 2 * _interval(outcome.cell.mode, plan)
        for outcome in found
        if outcome.cell.mode not in (Mode.IDLE, Mode.RUNG)
    )


def _interval(mode: Mode, plan: Plan) -> float:
    return plan.ping if mode is Mode.PINGED else plan.interval


def pointless(outcomes: Sequence[Outcome], transport: str) -> list[Outcome]:
    """The rungs that tell nothing more: where idle connections are cut for all to see, or a shorter silence is lost."""
    silent = bracket(outcomes, transport)
    idle = of(outcomes, transport, Mode.IDLE)
    all_cut = bool(idle) and all(o.state is not State.OPEN for o in idle)
    return [
        rung
        for rung in of(outcomes, transport, Mode.RUNG)
        if rung.state is State.OPEN
        and not rung.cell.is_refining
        # Polls are answered: a longer one is another question only as long as none was cut.
        and (all_cut or (silent is not None and rung.cell.gap > silent[1]))
    ]
