"""Streams that are renewed from another process: here two that only share a folder."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from clocks import HANG_SECONDS
from serving import open_descriptors

from tricast import leases
from tricast.access.identity import Identity
from tricast.errors import Forbidden, RemoteProtocolError, Unavailable
from tricast.leases import Leases

ADA = Identity("sub:ada", "ada", ("news", "users.ada.>"), (), 1234.5)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is to answer has time, however busy the machine is."""
    monkeypatch.setattr(leases, "_ANSWER_SECONDS", HANG_SECONDS)


class Stream:
    """Takes identities, but for those of others."""

    def __init__(self) -> None:
        self.renewed: list[Identity] = []

    def renew(self, identity: Identity) -> None:
        if identity.account != ADA.account:
            raise Forbidden("not this one", code="other-account")
        self.renewed.append(identity)


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Leases, Leases]]:
    """Two processes of a server."""
    first, second = Leases(folder), Leases(folder)
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.serve)
            nursery.start_soon(second.serve)
            await trio.testing.wait_all_tasks_blocked()
            yield first, second
            nursery.cancel_scope.cancel()


async def test_a_stream_of_this_process() -> None:
    alone, stream = Leases(), Stream()
    name = alone.new_name()
    alone.add(name, stream)
    await alone.renew(name, ADA)
    assert stream.renewed == [ADA]
    with pytest.raises(Forbidden):
        await alone.renew(name, ADA._replace(account="sub:bob"))
    alone.discard(name)
    alone.discard(name)
    assert len(alone) == 0
    for unknown in (name, alone.new_name(), "", "x", "../x"):
        with pytest.raises(RemoteProtocolError) as caught:
            await alone.renew(unknown, ADA)
        assert (caught.value.code, caught.value.status) == ("stream-unknown", 404)


async def test_a_stream_of_another_process(tmp_path: Path) -> None:
    async with two(tmp_path) as (first, second):
        stream = Stream()
        name = second.new_name()
        second.add(name, stream)
        await first.renew(name, ADA)
        assert stream.renewed == [ADA]
        with pytest.raises(RemoteProtocolError, match="not this one") as caught:
            await first.renew(name, ADA._replace(account="sub:bob"))
        assert (caught.value.code, caught.value.status) == ("other-account", 403)
        second.discard(name)
        with pytest.raises(RemoteProtocolError) as caught:
            await first.renew(name, ADA)
        assert caught.value.code == "stream-unknown"
    assert files_in(tmp_path) == []


async def test_the_largest_identity_gets_through(tmp_path: Path) -> None:
    patterns = tuple(f"{number}.{'x' * 250}" for number in range(200))
    async with two(tmp_path) as (first, second):
        stream, name = Stream(), second.new_name()
        second.add(name, stream)
        await first.renew(name, ADA._replace(subscribe=patterns, publish=patterns))
        assert stream.renewed[0].publish == patterns


async def test_many_at_once(tmp_path: Path) -> None:
    """More than the kernel keeps for a process that has not read yet, both ways."""
    async with two(tmp_path) as (first, second):
        streams = [Stream() for _ in range(200)]
        async with trio.open_nursery() as nursery:
            for number, stream in enumerate(streams):
                here, there = (first, second) if number % 2 else (second, first)
                name = there.new_name()
                there.add(name, stream)
                nursery.start_soon(here.renew, name, ADA)
        assert all(stream.renewed == [ADA] for stream in streams)


@pytest.mark.parametrize("name", ["", "0", "ffffffff", "../../../x", "a/b", "\0" * 8, "é" * 8, "0" * 5000])
async def test_names_of_nobody(tmp_path: Path, name: str) -> None:
    async with two(tmp_path) as (first, _):
        with pytest.raises(RemoteProtocolError) as caught:
            await first.renew(name, ADA)
        assert caught.value.code == "stream-unknown"


async def test_a_process_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_ANSWER_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as silent:
        silent.bind(str(tmp_path / "lease-ffffffff.sock"))
        async with two(tmp_path) as (first, _):
            with pytest.raises(Unavailable) as caught:
                await first.renew("ffffffff00", ADA)
            assert caught.value.code == "worker-busy"


async def test_what_is_no_message_is_passed_over(tmp_path: Path) -> None:
    async with two(tmp_path) as (first, second):
        stream, name = Stream(), second.new_name()
        second.add(name, stream)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            for path in files_in(tmp_path):
                # The last is an answer to what was never asked.
                for data in (b"", b"\xc1", b"\x80", b"\x82\xa4type\xa6answer\xa6number\x07", os.urandom(100)):
                    stranger.sendto(data, str(path))
        await first.renew(name, ADA)
        assert stream.renewed == [ADA]


async def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as silent:
        silent.bind(str(tmp_path / "lease-ffffffff.sock"))
        async with two(tmp_path) as (first, _):
            with trio.move_on_after(0.01):
                await first.renew("ffffffff00", ADA)
            assert not first._asked
    assert not open_descriptors() - before
