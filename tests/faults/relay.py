"""A TCP relay of the test's own: what stands between one server and the log, and what can go wrong there."""

import random
import socket
import struct
from contextlib import suppress
from enum import Enum

import trio

_BYTES = 65536
_LOST = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Way(Enum):
    """What becomes of the bytes."""

    PASS = "pass"
    REFUSE = "refuse"  # connections are reset, new ones as well
    HOLE = "hole"  # nothing comes through; what was sent comes through afterwards
    SLOW = "slow"  # everything takes its time


class Relay:
    """Passes connections on to an address.

    Args:
        numbers: for how slow it is.

    Attributes:
        upstream_port: where connections go, on 127.0.0.1.
        port: where it listens, on 127.0.0.1, once it serves.
    """

    def __init__(self, numbers: random.Random) -> None:
        self._numbers = numbers
        self._way = Way.PASS
        self._is_open = trio.Event()
        self._is_open.set()
        self._connections: set[trio.CancelScope] = set()
        self.upstream_port = 0
        self.port = 0

    async def serve(self, task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED) -> None:
        """Relays until it is cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        await trio.serve_listeners(self._relay, [listener], task_status=task_status)

    def take(self, way: Way) -> None:
        """Does this with all bytes from now on."""
        self._way = way
        if way is Way.REFUSE:
            self.drop()
        if way is Way.HOLE:
            if self._is_open.is_set():
                self._is_open = trio.Event()
        else:
            self._is_open.set()

    def drop(self) -> None:
        """Resets all connections that there are."""
        for scope in self._connections:
            scope.cancel()

    async def _relay(self, downstream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                with suppress(*_LOST):
                    await self._pass_on(downstream)
            finally:
                self._connections.discard(scope)
                _reset(downstream)

    async def _pass_on(self, downstream: trio.SocketStream) -> None:
        await self._is_open.wait()
        if self._way is Way.REFUSE:
            return
        upstream = await trio.open_tcp_stream("127.0.0.1", self.upstream_port)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, downstream, upstream, nursery.cancel_scope)
                nursery.start_soon(self._pump, upstream, downstream, nursery.cancel_scope)
        finally:
            _reset(upstream)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
        with suppress(*_LOST):
            while data := await source.receive_some(_BYTES):
                if self._way is Way.SLOW:
                    await trio.sleep(self._numbers.uniform(0.02, 0.4))
                await self._is_open.wait()
                await sink.send_all(data)
        await self._is_open.wait()  # the end does not come through either
        both.cancel()


def _reset(stream: trio.SocketStream) -> None:
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()
