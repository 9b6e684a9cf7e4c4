"""The service manager that started this program, and is told how it is: systemd, or what speaks its protocol.

That is text in datagrams to a socket that the environment names (sd_notify(3)). Where it names none, nobody is told.
"""

import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Self

import trio

from tricast.logs import Logger

#: How long a message may wait for room; but for moments there is some. What is told again soon does not wait.
_PATIENCE_SECONDS = 0.5
#: How often the watchdog is told in the time after which it acts (sd_watchdog_enabled(3) recommends twice).
_TIMES_TOLD = 3
#: What a program may take to end beside its drain.
_MARGIN_SECONDS = 10.0


class ServiceManager:
    """Tells the manager; to be closed, as a context.

    Args:
        address: of its socket; empty for none.
        watchdog: seconds after which the manager ends a program that it has not heard of; 0 for never.
        logger: where to log that it cannot be told.

    Attributes:
        watchdog: the seconds; 0 where nobody is told.
    """

    def __init__(self, address: str, watchdog: float, logger: Logger) -> None:
        self._address = address
        self.watchdog = watchdog if address else 0.0
        self._logger = logger
        # Kept open: a server that is out of descriptors is full, not ill.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @classmethod
    def take(cls, environment: MutableMapping[str, str], pid: int, logger: Logger) -> Self:
        """The manager that the environment names, which from then on names none: it is not for what this starts.

        Args:
            environment: variables, of which those of the protocol are taken away.
            pid: of this process.
            logger: where to log that the manager cannot be told.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        is_for_this = environment.pop("WATCHDOG_PID", str(pid)) == str(pid)
        if address and not address.startswith(("/", "@")):
            logger.warning("NOTIFY_SOCKET is of a kind that is not known here", address=address)
            address = ""
        watchdog = int(microseconds) / 1e6 if is_for_this and microseconds.isdecimal() else 0.0
        return cls(address, watchdog, logger)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ready(self, status: str) -> None:
        """Says that clients can come, at the beginning and after a reload.

        Args:
            status: one line for people who look at the service.
        """
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Says that the configuration is read again; ``ready`` has to follow, whatever comes of it."""
        # The time shows that the ``ready`` behind it is not one from before (systemd.service(5), notify-reload).
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self, seconds: float) -> None:
        """Says that the program goes down, and drains for so many seconds, whatever the unit file allows."""
        microseconds = round((seconds + _MARGIN_SECONDS) * 1e6)
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={microseconds}", "STATUS=draining")

    async def keep_watched(self, ailment: Callable[[], str]) -> None:
        """Tells the watchdog again and again that all is well, while it is, until cancelled.

        Who calls this shows by that alone that its event loop goes round.

        Args:
            ailment: what is wrong, in words; empty for nothing.
        """
        if not self.watchdog:
            return
        is_well = True
        while True:
            wrong = ailment()
            if not wrong:
                self._tell("WATCHDOG=1", patience=0.0)
            elif is_well:
                self._logger.error("the watchdog is told no more that all is well", problem=wrong)
            is_well = not wrong
            await trio.sleep(self.watchdog / _TIMES_TOLD)

    def _tell(self, *lines: str, patience: float = _PATIENCE_SECONDS) -> None:
        if not self._address:
            return
        # One that begins with @ is in no folder (unix(7), abstract).
        address = self._address.replace("@", "\0", 1) if self._address.startswith("@") else self._address
        try:
            self._socket.settimeout(patience)
            self._socket.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            self._logger.warning(
                "the service manager cannot be told", message=lines[0], problem=error.strerror or str(error)
            )
