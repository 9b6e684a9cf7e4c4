"""How far back a partition is read for those who come back. Without I/O."""

from collections import deque

#: Into so many steps the age up to which events are kept is divided.
_STEPS = 1000


class Bounds:
    """Where the history of a partition begins: so many records, and so much time, before its end.

    Args:
        begin: the offset of the first record that was read.
        length: how many records.
        age: how many seconds.
    """

    def __init__(self, begin: int, *, length: int, age: float) -> None:
        self._begin = begin
        self._length = length
        self._age_ms = int(age * 1000)
        self._step_ms = self._age_ms // _STEPS + 1
        #: Times, and the offsets of the first records that are as young, or younger by less than a step.
        self._steps: deque[tuple[int, int]] = deque()

    def note(self, offset: int, ms: int) -> None:
        """Takes the next record. Where a record's time lies before another one's, the later time holds for both."""
        if not self._steps or ms >= self._steps[-1][0] + self._step_ms:
            self._steps.append((ms, offset))

    def start(self, end: int, now_ms: int) -> int:
        """The offset of the first record that belongs to it; it never goes back.

        Args:
            end: the offset behind the last record.
            now_ms: the time.
        """
        self._begin = max(self._begin, end - self._length)
        oldest_ms = now_ms - self._age_ms
        while self._steps and self._steps[0][0] + self._step_ms <= oldest_ms:
            self._steps.popleft()
            self._begin = max(self._begin, self._steps[0][1] if self._steps else end)
        return self._begin
