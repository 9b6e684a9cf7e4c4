"""One byte from process to process."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from log.worlds import no_descriptors
from serving import open_descriptors

from tricast.log.wake import Wake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Deeper than the address of a Unix socket can be long."""
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    return deep / "log.wake"


@pytest.fixture
def three(folder: Path) -> Iterator[list[Wake]]:
    wakes = [Wake(folder) for _ in range(3)]
    yield wakes
    for wake in wakes:
        wake.close()


def test_who_wakes_the_others_does_not_wake_itself(three: list[Wake]) -> None:
    three[0].wake_others()
    assert [wake.clear() for wake in three] == [False, True, True]
    assert [wake.clear() for wake in three] == [False, False, False]


def test_the_folder_is_for_its_owner_alone(three: list[Wake], folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_who_leaves_takes_its_socket_along(folder: Path) -> None:
    wake = Wake(folder)
    assert len(list(folder.iterdir())) == 1
    wake.close()
    assert list(folder.iterdir()) == []


def test_the_socket_of_a_dead_process_is_removed(three: list[Wake], folder: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    here = os.open(folder, os.O_RDONLY)
    dead.bind(f"/proc/self/fd/{here}/1-dead.sock")
    os.close(here)
    dead.close()
    assert (folder / "1-dead.sock").exists()
    three[0].wake_others()
    assert not (folder / "1-dead.sock").exists()
    assert three[1].clear()


def test_what_cannot_be_removed_stays(three: list[Wake], folder: Path) -> None:
    (folder / "folder.sock").mkdir()
    three[0].wake_others()
    assert (folder / "folder.sock").is_dir()
    assert [wake.clear() for wake in three] == [False, True, True]


def test_without_a_free_descriptor_nobody_is_woken(three: list[Wake]) -> None:
    with no_descriptors():
        three[0].wake_others()
    assert [wake.clear() for wake in three] == [False, False, False]
    three[0].wake_others()
    assert [wake.clear() for wake in three] == [False, True, True]


def test_what_is_not_ours_stays(three: list[Wake], folder: Path) -> None:
    (folder / "notes").write_text("x")
    three[0].wake_others()
    assert (folder / "notes").read_text() == "x"


def test_who_does_not_listen_delays_nobody(three: list[Wake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tricast.log.wake._MAX_CLEARED", 3)
    for _ in range(10_000):
        three[0].wake_others()
    # Others have their turn in between, however much is sent.
    assert three[1].clear()
    while three[1].clear():
        pass


def test_a_socket_that_was_taken_away(folder: Path) -> None:
    wake = Wake(folder)
    for path in folder.iterdir():
        path.unlink()
    wake.close()


def test_waiting(three: list[Wake]) -> None:
    assert not three[1].wait(0.0)
    three[0].wake_others()
    assert three[1].wait(10.0)
    assert not three[1].clear()


def test_there_can_be_no_socket(tmp_path: Path) -> None:
    (tmp_path / "log.wake").write_text("a file")
    before = open_descriptors()
    with pytest.raises(NotADirectoryError):
        Wake(tmp_path / "log.wake")
    assert not open_descriptors() - before


def test_a_folder_that_takes_no_socket() -> None:
    before = open_descriptors()
    with pytest.raises(OSError, match=r"\[Errno"):
        Wake(Path("/proc/self/task"))
    assert not open_descriptors() - before
