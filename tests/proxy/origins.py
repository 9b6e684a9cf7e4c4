"""Origins that do as told, and what a client gets through a proxy in front of them. Raw bytes on both sides."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import trio
from clients import Answer, Closed, Wire, read_head
from serving import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Asked(NamedTuple):
    """A request as it came to an origin.

    Attributes:
        connection: the number of the connection that it came on.
        line: its first line.
        fields: in wire order.
        body: without its frame.
    """

    connection: int
    line: str
    fields: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of all fields of a name."""
        return [value for found, value in self.fields if found.lower() == name.lower()]


class Visit:
    """A connection to an origin.

    Attributes:
        wire: it.
        number: from one.
    """

    def __init__(self, origin: "Origin", wire: Wire, number: int) -> None:
        self._origin = origin
        self.wire = wire
        self.number = number
        self._place = 0

    async def head(self) -> Asked:
        """The head of the next request; its body is not read.

        Raises:
            Closed: there is none.
        """
        line, *lines = (await self.wire.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        fields = [(name, value.strip()) for name, _, value in (text.partition(":") for text in lines)]
        asked = Asked(self.number, line, fields, b"")
        self._place = len(self._origin.requests)
        self._origin.requests.append(asked)
        return asked

    async def request(self) -> Asked:
        """The next request.

        Raises:
            Closed: there is none, or not all of it.
        """
        asked = await self.head()
        if asked.all("transfer-encoding"):
            asked = asked._replace(body=await read_chunked(self.wire))
        elif length := asked.all("content-length"):
            asked = asked._replace(body=await self.wire.exactly(int(length[0])))
        self._origin.requests[self._place] = asked
        return asked


Handler = Callable[[Visit], Awaitable[None]]


class Origin:
    """An origin that is listening.

    Attributes:
        url: where.
        visits: all connections there were.
        requests: all requests there were.
        open: how many connections it has now.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.visits: list[Visit] = []
        self.requests: list[Asked] = []
        self.open = 0

    async def wait_requests(self, count: int) -> list[Asked]:
        """All requests, once there are so many."""
        await until(lambda: len(self.requests) >= count)
        return self.requests

    async def wait_left(self) -> None:
        """Returns when no connection is open."""
        await until(lambda: not self.open)


@asynccontextmanager
async def origin(handler: Handler, *, host: str = "127.0.0.1") -> AsyncIterator[Origin]:
    """An origin on a free port, gone with all its connections at the end of the block."""
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    with trio.socket.socket(family) as listener:
        await listener.bind((host, 0))
        listener.listen(1000)
        where = f"[{host}]" if ":" in host else host
        running = Origin(f"http://{where}:{listener.getsockname()[1]}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept_forever, listener, running, handler, nursery)
            yield running
            nursery.cancel_scope.cancel()


async def _accept_forever(
    listener: trio.socket.SocketType, running: Origin, handler: Handler, nursery: trio.Nursery
) -> None:
    while True:
        sock, _ = await listener.accept()
        visit = Visit(running, Wire(sock), len(running.visits) + 1)
        running.visits.append(visit)
        nursery.start_soon(_handle, running, handler, visit)


async def _handle(running: Origin, handler: Handler, visit: Visit) -> None:
    running.open += 1
    try:
        with visit.wire, suppress(Closed):
            await handler(visit)
    finally:
        running.open -= 1


def always(*answers: bytes) -> Handler:
    """Answers each request on a connection with the next of these bytes, and the last for ever."""

    async def handle(visit: Visit) -> None:
        for answer in answers:
            await visit.request()
            await visit.wire.send(answer)
        while True:
            await visit.request()
            await visit.wire.send(answers[-1])

    return handle


def once(answer: bytes, *, resets: bool = False) -> Handler:
    """Answers one request with these bytes, and closes."""

    async def handle(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(answer)
        if resets:
            visit.wire.reset()

    return handle


async def silent(visit: Visit) -> None:
    """Reads whatever comes, and says nothing."""
    await visit.head()
    await visit.wire.rest()


async def read_chunk(wire: Wire) -> bytes:
    """One chunk; empty for the last."""
    size = int((await wire.until(b"\r\n")).partition(b";")[0], 16)
    if not size:
        return b""
    data = await wire.exactly(size)
    assert await wire.exactly(2) == b"\r\n"
    return data


async def read_chunked(wire: Wire) -> bytes:
    """A body in chunks with no trailers behind it."""
    pieces = []
    while piece := await read_chunk(wire):
        pieces.append(piece)
    assert await wire.exactly(2) == b"\r\n"
    return b"".join(pieces)


async def read_any(wire: Wire, method: str = "GET") -> Answer:
    """A whole answer, however it is framed.

    Raises:
        Closed: it is not whole.
    """
    answer = await read_head(wire)
    if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
        return answer
    if answer.headers.get("transfer-encoding") == "chunked":
        assert "content-length" not in answer.headers
        return answer._replace(body=await read_chunked(wire))
    if "content-length" in answer.headers:
        return answer._replace(body=await wire.exactly(int(answer.headers["content-length"])))
    body = bytes(wire.buffer)
    wire.buffer.clear()
    while await wire.receive():
        body += wire.buffer
        wire.buffer.clear()
    return answer._replace(body=body)
