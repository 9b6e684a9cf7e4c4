"""The idempotency keys that the records of a partition are marked with. Without I/O.

Every process reads the records in the same order, and the same of them count: those of the append that was first with
its key. What others with the same key have written is left out wherever it is read.
"""

from collections import OrderedDict

from tricast.event import EventId
from tricast.log.base import IdempotencyKey
from tricast.log.kafka_records import Mark


class Used:
    """The append that used a key.

    Attributes:
        fingerprint: of what it published.
        ms: when, in Unix time.
    """

    __slots__ = ("_count", "_ids", "attempt", "fingerprint", "ms")

    def __init__(self, mark: Mark, ms: int) -> None:
        self.fingerprint = mark.fingerprint
        self.attempt = mark.attempt
        self.ms = ms
        self._count = mark.count
        self._ids: dict[int, EventId] = {}

    def add(self, index: int, event_id: EventId) -> None:
        """Takes the id of one of its events."""
        self._ids[index] = event_id

    def has(self, index: int) -> bool:
        """Whether one of its events has been read."""
        return index in self._ids

    @property
    def ids(self) -> list[EventId] | None:
        """The ids of its events in this partition; None while they have not all been read."""
        if len(self._ids) < self._count:
            return None
        return [self._ids[index] for index in sorted(self._ids)]


class Keys:
    """The keys that were used in a partition, the oldest first.

    Args:
        window: seconds for which one is remembered.
        max_keys: how many are remembered at most; the oldest are forgotten first.
    """

    def __init__(self, window: float, max_keys: int) -> None:
        self._window_ms = int(window * 1000)
        self._max_keys = max_keys
        self._used: OrderedDict[bytes, Used] = OrderedDict()

    def admit(self, mark: Mark, event_id: EventId, ms: int) -> bool:
        """Takes the next record that is marked; whether it counts, and is no repetition.

        Args:
            mark: what it is marked with.
            event_id: of its event.
            ms: when it was made.
        """
        used = self._used.get(mark.name)
        if used is not None and used.attempt != mark.attempt:
            if ms - used.ms <= self._window_ms:
                return False
            del self._used[mark.name]
            used = None
        if used is not None and used.has(mark.index):
            # The producer has sent it again under another epoch, having lost track of whether Kafka has it.
            return False
        if used is None:
            used = self._used[mark.name] = Used(mark, ms)
            if len(self._used) > self._max_keys:
                self._used.popitem(last=False)
        used.add(mark.index, event_id)
        return True

    def find(self, key: IdempotencyKey, now_ms: int) -> Used | None:
        """Who used the key, as far as it is not too long ago."""
        used = self._used.get(key.name)
        return used if used is not None and now_ms - used.ms <= self._window_ms else None
