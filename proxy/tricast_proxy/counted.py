"""A socket that knows what went through it, and when: whatever reads and writes it need not count."""

import socket
from typing import Any

import trio


class CountedSocket(socket.socket):
    """A socket that counts what ``recv`` and ``send`` did. Bytes are those on the wire: with TLS, they are encrypted.

    Args:
        sock: the socket that it takes the place of; that object has none any more.

    Attributes:
        received: bytes that came in.
        sent: bytes that the kernel took.
        opened: ``trio.current_time()`` of the beginning.
        last_received: the same of the last time that anything came in.
        last_sent: the same of the last time that anything was sent.
    """

    __slots__ = ("last_received", "last_sent", "opened", "received", "sent")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.setblocking(False)
        self.received = 0
        self.sent = 0
        self.opened = self.last_received = self.last_sent = trio.current_time()

    def recv(self, *args: Any) -> bytes:
        """See ``socket.socket.recv``."""
        data = super().recv(*args)
        self.received += len(data)
        self.last_received = trio.current_time()
        return data

    def send(self, *args: Any) -> int:
        """See ``socket.socket.send``."""
        count = super().send(*args)
        self.sent += count
        self.last_sent = trio.current_time()
        return count
