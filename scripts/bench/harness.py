"""What the measuring programs share: a server in a process of its own, many raw subscribers, and what /proc says.

Loopback only, bounded in count and time. Costs are CPU time and memory of the server's process, so a busy machine
disturbs little.
"""

import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

HOST = "127.0.0.1"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_REQUESTS = {
    "sse": b"GET /events?topic=bench HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n",
    "websocket": (
        b"GET /ws?topic=bench HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Protocol: tricast.v1\r\n\r\n"
    ),
}
#: The first bytes of a stream that only come once the subscriber is in its feed.
_BEGUN = {"sse": b"\nid: ", "websocket": b'"ok":"subscribe"'}
#: What every event's wire form has exactly once.
MARK = b'"mark":'


class ServerProcess:
    """A server under measurement."""

    def __init__(self, pid: int, port: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self.port = port

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int((self._proc / "statm").read_text().split()[1]) * _PAGE_BYTES


@contextmanager
def server_process(*arguments: str) -> Iterator[ServerProcess]:
    """Runs ``tricast serve`` on a free port, and ends it afterwards."""
    command = [sys.executable, "-m", "tricast", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(rb"listening on http://[^:]+:(\d+)", line)
            if found is None:
                sys.exit(f"the server did not start: {(line + process.stderr.read()).decode()}")
            yield ServerProcess(process.pid, int(found[1]))
        finally:
            process.kill()


class Subscribers:
    """Many subscribers of one transport, on raw sockets, in this process."""

    def __init__(self, transport: str, port: int) -> None:
        self._transport = transport
        self._port = port
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self.received = 0

    def open(self, count: int) -> None:
        """Opens so many more, and waits until all of them are subscribed."""
        for _ in range(count):
            sock = socket.create_connection((HOST, self._port))
            sock.sendall(_REQUESTS[self._transport])
            head = b""
            while _BEGUN[self._transport] not in head:
                data = sock.recv(65536)
                if not data:
                    sys.exit(f"refused: {head!r}")
                head += data
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN)

    def receive_until(self, events: int, seconds: float) -> None:
        """Reads until so many events have come to all together, or the time is over."""
        end = time.monotonic() + seconds
        while self.received < events and (left := end - time.monotonic()) > 0:
            self._receive(left)

    def receive_for(self, seconds: float) -> None:
        """Reads for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._receive(left)

    def _receive(self, timeout: float) -> None:
        for descriptor, _ in self._poll.poll(timeout, 1024):
            data = self._sockets[descriptor].recv(1 << 20)
            if not data:
                sys.exit("the server closed a connection")
            self.received += data.count(MARK)

    def close(self) -> None:
        """Closes all."""
        for sock in self._sockets.values():
            sock.close()
        self._poll.close()


def event_of_size(size: int) -> bytes:
    """The data of an event that has the mark in it, and this many bytes with everything."""
    padding = size - len(b'{"mark":0,"text":""}')
    return b'{"mark":0,"text":"%b"}' % (b"x" * max(0, padding))


def publish(port: int, data: bytes) -> None:
    """Publishes one event to the topic that all subscribe to."""
    connection = HTTPConnection(HOST, port, timeout=10)
    connection.request("POST", "/publish?topic=bench", data)
    if connection.getresponse().status != 200:
        sys.exit("publishing failed")
    connection.close()


def raise_descriptor_limit(needed: int) -> None:
    """Makes room for the sockets of this process, or says why not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < needed:
        sys.exit(f"{needed} descriptors are needed and {hard} allowed: see scripts/raise-nofile --check")


def report(results: Sequence[dict[str, object]]) -> None:
    """Prints the results as one JSON array."""
    print(json.dumps(list(results), indent=2))
