"""HTTP/1.1 answers out of bytes, however these are cut: for tens of thousands of connections in one process.

h11 takes a hundred times as long for an answer that was seen before, and a generator that is slower than the server
measures itself. Reads what servers and proxies in front of them send, and refuses the rest. Knows no sockets.
"""

import re
from typing import NamedTuple

_MOST_HEAD_BYTES = 64 * 2**10
#: A chunk's size line, with extensions (RFC 9112 7.1.1).
_MOST_SIZE_LINE_BYTES = 4096
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?")
_NO_BODY = frozenset({204, 304})


class Malformed(Exception):
    """The server does not speak the protocol; the message says what was found."""


class Head(NamedTuple):
    """The head of an answer.

    Attributes:
        status: its status.
        headers: by lower-case name; of several with the same name the last.
    """

    status: int
    headers: dict[bytes, bytes]

    @property
    def is_chunked(self) -> bool:
        """Whether the body is in chunks (RFC 9112 6.1)."""
        return self.headers.get(b"transfer-encoding", b"").lower() == b"chunked"

    @property
    def closes(self) -> bool:
        """Whether the connection ends behind this answer (RFC 9112 9.3)."""
        return b"close" in self.headers.get(b"connection", b"").lower()

    @property
    def retry_after(self) -> float | None:
        """The seconds after which the server wants to be asked again; a date is not read."""
        value = self.headers.get(b"retry-after", b"")
        return float(value) if value.isdigit() and len(value) < 10 else None


class Answer(NamedTuple):
    """A whole answer.

    Attributes:
        head: its head.
        body: its body, without framing.
    """

    head: Head
    body: bytes


def split_head(data: bytes) -> tuple[Head, bytes] | None:
    """The head at the beginning of the data and what follows it, or None while it is not whole.

    Raises:
        Malformed: it is none.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > _MOST_HEAD_BYTES:
            raise Malformed("a head that does not end")
        return None
    line, *fields = data[:end].split(b"\r\n")
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise Malformed(f"no status line: {line[:60]!r}")
    headers = {}
    for field in fields:
        name, _, value = field.partition(b":")
        headers[name.lower()] = value.strip()
    return Head(int(found[1]), headers), data[end + 4 :]


class ChunkDecoder:
    """Takes the framing off a chunked body (RFC 9112 7.1).

    Attributes:
        has_ended: whether the body is over.
        rest: what followed the body.
    """

    __slots__ = ("_left", "_line", "has_ended", "rest")

    def __init__(self) -> None:
        self._line = b""
        #: Bytes of the chunk and its line end that are to come; None in the trailers.
        self._left: int | None = 0
        self.has_ended = False
        self.rest = b""

    @property
    def is_clean(self) -> bool:
        """Whether the next byte begins a chunk."""
        return self._left == 0 and not self._line

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the body.

        Raises:
            Malformed: the framing is wrong.
        """
        pieces: list[bytes] = []
        begin = 0
        while begin < len(data) and not self.has_ended:
            begin = self._take_chunk(data, begin, pieces) if self._left else self._take_line(data, begin)
        if self.has_ended:
            self.rest += data[begin:]
        return b"".join(pieces)

    def _take_chunk(self, data: bytes, begin: int, pieces: list[bytes]) -> int:
        assert self._left is not None
        end = min(begin + self._left, len(data))
        self._left -= end - begin
        # The last two bytes are the line end behind the chunk.
        inside = end - max(0, 2 - self._left)
        if inside > begin:
            pieces.append(data[begin:inside])
        return end

    def _take_line(self, data: bytes, begin: int) -> int:
        end = data.find(b"\n", begin)
        line = self._line + data[begin : end if end >= 0 else len(data)]
        if len(line) > _MOST_SIZE_LINE_BYTES:
            raise Malformed("a chunk without a size")
        if end < 0:
            self._line = line
            return len(data)
        self._line = b""
        line = line.removesuffix(b"\r")
        if self._left is None:
            self.has_ended = not line
        else:
            found = _SIZE_LINE.fullmatch(line)
            if found is None:
                raise Malformed(f"no chunk size: {line[:60]!r}")
            size = int(found[1], 16)
            self._left = size + 2 if size else None
        return end + 1


class AnswerReader:
    """Cuts what a server sends on one connection into answers."""

    __slots__ = ("_body", "_buffer", "_chunks", "_head", "_needed")

    def __init__(self) -> None:
        self._buffer = b""
        self._head: Head | None = None
        self._chunks: ChunkDecoder | None = None
        self._body: list[bytes] = []
        self._needed = 0

    @property
    def is_clean(self) -> bool:
        """Whether the next byte begins an answer."""
        return self._head is None and not self._buffer

    def feed(self, data: bytes, *, to_head: bool = False) -> Answer | None:
        """The answer that the data completes, or None while it is not whole.

        Args:
            data: what came. One request at a time is made, so whatever follows an answer is a mistake.
            to_head: whether the request is a HEAD, whose answer has no body (RFC 9112 6.3).

        Raises:
            Malformed: it is no answer, or there is more than one.
        """
        if self._head is None:
            found = split_head(self._buffer + data)
            if found is None:
                self._buffer += data
                return None
            self._buffer = b""
            self._head, data = found
            if 100 <= self._head.status < 200:
                self._head = None
                return self.feed(data, to_head=to_head) if data else None
            self._begin_body(self._head, to_head)
        return self._take_body(self._head, data)

    def _begin_body(self, head: Head, to_head: bool) -> None:
        self._body, self._chunks, self._needed = [], None, 0
        if to_head or head.status in _NO_BODY:
            return
        length = head.headers.get(b"content-length", b"")
        if head.is_chunked:
            self._chunks = ChunkDecoder()
        elif length.isdigit() and len(length) < 16:
            self._needed = int(length)
        else:
            raise Malformed("an answer without a length")

    def _take_body(self, head: Head, data: bytes) -> Answer | None:
        if self._chunks is not None:
            self._body.append(self._chunks.feed(data))
            is_whole, rest = self._chunks.has_ended, self._chunks.rest
        else:
            self._body.append(data[: self._needed])
            rest = data[self._needed :]
            self._needed -= len(data) - len(rest)
            is_whole = self._needed == 0
        if not is_whole:
            return None
        if rest:
            raise Malformed("an answer to nothing")
        self._head = None
        return Answer(head, b"".join(self._body))
