"""The three wire forms as a subscriber's bytes, however these are cut: to blocks, and to whatever else is said.

Written for what Tricast sends: JSON in one line, lines that end in LF. What was seen before costs one look-up. Knows
no sockets.
"""

import re
from typing import NamedTuple

import msgspec

from tricast.bench.blocks import Block, BlockReader, Memo
from tricast.bench.http_answers import Answer, AnswerReader, ChunkDecoder, Head, Malformed

_RETRY = re.compile(rb"(?:^|\n)retry: ([0-9]{1,9})\n")
_COME_BACK = re.compile(r"come back in ([0-9]{1,6}(?:\.[0-9]{1,6})?) s")
#: What of a server's words is printed to a terminal.
_HARMLESS = re.compile(r"[A-Za-z0-9_-]{1,60}")
_ID_LINE = re.compile(rb"(?:^|\n)id: ([^\n]*)\n")
_OPCODE_CONTINUATION, _OPCODE_TEXT, _OPCODE_CLOSE, _OPCODE_PING, _OPCODE_PONG = 0x0, 0x1, 0x8, 0x9, 0xA
_MOST_FRAME_BYTES = 16 * 2**20
#: "Service restart" and "try again later", in the registry that RFC 6455 11.7 has set up.
_COME_BACK_CODES = frozenset({1012, 1013})


class Begun(NamedTuple):
    """The subscription is in force: everything behind the position will come."""

    position: bytes


class Retry(NamedTuple):
    """The server says after how many seconds to come back when the connection has ended."""

    seconds: float


class Pinged(NamedTuple):
    """A ping (RFC 6455 5.5.2) that wants its payload back."""

    payload: bytes


class Ended(NamedTuple):
    """The server ends the stream in a proper way.

    Attributes:
        why: in words.
        is_goodbye: whether it says thereby that it wants the subscriber back, later.
    """

    why: str
    is_goodbye: bool = False


class Refused(NamedTuple):
    """The server answers with something else than events."""

    what: str


class Polled(NamedTuple):
    """A whole answer to a poll, with what it holds."""

    head: Head
    block: Block


Item = Block | Begun | Retry | Pinged | Ended | Refused | Polled
Items = tuple[Item, ...]


class EventStreamSplitter:
    """Server-Sent Events (HTML 9.2.5) to items.

    Args:
        reader: finds the events.
        memo: of splitters with the same framing.
        is_chunked: whether the body is in chunks.
    """

    __slots__ = ("_chunks", "_has_begun", "_is_clean", "_memo", "_reader", "_rest")

    def __init__(self, reader: BlockReader, memo: Memo[Items], *, is_chunked: bool) -> None:
        #: Whether what comes next can be looked up: nothing is left over that it would continue.
        self._is_clean = False
        self._reader = reader
        self._memo = memo
        self._chunks = ChunkDecoder() if is_chunked else None
        self._rest = b""
        self._has_begun = False

    def feed(self, data: bytes) -> Items:
        """What the data completes.

        Raises:
            Malformed: it is no event stream.
        """
        was_clean = self._is_clean
        if was_clean and (known := self._memo.get(data)) is not None:
            return known
        items = tuple(self._split(data))
        self._is_clean = self._has_begun and not self._rest and (self._chunks is None or self._chunks.is_clean)
        if was_clean and self._is_clean:
            self._memo.put(data, items)
        return items

    def _split(self, data: bytes) -> list[Item]:
        text = self._rest + (data if self._chunks is None else self._chunks.feed(data))
        end = text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0
        whole, self._rest = text[:end], _without_comments(text[end:])
        items: list[Item] = []
        if whole:
            begin = 0
            if not self._has_begun and (begun := _ID_LINE.search(whole)) is not None:
                self._has_begun = True
                begin = begun.start()
                items += [*_retries(whole[: begin + 1]), Begun(begun[1])]
            items.append(self._reader.read(whole, _last_id_in(whole)))
            items += _retries(whole[begin:])
        if self._chunks is not None and self._chunks.has_ended:
            items.append(Ended("the end of the stream"))
        return items


def _retries(text: bytes) -> list[Retry]:
    return [Retry(int(found) / 1000) for found in _RETRY.findall(text)]


def _without_comments(rest: bytes) -> bytes:
    """Less the keepalives, which are lines without an empty line behind them."""
    while rest.startswith(b":") and b"\n" in rest:
        rest = rest.partition(b"\n")[2]
    return rest


def _last_id_in(text: bytes) -> bytes:
    """What the last ``id:`` line says. No line of data is taken for one: each of those has a name of its own."""
    begin = text.rfind(b"\nid: ") + 1
    return text[begin + 4 : text.index(b"\n", begin)] if text.startswith(b"id: ", begin) else b""


class FrameSplitter:
    """WebSocket frames from a server (RFC 6455 5.2) to items.

    Args:
        reader: finds the events.
        memo: of frame splitters.
    """

    __slots__ = ("_is_clean", "_memo", "_parts", "_reader", "_rest")

    def __init__(self, reader: BlockReader, memo: Memo[Items]) -> None:
        self._is_clean = True
        self._reader = reader
        self._memo = memo
        self._rest = b""
        self._parts: list[bytes] | None = None

    def feed(self, data: bytes) -> Items:
        """What the data completes.

        Raises:
            Malformed: these are no frames.
        """
        was_clean = self._is_clean
        if was_clean and (known := self._memo.get(data)) is not None:
            return known
        items = tuple(self._split(data))
        self._is_clean = not self._rest and self._parts is None
        if was_clean and self._is_clean:
            self._memo.put(data, items)
        return items

    def _split(self, data: bytes) -> list[Item]:
        data = self._rest + data
        items: list[Item] = []
        events: list[bytes] = []
        begin = 0
        while (found := _frame(data, begin)) is not None:
            opcode, is_final, payload, begin = found
            if opcode >= _OPCODE_CLOSE:
                self._flush(events, items)
                items += _control(opcode, payload)
            elif (message := self._message(opcode, is_final, payload)) is not None:
                if message.startswith((b'{"ok"', b'{"error"')):
                    self._flush(events, items)
                    items.append(_reply(message))
                else:
                    events.append(message)
        self._rest = data[begin:]
        self._flush(events, items)
        return items

    def _message(self, opcode: int, is_final: bool, payload: bytes) -> bytes | None:
        """The message that the frame ends, or None when more frames follow (RFC 6455 5.4)."""
        if (opcode == _OPCODE_CONTINUATION) != (self._parts is not None):
            raise Malformed("a message within another")
        if self._parts is None and is_final:
            return payload
        parts = [*(self._parts or ()), payload]
        self._parts = None if is_final else parts
        return b"".join(parts) if is_final else None

    def _flush(self, events: list[bytes], items: list[Item]) -> None:
        if events:
            items.append(self._reader.read(b"\n".join(events), _id_of(events[-1])))
            events.clear()


def _frame(data: bytes, begin: int) -> tuple[int, bool, bytes, int] | None:
    """The frame that begins there: opcode, whether it is final, payload, its end. None while it is not whole."""
    if len(data) < begin + 2:
        return None
    first, size = data[begin], data[begin + 1]
    begin += 2
    if first & 0x70 or size & 0x80:
        raise Malformed("a frame with a mask, or of an extension")
    if size >= 126:
        width = 2 if size == 126 else 8
        if len(data) < begin + width:
            return None
        size = int.from_bytes(data[begin : begin + width])
        begin += width
    if size > _MOST_FRAME_BYTES:
        raise Malformed(f"a frame of {size} bytes")
    end = begin + size
    return None if len(data) < end else (first & 0x0F, bool(first & 0x80), data[begin:end], end)


def _control(opcode: int, payload: bytes) -> list[Item]:
    if opcode == _OPCODE_PING:
        return [Pinged(payload)]
    if opcode == _OPCODE_PONG:
        return []
    code = int.from_bytes(payload[:2]) if payload else 1005
    reason = payload[2:].decode(errors="replace")
    delay = _COME_BACK.search(reason)
    ended = Ended(f"close frame {code}", code in _COME_BACK_CODES)
    return [Retry(float(delay[1])), ended] if delay else [ended]


class _Reply(msgspec.Struct):
    last_id: str = ""
    error: dict[str, str] = {}


def _reply(message: bytes) -> Begun | Refused:
    try:
        reply = msgspec.json.decode(message, type=_Reply)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"a reply that is none: {error}") from None
    if not reply.error:
        return Begun(reply.last_id.encode())
    code = reply.error.get("code", "")
    return Refused(code if _HARMLESS.fullmatch(code) else "error")


def _id_of(message: bytes) -> bytes:
    """The position behind a message; a gap's is where it resumes."""
    for name in (b'{"id":"', b'"resumed_at":"'):
        begin = message.find(name)
        if begin >= 0:
            begin += len(name)
            return message[begin : message.find(b'"', begin)]
    return b""


class PollSplitter:
    """Answers to polls to items.

    Args:
        reader: finds the events.
        memo: of poll splitters.
    """

    __slots__ = ("_answers", "_memo", "_reader")

    def __init__(self, reader: BlockReader, memo: Memo[Items]) -> None:
        self._reader = reader
        self._memo = memo
        self._answers = AnswerReader()

    def feed(self, data: bytes, *, to_head: bool = False) -> Items:
        """What the data completes: at most one ``Polled``.

        Args:
            data: what came.
            to_head: whether this answers a HEAD.

        Raises:
            Malformed: it is no answer.
        """
        is_clean = self._answers.is_clean and not to_head
        if is_clean and (known := self._memo.get(data)) is not None:
            return known
        answer = self._answers.feed(data, to_head=to_head)
        items = () if answer is None else (Polled(answer.head, self._block(answer)),)
        if is_clean and items:
            self._memo.put(data, items)
        return items

    def _block(self, answer: Answer) -> Block:
        position = answer.head.headers.get(b"last-event-id", b"")
        if b'"gap":{' not in answer.body:
            return self._reader.read(answer.body, position)
        return self._reader.read(_with_gap_first(answer.body), position)


class _PollBody(msgspec.Struct):
    events: list[msgspec.Raw]
    gap: msgspec.Raw


def _with_gap_first(body: bytes) -> bytes:
    """The gap and the events behind it, as on all other transports; in the body it is the last member."""
    try:
        found = msgspec.json.decode(body, type=_PollBody)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"an answer to a poll that is none: {error}") from None
    return b"\n".join(map(bytes, (found.gap, *found.events)))
