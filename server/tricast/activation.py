"""Sockets that systemd has opened for this service (sd_listen_fds(3)), and keeps, so that a restart refuses nobody."""

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack

#: For what the kernel has no words for.
_NO_ERRNO = 0
#: The first descriptor that is handed over.
_FIRST = 3
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def activated_listeners(
    sockets: ExitStack,
    name: str,
    prepare: Callable[[socket.socket], None],
    environment: Mapping[str, str] = os.environ,
) -> list[socket.socket]:
    """The listening sockets of this name, of those that systemd has handed to this very process.

    Args:
        sockets: closes them. The service manager has its own copies, in whose queues clients wait meanwhile.
        name: as ``FileDescriptorName=`` says; empty for all there are.
        prepare: sets their options.
        environment: where systemd tells of them.

    Raises:
        OSError: there is none, or one is of another kind.
    """
    found = [fd for fd, its_name in _handed_over(environment) if name in ("", its_name)]
    where = f"systemd:{name}"
    if not found:
        raise OSError(_NO_ERRNO, "systemd has handed over no such socket", where)
    listeners = []
    for fd in found:
        try:
            listener = _listener_of(fd, sockets)
            prepare(listener)
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), where) from error
        listeners.append(listener)
    return listeners


def _listener_of(fd: int, sockets: ExitStack) -> socket.socket:
    os.set_inheritable(fd, False)
    listener = sockets.enter_context(socket.socket(fileno=fd))
    is_stream = listener.family in _FAMILIES and listener.type == socket.SOCK_STREAM
    if not is_stream or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(_NO_ERRNO, f"descriptor {fd} is no stream socket that listens")
    listener.setblocking(False)
    return listener


def _handed_over(environment: Mapping[str, str]) -> list[tuple[int, str]]:
    """The descriptors with their names. Of another process's they are none, though the variables may be inherited."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    fds = range(_FIRST, _FIRST + int(count)) if count.isascii() and count.isdecimal() else range(0)
    return [(fd, names[index] if index < len(names) else "") for index, fd in enumerate(fds)]
