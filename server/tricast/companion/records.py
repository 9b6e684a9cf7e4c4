"""What this end saw of the connections that a probe asks about. Knows neither sockets nor HTTP; it is told the time."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from tricast.wire.probe import Record

#: How many nonces are remembered; beyond it the oldest are forgotten.
MAX_NONCES = 4096
#: How many of them may be about one connection, which a proxy can use for many requests.
_MAX_PER_CONNECTION = 64
#: The reasons of ``tricast.errors.ConnectionLost``, as they look from this end of the wire.
_ENDS = {"left": "fin", "reset": "rst", "own": "own", "closed": "own", "write-timeout": "timeout"}


class Records:
    """The records by nonce, and by the connection that they are about.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_nonce: OrderedDict[str, tuple[Record, float]] = OrderedDict()
        self._on: dict[Hashable, list[tuple[Record, float]]] = {}

    def __len__(self) -> int:
        return len(self._by_nonce)

    def begin(self, connection: Hashable, record: Record) -> "Trace":
        """Remembers a request that has just come; what comes next on its connection is told to the trace.

        A nonce that is known is counted, and from then on is about the later request.
        """
        known = self._by_nonce.pop(record.nonce, None)
        if known is not None:
            record.calls = known[0].calls + 1
        began = self._clock()
        self._by_nonce[record.nonce] = (record, began)
        if len(self._by_nonce) > MAX_NONCES:
            self._by_nonce.popitem(last=False)
        on = self._on.setdefault(connection, [])
        for earlier, at in on:
            earlier.last_received = began - at
        on.append((record, began))
        if len(on) > _MAX_PER_CONNECTION:
            del on[0]
        return Trace(record, began, self._clock)

    def touch(self, connection: Hashable) -> None:
        """Another request has come on this connection, and was answered at once."""
        now = self._clock()
        for record, began in self._on.get(connection, ()):
            record.last_received = record.last_sent = now - began

    def ended(self, connection: Hashable, how: str) -> None:
        """The connection is over.

        Args:
            connection: which.
            how: see ``Runtime.at_end``.
        """
        now = self._clock()
        for record, began in self._on.pop(connection, ()):
            if record.end is None:
                record.end = _ENDS.get(how, how)
                record.ended = now - began

    def find(self, nonce: str) -> Record | None:
        """The record of a nonce as of now, or None."""
        found = self._by_nonce.get(nonce)
        if found is None:
            return None
        record, began = found
        record.age = self._clock() - began
        return record


class Trace:
    """Where the one who serves a request says what goes in and out.

    Attributes:
        record: what is told about it.
    """

    def __init__(self, record: Record, began: float, clock: Callable[[], float]) -> None:
        self._began = began
        self._clock = clock
        self.record = record

    @property
    def age(self) -> float:
        """Seconds since the request came."""
        return self._clock() - self._began

    def ended(self, how: str) -> None:
        """It is over, and how the connection goes from here on does not matter."""
        if self.record.end is None:
            self.record.end, self.record.ended = how, self.age

    def received(self, count: int) -> None:
        """So many bytes came in."""
        self.record.received_bytes += count
        self.record.last_received = self.age

    def sent(self, count: int) -> None:
        """So many bytes went out."""
        self.record.sent_bytes += count
        self.record.last_sent = self.age
