"""Where a body ends: what came in is taken apart into payload. No I/O.

Strict at every byte of a frame (RFC 9112 7.1): a reader that forgives one is how requests are smuggled past another.
"""

import re
import sys
from typing import Protocol

#: (name, value) byte pairs in wire order, names as they were written.
Fields = list[tuple[bytes, bytes]]
#: RFC 9112 7.1: nothing but digits, and no more of them than a number can have; and its extensions, 7.1.1.
_CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
#: RFC 9112 7.1.1: names with values, which are tokens or quoted.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_EXTENSIONS = re.compile(rb"(?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)+" % (_TOKEN, _TOKEN, _QUOTED))
#: What can still become one.
_BEGUN_CHUNK_HEAD = re.compile(rb"[0-9A-Fa-f]{0,15}|[0-9A-Fa-f]{1,15}(\r|[ \t]+|[ \t]*;[\t\x20-\x7e\x80-\xff]*\r?)")
_MOST_DIGITS = 15
_TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)")
#: RFC 9110 6.5.1: what decides about framing, routing, or who somebody is must not come behind the body.
_NO_TRAILERS = re.compile(
    rb"transfer-encoding|content-(?!digest).*|host|trailer|te|connection|keep-alive|upgrade|expect|max-forwards|range|"
    rb"(proxy-|www-)?auth.*|proxy-.*|cookie|set-cookie|cache-control|pragma|if-.*|location|retry-after|x-forwarded-.*|"
    rb"forwarded|via|age|date|expires|vary|warning|sec-websocket-.*|x-accel-.*",
    re.IGNORECASE,
)


class BadBody(Exception):
    """A body whose frame is broken.

    Attributes:
        detail: what is wrong.
        is_too_large: whether a limit was exceeded, and nothing else.
    """

    def __init__(self, detail: str, *, is_too_large: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.is_too_large = is_too_large


class BodyReader(Protocol):
    """Takes the payload of one body off what comes in.

    Attributes:
        is_complete: whether all of it has come.
        ends_with_connection: whether nothing but the end of the connection ends it.
        trailers: the fields behind it.
    """

    is_complete: bool
    ends_with_connection: bool
    trailers: Fields

    def take(self, data: bytearray) -> bytes:
        """Takes payload that is there, and leaves what belongs to what follows; none where more has to come first.

        Raises:
            BadBody: the frame is broken.
        """
        ...


class NoBody:
    """No body at all."""

    __slots__ = ("ends_with_connection", "is_complete", "trailers")

    def __init__(self) -> None:
        self.is_complete = True
        self.ends_with_connection = False
        self.trailers: Fields = []

    def take(self, data: bytearray) -> bytes:  # noqa: ARG002 - all of it belongs to what follows
        """See ``BodyReader.take``."""
        return b""


class LengthBody:
    """A body with a Content-Length.

    Args:
        length: bytes.
    """

    __slots__ = ("_left", "ends_with_connection", "is_complete", "trailers")

    def __init__(self, length: int) -> None:
        self._left = length
        self.is_complete = length == 0
        self.ends_with_connection = False
        self.trailers: Fields = []

    def take(self, data: bytearray) -> bytes:
        """See ``BodyReader.take``."""
        payload = bytes(data[: self._left])
        del data[: self._left]
        self._left -= len(payload)
        self.is_complete = self._left == 0
        return payload


class OpenBody:
    """A body that ends with the connection."""

    __slots__ = ("ends_with_connection", "is_complete", "trailers")

    def __init__(self) -> None:
        self.is_complete = False
        self.ends_with_connection = True
        self.trailers: Fields = []

    def take(self, data: bytearray) -> bytes:
        """See ``BodyReader.take``."""
        payload = bytes(data)
        data.clear()
        return payload


class ChunkedBody:
    """A body in chunks (RFC 9112 7.1).

    Args:
        max_extensions: bytes that the extensions of all chunks together may have.
        max_trailers: bytes that the trailers may have.
        chunks_per_take: how many are taken in a row at most, where others should have their turn in between: chunks
            of one byte each come by the ten thousand in one read, and each takes a microsecond.
    """

    __slots__ = (
        "_chunks_per_take",
        "_extensions",
        "_left",
        "_max_trailers",
        "_state",
        "ends_with_connection",
        "is_complete",
        "trailers",
    )

    _HEAD, _DATA, _DATA_END, _TRAILERS = range(4)

    def __init__(self, *, max_extensions: int, max_trailers: int, chunks_per_take: int = sys.maxsize) -> None:
        self._chunks_per_take = chunks_per_take
        self._extensions = max_extensions
        self._max_trailers = max_trailers
        self._state = self._HEAD
        self._left = 0
        self.is_complete = False
        self.ends_with_connection = False
        self.trailers: Fields = []

    def take(self, data: bytearray) -> bytes:
        """See ``BodyReader.take``."""
        pieces: list[bytes] = []
        at, end_of_data = 0, len(data)
        while at < end_of_data and not self.is_complete and len(pieces) < self._chunks_per_take:
            if self._state == self._DATA:
                piece = bytes(data[at : at + self._left])
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = self._DATA_END
            elif self._state == self._DATA_END:
                end = data[at : at + 2]
                if not b"\r\n".startswith(end):
                    raise BadBody("no CRLF behind the data of a chunk")
                if len(end) < 2:
                    break
                at += 2
                self._state = self._HEAD
            else:
                taken = self._take_chunk_head(data, at) if self._state == self._HEAD else self._take_trailer(data, at)
                if not taken:
                    break
                at = taken
        del data[:at]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take_chunk_head(self, data: bytearray, at: int) -> int:
        """Reads the line before the data of a chunk; returns where it ends, 0 where it has not come."""
        match = _CHUNK_HEAD.match(data, at)
        if match is None:
            self._check_begun_head(data, at)
            return 0
        if match[2]:
            self._extensions -= len(match[2])
            if self._extensions < 0:
                raise BadBody("too many chunk extensions")
            if _EXTENSIONS.fullmatch(match[2]) is None:
                raise BadBody("what stands behind the size of a chunk is no extension")
        self._left = int(match[1], 16)
        self._state = self._DATA if self._left else self._TRAILERS
        return match.end()

    def _check_begun_head(self, data: bytearray, at: int) -> None:
        begun = data[at : at + _MOST_DIGITS + self._extensions + 2]
        if _BEGUN_CHUNK_HEAD.fullmatch(begun) is None:
            raise BadBody("not the beginning of a chunk")
        if len(begun) > _MOST_DIGITS + self._extensions + 1:
            raise BadBody("too many chunk extensions")

    def _take_trailer(self, data: bytearray, at: int) -> int:
        end = data.find(b"\n", at)
        if (end if end >= 0 else len(data)) - at > self._max_trailers:
            raise BadBody("the trailers are too large")
        if end < 0:
            return 0
        line = bytes(data[at : end + 1])
        self._max_trailers -= len(line)
        if line == b"\r\n":
            self.is_complete = True
            return end + 1
        match = _TRAILER.fullmatch(line, 0, len(line) - 2) if line.endswith(b"\r\n") else None
        if match is None:
            raise BadBody("not a field behind the last chunk")
        if _NO_TRAILERS.fullmatch(match[1]) is None:
            self.trailers.append((match[1], match[2].strip(b" \t")))
        return end + 1
