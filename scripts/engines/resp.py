"""Commands to a Redis over its Unix socket: RESP2, one at a time, whatever listens on TCP and whoever may use it."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

#: Bytes, an integer, nothing, or a list of these.
Reply = Any
_SECONDS = 60.0


class ReplyError(Exception):
    """Redis refused a command; the message is Redis's."""


def ask(path: Path, *commands: Sequence[str | bytes | int]) -> Reply:
    """The reply to the last of the commands.

    Args:
        path: of the socket.
        commands: each with its arguments.

    Raises:
        ReplyError: one was refused.
        OSError: nobody listens, or the answer did not come in time.
    """
    # A path by way of the folder's descriptor: that of a socket must not be longer than 107 bytes (unix(7)).
    folder = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_SECONDS)
            sock.connect(f"/proc/self/fd/{folder}/{path.name}")
            with sock.makefile("rb") as replies:
                reply = None
                for command in commands:
                    sock.sendall(_encode(command))
                    reply = _read(replies)
                return reply
    finally:
        os.close(folder)


def _encode(command: Sequence[str | bytes | int]) -> bytes:
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _read(replies: BinaryIO) -> Reply:
    line = replies.readline()
    if not line:
        raise ConnectionResetError("the connection was closed")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise ReplyError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else replies.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return None if rest == b"-1" else [_read(replies) for _ in range(int(rest))]
    return rest
