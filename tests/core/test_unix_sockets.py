"""Unix sockets to listen on: their files come and go with the servers, and nobody is pushed aside."""

# ruff: noqa: ASYNC240 - files of the tests' own

import fcntl
import os
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tricast.addresses import UNIX, of_peer
from tricast.config import Config
from tricast.listeners import url_of
from tricast.listening import listen, listen_in_groups, set_options


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tricast.sock"


async def opened(sockets: ExitStack, path: Path, mode: str = "0660") -> socket.socket:
    config = Config.model_validate({"server": {"unix_mode": mode}})
    (listener,) = await listen(sockets, f"unix:{path}", 8080, config)
    return listener


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


async def test_it_comes_and_goes(path: Path) -> None:
    with ExitStack() as sockets:
        listener = await opened(sockets, path)
        assert url_of(listener) == f"unix:{path}"
        with connect(path):
            sock, address = listener.accept()
            assert of_peer(address) == UNIX
            sock.close()
        set_options(listener, Config())
    assert not path.exists()


@pytest.mark.parametrize("mode", ["0600", "660", "0666"])
async def test_who_may_connect(path: Path, mode: str) -> None:
    before = os.umask(0o077)
    try:
        with ExitStack() as sockets:
            await opened(sockets, path, mode)
            assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
    finally:
        os.umask(before)


def leave_stale(path: Path) -> None:
    """The file of a server that was killed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


async def test_a_dead_servers_file_is_replaced(path: Path) -> None:
    leave_stale(path)
    with ExitStack() as sockets:
        listener = await opened(sockets, path)
        with connect(path):
            listener.accept()[0].close()


async def test_a_server_that_lives_is_left_alone(path: Path) -> None:
    with ExitStack() as sockets, ExitStack() as others:
        listener = await opened(sockets, path)
        for _ in range(2):
            with pytest.raises(OSError, match="Address already in use") as caught:
                await opened(others, path)
            assert caught.value.filename == str(path)
        with connect(path):
            for _ in range(3):  # and those who only looked whether it lives
                listener.accept()[0].close()
    assert not path.exists()


async def test_a_server_with_a_full_queue_lives(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as waiting, ExitStack() as others:
        busy.bind(str(path))
        busy.listen(0)
        waiting.enter_context(connect(path))
        with pytest.raises(OSError, match="Address already in use"):
            await opened(others, path)
        assert path.exists()


async def test_another_kind_of_file_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with ExitStack() as sockets, pytest.raises(OSError, match="a file that is no socket") as caught:
        await opened(sockets, path)
    assert caught.value.filename == str(path)
    assert path.read_text() == "precious"


async def test_a_link_is_another_kind_of_file(path: Path, tmp_path: Path) -> None:
    leave_stale(tmp_path / "target")
    path.symlink_to(tmp_path / "target")
    with ExitStack() as sockets, pytest.raises(OSError, match="a file that is no socket"):
        await opened(sockets, path)


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with ExitStack() as sockets, pytest.raises(OSError, match="No such file") as caught:
        await opened(sockets, tmp_path / "nowhere" / "tricast.sock")
    assert caught.value.filename == str(tmp_path / "nowhere" / "tricast.sock")


async def test_a_file_that_is_anothers_by_now_stays(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        with ExitStack() as sockets:
            await opened(sockets, path)
            other.bind(f"{path}.new")
            Path(f"{path}.new").rename(path)
        assert path.exists()


async def test_of_several_at_once_one_gets_it(path: Path) -> None:
    leave_stale(path)
    outcomes: list[str] = []

    async def attempt() -> None:
        try:
            await opened(sockets, path)
        except OSError as error:
            outcomes.append(str(error.strerror))
        else:
            outcomes.append("open")

    with ExitStack() as sockets:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(attempt)
        assert sorted(outcomes) == ["Address already in use"] * 4 + ["open"]


async def test_who_holds_the_lock_of_the_folder_cannot_keep_it_out(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    held = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with ExitStack() as sockets:
        await opened(sockets, path)
    os.close(held)


async def test_groups_share_one_queue(path: Path) -> None:
    with ExitStack() as sockets:
        groups = await listen_in_groups(sockets, f"unix:{path}", 0, Config(), groups=3)
        assert [len(group) for group in groups] == [1, 1, 1]
        assert len({listener.fileno() for (listener,) in groups}) == 3
        for (listener,) in groups:
            assert not listener.getblocking()
            with connect(path):
                listener.accept()[0].close()
                with pytest.raises(BlockingIOError):
                    groups[0][0].accept()
    assert not path.exists()
