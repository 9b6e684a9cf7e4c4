"""How much memory the process takes, and whether that is too much for new work."""

import ctypes
import gc
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import trio

from tricast.logs import Logger

#: How often it is looked at. A storm of connections takes some 30 MB in that time.
SAMPLE_SECONDS = 0.5
#: Once over the watermark, new work is taken again below this part of it: or it would go to and fro with each client.
ENOUGH = 0.9
#: While over it, what was freed is given back to the system every so many samples.
_SAMPLES_PER_TRIM = 10
#: What connections are made of takes 98 to 128 bytes a block (measured: 9,000 of them, CPython 3.11).
BYTES_PER_BLOCK = 96
_STATM = Path("/proc/self/statm")


class Usage(NamedTuple):
    """What a process has of memory.

    Attributes:
        resident: bytes that it takes.
        blocks: pieces of Python's own heap that are in use.
    """

    resident: int
    blocks: int


def usage() -> Usage:
    """What this process has now (proc(5)); the resident size is 0 where the system does not tell."""
    try:
        resident = int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        resident = 0
    return Usage(resident, sys.getallocatedblocks())


async def give_back() -> None:
    """Gives back what was freed, which the C library would keep for itself otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # malloc_trim(3): glibc's
    if trim is not None:
        await trio.to_thread.run_sync(trim, 0)


class Watermark:
    """Whether the process takes more memory than it should.

    Python keeps most of what it frees, for itself: when 9,000 connections had come and gone, of the 53 MB that they
    took 40 were still resident. Seen from outside a server would never again have room for new work, so what can be
    used again is counted off: as many blocks as were in use at the most, less those that are.

    Args:
        allowed: bytes; 0 for any number.
        logger: is told when it begins and ends.
        measure: what is in use.
        give_back: gives back what was freed, so that the resident size can fall.

    Attributes:
        allowed: the same.
        is_over: whether no new work should be taken.
    """

    def __init__(
        self,
        allowed: int,
        *,
        logger: Logger,
        measure: Callable[[], Usage] = usage,
        give_back: Callable[[], Awaitable[None]] = give_back,
    ) -> None:
        self.allowed = allowed
        self.is_over = False
        self._enough = int(allowed * ENOUGH)
        self._logger = logger
        self._measure = measure
        self._give_back = give_back
        self._peak = Usage(0, 0)  # when most blocks were in use
        self._lowest = 0  # resident size since then

    def sample(self) -> None:
        """Looks at it once."""
        now = self._measure()
        used = now.resident - self._free(now)
        if not self.is_over and used > self.allowed:
            self.is_over = True
            self._logger.warning("out of memory: no new work is taken", used=used, limits_memory=self.allowed)
        elif self.is_over and used <= self._enough:
            self.is_over = False
            self._logger.info("enough memory: new work is taken again", used=used)

    def _free(self, now: Usage) -> int:
        """What is resident, and can be used again, about."""
        if now.blocks >= self._peak.blocks or now.resident <= self._enough:
            self._peak, self._lowest = now, now.resident
        self._lowest = min(self._lowest, now.resident)
        # What has been given back to the system since then, whatever took its place, is not there to be used again.
        given_back = self._peak.resident - self._lowest
        return max((self._peak.blocks - now.blocks) * BYTES_PER_BLOCK - given_back, 0)

    async def watch(self) -> None:
        """Looks at it again and again, until cancelled; returns at once where there is no watermark."""
        samples = 0
        while self.allowed:
            self.sample()
            samples = samples + 1 if self.is_over else 0
            if samples == 1:
                # Once: it holds up everybody (65 ms with 4,000 connections), and connections leave no cycles.
                gc.collect()
            if samples % _SAMPLES_PER_TRIM == 1:
                await self._give_back()
            await trio.sleep(SAMPLE_SECONDS)
