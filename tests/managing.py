"""A service manager for a test: a socket, and what was told to it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import trio


class Manager:
    """Takes messages as systemd does.

    Args:
        address: of the socket, as the environment has it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @classmethod
    @contextmanager
    def at(cls, address: str) -> Iterator[Self]:
        """One that listens during the block."""
        manager = cls(address)
        with manager._socket as sock:
            sock._sock.bind(address.replace("@", "\0", 1))
            yield manager

    def environment(self, watchdog: float = 0.0) -> dict[str, str]:
        """What a service is started with.

        Args:
            watchdog: seconds; 0 for none.
        """
        return {"NOTIFY_SOCKET": self.address} | ({"WATCHDOG_USEC": f"{watchdog * 1e6:.0f}"} if watchdog else {})

    async def next(self) -> dict[str, str]:
        """The next message, by variable."""
        lines = (await self._socket.recv(65536)).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    async def next_of(self, variable: str) -> dict[str, str]:
        """The next message that sets this variable; what comes before it may only be for the watchdog."""
        while variable not in (message := await self.next()):
            assert message == {"WATCHDOG": "1"}
        return message

    def waiting(self) -> list[bytes]:
        """All that was told and not taken, now taken."""
        messages = []
        while True:
            try:
                messages.append(self._socket._sock.recv(65536))
            except BlockingIOError:
                return messages
