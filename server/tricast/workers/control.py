"""What the supervisor and a worker say to each other, over a pair of sockets.

The pair keeps messages whole (SOCK_SEQPACKET). Its end tells each side that the other is gone, however that ended.
"""

import socket
from contextlib import suppress

import msgspec
import trio

#: More than the longest message; the kernel takes it at its word only up to net.core.wmem_max.
_MAX_MESSAGE_BYTES = 2**20


class Begin(msgspec.Struct, tag=True):
    """The first message to a worker.

    Attributes:
        worker: its number.
        restarts: how often others with this number have died.
        config: the configuration as JSON, complete and checked.
        path: where Python finds modules.
        listeners: descriptors by number of the worker whose they are.
        admin_listeners: descriptors that all workers have.
        boards: descriptors by number of the worker whose they are.
        folder: the supervisor's private folder, for what all workers share; who outlives the supervisor removes it.
            None is "".
        tickets: a descriptor of what all workers remember of tickets.
    """

    worker: int
    restarts: int
    config: msgspec.Raw
    path: list[str]
    listeners: list[list[int]]
    admin_listeners: list[int]
    boards: list[int]
    folder: str
    tickets: int


class Accept(msgspec.Struct, tag=True):
    """To a worker: accept from the listeners of these workers, and of no others."""

    workers: list[int]


class Retire(msgspec.Struct, tag=True):
    """To a worker: another has taken its place; let nobody in any more, and drain."""


class Renew(msgspec.Struct, tag=True):
    """To a worker: show the certificate that is in these files now, to those who come from now on.

    Attributes:
        tls: the section of the configuration, as JSON.
    """

    tls: msgspec.Raw


class Drain(msgspec.Struct, tag=True):
    """To a worker: drain, as the whole server goes down; nothing new for one that drains already."""


class Ready(msgspec.Struct, tag=True):
    """From a worker: it accepts connections."""


class Leaving(msgspec.Struct, tag=True):
    """From a worker: it lets nobody in any more, and drains or is about to, whoever told it to."""


class Failed(msgspec.Struct, tag=True):
    """From a worker: it cannot begin, and ends. Each line says why, for the person who started the program."""

    lines: list[str]


Message = Begin | Accept | Renew | Retire | Drain | Ready | Leaving | Failed


class Control:
    """One end of the pair.

    Args:
        sock: connected.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_MESSAGE_BYTES)
        self._receiving = trio.socket.from_stdlib_socket(sock)
        self._sending = sock

    def tell(self, message: Message) -> bool:
        """Sends a message without waiting. That the other side is gone is seen elsewhere.

        Returns:
            Whether there was room for it: there is none when the other side has not listened for long.

        Raises:
            OSError: the message is too long.
        """
        try:
            with suppress(ConnectionError):
                self._sending.send(msgspec.json.encode(message))
        except BlockingIOError:
            return False
        return True

    async def wait_room(self) -> None:
        """Returns when there may be room for a message, or nobody any more to send one to."""
        await trio.lowlevel.wait_writable(self._sending)

    async def next(self) -> Message | None:
        """The next message; None when the other side is gone."""
        try:
            data = await self._receiving.recv(_MAX_MESSAGE_BYTES)
        except ConnectionResetError:  # it left without reading all that it was told
            return None
        return msgspec.json.decode(data, type=Message) if data else None

    def close(self) -> None:
        """Closes this end."""
        self._receiving.close()
