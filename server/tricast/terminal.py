"""The terminal that a program was started from, which may be closed while it runs."""

import os
import signal


class Terminal:
    """The controlling terminal, as it is now; to be made before the program takes SIGHUP into its own hands.

    A program that was started so as to outlive its terminal (``nohup``, which lets it ignore SIGHUP) has none here.
    """

    def __init__(self) -> None:
        self._was_there = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _is_there()

    @property
    def is_gone(self) -> bool:
        """Whether there was one, and it has been closed: that is what SIGHUP first meant."""
        return self._was_there and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
