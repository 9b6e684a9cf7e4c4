"""The body of a long poll's answer."""

import json

import pytest

from tricast.event import Event, EventId, Gap, GapReason
from tricast.wire.long_poll import FORM, last_id, nothing

EVENTS = [Event(EventId(n, 1), "news", "message", b'{\r\n"n":%d}' % n) for n in (2, 5)]


def gap(resumed_at: int) -> Gap:
    return Gap(GapReason.EVICTED, EventId(1, 0), EventId(resumed_at, 0))


def body(block: bytes) -> object:
    head, _, body = block.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert b"content-length: %d" % len(body) in lines
    found = json.loads(body)
    assert b"last-event-id: " + found["last_id"].encode() in lines
    return found


def test_events() -> None:
    assert body(FORM.block(EVENTS)) == {
        "events": [
            {"id": "2-1", "topic": "news", "type": "message", "data": {"n": 2}},
            {"id": "5-1", "topic": "news", "type": "message", "data": {"n": 5}},
        ],
        "last_id": "5-1",
    }


def test_a_gap_among_events() -> None:
    found = body(FORM.block(EVENTS, gap(3)))
    assert isinstance(found, dict)
    assert found["gap"] == {"reason": "evicted", "after": "1-0", "resumed_at": "3-0"}
    assert found["last_id"] == "5-1"
    assert len(found["events"]) == 2


def test_a_gap_alone() -> None:
    assert body(FORM.block([], gap(3))) == {
        "events": [],
        "last_id": "3-0",
        "gap": {"reason": "evicted", "after": "1-0", "resumed_at": "3-0"},
    }


@pytest.mark.parametrize(("resumed_at", "expected"), [(4, EventId(5, 1)), (5, EventId(5, 1)), (6, EventId(6, 0))])
def test_the_position_is_behind_both(resumed_at: int, expected: EventId) -> None:
    assert last_id(EVENTS, gap(resumed_at)) == expected
    assert last_id(EVENTS, None) == EventId(5, 1)


def test_an_answer_without_events_tells_the_position() -> None:
    end = b"last-event-id: 4-1\r\ncache-control: no-store\r\n"
    assert nothing(EventId(4, 1)) == end + b"\r\n"
    assert nothing(EventId(4, 1), ((b"retry-after", b"3"),)) == end + b"retry-after: 3\r\n\r\n"


def test_events_are_encoded_once() -> None:
    one = Event(EventId(1, 0), "news", "message", b"1")
    FORM.block([one])
    text = one.encoded["json"]
    FORM.block([one])
    assert one.encoded == {"json": text}
    assert one.encoded["json"] is text
