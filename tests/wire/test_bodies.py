"""Bodies as they come in: however they are split they are the same, and a broken frame is refused where it breaks."""

import time
from collections.abc import Sequence

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tricast.wire.bodies import BadBody, BodyReader, ChunkedBody, LengthBody, NoBody, OpenBody
from tricast.wire.heads import BadHead
from tricast_proxy.bodies import encode_trailers, reader_of
from tricast_proxy.heads import Head

BEHIND = b"GET / HTTP/1.1\r\n"


def chunked(*, max_extensions: int = 20, max_trailers: int = 200) -> ChunkedBody:
    return ChunkedBody(max_extensions=max_extensions, max_trailers=max_trailers)


def read(reader: BodyReader, data: bytes, cuts: Sequence[int] = ()) -> tuple[bytes, bytes]:
    """The payload of data that comes in pieces, and what is left of it when the body is complete."""
    received, payload, at = bytearray(), b"", 0
    for cut in (*sorted(cuts), len(data)):
        received += data[at:cut]
        at = max(at, cut)
        payload += reader.take(received)
    return payload, bytes(received)


def split_in_all_ways(data: bytes) -> list[Sequence[int]]:
    """Whole, byte by byte, and in two at each place."""
    return [(), range(1, len(data)), *((cut,) for cut in range(1, len(data)))]


def test_no_body() -> None:
    reader = NoBody()
    assert reader.is_complete
    assert read(reader, BEHIND) == (b"", BEHIND)
    assert (reader.trailers, reader.ends_with_connection) == ([], False)


def test_a_body_with_a_length() -> None:
    for cuts in split_in_all_ways(b"hello" + BEHIND):
        reader = LengthBody(5)
        assert not reader.is_complete
        assert read(reader, b"hello" + BEHIND, cuts) == (b"hello", BEHIND)
        assert (reader.is_complete, reader.ends_with_connection, reader.trailers) == (True, False, [])
    assert LengthBody(0).is_complete
    short = LengthBody(5)
    assert read(short, b"hell") == (b"hell", b"")
    assert not short.is_complete


def test_a_body_that_ends_with_the_connection() -> None:
    reader = OpenBody()
    assert read(reader, b"hello" + BEHIND, (2, 4)) == (b"hello" + BEHIND, b"")
    assert (reader.is_complete, reader.ends_with_connection, reader.trailers) == (False, True, [])


@pytest.mark.parametrize(
    ("data", "payload", "trailers"),
    [
        (b"0\r\n\r\n", b"", []),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello", []),
        (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!", []),
        (b"A\r\n0123456789\r\n00\r\n\r\n", b"0123456789", []),
        (b"a\r\n0123456789\r\n000\r\n\r\n", b"0123456789", []),
        (b"000000000000005\r\nhello\r\n0\r\n\r\n", b"hello", []),
        (b"5\r\n\r\n0\r\n\r\n0\r\n\r\n", b"\r\n0\r\n", []),
        (b"5;a\r\nhello\r\n0;b=c\r\n\r\n", b"hello", []),
        (b'5 ; a = "b;\t"\r\nhello\r\n0\r\n\r\n', b"hello", []),
        (b'5;a="\\"\xe4"\t;b\r\nhello\r\n0;c=d;e\r\n\r\n', b"hello", []),
        (b"0\r\nX:y\r\nz-A:\t b  c \r\nEmpty:\r\n\r\n", b"", [(b"X", b"y"), (b"z-A", b"b  c"), (b"Empty", b"")]),
        (b"0\r\nContent-Digest: sha-256=:AA==:\r\n\r\n", b"", [(b"Content-Digest", b"sha-256=:AA==:")]),
    ],
)
def test_chunks(data: bytes, payload: bytes, trailers: list[tuple[bytes, bytes]]) -> None:
    for cuts in split_in_all_ways(data + BEHIND):
        reader = chunked()
        assert read(reader, data + BEHIND, cuts) == (payload, BEHIND)
        assert (reader.is_complete, reader.ends_with_connection, reader.trailers) == (True, False, trailers)


#: What is good of it, and the byte that no chunk has there (RFC 9112 7.1).
BROKEN = [
    (b"", b"\r"),
    (b"", b"\n"),
    (b"", b" "),
    (b"", b"\t"),
    (b"", b";"),
    (b"", b"+"),
    (b"", b"-"),
    (b"", b"g"),
    (b"", b"\x00"),
    (b"", b"\xb2"),
    (b"0", b"x"),
    (b"1", b"_"),
    (b"5", b"\n"),
    (b"5", b","),
    (b"5", b"\x0b"),
    (b"5\r", b"\r"),
    (b"5\r", b"h"),
    (b"5 ", b"\r"),
    (b"5 ", b"\n"),
    (b"5 ", b"5"),
    (b"5 \t", b"x"),
    (b"5;a", b"\n"),
    (b"5;a", b"\x00"),
    (b"5;a", b"\x7f"),
    (b"5;a\r", b"b"),
    # That it is no extension shows when the line is over (RFC 9112 7.1.1).
    (b"5;\r", b"\n"),
    (b"5;;a\r", b"\n"),
    (b"5;a=\r", b"\n"),
    (b"5;=b\r", b"\n"),
    (b"5;a=b=c\r", b"\n"),
    (b"5;a b\r", b"\n"),
    (b"5;a \r", b"\n"),
    (b'5;"a"\r', b"\n"),
    (b'5;a="b\r', b"\n"),
    (b'5;a="b"c\r', b"\n"),
    (b"5;\xe4\r", b"\n"),
    (b"000000000000005", b"0"),
    (b"fffffffffffffff", b"f"),
    (b"5\r\nhello", b"\n"),
    (b"5\r\nhello", b"0"),
    (b"5\r\nhello", b"!"),
    (b"5\r\nhello\r", b"\r"),
    (b"5\r\nhello\r", b"0"),
    (b"5\r\nhello\r\n", b"\r"),
    (b"5\r\nhello\r\n", b"-"),
    (b"0\r\nX: y", b"\n"),
    (b"0\r\nX y\r", b"\n"),
    (b"0\r\nX : y\r", b"\n"),
    (b"0\r\n: y\r", b"\n"),
    (b"0\r\n X: y\r", b"\n"),
    (b"0\r\nX: \x00\r", b"\n"),
    (b"0\r\nX: a\rb\r", b"\n"),
    (b"0\r\nX: a\r\n b\r", b"\n"),
    (b"0\r\n", b"\n"),
    (b"0\r\n\r\r", b"\n"),
]


@pytest.mark.parametrize(("begun", "wrong"), BROKEN)
def test_a_broken_chunk_is_refused_at_its_first_wrong_byte(begun: bytes, wrong: bytes) -> None:
    for cuts in split_in_all_ways(begun):
        read(chunked(), begun, cuts)
    with pytest.raises(BadBody) as raised:
        read(chunked(), begun + wrong, range(len(begun) + 1))
    assert raised.value.detail
    assert not raised.value.is_too_large
    for rest in (wrong, wrong + b"\r\nhello\r\n0\r\n\r\n"):
        with pytest.raises(BadBody):
            read(chunked(), begun + rest)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        # Extensions are counted over all chunks, or each byte of payload could bring a thousand others along.
        (b"1;" + b"a" * 19 + b"\r\n!\r\n0\r\n\r\n", b"1;" + b"a" * 20 + b"\r\n!\r\n0\r\n\r\n"),
        (b"1;" + b"a" * 9 + b"\r\n!\r\n0;" + b"a" * 9 + b"\r\n\r\n", b"1;aaaaaaaaa\r\n!\r\n0;aaaaaaaaaa\r\n\r\n"),
        (b"1" + b" " * 18 + b";a\r\n!\r\n0\r\n\r\n", b"1" + b" " * 19 + b";a\r\n!\r\n0\r\n\r\n"),
        (b"0\r\nX: " + b"y" * 193 + b"\r\n\r\n", b"0\r\nX: " + b"y" * 200 + b"\r\n\r\n"),
        (b"0\r\n" + b"X:\r\n" * 49 + b"\r\n", b"0\r\n" + b"X:\r\n" * 51 + b"\r\n"),
    ],
)
def test_limits(good: bytes, bad: bytes) -> None:
    for cuts in ((), range(len(good))):
        reader = chunked()
        read(reader, good, cuts)
        assert reader.is_complete
    for cuts in ((), range(len(bad))):
        with pytest.raises(BadBody):
            read(chunked(), bad, cuts)


@pytest.mark.parametrize("begun", [b"1;", b"1 ", b"0\r\nX", b"0\r\nX:"])
def test_what_has_no_end_is_refused(begun: bytes) -> None:
    for size in (1, 300):
        with pytest.raises(BadBody):
            read(chunked(), begun + b"          " * 30, range(0, 300, size))


@pytest.mark.parametrize("end", [b"\r\n", b"\x01\r\n"])
def test_no_line_takes_long(end: bytes) -> None:
    reader = chunked(max_extensions=2**15, max_trailers=2**15)
    began = time.process_time()
    for begun in (b"0\r\na:" + b" " * 32_000, b"1;" + b" " * 32_000, b"1" + b" " * 32_000):
        try:
            reader.take(bytearray(begun + end))
        except BadBody:
            continue
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "name",
    [
        "Content-Length",
        "Transfer-Encoding",
        "Host",
        "Content-Type",
        "Content-Encoding",
        "Content-Range",
        "Trailer",
        "TE",
        "Connection",
        "Upgrade",
        "Expect",
        "Authorization",
        "Proxy-Authorization",
        "WWW-Authenticate",
        "Authentication-Info",
        "Cookie",
        "SET-COOKIE",
        "Cache-Control",
        "Via",
        "Location",
        "X-Forwarded-For",
        "Forwarded",
        "Age",
        "Date",
        "If-Match",
        "Range",
        "Max-Forwards",
        "Keep-Alive",
        "Sec-WebSocket-Accept",
    ],
)
def test_trailers_that_must_not_be(name: str) -> None:
    reader = chunked()
    read(reader, b"0\r\nX: y\r\n%b: 1\r\n\r\n" % name.encode())
    assert reader.is_complete
    assert reader.trailers == [(b"X", b"y")]


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    st.lists(st.integers(0, 400), max_size=20),
    st.sampled_from([b"", b";a=b", b';\ta = "q"']),
    st.sampled_from([[], [(b"X", b"y")], [(b"A", b""), (b"A", b"b c")]]),
)
def test_chunks_are_the_same_however_they_are_split_and_what_h11_makes_of_them(
    pieces: list[bytes], cuts: list[int], extension: bytes, trailers: list[tuple[bytes, bytes]]
) -> None:
    lines = [b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces]
    data = b"".join(lines) + encode_trailers(trailers)
    reader = chunked(max_extensions=100)
    assert read(reader, data + BEHIND, cuts) == (b"".join(pieces), BEHIND)
    assert (reader.is_complete, reader.trailers) == (True, trailers)
    assert of_h11(data) == (b"".join(pieces), [(name.lower(), value) for name, value in trailers])


def of_h11(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """What h11 takes a body for."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    payload = b""
    assert isinstance(parser.next_event(), h11.Request)
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), event
        payload += bytes(event.data)
    return payload, list(event.headers)


@given(st.binary(max_size=40), st.lists(st.integers(0, 60), max_size=10), st.integers(0, 20), st.integers(0, 5))
@example(b"5\r\nhello\r\n0\r\n\r\n", [3], 0, 0)
def test_whatever_comes_is_refused_or_read_alike_however_it_is_split(
    noise: bytes, cuts: list[int], at: int, dropped: int
) -> None:
    good = b"5;a\r\nhello\r\n0\r\nX: y\r\n\r\n"
    data = good[:at] + noise + good[at + dropped :]
    outcomes = []
    for pieces in ((), cuts, range(len(data))):
        reader = chunked()
        try:
            payload, rest = read(reader, data, pieces)
        except BadBody:
            outcomes.append(None)
        else:
            outcomes.append((payload, reader.is_complete, reader.trailers, rest if reader.is_complete else b""))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_which_reader_is_the_one() -> None:
    def of(*fields: tuple[bytes, bytes], is_request: bool = True) -> BodyReader:
        return reader_of(Head([*fields], b"1.1"), is_request=is_request, max_extensions=1, max_trailers=1)

    assert isinstance(of(), NoBody)
    assert isinstance(of(is_request=False), OpenBody)
    assert isinstance(of((b"Content-Length", b"3")), LengthBody)
    assert isinstance(of((b"Transfer-Encoding", b"Chunked")), ChunkedBody)
    with pytest.raises(BadHead) as raised:
        of((b"Transfer-Encoding", b"gzip, chunked"))
    assert raised.value.status == 501


def test_trailers_are_written() -> None:
    assert encode_trailers([]) == b"0\r\n\r\n"
    assert encode_trailers([(b"X", b"y"), (b"Z", b"")]) == b"0\r\nX: y\r\nZ: \r\n\r\n"


def test_so_many_chunks_are_taken_in_a_row() -> None:
    reader = ChunkedBody(max_extensions=20, max_trailers=200, chunks_per_take=3)
    data = bytearray(b"1\r\nx\r\n" * 7 + b"0\r\nA: b\r\n\r\n" + BEHIND)
    taken = []
    while not reader.is_complete:
        taken.append(reader.take(data))
    assert taken == [b"xxx", b"xxx", b"x"]
    assert reader.trailers == [(b"A", b"b")]
    assert data == BEHIND
