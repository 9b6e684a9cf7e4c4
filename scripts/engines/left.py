"""Programs that went on when the process that had started them ended: known by their ids, and since when they run."""

import os
import select
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from engines.daemon import STOP_SECONDS


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


def _signal(one: Left, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(one.pid, number)


def _read_stat(pid: int) -> list[str] | None:
    """What follows the program's name, which is in parentheses and may hold any (proc(5)); None when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
