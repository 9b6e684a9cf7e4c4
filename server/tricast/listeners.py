"""Listening sockets: opening them, and saying where they are. What they let in is somebody else's."""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack

import trio


async def open_listeners(
    sockets: ExitStack, host: str, port: int, prepare: Callable[[socket.socket], None], *, groups: int = 1
) -> list[list[socket.socket]]:
    """Listening sockets for every address that the host name has, all on the same port.

    Args:
        sockets: closes them.
        host: a name or an address; empty for every address of the machine.
        port: 0 for one that is free.
        prepare: sets the options of each, and has it listen.
        groups: how often, on the same port: the kernel spreads connections over the groups (SO_REUSEPORT).

    Raises:
        OSError: the name cannot be looked up, or the address cannot be had; the filename is the host and the port.
    """
    try:
        return await _open_groups(sockets, host, port, prepare, groups)
    except OSError as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise OSError(error.errno, error.strerror, where) from error


async def _open_groups(
    sockets: ExitStack, host: str, port: int, prepare: Callable[[socket.socket], None], groups: int
) -> list[list[socket.socket]]:
    found = await trio.socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    opened: list[list[socket.socket]] = [[] for _ in range(groups)]
    for family, kind, protocol, _, address in found:
        for group in opened:
            listener = sockets.enter_context(socket.socket(family, kind, protocol))
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Port 0 is chosen with the first address, and then used for all.
            chosen = opened[0][0].getsockname()[1] if opened[0] else port
            # The first of each address is bound as if it were alone, for with SO_REUSEPORT another server of the same
            # user that listens there would be no error, but would get half of the connections.
            if group is not opened[0]:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((address[0], chosen, *address[2:]))
            if groups > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            group.append(listener)
    for listener in (listener for group in opened for listener in group):
        prepare(listener)
    return opened


def url_of(listener: socket.socket | trio.socket.SocketType, *, has_tls: bool = False) -> str:
    """Where the listener can be reached: as a URL, or the file of a Unix socket."""
    if listener.family == socket.AF_UNIX:
        # In a namespace of its own, a name begins with a zero (unix(7)), for which "@" stands.
        return f"unix:{os.fsdecode(listener.getsockname())}".replace("\0", "@")
    host, port = listener.getsockname()[:2]
    scheme = "https" if has_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
