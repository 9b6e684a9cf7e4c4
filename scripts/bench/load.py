"""The load generator: many raw clients in a process of its own, on bare epoll, and the side that commands it.

It counts the marks of events, which every wire form has exactly once per event, answers WebSocket pings, asks again
where a long poll was answered, and samples latencies from the time that is written into each event. That time is
when the event was meant to be published, not when it was: a publisher that was held up does not hide the wait.
"""

import multiprocessing
import re
import select
import signal
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from answers import AnswerError, measure_answer, read_status
from frames import answer_pings
from peers.base import Opening, Running

MARK = b"mark"
_MARK_BEGUN = (b"m", b"ma", b"mar")
_SENT = re.compile(rb"sent\W+(\d+)")
_EVENT = re.compile(rb"mark\W+(\d+)")
_RECEIVE_BYTES = 1 << 18
_SAMPLE_EVERY = 4
_IP_BIND_ADDRESS_NO_PORT = 24  # ports are chosen at connect, so that each source address has all of them
#: Where one source address would run out of ports.
_CONNECTIONS_PER_SOURCE = 10_000
_PATIENCE_SECONDS = 20.0


class Target(NamedTuple):
    """Where clients connect to, and from.

    Attributes:
        first_source: clients come from 127.0.N.1, 127.0.N.2 and so on, with N this number.
        receive_buffer: bytes of SO_RCVBUF, 0 for the kernel's choice.
    """

    host: str
    port: int
    tls: bool = False
    first_source: int = 1
    receive_buffer: int = 0


class Again(NamedTuple):
    """How a long poll goes on after an answer: the server's adapter knows, for this topic."""

    running: Running
    topic: str


class Opened(NamedTuple):
    """What opening came to."""

    clients: int
    seconds: float
    failures: list[str]


class Received(NamedTuple):
    """What a crowd has received so far, and what was sampled since it was last asked.

    Attributes:
        marks: events so far, over all clients.
        closed: clients whose connection the server has ended so far.
        latencies: nanoseconds, sampled since the last time.
        answers: long polls that were answered so far.
        per_event: mark to (how often it came, the time of the last arrival in ns), where that was asked for.
    """

    marks: int
    closed: int
    latencies: list[int]
    answers: int
    per_event: dict[int, tuple[int, int]]


class _Waiting(NamedTuple):
    """What a client that is being opened waits for, and since when."""

    begun: bytes
    since: float


class _Client:
    """One connection."""

    __slots__ = ("again", "buffer", "is_websocket", "outgoing", "sock")

    def __init__(self, sock: socket.socket, *, is_websocket: bool, again: Again | None) -> None:
        self.sock = sock
        self.is_websocket = is_websocket
        self.again = again
        self.buffer = b""
        self.outgoing = b""


class Crowd:
    """Clients of one server; everything happens in the methods, nothing between them."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._paused: list[int] = []
        self._splits: dict[int, bytes] = {}
        self._latencies: list[int] = []
        self._per_event: dict[int, tuple[int, int]] | None = None
        self._marks = 0
        self._closed = 0
        self._answers = 0
        self._reads = 0

    # ---- opening

    def open(
        self,
        target: Target,
        openings: Sequence[Opening],
        *,
        is_websocket: bool = False,
        again: Again | None = None,
        window: int = 64,
    ) -> Opened:
        """Opens one client per opening, at most ``window`` of them under way at the same time.

        A client counts as open when its answer has ``begun`` in it; with an empty ``begun`` when the request is sent.
        """
        began = time.monotonic()
        waiting = deque(openings)
        begun: dict[int, _Waiting] = {}
        failures: list[str] = []
        total = len(self._clients)
        while waiting or begun:
            while waiting and len(begun) < window:
                opening = waiting.popleft()
                try:
                    descriptor = self._connect(target, opening.request, is_websocket=is_websocket, again=again)
                except OSError as error:
                    failures.append(f"{type(error).__name__}: {error}")
                    continue
                if opening.begun:
                    begun[descriptor] = _Waiting(opening.begun, time.monotonic())
            if len(failures) > 100:
                break
            if begun:
                self._await_begun(begun, failures)
        return Opened(len(self._clients) - total, time.monotonic() - began, list(dict.fromkeys(failures))[:3])

    def _connect(self, target: Target, request: bytes, *, is_websocket: bool, again: Again | None) -> int:
        sock: socket.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(_PATIENCE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            if target.receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, target.receive_buffer)
            source = 1 + len(self._clients) // _CONNECTIONS_PER_SOURCE
            sock.bind((f"127.0.{target.first_source}.{source}", 0))
            sock.connect((target.host, target.port))
            if target.tls:
                sock = trusting_context().wrap_socket(sock)
            sock.sendall(request)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        descriptor = sock.fileno()
        self._clients[descriptor] = _Client(sock, is_websocket=is_websocket, again=again)
        self._poll.register(descriptor, select.EPOLLIN)
        return descriptor

    def _await_begun(self, begun: dict[int, _Waiting], failures: list[str]) -> None:
        """Takes what came; a client that is not subscribed after a while is a failure."""
        for descriptor, _ in self._poll.poll(1, 1024):
            if descriptor not in begun:
                self._take(descriptor)
                continue
            client = self._clients[descriptor]
            data = self._receive(client)
            if not data:
                failures.append(f"refused: {client.buffer[:200]!r}")
                self._drop(descriptor)
                del begun[descriptor]
                continue
            client.buffer += data
            mark = begun[descriptor].begun
            if (position := client.buffer.find(mark)) >= 0:
                rest = client.buffer[position + len(mark) :]
                client.buffer = b""
                del begun[descriptor]
                self._count(descriptor, client, rest)
        late = time.monotonic() - _PATIENCE_SECONDS
        for descriptor in [one for one, client in begun.items() if client.since < late]:
            failures.append(f"no answer that begins: {self._clients[descriptor].buffer[:200]!r}")
            self._drop(descriptor)
            del begun[descriptor]

    # ---- receiving

    def receive(self, seconds: float, *, until_marks: int | None = None, until_answers: int | None = None) -> Received:
        """Reads for this long, or until so many events (or answers) have come since the beginning."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if until_marks is not None and self._marks >= until_marks:
                break
            if until_answers is not None and self._answers >= until_answers:
                break
            if not self._clients:  # nobody is left who could receive anything
                break
            for descriptor, _ in self._poll.poll(min(left, 1), 1024):
                self._take(descriptor)
        latencies, self._latencies = self._latencies, []
        return Received(self._marks, self._closed, latencies, self._answers, dict(self._per_event or {}))

    def hold(self, seconds: float, grace: float, until_marks: int) -> Received:
        """Reads for all of this time, and then on until so many further events have come, or the grace is over."""
        until_marks += self._marks
        self.receive(seconds)
        return self.receive(grace, until_marks=until_marks)

    def track_events(self) -> None:
        """From now on also counts event by event, which costs more: for low rates."""
        self._per_event = {}

    def pause(self, count: int) -> None:
        """Stops reading the clients that were opened last."""
        self._paused = list(self._clients)[-count:]
        for descriptor in self._paused:
            self._poll.modify(descriptor, 0)

    def resume(self) -> None:
        """Reads from the paused ones again."""
        for descriptor in self._paused:
            if descriptor in self._clients:
                # Whoever was slow for the size of its buffer is not any more.
                self._clients[descriptor].sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
                self._poll.modify(descriptor, select.EPOLLIN)
        self._paused = []

    def count_open(self) -> int:
        """Returns how many clients still have their connection."""
        return len(self._clients)

    def _take(self, descriptor: int) -> None:
        client = self._clients.get(descriptor)
        if client is None:
            return
        data = self._receive(client)
        if data:
            self._count(descriptor, client, data)
        elif data is not None:
            self._closed += 1
            self._drop(descriptor)

    def _receive(self, client: _Client) -> bytes | None:
        """Returns what is there; nothing at the end; None where it only seemed that something was there."""
        try:
            data = client.sock.recv(_RECEIVE_BYTES)
            if isinstance(client.sock, ssl.SSLSocket):  # a record at a time, and epoll does not see the ones read ahead
                while client.sock.pending():
                    data += client.sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError:
            return b""
        return data

    def _count(self, descriptor: int, client: _Client, data: bytes) -> None:
        if client.again is not None:
            self._count_answers(descriptor, client, data)
            return
        if self._splits and descriptor in self._splits:
            data = self._splits.pop(descriptor) + data
        self._marks += data.count(MARK)
        if data.endswith(_MARK_BEGUN):  # the mark may be cut in two
            self._splits[descriptor] = data[-3:]
        if client.is_websocket and b"\x89" in data:
            answer_pings(client.sock, data)
        self._sample(data)

    def _sample(self, data: bytes) -> None:
        """Takes the latency of the last event in this block, now and then."""
        self._reads += 1
        if self._per_event is not None:
            now = time.monotonic_ns()
            for found in _EVENT.finditer(data):
                count, _ = self._per_event.get(int(found[1]), (0, 0))
                self._per_event[int(found[1])] = (count + 1, now)
        if self._reads % _SAMPLE_EVERY:
            return
        position = data.rfind(b"sent")
        found_time = _SENT.match(data, position) if position >= 0 else None
        if found_time is not None and found_time.end() < len(data):
            self._latencies.append(time.monotonic_ns() - int(found_time[1]))

    def _count_answers(self, descriptor: int, client: _Client, data: bytes) -> None:
        """Takes the answers to a long poll, and asks again after each."""
        assert client.again is not None
        client.buffer += data
        try:
            while client.buffer and (length := measure_answer(client.buffer)):
                answer, client.buffer = client.buffer[:length], client.buffer[length:]
                self._marks += answer.count(MARK)
                self._answers += 1
                self._sample(answer)
                client.sock.send(_write_next_poll(client.again, answer))
        except (AnswerError, ValueError, OSError):
            self._closed += 1
            self._drop(descriptor)

    # ---- talking

    def echo(self, message: bytes, rounds: int, seconds: float) -> tuple[int, list[int]]:
        """Every client sends the message, waits for its echo, and sends again, so often.

        Returns:
            How many echoes came within the time, and their round trips in nanoseconds.
        """
        sent: dict[int, int] = {}
        rounds_left = dict.fromkeys(self._clients, rounds)
        trips: list[int] = []
        end = time.monotonic() + seconds
        for descriptor, client in list(self._clients.items()):
            sent[descriptor] = time.monotonic_ns()
            client.sock.send(message)
        while rounds_left and (left := end - time.monotonic()) > 0:
            for descriptor, _ in self._poll.poll(min(left, 1), 1024):
                before = self._marks
                self._take(descriptor)
                if descriptor not in self._clients or self._marks == before or descriptor not in rounds_left:
                    continue
                trips.append(time.monotonic_ns() - sent[descriptor])
                rounds_left[descriptor] -= 1
                if rounds_left[descriptor] == 0:
                    del rounds_left[descriptor]
                    continue
                sent[descriptor] = time.monotonic_ns()
                self._clients[descriptor].sock.send(message)
        return len(trips), trips

    # ---- the end

    def _drop(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._splits.pop(descriptor, None)
        self._clients.pop(descriptor).sock.close()

    def close(self) -> None:
        """Closes all."""
        for descriptor in list(self._clients):
            self._drop(descriptor)


def trusting_context() -> ssl.SSLContext:
    """Returns a context that takes any certificate: the server is our own, and its certificate signed by itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _write_next_poll(again: Again, answer: bytes) -> bytes:
    if read_status(answer) not in (200, 204, 304):
        raise AnswerError(f"an error: {answer[:200]!r}")
    return again.running.poll_next(again.topic, answer[: answer.index(b"\r\n\r\n") + 4])


class LoadError(Exception):
    """The load generator could not do what it was told."""


class Load:
    """A crowd in a process of its own. One command at a time: either called, or begun and its result taken later."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_obey, args=(theirs,), daemon=True, name="load")
        self._process.start()
        theirs.close()

    def begin(self, method: str, *arguments: Any, **named: Any) -> None:
        """Has the crowd do something, and does not wait for it."""
        self._connection.send((method, arguments, named))

    def result(self) -> Any:
        """Waits for what was begun."""
        try:
            is_fine, value = self._connection.recv()
        except EOFError as error:
            raise LoadError("the load generator ended") from error
        if not is_fine:
            raise LoadError(value)
        return value

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Has the crowd do something; returns what came of it."""
        self.begin(method, *arguments, **named)
        return self.result()

    def end(self) -> None:
        """Ends the process, and with it all its connections."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _obey(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who commands decides when it is over
    crowd = Crowd()
    while True:
        try:
            method, arguments, named = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, getattr(crowd, method)(*arguments, **named)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side has to know
            connection.send((False, f"{type(error).__name__}: {error}"))
