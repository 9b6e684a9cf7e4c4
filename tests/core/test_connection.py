"""A socket that never blocks: tails, who sends them, and how it ends."""

import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Generic, Self, TypeVar

import pytest
import trio
import trio.testing

import tricast.connection
from tricast.connection import Connection
from tricast.errors import ConnectionLost
from tricast.sent import Sent

T = TypeVar("T")
#: More than the kernel takes at once.
MUCH = bytes(range(256)) * 2**14


class Pair:
    """A connection and its peer's socket.

    Attributes:
        connection: what is tested.
        peer: the other end, non-blocking.
    """

    def __init__(self, *, write_timeout: float = 30.0, write_rate: int = 0, max_unsent: int = 0) -> None:
        ours, self.peer = socket.socketpair()
        self.sock = ours
        for sock in (ours, self.peer):
            sock.setblocking(False)
        self.connection = Connection(
            ours, "the peer", write_timeout=write_timeout, write_rate=write_rate, max_unsent=max_unsent
        )

    def close(self) -> None:
        self.connection.close()
        self.peer.close()

    def fill(self) -> int:
        """Sends past the connection until the kernel takes no more; returns how much it took."""
        filled = 0
        while True:
            try:
                filled += self.sock.send(b"x" * 2**10)
            except BlockingIOError:
                return filled

    def peer_has_input(self) -> bool:
        """Whether the peer could read something."""
        readable, _, _ = select.select([self.peer], [], [], 0)
        return bool(readable)

    async def read(self, size: int) -> bytes:
        """Reads so many bytes as the peer, or up to the end."""
        data = bytearray()
        while len(data) < size:
            await trio.lowlevel.wait_readable(self.peer)
            piece = self.peer.recv(size - len(data))
            if not piece:
                break
            data += piece
        return bytes(data)


class Forestalling(trio.abc.Instrument, Generic[T]):
    """Does something each time when sockets are found ready, before the tasks that wait for them get their turn.

    Attributes:
        results: what came of it, where it would not have blocked.
    """

    def __init__(self, act: Callable[[], T]) -> None:
        self._act = act
        self.results: list[T] = []

    def after_io_wait(self, timeout: float) -> None:
        with suppress(BlockingIOError):
            self.results.append(self._act())

    def __enter__(self) -> Self:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


# Receiving


async def test_receiving(pair: Pair) -> None:
    before = pair.connection.last_received
    pair.peer.send(b"hello")
    assert await pair.connection.receive() == b"hello"
    assert pair.connection.last_received > before
    pair.peer.shutdown(socket.SHUT_WR)
    assert await pair.connection.receive() == b""
    assert pair.connection.peer == "the peer"


async def test_cancelling_a_receive_loses_nothing(pair: Pair) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.connection.receive)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    pair.peer.send(b"hello")
    assert await pair.connection.receive() == b"hello"


async def test_a_wake_up_for_nothing_is_waited_out(pair: Pair) -> None:
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await pair.connection.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        with Forestalling(lambda: pair.sock.recv(100)) as forestalling:
            pair.peer.send(b"stolen")
            await trio.testing.wait_all_tasks_blocked()
        assert forestalling.results == [b"stolen"]
        assert got == []
        pair.peer.send(b"kept")
    assert got == [b"kept"]


async def test_receiving_from_a_peer_that_reset() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    peer = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    listener.close()
    ours.setblocking(False)
    connection = Connection(ours, "the peer", write_timeout=1)
    ours.send(b"unread")
    await trio.lowlevel.wait_readable(peer)
    peer.close()  # with input unread, which makes it a reset
    with pytest.raises(ConnectionLost, match="reset"):
        await connection.receive()
    connection.close()


@pytest.mark.parametrize("wait", ["receive"])
async def test_closing_while_somebody_waits_to_read(pair: Pair, wait: str) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ConnectionLost, match="closed")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(pair.connection, wait))
            await trio.testing.wait_all_tasks_blocked()
            pair.connection.close()


async def test_nothing_works_after_closing(pair: Pair) -> None:
    assert not pair.connection.is_closed
    pair.connection.close()
    pair.connection.close()
    assert pair.connection.is_closed
    with pytest.raises(ConnectionLost, match="closed"):
        await pair.connection.receive()
    with pytest.raises(ConnectionLost, match="descriptor"):
        pair.connection.send_now(b"x")
    with pytest.raises(ConnectionLost, match="descriptor"):
        await pair.connection.send(b"x")
    pair.connection.shutdown_write()
    await pair.connection.linger()
    assert await pair.read(1) == b""


async def test_receiving_without_waiting(pair: Pair) -> None:
    assert pair.connection.receive_now() is None
    pair.peer.send(b"hello")
    assert pair.connection.receive_now() == b"hello"
    assert pair.connection.receive_now() is None
    pair.peer.shutdown(socket.SHUT_WR)
    assert pair.connection.receive_now() == b""


async def test_receiving_without_waiting_from_a_peer_that_reset(pair: Pair) -> None:
    pair.connection.close()
    with pytest.raises(ConnectionLost, match="descriptor") as lost:
        pair.connection.receive_now()
    assert lost.value.reason == "reset"


# Sending


async def test_sending_at_once(pair: Pair) -> None:
    assert pair.connection.send_now(b"hello") is Sent.ALL
    assert not pair.connection.has_tail
    assert await pair.read(5) == b"hello"


async def test_what_the_kernel_does_not_take_is_the_tail(pair: Pair) -> None:
    assert pair.connection.send_now(MUCH) is Sent.PART
    assert pair.connection.has_tail
    assert pair.connection.send_now(b"later") is Sent.NOTHING
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.drain)
        assert await pair.read(len(MUCH)) == MUCH
    assert not pair.connection.has_tail
    assert pair.connection.send_now(b"later") is Sent.ALL
    assert await pair.read(5) == b"later"


async def test_a_full_socket_takes_no_byte_and_keeps_all(pair: Pair) -> None:
    filled = pair.fill()
    assert pair.connection.send_now(b"hello") is Sent.PART
    assert pair.connection.has_tail
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.drain)
        assert (await pair.read(filled + 5)).endswith(b"xhello")
    assert not pair.connection.has_tail


async def test_draining_nothing_returns_at_once(pair: Pair) -> None:
    await pair.connection.drain()


async def test_the_pieces_of_several_senders_do_not_mix(pair: Pair) -> None:
    pieces = [bytes([letter]) * 2**20 for letter in b"abc"]
    async with trio.open_nursery() as nursery:
        for piece in pieces:
            nursery.start_soon(pair.connection.send, piece)
        received = await pair.read(3 * 2**20)
    assert sorted(received[n * 2**20 : (n + 1) * 2**20] for n in range(3)) == pieces


async def test_one_of_several_drains(pair: Pair) -> None:
    pair.connection.send_now(MUCH)
    done: list[int] = []

    async def drain(index: int) -> None:
        await pair.connection.drain()
        done.append(index)

    async with trio.open_nursery() as nursery:
        for index in range(4):
            nursery.start_soon(drain, index)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        assert await pair.read(len(MUCH)) == MUCH
    assert sorted(done) == [0, 1, 2, 3]


async def test_another_takes_over_when_the_one_that_drains_is_cancelled(pair: Pair) -> None:
    pair.connection.send_now(MUCH)
    async with trio.open_nursery() as others:
        async with trio.open_nursery() as first:
            first.start_soon(pair.connection.drain)
            await trio.testing.wait_all_tasks_blocked()
            others.start_soon(pair.connection.drain)
            others.start_soon(pair.connection.send, b"after")
            await trio.testing.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        assert pair.connection.has_tail
        assert await pair.read(len(MUCH)) == MUCH
        assert await pair.read(5) == b"after"


async def test_cancelling_all_that_drain_leaves_the_tail_for_the_next(pair: Pair) -> None:
    pair.connection.send_now(MUCH)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(pair.connection.drain)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert pair.connection.has_tail
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.drain)
        assert await pair.read(len(MUCH)) == MUCH


async def test_a_wake_up_without_room_is_waited_out(pair: Pair) -> None:
    pair.connection.send_now(MUCH)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.drain)
        await trio.testing.wait_all_tasks_blocked()
        with Forestalling(pair.fill) as forestalling:
            while pair.peer_has_input():
                pair.peer.recv(2**20)
            await trio.testing.wait_all_tasks_blocked()
        filled = sum(forestalling.results)
        assert filled
        assert await pair.read(filled) == b"x" * filled
        assert await pair.read(2**16) in MUCH
        nursery.cancel_scope.cancel()


async def test_a_peer_that_takes_nothing_is_lost() -> None:
    pair = Pair(write_timeout=0.01)
    with pytest.raises(ConnectionLost, match=r"took no data for 0\.01 s"):
        await pair.connection.send(MUCH)
    assert pair.connection.has_tail
    pair.close()


async def read_slowly(pair: Pair, rate: int) -> int:
    """Reads so many bytes a second, to the end; returns how many there were."""
    total = 0
    while piece := await pair.read(rate):
        total += len(piece)
        await trio.sleep(1.0)
    return total


@pytest.mark.parametrize(("rate", "reason"), [(1, "write-timeout"), (900, "write-rate"), (1100, None)])
async def test_a_reader_of_less_than_the_rate_is_lost(
    rate: int, reason: str | None, autojump_clock: trio.testing.MockClock
) -> None:
    # Room comes in buffers of a few KiB, so the time without progress has to be longer than one of them takes.
    pair = Pair(write_timeout=60.0, write_rate=1000)
    pair.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    lost: list[ConnectionLost] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly, pair, rate)
        try:
            for _ in range(20):  # pieces, of which each alone is short enough
                await pair.connection.send(bytes(2**16))
        except ConnectionLost as error:
            lost.append(error)
        pair.connection.close()
        nursery.cancel_scope.cancel()
    assert [error.reason for error in lost] == ([] if reason is None else [reason])
    pair.close()


async def test_any_byte_is_progress_where_there_is_no_rate(autojump_clock: trio.testing.MockClock) -> None:
    pair = Pair(write_timeout=60.0)
    pair.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly, pair, 200)
        await pair.connection.send(bytes(2**17))
        assert trio.current_time() > 300
        nursery.cancel_scope.cancel()
    pair.close()


async def test_what_waits_behind_the_tail_has_a_limit() -> None:
    pair = Pair(max_unsent=1000)
    lost: list[str] = []

    async def send(data: bytes) -> None:
        try:
            await pair.connection.send(data)
        except ConnectionLost as error:
            lost.append(error.reason)

    async with trio.open_nursery() as nursery:
        for data in (MUCH, b"a" * 600, b"b" * 400):
            nursery.start_soon(send, data)
            await trio.testing.wait_all_tasks_blocked()
        assert lost == []
        nursery.start_soon(send, b"c")
    assert lost[0] == "unsent"
    assert len(lost) == 4
    assert pair.connection.is_closed
    pair.close()


async def test_one_piece_behind_the_tail_may_be_as_long_as_it_likes() -> None:
    pair = Pair(max_unsent=1000)
    async with trio.open_nursery() as nursery:
        for data in (MUCH, MUCH):
            nursery.start_soon(pair.connection.send, data)
            await trio.testing.wait_all_tasks_blocked()
        assert await pair.read(2 * len(MUCH)) == 2 * MUCH
        # What was waited for is forgotten.
        pair.connection.send_now(MUCH)
        for _ in range(2):
            nursery.start_soon(pair.connection.send, b"x" * 500)
            await trio.testing.wait_all_tasks_blocked()
        assert await pair.read(len(MUCH) + 1000) == MUCH + b"x" * 1000
    pair.close()


async def test_all_who_drain_are_told(pair: Pair) -> None:
    pair.connection.send_now(MUCH)
    lost: list[str] = []

    async def drain() -> None:
        try:
            await pair.connection.drain()
        except ConnectionLost as error:
            lost.append(str(error))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked()
        pair.peer.close()
    assert lost == ["Broken pipe"] * 3


async def test_sending_to_a_peer_that_is_gone(pair: Pair) -> None:
    pair.peer.close()
    with pytest.raises(ConnectionLost, match="Broken pipe"):
        pair.connection.send_now(b"x")


async def test_closing_while_a_tail_waits(pair: Pair) -> None:
    pair.connection.send_now(MUCH)
    with pytest.RaisesGroup(pytest.RaisesExc(ConnectionLost, match="closed")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.connection.drain)
            await trio.testing.wait_all_tasks_blocked()
            pair.connection.close()
    assert not pair.connection.has_tail
    await pair.connection.drain()


# Sending soon


async def test_what_is_sent_soon_goes_with_what_follows(pair: Pair) -> None:
    await pair.connection.send_soon(b"one,")
    await pair.connection.send_soon(b"two,")
    assert not pair.peer_has_input()
    assert pair.connection.send_now(b"three") is Sent.ALL
    assert pair.peer.recv(100) == b"one,two,three"
    await pair.connection.send_soon(b"four,")
    await pair.connection.send(b"five")
    assert pair.peer.recv(100) == b"four,five"
    assert pair.connection.send_now(b"six") is Sent.ALL
    assert pair.peer.recv(100) == b"six", "nothing is sent twice"


async def test_what_is_sent_soon_goes_before_anything_is_received(pair: Pair) -> None:
    await pair.connection.send_soon(b"asked?")
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            assert await pair.read(6) == b"asked?"
            pair.peer.send(b"yes")

        nursery.start_soon(answer)
        assert await pair.connection.receive() == b"yes"


@pytest.mark.parametrize(("size", "count"), [(1, 101), (2**10, 65), (2**16 + 1, 1), (0, 101)])
async def test_no_more_than_so_much_is_held(pair: Pair, size: int, count: int) -> None:
    for _ in range(count - 1):
        await pair.connection.send_soon(b"x" * size)
    assert not pair.peer_has_input()
    pair.connection.send_now(b"!")
    assert await pair.read(size * (count - 1) + 1) == b"x" * size * (count - 1) + b"!"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.read, size * count)
        for _ in range(count):
            await pair.connection.send_soon(b"x" * size)
        assert pair.connection._held is None


async def test_what_is_held_waits_behind_a_tail(pair: Pair) -> None:
    assert pair.connection.send_now(MUCH) is Sent.PART
    await pair.connection.send_soon(b"held,")
    assert pair.connection.send_now(b"lost") is Sent.NOTHING
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.drain)
        assert await pair.read(len(MUCH)) == MUCH
    assert not pair.peer_has_input()
    assert pair.connection.send_now(b"more") is Sent.ALL
    assert await pair.read(9) == b"held,more"


async def test_what_is_held_becomes_a_tail_where_there_is_no_room(pair: Pair) -> None:
    await pair.connection.send_soon(b"held")
    filled = pair.fill()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.connection.receive)
            await trio.testing.wait_all_tasks_blocked()
            assert pair.connection.has_tail
            scope.cancel()
    # Cancelling left it for the next one who waits.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.drain)
        assert (await pair.read(filled + 4)).endswith(b"xheld")


async def test_holding_when_there_is_no_room_for_more_waits_for_it(pair: Pair) -> None:
    filled = pair.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.send_soon, b"y" * (2**16 + 1))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.connection.has_tail
        assert await pair.read(filled + 2**16 + 1) == b"x" * filled + b"y" * (2**16 + 1)
    assert not pair.connection.has_tail


async def test_what_is_held_for_a_peer_that_is_gone(pair: Pair) -> None:
    await pair.connection.send_soon(b"x")
    pair.peer.close()
    with pytest.raises(ConnectionLost, match="Broken pipe"):
        await pair.connection.receive()


# The end


async def test_shutting_down_the_output_leaves_the_input(pair: Pair) -> None:
    pair.connection.send_now(b"bye")
    pair.connection.shutdown_write()
    assert await pair.read(10) == b"bye"
    pair.peer.send(b"still here")
    assert await pair.connection.receive() == b"still here"
    pair.connection.shutdown_write()


async def test_lingering_reads_until_the_peer_is_done(pair: Pair) -> None:
    pair.peer.send(b"x" * 1000)
    pair.peer.shutdown(socket.SHUT_WR)
    await pair.connection.linger()
    assert pair.sock.recv(1) == b"", "everything was read"
    assert await pair.read(1) == b"", "and no more will come"


async def test_lingering_reads_no_more_than_so_much(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tricast.connection, "_MAX_LINGER_BYTES", 100)
    monkeypatch.setattr(Connection, "_receive_bytes", 60)
    pair.peer.send(b"x" * 1000)
    await pair.connection.linger()
    assert len(pair.sock.recv(2000)) == 880


async def test_lingering_ends_when_nothing_comes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tricast.connection, "_LINGER_SILENCE_SECONDS", 0.01)
    await pair.connection.linger()
    assert not pair.connection.is_closed


async def test_lingering_goes_on_while_something_comes_but_not_for_ever(
    pair: Pair, mock_clock: trio.testing.MockClock
) -> None:
    has_ended = trio.Event()

    async def linger() -> None:
        await pair.connection.linger()
        has_ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(linger)
        while not has_ended.is_set():
            pair.peer.send(b"x")
            while select.select([pair.sock], [], [], 0)[0]:
                await trio.lowlevel.checkpoint()
            mock_clock.jump(1.5)
            await trio.testing.wait_all_tasks_blocked()
    # Ten seconds in all, though two of silence would have been the end.
    assert mock_clock.current_time() == 10.5


async def test_lingering_reads_what_came_while_nobody_looked(pair: Pair, mock_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.linger)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            pair.peer.send(b"x")
            mock_clock.jump(3.0)  # longer than a silence may be, as when the process was held up
        await trio.testing.wait_all_tasks_blocked()
        pair.peer.send(b"x")
        pair.peer.shutdown(socket.SHUT_WR)
    assert pair.sock.recv(1) == b""
    assert mock_clock.current_time() == 9.0


async def test_lingering_with_a_peer_that_is_gone(pair: Pair) -> None:
    pair.peer.close()
    await pair.connection.linger()
    assert not pair.connection.is_closed
