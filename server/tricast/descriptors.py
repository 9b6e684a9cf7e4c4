"""File descriptors: how many there may be, and what to do when there are no more."""

import os
import resource
from pathlib import Path


def raise_soft_limit() -> tuple[int, int]:
    """Raises the soft limit of open descriptors to the hard one, and returns it before and after."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft, soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # some systems report a hard limit that they do not allow
        return soft, soft
    return soft, hard


def open_now() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


def room_for_connections(reserve: int) -> int:
    """How many connections fit beside what is open now, with a reserve for everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 2**31
    return max(1, soft - open_now() - reserve)


class Spare:
    """One descriptor kept open for the moment when there are no others, so that a client can still be told."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self.keep()

    def keep(self) -> bool:
        """Takes the spare descriptor (again); returns whether it is there."""
        if self._fd is None:
            try:
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def give_up(self) -> None:
        """Frees the spare descriptor."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
