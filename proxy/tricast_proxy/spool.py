"""A queue of bytes between one task that fills it and one that empties it: a little in memory, the rest in a file.

Memory is bounded whatever goes through. The file has no name, so that it is gone with its descriptor, even when the
process is killed; and it is a ring, so that it never grows beyond what may wait. Knows nothing of answers.
"""

import os
import tempfile
from collections import deque
from types import TracebackType
from typing import IO, Self

import trio

from tricast_proxy.relay import Cut

#: One read of the file. Each is work for a thread, which costs as much as reading so many bytes does.
_READ_BYTES = 256 * 2**10


class Spool:
    """Bytes on their way from one task to another. Leaving its context, with no task using it, closes the file.

    Args:
        memory_bytes: when so many wait in memory, what follows waits in the file. One piece may lie across.
        file_bytes: so many more wait in the file, which is made when it is first needed.
    """

    __slots__ = (
        "_changed",
        "_end",
        "_file",
        "_file_bytes",
        "_in_file",
        "_in_memory",
        "_is_ended",
        "_is_taking",
        "_memory_bytes",
        "_pieces",
        "_read_at",
    )

    def __init__(self, memory_bytes: int, file_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._file_bytes = file_bytes
        #: What is here is older than what is in the file.
        self._pieces: deque[bytes] = deque()
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        self._read_at = 0
        self._in_file = 0
        self._is_taking = False
        self._is_ended = False
        self._end: Exception | None = None
        self._changed = trio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pieces.clear()
        if self._file is not None:
            self._file.close()

    def has_room_for(self, size: int) -> bool:
        """Whether so many bytes can be put in although nobody takes any."""
        return self._has_room_in_memory or size <= self._file_bytes - self._in_file

    @property
    def _has_room_in_memory(self) -> bool:
        return self._in_file == 0 and self._in_memory < self._memory_bytes

    async def put(self, data: bytes) -> None:
        """Puts them behind all others, when there is room. One task may do so. Cancelling may leave a part of them in.

        Raises:
            Cut: the file cannot be written.
        """
        if not self._has_room_in_memory:
            # The file is for those who cannot take: who is about to, or is just taking, is waited for.
            await trio.lowlevel.checkpoint()
            while self._is_taking and (self._in_memory or self._in_file) and not self._has_room_in_memory:
                await self._changed.wait()
        while data:
            room = self._file_bytes - self._in_file
            if self._has_room_in_memory:
                self._pieces.append(data)
                self._in_memory += len(data)
                self._tell()
                return
            if room > 0:
                await self._write(data[:room])
                data = data[room:]
            else:
                await self._changed.wait()

    async def _write(self, data: bytes) -> None:
        at = (self._read_at + self._in_file) % self._file_bytes
        try:
            await trio.to_thread.run_sync(self._write_in_ring, data, at)
        except OSError as error:
            raise Cut(f"the answer cannot be spooled: {error.strerror}") from None
        self._in_file += len(data)
        self._tell()

    def _write_in_ring(self, data: bytes, at: int) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed when the context is left
        first = self._file_bytes - at
        for part, offset in ((data[:first], at), (data[first:], 0)):
            written = 0
            while written < len(part):
                written += os.pwrite(self._file.fileno(), part[written:], offset + written)

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come. Whoever takes learns of the error when everything has been taken."""
        self._is_ended = True
        self._end = error
        self._tell()

    async def take(self) -> bytes:
        """The oldest bytes, as soon as there are any; empty at the end. One task may do so. Cancelling loses none.

        Raises:
            Cut: the file cannot be read.
            Exception: what ``end`` was told.
        """
        self._is_taking = True
        try:
            while not (self._in_memory or self._in_file or self._is_ended):
                await self._changed.wait()
            data = await self._taken()
        finally:
            self._is_taking = False
        self._tell()
        return data

    async def _taken(self) -> bytes:
        if self._in_memory:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._in_memory = 0
            return data
        if self._in_file:
            return await self._read()
        if self._end is not None:
            raise self._end
        return b""

    async def _read(self) -> bytes:
        assert self._file is not None
        size = min(_READ_BYTES, self._in_file, self._file_bytes - self._read_at)
        try:
            data = await trio.to_thread.run_sync(os.pread, self._file.fileno(), size, self._read_at)
        except OSError as error:
            raise Cut(f"the answer cannot be read from its spool: {error.strerror}") from None
        self._in_file -= len(data)
        self._read_at = (self._read_at + len(data)) % self._file_bytes
        return data

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
