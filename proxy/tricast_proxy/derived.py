"""Sources made from other sources: what is held back to be given in larger steps, or to be given compressed."""

import zlib
from collections.abc import Callable, Container
from typing import Protocol

from tricast_proxy.heads import Fields, Head, RequestHead, ResponseHead
from tricast_proxy.relay import Cut, Source, pour_by_turns

#: The level that nginx documents as the default of ``gzip_comp_level``: the bodies here are made for speed.
_LEVEL = 1
#: RFC 1952, as zlib wants it asked for.
_GZIP = 16 + zlib.MAX_WBITS
#: What is compressed and not flushed is held until it is so much, as nginx holds it (``gzip_buffers``).
_GZIP_STEP_BYTES = 4 * 2**10
#: The answers that nginx compresses. A part (206) must stay what it is, and most others have no body worth it.
_COMPRESSED_STATUSES = (200, 403, 404)


class Change(Protocol):
    """What becomes of a body, piece by piece."""

    def change(self, payload: bytes) -> bytes:
        """What can be given on now that this has come; may be empty."""
        ...

    def finish(self) -> bytes:
        """What is still to come at the body's end."""
        ...

    def break_off(self) -> bytes:
        """What is still to come where the body was cut."""
        ...


class DerivedSource:
    """A source whose body is another's, changed. What is held goes out before the end, and before a cut.

    Args:
        inner: where it comes from.
        change: what becomes of it.
        length: of the changed body, where it is known.

    Attributes:
        head: see ``Source``.
        length: see ``Source``.
        is_chunked: whether the inner source is.
        trailers: see ``Source``.
    """

    def __init__(self, inner: Source, change: Change, length: int | None) -> None:
        self._inner = inner
        self._change = change
        self._end: Cut | None = None
        self._is_ended = False
        self.head: ResponseHead = inner.head
        self.length = length
        self.is_chunked = inner.is_chunked
        self.trailers: Fields = []

    async def receive(self) -> bytes:
        """See ``Source``."""
        while not self._is_ended:
            try:
                payload = await self._inner.receive()
            except Cut as cut:
                payload = self._ended(cut)
            else:
                payload = self._change.change(payload) if payload else self._ended(None)
            if payload:
                return payload
        return self._after_end()

    def receive_now(self) -> bytes | None:
        """See ``Source``."""
        while not self._is_ended:
            try:
                payload = self._inner.receive_now()
            except Cut as cut:
                payload = self._ended(cut)
            else:
                if payload is None:
                    return None
                payload = self._change.change(payload) if payload else self._ended(None)
            if payload:
                return payload
        return self._after_end()

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """See ``Source``."""
        return await pour_by_turns(self, take)

    def _ended(self, cut: Cut | None) -> bytes:
        self._is_ended = True
        self._end = cut
        self.trailers = self._inner.trailers
        return self._change.finish() if cut is None else self._change.break_off()

    def _after_end(self) -> bytes:
        if self._end is not None:
            raise self._end
        return b""


class _Steps:
    """Holds a body until a buffer is full."""

    def __init__(self, first: int, size: int) -> None:
        self._next = first
        self._size = size
        self._held = bytearray()

    def change(self, payload: bytes) -> bytes:
        self._held += payload
        over = len(self._held) - self._next
        if over < 0:
            return b""
        end = len(self._held) - over % self._size
        whole = bytes(self._held[:end])
        del self._held[:end]
        self._next = self._size
        return whole

    def finish(self) -> bytes:
        return bytes(self._held)

    break_off = finish


def in_steps(source: Source, size: int, *, first: int) -> Source:
    """The body in steps of a size, of which the first may be another; less than a step comes only at the end."""
    return DerivedSource(source, _Steps(max(1, first), size), source.length)


class _Gzip:
    """Compresses a body, and flushes what came in one piece, or holds it until a buffer is full."""

    def __init__(self, *, flushes: bool) -> None:
        self._compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._flushes = flushes
        self._held = bytearray()

    def change(self, payload: bytes) -> bytes:
        self._held += self._compressor.compress(payload)
        if self._flushes:
            self._held += self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return self._taken() if self._flushes or len(self._held) >= _GZIP_STEP_BYTES else b""

    def finish(self) -> bytes:
        self._held += self._compressor.flush()
        return self._taken()

    def break_off(self) -> bytes:
        # Without the end that would make it look whole.
        self._held += self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return self._taken()

    def _taken(self) -> bytes:
        taken = bytes(self._held)
        self._held.clear()
        return taken


def gzipped(source: Source, *, flushes: bool) -> Source:
    """The body compressed, with a head that says so (RFC 9110 8.4, 8.8.3.3)."""
    head = source.head
    head.fields = [field for field in head.fields if field[0].lower() not in (b"content-length", b"accept-ranges")]
    head.fields = [(name, _weak(value) if name.lower() == b"etag" else value) for name, value in head.fields]
    head.fields.append((b"Content-Encoding", b"gzip"))
    return DerivedSource(source, _Gzip(flushes=flushes), None)


def _weak(etag: bytes) -> bytes:
    return etag if etag.startswith(b"W/") else b"W/" + etag


def is_compressible(request: RequestHead, head: ResponseHead, types: Container[str]) -> bool:
    """Whether an answer may be compressed, if its client understands it.

    Args:
        request: which it answers.
        head: of the answer.
        types: the media types that may be, in lower case.
    """
    media_type = (head.get(b"content-type") or b"").partition(b";")[0].strip().lower()
    return (
        media_type.decode("latin-1") in types
        and head.status in _COMPRESSED_STATUSES
        and head.has_body(request.method)
        and head.get(b"content-encoding") is None
        # RFC 9110 7.7, although nginx 1.22.1 was seen to compress nevertheless.
        and not any(b"no-transform" in message.members(b"cache-control") for message in (request, head))
    )


def vary_by_encoding(head: ResponseHead) -> None:
    """Says that another client may get it in another encoding (RFC 9110 12.5.5)."""
    named = head.members(b"vary")
    if b"*" not in named and b"accept-encoding" not in named:
        head.fields.append((b"Vary", b"Accept-Encoding"))


def accepts_gzip(request: Head) -> bool:
    """Whether the client does (RFC 9110 12.5.3); one that says nothing is not asked to."""
    weights = {}
    for member in request.members(b"accept-encoding"):
        coding, _, parameters = member.partition(b";")
        weights[coding.strip()] = _weight(parameters)
    return max(weights.get(b"gzip", -1.0), weights.get(b"x-gzip", -1.0)) > 0 or (
        weights.get(b"*", 0.0) > 0 and not {b"gzip", b"x-gzip"} & weights.keys()
    )


def _weight(parameters: bytes) -> float:
    name, _, value = parameters.partition(b"=")
    try:
        return float(value) if name.strip() == b"q" else 1.0
    except ValueError:
        return 0.0  # RFC 9110 12.4.2 has no such weight; what is not understood is not accepted
