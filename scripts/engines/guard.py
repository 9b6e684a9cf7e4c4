"""Kills what is still running when whoever started it is gone: reads lines of ``+PID`` or ``-PID``, of process groups.

The input ends with the process at its other end, however that ended.
"""

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    guarded: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line.startswith("+"):
            guarded.add(pid)
        else:
            guarded.discard(pid)
    for pid in guarded:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
