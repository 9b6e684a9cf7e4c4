"""Which tickets were used, and must not be again: in this process, or in all of a server's."""

import fcntl
import os
import struct
import time
from contextlib import suppress
from heapq import heappop, heappush
from typing import Protocol

#: Bytes of a ticket's nonce, by which it is remembered.
NONCE_BYTES = 12
#: A slot: the ticket's nonce, and when it expires. A bucket is what is locked and read at once.
_SLOT = struct.Struct(f"<{NONCE_BYTES}sd")
_SLOTS = 32
_BUCKET_BYTES = _SLOTS * _SLOT.size
#: A bucket is locked for some microseconds, or as long as somebody who just has it is not given a CPU.
_TRIES = 50
_PAUSE_SECONDS = 0.0005


class NoRoom(Exception):
    """So many tickets are remembered that one more cannot be."""


class Uses(Protocol):
    """What was used, and must not be again."""

    def add(self, ticket: bytes, expires_at: float, now: float) -> bool:
        """Remembers a ticket until it expires; returns False for one that is remembered already.

        Raises:
            NoRoom: it cannot be remembered.
        """
        ...


class OwnUses:
    """What was used in this process.

    Args:
        capacity: how many are remembered at most.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used: set[bytes] = set()
        self._by_end: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._used)

    def add(self, ticket: bytes, expires_at: float, now: float) -> bool:
        """See ``Uses.add``."""
        while self._by_end and self._by_end[0][0] <= now:
            self._used.remove(heappop(self._by_end)[1])
        if ticket in self._used:
            return False
        if len(self._used) >= self._capacity:
            raise NoRoom
        self._used.add(ticket)
        heappush(self._by_end, (expires_at, ticket))
        return True


class SharedUses:
    """What was used in any of the processes that have a piece of memory in common: a table of buckets with slots.

    A bucket is locked while one process looks and writes. The kernel takes the lock back from one that dies.

    Args:
        fd: as ``create`` made it, here or in another process; this object does not own it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buckets = os.fstat(fd).st_size // _BUCKET_BYTES

    @staticmethod
    def create(capacity: int) -> int:
        """Makes the memory for about so many tickets, and returns its descriptor. What is not used takes none."""
        # With twice the room, a bucket is hardly ever full before all of them together are.
        buckets = -(-2 * capacity // _SLOTS)
        fd = os.memfd_create("tricast-tickets")
        os.ftruncate(fd, buckets * _BUCKET_BYTES)
        return fd

    def add(self, ticket: bytes, expires_at: float, now: float) -> bool:
        """See ``Uses.add``."""
        begin = int.from_bytes(ticket[:8]) % self._buckets * _BUCKET_BYTES
        self._lock(begin)
        try:
            slots = list(_SLOT.iter_unpack(os.pread(self._fd, _BUCKET_BYTES, begin)))
            if any(used == ticket for used, _ in slots):
                return False
            free = next((index for index, (_, end) in enumerate(slots) if end <= now), None)
            if free is None:
                raise NoRoom
            os.pwrite(self._fd, _SLOT.pack(ticket, expires_at), begin + free * _SLOT.size)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, _BUCKET_BYTES, begin)
        return True

    def _lock(self, begin: int) -> None:
        # Not for as long as it takes: who has it may have been stopped.
        for _ in range(_TRIES):
            with suppress(BlockingIOError):
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _BUCKET_BYTES, begin)
                return
            time.sleep(_PAUSE_SECONDS)
        raise NoRoom
