"""Very large bodies through a proxy: an origin and a client for them, and what the proxy's memory comes to meanwhile.

Both wait before they read, so that whoever is between them has all the time to take in more than it can pass on.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from answers import measure_answer
from peers.base import HOST, http_request

_PIECE = bytes(256 * 2**10)
_PATIENCE_SECONDS = 120.0


class Passed(NamedTuple):
    """What a body came to.

    Attributes:
        seconds: from the first byte that the slow side read to the last.
        growth: bytes of resident memory that the proxy had more at its peak than before.
    """

    seconds: float
    growth: int


@contextmanager
def body_origin(pause: float) -> Iterator[int]:
    """An origin, for as long as the block runs: ``GET /N`` is answered with N bytes, and any body is taken.

    Args:
        pause: seconds in which it reads nothing, before it takes a body.

    Yields:
        Its port.
    """
    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=_accept_forever, args=(listener, pause), daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # close alone would not wake whoever accepts


def _accept_forever(listener: socket.socket, pause: float) -> None:
    with suppress(OSError):
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_answer, args=(sock, pause), daemon=True).start()


def _answer(sock: socket.socket, pause: float) -> None:
    with sock, suppress(OSError):
        sock.settimeout(_PATIENCE_SECONDS)
        head, begun = _read_head(sock)
        if head.startswith(b"GET /"):
            length = int(head.split()[1][1:])
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % length)
            _send_body(sock, length)
        else:
            length = int(next(line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")))
            time.sleep(pause)
            _read_body(sock, length - len(begun))
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")


def take_body(port: int, pid: int, length: int, pause: float) -> Passed:
    """Has the origin send so many bytes through the proxy that listens there; reads nothing for a while first."""
    with _connect(port) as sock, _growth_of(pid) as growth:
        sock.sendall(http_request("GET", f"/{length}"))
        _, begun = _read_head(sock)
        time.sleep(pause)
        began = time.monotonic()
        _read_body(sock, length - len(begun))
        seconds = time.monotonic() - began
    return Passed(seconds, growth[0])


def give_body(port: int, pid: int, length: int, pause: float) -> Passed:
    """Sends so many bytes through the proxy that listens there, to an origin that pauses for so long."""
    with _connect(port) as sock, _growth_of(pid) as growth:
        sock.sendall(http_request("POST", "/", f"Content-Length: {length}"))
        began = time.monotonic()
        _send_body(sock, length)
        answer = b""
        while not measure_answer(answer):
            answer += _receive(sock, len(_PIECE))
        seconds = time.monotonic() - began - pause
    return Passed(seconds, growth[0])


def _connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), _PATIENCE_SECONDS)


def _read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(sock, 4096)
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _receive(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size)
    if not data:
        raise ConnectionResetError("closed before the end")
    return data


def _read_body(sock: socket.socket, left: int) -> None:
    while left > 0:
        left -= len(_receive(sock, len(_PIECE)))


def _send_body(sock: socket.socket, left: int) -> None:
    while left > 0:
        sock.sendall(_PIECE[:left])
        left -= len(_PIECE)


@contextmanager
def _growth_of(pid: int) -> Iterator[list[int]]:
    """What the peak of a process's resident memory grows by; there when the block has ended (proc(5), clear_refs)."""
    growth: list[int] = []
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = _peak_of(pid)
    yield growth
    growth.append(_peak_of(pid) - before)


def _peak_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
