"""Blocks of events: where a gap stands, and that nothing is encoded twice."""

import json

from tricast.event import Event, EventId, Gap, GapReason, ShardedEvent, ShardedId
from tricast.wire import long_poll, sse, websocket
from tricast.wire.form import StreamForm, encode_gap_json, encode_json


def event(ms: int, data: bytes = b"1") -> Event:
    return Event(EventId(ms, 0), "news", "message", data)


def gap(resumed_at: int) -> Gap:
    return Gap(GapReason.EVICTED, EventId(1, 0), EventId(resumed_at, 0))


class Encoder:
    """Writes ids, and remembers how often."""

    def __init__(self) -> None:
        self.calls = 0

    def event(self, event: Event) -> bytes:
        self.calls += 1
        return b"%d " % event.id.ms

    def gap(self, gap: Gap) -> bytes:
        return b"gap "


def test_a_gap_stands_before_what_is_kept_of_it() -> None:
    form = StreamForm("test", Encoder().event, Encoder().gap)
    events = [event(2), event(3), event(5)]
    assert form.block(events) == b"2 3 5 "
    for resumed_at in (1, 3, 4, 9):
        assert form.block(events, gap(resumed_at)) == b"gap 2 3 5 "
    assert form.block([], gap(9)) == b"gap "


def test_the_frame_is_around_the_whole_block() -> None:
    form = StreamForm("test", Encoder().event, Encoder().gap, lambda block: b"<%b>" % block)
    assert form.block([event(2), event(3)], gap(1)) == b"<gap 2 3 >"


def test_an_event_is_encoded_once_for_all_forms_of_a_name() -> None:
    encoder, other = Encoder(), Encoder()
    plain = StreamForm("test", encoder.event, encoder.gap)
    framed = StreamForm("test", encoder.event, encoder.gap, lambda block: b"<%b>" % block)
    foreign = StreamForm("other", other.event, other.gap)
    events = [event(2), event(3)]
    for form in (plain, framed, plain, framed, foreign, foreign):
        form.block(events)
    assert encoder.calls == other.calls == 2


def test_the_json_of_an_event_is_one_object_for_all() -> None:
    one = event(2)
    assert encode_json(one) is encode_json(one)


def test_names_are_escaped_and_data_is_verbatim() -> None:
    one = Event(EventId(5, 6), 'a"\\ü', "x\u007fy ", b'{ "n":1.50 }')
    text = encode_json(one)
    assert json.loads(text) == {"id": "5-6", "topic": 'a"\\ü', "type": "x\u007fy ", "data": {"n": 1.5}}
    assert b'"data":{ "n":1.50 }' in text


def test_the_json_of_a_gap() -> None:
    found = json.loads(encode_gap_json(Gap(GapReason.UNKNOWN_ID, EventId(1, 2), EventId(3, 4))))
    assert found == {"reason": "unknown_id", "after": "1-2", "resumed_at": "3-4"}


# Logs in shards


def sharded(first: int, second: int, shown: tuple[int, ...] | None = (0, 3)) -> ShardedId:
    return ShardedId({0: EventId(first, 0), 3: EventId(second, 0), 9: EventId(7, 7)}, shown)


def test_ids_in_shards_in_every_form() -> None:
    found = ShardedEvent(sharded(1, 2), "news", "message", b"1")
    assert json.loads(encode_json(found))["id"] == "0.1-0_3.2-0"
    assert sse.encode_event(found).startswith(b"id: 0.1-0_3.2-0\n")
    assert sse.encode_envelope(found).startswith(b"id: 0.1-0_3.2-0\n")
    assert b"id: 0.1-0_3.2-0\n" in sse.opening(retry_ms=1, position=found.id)
    assert b'"id":"0.1-0_3.2-0"' in websocket.FORM.block([found])
    assert b"last-event-id: 0.1-0_3.2-0\r\n" in long_poll.nothing(found.id).lower()
    head, _, body = long_poll.FORM.block([found]).partition(b"\r\n\r\n")
    assert b"last-event-id: 0.1-0_3.2-0\r\n" in head.lower()
    assert json.loads(body)["last_id"] == json.loads(body)["events"][0]["id"] == "0.1-0_3.2-0"


def test_a_gap_in_shards_in_every_form() -> None:
    found = ShardedEvent(sharded(2, 2), "news", "message", b"1")
    gap = Gap(GapReason.EVICTED, sharded(1, 2), sharded(5, 2))
    told = {"reason": "evicted", "after": "0.1-0_3.2-0", "resumed_at": "0.5-0_3.2-0"}
    assert json.loads(encode_gap_json(gap)) == told
    assert sse.encode_gap(gap).startswith(b"id: 0.5-0_3.2-0\nevent: tricast.gap\n")
    form = StreamForm("test", encode_json, encode_gap_json)
    assert form.block([found], gap) == encode_gap_json(gap) + encode_json(found)
    body = json.loads(long_poll.FORM.block([found], gap).partition(b"\r\n\r\n")[2])
    assert (body["gap"], body["last_id"]) == (told, "0.5-0_3.2-0")


def test_views_of_an_event_are_encoded_apart() -> None:
    found = ShardedEvent(sharded(1, 2, (0,)), "news", "message", b"1")
    view = found.seen_in((0, 3))
    assert [json.loads(encode_json(each))["id"] for each in (found, view)] == ["0.1-0", "0.1-0_3.2-0"]
