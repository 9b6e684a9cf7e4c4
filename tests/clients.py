"""Clients over raw Trio sockets, for the three transports: they do as told, also what no proper client would do.

They know nothing of the server but its URL, so what is tested with them can be tested through a proxy as well.
"""

import json
import re
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode, urlsplit

import trio
from encryption import TlsSocket

TRANSPORTS = ("poll", "sse", "sse-envelope", "ws")
WEBSOCKET_HEADERS = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
#: What the server makes of that key (RFC 6455 1.3).
WEBSOCKET_ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class Closed(Exception):
    """The server closed, or reset, the connection where more was expected."""


class CutOff(Exception):
    """The client has reset the connection itself, because it had received as much as it was to receive."""


class Ended(Exception):
    """The event stream's body came to its proper end."""


class Wire:
    """A connection with what was received and not used yet.

    Args:
        sock: connected.
        budget: bytes after which the client resets the connection, wherever that is.

    Attributes:
        buffer: what was received and not used yet.
    """

    def __init__(self, sock: trio.socket.SocketType | TlsSocket, budget: int | None = None) -> None:
        self._sock = sock
        self._budget = budget
        self.buffer = bytearray()

    @classmethod
    async def open(
        cls, url: str, *, receive_buffer: int = 0, budget: int | None = None, introduction: bytes = b""
    ) -> Self:
        """Connects to the URL's host and port, with TLS where it says so; or to the Unix socket ``unix:PATH``.

        Args:
            url: where a user stands in front of the host, that is the address to come from.
            receive_buffer: SO_RCVBUF.
            budget: see the class.
            introduction: what is sent before all else, also before TLS.
        """
        parts = urlsplit(url)
        is_v6 = ":" in (parts.hostname or "")
        family = socket.AF_UNIX if parts.scheme == "unix" else socket.AF_INET6 if is_v6 else socket.AF_INET
        sock = trio.socket.socket(family)
        try:
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if parts.username:
                await sock.bind((parts.username, 0))
            await sock.connect(parts.path if parts.scheme == "unix" else (parts.hostname, parts.port))
            if introduction:
                await sock.send(introduction)
            return cls(await TlsSocket.over(sock) if parts.scheme == "https" else sock, budget)
        except BaseException:
            sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes as a client does that is done."""
        self._sock.close()

    def reset(self) -> None:
        """Closes with a reset instead of an end: what is under way is lost (SO_LINGER of zero seconds)."""
        if self._sock.fileno() != -1:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._sock.close()

    def finish_sending(self) -> None:
        """Closes this side only."""
        self._sock.shutdown(socket.SHUT_WR)

    async def send(self, data: bytes) -> None:
        """Sends everything.

        Raises:
            Closed: the server does not take it any more.
        """
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[await self._sock.send(rest) :]
            except OSError as error:
                raise Closed(str(error)) from None

    async def receive(self) -> bool:
        """Adds to the buffer what the server sent next; returns False when it sends no more.

        Raises:
            Closed: the server has reset the connection.
            CutOff: the budget is used up.
        """
        if self._budget == 0:
            self.reset()
            raise CutOff
        try:
            data = await self._sock.recv(65536 if self._budget is None else min(self._budget, 65536))
        except OSError as error:
            raise Closed(str(error)) from None
        if self._budget is not None:
            self._budget -= len(data)
        self.buffer += data
        return bool(data)

    async def more(self) -> None:
        """Adds to the buffer.

        Raises:
            Closed: there is no more.
        """
        if not await self.receive():
            raise Closed(f"the server closed; unused: {bytes(self.buffer[:200])!r}")

    async def until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark."""
        while (end := self.buffer.find(mark)) < 0:
            await self.more()
        return self._take(end + len(mark))

    async def exactly(self, size: int) -> bytes:
        """So many bytes."""
        while len(self.buffer) < size:
            await self.more()
        return self._take(size)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, proper or not."""
        try:
            while await self.receive():
                pass
        except Closed:
            pass
        return self._take(len(self.buffer))

    def _take(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data


# HTTP


class Answer(NamedTuple):
    """A response; header names in lower case, repeated ones joined with a comma."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The kind of problem that the body tells of."""
        assert self.headers["content-type"] == "application/problem+json", self
        problem = self.json()
        assert problem["status"] == self.status
        assert problem["title"]
        assert problem["detail"]
        return str(problem["type"]).removeprefix("urn:tricast:")


def head(method: str, target: str, *headers: str, version: str = "1.1", host: str | None = "test") -> bytes:
    """A request's head, with whatever is given."""
    lines = [f"{method} {target} HTTP/{version}", *([f"Host: {host}"] if host is not None else []), *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def read_head(wire: Wire) -> Answer:
    """A response without its body."""
    status_line, *lines = (await wire.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name = name.lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    match = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", status_line)
    assert match, status_line
    return Answer(int(match[1]), headers)


async def read_answer(wire: Wire, method: str = "GET") -> Answer:
    """A whole response."""
    answer = await read_head(wire)
    if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
        return answer
    assert "content-length" in answer.headers, answer
    return answer._replace(body=await wire.exactly(int(answer.headers["content-length"])))


async def ask(url: str, method: str, target: str, *headers: str, body: bytes = b"") -> Answer:
    """One request on a connection of its own."""
    length = [f"Content-Length: {len(body)}"] if body else []
    with await Wire.open(url) as wire:
        await wire.send(head(method, target, *headers, *length) + body)
        return await read_answer(wire, method)


async def say(url: str, data: bytes) -> Answer:
    """Bytes on a connection of their own, to which there must be an answer and then the end of the connection."""
    with await Wire.open(url) as wire:
        with suppress(Closed):  # it need not listen to the end
            await wire.send(data)
        answer = await read_answer(wire)
        assert answer.headers["connection"] == "close"
        assert await wire.rest() == b""
        return answer


async def publish(url: str, topic: str, data: object, *, type: str | None = None) -> str:  # noqa: A002 - as the query names it
    """Publishes over HTTP; text and bytes go as they are, everything else as JSON."""
    query = urlencode({"topic": topic} | ({"type": type} if type is not None else {}))
    body = data.encode() if isinstance(data, str) else data if isinstance(data, bytes) else json.dumps(data).encode()
    answer = await ask(url, "POST", f"/publish?{query}", body=body)
    assert answer.status == 200, answer
    return str(answer.json()["id"])


def query_of(topics: Sequence[str], last_id: str | None = None, **more: str) -> str:
    """The query of a subscription."""
    return urlencode(
        [("topic", topic) for topic in topics]
        + ([("last_id", last_id)] if last_id is not None else [])
        + [*more.items()],
        quote_via=quote,
    )


def subscription_headers(transport: str) -> tuple[str, ...]:
    """What makes a request for ``/events`` one for this transport."""
    if transport == "ws":
        return WEBSOCKET_HEADERS
    return ("Accept: text/event-stream",) if transport.startswith("sse") else ()


async def attempt(transport: str, url: str, query: str, *headers: str) -> Answer:
    """The answer to a subscription that is refused."""
    return await ask(url, "GET", f"/events?{query}", *subscription_headers(transport), *headers)


# Subscribers


class Event(NamedTuple):
    """An event; where the transport does not tell the topic, it is None."""

    id: str
    topic: str | None
    type: str
    data: Any


class Gap(NamedTuple):
    """The announcement that something may be missing."""

    reason: str
    after: str
    resumed_at: str


Item = Event | Gap


class Subscription(ABC):
    """One subscriber on one connection.

    Attributes:
        last_id: where to go on from.
    """

    def __init__(self, wire: Wire, last_id: str | None) -> None:
        self.wire = wire
        self.last_id = last_id
        self._items: deque[Item] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()

    async def next(self) -> Item:
        """The next event or gap.

        Raises:
            Closed: the connection ended.
            CutOff: see ``Wire``.
        """
        while not self._items:
            await self._read()
        item = self._items.popleft()
        self.last_id = item.id if isinstance(item, Event) else item.resumed_at
        return item

    async def event(self) -> Event:
        """The next item, which must be an event."""
        item = await self.next()
        assert isinstance(item, Event), item
        return item

    async def gap(self) -> Gap:
        """The next item, which must be a gap."""
        item = await self.next()
        assert isinstance(item, Gap), item
        return item

    async def events(self, count: int) -> list[Event]:
        """So many events, and no gap among them."""
        return [await self.event() for _ in range(count)]

    @abstractmethod
    async def _read(self) -> None:
        """Reads on; adds to the items when there is something."""


async def subscribe(
    transport: str,
    url: str,
    *topics: str,
    last_id: str | None = None,
    by_header: bool = False,
    query_last_id: str | None = None,
    receive_buffer: int = 0,
    budget: int | None = None,
    credentials: Sequence[str] = (),
    **more: str,
) -> Subscription:
    """Subscribes over one of the ``TRANSPORTS``.

    A long poll has only been asked for when this returns; the others have begun.

    Args:
        transport: which.
        url: the server's.
        topics: names and patterns.
        last_id: where to begin.
        by_header: whether that goes as ``Last-Event-ID``.
        query_last_id: goes into the query then.
        receive_buffer: the client's SO_RCVBUF.
        budget: see ``Wire``.
        credentials: headers of every request.
        more: parameters of the query.
    """
    more |= {"envelope": "json"} if transport == "sse-envelope" else {}
    target = f"/events?{query_of(topics, query_last_id if by_header else last_id, **more)}"
    headers = (*subscription_headers(transport), *credentials)
    if by_header:
        headers = (*headers, f"Last-Event-ID: {last_id}")
    wire = await Wire.open(url, receive_buffer=receive_buffer, budget=budget)
    try:
        await wire.send(head("GET", target, *headers))
        if transport == "poll":
            return LongPoll(wire, last_id, topics, credentials)
        answer = await read_head(wire)
        if transport == "ws":
            assert answer.status == 101, answer
            assert answer.headers["sec-websocket-accept"] == WEBSOCKET_ACCEPT
            return await WebSocket(wire, last_id).begun()
        assert answer.status == 200, answer
        assert answer.headers["content-type"] == "text/event-stream"
        return await EventStream(wire, last_id, envelope=transport == "sse-envelope").begun()
    except BaseException:
        wire.close()
        raise


class LongPoll(Subscription):
    """Asks again and again, on one connection, each time from where the last answer ended."""

    def __init__(self, wire: Wire, last_id: str | None, topics: Sequence[str], credentials: Sequence[str] = ()) -> None:
        super().__init__(wire, last_id)
        self._topics = topics
        self._credentials = credentials
        self._is_asked = True
        self._position = last_id

    async def _read(self) -> None:
        if not self._is_asked:
            target = f"/events?{query_of(self._topics, self._position)}"
            await self.wire.send(head("GET", target, *self._credentials))
        answer = await read_answer(self.wire)
        self._is_asked = False
        assert answer.status in (200, 204), answer
        self._position = answer.headers["last-event-id"]
        if answer.status == 204:
            self.last_id = self._position
            return
        body = answer.json()
        assert body["last_id"] == self._position
        items: list[Item] = [Event(**event) for event in body["events"]]
        if "gap" in body:
            items.insert(0, Gap(**body["gap"]))
        assert items
        self._items.extend(items)


class EventStream(Subscription):
    """Reads the body's chunks, and the lines in them (HTML 9.2.6).

    Attributes:
        comments: how many came.
        retry: the last reconnection time, in milliseconds.
        lease: how long the client was let in for, and the name of the stream; None where that has no end.
        last_comment: the text of the last comment.
    """

    def __init__(self, wire: Wire, last_id: str | None, *, envelope: bool = False, is_chunked: bool = True) -> None:
        super().__init__(wire, last_id)
        self._envelope = envelope
        self._is_chunked = is_chunked
        self._left_of_chunk = 0
        self._text = bytearray()
        self._lines: list[bytes] = []
        self.comments = 0
        self.retry: int | None = None
        self.lease: dict[str, Any] | None = None
        self.last_comment = ""

    async def begun(self) -> Self:
        """Reads up to the position with which the stream begins."""
        asked = self.last_id
        while self.retry is None:
            await self._read()
        assert self.comments
        assert self.last_id is not None
        assert asked in (None, self.last_id)
        return self

    async def wait_comment(self) -> None:
        """Returns when another comment has come."""
        before = self.comments
        while self.comments == before:
            await self._read()

    async def _read(self) -> None:
        self._text += await self._piece()
        while (end := self._text.find(b"\n")) >= 0:
            line = bytes(self._text[:end])
            del self._text[: end + 1]
            if line.startswith(b":"):
                self.comments += 1
                self.last_comment = line[1:].decode().strip()
            elif line:
                self._lines.append(line)
            elif self._lines:
                self._take(b"\n".join(self._lines))
                self._lines.clear()

    async def _piece(self) -> bytes:
        """What is there of the body, as soon as it is, be it a part of a chunk."""
        if self._is_chunked and not self._left_of_chunk:
            self._left_of_chunk = int(await self.wire.until(b"\r\n"), 16)
            if not self._left_of_chunk:
                assert await self.wire.exactly(2) == b"\r\n"
                raise Ended
        if not self.wire.buffer:
            await self.wire.more()
        if not self._is_chunked:
            return await self.wire.exactly(len(self.wire.buffer))
        data = await self.wire.exactly(min(self._left_of_chunk, len(self.wire.buffer)))
        self._left_of_chunk -= len(data)
        if not self._left_of_chunk:
            assert await self.wire.exactly(2) == b"\r\n"
        return data

    def _take(self, block: bytes) -> None:
        fields: dict[bytes, list[bytes]] = {}
        for line in re.split(rb"\r\n|\r|\n", block):
            name, _, value = line.partition(b":")
            assert name in (b"id", b"event", b"data", b"retry"), line
            fields.setdefault(name, []).append(value.removeprefix(b" "))
        if b"retry" in fields:
            (retry,) = fields[b"retry"]
            self.retry = int(retry)
        if fields.get(b"event") == [b"tricast.lease"]:
            assert b"id" not in fields, "what a browser resumes from stays as it is"
            self.lease = json.loads(b"\n".join(fields[b"data"]))
        elif b"data" in fields:
            self._items.append(self._item(fields))
        elif b"id" in fields:
            self.last_id = fields[b"id"][0].decode()

    def _item(self, fields: dict[bytes, list[bytes]]) -> Item:
        ((event_id,), data) = fields[b"id"], json.loads(b"\n".join(fields[b"data"]))
        (event_type,) = fields.get(b"event", [b"message"])
        if event_type == b"tricast.gap":
            gap = Gap(**data)
            assert gap.resumed_at == event_id.decode()
            return gap
        if self._envelope:
            assert b"event" not in fields
            event = Event(**data)
            assert event.id == event_id.decode()
            return event
        return Event(event_id.decode(), None, event_type.decode(), data)


# WebSocket

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class WebSocketClosed(Exception):
    """The server sent a close frame."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, masked: bool = True) -> bytes:
    """A frame from a client. The mask is zero, which is one like any other and leaves the payload as it is."""
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    bit = 0x80 if masked else 0
    size = len(payload)
    if size <= 125:
        start = bytes([first, bit | size])
    elif size <= 0xFFFF:
        start = struct.pack("!BBH", first, bit | 126, size)
    else:
        start = struct.pack("!BBQ", first, bit | 127, size)
    return start + (b"\0\0\0\0" if masked else b"") + payload


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """A close frame from a client."""
    return frame(CLOSE, struct.pack("!H", code) + reason)


async def open_websocket(
    url: str, target: str, *headers: str, behind: bytes = b"", receive_buffer: int = 0
) -> "WebSocket":
    """A WebSocket at a path.

    Args:
        url: the server's.
        target: path and query.
        headers: beside those of every handshake.
        behind: sent in one piece with the handshake.
        receive_buffer: the client's SO_RCVBUF.
    """
    wire = await Wire.open(url, receive_buffer=receive_buffer)
    try:
        await wire.send(head("GET", target, *WEBSOCKET_HEADERS, *headers) + behind)
        answer = await read_head(wire)
        assert answer.status == 101, answer
        assert answer.headers["sec-websocket-accept"] == WEBSOCKET_ACCEPT
    except BaseException:
        wire.close()
        raise
    socket_ = WebSocket(wire, None)
    socket_.subprotocol = answer.headers.get("sec-websocket-protocol")
    return socket_


class WebSocket(Subscription):
    """Frames, and the JSON in them.

    Attributes:
        answers_pings: whether it does.
        pings: how many came.
        subprotocol: what the server chose.
    """

    def __init__(self, wire: Wire, last_id: str | None) -> None:
        super().__init__(wire, last_id)
        self._replies: deque[dict[str, Any]] = deque()
        self.answers_pings = True
        self.pings = 0
        self.subprotocol: str | None = None

    async def begun(self) -> Self:
        """Reads the reply to a subscription by URL."""
        asked = self.last_id
        reply = await self.reply()
        assert reply["ok"] == "subscribe"
        self.last_id = reply["last_id"]
        assert asked in (None, self.last_id)
        return self

    async def operate(self, **operation: object) -> dict[str, Any]:
        """Sends an operation and returns the reply; events in between are kept."""
        await self.wire.send(frame(TEXT, json.dumps(operation).encode()))
        return await self.reply()

    async def reply(self) -> dict[str, Any]:
        """The next reply."""
        while not self._replies:
            await self._read()
        return self._replies.popleft()

    async def message(self) -> str | bytes:
        """The next message, whatever it says.

        Raises:
            WebSocketClosed: the server closed.
        """
        while True:
            opcode, payload = await self._frame()
            match opcode:
                case 1:
                    return payload.decode()
                case 2:
                    return payload
                case 8:
                    code = struct.unpack("!H", payload[:2])[0] if payload else None
                    raise WebSocketClosed(code, payload[2:].decode())
                case 9:
                    self.pings += 1
                    if self.answers_pings:
                        await self.wire.send(frame(PONG, payload))
                case _:
                    assert opcode == PONG

    async def closed(self) -> WebSocketClosed:
        """What the server closed with, after answering it, and after the connection's end."""
        try:
            while True:
                await self.message()
        except WebSocketClosed as closed:
            with suppress(Closed):  # it need not wait for an answer when the mistake was the client's
                await self.wire.send(close_frame(closed.code) if closed.code is not None else frame(CLOSE))
            assert await self.wire.rest() == b""
            return closed

    async def pong(self) -> bytes:
        """The payload of the next frame, which must be a pong."""
        opcode, payload = await self._frame()
        assert opcode == PONG
        return payload

    async def _read(self) -> None:
        text = await self.message()
        assert isinstance(text, str)
        value = json.loads(text)
        if "gap" in value:
            self._items.append(Gap(**value["gap"]))
        elif "id" in value and "topic" in value:
            self._items.append(Event(**value))
        else:
            self._replies.append(value)

    async def _frame(self) -> tuple[int, bytes]:
        first, second = await self.wire.exactly(2)
        assert first & 0xF0 == 0x80, "the server sends whole messages, without reserved bits"
        assert second < 128, "a server does not mask (RFC 6455 5.1)"
        size = second
        if size == 126:
            (size,) = struct.unpack("!H", await self.wire.exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.wire.exactly(8))
        return first & 0x0F, await self.wire.exactly(size)


def id_of(text: str) -> tuple[int, int]:
    """An id, comparable."""
    ms, counter = text.split("-")
    return int(ms), int(counter)
