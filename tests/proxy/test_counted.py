"""A socket that counts: what went through it, and when, also beneath a connection."""

import socket

import pytest
import trio
import trio.testing

from tricast.connection import Connection
from tricast_proxy.counted import CountedSocket


async def test_what_went_through_and_when(autojump_clock: trio.testing.MockClock) -> None:
    one, other = socket.socketpair()
    with other, CountedSocket(one) as counted:
        began = trio.current_time()
        assert one.fileno() == -1, "it has taken its place"
        assert (counted.received, counted.sent) == (0, 0)
        assert counted.opened == counted.last_received == counted.last_sent == began
        with pytest.raises(BlockingIOError):
            counted.recv(100)
        connection = Connection(counted, "peer", write_timeout=1.0)
        await trio.sleep(2)
        other.send(b"x" * 70)
        assert connection.receive_now() == b"x" * 70
        await trio.sleep(3)
        await connection.send(b"y" * 30)
        await trio.sleep(4)
        other.send(b"zz")
        assert await connection.receive() == b"zz"
        assert (counted.received, counted.sent) == (72, 30)
        assert (counted.opened, counted.last_received, counted.last_sent) == (began, began + 9, began + 5)


async def test_what_the_kernel_did_not_take_is_not_counted() -> None:
    one, other = socket.socketpair()
    with other, CountedSocket(one) as counted:
        taken = counted.send(b"x" * 10_000_000)
        with pytest.raises(BlockingIOError):
            counted.send(b"x")
        assert counted.sent == taken < 10_000_000
