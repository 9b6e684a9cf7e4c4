"""An origin on raw sockets that does what a script says, and records what came, when, and how it ended.

A request names its script: the first ``/c-NAME`` of its request line.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio
from proxies.recorder import End, Gone, Recorder, end_of_chunks

CHUNKED = "Transfer-Encoding: chunked"
NO_BUFFERING = "X-Accel-Buffering: no"
_NAME = re.compile(rb"/(c-[\w-]+)")


class Exchange:
    """One request, and the connection it came on.

    Attributes:
        peer: the connection.
        head: the request's, with the empty line.
        begun: when its last byte came.
        place: of the first byte behind the head, in what came on the connection.
        is_last: True when the script has ended the connection.
        times: when the script did what it marked.
    """

    def __init__(self, peer: Recorder, head: bytes, place: int) -> None:
        self.peer = peer
        self.head = head
        self.place = place
        self.begun = trio.current_time()
        self.is_last = False
        self.times: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Notes that something is done now."""
        self.times[name] = trio.current_time()
        self.peer.change()

    @property
    def request_line(self) -> str:
        """As it came."""
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def version(self) -> str:
        """That the request names."""
        return self.request_line.rpartition("HTTP/")[2]

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Names and values as they came, in order."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    def get(self, name: str) -> str | None:
        """The field's values, joined with a comma; the name in lower case."""
        values = [value for found, value in self.fields if found.lower() == name]
        return ", ".join(values) if values else None

    @property
    def behind(self) -> bytes:
        """What has come behind the head."""
        return bytes(self.peer.data[self.place :])

    @property
    def end(self) -> End | None:
        """How the other side ended the connection."""
        return self.peer.end

    async def body(self) -> bytes:
        """The request's body, when all of it has come; the next request begins behind it.

        Raises:
            Gone: it has not come to its end.
        """
        start = self.place
        if (self.get("transfer-encoding") or "").lower() == "chunked":
            if not await self.peer.wait(lambda: end_of_chunks(self.behind) > 0, float("inf")):
                raise Gone
            self.place += end_of_chunks(self.behind)
        elif length := int(self.get("content-length") or 0):
            if not await self.peer.wait(lambda: len(self.behind) >= length, float("inf")):
                raise Gone
            self.place += length
        return bytes(self.peer.data[start : self.place])

    async def send(self, data: bytes) -> None:
        """Sends everything.

        Raises:
            Gone: the other side has reset the connection.
        """
        await self.peer.send(data)

    async def answer(self, body: bytes = b"origin", status: str = "200 OK", *fields: str) -> None:
        """Reads the request's body, then sends one whole response with a length."""
        await self.body()
        await self.send(response_head(status, f"Content-Length: {len(body)}", *fields) + body)

    def finish(self) -> None:
        """Ends this direction only."""
        self.peer.finish()

    def close(self) -> None:
        """Ends the connection."""
        self.is_last = True
        self.peer.close()

    def reset(self) -> None:
        """Ends the connection with a reset."""
        self.is_last = True
        self.peer.reset()


Script = Callable[[Exchange], Awaitable[None]]


def response_head(status: str, *fields: str) -> bytes:
    """A response's head, marked as the origin's."""
    return "\r\n".join([f"HTTP/1.1 {status}", "X-Origin: yes", *fields, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """The data as a chunk (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def hold(exchange: Exchange) -> None:
    """Does nothing more until the other side ends the connection; then ends it as well."""
    await exchange.peer.wait_end(float("inf"))
    exchange.close()


async def answer(exchange: Exchange) -> None:
    """Answers with 200."""
    await exchange.answer()


class Origin:
    """Listens on a free port.

    Args:
        scripts: by name; a request that names none of them is answered with 200.

    Attributes:
        port: where it listens.
        connections: every one so far.
        exchanges: by name, in the order in which they came.
    """

    def __init__(self, scripts: dict[str, Script]) -> None:
        self._scripts = scripts
        self.port = 0
        self.connections: list[Recorder] = []
        self.exchanges: dict[str, list[Exchange]] = {}
        self._asked = trio.Event()

    def of(self, name: str) -> list[Exchange]:
        """The exchanges of that name."""
        return self.exchanges.setdefault(name, [])

    async def wait_exchange(self, name: str, seconds: float, count: int = 1) -> Exchange | None:
        """The exchange of that name and number, if it comes within so many seconds."""
        with trio.move_on_after(seconds):
            while len(self.of(name)) < count:
                await self._asked.wait()
        return self.of(name)[count - 1] if len(self.of(name)) >= count else None

    def hang_up(self, name: str) -> None:
        """Ends the connections on which exchanges of that name came."""
        for exchange in self.of(name):
            exchange.close()

    def saw(self, text: bytes) -> bool:
        """Whether the text came on any connection."""
        return any(text in peer.data for peer in self.connections)

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator["Origin"]:
        """Serves until the end of the block."""
        with trio.socket.socket() as listener:
            await listener.bind(("127.0.0.1", port))
            listener.listen(512)
            self.port = listener.getsockname()[1]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept, listener, nursery)
                yield self
                nursery.cancel_scope.cancel()

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            sock, _ = await listener.accept()
            nursery.start_soon(self._serve, sock)

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        peer = Recorder(sock)
        self.connections.append(peer)
        with sock:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.record)
                with suppress(Gone):
                    await self._play(peer)
                nursery.cancel_scope.cancel()

    async def _play(self, peer: Recorder) -> None:
        place = 0
        while (exchange := await self._next(peer, place)) is not None:
            match = _NAME.search(exchange.head.split(b"\r\n", 1)[0])
            name = match[1].decode() if match else ""
            self.of(name).append(exchange)
            self._asked.set()
            self._asked = trio.Event()
            await self._scripts.get(name, answer)(exchange)
            if exchange.is_last:
                return
            place = exchange.place

    async def _next(self, peer: Recorder, place: int) -> Exchange | None:
        """What begins at the place, when all of its head has come; None if that does not."""
        if not await peer.wait(lambda: peer.data.find(b"\r\n\r\n", place) >= 0, float("inf")):
            return None
        behind = peer.data.find(b"\r\n\r\n", place) + 4
        return Exchange(peer, bytes(peer.data[place:behind]), behind)
