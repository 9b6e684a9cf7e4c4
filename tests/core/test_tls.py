"""TLS on a socket that never blocks: what is encrypted when, and where it ends."""

import gc
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from clocks import HANG_SECONDS
from encryption import (
    Sealer,
    TlsSocket,
    client_context,
    logging_secrets,
    sealer_of,
    tls_section,
)

from tricast.certificates import load_encryption
from tricast.config import TlsSection
from tricast.errors import ConnectionLost
from tricast.sent import Sent
from tricast.tls import TlsConnection

#: More than the kernel takes at once, in many records.
MUCH = bytes(range(256)) * 2**14
ENCRYPTION = load_encryption(TlsSection.model_validate(tls_section()))


class Pair:
    """A connection and its client, with nothing sent yet.

    Attributes:
        connection: what is tested.
        client: the other end.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        assert ENCRYPTION is not None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.connection = TlsConnection(
            ours, "the peer", ENCRYPTION.context, write_timeout=30.0, handshake_timeout=30.0
        )
        self.client = TlsSocket(trio.socket.from_stdlib_socket(theirs), context)

    async def open(self) -> None:
        """The handshake."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.connection.open)
            await self.client.shake_hands()
            await self.client.flush()

    def close(self) -> None:
        self.connection.close()
        self.client.close()

    async def everything(self) -> bytes:
        """What the client receives, to the proper end of TLS."""
        received = bytearray()
        while data := await self.client.recv(65536):
            received += data
        return bytes(received)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    with trio.fail_after(HANG_SECONDS):
        pair = Pair()
        await pair.open()
        yield pair
        pair.close()


@pytest.fixture
async def handmade(tmp_path: Path) -> AsyncIterator[tuple[Pair, Sealer]]:
    """A pair whose client's records are made by hand."""
    with trio.fail_after(HANG_SECONDS):
        pair = Pair(logging_secrets(client_context(), tmp_path / "secrets"))
        await pair.open()
        yield pair, sealer_of(pair.client, tmp_path / "secrets")
        pair.close()


# Sending


async def test_what_is_kept_for_later_never_goes_out_in_the_clear(pair: Pair) -> None:
    await pair.connection.send_soon(b"one, ")
    await pair.connection.send_soon(b"two, ")
    assert pair.connection.send_now(b"three") is Sent.ALL
    await pair.connection.send_soon(b", four")
    await pair.connection.finish()
    assert await pair.everything() == b"one, two, three, four"


async def test_what_is_kept_for_later_goes_out_before_anything_is_received(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        await pair.connection.send_soon(b"the question")
        nursery.start_soon(pair.connection.receive)
        assert await pair.client.recv(100) == b"the question"
        await pair.client.send(b"the answer")


async def test_what_is_kept_for_later_is_dropped_by_closing(pair: Pair) -> None:
    await pair.connection.send_soon(b"secret")
    pair.connection.close()
    assert await pair.everything() == b""


async def test_a_key_update_does_not_bring_out_in_the_clear_what_is_kept(handmade: tuple[Pair, Sealer]) -> None:
    pair, sealer = handmade
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.receive)
        await trio.testing.wait_all_tasks_blocked()
        await pair.connection.send_soon(b"secret")
        await pair.client.raw.send(sealer.key_update())
        assert await pair.client.recv(100) == b"secret"
        nursery.cancel_scope.cancel()


async def test_the_tail_is_encrypted_and_nothing_overtakes_it(pair: Pair) -> None:
    assert pair.connection.send_now(MUCH) is Sent.PART
    assert pair.connection.has_tail
    assert pair.connection.send_now(b"not taken") is Sent.NOTHING
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def drain_and_send() -> None:
            await pair.connection.drain()
            assert pair.connection.send_now(b"the end") is Sent.ALL
            await pair.connection.finish()

        assert await pair.everything() == MUCH + b"the end"


async def test_the_end_waits_for_room(pair: Pair) -> None:
    # However full the socket is when it ends, the client sees that nothing was cut off.
    pair.connection.send_now(MUCH)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.finish)
        await trio.testing.wait_all_tasks_blocked()
        assert await pair.everything() == MUCH


async def test_closing_in_the_middle_does_not_look_like_an_end(pair: Pair) -> None:
    assert pair.connection.send_now(MUCH) is Sent.PART
    pair.connection.close()
    pair.connection.close()
    with pytest.raises(OSError, match="without close_notify"):
        await pair.everything()


async def test_nothing_can_be_sent_behind_the_end(pair: Pair) -> None:
    await pair.connection.finish()
    with pytest.raises(ConnectionLost, match="protocol is shutdown") as caught:
        pair.connection.send_now(b"more")
    assert caught.value.reason == "tls"


async def test_lingering_sends_the_end_and_reads_what_comes(pair: Pair) -> None:
    await pair.client.send(MUCH[:100_000])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.linger)
        assert await pair.everything() == b""
        pair.client.close()


async def test_closing_when_the_peer_is_gone(pair: Pair) -> None:
    pair.client.raw.close()
    pair.connection.close()
    assert pair.connection.is_closed


async def test_what_was_sent_does_not_stay_in_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def send_much() -> Pair:
        pair = Pair()
        await pair.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.connection.send, MUCH)
            left = len(MUCH)
            while left > 0:  # as it comes: what the client decrypts with would grow as well
                left -= len(await pair.client.raw.recv(2**16))
        return pair

    with trio.fail_after(HANG_SECONDS):
        pairs = [await send_much() for _ in range(3)]
        before = resident()
        pairs += [await send_much() for _ in range(10)]
        # All of it encrypted at once, each would keep more than that.
        assert resident() - before < 5 * len(MUCH)
    for pair in pairs:
        pair.close()


# Receiving


async def test_all_that_has_come_is_received_at_once(pair: Pair) -> None:
    for n in range(200):
        pair.client.seal(b"%d," % n)
    await pair.client.flush()
    assert await pair.connection.receive() == b"".join(b"%d," % n for n in range(200))


@pytest.mark.parametrize("now", [True, False])
async def test_one_record_may_come_byte_by_byte(pair: Pair, now: bool) -> None:
    pair.client.seal(b"hello")
    sealed = pair.client.sealed()
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await pair.connection.receive())

    async with trio.open_nursery() as nursery:
        if not now:
            nursery.start_soon(receive)
        for byte in sealed:
            assert not received
            await pair.client.raw.send(bytes([byte]))
            if now:
                data = pair.connection.receive_now()
                received += [data] if data is not None else []
            else:
                await trio.testing.wait_all_tasks_blocked()
    assert received == [b"hello"]
    assert pair.connection.receive_now() is None


async def test_what_came_with_the_handshake_is_there_at_once() -> None:
    pair = Pair()
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.connection.open)
            await pair.client.shake_hands()
            pair.client.seal(b"one")
            pair.client.seal(b"two")
            await pair.client.raw.send(pair.client.sealed())
        assert pair.connection.receive_now() == b"onetwo"
        assert pair.connection.receive_now() is None
    pair.close()


async def test_the_end_is_seen_after_the_data(pair: Pair) -> None:
    pair.client.seal(b"data")
    pair.client.say_end()
    await pair.client.raw.send(b"\x17\x03\x03 anything")
    assert await pair.connection.receive() == b"data"
    assert await pair.connection.receive() == b""
    assert pair.connection.receive_now() == b""
    pair.connection.send_now(b"an answer")
    assert await pair.client.recv(100) == b"an answer"


async def test_an_end_without_word_is_an_end(pair: Pair) -> None:
    pair.client.raw.shutdown(socket.SHUT_WR)
    assert pair.connection.receive_now() == b""
    assert await pair.connection.receive() == b""


async def test_an_end_without_word_does_not_keep_an_answer_from_ending_properly(pair: Pair) -> None:
    pair.client.seal(b"a question")
    await pair.client.flush()
    pair.client.raw.shutdown(socket.SHUT_WR)
    assert await pair.connection.receive() == b"a question"
    assert await pair.connection.receive() == b""
    pair.connection.send_now(b"an answer")
    await pair.connection.finish()
    assert await pair.everything() == b"an answer"


async def test_the_end_is_seen_on_both_sides(pair: Pair) -> None:
    await pair.connection.finish()
    pair.client.say_end()
    assert await pair.connection.receive() == b""


async def test_nothing_is_received_when_closed(pair: Pair) -> None:
    pair.client.seal(b"one")
    pair.client.seal(b"two")
    await pair.client.flush()
    pair.connection.close()
    with pytest.raises(ConnectionLost, match="closed"):
        await pair.connection.receive()


@pytest.mark.parametrize("before", [b"", b"data"])
async def test_a_forged_record_is_answered_with_an_alert(pair: Pair, before: bytes) -> None:
    if before:
        pair.client.seal(before)
    await pair.client.raw.send(pair.client.sealed() + b"\x17\x03\x03\x00\x30" + b"x" * 48)
    if before:
        assert await pair.connection.receive() == before
    for _ in range(2):
        with pytest.raises(ConnectionLost) as caught:
            await pair.connection.receive()
        assert caught.value.reason == "tls"
    pair.connection.close()
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        await pair.everything()


async def test_many_key_updates_do_not_pile_up_where_no_answer_is_read(handmade: tuple[Pair, Sealer]) -> None:
    pair, sealer = handmade
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    assert pair.connection.send_now(MUCH) is Sent.PART
    got = []

    async def receive() -> None:
        got.append(await pair.connection.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        flood = b"".join(sealer.key_update() for _ in range(3000)) + sealer.record(b"and on")
        taken = 0
        while True:
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0) as scope:
                taken += await pair.client.raw.send(flood[taken : taken + 1000])
            if scope.cancelled_caught:
                break  # it reads no more
        assert taken < len(flood)
        assert pair.connection._outgoing.pending < 2**15
        # When the client reads, all goes on.
        received = bytearray()

        async def read() -> None:
            while len(received) < len(MUCH) or not got:
                received.extend(await pair.client.recv(65536))

        nursery.start_soon(read)
        while taken < len(flood):
            taken += await pair.client.raw.send(flood[taken:])
        with trio.fail_after(HANG_SECONDS):
            while not got:
                await trio.lowlevel.checkpoint()
        pair.connection.send_now(b".")
    assert got == [b"and on"]
    assert received == MUCH + b"."


# The handshake


async def test_the_client_may_leave_during_the_handshake() -> None:
    pair = Pair()
    pair.client.raw.close()
    with pytest.raises(ConnectionLost) as caught:
        await pair.connection.open()
    assert caught.value.reason == "left"
    pair.close()


async def test_a_client_that_trusts_nobody_says_so() -> None:
    pair = Pair(ssl.create_default_context())
    lost = []

    async def open_connection() -> None:
        with pytest.raises(ConnectionLost, match="unknown ca") as caught:
            await pair.connection.open()
        lost.append(caught.value.reason)

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_connection)
            with pytest.raises(ssl.SSLCertVerificationError):
                await pair.client.shake_hands()
            await pair.client.flush()
            pair.client.close()
    assert lost == ["tls"]
    pair.close()


async def test_connections_leave_nothing_in_memory() -> None:
    def count() -> int:
        gc.collect()
        return len(gc.get_objects())

    async def once() -> None:
        pair = Pair()
        await pair.open()
        await pair.client.send(b"hello")
        assert await pair.connection.receive() == b"hello"
        await pair.connection.send(b"hello to you")
        assert await pair.client.recv(100) == b"hello to you"
        pair.close()

    for _ in range(20):
        await once()
    before = count()
    for _ in range(200):
        await once()
    assert count() - before < 100  # less than one for each
