"""The three wire forms as the server writes them, cut at every place, against the same in one piece."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import CloseConnection, Ping, TextMessage

from tricast.bench.blocks import Announced, Block, BlockReader, Memo, Numbers
from tricast.bench.http_answers import Malformed
from tricast.bench.schedule import Feed
from tricast.bench.streams import (
    Begun,
    Ended,
    EventStreamSplitter,
    FrameSplitter,
    Pinged,
    Polled,
    PollSplitter,
    Refused,
    Retry,
)
from tricast.event import Event, EventId, Gap, GapReason
from tricast.wire import long_poll, sse, websocket
from tricast.wire.http1 import LAST_CHUNK, chunk

FEED = Feed(run="cafe", topic="t", topics=1, publishers=2, rate=1.0, size=100, seconds=1.0)
READER = BlockReader("cafe", 2)
GAP = Gap(GapReason.EVICTED, EventId(1, 0), EventId(13, 0))


#: What all the blocks of one connection hold here: the gap before what is kept of it.
PARTS = [Numbers(0, 0, 2), Announced("evicted"), Numbers(0, 2, 3), Numbers(0, 6, 7)]


def event(number: int, publisher: int = 0, **changes) -> Event:
    """An event of the run; its id is ten more than its number."""
    return Event(EventId(number + 10, 0), "t", "message", FEED.data(publisher, number, number * 100))


OTHERS = Event(EventId(50, 0), "t", "message", b'{\n"text": "id: 9-9",\n\n"n": 1}')
OPENING = sse.opening(retry_ms=2500, position=EventId(9, 0))
SSE_FORM = sse.CHUNKED[False]


def gathered(items) -> tuple[list, list[int], bytes, list]:
    """What items say in all: numbers and gaps, when they were due, the last position, and everything else."""
    parts, due, last_id, others = [], [], b"", []
    for item in items:
        block = item.block if isinstance(item, Polled) else item
        if isinstance(block, Block):
            parts += block.parts
            due += block.due
            last_id = block.last_id or last_id
        else:
            others.append(item)
    joined = []
    for part in parts:
        before = joined[-1] if joined else None
        if isinstance(part, Numbers) and isinstance(before, Numbers) and before[::2] == (part.publisher, part.first):
            joined[-1] = before._replace(stop=part.stop)
        else:
            joined.append(part)
    return joined, due, last_id, others


def fed(splitter, pieces) -> list:
    return [item for piece in pieces if piece for item in splitter.feed(piece)]


def cuts_of(data):
    """The data in one piece, in two at every place, and byte by byte."""
    yield [data]
    yield from ([data[:cut], data[cut:]] for cut in range(1, len(data)))
    yield [data[index : index + 1] for index in range(len(data))]


# Server-Sent Events


def stream_splitter(memo=None, *, is_chunked=True):
    return EventStreamSplitter(READER, memo or Memo(), is_chunked=is_chunked)


STREAM = (
    chunk(OPENING)
    + SSE_FORM.block([event(0), event(1)])
    + chunk(sse.KEEPALIVE)
    + SSE_FORM.block([event(2), OTHERS, event(6)], GAP)
    + chunk(sse.farewell("restarting", retry_ms=3000))
    + LAST_CHUNK
)


def test_an_event_stream_cut_at_every_place():
    for pieces in cuts_of(STREAM):
        *events, others = gathered(fed(stream_splitter(), pieces))
        assert events == [PARTS, [0, 100, 200, 600], b"16-0"]
        assert set(others) == {Retry(2.5), Begun(b"9-0"), Retry(3.0), Ended("the end of the stream")}


def test_a_goodbye_that_comes_with_the_beginning_is_told_behind_it():
    items = stream_splitter().feed(STREAM)
    assert [item for item in items if not isinstance(item, Block)] == [
        Retry(2.5), Begun(b"9-0"), Retry(3.0), Ended("the end of the stream")
    ]  # fmt: skip


def test_an_event_stream_without_chunks_and_with_an_envelope():
    form = sse.UNFRAMED[True]
    data = OPENING + form.block([event(0), event(1)]) + sse.KEEPALIVE * 2 + form.block([event(2)])
    for pieces in cuts_of(data):
        parts, _, last_id, others = gathered(fed(stream_splitter(is_chunked=False), pieces))
        assert (parts, last_id, others) == ([Numbers(0, 0, 3)], b"12-0", [Retry(2.5), Begun(b"9-0")])


def test_chunks_that_a_proxy_has_cut_anew():
    text = OPENING + sse.UNFRAMED[False].block([event(0), event(1)])
    data = b"".join(chunk(text[begin : begin + 7]) for begin in range(0, len(text), 7))
    for pieces in ([data], [data[:100], data[100:]]):
        assert gathered(fed(stream_splitter(), pieces))[0] == [Numbers(0, 0, 2)]


def test_what_another_has_seen_is_looked_up():
    memo = Memo()
    block = SSE_FORM.block([event(0), event(1)])
    first, second = stream_splitter(memo), stream_splitter(memo)
    for splitter in (first, second):
        splitter.feed(chunk(OPENING))
    found = first.feed(block)
    assert second.feed(block) is found
    # Behind a keepalive too; but not in the middle of something.
    assert first.feed(chunk(sse.KEEPALIVE)) == ()
    assert first.feed(block) is found
    second.feed(block[:20])
    assert second.feed(block[20:]) is not found
    assert second.feed(block) is found


def test_the_beginning_is_told_by_everyone_itself():
    memo = Memo()
    for _ in range(2):
        assert Begun(b"9-0") in stream_splitter(memo).feed(chunk(OPENING))


# WebSocket


def reply(**fields) -> bytes:
    return websocket.text_frame(json.dumps(fields, separators=(",", ":")).encode())


def frame_splitter(memo=None):
    return FrameSplitter(READER, memo or Memo())


SERVER = Connection(ConnectionType.SERVER)
FRAMES = (
    reply(ok="subscribe", topics=["t"], last_id="9-0")
    + websocket.FORM.block([event(0), event(1)])
    + bytes(SERVER.send(Ping(b"hey")))
    + websocket.FORM.block([event(2), OTHERS, event(6)], GAP)
    + websocket.text_frame(b'{"id":"60-0","x":"%b"}' % (b"x" * 70_000))
    + bytes(SERVER.send(TextMessage('{"id":"61-0"', message_finished=False)))
    + bytes(SERVER.send(Ping()))
    + bytes(SERVER.send(TextMessage("}", message_finished=True)))
    + bytes(SERVER.send(CloseConnection(1012, "restarting, come back in 2.5 s")))
)


def test_frames_cut_at_every_place():
    # All but the inside of the long message.
    for cut in [*range(1, 1200), *range(len(FRAMES) - 200, len(FRAMES) + 1)]:
        assert gathered(fed(frame_splitter(), [FRAMES[:cut], FRAMES[cut:]])) == (
            PARTS,
            [0, 100, 200, 600],
            b"61-0",
            [Begun(b"9-0"), Pinged(b"hey"), Pinged(b""), Retry(2.5), Ended("close frame 1012", is_goodbye=True)],
        )


def test_a_gap_moves_the_position():
    assert gathered(frame_splitter().feed(websocket.FORM.block([], GAP)))[2] == b"13-0"


def test_frames_that_another_has_seen():
    memo = Memo()
    block = websocket.FORM.block([event(0), event(1)])
    found = frame_splitter(memo).feed(block)
    second = frame_splitter(memo)
    assert second.feed(block) is found
    second.feed(block[:20])
    assert second.feed(block[20:]) is not found


def test_a_refusal():
    assert frame_splitter().feed(reply(error={"code": "bad-topic", "message": "no"})) == (Refused("bad-topic"),)


def test_a_refusal_cannot_control_the_terminal():
    assert frame_splitter().feed(reply(error={"code": "\x1b[2J", "message": "no"})) == (Refused("error"),)


def test_a_time_to_come_back_that_is_none():
    close = bytes(Connection(ConnectionType.SERVER).send(CloseConnection(1012, "come back in 1.2.3 s")))
    assert frame_splitter().feed(close) == (Ended("close frame 1012", is_goodbye=True),)


def test_a_close_without_a_code_and_a_pong():
    assert frame_splitter().feed(b"\x8a\x00\x88\x00") == (Ended("close frame 1005"),)


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x81aaaax",  # masked
        b"\xc1\x01x",  # an extension's bit
        b"\x81\x7f" + b"\x7f" * 8,
        b"\x80\x01x",  # goes on with nothing
        b"\x01\x01x\x81\x01x",  # a message within another
        websocket.text_frame(b'{"ok":1,'),
    ],
)
def test_what_is_no_frame(data):
    with pytest.raises(Malformed):
        frame_splitter().feed(data)


# Long polling


def answer(events, gap=None) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + long_poll.FORM.block(events, gap)


POSITION = b"HTTP/1.1 200 OK\r\nlast-event-id: 9-0\r\ncontent-type: application/json\r\n\r\n"
NOTHING = b"HTTP/1.1 204 No Content\r\nlast-event-id: 20-0\r\n\r\n"


def test_an_answer_to_a_poll_cut_at_every_place():
    for pieces in cuts_of(answer([event(2), event(3), event(6), OTHERS], GAP)):
        (polled,) = fed(PollSplitter(READER, Memo()), pieces)
        assert polled.head.status == 200
        # The gap is the last member, and yet comes before the events.
        assert gathered([polled])[:3] == (
            [Announced("evicted"), Numbers(0, 2, 4), Numbers(0, 6, 7)],
            [200, 300, 600],
            b"50-0",
        )


def test_polls_in_a_row():
    splitter = PollSplitter(READER, Memo())
    (polled,) = splitter.feed(POSITION, to_head=True)
    assert (polled.block.last_id, polled.block.events) == (b"9-0", 0)
    (polled,) = splitter.feed(NOTHING)
    assert (polled.head.status, polled.block.last_id) == (204, b"20-0")
    assert gathered(splitter.feed(answer([event(0), event(1)])))[0] == [Numbers(0, 0, 2)]


def test_an_answer_that_another_has_seen():
    memo = Memo()
    data = answer([event(0)])
    found = PollSplitter(READER, memo).feed(data)
    second = PollSplitter(READER, memo)
    assert second.feed(data) is found
    assert second.feed(data[:20]) == ()
    assert second.feed(data[20:]) is not found


@pytest.mark.parametrize("body", [b'{"gap":{', b'{"events":{},"gap":{}}'])
def test_a_body_that_is_none(body):
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    with pytest.raises(Malformed):
        PollSplitter(READER, Memo()).feed(head + body)


# All of them


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=6, unique=True).map(sorted),
    st.lists(st.integers(0, 2500), max_size=6),
    st.booleans(),
)
def test_any_cuts_give_the_same(numbers, cuts, has_gap):
    events = [event(number, number % 2) for number in numbers]
    gap = GAP if has_gap else None
    last = events[-1].id
    forms = [
        (stream_splitter(), chunk(OPENING) + SSE_FORM.block(events, gap), last),
        (frame_splitter(), websocket.FORM.block(events, gap), last),
        (PollSplitter(READER, Memo()), answer(events, gap), long_poll.last_id(events, gap)),
    ]
    for splitter, data, position in forms:
        places = sorted({min(cut, len(data)) for cut in cuts})
        pieces = [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]
        parts, due, last_id, _ = gathered(fed(splitter, pieces))
        found = [
            (part.publisher, n) for part in parts if isinstance(part, Numbers) for n in range(part.first, part.stop)
        ]
        for publisher in range(2):
            expected = [(publisher, number) for number in numbers if number % 2 == publisher]
            assert [item for item in found if item[0] == publisher] == expected
        assert sorted(due) == [number * 100 for number in numbers]
        assert (Announced("evicted") in parts) == has_gap
        assert last_id == str(position).encode()
