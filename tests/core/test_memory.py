"""The watermark: over it and below nine tenths of it are two things; between them nothing changes."""

import pytest
import trio
import trio.testing
from serving import capturing_logger
from structlog.testing import LogCapture

from tricast.memory import SAMPLE_SECONDS, Watermark, give_back, resident_bytes


class Size:
    """Bytes in use, as a test says."""

    def __init__(self) -> None:
        self.bytes = 0
        self.samples = 0

    def __call__(self) -> int:
        self.samples += 1
        return self.bytes


@pytest.fixture
def size() -> Size:
    return Size()


def test_hysteresis(size: Size) -> None:
    records = LogCapture()
    watermark = Watermark(1000, logger=capturing_logger(records), measure=size)
    seen = []
    for size.bytes in (0, 999, 1000, 1001, 1000, 901, 1001, 900, 901, 1000, 1001):
        watermark.sample()
        seen.append(watermark.is_over)
    assert seen == [False, False, False, True, True, True, True, False, False, False, True]
    assert [entry["log_level"] for entry in records.entries] == ["warning", "info", "warning"]


async def test_it_is_looked_at_again_and_again(size: Size, autojump_clock: trio.testing.MockClock) -> None:
    given_back = 0

    async def give_back() -> None:
        nonlocal given_back
        given_back += 1

    watermark = Watermark(1000, logger=capturing_logger(LogCapture()), measure=size, give_back=give_back)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watermark.watch)
        for size.bytes, is_over in ((0, False), (2000, True), (950, True), (100, False)):
            await trio.sleep(SAMPLE_SECONDS * 1.5)
            assert watermark.is_over is is_over
        assert given_back == 1
        nursery.cancel_scope.cancel()


async def test_what_was_freed_is_given_back_now_and_then(size: Size, autojump_clock: trio.testing.MockClock) -> None:
    at: list[float] = []

    async def give_back() -> None:
        at.append(trio.current_time())

    size.bytes = 2000
    watermark = Watermark(1000, logger=capturing_logger(LogCapture()), measure=size, give_back=give_back)
    with trio.move_on_after(60):
        await watermark.watch()
    assert len(at) == size.samples // 10
    assert watermark.is_over


async def test_giving_back() -> None:
    size = resident_bytes()
    much = [bytes(500) for _ in range(200_000)]
    del much
    await give_back()
    assert resident_bytes() < size + 50 * 2**20


async def test_no_watermark_is_nothing_to_look_at(size: Size) -> None:
    watermark = Watermark(0, logger=capturing_logger(LogCapture()), measure=size)
    await watermark.watch()
    assert (size.samples, watermark.is_over) == (0, False)


def test_the_resident_size() -> None:
    before = resident_bytes()
    much = bytes(range(256)) * 2**18
    assert resident_bytes() - before > len(much) / 2
    assert before > 2**20
