"""Things that go wrong on purpose: for which exchanges, and what then becomes of their connection.

Which exchanges are hit is drawn from the seed, the number of the exchange and that of the fault, and from nothing else:
with the same requests in the same order the same are hit again, however long anything takes.
"""

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, Protocol

import trio

from tricast.errors import ConnectionLost
from tricast.sent import ALL, Sent
from tricast_proxy.config import NEVER, After, FaultEntry
from tricast_proxy.heads import Fields, RequestHead

#: What a limited rate lets through at once, in seconds of it.
_RATE_STEP_SECONDS = 0.05

Transport = Literal["http", "sse", "websocket"]
How = Literal["reset", "close", "blackhole"]


class Starts(Protocol):
    """What runs tasks."""

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """See ``trio.Nursery.start_soon``."""
        ...


class Duplex(Protocol):
    """The connection to a client, as the proxy uses it; see ``tricast.connection.Connection``.

    Attributes:
        peer: the client's address.
        sends_at_once: whether ``send_now`` is all that ``send`` is, but for the waiting.
        is_closed: whether ``close`` or ``reset`` was called.
    """

    @property
    def peer(self) -> str: ...  # noqa: D102 - see above

    @property
    def is_closed(self) -> bool: ...  # noqa: D102 - see above

    @property
    def descriptor(self) -> int | None:
        """See ``Connection.descriptor``."""
        ...

    @property
    def sends_at_once(self) -> bool: ...  # noqa: D102 - see above

    @property
    def has_tail(self) -> bool:
        """See ``Connection.has_tail``."""
        ...

    async def open(self) -> None:
        """See ``Connection.open``."""
        ...

    async def receive(self) -> bytes:
        """See ``Connection.receive``."""
        ...

    def receive_now(self) -> bytes | None:
        """See ``Connection.receive_now``."""
        ...

    def send_now(self, data: bytes) -> Sent:
        """See ``Connection.send_now``."""
        ...

    async def send(self, data: bytes) -> None:
        """See ``Connection.send``."""
        ...

    async def drain(self) -> None:
        """See ``Connection.drain``."""
        ...

    async def flush(self) -> None:
        """See ``Connection.flush``."""
        ...

    def shutdown_write(self) -> None:
        """See ``Connection.shutdown_write``."""
        ...

    async def finish(self) -> None:
        """See ``Connection.finish``."""
        ...

    async def linger(self) -> None:
        """See ``Connection.linger``."""
        ...

    def close(self) -> None:
        """See ``Connection.close``."""
        ...

    def reset(self) -> None:
        """See ``Connection.reset``."""
        ...


class End(NamedTuple):
    """How a connection ends, and when.

    Attributes:
        how: with a reset, with a proper close, or in silence.
        after: when.
    """

    how: How
    after: After


class Wire(NamedTuple):
    """What becomes of the bytes on a connection.

    Attributes:
        delay_up: seconds that what comes from the client is held.
        delay_down: seconds that what goes to it is held.
        jitter: up to so many more, each time.
        rate_up: bytes per second; infinity for no limit.
        rate_down: bytes per second; infinity for no limit.
        segment: the most bytes that are received or sent at once; 0 for no limit.
        ends: what ends it.
    """

    delay_up: float = 0.0
    delay_down: float = 0.0
    jitter: float = 0.0
    rate_up: float = math.inf
    rate_down: float = math.inf
    segment: int = 0
    ends: tuple[End, ...] = ()


UNDISTURBED = Wire()


class Injected(NamedTuple):
    """What goes wrong with one exchange.

    Attributes:
        status: what the client is told instead of what a server would say; 0 for nothing.
        close_before_response: whether its connection is closed instead of an answer.
        inject_1xx: interim answers that no server has sent.
        dropped_from_request: names of fields, in lower case, that do not reach the server.
        dropped_from_response: names of fields, in lower case, that do not reach the client.
        stale_keepalive: whether a connection to a server is closed when it would be used again.
        duplicate_request: whether a server gets the request twice.
        wire: what becomes of the bytes on the client's connection.
        chance: to draw jitter from; None where nothing goes wrong.
    """

    status: int = 0
    close_before_response: bool = False
    inject_1xx: tuple[int, ...] = ()
    dropped_from_request: frozenset[bytes] = frozenset()
    dropped_from_response: frozenset[bytes] = frozenset()
    stale_keepalive: bool = False
    duplicate_request: bool = False
    wire: Wire = UNDISTURBED
    chance: random.Random | None = None

    def request_fields(self, fields: Fields) -> Fields:
        """Those that reach the server."""
        return [field for field in fields if field[0].lower() not in self.dropped_from_request]

    def response_fields(self, fields: Fields) -> Fields:
        """Those that reach the client."""
        return [field for field in fields if field[0].lower() not in self.dropped_from_response]

    async def hold_head(self) -> None:
        """Holds the request's head, which has come before it could be known what becomes of it."""
        await trio.sleep(self.wire.delay_up + self._jitter())

    def disturb(self, connection: Duplex, nursery: Starts) -> "Disturbed | None":
        """What takes the place of the client's connection for this exchange; None where nothing becomes of its bytes.

        Args:
            connection: the client's.
            nursery: for what happens after a time; ``Disturbed.stop`` and closing the connection end that.
        """
        return None if self.wire == UNDISTURBED else Disturbed(connection, self.wire, self._jitter, nursery)

    def _jitter(self) -> float:
        return self.chance.uniform(0, self.wire.jitter) if self.chance is not None else 0.0


#: Nothing goes wrong.
NOTHING = Injected()


class FaultPlan:
    """The faults that are configured, and which of them hit an exchange.

    Args:
        entries: what can go wrong, with timers as they are.
        seed: what chance is drawn from.

    Attributes:
        entries: what can go wrong from now on.
        hits: how often each did, by its place among the entries.
    """

    def __init__(self, entries: Sequence[FaultEntry], seed: int) -> None:
        self._seed = seed
        self.entries = tuple(entries)
        self.hits: Counter[int] = Counter()

    def replace(self, entries: Sequence[FaultEntry]) -> None:
        """Has other things go wrong with the exchanges that begin from now on."""
        self.entries = tuple(entries)
        self.hits.clear()

    def choose(self, number: int, request: RequestHead | None) -> Injected:
        """What goes wrong with an exchange.

        Args:
            number: of the exchange, counted from the beginning.
            request: its request; None where there is no HTTP.
        """
        hit: list[FaultEntry] = []
        for index, entry in enumerate(self.entries):
            if _concerns(entry, request) and self._random(number, index).random() < entry.probability:
                self.hits[index] += 1
                hit.append(entry)
        return _together(hit, self._random(number, -1)) if hit else NOTHING

    def _random(self, number: int, index: int) -> random.Random:
        return random.Random(f"{self._seed}:{number}:{index}")  # noqa: S311 - has to be the same again


def transport_of(request: RequestHead) -> Transport:
    """What the client wants by its own word."""
    if b"websocket" in request.upgrades:
        return "websocket"
    accepted = (member.partition(b";")[0].strip() for member in request.members(b"accept"))
    return "sse" if b"text/event-stream" in accepted else "http"


def _concerns(entry: FaultEntry, request: RequestHead | None) -> bool:
    if request is None:
        return not entry.path and entry.transport == "any"
    return request.target.startswith(entry.path.encode()) and entry.transport in ("any", transport_of(request))


def _together(entries: Sequence[FaultEntry], chance: random.Random) -> Injected:
    """All of them at once: delays add up, the narrowest limit counts, and the first status does."""
    return Injected(
        status=next((entry.status for entry in entries if entry.status), 0),
        close_before_response=any(entry.close_before_response for entry in entries),
        inject_1xx=tuple(status for entry in entries for status in entry.inject_1xx),
        dropped_from_request=_names(entry.drop_request_header for entry in entries),
        dropped_from_response=_names(entry.drop_response_header for entry in entries),
        stale_keepalive=any(entry.stale_keepalive for entry in entries),
        duplicate_request=any(entry.duplicate_request for entry in entries),
        wire=Wire(
            delay_up=sum(entry.delay_up for entry in entries),
            delay_down=sum(entry.delay_down for entry in entries),
            jitter=sum(entry.jitter for entry in entries),
            rate_up=min(entry.rate_up or math.inf for entry in entries),
            rate_down=min(entry.rate_down or math.inf for entry in entries),
            segment=min((entry.segment for entry in entries if entry.segment), default=0),
            ends=tuple(end for entry in entries for end in _ends(entry)),
        ),
        chance=chance,
    )


def _names(lists: Iterable[Sequence[str]]) -> frozenset[bytes]:
    return frozenset(name.lower().encode() for names in lists for name in names)


def _ends(entry: FaultEntry) -> tuple[End, ...]:
    ends = (
        End("reset", entry.reset_after),
        End("close", entry.close_after),
        End("blackhole", entry.blackhole_after),
    )
    return tuple(end for end in ends if end.after != NEVER)


def _no_jitter() -> float:
    return 0.0


class Disturbed:
    """A client's connection that does to its bytes what a bad network does. A ``Duplex``.

    A piece that is held waits by itself, and what comes meanwhile goes with the next one: as with a real delay, what
    fits into a buffer goes through in one round.

    Args:
        inner: the connection.
        wire: what becomes of the bytes.
        jitter: draws one.
        nursery: for what happens after a time.
    """

    sends_at_once = False

    def __init__(self, inner: Duplex, wire: Wire, jitter: Callable[[], float], nursery: Starts) -> None:
        self._inner = inner
        self._wire = wire
        self._jitter = jitter
        self._is_black = False
        self._has_left = False
        self._sent = 0
        self._held = bytearray()
        self._due = -math.inf
        ends = [end for end in wire.ends if end.after.size < math.inf]
        self._end_by_size = min(ends, key=lambda end: end.after.size, default=None)
        self._timer = trio.CancelScope()
        timed = sorted((end for end in wire.ends if end.after.seconds < math.inf), key=lambda end: end.after.seconds)
        if timed:
            nursery.start_soon(self._end_in_time, timed, trio.current_time())

    def stop(self) -> Duplex:
        """Disturbs what comes no more; returns what the next exchange has to use.

        A black hole stays one, and what is held is still to come.
        """
        self._timer.cancel()
        self._end_by_size = None
        self._wire, self._jitter = UNDISTURBED, _no_jitter
        if isinstance(self._inner, Disturbed):
            # It still had something to give when this one took its place.
            self._inner = self._inner.stop()
        return self if self._is_black or self._held else self._inner

    # How it ends

    async def _end_in_time(self, ends: Sequence[End], began: float) -> None:
        with self._timer:
            for end in ends:
                await trio.sleep_until(began + end.after.seconds)
                self._end(end.how)

    def _end(self, how: How) -> None:
        if how == "blackhole":
            self._is_black = True
        elif how == "reset":
            self._inner.reset()
        else:
            self._inner.shutdown_write()
            self._inner.close()

    def _end_if_enough(self) -> None:
        """Ends it when enough was sent.

        Raises:
            ConnectionLost: that was its end.
        """
        end = self._end_by_size
        if end is not None and self._sent >= end.after.size:
            self._end_by_size = None
            self._end(end.how)
            if self._inner.is_closed:
                raise ConnectionLost(f"{end.how} by a fault", reason="fault")

    def _check_heard(self) -> None:
        """Sees to it that nobody talks into a black hole for ever: no write would fail there.

        Raises:
            ConnectionLost: the client has left it.
        """
        if self._is_black and self._has_left:
            raise ConnectionLost("left a black hole", reason="fault")

    def _step(self, size: float, rate: float) -> int:
        """How much of so much goes through at once."""
        by_rate = max(1, rate * _RATE_STEP_SECONDS)
        return int(min(size, by_rate, self._wire.segment or math.inf))

    # Down

    async def send(self, data: bytes) -> None:
        """See ``Connection.send``. What falls into a black hole counts as sent, while there is somebody behind it."""
        await trio.sleep(self._wire.delay_down + self._jitter())
        self._end_if_enough()
        self._check_heard()
        rest = memoryview(data)
        rate = self._wire.rate_down
        while rest and not self._is_black:
            size = self._step(len(rest), rate)
            if self._end_by_size is not None:
                size = min(size, int(self._end_by_size.after.size) - self._sent)
            await self._inner.send(bytes(rest[:size]))
            rest = rest[size:]
            self._sent += size
            self._end_if_enough()
            await trio.sleep(size / rate)

    def send_now(self, data: bytes) -> Sent:
        """See ``Connection.send_now``; not held, as nobody could be waited for."""
        return ALL if self._is_black else self._inner.send_now(data)

    # Up

    async def receive(self) -> bytes:
        """See ``Connection.receive``. What falls into a black hole never comes.

        Raises:
            ConnectionLost: as there, or the client has left a black hole.
        """
        while True:
            while not self._held:
                data = await self._inner.receive()
                if not data:
                    self._has_left = True
                    self._check_heard()
                    return b""
                self._hold(data)
            await trio.sleep_until(self._due)
            if (piece := self._released()) is not None:
                return piece

    def receive_now(self) -> bytes | None:
        """See ``Connection.receive_now``."""
        if not self._held:
            data = self._inner.receive_now()
            if not data:
                return data
            self._hold(data)
        return self._released()

    def hold(self, data: bytes) -> None:
        """Holds what has come as what comes from now on, as if it came only now."""
        if data:
            self._hold(data)

    def _hold(self, data: bytes) -> None:
        if not self._is_black:
            self._held += data
            self._due = max(self._due, trio.current_time() + self._wire.delay_up + self._jitter())

    def _released(self) -> bytes | None:
        """Some of what is held, if it is time."""
        if self._is_black:
            self._held.clear()
        if not self._held or trio.current_time() < self._due:
            return None
        rate = self._wire.rate_up
        piece = bytes(self._held[: self._step(len(self._held), rate)])
        del self._held[: len(piece)]
        self._due = trio.current_time() + len(piece) / rate
        return piece

    # What is as it was

    @property
    def peer(self) -> str:
        """See ``Duplex``."""
        return self._inner.peer

    @property
    def is_closed(self) -> bool:
        """See ``Duplex``."""
        return self._inner.is_closed

    @property
    def descriptor(self) -> int | None:
        """See ``Duplex``."""
        return None

    @property
    def has_tail(self) -> bool:
        """See ``Connection.has_tail``."""
        return self._inner.has_tail

    async def open(self) -> None:
        """See ``Connection.open``."""
        await self._inner.open()

    async def drain(self) -> None:
        """See ``Connection.drain``."""
        await self._inner.drain()

    async def flush(self) -> None:
        """See ``Connection.flush``."""
        await self._inner.flush()

    def shutdown_write(self) -> None:
        """See ``Connection.shutdown_write``."""
        if not self._is_black:
            self._inner.shutdown_write()

    async def finish(self) -> None:
        """See ``Connection.finish``."""
        if not self._is_black:
            await self._inner.finish()

    async def linger(self) -> None:
        """See ``Connection.linger``; a black hole stays silent until the client leaves."""
        if not self._is_black:
            await self._inner.linger()
            return
        with suppress(ConnectionLost):
            while await self._inner.receive():
                pass

    def close(self) -> None:
        """See ``Connection.close``."""
        self._timer.cancel()
        self._inner.close()

    def reset(self) -> None:
        """See ``Connection.reset``."""
        self._timer.cancel()
        self._inner.reset()
