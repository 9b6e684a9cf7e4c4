"""Connecting to a server, and whose the time is that it takes."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tricast_proxy.config import ServerEntry, UpstreamSection
from tricast_proxy.overview import Counters
from tricast_proxy.servers import Server
from tricast_proxy.timers import Timers
from tricast_proxy.upstream import Pool


@pytest.mark.parametrize("turns", range(10))
async def test_for_how_long_this_process_stood_still_is_not_the_servers_fault(
    turns: int, mock_clock: MockClock
) -> None:
    connected = trio.Event()
    timers = Timers()
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        host, port = listener.getsockname()
        pool = Pool(UpstreamSection.model_validate({"connect_timeout": "100s"}), timers, Counters())

        async def connect() -> None:
            (await pool.open(Server(ServerEntry(address=f"{host}:{port}")))).connection.close()
            connected.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            await wait_all_tasks_blocked()
            nursery.start_soon(connect)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            mock_clock.jump(101)
            await connected.wait()
            nursery.cancel_scope.cancel()
