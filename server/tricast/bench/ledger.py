"""What one subscriber has got: the proof that nothing is missing, came twice, or came late.

Knows numbers, and neither bytes nor time.
"""

from collections.abc import Sequence

from tricast.bench.blocks import Announced, Block, Numbers
from tricast.bench.tally import Tally


class Ledger:
    """The numbers that one subscriber has got of each publisher.

    Attributes:
        awaited: for each publisher, the number that has to come next.
        measured_from: for each publisher, the first number that counts: what is wrong with those before is not told.
    """

    __slots__ = ("_excused", "_holes", "awaited", "measured_from")

    def __init__(self, publishers: int) -> None:
        self.awaited = [0] * publishers
        self.measured_from: Sequence[int] = self.awaited[:]
        self._holes: list[Numbers] = []
        self._excused: set[int] = set()

    def enter(self, block: Block, tally: Tally) -> None:
        """Takes what a block holds; what is wrong with it is counted in the tally."""
        only = block.only
        # Almost every block, so it does without a call.
        if only is not None and not self._excused and self.awaited[only.publisher] == only.first:
            self.awaited[only.publisher] = only.stop
            return
        for part in block.parts:
            if isinstance(part, Announced):
                tally.gaps[part.reason] = tally.gaps.get(part.reason, 0) + 1
                self._excused.update(range(len(self.awaited)))
            else:
                self._enter(part, tally)

    def _enter(self, numbers: Numbers, tally: Tally) -> None:
        publisher, first, stop = numbers
        awaited = self.awaited[publisher]
        if first > awaited:
            if publisher in self._excused:
                tally.missed += self._measured(publisher, awaited, first)
            else:
                self._holes.append(Numbers(publisher, awaited, first))
        elif first < awaited:
            self._enter_again(Numbers(publisher, first, min(stop, awaited)), tally)
        # An announced gap lies before the next event of each publisher, or there was none of his in it.
        self._excused.discard(publisher)
        self.awaited[publisher] = max(stop, awaited)

    def _enter_again(self, numbers: Numbers, tally: Tally) -> None:
        """Numbers that should have come before: they fill holes, and else they came twice."""
        publisher, first, stop = numbers
        late = 0
        left: list[Numbers] = []
        for hole in self._holes:
            begin, end = max(first, hole.first), min(stop, hole.stop)
            if hole.publisher != publisher or begin >= end:
                left.append(hole)
                continue
            late += self._measured(publisher, begin, end)
            around = (Numbers(publisher, hole.first, begin), Numbers(publisher, end, hole.stop))
            left += [rest for rest in around if rest.first < rest.stop]
        self._holes = left
        tally.out_of_order += late
        tally.duplicates += self._measured(publisher, first, stop) - late

    def missing(self, published: Sequence[int]) -> int:
        """How many have not come yet, and were not announced to be missing.

        Args:
            published: how many each publisher has published to this subscriber's topic.
        """
        return self._in_holes() + sum(
            self._measured(publisher, awaited, count)
            for publisher, (count, awaited) in enumerate(zip(published, self.awaited, strict=True))
            if publisher not in self._excused
        )

    def close(self, published: Sequence[int], tally: Tally) -> None:
        """Counts what has not come as lost, or as missed when that was announced."""
        tally.lost += self.missing(published)
        tally.missed += sum(
            self._measured(publisher, self.awaited[publisher], published[publisher]) for publisher in self._excused
        )

    def _in_holes(self) -> int:
        return sum(self._measured(*hole) for hole in self._holes)

    def _measured(self, publisher: int, first: int, stop: int) -> int:
        """How many of these numbers count."""
        return max(0, stop - max(first, self.measured_from[publisher]))
