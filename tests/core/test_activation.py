"""Sockets that systemd hands over, as it does it: descriptors from 3 on, and three variables (sd_listen_fds(3))."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tricast import activation
from tricast.activation import activated_listeners


def nothing_to_prepare(_: socket.socket) -> None:
    """Where only the sockets matter."""


class Manager:
    """Hands over sockets, from whichever descriptor on there is room for them.

    Attributes:
        first: the first of the descriptors.
    """

    def __init__(self, sockets: ExitStack) -> None:
        self._sockets = sockets
        self._handed: list[int] = []
        self._names: list[str] = []
        self.first = 200  # where a test's process has none

    def hand_over(self, sock: socket.socket, name: str) -> socket.socket:
        self._sockets.enter_context(sock)
        self._handed.append(os.dup2(sock.fileno(), self.first + len(self._handed)))
        self._names.append(name)
        return sock

    @property
    def environment(self) -> dict[str, str]:
        pid, count = str(os.getpid()), str(len(self._handed))
        return {"LISTEN_PID": pid, "LISTEN_FDS": count, "LISTEN_FDNAMES": ":".join(self._names)}

    def close(self) -> None:
        for fd in self._handed:
            try:
                os.close(fd)
            except OSError:
                continue  # its listener did


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with ExitStack() as sockets:
        manager = Manager(sockets)
        monkeypatch.setattr(activation, "_FIRST", manager.first)
        yield manager
        manager.close()


def listening(family: socket.AddressFamily = socket.AF_INET, address: object = ("127.0.0.1", 0)) -> socket.socket:
    sock = socket.socket(family)
    sock.bind(address)
    sock.listen()
    return sock


def test_those_of_one_name_and_all(manager: Manager, tmp_path: Path) -> None:
    web = manager.hand_over(listening(), "web")
    admin = manager.hand_over(listening(), "admin")
    file = manager.hand_over(listening(socket.AF_UNIX, str(tmp_path / "socket")), "web")
    with ExitStack() as sockets:
        found = activated_listeners(sockets, "web", nothing_to_prepare, manager.environment)
        assert [listener.getsockname() for listener in found] == [web.getsockname(), file.getsockname()]
        assert not any(listener.getblocking() or listener.get_inheritable() for listener in found)
        (other,) = activated_listeners(sockets, "admin", nothing_to_prepare, manager.environment)
        assert other.getsockname() == admin.getsockname()
    assert (tmp_path / "socket").exists(), "it is the manager's"


def test_all_there_are(manager: Manager) -> None:
    for name in ("web", "", "unknown"):
        manager.hand_over(listening(), name)
    prepared: list[socket.socket] = []
    with ExitStack() as sockets:
        assert activated_listeners(sockets, "", prepared.append, manager.environment) == prepared
        assert len(prepared) == 3


def test_without_names(manager: Manager) -> None:
    manager.hand_over(listening(), "")
    environment = manager.environment
    del environment["LISTEN_FDNAMES"]
    with ExitStack() as sockets:
        assert len(activated_listeners(sockets, "", nothing_to_prepare, environment)) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"LISTEN_PID": "1"},
        {"LISTEN_PID": ""},
        {"LISTEN_FDS": "0"},
        {"LISTEN_FDS": "many"},
        {"LISTEN_FDS": "-1"},
        {"LISTEN_FDNAMES": "other"},
    ],
)
def test_none_for_this_process(manager: Manager, changed: dict[str, str]) -> None:
    manager.hand_over(listening(), "web")
    with ExitStack() as sockets, pytest.raises(OSError, match="has handed over no such socket") as caught:
        activated_listeners(sockets, "web", nothing_to_prepare, manager.environment | changed)
    assert caught.value.filename == "systemd:web"


def test_none_at_all() -> None:
    with ExitStack() as sockets, pytest.raises(OSError, match="has handed over no such socket"):
        activated_listeners(sockets, "", nothing_to_prepare, {})


@pytest.mark.parametrize("kind", ["datagram", "connected", "not listening", "file"])
def test_what_cannot_be_listened_on(manager: Manager, kind: str) -> None:
    if kind == "datagram":
        manager.hand_over(socket.socket(type=socket.SOCK_DGRAM), "web")
    elif kind == "connected":
        ours, theirs = socket.socketpair()
        theirs.close()
        manager.hand_over(ours, "web")
    elif kind == "not listening":
        manager.hand_over(socket.socket(), "web")
    else:
        manager.hand_over(socket.socket(), "web")
        with Path(os.devnull).open() as file:
            os.dup2(file.fileno(), manager.first)
    with ExitStack() as sockets, pytest.raises(OSError, match=r"no stream socket|Socket operation") as caught:
        activated_listeners(sockets, "web", nothing_to_prepare, manager.environment)
    assert caught.value.filename == "systemd:web"
