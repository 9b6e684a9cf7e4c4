"""HTTP/1.1 on one connection, with the time of every head and every piece of a body, and how each answer ended."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import h11
import trio

from tricast import __version__
from tricast.probe.link import Cut, End, Ending, Link, open_link
from tricast.probe.target import Target

_MAX_HEAD_BYTES = 2**20
_MAX_BODY_BYTES = 4 * 2**20

Fields = Sequence[tuple[str, str]]


class Head(NamedTuple):
    """The head of an answer.

    Attributes:
        status: the status code.
        reason: the phrase behind it.
        version: as the status line has it: ``1.1``.
        fields: (name, value) in wire order, names in the case in which they came.
        at: ``trio.current_time()`` of it.
        informational: statuses of the 1xx answers before it.
    """

    status: int
    reason: str
    version: str
    fields: list[tuple[str, str]]
    at: float
    informational: tuple[int, ...] = ()

    def header(self, name: str) -> str | None:
        """The values of a header, joined as RFC 9110 5.3 has it, or None."""
        values = [value for found, value in self.fields if found.lower() == name.lower()]
        return ", ".join(values) if values else None


class Piece(NamedTuple):
    """A part of a body, as one receive brought it.

    Attributes:
        at: ``trio.current_time()`` of it.
        data: the bytes, without the framing of chunks.
    """

    at: float
    data: bytes


class HttpAnswer(NamedTuple):
    """A whole answer."""

    head: Head
    body: bytes

    @property
    def status(self) -> int:
        """The status code."""
        return self.head.status


class HttpLink:
    """Requests and their answers, one after the other.

    Args:
        link: the connection.
        target: whose Host header is sent.
    """

    def __init__(self, link: Link, target: Target) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._target = target
        self._informational: list[int] = []
        self._final: h11.Response | h11.InformationalResponse | None = None
        self.link = link

    async def ask(
        self, method: str, path: str, fields: Fields = (), body: bytes = b"", *, has_more: bool = False
    ) -> None:
        """Sends a request, in one piece.

        Args:
            method: the method.
            path: the request target, as ``Target`` makes it.
            fields: (name, value), sent in this order and case behind Host and User-Agent. Where there is a body, or
                will be, they name its framing.
            body: what is sent with the head.
            has_more: whether more of the body follows by ``send_body``.

        Raises:
            Cut: the connection is gone.
        """
        names = {name.lower() for name, _ in fields}
        common = [("Host", self._target.endpoint.authority), ("User-Agent", f"tricast-probe/{__version__}")]
        headers = [*((name, value) for name, value in common if name.lower() not in names), *fields]
        # As they are read; what a server has set as a cookie can be any byte.
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        events: list[h11.Event] = [h11.Request(method=method, target=path, headers=encoded)]
        events += [h11.Data(data=body)] if body else []
        events += [] if has_more else [h11.EndOfMessage()]
        await self.link.send(b"".join(self._http.send(event) or b"" for event in events))

    async def send_body(self, data: bytes, *, has_more: bool) -> None:
        """Sends more of a body.

        Raises:
            Cut: the connection is gone.
        """
        events: list[h11.Event] = [h11.Data(data=data)] if data else []
        events += [] if has_more else [h11.EndOfMessage()]
        await self.link.send(b"".join(self._http.send(event) or b"" for event in events))

    async def head(self) -> Head:
        """Waits for the head of the answer: a final one, or ``101``.

        Raises:
            Cut: it does not come, or is none.
        """
        while self._final is None:
            await self.informational()
        final, informational = self._final, tuple(self._informational)
        self._final, self._informational = None, []
        return _head_of(final, self.link.last_received, informational)

    async def informational(self) -> int | None:
        """Waits for the next 1xx answer and returns its status, or None when the final answer has come instead.

        Raises:
            Cut: nothing comes any more, or it is none.
        """
        while True:
            event = await self._next_event()
            if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                self._informational.append(event.status_code)
                return event.status_code
            if isinstance(event, h11.Response | h11.InformationalResponse):
                self._final = event
                return None

    async def piece(self) -> Piece | None:
        """Waits for the next part of the body; None at its end as the framing has it.

        A body that ends with its connection has no other end, so that one is a cut.

        Raises:
            Cut: the connection ended within the body, or the framing is wrong.
        """
        while True:
            event = await self._next_event()
            if isinstance(event, h11.EndOfMessage):
                return None
            if isinstance(event, h11.Data) and event.data:
                return Piece(self.link.last_received, bytes(event.data))

    async def answer(self) -> HttpAnswer:
        """Waits for a whole answer. One that is closed by its connection is whole when that has ended orderly.

        Raises:
            Cut: it does not come, not whole, or is too long.
        """
        return await self.answer_to(await self.head())

    async def answer_to(self, head: Head) -> HttpAnswer:
        """Waits for the rest of an answer; otherwise as ``answer``.

        Raises:
            Cut: it does not come, not whole, or is too long.
        """
        body = bytearray()
        try:
            await self._collect(body)
        except Cut as cut:
            if cut.ending.how is not End.FIN or not self.ends_with_connection(head):
                raise
        return HttpAnswer(head, bytes(body))

    async def _collect(self, body: bytearray) -> None:
        while (piece := await self.piece()) is not None:
            body += piece.data
            if len(body) > _MAX_BODY_BYTES:
                raise Cut(Ending(End.GARBLED, piece.at, why="the answer is too long"))

    def ends_with_connection(self, head: Head) -> bool:
        """Whether the body of this answer has no other end than the connection's (RFC 9112 6.3)."""
        return head.header("content-length") is None and head.header("transfer-encoding") is None

    def is_reusable(self) -> bool:
        """Whether another request may follow on this connection; readies it for that."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        if self._http.trailing_data[0]:
            return False
        self._http.start_next_cycle()
        return True

    def trailing_bytes(self) -> bytes:
        """What came behind a ``101`` already."""
        return self._http.trailing_data[0]

    async def _next_event(self) -> h11.Event:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise Cut(Ending(End.GARBLED, self.link.last_received, why=str(error))) from None
            if event is h11.NEED_DATA:
                # The end is not told to h11, which would take it for an error of its own kind.
                self._http.receive_data(await self.link.receive())
            elif isinstance(event, h11.Event) and not isinstance(event, h11.ConnectionClosed):
                return event
            else:  # paused behind an answer: nothing more was asked for
                raise Cut(Ending(End.GARBLED, trio.current_time(), why="an answer that nobody asked for"))


@asynccontextmanager
async def open_http(target: Target) -> AsyncIterator[HttpLink]:
    """A new connection to the target, closed at the end of the block.

    Raises:
        Lost: it cannot be made now.
        ClientError: it can never be made.
    """
    link = await open_link(target)
    try:
        yield HttpLink(link, target)
    finally:
        await trio.aclose_forcefully(link.stream)


def _head_of(event: h11.Response | h11.InformationalResponse, at: float, informational: tuple[int, ...]) -> Head:
    fields = [
        (bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in event.headers.raw_items()
    ]
    reason, version = bytes(event.reason).decode("latin-1"), event.http_version.decode("ascii")
    return Head(event.status_code, reason, version, fields, at, informational)
