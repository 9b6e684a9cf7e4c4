"""What /proc and the kernel's clocks say about the processes of a server, and how all that was started is ended.

CPU time is read from the CPU clock of each process (clock_getcpuclockid(3)): nanoseconds, threads that have ended
included, where /proc/PID/stat counts in hundredths of a second and /proc/PID/task forgets ended threads.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_SET_CHILD_SUBREAPER = 36
_CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h: the clock of the scheduler, over all threads of a process


class Memory(NamedTuple):
    """Memory of some processes together.

    Attributes:
        rss: resident bytes; pages that processes share are counted in each.
        pss: proportional bytes: a shared page is divided among those that have it.
    """

    rss: int
    pss: int


def read_cpu_ns(pids: Iterable[int]) -> int:
    """Returns the CPU time that these processes have used, user and system. Those that are gone count as nothing."""
    return sum(_read_process_cpu_ns(pid) for pid in pids)


def _read_process_cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0


def read_memory(pids: Iterable[int]) -> Memory:
    """Returns what these processes hold now."""
    rss = pss = 0
    for pid in pids:
        proc = Path(f"/proc/{pid}")
        try:
            rss += int((proc / "statm").read_text().split()[1]) * _PAGE_BYTES
            pss += _read_pss(proc)
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return Memory(rss, pss)


def _read_pss(proc: Path) -> int:
    for line in (proc / "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024
    return 0


def share_nice(pid: int) -> None:
    """Makes the session of a process as nice as this process is.

    Where each session is scheduled as one (autogroup, sched(7)), the nice value of a process counts among those of its
    session alone.
    """
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):  # there are no such groups here, or it ended meanwhile
        if nice:
            Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")


def list_descendants(pid: int) -> list[int]:
    """Returns the processes below this one, children first."""
    found: list[int] = []
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *list_descendants(child)]
    except OSError:  # it ended meanwhile
        pass
    return found


def adopt_orphans() -> None:
    """Makes this process the parent of those below it whose parent ends, so that none gets away."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> None:
    """Kills all processes below this one, and waits for them. A killed parent may leave children: those are next."""
    deadline = time.monotonic() + 10
    while (pids := list_descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()
        time.sleep(0.02)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:  # nobody is left
        pass
