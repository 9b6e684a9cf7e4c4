"""Reading an event stream as HTML 9.2.6 says: bytes in, events out, split anywhere. Sans-I/O."""

import re
from typing import NamedTuple

from tricast.client.failures import ClientError

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DIGITS = re.compile(r"[0-9]{1,12}", re.ASCII)


class StreamEvent(NamedTuple):
    """One dispatched event.

    Attributes:
        type: the ``event`` field, ``message`` without one.
        data: the ``data`` fields, joined by newlines.
        last_event_id: the last id seen up to here.
    """

    type: str
    data: str
    last_event_id: str


class EventStreamParser:
    """Turns the bytes of a ``text/event-stream`` into events.

    Args:
        max_bytes: the longest line, and the most data in one event.

    Attributes:
        last_event_id: the last id in force, which it comes into at the blank line after it; empty for none.
        retry: seconds to wait before reconnecting as the stream last said, or None.
        opening_id: the id in force after the first block, which is the server's opening; None before its end.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self.last_event_id = ""
        self.retry: float | None = None
        self.opening_id: str | None = None
        self._max_bytes = max_bytes
        self._partial_line = b""
        self._ends_with_cr = False
        self._is_first_line = True
        self._id = ""
        self._type = ""
        self._data: list[str] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Takes the next bytes and returns the events which they complete, in order.

        Raises:
            ClientError: a line or an event is longer than ``max_bytes``.
        """
        if not chunk:
            return []
        if self._ends_with_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the second half of a CR LF that came in two pieces
        self._ends_with_cr = chunk.endswith(b"\r")
        lines = _LINE_END.split(chunk)
        lines[0] = self._partial_line + lines[0]
        self._partial_line = lines.pop()
        self._check_size(len(self._partial_line))
        return [event for line in lines if (event := self._take_line(line)) is not None]

    def _take_line(self, line: bytes) -> StreamEvent | None:
        self._check_size(len(line))
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if name:  # else it is a comment
            self._take_field(name, value.removeprefix(b" "))
        return None

    def _take_field(self, name: bytes, value: bytes) -> None:
        text = value.decode(errors="replace")
        if name == b"data":
            self._data_bytes += len(value) + 1
            self._check_size(self._data_bytes - 1)
            self._data.append(text)
        elif name == b"event":
            self._type = text
        elif name == b"id" and "\0" not in text:
            self._id = text
        elif name == b"retry" and _DIGITS.fullmatch(text):
            self.retry = int(text) / 1000

    def _dispatch(self) -> StreamEvent | None:
        # The id comes into force even without data, hence without an event: the opening block is such.
        self.last_event_id = self._id
        if self.opening_id is None:
            self.opening_id = self._id
        kind, data = self._type or "message", self._data
        self._type, self._data, self._data_bytes = "", [], 0
        return StreamEvent(kind, "\n".join(data), self._id) if data else None

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise ClientError(f"the server sent an event of more than {self._max_bytes} bytes")
