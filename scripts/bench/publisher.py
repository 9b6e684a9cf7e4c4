"""Publishes over HTTP as an application would: kept connections, one request at a time on each, and never ahead."""

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from answers import measure_answer, read_status
from load import trusting_context
from peers.base import Running

_PATIENCE_SECONDS = 20.0


class PublishError(Exception):
    """The server did not take an event."""


class Published(NamedTuple):
    """What publishing at a rate came to.

    Attributes:
        answered: requests that were answered with a 2xx.
        seconds: from the first intended time to the last answer.
        latest_ms: how much later than intended a request was sent, at worst.
    """

    answered: int
    seconds: float
    latest_ms: float


def write_event(mark: int, sent_ns: int, size: int) -> bytes:
    """Returns the data of an event, of this many bytes where that is possible."""
    head = b'{"mark":%d,"sent":%d,"text":"' % (mark, sent_ns)
    return head + b"x" * (size - len(head) - 2) + b'"}'


class Publisher:
    """Connections to the port of a server where it takes events."""

    def __init__(self, running: Running, connections: int = 1, *, tls: bool = False) -> None:
        self._running = running
        self._poll = select.epoll()
        self._buffers: dict[int, bytes] = {}
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(connections):
            sock: socket.socket = socket.create_connection((running.host, running.publish_port), _PATIENCE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                sock = trusting_context().wrap_socket(sock)
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._buffers[sock.fileno()] = b""
            self._poll.register(sock, select.EPOLLIN)
        self._free = deque(self._sockets)

    def publish(self, topic: str, data: bytes) -> None:
        """Publishes one event and waits for the answer."""
        self.send_all([self._running.publish(topic, data)], _PATIENCE_SECONDS)

    def send_all(self, requests: list[bytes], seconds: float) -> Published:
        """Sends these requests as fast as they are answered, and waits for all answers.

        Raises:
            PublishError: one was refused, or the time is over.
        """
        return self.run(lambda number, _: requests[number], len(requests), 0, seconds)

    def run(self, write: Callable[[int, int], bytes], count: int, per_second: float, seconds: float) -> Published:
        """Sends requests at a steady rate, or where that is 0 as fast as they are answered; waits for all answers.

        Args:
            write: makes a request from its number and the time (CLOCK_MONOTONIC, in ns) at which it was to be sent.
            count: how many.
            per_second: the rate.
            seconds: how long all this may take.

        Raises:
            PublishError: one was refused, or the time is over.
        """
        began = time.monotonic_ns()
        end = began + round(seconds * 1e9)
        sent = answered = 0
        latest = 0
        while answered < count:
            now = time.monotonic_ns()
            if now > end:
                raise PublishError(f"{answered:,} of {count:,} requests were answered within {seconds:g} s")
            while sent < count and self._free:
                intended = began + round(sent / per_second * 1e9) if per_second else now
                if intended > now:
                    break
                self._send(write(sent, intended))
                latest = max(latest, now - intended)
                sent += 1
            wait = 1.0
            if sent < count and self._free:
                wait = max(0.0, (began + sent / per_second * 1e9 - time.monotonic_ns()) / 1e9)
            answered += self._take_answers(min(wait, 1.0))
        return Published(answered, (time.monotonic_ns() - began) / 1e9, latest / 1e6)

    def _send(self, request: bytes) -> None:
        sock = self._sockets[self._free.popleft()]
        sock.settimeout(_PATIENCE_SECONDS)  # a batch may be larger than the socket's buffer
        sock.sendall(request)
        sock.setblocking(False)

    def _take_answers(self, wait: float) -> int:
        answered = 0
        for descriptor, _ in self._poll.poll(wait):
            try:
                data = self._sockets[descriptor].recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            if not data:
                raise PublishError("the server closed the connection of a publisher")
            self._buffers[descriptor] += data
            if not (length := measure_answer(self._buffers[descriptor])):
                continue
            if not 200 <= read_status(self._buffers[descriptor]) < 300:
                raise PublishError(f"an event was refused: {self._buffers[descriptor][:300]!r}")
            self._buffers[descriptor] = self._buffers[descriptor][length:]
            self._free.append(descriptor)
            answered += 1
        return answered

    def close(self) -> None:
        """Closes the connections."""
        for sock in self._sockets.values():
            sock.close()
        self._poll.close()
