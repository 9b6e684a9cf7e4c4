"""Programs that went on when the process that had started them ended: known by their ids, and since when they run."""

import os
import select
import signal
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from engines.daemon import HOST, STOP_SECONDS, Daemon


class Left(NamedTuple):
    """A program that leads a process group.

    Attributes:
        pid: which may be another program's by now.
        since: clock ticks from the start of the machine, by which it is told from that one.
    """

    pid: int
    since: int

    @property
    def is_running(self) -> bool:
        """Whether it is still the same, and has not ended."""
        fields = _read_stat(self.pid)
        return fields is not None and fields[0] != "Z" and int(fields[19]) == self.since


def remember(pid: int) -> Left:
    """The program that has this id now."""
    fields = _read_stat(pid)
    assert fields is not None, f"{pid} is not running"
    return Left(pid, int(fields[19]))


def end(programs: Iterable[Left]) -> None:
    """Has them end in order, and returns when all have; those that take too long are killed."""
    running = [one for one in programs if one.is_running]
    descriptors = {one: os.pidfd_open(one.pid) for one in running}
    try:
        for number in (signal.SIGCONT, signal.SIGTERM):
            for one in running:
                _signal(one, number)
        for one, descriptor in descriptors.items():
            if not select.select([descriptor], [], [], STOP_SECONDS)[0]:
                _signal(one, signal.SIGKILL)
                select.select([descriptor], [], [], STOP_SECONDS)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


class Start(NamedTuple):
    """How a program was started, and can be again.

    Attributes:
        folder: where it works.
        port: where it listens.
        command: with its arguments.
    """

    folder: str
    port: int
    command: Sequence[str]

    @classmethod
    def of(cls, daemon: Daemon) -> Self:
        """How this one was."""
        return cls(str(daemon.folder), daemon.port, list(daemon.command()))


def start_again(starts: Iterable[Start]) -> list[Daemon]:
    """Starts programs that have ended, and returns when all of them listen.

    Raises:
        NotStarted: one does not; the others have been ended.
    """
    daemons = [_Again(start) for start in starts]
    try:
        for daemon in daemons:
            daemon.launch()
        for daemon in daemons:
            daemon.wait_ready()
    except BaseException:
        for daemon in daemons:
            daemon.close()
        raise
    return list(daemons)


class _Again(Daemon):
    """A program of which nothing is known but how it is started."""

    def __init__(self, start: Start) -> None:
        super().__init__(Path(start.folder))
        self._start = start

    @property
    def name(self) -> str:
        return f"{Path(self._start.command[0]).name} on port {self.port}"

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def port(self) -> int:
        return self._start.port

    def command(self) -> Sequence[str]:
        return self._start.command

    def is_ready(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((HOST, self.port)) == 0

    def wipe(self) -> None:
        raise NotImplementedError


def _signal(one: Left, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(one.pid, number)


def _read_stat(pid: int) -> list[str] | None:
    """What follows the program's name, which is in parentheses and may hold any (proc(5)); None when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
