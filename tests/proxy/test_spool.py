"""The spool: first in, first out, whatever lies in memory and whatever in the file, and bounded."""

import os
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from serving import open_descriptors
from trio.testing import wait_all_tasks_blocked

from tricast_proxy.relay import Cut
from tricast_proxy.spool import Spool


async def drained(spool: Spool) -> bytes:
    """Everything that is still to come."""
    data = b""
    while piece := await spool.take():
        data += piece
    return data


@given(
    memory=st.integers(0, 20),
    file=st.integers(0, 20),
    steps=st.lists(st.one_of(st.binary(max_size=30), st.none()), max_size=30),
)
def test_first_in_first_out_and_bounded(memory: int, file: int, steps: list[bytes | None]) -> None:
    """A piece is put in, or something is taken out, where neither would wait."""

    async def main() -> None:
        put = taken = b""
        with Spool(memory, file) as spool:
            for step in steps:
                waiting = len(put) - len(taken)
                if step is None:
                    if waiting:
                        taken += await spool.take()
                elif spool.has_room_for(len(step)):
                    await spool.put(step)
                    put += step
                    assert len(put) - len(taken) <= memory + 30 + file
                assert put.startswith(taken)
            spool.end()
            assert taken + await drained(spool) == put

    trio.run(main)


@given(
    memory=st.integers(1, 20),
    file=st.integers(0, 20),
    pieces=st.lists(st.binary(min_size=1, max_size=60), max_size=30),
    pauses=st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_two_tasks_at_once(memory: int, file: int, pieces: list[bytes], pauses: list[bool]) -> None:
    taken: list[bytes] = []

    async def fill(spool: Spool) -> None:
        for piece in pieces:
            await spool.put(piece)
        spool.end()

    async def main() -> None:
        with Spool(memory, file) as spool:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fill, spool)
                while piece := await spool.take():
                    taken.append(piece)
                    if pauses[len(taken) % 60]:
                        await wait_all_tasks_blocked()

    trio.run(main)
    assert b"".join(taken) == b"".join(pieces)


async def test_taking_waits_for_something_and_for_the_end() -> None:
    taken: list[bytes] = []

    async def take(spool: Spool) -> None:
        while piece := await spool.take():
            taken.append(piece)
        taken.append(b"end")

    with Spool(10, 10) as spool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, spool)
            await wait_all_tasks_blocked()
            assert taken == []
            await spool.put(b"a")
            await spool.put(b"")
            await wait_all_tasks_blocked()
            assert taken == [b"a"]
            spool.end()
        assert taken == [b"a", b"end"]
        assert await spool.take() == b""


async def test_putting_waits_for_room_and_what_is_cancelled_is_not_in() -> None:
    with Spool(4, 0) as spool:
        await spool.put(b"1234")
        assert not spool.has_room_for(1)
        with trio.move_on_after(0.01) as scope:
            await spool.put(b"567")
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spool.put, b"89")
            await wait_all_tasks_blocked()
            assert await spool.take() == b"1234"
        assert await spool.take() == b"89"


async def test_cancelled_taking_loses_nothing() -> None:
    with Spool(1, 100) as spool:
        await spool.put(b"a")
        await spool.put(b"b" * 50)
        assert await spool.take() == b"a"
        with trio.CancelScope() as scope:
            scope.cancel()
            await spool.take()
        assert scope.cancelled_caught
        assert await spool.take() == b"b" * 50


async def test_the_error_comes_after_everything() -> None:
    with Spool(4, 100) as spool:
        await spool.put(b"12345")
        await spool.put(b"67890")
        spool.end(Cut("gone"))
        assert [await spool.take(), await spool.take()] == [b"12345", b"67890"]
        for _ in range(2):
            with pytest.raises(Cut, match="gone"):
                await spool.take()


async def test_the_file_is_made_when_it_is_needed_and_has_no_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Spool(4, 100) as spool:
        await spool.put(b"12345")
        assert not files_in(tmp_path)
        await spool.put(b"67890")
        assert files_in(tmp_path) == 1
        assert [entry.name for entry in tmp_path.iterdir()] == []  # noqa: ASYNC240 - a folder of the test's own
    assert not files_in(tmp_path)


def files_in(folder: Path) -> int:
    """How many files in a folder this process has open, with a name or without."""
    return sum(count for path, count in open_descriptors().items() if path.startswith(f"{folder}/"))


async def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tricast_proxy.spool.os.pwrite", full)
    with Spool(1, 100) as spool:
        await spool.put(b"a")
        with pytest.raises(Cut, match="No space left"):
            await spool.put(b"b")


async def test_a_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("tricast_proxy.spool.os.pread", broken)
    with Spool(0, 100) as spool:
        await spool.put(b"b")
        with pytest.raises(Cut, match="Input/output"):
            await spool.take()


async def test_a_disk_that_takes_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr("tricast_proxy.spool.os.pwrite", lambda fd, data, offset: whole(fd, data[:3], offset))
    with Spool(0, 20) as spool:
        await spool.put(b"0123456789")
        assert await spool.take() == b"0123456789"
        await spool.put(b"abcdefghijklmnopqrst")
        spool.end()
        assert await drained(spool) == b"abcdefghijklmnopqrst"
