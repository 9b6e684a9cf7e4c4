"""Answers out of bytes, cut at every place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.bench.http_answers import Answer, AnswerReader, ChunkDecoder, Head, Malformed, split_head

PLAIN = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\nLast-Event-ID:  7-0 \r\n\r\n{"a"}'
CHUNKED = (
    b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n"
)
EMPTY = b"HTTP/1.1 204 No Content\r\nConnection: close\r\nRetry-After: 3\r\n\r\n"
HINTED = b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN


def read(pieces, *, to_head=False) -> list[Answer]:
    reader = AnswerReader()
    found = [answer for piece in pieces if piece and (answer := reader.feed(piece, to_head=to_head)) is not None]
    assert reader.is_clean
    return found


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [(PLAIN, 200, b'{"a"}'), (CHUNKED, 200, b"abc0123456789"), (EMPTY, 204, b""), (HINTED, 200, b'{"a"}')],
)
def test_cut_at_every_place(data, status, body):
    byte_by_byte = [data[index : index + 1] for index in range(len(data))]
    for pieces in [byte_by_byte, *((data[:cut], data[cut:]) for cut in range(len(data)))]:
        (answer,) = read(pieces)
        assert (answer.head.status, answer.body) == (status, body)


def test_one_after_the_other():
    assert [answer.head.status for answer in read([PLAIN, EMPTY, CHUNKED, PLAIN])] == [200, 204, 200, 200]


def test_the_answer_to_a_head_has_no_body():
    head_only = PLAIN.removesuffix(b'{"a"}')
    assert [answer.body for answer in read([head_only, head_only], to_head=True)] == [b"", b""]


def test_what_a_head_says():
    (answer,) = read([EMPTY])
    assert answer.head.closes
    assert answer.head.retry_after == 3.0
    (answer,) = read([PLAIN])
    assert answer.head.headers[b"last-event-id"] == b"7-0"
    assert not answer.head.closes
    assert answer.head.retry_after is None
    assert Head(503, {b"retry-after": b"Fri, 31 Dec 1999 23:59:59 GMT"}).retry_after is None


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        PLAIN + b"more",
        EMPTY + PLAIN,
        CHUNKED + b"HTTP",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsize\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc1\r\n",
    ],
)
def test_what_is_no_answer(data):
    with pytest.raises(Malformed):
        AnswerReader().feed(data)


def test_a_head_is_whole_or_nothing():
    assert split_head(PLAIN[:50]) is None
    found = split_head(PLAIN)
    assert found is not None
    assert found[1] == b'{"a"}'


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 400), max_size=8))
def test_chunks_however_they_are_cut(payloads, cuts):
    framed = b"".join(b"%x\r\n%b\r\n" % (len(payload), payload) for payload in payloads) + b"0\r\n\r\n"
    data = framed + b"rest"
    places = sorted({min(cut, len(data)) for cut in cuts})
    decoder = ChunkDecoder()
    pieces = [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]
    assert b"".join(map(decoder.feed, pieces)) == b"".join(payloads)
    assert decoder.has_ended
    assert decoder.rest == b"rest"


def test_clean_is_between_chunks():
    decoder = ChunkDecoder()
    states = []
    for byte in b"1\r\na\r\n":
        decoder.feed(bytes([byte]))
        states.append(decoder.is_clean)
    assert states == [False] * 5 + [True]
