"""What a stretch of a stream holds: which numbers of whose events, when these were due, and which gaps.

The same bytes go to all subscribers of a topic. So what they hold is found out once, and looked up for the others:
that is what lets one process receive far more than it could parse. Knows the data of events, and no transport.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

Value = TypeVar("Value")


class Numbers(NamedTuple):
    """Events of one publisher, numbered without a hole.

    Attributes:
        publisher: whose.
        first: the number of the first.
        stop: the number behind the last.
    """

    publisher: int
    first: int
    stop: int


class Announced(NamedTuple):
    """A gap that the server has announced: from here on, events may be missing.

    Attributes:
        reason: the server's word for why.
    """

    reason: str


Part = Numbers | Announced


class Block:
    """A stretch of a stream with whole events only.

    Attributes:
        parts: what it holds, in order; the events of one publisher are in order, and those of several are not.
        only: the one part, when that is all and it is no gap.
        events: how many events these are.
        due: when those that are measured were due, in nanoseconds of the monotonic clock.
        last_id: the position behind it, or nothing when it does not say.
    """

    __slots__ = ("due", "events", "last_id", "only", "parts")

    def __init__(self, parts: Iterable[Part], due: Iterable[int], last_id: bytes = b"") -> None:
        self.parts = tuple(parts)
        first = self.parts[0] if len(self.parts) == 1 else None
        self.only = first if isinstance(first, Numbers) else None
        self.events = sum(part.stop - part.first for part in self.parts if isinstance(part, Numbers))
        self.due = tuple(due)
        self.last_id = last_id


class BlockReader:
    """Finds the events of one run.

    Args:
        run: the run's name.
        publishers: how many publish.

    Attributes:
        measured_from: events that were due before are not measured.
    """

    def __init__(self, run: str, publishers: int) -> None:
        self.measured_from = 0
        known = b"|".join(b"%d" % publisher for publisher in range(publishers))
        # Data is passed on verbatim on every transport, and so is the text of a gap; neither holds what the other has.
        self._found = re.compile(
            rb'"bench":"%b-(%b)","n":([0-9]{1,18}),"at":([0-9]{1,18}),|"reason":"([a-z_]{1,40})","after":"'
            % (run.encode(), known)
        )

    def read(self, text: bytes, last_id: bytes = b"") -> Block:
        """What the text holds.

        Args:
            text: whole events, in any of the wire forms.
            last_id: the position behind it.
        """
        found = self._found.findall(text)
        due = [int(at) for _, _, at, reason in found if not reason]
        measured = [at for at in due if at >= self.measured_from]
        return Block(_joined(found), measured, last_id)


def _joined(found: Iterable[tuple[bytes, bytes, bytes, bytes]]) -> Iterator[Part]:
    """Numbers that follow each other become one part; a gap stays between those before and those behind it."""
    open_runs: dict[int, list[int]] = {}
    for publisher, number, _, reason in found:
        if reason:
            yield from _ended(open_runs)
            open_runs = {}
            yield Announced(reason.decode())
            continue
        whose, n = int(publisher), int(number)
        run = open_runs.get(whose)
        if run is not None and run[1] == n:
            run[1] = n + 1
            continue
        if run is not None:
            yield Numbers(whose, *run)
        open_runs[whose] = [n, n + 1]
    yield from _ended(open_runs)


def _ended(runs: dict[int, list[int]]) -> Iterator[Numbers]:
    return (Numbers(publisher, first, stop) for publisher, (first, stop) in runs.items())


class Memo(Generic[Value]):
    """What bytes were found to mean, for as long as they are likely to come again.

    Args:
        most_bytes: of keys; when there are more, all is forgotten.
    """

    def __init__(self, most_bytes: int = 8 * 2**20) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._known: dict[bytes, Value] = {}
        #: What these bytes mean, or None.
        self.get = self._known.get

    def put(self, data: bytes, value: Value) -> None:
        """Remembers it."""
        self._bytes += len(data) + 200  # about what an entry takes beside its key
        if self._bytes > self._most_bytes:
            self._known.clear()
            self._bytes = len(data)
        self._known[data] = value
