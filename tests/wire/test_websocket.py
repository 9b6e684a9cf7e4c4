"""Frames that a client understands, and operations that a server does."""

import json
from typing import Any

import msgspec
import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from tricast.event import Event, EventId, Gap, GapReason
from tricast.wire.websocket import (
    FORM,
    BadOperation,
    Operation,
    Ping,
    Publish,
    Subscribe,
    Unsubscribe,
    encode_reply,
    parse_operation,
    text_frame,
)


def received(data: bytes) -> list[str]:
    """The messages that a client sees."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    messages, parts = [], []
    for event in client.events():
        assert isinstance(event, TextMessage)
        parts.append(event.data)
        if event.message_finished:
            messages.append("".join(parts))
            parts.clear()
    assert not parts
    return messages


@pytest.mark.parametrize(
    ("size", "head"), [(0, 2), (1, 2), (125, 2), (126, 4), (127, 4), (65535, 4), (65536, 10), (70000, 10)]
)
def test_frames_of_every_length(size: int, head: int) -> None:
    payload = b"x" * size
    frame = text_frame(payload)
    assert len(frame) == head + size
    assert received(frame + text_frame(b"next")) == [payload.decode(), "next"]


def test_a_block_is_a_frame_for_each_event_and_gap() -> None:
    events = [Event(EventId(n, 0), "news", "message", b'"%b"' % (b"x" * n)) for n in (2, 70000)]
    gap = Gap(GapReason.RESTARTED, EventId(1, 0), EventId(2, 0))
    first, announced, second = map(json.loads, received(FORM.block(events, gap)))
    assert first == {"id": "2-0", "topic": "news", "type": "message", "data": "xx"}
    assert announced == {"gap": {"reason": "restarted", "after": "1-0", "resumed_at": "2-0"}}
    assert second["id"] == "70000-0"
    assert events[0].encoded.keys() == {"json", "websocket"}


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ('{"op":"subscribe","topics":["a","b.*"]}', Subscribe(op="subscribe", topics=["a", "b.*"])),
        (
            '{"op":"subscribe","topics":[],"last_id":"1-0","ref":7}',
            Subscribe(op="subscribe", topics=[], last_id="1-0", ref=7),
        ),
        ('{"topics":["a"],"ref":null,"op":"unsubscribe"}', Unsubscribe(op="unsubscribe", topics=["a"], ref=None)),
        ('{"op":"ping"}', Ping(op="ping")),
        ('{"op":"ping","ref":"x"}', Ping(op="ping", ref="x")),
        ('{"op":"ping","ref":1.5}', Ping(op="ping", ref=1.5)),
        ('{"op":"ping","ref":false}', Ping(op="ping", ref=False)),
    ],
)
def test_operations(text: str, operation: Operation) -> None:
    assert parse_operation(text) == operation


def test_the_data_of_a_publish_is_not_touched() -> None:
    found = parse_operation('{"op":"publish","topic":"a","data":{ "n":1.50,\r\n"m":[] }}')
    assert isinstance(found, Publish)
    assert (found.topic, found.type, found.ref) == ("a", "message", msgspec.UNSET)
    assert bytes(found.data) == b'{ "n":1.50,\r\n"m":[] }'


@pytest.mark.parametrize(
    ("text", "says", "ref"),
    [
        (b'{"op":"ping"}', "binary", msgspec.UNSET),
        ("", "a JSON object", msgspec.UNSET),
        ("ping", "a JSON object", msgspec.UNSET),
        ("[]", "a JSON object", msgspec.UNSET),
        ('"ping"', "a JSON object", msgspec.UNSET),
        ("null", "a JSON object", msgspec.UNSET),
        ('{"op":"ping"} {}', "a JSON object", msgspec.UNSET),
        ('{"op":"ping"', "a JSON object", msgspec.UNSET),
        ('{"op":5}', "a JSON object", msgspec.UNSET),
        ('{"op":"ping","ref":[1]}', "a JSON object", msgspec.UNSET),
        ('{"op":"ping","ref":{}}', "a JSON object", msgspec.UNSET),
        ('{"op":"\ud800"}', "a JSON object", msgspec.UNSET),
        ('{"x":' + "[" * 100_000, "a JSON object", msgspec.UNSET),
        ('{"op":"ping","x":' + "[" * 100_000 + "]" * 100_000 + "}", "a JSON object", msgspec.UNSET),
        ("{}", "found none", msgspec.UNSET),
        ('{"op":null,"ref":3}', "found none", 3),
        ('{"op":"","ref":3}', "found ''", 3),
        ('{"op":"PING","ref":"r"}', "found 'PING'", "r"),
        ('{"op":"a\\n\\u0000","ref":"r"}', r"found 'a\\n\\x00'", "r"),
        ('{"op":"' + "x" * 1000 + '"}', r"x{60}\\u2026'$", msgspec.UNSET),
        ('{"op":"ping","more":1,"ref":1}', "ping: .*more", 1),
        ('{"op":"subscribe","ref":1}', "subscribe: .*topics", 1),
        ('{"op":"subscribe","topics":"a","ref":1}', "subscribe: .*array", 1),
        ('{"op":"subscribe","topics":[1],"ref":1}', "subscribe: .*str", 1),
        ('{"op":"subscribe","topics":["a"],"last_id":1,"ref":1}', "subscribe: .*last_id", 1),
        ('{"op":"unsubscribe","topics":{},"ref":1}', "unsubscribe: .*array", 1),
        ('{"op":"publish","data":1,"ref":1}', "publish: .*topic", 1),
        ('{"op":"publish","topic":"a","ref":1}', "publish: .*data", 1),
        ('{"op":"publish","topic":"a","data":1,"type":2,"ref":1}', "publish: .*type", 1),
        ('{"op":"publish","topic":"a","data":"\\ud800"}', "a JSON object", msgspec.UNSET),
        ('{"op":"publish","topic":"a","data":[1,}', "a JSON object", msgspec.UNSET),
    ],
)
def test_what_is_no_operation(text: str | bytes, says: str, ref: object) -> None:
    with pytest.raises(BadOperation, match=says) as caught:
        parse_operation(text)
    assert caught.value.ref == ref
    assert caught.value.code == "bad-operation"
    assert len(caught.value.detail) < 250
    assert caught.value.detail.isprintable()


@pytest.mark.parametrize(
    ("ref", "expected"),
    [(msgspec.UNSET, {}), (None, {"ref": None}), (7, {"ref": 7}), ("ü", {"ref": "ü"}), (False, {"ref": False})],
)
def test_replies_repeat_the_reference(ref: Any, expected: dict[str, object]) -> None:
    assert json.loads(encode_reply("ok", "publish", ref, id="1-0")) == {"ok": "publish", "id": "1-0", **expected}
    error = {"code": "bad-topic", "message": "m"}
    assert json.loads(encode_reply("error", error, ref)) == {"error": error, **expected}
