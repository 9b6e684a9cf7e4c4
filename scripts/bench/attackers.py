"""Clients that mean no good, in a process of their own: some send a byte now and then, some never read.

Whoever is thrown out comes back at once, so that there are as many all the time. To this machine only.
"""

import multiprocessing
import os
import random
import select
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import islice
from multiprocessing.connection import Connection
from typing import NamedTuple

from peers.base import Running, http_request, websocket_request
from processes import share_nice

_BYTE_EVERY_SECONDS = 10.0
_CONNECTIONS_PER_SOURCE = 10_000
_IP_BIND_ADDRESS_NO_PORT = 24
_CONNECTS_PER_ROUND = 200
#: So that little fits into what nobody reads.
_RECEIVE_BUFFER = 4096
#: Than what is measured.
_NICER = 5
_OVER = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Kind(StrEnum):
    """What an attacker does."""

    HEAD = "head"  # sends a request's head, a byte at a time
    BODY = "body"  # the same with an event that it publishes
    FRAME = "frame"  # the same with a WebSocket message
    SILENT_SSE = "silent sse"  # asks for everything there is, and reads nothing
    SILENT_WEBSOCKET = "silent websocket"


SLOW = (Kind.HEAD, Kind.BODY, Kind.FRAME)
SILENT = (Kind.SILENT_SSE, Kind.SILENT_WEBSOCKET)


class Speech(NamedTuple):
    """What an attacker sends.

    Attributes:
        at_once: when it has connected.
        slowly: then, a byte at a time, and the same again when it is over.
    """

    at_once: bytes
    slowly: bytes


class Standing(NamedTuple):
    """How the attack goes.

    Attributes:
        connected: attackers that are in now, by kind.
        thrown_out: how often one was thrown out so far, by kind.
    """

    connected: dict[str, int]
    thrown_out: dict[str, int]


def speeches_for(running: Running, topic: str) -> dict[Kind, Speech]:
    """Returns what each kind sends to this server."""
    publish = running.publish(topic, b"x" * 60_000)
    begun = publish[: publish.index(b"\r\n\r\n") + 4]
    everything = f"/events?topic={topic}&last_id={running.beginning}"
    return {
        Kind.HEAD: Speech(b"GET /events?topic=x HTTP/1.1\r\n", b"X-Slow: xxxxxxxxxxxxxxxxxxxx\r\n"),
        Kind.BODY: Speech(begun, b"x"),
        Kind.FRAME: Speech(websocket_request("/ws") + b"\x81\xfe\xf0\x00mask", b"x"),
        Kind.SILENT_SSE: Speech(http_request("GET", everything, "Accept: text/event-stream"), b""),
        Kind.SILENT_WEBSOCKET: Speech(websocket_request(everything), b""),
    }


class _Attacker:
    __slots__ = ("kind", "number", "sent", "sock")

    def __init__(self, kind: Kind, number: int, sock: socket.socket) -> None:
        self.kind = kind
        self.number = number
        self.sock = sock
        self.sent = -1  # nothing, not even what goes at once


class Mob:
    """Attackers of one server.

    Args:
        address: the server's.
        speeches: what each kind sends.
        kinds: one for each attacker.
        every: seconds from a byte to the next.
    """

    def __init__(
        self,
        address: tuple[str, int],
        speeches: dict[Kind, Speech],
        kinds: Sequence[Kind],
        *,
        every: float = _BYTE_EVERY_SECONDS,
    ) -> None:
        self._address = address
        self._every = every
        self._speeches = speeches
        self._poll = select.epoll()
        self._attackers: dict[int, _Attacker] = {}
        self._to_open = deque(enumerate(kinds))
        self._due: deque[tuple[float, int, _Attacker]] = deque()
        self._thrown_out: Counter[str] = Counter()
        self._random = random.Random(5)

    def standing(self) -> Standing:
        """Returns how it goes."""
        return Standing(
            dict(Counter(str(one.kind) for one in self._attackers.values() if one.sent >= 0)), dict(self._thrown_out)
        )

    def go_on(self, seconds: float) -> None:
        """Attacks for a moment."""
        for number, kind in list(islice(self._taken(), _CONNECTS_PER_ROUND)):
            self._connect(kind, number)
        for descriptor, mask in self._poll.poll(seconds, 4096):
            attacker = self._attackers.get(descriptor)
            if attacker is not None:
                self._move(attacker, mask)
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, descriptor, attacker = self._due.popleft()
            if self._attackers.get(descriptor) is attacker:
                self._drip(attacker, now + self._every)

    def close(self) -> None:
        """Closes all connections."""
        for attacker in self._attackers.values():
            attacker.sock.close()
        self._attackers.clear()
        self._poll.close()

    def _taken(self) -> Iterator[tuple[int, Kind]]:
        while self._to_open:
            yield self._to_open.popleft()

    def _connect(self, kind: Kind, number: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        if kind in SILENT:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.66.{1 + number // _CONNECTIONS_PER_SOURCE}", 0))
        sock.connect_ex(self._address)
        self._attackers[sock.fileno()] = _Attacker(kind, number, sock)
        self._poll.register(sock, select.EPOLLOUT | _OVER)

    def _move(self, attacker: _Attacker, mask: int) -> None:
        if mask & _OVER:
            self._thrown(attacker)
        elif attacker.sent < 0:
            self._begin(attacker)
        else:
            try:
                is_over = not attacker.sock.recv(65536)
            except BlockingIOError:
                is_over = False
            except OSError:
                is_over = True
            if is_over:
                self._thrown(attacker)

    def _begin(self, attacker: _Attacker) -> None:
        attacker.sent = 0
        try:
            attacker.sock.send(self._speeches[attacker.kind].at_once)
        except OSError:
            self._thrown(attacker)
            return
        is_slow = attacker.kind in SLOW
        self._poll.modify(attacker.sock, select.EPOLLIN | _OVER if is_slow else _OVER)
        if is_slow:
            self._wait(attacker, time.monotonic() + self._random.uniform(0, self._every))

    def _wait(self, attacker: _Attacker, due: float) -> None:
        # In order but for those who begin: these are put where they belong.
        place = len(self._due)
        while place and self._due[place - 1][0] > due:
            place -= 1
        self._due.insert(place, (due, attacker.sock.fileno(), attacker))

    def _drip(self, attacker: _Attacker, again: float) -> None:
        slowly = self._speeches[attacker.kind].slowly
        begin = attacker.sent % len(slowly)
        try:
            attacker.sent += attacker.sock.send(slowly[begin : begin + 1])
        except OSError:
            self._thrown(attacker)
            return
        self._wait(attacker, again)

    def _thrown(self, attacker: _Attacker) -> None:
        self._thrown_out[str(attacker.kind)] += 1
        descriptor = attacker.sock.fileno()
        self._poll.unregister(descriptor)
        del self._attackers[descriptor]
        attacker.sock.close()
        self._to_open.append((attacker.number, attacker.kind))


class Attack:
    """A mob in a process of its own, from its beginning to ``end``.

    Args:
        running: the server.
        topic: what those who never read ask for.
        slow: how many send a byte now and then, a third of each kind.
        silent: how many never read, half of each kind.
    """

    def __init__(self, running: Running, topic: str, *, slow: int, silent: int) -> None:
        kinds = [SLOW[number % len(SLOW)] for number in range(slow)]
        kinds += [SILENT[number % len(SILENT)] for number in range(silent)]
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, (running.host, running.port), speeches_for(running, topic), kinds)
        self._process = context.Process(target=_attack, args=arguments, daemon=True, name="attackers")
        self._process.start()
        theirs.close()

    def standing(self) -> Standing:
        """Returns how it goes.

        Raises:
            EOFError: the process has ended.
        """
        self._connection.send(None)
        standing: Standing = self._connection.recv()
        return standing

    def end(self) -> None:
        """Ends it, and with it all its connections."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _attack(
    connection: Connection, address: tuple[str, int], speeches: dict[Kind, Speech], kinds: Sequence[Kind]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who commands decides when it is over
    # What is measured shares the machine with them: they are many machines in earnest. In a session of their own, for
    # their niceness counts within a session alone (see share_nice).
    os.setsid()
    os.nice(_NICER)
    share_nice(os.getpid())
    mob = Mob(address, speeches, kinds)
    while True:
        mob.go_on(0.05)
        if connection.poll():
            try:
                connection.recv()
            except EOFError:
                return
            connection.send(mob.standing())
