"""Slow, dead and hostile peers in the TLS handshake: each costs its own connection, for a bounded time, and no more."""

import itertools
import os
import shutil
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from clients import Closed, Wire, ask, head, read_answer, subscribe
from clocks import HANG_SECONDS, jump
from encryption import (
    TlsSocket,
    authority,
    authority_file,
    certificate_file,
    client_certificate,
    client_hello,
    connected,
    tls_section,
)
from serving import ended, harmless, serving, until, what_is_open
from trio.testing import MockClock

import tricast
from tricast.runtime import _HANDSHAKES_PER_TURN
from tricast.tls import TlsConnection

TLS = {"tls": tls_section()}
ASKED = {"tls": tls_section() | {"client_ca": authority_file()}}
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def context_of(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client with a certificate, which makes its part of the handshake as long as can be."""
    context = client_certificate(called="press")
    context.minimum_version = context.maximum_version = version
    return context


async def nobody_left(server: tricast.Server, before: Counter[str]) -> None:
    await until(lambda: server.connections == 0)
    assert not server._runtime.open
    assert server._runtime.counters.failed == 0
    await until(lambda: not what_is_open() - before)


# Who says less than all


class Flights:
    """A client's handshake that can be stopped after any byte of what the client says.

    Args:
        sock: connected.
        version: of TLS.
    """

    def __init__(self, sock: trio.socket.SocketType, version: ssl.TLSVersion) -> None:
        self.sock = sock
        self.tls = TlsSocket(sock, context_of(version))

    async def say(self, flight: int, share: float) -> None:
        """Says the flights before this one, and of this one the share."""
        for number in range(flight + 1):
            said = await self._next()
            await self._send(said if number < flight else said[: round(len(said) * share)])

    async def _next(self) -> bytes:
        while True:
            try:
                self.tls.tls.do_handshake()
            except ssl.SSLWantReadError:
                if said := self.tls.sealed():
                    return said
                await self.tls._read()
            else:
                if not (said := self.tls.sealed()):
                    self.tls.seal(head("GET", "/healthz"))
                    said = self.tls.sealed()
                return said

    async def _send(self, data: bytes) -> None:
        while data:
            data = data[await self.sock.send(data) :]


#: Flights of the client: its hello; certificate, keys and "finished"; a request.
PHASES = [(flight, share) for flight in range(3) for share in (0.0, 0.01, 0.5, 0.99, 1.0)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
async def test_who_ends_in_any_phase_leaves_nothing(version: ssl.TLSVersion, how: str) -> None:
    async with serving(**ASKED) as server:
        before = what_is_open()
        for flight, share in PHASES * 3:
            sock = await connected(server.url)
            with Wire(sock) as wire:
                await Flights(sock, version).say(flight, share)
                if how == "half-close":
                    sock.shutdown(socket.SHUT_WR)
                    while await sock.recv(65536):
                        pass
                else:
                    getattr(wire, how)()
        await nobody_left(server, before)
        assert (await ask(server.url, "GET", "/healthz")).status == 200


@pytest.mark.parametrize("version", VERSIONS)
async def test_who_is_silent_from_any_phase_on_is_ended_in_time(
    version: ssl.TLSVersion, running_clock: MockClock
) -> None:
    # As a peer that has vanished, behind which nobody says that it has.
    async with serving(limits={"head_timeout": f"{HANG_SECONDS / 2}s"}, **ASKED) as server:
        before = what_is_open()

        async def visit(flight: int, share: float, task_status: trio.TaskStatus[None]) -> None:
            with Wire(sock := await connected(server.url)):
                await Flights(sock, version).say(flight, share)
                task_status.started()
                while await sock.recv(65536):
                    pass

        silent = [phase for phase in PHASES if phase != (2, 1.0)]
        async with trio.open_nursery() as nursery:
            for phase in silent:
                await nursery.start(visit, *phase)
            await jump(running_clock, HANG_SECONDS / 2 + 1)
        await nobody_left(server, before)
        # Behind the handshake it is the head that does not come, to which there is an answer.
        assert server._runtime.counters.lost["tls-timeout"] == len([phase for phase in silent if phase < (1, 1.0)])


async def drip(sock: trio.socket.SocketType, data: bytes) -> None:
    """Sends a byte now and then, for ever."""
    for byte in itertools.cycle(data):
        await sock.send(bytes([byte]))
        await trio.sleep(0.005)  # how slow this client is


async def test_the_time_is_for_the_whole_handshake_however_it_drips() -> None:
    async with serving(limits={"head_timeout": "200ms"}, **TLS) as server:
        with await connected(server.url) as sock:
            tls = TlsSocket(sock)
            with pytest.raises(ssl.SSLWantReadError):
                tls.tls.do_handshake()
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                await drip(sock, tls.sealed())
        await until(lambda: server.connections == 0)
        assert server._runtime.counters.lost == {"tls-timeout": 1}


@pytest.fixture
def long_chain(tmp_path: Path) -> str:
    """A certificate whose chain does not fit into the buffers on the way."""
    chain = tmp_path / "chain.pem"
    chain.write_bytes(Path(certificate_file()).read_bytes() + authority().cert_pem.bytes() * 80)
    return str(chain)


async def test_who_never_reads_the_answer_is_ended_in_time(long_chain: str) -> None:
    limits = {"head_timeout": "2s", "send_buffer": 4096}
    async with serving(limits=limits, tls={"certificate": long_chain}) as server:
        before = what_is_open()
        with trio.socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await sock.connect(("127.0.0.1", server.port))
            tls = TlsSocket(sock)
            with pytest.raises(ssl.SSLWantReadError):
                tls.tls.do_handshake()
            await tls.flush()
            await until(lambda: any(connection.has_tail for connection in server._runtime.open))
            await until(lambda: server.connections == 0)
            assert server._runtime.counters.lost == {"tls-timeout": 1}
        await nobody_left(server, before)


async def test_many_who_do_not_shake_hands_leave_the_others_alone() -> None:
    async with harmless(**TLS) as server:
        before = what_is_open()
        socks = [await connected(server.url) for _ in range(200)]
        for number, sock in enumerate(socks):
            await Flights(sock, VERSIONS[number % 2]).say(0, (number % 5) / 4)
        with await subscribe("sse", server.url, "news") as stream:
            await server.hub.publish("news", 1)
            assert (await stream.event()).data == 1
        for sock in socks:
            sock.close()
        await until(lambda: not what_is_open() - before)


async def test_many_who_shake_hands_at_once_take_turns_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    send_outgoing = TlsConnection._send_outgoing

    async def counted(self: TlsConnection) -> None:
        nonlocal steps
        steps += 1
        await send_outgoing(self)

    monkeypatch.setattr(TlsConnection, "_send_outgoing", counted)
    async with serving(**TLS) as server:
        socks = [await connected(server.url) for _ in range(60)]
        await until(lambda: steps == len(socks))
        for sock in socks:  # without giving anybody a turn between
            os.write(sock.fileno(), client_hello())
        seen = [steps]
        while steps < 2 * len(socks):
            await trio.lowlevel.checkpoint()
            seen.append(steps)
        # The turns of two tasks come in any order, so that this one may miss one.
        assert max(after - before for before, after in itertools.pairwise(seen)) <= 2 * _HANDSHAKES_PER_TURN
        for sock in socks:
            sock.close()
        await until(lambda: server.connections == 0)


# Half-closed


@pytest.mark.parametrize("says_end", [True, False])
async def test_who_asks_and_says_no_more_gets_the_answer(says_end: bool) -> None:
    async with serving(**TLS) as server:
        with await Wire.open(server.url) as wire:
            await wire.send(head("GET", "/healthz"))
            sock = wire._sock
            assert isinstance(sock, TlsSocket)
            if says_end:
                sock.say_end()
            sock.raw.shutdown(socket.SHUT_WR)
            assert (await read_answer(wire)).status == 200
            assert not await wire.receive()


# Who says what nobody should


def records(kind: int, *bodies: bytes) -> bytes:
    return b"".join(bytes([kind, 3, 3]) + len(body).to_bytes(2, "big") + body for body in bodies)


def too_long(_: bytes) -> Iterator[bytes]:
    """A hello of 16 MiB."""
    yield records(22, b"\x01\xff\xff\xff" + b"x" * 1000)
    for _ in range(1024):
        yield records(22, b"x" * 2**14)


def in_tiny_records(hello: bytes) -> Iterator[bytes]:
    """A proper hello, a byte in each record."""
    yield records(22, *(bytes([byte]) for byte in hello[5:]))


def nothing_in_records(_: bytes) -> Iterator[bytes]:
    """Records without anything in them (RFC 8446 5.1 forbids them)."""
    for _ in range(100):
        yield records(22, *([b""] * 2000))


def changes_of_cipher(hello: bytes) -> Iterator[bytes]:
    """What middleboxes like to see once (RFC 8446 D.4), without end."""
    yield hello
    for _ in range(100):
        yield records(20, *([b"\1"] * 2000))


def warnings_without_end(_: bytes) -> Iterator[bytes]:
    """Alerts that one may disregard, so that the connection lives."""
    for _ in range(100):
        yield records(21, *([b"\1\x5a"] * 2000))


@pytest.mark.parametrize(
    "flood", [too_long, in_tiny_records, nothing_in_records, changes_of_cipher, warnings_without_end]
)
async def test_what_nobody_should_say_ends_the_connection_and_holds_up_nobody(
    flood: Callable[[bytes], Iterator[bytes]],
) -> None:
    async with harmless(limits={"head_timeout": "1s"}, **TLS) as server:
        before = server.connections
        tls = TlsSocket(await connected(server.url))
        with Wire(tls.raw) as wire:
            with pytest.raises(ssl.SSLWantReadError):
                tls.tls.do_handshake()
            with suppress(Closed):
                for piece in flood(tls.sealed()):
                    await wire.send(piece)
                await wire.rest()
        await until(lambda: server.connections == before)


async def test_nobody_negotiates_anew() -> None:
    openssl = shutil.which("openssl")
    assert openssl is not None
    async with harmless(limits={"head_timeout": "1h"}, **TLS) as server:
        process = await trio.lowlevel.open_process(
            [
                openssl,
                "s_client",
                "-tls1_2",
                "-connect",
                server.url.removeprefix("https://"),
                "-CAfile",
                authority_file(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        async with ended(process):
            assert process.stdin is not None
            assert process.stdout is not None
            said = b""
            while b"Verify return code" not in said:
                said += await process.stdout.receive_some()
            await process.stdin.send_all(b"R\n")
            while b"no renegotiation" not in said:
                data = await process.stdout.receive_some()
                assert data, said
                said += data
