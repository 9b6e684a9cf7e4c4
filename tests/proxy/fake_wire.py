"""A client's connection without a socket: what the client gets when, and what it says when."""

import math

import trio

from tricast.errors import ConnectionLost
from tricast.sent import ALL, Sent


class FakeWire:
    """The proxy's end of a connection whose other end is a client that says what it says when it says it. A ``Duplex``.

    Args:
        script: bytes that come, and seconds that pass.
        leaves: whether the client leaves after the last item; else it stays and says nothing.

    Attributes:
        got: when the client got what; ``"fin"`` and ``"rst"`` are ends.
    """

    peer = "the client"
    descriptor = None
    sends_at_once = True

    def __init__(self, *script: bytes | float, leaves: bool = False) -> None:
        self._began = due = trio.current_time()
        self._items: list[tuple[float, bytes]] = []
        for item in script:
            if isinstance(item, float):
                due += item
            else:
                self._items.append((due, item))
        self._items.append((due if leaves else math.inf, b""))
        self._closed = trio.Event()
        self.got: list[tuple[float, bytes | str]] = []
        self.has_tail = False

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    @property
    def data(self) -> bytes:
        """All bytes that the client got."""
        return b"".join(what for _, what in self.got if isinstance(what, bytes))

    async def open(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes:
        self._check_open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_closed, nursery.cancel_scope)
            await trio.sleep_until(self._items[0][0])
            nursery.cancel_scope.cancel()
        self._check_open()
        return self._items.pop(0)[1] if len(self._items) > 1 else b""

    async def _cancel_when_closed(self, scope: trio.CancelScope) -> None:
        await self._closed.wait()
        scope.cancel()

    def receive_now(self) -> bytes | None:
        self._check_open()
        due, data = self._items[0]
        if due > trio.current_time():
            return None
        if data:
            self._items.pop(0)
        return data

    def send_now(self, data: bytes) -> Sent:
        self._check_open()
        self._note(data)
        return ALL

    async def send(self, data: bytes) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint()
        self._note(data)

    async def drain(self) -> None:
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    def shutdown_write(self) -> None:
        if ("fin") not in [what for _, what in self.got]:
            self._note("fin")

    async def finish(self) -> None:
        await trio.lowlevel.checkpoint()
        self.shutdown_write()

    async def linger(self) -> None:
        await self.finish()

    def close(self) -> None:
        if not self.is_closed:
            self.shutdown_write()
            self._closed.set()

    def reset(self) -> None:
        if not self.is_closed:
            self._note("rst")
            self._closed.set()

    def _note(self, what: bytes | str) -> None:
        if what:
            self.got.append((round(trio.current_time() - self._began, 3), what))

    def _check_open(self) -> None:
        if self.is_closed:
            raise ConnectionLost("closed", reason="closed")
