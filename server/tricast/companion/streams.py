"""What a probe holds open: event streams, polls and WebSockets that are silent, or talk, exactly as it asked.

Unlike those of ``transports`` they are on no wheel and send no keepalive of their own accord: silence is the point.
"""

from abc import ABC, abstractmethod

import msgspec
import trio
from wsproto import ConnectionType
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from tricast.companion.records import Trace
from tricast.connection import Connection
from tricast.errors import ConnectionLost
from tricast.runtime import Runtime
from tricast.wire import sse
from tricast.wire.http1 import LAST_CHUNK, chunk
from tricast.wire.probe import LONGEST_HOLD

#: How long the peer may take to close, once this side has.
_LEAVE_SECONDS = 2.0
_RESTARTING = 1012


class Held(ABC):
    """One connection that is held for a probe.

    Args:
        connection: the client's, behind the request.
        runtime: what all connections share.
        trace: where is told what goes in and out.
        head: sent first.
    """

    def __init__(self, connection: Connection, runtime: Runtime, trace: Trace, head: bytes) -> None:
        self.connection = connection
        self.runtime = runtime
        self.trace = trace
        self._head = head
        self._speaking = trio.CancelScope()
        self._left: trio.Event = trio.Event()
        self._is_over = False

    def abandon(self) -> None:  # noqa: B027 - for all of them
        """See ``Takeover.abandon``: it has taken nothing."""

    async def run(self, nursery: trio.Nursery) -> None:
        """See ``Takeover.run``."""
        self.runtime.open[self.connection] = self
        nursery.start_soon(self._listen)
        with self._speaking:
            if self._head:
                await self.send(self._head)
            await self.speak()
        self._is_over = True
        self.trace.ended("own")
        with trio.move_on_after(_LEAVE_SECONDS):
            if self._speaking.cancelled_caught:
                await self.say_goodbye()
            await self.connection.finish()
            await self._left.wait()

    @abstractmethod
    async def speak(self) -> None:
        """Sends what there is to send until this side ends it."""

    @abstractmethod
    async def say_goodbye(self) -> None:
        """Ends it as its protocol has it."""

    async def hear(self, data: bytes) -> None:
        """Takes what came in, if that matters."""
        del data

    def drain(self, retry_after: float) -> None:  # noqa: ARG002 - a probe is told nothing
        """See ``Drainable.drain``."""
        self._speaking.cancel()

    async def send(self, data: bytes) -> None:
        """Sends bytes as they are.

        Raises:
            ConnectionLost: the peer is gone.
        """
        await self.connection.send(data)
        self.trace.sent(len(data))

    def stop(self, how: str) -> None:
        """Has ``speak`` end, for what the peer did.

        Args:
            how: what that was, for the record.
        """
        self._is_over = True
        self.trace.ended(how)
        self._speaking.cancel()

    async def _listen(self) -> None:
        while data := await self.connection.receive():
            self.trace.received(len(data))
            await self.hear(data)
        if not self._is_over:
            raise ConnectionLost("left", reason="left")
        self._left.set()


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What an event stream does. Times in seconds.

    Attributes:
        count: events.
        first: before the first one.
        gap: between two of them.
        pad: bytes of comment in front of each.
        hold: how long the stream stays after the last of them; 0 ends it.
        every: between comments while it stays; 0 for silence.
        last_event_id: what the client sent, repeated in the first event.
    """

    count: int
    first: float
    gap: float
    pad: int
    hold: float
    every: float
    last_event_id: str | None


class EventStreamProbe(Held):
    """An event stream by script.

    Args:
        connection: see ``Held``.
        runtime: see ``Held``.
        trace: see ``Held``.
        head: see ``Held``.
        script: what it does.
        server: the name of this process.
        is_chunked: whether the body is in chunks.
    """

    def __init__(
        self,
        connection: Connection,
        runtime: Runtime,
        trace: Trace,
        head: bytes,
        *,
        script: Script,
        server: str,
        is_chunked: bool,
    ) -> None:
        super().__init__(connection, runtime, trace, head)
        self._script = script
        self._server = server
        self._is_chunked = is_chunked

    async def speak(self) -> None:
        """See ``Held.speak``."""
        script = self._script
        with trio.move_on_after(LONGEST_HOLD):
            for number in range(script.count):
                await trio.sleep(script.gap if number else script.first)
                await self.send(self._framed(self._event(number)))
            with trio.move_on_after(script.hold):
                await self._stay(script.every)
        await self.say_goodbye()

    async def _stay(self, every: float) -> None:
        while every > 0:
            await trio.sleep(every)
            await self.send(self._framed(sse.KEEPALIVE))
        await trio.sleep_forever()

    async def say_goodbye(self) -> None:
        """See ``Held.say_goodbye``."""
        if self._is_chunked:
            await self.send(LAST_CHUNK)

    def _event(self, number: int) -> bytes:
        record = self.trace.record
        about = {
            "i": number,
            "t_send": round(self.trace.age, 6),
            "conn": record.conn,
            "nonce": record.nonce,
            "server": self._server,
        }
        if number == 0:
            about["last_event_id"] = self._script.last_event_id
        pad = b":%b\n" % (b"." * self._script.pad) if self._script.pad else b""
        return b"%bid: %d\ndata: %b\n\n" % (pad, number, msgspec.json.encode(about))

    def _framed(self, text: bytes) -> bytes:
        return chunk(text) if self._is_chunked else text


class PollProbe(Held):
    """An answer that comes late.

    Args:
        connection: see ``Held``.
        runtime: see ``Held``.
        trace: see ``Held``.
        answer: head and body.
        delay: after so many seconds.
    """

    def __init__(self, connection: Connection, runtime: Runtime, trace: Trace, answer: bytes, *, delay: float) -> None:
        super().__init__(connection, runtime, trace, b"")
        self._answer = answer
        self._delay = delay

    async def speak(self) -> None:
        """See ``Held.speak``."""
        await trio.sleep(self._delay)
        await self.say_goodbye()

    async def say_goodbye(self) -> None:
        """See ``Held.say_goodbye``."""
        await self.send(self._answer)


class HangUp:
    """A connection that is closed without an answer.

    Args:
        connection: the client's.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def abandon(self) -> None:
        """See ``Takeover.abandon``: it has taken nothing."""

    async def run(self, nursery: trio.Nursery) -> None:  # noqa: ARG002 - nothing is started
        """See ``Takeover.run``."""
        await trio.lowlevel.checkpoint()
        self._connection.shutdown_write()


class WebSocketProbe(Held):
    """A WebSocket that echoes, talks or is silent.

    Args:
        connection: see ``Held``.
        runtime: see ``Held``.
        trace: see ``Held``.
        head: see ``Held``.
        received: what came in behind the handshake.
        mode: ``echo`` answers messages and pings; ``talk`` pings, and answers nothing; ``sink`` only takes.
        gap: seconds between its pings in ``talk``.
        hold: seconds until this side closes.
        server: the name of this process.
    """

    def __init__(
        self,
        connection: Connection,
        runtime: Runtime,
        trace: Trace,
        head: bytes,
        *,
        received: bytes,
        mode: str,
        gap: float,
        hold: float,
        server: str,
    ) -> None:
        super().__init__(connection, runtime, trace, head)
        self._protocol = Protocol(ConnectionType.SERVER)
        self._received = received
        self._mode = mode
        self._gap = gap
        self._hold = hold
        self._server = server

    async def speak(self) -> None:
        """See ``Held.speak``: a first message tells who this is; then as the mode has it."""
        record = self.trace.record
        hello = {"conn": record.conn, "nonce": record.nonce, "server": self._server}
        await self._send_event(TextMessage(data=msgspec.json.encode(hello).decode()))
        if self._received:
            await self.hear(self._received)
        with trio.move_on_after(self._hold):
            while self._mode == "talk":
                await trio.sleep(self._gap)
                await self._send_event(Ping(payload=b""))
            await trio.sleep_forever()
        await self._send_event(CloseConnection(code=1000))

    async def say_goodbye(self) -> None:
        """See ``Held.say_goodbye``."""
        await self._send_event(CloseConnection(code=_RESTARTING))

    async def hear(self, data: bytes) -> None:
        """See ``Held.hear``."""
        try:
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                await self._answer(event)
        except RemoteProtocolError:
            self.stop("garbled")

    async def _answer(self, event: object) -> None:
        match event:
            case CloseConnection() if self._protocol.state is ConnectionState.OPEN:
                self.stop("garbled")  # wsproto's own word, for what came is no frame
            case CloseConnection():
                self.trace.record.close_code = event.code
                await self._send_event(event.response())
                self.stop("close")
            case Ping() if self._mode == "echo":
                await self._send_event(event.response())
            case TextMessage() | BytesMessage() if self._mode == "echo":
                await self._send_event(event)

    async def _send_event(self, event: Event) -> None:
        if self._protocol.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            try:
                data = self._protocol.send(event)
            except LocalProtocolError:  # it has just been closed
                return
            await self.send(data)
