"""A worker as its supervisor sees it, where no process is needed for that."""

import msgspec
import pytest
import structlog
import trio
from clocks import HANG_SECONDS

from tricast.workers.control import Accept, Begin, Control, Drain
from tricast.workers.process import Worker


def worker_of(number: int) -> Worker:
    begin = Begin(
        worker=number,
        restarts=0,
        config=msgspec.Raw(b"{}"),
        path=[],
        listeners=[],
        admin_listeners=[],
        boards=[],
        folder="",
        tickets=0,
    )
    return Worker(begin, 1.0, structlog.wrap_logger(None, processors=[]))


@pytest.mark.parametrize("last", [[0, 2], [0]])
async def test_a_worker_that_does_not_listen_for_long_learns_in_the_end_where_to_accept(last: list[int]) -> None:
    worker = worker_of(0)
    process = Control(worker._theirs)
    worker.accept_from([0, 1])
    while worker._control.tell(Drain()):
        pass
    worker.accept_from([0, 1, 2])
    worker.accept_from(last)
    told: list[list[int]] = []
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker._tell_later)
            while not told or told[-1] != last:
                message = await process.next()
                if isinstance(message, Accept):
                    told.append(message.workers)
            nursery.cancel_scope.cancel()
    assert told == [[0, 1], last]
    process.close()
    worker._control.close()
