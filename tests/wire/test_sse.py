"""Event streams, read back as HTML 9.2.6 says by a reader written for this from its text alone."""

import json
import os
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tricast.errors import RemoteProtocolError
from tricast.event import Event, EventId, Gap, GapReason, check_type, data_as_json
from tricast.wire import sse

GAP = Gap(GapReason.SLOW, EventId(1, 2), EventId(3, 4))


class Message(NamedTuple):
    """What a browser would dispatch."""

    type: str
    data: str
    last_event_id: str


class Reader:
    """An event stream as a browser sees it.

    Attributes:
        messages: what it dispatched.
        last_event_id: what it would send when it comes back.
        retry: the reconnection time, in milliseconds.
        comments: lines that begin with a colon.
    """

    def __init__(self, stream: bytes) -> None:
        self.messages: list[Message] = []
        self.last_event_id = ""
        self.retry: int | None = None
        self.comments = 0
        self._id = self._type = self._data = ""
        self.rest = ""
        for line in self._lines(stream.decode()):
            self._take(line)

    def _lines(self, text: str) -> list[str]:
        lines, line = [], ""
        index = 0
        while index < len(text):
            char = text[index]
            index += 1
            if char in "\r\n":
                if char == "\r" and text[index : index + 1] == "\n":
                    index += 1
                lines.append(line)
                line = ""
            else:
                line += char
        self.rest = line
        return lines

    def _take(self, line: str) -> None:
        if not line:
            self._dispatch()
        elif line[0] == ":":
            self.comments += 1
        else:
            field, _, value = line.partition(":")
            self._field(field, value[1:] if value[:1] == " " else value)

    def _field(self, field: str, value: str) -> None:
        if field == "event":
            self._type = value
        elif field == "data":
            self._data += value + "\n"
        elif field == "id":
            assert "\0" not in value
            self._id = value
        elif field == "retry":
            assert value.isascii()
            assert value.isdigit()
            self.retry = int(value)
        else:
            raise AssertionError(f"data broke out of its lines: {field!r}")

    def _dispatch(self) -> None:
        self.last_event_id = self._id
        if self._data:
            self.messages.append(Message(self._type or "message", self._data.removesuffix("\n"), self._id))
        self._type = self._data = ""


def unchunk(body: bytes) -> bytes:
    """The payload of whole chunks (RFC 9112 7.1)."""
    payload = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        end = int(size, 16)
        assert end
        payload += body[:end]
        assert body[end : end + 2] == b"\r\n"
        body = body[end + 2 :]
    return payload


def event(data: bytes, type: str = "message", topic: str = "news") -> Event:  # noqa: A002
    return Event(EventId(1795360951079, 7), topic, type, data)


def test_the_reader_reads_the_examples_of_the_standard() -> None:
    # HTML 9.2.6: the stock ticker, the four blocks, and the one with and without a space.
    assert Reader(b"data: YHOO\ndata: +2\ndata: 10\n\n").messages == [Message("message", "YHOO\n+2\n10", "")]
    four = Reader(b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n")
    assert four.messages == [
        Message("message", "first event", "1"),
        Message("message", "second event", ""),
        Message("message", " third event", ""),
    ]
    assert four.comments == 1
    assert Reader(b"data\n\ndata\ndata\n\ndata:").messages == [Message("message", "", ""), Message("message", "\n", "")]
    assert Reader(b"data:test\r\rdata: test\r\n\r\n").messages == [Message("message", "test", "")] * 2
    with pytest.raises(AssertionError, match="broke out"):
        Reader(b"data: 1\noops: 2\n\n")


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n", b"\n\r", b"\r\r", b"\n\n", b"\r\n\r\n"])
def test_line_ends_in_pretty_printed_data_become_data_lines(end: bytes) -> None:
    data = end.join([b"", b"{", b'  "a": 1,', b'  "id: 9-9": [', b"  2]", b"}", b""])
    (message,) = Reader(sse.encode_event(event(data))).messages
    assert json.loads(message.data) == json.loads(data)
    assert message.type == "message"
    assert message.last_event_id == "1795360951079-7"


def test_other_line_separators_are_ordinary_characters() -> None:
    data = '"\u2028\u2029\x85\x7f"'.encode()
    (message,) = Reader(sse.encode_event(event(data))).messages
    assert message.data.encode() == data


def test_what_is_not_json_cannot_begin_a_field() -> None:
    (message,) = Reader(sse.encode_event(event(data_as_json(b"1\r\n\r\nevent: evil\rdata: 2\n: comment")))).messages
    assert json.loads(message.data) == "1\r\n\r\nevent: evil\rdata: 2\n: comment"


def test_an_event() -> None:
    assert sse.encode_event(event(b'{"n":1}', "greeting")) == (
        b'id: 1795360951079-7\nevent: greeting\ndata: {"n":1}\n\n'
    )


def test_an_envelope() -> None:
    (message,) = Reader(sse.encode_envelope(event(b'{\r\n"n":1}', "greeting", "a.b"))).messages
    assert message.type == "message"
    assert message.last_event_id == "1795360951079-7"
    assert json.loads(message.data) == {
        "id": "1795360951079-7",
        "topic": "a.b",
        "type": "greeting",
        "data": {"n": 1},
    }


def test_a_gap_moves_a_browser_behind_it() -> None:
    reader = Reader(sse.encode_gap(GAP))
    (message,) = reader.messages
    assert message.type == "tricast.gap"
    assert reader.last_event_id == "3-4"
    assert json.loads(message.data) == {"reason": "slow", "after": "1-2", "resumed_at": "3-4"}


def test_an_opening_gives_the_position_and_dispatches_nothing() -> None:
    reader = Reader(sse.opening(retry_ms=2345, position=EventId(9, 1)))
    assert (reader.messages, reader.last_event_id, reader.retry, reader.comments) == ([], "9-1", 2345, 1)


def test_keepalives_and_a_farewell_leave_the_position_alone() -> None:
    reader = Reader(
        sse.opening(retry_ms=1, position=EventId(9, 1)) + sse.KEEPALIVE + sse.farewell("restarting", retry_ms=5000)
    )
    assert (reader.messages, reader.last_event_id, reader.retry, reader.comments) == ([], "9-1", 5000, 3)


@pytest.mark.parametrize("envelope", [False, True])
def test_a_block_is_one_chunk_around_the_shared_pieces(envelope: bool) -> None:
    events = [event(b'"%d"' % n) for n in range(20)]
    chunked = sse.CHUNKED[envelope].block(events, GAP)
    assert chunked.count(b"\r\n") == 2
    plain = sse.UNFRAMED[envelope].block(events, GAP)
    assert unchunk(chunked) == plain
    assert [message.type for message in Reader(plain).messages] == ["tricast.gap"] + ["message"] * 20
    assert set(events[0].encoded) == ({"json", "sse-envelope"} if envelope else {"sse"})


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


def is_type(name: str) -> bool:
    """Whether a publisher may use it."""
    try:
        check_type(name)
    except RemoteProtocolError:
        return False
    return True


types = st.text(min_size=1, max_size=20).filter(is_type)


@settings(deadline=None, max_examples=200, derandomize="CI" in os.environ)
@given(
    bodies=st.lists(
        st.tuples(
            types,
            st.one_of(
                st.text().map(str.encode),
                st.text(alphabet='\r\n :data{}[]1,"').map(str.encode),
                st.tuples(json_texts, st.sampled_from(["\n", "\r", "\r\n"])).map(
                    lambda found: json.dumps(found[0], indent=2).replace("\n", found[1]).encode()
                ),
            ),
        ),
        max_size=5,
    ),
    envelope=st.booleans(),
)
def test_whatever_is_published_arrives(bodies: list[tuple[str, bytes]], envelope: bool) -> None:
    events = [
        Event(EventId(1000 + index, index), "a.b", name, data_as_json(body))
        for index, (name, body) in enumerate(bodies)
    ]
    block = sse.CHUNKED[envelope].block(events, GAP)
    reader = Reader(unchunk(block))
    assert reader.rest == ""
    first, *messages = reader.messages
    assert first.type == "tricast.gap"
    assert [message.last_event_id for message in messages] == [str(event.id) for event in events]
    for message, sent in zip(messages, events, strict=True):
        if envelope:
            assert message.type == "message"
            found = json.loads(message.data)
            assert (found["type"], found["data"]) == (sent.type, sent.decode())
        else:
            assert message.type == sent.type
            assert json.loads(message.data) == sent.decode()
