"""One non-blocking socket: receiving, sending at once, keeping an unsent tail, and closing.

The only place where bytes are written to or read from a client's socket, and where ``OSError`` becomes
``ConnectionLost``. Knows nothing of HTTP, events or subscribers. What is sent is always whole (a chunk, a frame, an
answer), and nothing is sent while a tail waits, so pieces of different writers never mix.
"""

import math
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import trio

from tricast.access.identity import Certified
from tricast.errors import ConnectionLost
from tricast.sent import ALL, NOTHING, PART, Sent

#: One receive. As large as a loopback read gets, and small enough for one buffer per call.
RECEIVE_BYTES = 64 * 2**10
#: While lingering after the last answer, so many bytes are read and thrown away at most, for so long at most, and for
#: no longer than this once nothing comes any more (nginx: 30 and 5 seconds).
_MAX_LINGER_BYTES = 16 * 2**20
_LINGER_SECONDS = 10.0
_LINGER_SILENCE_SECONDS = 2.0
#: What is kept to be sent with what follows.
_MAX_HELD_BYTES = 64 * 2**10
_MAX_HELD = 100


#: Returns when a peer may be let go.
LetGo = Callable[[], Awaitable[object]]


async def at_once() -> None:
    """Lets go without waiting."""


class _Sized(Protocol):
    """Something that takes so many bytes."""

    @property
    def size(self) -> int: ...


Front = TypeVar("Front", bound=_Sized)


class Connection:
    """A client's socket.

    Args:
        sock: connected and non-blocking; closed by ``close``.
        write_timeout: seconds in which at least one byte must be taken when the peer is waited for.
        write_rate: bytes a second that the peer must take, on the average of such a time, while it is waited for.
        max_unsent: bytes that may wait in pieces behind the one that is being sent; 0 for any number.
        let_go: waited for before anybody is told that the peer has ended or is given up: many of them at once are let
            go a few at a time.

    Attributes:
        peer: the address, as text, of who is at the other end, or of whom that one says it speaks for.
        client: of whom it is served for now: behind a proxy that tells, each request may be another one's.
        last_received: ``trio.current_time()`` of the last byte that came in.
        is_closed: whether ``close`` was called.
        has_ended: whether the peer was heard to send no more.
        let_go: see above; for those who give the peer up for their own reasons.
        rotates_at: when it will have been there for long enough, by ``trio.current_time()``.
    """

    #: One receive, at most.
    _receive_bytes = RECEIVE_BYTES
    #: Whether ``send_now`` is all that ``send`` is, but for the waiting; for those who stand in for one.
    sends_at_once = True

    __slots__ = (
        "_drained",
        "_held",
        "_is_draining",
        "_max_unsent",
        "_patience",
        "_sock",
        "_tail",
        "_waiting",
        "_write_rate",
        "_write_timeout",
        "client",
        "has_ended",
        "is_closed",
        "last_received",
        "let_go",
        "peer",
        "rotates_at",
    )

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        *,
        write_timeout: float,
        write_rate: int = 0,
        max_unsent: int = 0,
        let_go: LetGo = at_once,
    ) -> None:
        self._sock = sock
        self._tail: memoryview | None = None
        self._held: list[bytes] | None = None
        self._write_timeout = write_timeout
        self._write_rate = write_rate
        self._max_unsent = max_unsent
        self.let_go = let_go
        #: Seconds for which the peer may still be waited for. Each that it takes to take a byte is one less, and what
        #: it takes then is worth as many as the rate allows for it: so a byte a second is no progress.
        self._patience = write_timeout
        self._waiting = 0  # bytes that tasks hold until the tail is gone
        self._is_draining = False
        self._drained: trio.Event | None = None
        self.peer = self.client = peer
        self.last_received = trio.current_time()
        self.is_closed = False
        self.has_ended = False
        self.rotates_at = math.inf

    def named(self) -> dict[str, str]:
        """Who this is, for the log."""
        return {"peer": self.peer} if self.client is self.peer else {"peer": self.peer, "client": self.client}

    async def open(self) -> None:
        """Does what must be done before anything can be received or sent.

        Raises:
            ConnectionLost: the peer is gone, or cannot be agreed with.
        """

    @property
    def certified(self) -> Certified | None:
        """Who the client is by its certificate; None where it has shown none."""
        return None

    async def receive(self) -> bytes:
        """The next bytes from the peer; empty when it will send no more. Cancelling loses none.

        What ``send_soon`` keeps is sent before, as nobody must wait for the answer to it.

        Raises:
            ConnectionLost: reset, or closed on this side.
        """
        if self._held is not None:
            await self.flush()
        while True:
            self._check_open()
            try:
                # Not in a method of its own: each frame of a coroutine that waits here is memory for every connection.
                await trio.lowlevel.wait_readable(self._sock)
                data = self._sock.recv(self._receive_bytes)
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                raise ConnectionLost("closed", reason="closed") from None
            except OSError as error:
                lost: ConnectionLost | None = _lost(error)
            else:
                self.last_received = trio.current_time()
                if data:
                    return data
                self.has_ended = True
                lost = None
            await self.let_go()
            if lost is None:
                return b""
            try:
                raise lost
            finally:
                del lost  # its traceback holds this frame

    def receive_now(self) -> bytes | None:
        """What has come in already, without waiting; empty when the peer will send no more, None when nothing is there.

        Raises:
            ConnectionLost: reset.
        """
        try:
            return self._sock.recv(self._receive_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _lost(error) from None

    async def receive_front(self, parse: Callable[[bytes], Front | None], max_bytes: int) -> Front:
        """What the peer sends before all else, and not a byte more: what follows is for ``open`` and ``receive``.

        Cancelling may lose the part that came.

        Args:
            parse: makes it out of what has come so far; None when that is not all of it.
            max_bytes: that it may take.

        Raises:
            ConnectionLost: the peer is gone.
        """
        came = b""
        while True:
            self._check_open()
            try:
                await trio.lowlevel.wait_readable(self._sock)
                ahead = self._sock.recv(max_bytes - len(came), socket.MSG_PEEK)
                front = parse(came + ahead)
                # All of it, where more is to come: else it would be there, and woken for, again and again.
                came += self._sock.recv(len(ahead) if front is None else front.size - len(came))
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                raise ConnectionLost("closed", reason="closed") from None
            except OSError as error:
                raise _lost(error) from None
            if front is not None:
                return front
            if not ahead:
                raise ConnectionLost("left", reason="left")

    @property
    def descriptor(self) -> int | None:
        """Of the socket, for those who wait for it themselves; None where what it has come to is not what it says."""
        return self._sock.fileno()

    @property
    def has_tail(self) -> bool:
        """Whether something that was to be sent still waits for room."""
        return self._tail is not None

    def send_now(self, data: bytes) -> Sent:
        """Sends what the kernel takes in one call, without waiting; keeps the rest, uncopied, as the tail.

        Raises:
            ConnectionLost: the peer has reset the connection, or it is closed.
        """
        if self._tail is not None:
            return NOTHING
        if self._held is not None:
            data = self._with_held(data)
        try:
            count = self._sock.send(data)
        except BlockingIOError:
            count = 0
        except OSError as error:
            raise _lost(error) from None
        if count == len(data):
            return ALL
        self._tail = memoryview(data)[count:]
        return PART

    def _with_held(self, data: bytes) -> bytes:
        """The data behind what ``send_soon`` keeps, which from then on is the caller's to send."""
        held, self._held = self._held or (), None
        return b"".join((*held, data))

    async def send(self, data: bytes) -> None:
        """Sends all of it, after whatever still waits. Cancelling leaves a part unsent: then only close.

        Raises:
            ConnectionLost: reset, closed, the peer took too little for too long, or too much waits for it.
        """
        while self.send_now(data) is NOTHING:
            await self.drain(holding=len(data))
        if self._tail is not None:
            await self.drain()

    async def send_soon(self, data: bytes) -> None:
        """Sends it in one call with what follows, and before anything is received, so that many answers cost one call.

        Cancelling leaves it to the next call.

        Raises:
            ConnectionLost: as ``send``, but maybe only in a later call.
        """
        if self._held is None:
            self._held = []
        self._held.append(data)
        if sum(map(len, self._held)) > _MAX_HELD_BYTES or len(self._held) > _MAX_HELD:
            await self.flush()

    async def flush(self) -> None:
        """Sends what ``send_soon`` keeps. Cancelling loses none.

        Raises:
            ConnectionLost: as ``send``.
        """
        if self._held is not None:
            await self.send(b"")

    async def drain(self, *, holding: int = 0) -> None:
        """Returns when nothing waits any more. Several tasks may wait; one of them does the sending.

        Args:
            holding: bytes that the caller is going to send then.

        Raises:
            ConnectionLost: reset, closed, the peer took too little for too long, or too much waits for it.
        """
        if self._tail is None:
            return
        self._waiting += holding
        try:
            self._check_waiting(holding)
            while self._tail is not None:
                if self._is_draining:
                    if self._drained is None:
                        self._drained = trio.Event()
                    await self._drained.wait()
                else:
                    await self._drain_alone()
        finally:
            self._waiting -= holding

    def _check_waiting(self, newest: int) -> None:
        """Gives up a peer for whom too much waits. What is being sent is not counted, nor is one piece behind it.

        Raises:
            ConnectionLost: it does.
        """
        if 0 < self._max_unsent < self._waiting != newest:
            self.reset()  # whoever waits is told as well
            raise ConnectionLost(f"more than {self._max_unsent} bytes wait for it", reason="unsent")

    async def _drain_alone(self) -> None:
        self._is_draining = True
        try:
            while self._tail is not None:
                await self._wait_writable()
                try:
                    count = self._sock.send(self._tail)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise _lost(error) from None
                self._tail = self._tail[count:] if count < len(self._tail) else None
                earned = count / self._write_rate if self._write_rate else self._write_timeout
                self._patience = min(self._patience + earned, self._write_timeout)
        finally:
            # Also when cancelled: another waiting task takes over where this one stopped.
            self._is_draining = False
            if self._drained is not None:
                self._drained.set()
                self._drained = None

    async def _wait_writable(self) -> None:
        self._check_open()
        began = trio.current_time()
        with trio.move_on_after(self._patience) as scope:
            try:
                await trio.lowlevel.wait_writable(self._sock)
            except trio.ClosedResourceError:
                raise ConnectionLost("closed", reason="closed") from None
        if not scope.cancelled_caught:
            self._patience = max(self._patience - (trio.current_time() - began), 0.0)
            return
        await self.let_go()
        if self._patience == self._write_timeout:
            raise ConnectionLost(f"took no data for {self._write_timeout:g} s", reason="write-timeout")
        detail = f"took less than {self._write_rate} bytes a second for {self._write_timeout:g} s"
        raise ConnectionLost(detail, reason="write-rate")

    def _check_open(self) -> None:
        # A closed socket's descriptor is -1, which Trio would go on to wait for.
        if self.is_closed:
            raise ConnectionLost("closed", reason="closed")

    def shutdown_write(self) -> None:
        """Tells the peer that nothing more will come. Does nothing when it is gone already."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return

    async def finish(self) -> None:
        """Sends what still waits, and then tells the peer that nothing more will come.

        Raises:
            ConnectionLost: as ``send``.
        """
        await self.flush()
        await self.drain()
        self.shutdown_write()

    async def linger(self) -> None:
        """Lets the peer read the last answer before the connection is closed.

        Closing with unread input makes the kernel send a reset, which can destroy the answer on its way (RFC 9112
        9.6). So: no more output, and the rest of the input is read and thrown away, bounded in time and size.
        """
        now = trio.current_time()
        left, end = _MAX_LINGER_BYTES, now + _LINGER_SECONDS
        with suppress(ConnectionLost):
            with trio.move_on_at(now + _LINGER_SILENCE_SECONDS) as scope:
                await self.finish()
            while left > 0 and not scope.cancelled_caught:
                # Each time another scope: what came while this process was held up is read, and not taken for silence.
                with trio.move_on_at(min(end, trio.current_time() + _LINGER_SILENCE_SECONDS)) as scope:
                    data = await Connection.receive(self)  # as it came: nobody wants it decrypted
                    if not data:
                        return
                    left -= len(data)

    def reset(self) -> None:
        """Closes at once with a reset: what was sent and not yet acknowledged is lost."""
        if not self.is_closed:
            # A linger time of zero (socket(7)).
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            Connection.close(self)  # with TLS, its goodbye would be lost as well

    def close(self) -> None:
        """Closes at once; whoever waits for the socket gets ``ConnectionLost``. Closing twice is no error."""
        if not self.is_closed:
            self.is_closed = True
            self._tail = None
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


def _lost(error: OSError) -> ConnectionLost:
    # The kernel has the same patience as we have (TCP_USER_TIMEOUT), and may be the first to lose it.
    reason = "write-timeout" if isinstance(error, TimeoutError) else "reset"
    return ConnectionLost(error.strerror or str(error), reason=reason)
