"""The event stream parser, after HTML 9.2.6; every case whole, byte by byte, and split at random."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.client import ClientError
from tricast.client.event_stream_parser import EventStreamParser, StreamEvent

CASES = {
    "one": (b"data: a\n\n", [("message", "a", "")]),
    "no space": (b"data:a\n\n", [("message", "a", "")]),
    "one space only is dropped": (b"data:  a \n\n", [("message", " a ", "")]),
    "type and id": (b"event: x\nid: 7-0\ndata: a\n\n", [("x", "a", "7-0")]),
    "type is forgotten": (b"event: x\ndata: a\n\ndata: b\n\n", [("x", "a", ""), ("message", "b", "")]),
    "type without data is forgotten": (b"event: x\n\ndata: b\n\n", [("message", "b", "")]),
    "id stays": (b"id: 7\ndata: a\n\ndata: b\n\n", [("message", "a", "7"), ("message", "b", "7")]),
    "id is emptied": (b"id: 7\ndata: a\n\nid\ndata: b\n\n", [("message", "a", "7"), ("message", "b", "")]),
    "id without data counts": (b"id: 7\n\ndata: a\n\n", [("message", "a", "7")]),
    "id with NUL is ignored": (b"id: 7\nid: 8\0\ndata: a\n\n", [("message", "a", "7")]),
    "several lines": (b"data: a\ndata: b\ndata\n\n", [("message", "a\nb\n", "")]),
    "empty data": (b"data\n\n", [("message", "", "")]),
    "CR": (b"data: a\rdata: b\r\rdata: c\r\r", [("message", "a\nb", ""), ("message", "c", "")]),
    "CR LF": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [("message", "a\nb", ""), ("message", "c", "")]),
    "mixed": (b"data: a\r\ndata: b\n\rdata: c\r\n\n", [("message", "a\nb", ""), ("message", "c", "")]),
    "BOM": (b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")]),
    "BOM once only": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [("message", "b", "")]),
    "comments": (b": x\n:\ndata: a\n: y\n\n:\n\n", [("message", "a", "")]),
    "unknown fields": (b"date: a\nDATA: b\ndata : c\n\n", []),
    "unfinished": (b"data: a\n\ndata: b\n", [("message", "a", "")]),
    "not UTF-8": (b"data: \xff\n\n", [("message", "\N{REPLACEMENT CHARACTER}", "")]),
    "other line ends are text": ("data: a\u2028b\x0bc\x85\n\n".encode(), [("message", "a\u2028b\x0bc\x85", "")]),
    "colons": (b"data: a:b: c\n\n", [("message", "a:b: c", "")]),
}


@pytest.mark.parametrize("step", [1, 2, 3, 10**6])
@pytest.mark.parametrize("name", CASES)
def test_events(name, step):
    stream, expected = CASES[name]
    parser = EventStreamParser(max_bytes=100)
    events = [event for i in range(0, len(stream), step) for event in parser.feed(stream[i : i + step])]
    assert events == [StreamEvent(*event) for event in expected]


PIECES = st.sampled_from(
    [
        b"data",
        b"id",
        b"event",
        b"retry",
        b":",
        b" ",
        b"a",
        b"7-0",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\0",
        b"\xef\xbb\xbf",
    ]
)


@given(stream=st.lists(PIECES).map(b"".join), cuts=st.lists(st.integers(0, 60)))
def test_where_the_stream_is_split_makes_no_difference(stream, cuts):
    whole, split = EventStreamParser(max_bytes=10**4), EventStreamParser(max_bytes=10**4)
    expected = whole.feed(stream)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    events = [event for start, end in pairwise(edges) for event in split.feed(stream[start:end])]
    assert events == expected
    assert (split.last_event_id, split.retry, split.opening_id) == (whole.last_event_id, whole.retry, whole.opening_id)


def test_an_id_is_in_force_only_after_its_block():
    parser = EventStreamParser(max_bytes=100)
    parser.feed(b"id: 7\n")
    assert (parser.last_event_id, parser.opening_id) == ("", None)
    parser.feed(b"\nid: 8\ndata: a\n\n")
    assert (parser.last_event_id, parser.opening_id) == ("8", "7")


@pytest.mark.parametrize(
    ("field", "seconds"), [(b"2500", 2.5), (b"0", 0), (b"", None), (b"-1", None), (b"1.5", None), (b"9" * 13, None)]
)
def test_retry(field, seconds):
    parser = EventStreamParser(max_bytes=100)
    parser.feed(b"retry: " + field + b"\n")
    assert parser.retry == seconds


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: " + b"a" * 20, id="line without an end"),
        pytest.param(b": " + b"a" * 20 + b"\n", id="line"),
        pytest.param(b"data: aaaaaaaa\n" * 3, id="event of several lines"),
    ],
)
@pytest.mark.parametrize("step", [1, 100])
def test_too_much(stream, step):
    parser = EventStreamParser(max_bytes=20)
    chunks = [stream[i : i + step] for i in range(0, len(stream), step)]
    with pytest.raises(ClientError, match="more than 20 bytes"):
        list(map(parser.feed, chunks))


def test_the_limit_is_for_one_event():
    parser = EventStreamParser(max_bytes=20)
    assert len(parser.feed(b"data: aaaaaaaa\n\n" * 3)) == 3
