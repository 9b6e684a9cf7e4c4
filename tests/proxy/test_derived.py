"""Bodies that are changed on their way: in steps, and compressed, with heads that say so."""

import zlib
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from proxy.fake_bodies import FakeSink, FakeSource, response_head
from trio.testing import MockClock

from tricast_proxy.buffering import relay_for
from tricast_proxy.config import ResponseSection
from tricast_proxy.derived import accepts_gzip, gzipped, in_steps
from tricast_proxy.heads import RequestHead, ResponseHead
from tricast_proxy.relay import Cut, Source

EVENTS = [0.5, b"data: 0\n\n", 0.5, b"data: 1\n\n", 1.0]


def request(*accepted: bytes, method: bytes = b"GET") -> RequestHead:
    fields = [(b"Host", b"a"), *((b"Accept-Encoding", value) for value in accepted)]
    return RequestHead(method, b"/", fields, b"1.1")


def changed(
    head: ResponseHead, *, asked: RequestHead | None = None, length: int | None = None, **keys: object
) -> Source:
    """The source that a relay would take the body from."""
    config = ResponseSection.model_validate({"gzip": True, **keys})
    asked = asked or request(b"gzip")
    return relay_for(asked, FakeSource([b"abc"], head=head, length=length, is_chunked=length is None), config).source


def is_gzipped(source: Source) -> bool:
    return source.head.get(b"content-encoding") == b"gzip"


async def events_of(*fields: tuple[bytes, bytes], **keys: object) -> list[tuple[float, bytes]]:
    """What a client can read of an event stream when, and when the rest comes."""
    sink = FakeSink()
    head = response_head(*fields, content_type=b"text/event-stream; charset=utf-8")
    config = ResponseSection.model_validate({"gzip": True, **keys})
    await relay_for(request(b"gzip"), FakeSource(EVENTS, head=head), config).to(sink)
    reader = zlib.decompressobj(wbits=31)
    read = [(seconds, reader.decompress(payload)) for seconds, payload in sink.events]
    assert reader.eof
    return read


async def test_each_piece_is_flushed(autojump_clock: MockClock) -> None:
    assert await events_of() == [(0.5, b"data: 0\n\n"), (1.0, b"data: 1\n\n"), (2.0, b"")]


@pytest.mark.parametrize("buffering", ["nginx", "off"])
async def test_without_a_flush_everything_is_held_to_the_end(autojump_clock: MockClock, buffering: str) -> None:
    assert await events_of(gzip_flush=False, buffering=buffering) == [(2.0, b"data: 0\n\ndata: 1\n\n")]


@pytest.mark.parametrize(
    ("field", "keys"),
    [
        ((b"X-Accel-Buffering", b"no"), {"x_accel_buffering": "honour"}),
        ((b"Incremental", b"?1"), {"incremental": "honour"}),
        ((b"X-Other", b"1"), {"event_stream": "unbuffered"}),
    ],
)
async def test_what_is_not_to_be_buffered_is_flushed(
    autojump_clock: MockClock, field: tuple[bytes, bytes], keys: dict[str, Any]
) -> None:
    events = await events_of(field, gzip_flush=False, buffering="nginx", **keys)
    assert events == [(0.5, b"data: 0\n\n"), (1.0, b"data: 1\n\n"), (2.0, b"")]


async def test_without_a_flush_a_full_buffer_goes_on(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    noise = zlib.compress(b"".join(b"%d" % number for number in range(20_000)))
    config = ResponseSection(gzip=True, gzip_flush=False)
    await relay_for(request(b"gzip"), FakeSource([0.5, noise, 1.0, b"x", 1.0]), config).to(sink)
    assert [seconds for seconds, _ in sink.events] == [0.5, 2.5]
    assert zlib.decompress(sink.body, wbits=31) == noise + b"x"


async def test_the_head_says_what_became_of_the_body() -> None:
    head = response_head(
        (b"content-Length", b"3"), (b"ETag", b'"a"'), (b"Accept-Ranges", b"bytes"), (b"Vary", b"Origin")
    )
    source = changed(head, length=3)
    assert source.head.fields == [
        (b"Content-Type", b"text/plain"),
        (b"ETag", b'W/"a"'),
        (b"Vary", b"Origin"),
        (b"Vary", b"Accept-Encoding"),
        (b"Content-Encoding", b"gzip"),
    ]
    assert (source.length, source.is_chunked) == (None, False)


@pytest.mark.parametrize("vary", [b"*", b"Origin, accept-encoding"])
async def test_vary_is_not_said_twice(vary: bytes) -> None:
    source = changed(response_head((b"Vary", vary), (b"ETag", b'W/"a"')))
    assert source.head.all(b"vary") == [vary]
    assert source.head.get(b"etag") == b'W/"a"'


async def test_who_does_not_understand_it_learns_that_it_varies() -> None:
    source = changed(response_head((b"Content-Length", b"3")), asked=request(b"br"), length=3)
    assert not is_gzipped(source)
    assert source.head.get(b"vary") == b"Accept-Encoding"
    assert source.length == 3


@pytest.mark.parametrize(
    ("head", "keys"),
    [
        (response_head(content_type=b"image/png"), {}),
        (response_head(), {"gzip_types": ["text/html"]}),
        (response_head((b"Content-Encoding", b"br")), {}),
        (response_head((b"Cache-Control", b"no-cache, No-Transform")), {}),
        (response_head(status=206), {}),
        (response_head(status=304), {}),
        (response_head(), {"gzip": False}),
    ],
)
async def test_what_is_left_as_it_is(head: ResponseHead, keys: dict[str, Any]) -> None:
    before = list(head.fields)
    source = changed(head, **keys)
    assert source.head.fields == before
    assert isinstance(source, FakeSource)


@pytest.mark.parametrize(
    "asked",
    [
        RequestHead(b"GET", b"/", [(b"Cache-Control", b"no-transform"), (b"Accept-Encoding", b"gzip")], b"1.1"),
        request(b"gzip", method=b"HEAD"),
    ],
)
async def test_requests_whose_answer_is_left_as_it_is(asked: RequestHead) -> None:
    assert not is_gzipped(changed(response_head(), asked=asked))


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ([], False),
        ([b""], False),
        ([b"gzip"], True),
        ([b"GZip"], True),
        ([b"x-gzip"], True),
        ([b"br, gzip;q=0.5"], True),
        ([b"br", b"gzip"], True),
        ([b"gzip;q=0"], False),
        ([b"gzip; q=0.000"], False),
        ([b"gzip ; q = 1"], True),
        ([b"*"], True),
        ([b"*;q=0"], False),
        ([b"*, gzip;q=0"], False),
        ([b"*;q=0, gzip"], True),
        ([b"identity"], False),
        ([b"gzip;q=high"], False),
        ([b"gzip;level=1"], True),
    ],
)
def test_what_clients_accept(accepted: list[bytes], expected: bool) -> None:
    assert accepts_gzip(request(*accepted)) is expected


async def test_what_had_come_can_be_read_when_the_server_breaks_off() -> None:
    source = gzipped(FakeSource([b"abc", Cut("gone")]), flushes=False)
    payload = await source.receive()
    reader = zlib.decompressobj(wbits=31)
    assert reader.decompress(payload) == b"abc"
    assert not reader.eof
    for _ in range(2):
        with pytest.raises(Cut, match="gone"):
            await source.receive()
        with pytest.raises(Cut, match="gone"):
            source.receive_now()


async def test_without_waiting(autojump_clock: MockClock) -> None:
    source = in_steps(FakeSource([b"abc", b"d", 1.0, b"ef", 1.0, b"ghi"], trailers=[(b"a", b"b")]), 4, first=2)
    assert [source.receive_now(), source.receive_now()] == [b"ab", None]
    await trio.sleep(1.5)
    assert [source.receive_now(), source.receive_now()] == [b"cdef", None]
    await trio.sleep(1)
    assert [source.receive_now(), source.receive_now(), source.receive_now()] == [b"ghi", b"", b""]
    assert source.trailers == [(b"a", b"b")]
    cut = in_steps(FakeSource([b"a", Cut("gone")]), 4, first=4)
    assert cut.receive_now() == b"a"
    with pytest.raises(Cut, match="gone"):
        cut.receive_now()


async def test_cancelling_loses_nothing(autojump_clock: MockClock) -> None:
    source = gzipped(FakeSource([b"abc", 1.0, b"def"]), flushes=False)
    with trio.move_on_after(0.5):
        await source.receive()
    payload = await source.receive()
    assert zlib.decompress(payload, wbits=31) == b"abcdef"
    assert await source.receive() == b""


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=30)),
    size=st.integers(1, 20),
    first=st.integers(-5, 20),
)
def test_steps(pieces: list[bytes], size: int, first: int) -> None:
    """Every step ends where a buffer is full, and comes as soon as it is."""

    async def main() -> None:
        source = in_steps(FakeSource(pieces), size, first=first)
        steps = []
        while step := await source.receive():
            steps.append(step)
        assert b"".join(steps) == b"".join(pieces)
        ends = {sum(map(len, steps[: number + 1])) for number in range(len(steps) - 1)}
        assert all((end - max(1, first)) % size == 0 and end >= first for end in ends)

    trio.run(main)
