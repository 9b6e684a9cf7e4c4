"""Reading what the server sends, and writing it for people."""

import pytest

from tricast.client import ClientError
from tricast.client.items import (
    Frame,
    PollAnswer,
    WireEvent,
    WireGap,
    data_as_line,
    decode,
    event_as_line,
    event_from,
    gap_from,
)
from tricast.event import Event, EventId, Gap, GapReason

EVENT = b'{"id":"7-1","topic":"news","type":"x","data":{ "a": 1.50 }}'


@pytest.mark.parametrize("kind", [WireEvent, Frame])
def test_event_keeps_its_data_byte_for_byte(kind):
    assert event_from(decode(kind, EVENT)) == Event(EventId(7, 1), "news", "x", b'{ "a": 1.50 }')


def test_gap():
    text = '{"reason":"slow","after":"1-0","resumed_at":"9-2"}'
    assert gap_from(decode(WireGap, text)) == Gap(GapReason.SLOW, EventId(1, 0), EventId(9, 2))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"id":7}', b"\xff", "{}", "[" * 100_000])
def test_what_tricast_does_not_send(text):
    with pytest.raises(ClientError, match="what Tricast does not send"):
        decode(WireEvent, text)


def test_a_new_reason_is_refused_rather_than_guessed():
    with pytest.raises(ClientError, match="does not send"):
        decode(WireGap, '{"reason":"magic","after":"1-0","resumed_at":"9-2"}')


def test_what_is_no_id():
    with pytest.raises(ClientError, match="not an event id: 'seven'"):
        event_from(decode(WireEvent, EVENT.replace(b"7-1", b"seven")))


def test_poll_without_its_position():
    with pytest.raises(ClientError, match="last_id"):
        decode(PollAnswer, b'{"events":[]}')


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'{"a": 1}', b'{"a": 1}'),
        (b'{\n  "a": 1.50,\r\n  "b": "\\n x"\n}', b'{"a":1.50,"b":"\\n x"}'),
        (b'"text"\n', b'"text"'),
    ],
)
def test_one_line(data, line):
    event = Event(EventId(7, 1), "news", "x", data)
    assert data_as_line(event) == line
    assert event_as_line(event) == b'{"id":"7-1","topic":"news","type":"x","data":%b}' % line
