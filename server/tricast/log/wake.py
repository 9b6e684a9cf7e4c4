"""How the processes that share a log tell one another that there is something new: one byte, and no answer.

Each has a Unix datagram socket in a folder beside the database; who has committed sends to all others there. It is a
hint and no more: a byte that is lost makes nobody miss anything, but find it a moment later.
"""

import os
import select
import socket
from contextlib import suppress
from pathlib import Path

#: Enough for those that come while one is looked at; more would say nothing new.
_MAX_CLEARED = 64
_FOLDER_MODE = 0o700
_SUFFIX = ".sock"


class Wake:
    """One process's place among those that wake each other.

    Args:
        folder: where the sockets are; made if it is not there.

    Raises:
        OSError: there can be no socket there.
    """

    def __init__(self, folder: Path) -> None:
        with suppress(FileExistsError):
            folder.mkdir(mode=_FOLDER_MODE)
        self._name = f"{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}"
        # The address of a Unix socket has 107 bytes, and folders may be deeper than that: so this way round.
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(self._address(self._name))
        except OSError:
            self._close()
            raise

    def fileno(self) -> int:
        """The descriptor that is readable when somebody has something new."""
        return self._socket.fileno()

    def close(self) -> None:
        """Leaves the folder."""
        with suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder)
        self._close()

    def wake_others(self) -> None:
        """Tells all others; does not wait for any of them."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - a folder by its descriptor
        except OSError:
            return  # it takes a descriptor of its own, and there may be none; they look by themselves
        for name in names:
            if name.endswith(_SUFFIX) and name != self._name:
                self._wake(name)

    def clear(self) -> bool:
        """Takes what has come in; returns whether there was anything."""
        for count in range(_MAX_CLEARED):
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return count > 0
        return True

    def wait(self, seconds: float) -> bool:
        """Returns when something comes in, or after so many seconds; whether it was the former, and takes it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.poll(seconds * 1000)
        return self.clear()

    def _wake(self, name: str) -> None:
        try:
            self._socket.sendto(b"!", self._address(name))
        except ConnectionRefusedError:
            # Its process is gone and left it there. What cannot be removed is in nobody's way.
            with suppress(OSError):
                os.unlink(name, dir_fd=self._folder)
        except OSError:
            return  # it left just now, or has more than enough in its queue, or is another user's: it looks by itself

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._folder}/{name}"

    def _close(self) -> None:
        self._socket.close()
        os.close(self._folder)
