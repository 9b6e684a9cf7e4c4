"""Listening on a Unix socket: its file, who may connect by its mode, and files that dead servers have left."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import trio

#: How long to wait for others who are just opening a socket in the same folder, which takes them a moment.
_LOCK_SECONDS = 1.0
_LOCK_TRIES_PER_SECOND = 50


async def open_unix_listener(
    sockets: ExitStack, path: str, mode: int, prepare: Callable[[socket.socket], None]
) -> socket.socket:
    """A listening socket with this file, in the place of one that nobody listens on.

    Args:
        sockets: closes it, and removes the file.
        path: of the file; its folder has to exist.
        mode: of the file: who may write may connect.
        prepare: sets its options, and has it listen.

    Raises:
        OSError: it cannot be had; the filename is the path.
    """
    try:
        async with _alone_in(Path(path).parent):
            _remove_stale(Path(path))
            listener = sockets.enter_context(socket.socket(socket.AF_UNIX))
            _bind(listener, path, mode, sockets)
            prepare(listener)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), path) from error
    return listener


@asynccontextmanager
async def _alone_in(folder: Path) -> AsyncIterator[None]:
    """Keeps out others who do the same there: between bind and listen a socket looks like one of a dead server's.

    Whoever may read the folder can hold its lock for ever: rather than never to start, this goes on without it then.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(round(_LOCK_SECONDS * _LOCK_TRIES_PER_SECOND)):
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            await trio.sleep(1 / _LOCK_TRIES_PER_SECOND)
        yield
    finally:
        os.close(lock)


def _bind(listener: socket.socket, path: str, mode: int, sockets: ExitStack) -> None:
    file = Path(path)
    listener.setblocking(False)
    listener.bind(path)
    sockets.callback(_remove_own, file, file.lstat().st_ino)
    # Nobody can connect before it listens, so the mode is never wider than it was to be.
    file.chmod(mode)


def _remove_stale(file: Path) -> None:
    """Removes the socket file of a server that is no more.

    Raises:
        OSError: somebody listens there, or it is another kind of file.
    """
    try:
        if not stat.S_ISSOCK(file.lstat().st_mode):
            raise OSError(0, "a file that is no socket is there")  # for which the kernel has no words
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(file))
        except ConnectionRefusedError:
            file.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # so many want in that the queue is full: somebody listens
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _remove_own(file: Path, inode: int) -> None:
    """Removes the file, unless another server's is there by now."""
    with suppress(OSError):
        if file.lstat().st_ino == inode:
            file.unlink()
