"""How much memory the process takes, and whether that is too much for new work."""

import ctypes
import gc
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from tricast.logs import Logger

#: How often it is looked at. A storm of connections takes some 50 MB in that time.
SAMPLE_SECONDS = 0.5
#: Once over the watermark, new work is taken again below this part of it: or it would go to and fro with each client.
_ENOUGH = 0.9
#: While over it, what was freed is given back to the system every so many samples.
_SAMPLES_PER_TRIM = 10
_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """The resident size of this process (proc(5)); 0 where the system does not tell."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


async def give_back() -> None:
    """Gives back what was freed, which the C library would keep for itself otherwise."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # malloc_trim(3): glibc's
    if trim is not None:
        await trio.to_thread.run_sync(trim, 0)


class Watermark:
    """Whether the process takes more memory than it should.

    Args:
        allowed: bytes; 0 for any number.
        logger: is told when it begins and ends.
        measure: the bytes that are in use.
        give_back: gives back what was freed, so that they can be less.

    Attributes:
        allowed: the same.
        is_over: whether no new work should be taken.
    """

    def __init__(
        self,
        allowed: int,
        *,
        logger: Logger,
        measure: Callable[[], int] = resident_bytes,
        give_back: Callable[[], Awaitable[None]] = give_back,
    ) -> None:
        self.allowed = allowed
        self.is_over = False
        self._logger = logger
        self._measure = measure
        self._give_back = give_back

    def sample(self) -> None:
        """Looks at it once."""
        used = self._measure()
        if not self.is_over and used > self.allowed:
            self.is_over = True
            self._logger.warning("out of memory: no new work is taken", used=used, limits_memory=self.allowed)
        elif self.is_over and used <= self.allowed * _ENOUGH:
            self.is_over = False
            self._logger.info("enough memory: new work is taken again", used=used)

    async def watch(self) -> None:
        """Looks at it again and again, until cancelled; returns at once where there is no watermark."""
        samples = 0
        while self.allowed:
            self.sample()
            samples = samples + 1 if self.is_over else 0
            if samples % _SAMPLES_PER_TRIM == 1:
                await self._give_back()
            await trio.sleep(SAMPLE_SECONDS)
