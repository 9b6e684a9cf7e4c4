"""The watermark: over it and below nine tenths of it are two things; between them nothing changes."""

import gc
from collections.abc import Callable

import pytest
import trio
import trio.testing
from serving import capturing_logger
from structlog.testing import LogCapture

from tricast.memory import BYTES_PER_BLOCK, SAMPLE_SECONDS, Usage, Watermark, give_back, usage


class Memory:
    """What is in use, as a test says."""

    def __init__(self) -> None:
        self.resident = 0
        self.blocks = 1000
        self.samples = 0

    def __call__(self) -> Usage:
        self.samples += 1
        return Usage(self.resident, self.blocks)


@pytest.fixture
def memory() -> Memory:
    return Memory()


def watermark_of(memory: Memory, records: LogCapture | None = None) -> Watermark:
    return Watermark(10**6, logger=capturing_logger(records or LogCapture()), measure=memory)


def test_hysteresis(memory: Memory) -> None:
    records = LogCapture()
    watermark = watermark_of(memory, records)
    seen = []
    for thousands in (0, 999, 1000, 1001, 1000, 901, 1001, 900, 901, 1000, 1001):
        memory.resident = thousands * 1000
        watermark.sample()
        seen.append(watermark.is_over)
    assert seen == [False, False, False, True, True, True, True, False, False, False, True]
    assert [entry["log_level"] for entry in records.entries] == ["warning", "info", "warning"]


def test_what_python_keeps_can_be_used_again(memory: Memory) -> None:
    watermark = watermark_of(memory)
    memory.resident, memory.blocks = 1_100_000, 5000
    watermark.sample()
    assert watermark.is_over
    memory.blocks = 5000 - 200_000 // BYTES_PER_BLOCK + 10
    watermark.sample()
    assert watermark.is_over
    memory.blocks -= 20
    watermark.sample()
    assert not watermark.is_over
    # It is used again, and then it is as much as before.
    memory.blocks = 5000 - 100_000 // BYTES_PER_BLOCK + 10
    watermark.sample()
    assert watermark.is_over


def test_what_was_given_back_cannot(memory: Memory) -> None:
    watermark = watermark_of(memory)
    memory.resident, memory.blocks = 1_500_000, 10_000
    watermark.sample()
    # All that was freed has gone back to the system, ...
    memory.resident, memory.blocks = 1_500_000 - 5000 * BYTES_PER_BLOCK, 5000
    watermark.sample()
    assert watermark.is_over
    # ... and other things have taken its place.
    memory.resident = 1_500_000
    watermark.sample()
    assert watermark.is_over
    memory.resident = 900_000
    watermark.sample()
    assert not watermark.is_over
    # From here on what was before does not count.
    memory.resident = 1_100_000
    watermark.sample()
    assert watermark.is_over


async def test_it_is_looked_at_again_and_again(memory: Memory, autojump_clock: trio.testing.MockClock) -> None:
    given_back = 0

    async def give_back() -> None:
        nonlocal given_back
        given_back += 1

    watermark = Watermark(1000, logger=capturing_logger(LogCapture()), measure=memory, give_back=give_back)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watermark.watch)
        for memory.resident, is_over in ((0, False), (2000, True), (950, True), (100, False)):
            await trio.sleep(SAMPLE_SECONDS * 1.5)
            assert watermark.is_over is is_over
        assert given_back == 1
        nursery.cancel_scope.cancel()


async def test_what_was_freed_is_given_back_now_and_then(
    memory: Memory, autojump_clock: trio.testing.MockClock
) -> None:
    at: list[float] = []

    async def give_back() -> None:
        at.append(trio.current_time())

    memory.resident = 2000
    watermark = Watermark(1000, logger=capturing_logger(LogCapture()), measure=memory, give_back=give_back)
    with trio.move_on_after(60):
        await watermark.watch()
    assert len(at) == memory.samples // 10
    assert watermark.is_over


async def test_garbage_is_looked_for_once_because_that_holds_up_everybody(
    memory: Memory, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = 0

    async def run_here(function: Callable[..., object], *arguments: object) -> object:
        await trio.lowlevel.checkpoint()  # in a thread, the clock would not wait for it
        return function(*arguments)

    def count(phase: str, about: dict[str, int]) -> None:
        nonlocal whole
        whole += phase == "start" and about["generation"] == 2

    monkeypatch.setattr("trio.to_thread.run_sync", run_here)
    memory.resident = 2000
    watermark = Watermark(1000, logger=capturing_logger(LogCapture()), measure=memory)
    gc.disable()
    gc.callbacks.append(count)
    try:
        with trio.move_on_after(60):
            await watermark.watch()
    finally:
        gc.callbacks.remove(count)
        gc.enable()
    assert watermark.is_over
    assert whole == 1


async def test_no_watermark_is_nothing_to_look_at(memory: Memory) -> None:
    watermark = Watermark(0, logger=capturing_logger(LogCapture()), measure=memory)
    await watermark.watch()
    assert (memory.samples, watermark.is_over) == (0, False)


def test_what_is_in_use() -> None:
    before = usage()
    much = bytes(range(256)) * 2**18
    many = [float(number) for number in range(100_000)]
    after = usage()
    assert after.resident - before.resident > len(much) / 2
    assert after.blocks - before.blocks > len(many) / 2
    assert before.resident > 2**20


async def test_giving_back() -> None:
    before = usage()
    much = [bytes(2000) for _ in range(50_000)]
    del much
    await give_back()
    assert usage().resident < before.resident + 50 * 2**20
