"""Invariant: whatever position a client names, in the header or in the query, it is refused as its mistake, or gets
events in order that are all that is kept behind it, and is told of a gap exactly where something is missing; and a file
has the same events behind it.
"""

from functools import cache
from urllib.parse import quote_from_bytes

from tricast.errors import RemoteProtocolError
from tricast.event import BEGINNING, Event, EventId, ShardedId, TopicSet, parse_position
from tricast.log.base import Slice
from tricast.log.database import encode
from tricast.log.window import Window
from tricast.transports.stream import last_id_of, start_of
from tricast.wire.http1 import Request

#: What inputs are made of.
DICTIONARY = (
    *(b"0-0", b"1000000-0", b"1000007-3", b"1000008-2", b"999999-0", b"1000011-0", b"9999999999999999999", b"-"),
    *(b"0", b"18446744073709551616", b"9223372036854775807", b"8796093022207-1048575", b"00000000000", b"\xd9\xa1"),
    *(b" ", b".", b"_", b"1.1000007-3", b"0.1-1_1.2-2"),
)
_ALL = TopicSet({">"})
_START = EventId(1_000_000, 0)
_MAX_INTEGER = 2**63 - 1  # SQLite's


def check(data: bytes) -> None:
    """The input is the position; the first byte says where it stands, and how much is asked for."""
    if not data:
        return
    named = _named(data[0], data[1:])
    if named is None:
        return
    try:
        position = start_of(named, _START).position
    except RemoteProtocolError as error:
        assert error.code == "bad-last-id"
        assert len(error.detail) < 1000, "it repeats all that it was sent"
        return
    assert parse_position(str(position)) == position
    if isinstance(position, ShardedId):  # of a log of several shards
        pairs = [part.split(".") for part in named.split("_")]
        assert {int(shard): _numbers(part) for shard, part in pairs} == {
            shard: list(part) for shard, part in position.parts.items()
        }
        assert position >= BEGINNING
        return
    assert _numbers(named) == list(position)
    window, events = _window()
    assert 0 <= encode(position) <= _MAX_INTEGER
    assert [encode(event.id) > encode(position) for event in events] == [event.id > position for event in events]
    _check_slice(window.read(_ALL, position, max_bytes=1 + data[0] * 4), position, events)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split("-")]


def _named(place: int, text: bytes) -> str | None:
    """The position as the server finds it in a request, or None where there is no such request."""
    if place & 1:
        return last_id_of(Request(b"GET", b"/events", ((b"last-event-id", text),), b"1.1"))
    try:
        return last_id_of(Request(b"GET", b"/events?last_id=" + quote_from_bytes(text).encode(), (), b"1.1"))
    except RemoteProtocolError:
        return None


@cache
def _window() -> tuple[Window, list[Event]]:
    """What a log has kept: of each of two topics the last five of twenty events."""
    window = Window(start=_START, history=5, max_size=2**20)
    ids = [EventId(_START.ms + number // 4 + 1, number % 4) for number in range(40)]
    events = [Event(event_id, f"t.{event_id.counter % 2}", "t", b"1") for event_id in ids]
    window.keep(events, oldest=BEGINNING)
    return window, events[-10:]


def _check_slice(found: Slice, position: EventId, events: list[Event]) -> None:
    """What was found behind a position, of a log that has kept these and dropped what was right before them."""
    ids = [event.id for event in found.events]
    assert ids == [event.id for event in events if position < event.id <= found.upto]
    assert found.complete == (found.upto == events[-1].id)
    newest_dropped = EventId(events[0].id.ms, events[0].id.counter - 1)
    assert events[0].id.counter > 0
    is_told = found.gap is not None
    assert is_told == (BEGINNING < position < newest_dropped or position > events[-1].id)
    if found.gap is not None:
        assert found.gap.after == position
        assert found.gap.resumed_at <= found.upto
