"""One end of a raw connection that keeps what arrives, when it does, and how the other side ended it."""

import re
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

import trio

FIN, RST = "FIN", "RST"


class Gone(Exception):
    """The other side does not take any more."""


class Arrival(NamedTuple):
    """What one read returned, at what time of the run."""

    time: float
    data: bytes


class End(NamedTuple):
    """How the other side ended the connection, and when."""

    how: str
    time: float


class Recorder:
    """A connected socket; ``record`` has to run beside whoever uses it.

    Attributes:
        arrivals: every read.
        data: all of them together.
        end: what the other side ended it with; None while it has not.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.arrivals: list[Arrival] = []
        self.data = bytearray()
        self.end: End | None = None
        self._reading = trio.Event()
        self._reading.set()
        self._changed = trio.Event()

    async def record(self) -> None:
        """Reads to the end, of the other side or this one."""
        while self.end is None:
            await self._reading.wait()
            try:
                data = await self.sock.recv(65536)
            except trio.ClosedResourceError:
                return
            except OSError:
                self._ended(RST)
            else:
                if data:
                    self.arrivals.append(Arrival(trio.current_time(), data))
                    self.data += data
                else:
                    self._ended(FIN)
            self.change()

    def stop_reading(self) -> None:
        """Leaves what comes from now on, but for one more read, in the socket."""
        self._reading = trio.Event()

    async def send(self, data: bytes) -> None:
        """Sends everything.

        Raises:
            Gone: the other side has reset the connection.
        """
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[await self.sock.send(rest) :]
        except trio.ClosedResourceError:
            raise Gone from None
        except OSError:
            self._ended(RST)
            self.change()
            raise Gone from None

    async def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Returns whether the condition came to hold before the other side's end, or so many seconds, had passed."""
        with trio.move_on_after(seconds):
            while not condition() and self.end is None:
                await self._changed.wait()
        return condition()

    async def wait_end(self, seconds: float) -> End | None:
        """The other side's end, if it comes within so many seconds."""
        await self.wait(lambda: self.end is not None, seconds)
        return self.end

    async def wait_data(self, mark: bytes, seconds: float) -> bool:
        """Returns whether the mark has come within so many seconds."""
        return await self.wait(lambda: mark in self.data, seconds)

    def time_of(self, mark: bytes) -> float | None:
        """When the last byte of the first such mark came; None if it has not."""
        place = self.data.find(mark)
        if place < 0:
            return None
        needed = place + len(mark)
        for arrival in self.arrivals:
            needed -= len(arrival.data)
            if needed <= 0:
                return arrival.time
        raise AssertionError("all that came is in the arrivals")

    def finish(self) -> None:
        """Ends this direction only."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._ended(RST)

    def reset(self) -> None:
        """Ends with a reset (SO_LINGER of zero seconds)."""
        if self.sock.fileno() != -1:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()

    def close(self) -> None:
        """Ends both directions."""
        self.sock.close()

    def _ended(self, how: str) -> None:
        if self.end is None:
            self.end = End(how, trio.current_time())

    def change(self) -> None:
        """Has everybody who waits look again."""
        self._changed.set()
        self._changed = trio.Event()


# Responses, read as leniently as they may come


class Response(NamedTuple):
    """A response as it came.

    Attributes:
        status: of it.
        version: that it named.
        fields: names in lower case, values, in their order.
        body: what has come of it, without chunk framing.
        state: "whole", "short" (ended too early) or "begun" (neither).
        at: place of its first byte.
        surplus: number of bytes behind a whole one.
    """

    status: int
    version: str
    fields: list[tuple[str, str]]
    body: bytes
    state: str
    at: int
    trailers: bytes = b""

    def get(self, name: str) -> str | None:
        """The field's values, joined with a comma."""
        values = [value for found, value in self.fields if found == name]
        return ", ".join(values) if values else None


def read_responses(data: bytes, *methods: str, ended: str | None = None) -> tuple[list[Response], bytes]:
    """The responses in the data, and what is no response behind them.

    Args:
        data: all that came.
        methods: of the requests, in order; those without are GET.
        ended: how the connection has ended, if it has.
    """
    responses: list[Response] = []
    place, finals = 0, 0
    while match := re.compile(rb"HTTP/(\d\.\d) (\d{3})[^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n").match(data, place):
        lines = match[3].decode("latin-1").split("\r\n")[:-1]
        fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        head = Response(int(match[2]), match[1].decode(), fields, b"", "whole", place)
        method = methods[finals] if finals < len(methods) else "GET"
        response, place = _read_body(head, data, match.end(), method, ended)
        responses.append(response)
        if response.status == 101:
            break
        finals += response.status >= 200
        if response.state != "whole":
            return responses, b""
    return responses, data[place:]


def _read_body(head: Response, data: bytes, place: int, method: str, ended: str | None) -> tuple[Response, int]:
    open_state = "short" if ended else "begun"
    if head.status < 200 or head.status in (204, 304) or method == "HEAD":
        return head, place
    if (head.get("transfer-encoding") or "").lower() == "chunked":
        return _read_chunks(head, data, place, open_state)
    if length := re.match(r"\d+", head.get("content-length") or ""):
        body = data[place : place + int(length[0])]
        state = "whole" if len(body) == int(length[0]) else open_state
        return head._replace(body=body, state=state), place + len(body)
    state = {None: "begun", FIN: "whole", RST: "short"}[ended]
    return head._replace(body=data[place:], state=state), len(data)


def end_of_chunks(data: bytes) -> int:
    """The place behind a chunked body that begins the data; 0 while it is not whole."""
    body, end = _read_chunks(Response(200, "1.1", [], b"", "whole", 0), data, 0, "begun")
    return end if body.state == "whole" else 0


def _read_chunks(head: Response, data: bytes, place: int, open_state: str) -> tuple[Response, int]:
    body = bytearray()
    while match := re.compile(rb"([0-9A-Fa-f]+)[^\r\n]*\r\n").match(data, place):
        size = int(match[1], 16)
        if size == 0:
            end = re.compile(rb"((?:[^\r\n]+\r\n)*)\r\n").match(data, match.end())
            if end is None:
                break
            return head._replace(body=bytes(body), trailers=end[1]), end.end()
        body += data[match.end() : match.end() + size]
        if len(data) < match.end() + size + 2:
            break
        place = match.end() + size + 2
    return head._replace(body=bytes(body), state=open_state), len(data)
