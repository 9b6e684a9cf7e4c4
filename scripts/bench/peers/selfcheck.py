#!/usr/bin/env python3
"""Checks that every peer does what it says it can, or says why it is missing.

For each transport: 20 subscribers get 10 events in order. Echo, replay, batches, long polls and topics where the peer
has them. Afterwards none of its processes is left. With ``--subscribers`` so many subscribers get 3 events instead.
"""

import argparse
import re
import resource
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.client import HTTPResponse
from pathlib import Path

if __name__ == "__main__":  # its folder has modules that are not to be found by their bare names
    sys.path[0] = str(Path(__file__).parents[1])

from peers import PEERS
from peers.base import Capability, Opening, Peer, PeerError, Running, process_tree, websocket_frame, websocket_request

_SECONDS = 20.0
_BURST = 64


class CheckFailedError(Exception):
    """A peer does not do what it says."""


def event(mark: int) -> bytes:
    """The data of an event as the runner publishes it."""
    return b'{"mark":%d,"sent":%d,"text":"%b"}' % (mark, time.monotonic_ns(), b"x" * 120)


def marks(received: bytes) -> list[int]:
    """The events in what was received, whether their data is JSON or JSON in a string."""
    return [int(found) for found in re.findall(rb'mark\\*":(\d+)', received)]


class Client:
    """A connection; what it received so far is in ``received``."""

    def __init__(self, running: Running, request: bytes, *, port: int | None = None) -> None:
        """Args: the server, the first bytes to send, and the port where it is not the subscribers'."""
        self.sock = socket.create_connection((running.host, port or running.port), timeout=_SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(request)
        self.received = b""

    def read_until(self, enough: Callable[[bytes], bool], what: str) -> bytes:
        """Reads on until that is so."""
        end = time.monotonic() + _SECONDS  # keepalives may go on coming
        while not enough(self.received):
            if time.monotonic() > end:
                raise CheckFailedError(f"{what}: not in time, after {self.received[-300:]!r}")
            try:
                chunk = self.sock.recv(1 << 20)
            except OSError as error:
                raise CheckFailedError(f"{what}: {error}, after {self.received[-300:]!r}") from None
            if not chunk:
                raise CheckFailedError(f"{what}: closed, after {self.received[-300:]!r}")
            self.received += chunk
        return self.received

    def answer(self, request: bytes) -> tuple[bytes, bytes]:
        """Sends a request, and returns the head and the body of the answer."""
        self.sock.sendall(request)
        return self.read_answer()

    def read_answer(self) -> tuple[bytes, bytes]:
        """The head and the body of the next answer."""
        response = HTTPResponse(self.sock)
        try:
            response.begin()
            body = response.read()
        except OSError as error:
            raise CheckFailedError(f"no answer: {error}") from None
        if response.status // 100 != 2:
            raise CheckFailedError(f"answered with {response.status} {body!r}")
        return "\r\n".join(f"{name}: {value}" for name, value in response.getheaders()).encode(), body


class Visit:
    """What one check opens, closed together."""

    def __init__(self, running: Running) -> None:
        """Args: the server."""
        self.running = running
        self._clients: list[Client] = []

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.sock.close()

    def connect(self, request: bytes = b"", *, port: int | None = None) -> Client:
        """A connection with its first bytes sent."""
        self._clients.append(Client(self.running, request, port=port))
        return self._clients[-1]

    def subscribe(self, transport: str, topic: str, *, last_id: str | None = None) -> Client:
        """A subscriber that gets what is published from now on."""
        opening = self.running.subscribe(transport, topic, last_id=last_id)
        client = self.connect(opening.request)
        begin(client, opening, transport)
        return client

    def publisher(self) -> Client:
        """A connection to publish on."""
        return self.connect(port=self.running.publish_port)


def begin(client: Client, opening: Opening, what: str) -> None:
    """Waits until a subscriber that sent its request is sure to get what comes."""
    client.read_until(lambda received: opening.begun in received, what)


def _expect(client: Client, wanted: Sequence[int], what: str) -> None:
    client.read_until(lambda received: len(marks(received)) >= len(wanted), what)
    if marks(client.received) != list(wanted):
        raise CheckFailedError(f"{what}: {marks(client.received)} instead of {list(wanted)}")


def check_stream(visit: Visit, transport: str, *, subscribers: int = 20, events: int = 10) -> str:
    """All events reach all subscribers in order."""
    topic = f"stream.{transport}"
    clients = [visit.subscribe(transport, topic) for _ in range(subscribers)]
    publisher = visit.publisher()
    for mark in range(events):
        publisher.answer(visit.running.publish(topic, event(mark)))
    for client in clients:
        _expect(client, range(events), transport)
    return f"{transport} {subscribers * events}"


def check_topics(visit: Visit, transport: str) -> str:
    """A subscriber gets what is published to its own topic, and nothing else."""
    client = visit.subscribe(transport, "topic.mine")
    publisher = visit.publisher()
    publisher.answer(visit.running.publish("topic.other", event(1)))
    publisher.answer(visit.running.publish("topic.mine", event(2)))
    _expect(client, [2], "topics")
    return "topics"


def check_replay(visit: Visit, transport: str) -> str:
    """One who comes later gets what is kept, and then goes on."""
    publisher, topic = visit.publisher(), f"replay.{transport}"
    for mark in range(10):
        publisher.answer(visit.running.publish(topic, event(mark)))
    client = visit.subscribe(transport, topic, last_id=visit.running.beginning)
    _expect(client, range(10), "replay")
    publisher.answer(visit.running.publish(topic, event(10)))
    _expect(client, range(11), "after replay")
    return f"replay over {transport}"


def check_batch(visit: Visit, transport: str) -> str:
    """Several events in one request arrive in order."""
    client = visit.subscribe(transport, "batch")
    visit.publisher().answer(visit.running.publish_batch("batch", [event(mark) for mark in range(10)]))
    _expect(client, range(10), "batch")
    return "batch"


def check_poll(visit: Visit, *, subscribers: int = 20, events: int = 10) -> str:
    """Long polls one after the other miss nothing and repeat nothing."""
    running, publisher = visit.running, visit.publisher()
    publisher.answer(running.publish("poll", event(0)))
    first = running.subscribe("poll", "poll", last_id=running.beginning)
    clients = [visit.connect(first.request) for _ in range(subscribers)]
    for mark in range(events):
        answers = [client.read_answer() for client in clients]
        if any(marks(body) != [mark] for _, body in answers):
            raise CheckFailedError(f"poll: {answers} instead of {mark}")
        for client, (head, _) in zip(clients, answers, strict=True):
            client.sock.sendall(running.poll_next("poll", head))
        publisher.answer(running.publish("poll", event(mark + 1)))
    return f"poll {subscribers * events}"


def check_echo(visit: Visit) -> str:
    """Text comes back as text, binary as binary."""
    client = visit.connect(websocket_request(visit.running.echo().decode()))
    client.read_until(lambda received: b"\r\n\r\n" in received, "echo")
    client.received = client.received.partition(b"\r\n\r\n")[2]
    client.sock.sendall(websocket_frame(b"hello") + websocket_frame(b"\x00" * 200, opcode=2))
    wanted = b"\x81\x05hello\x82\x7e\x00\xc8" + b"\x00" * 200
    if client.read_until(lambda received: len(received) >= len(wanted), "echo") != wanted:
        raise CheckFailedError(f"echo: {client.received!r}")
    return "echo"


def _checks(peer: Peer) -> Iterator[Callable[[Visit], str]]:
    first = peer.transports[0]
    for transport in peer.transports:
        yield partial(check_stream, transport=transport)
    if Capability.TOPICS in peer.capabilities:
        yield partial(check_topics, transport=first)
    if Capability.REPLAY in peer.capabilities:
        for transport in peer.transports:
            yield partial(check_replay, transport=transport)
    if Capability.BATCH in peer.capabilities:
        yield partial(check_batch, transport=first)
    if Capability.POLL in peer.capabilities:
        yield check_poll
    if Capability.ECHO in peer.capabilities:
        yield check_echo


def check_running(peer: Peer, running: Running) -> list[str]:
    """Everything the peer says it can."""
    done = []
    for one in _checks(peer):
        with Visit(running) as visit:
            done.append(one(visit))
    return done


def _hold(visit: Visit, transport: str, count: int) -> str:
    """So many subscribers, opened in bursts, get 3 events each."""
    running = visit.running
    opening = running.subscribe(transport, "crowd")
    began = time.monotonic()
    clients: list[Client] = []
    while len(clients) < count:
        burst = [visit.connect(opening.request) for _ in range(min(_BURST, count - len(clients)))]
        for client in burst:
            begin(client, opening, f"subscriber {len(clients)}")
            client.received = b""
        clients += burst
    opened = time.monotonic() - began
    kilobytes = sum(_resident(pid) for pid in running.pids()) / 1000
    publisher = visit.publisher()
    began = time.monotonic()
    for mark in range(3):
        publisher.answer(running.publish("crowd", event(mark)))
    _read_all(clients, 3)
    reached = time.monotonic() - began
    return f"{transport} {count}: {opened:.1f} s to open, {kilobytes / count:.1f} KB each, {reached:.2f} s for 3 events"


def _read_all(clients: Sequence[Client], events: int) -> None:
    waiting = {client.sock.fileno(): client for client in clients}
    with select.epoll() as poll:
        for descriptor in waiting:
            poll.register(descriptor, select.EPOLLIN)
        end = time.monotonic() + 3 * _SECONDS
        while waiting and (left := end - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left, 1024):
                client = waiting[descriptor]
                chunk = client.sock.recv(1 << 20)
                client.received += chunk
                if not chunk:
                    raise CheckFailedError("a subscriber was cut off")
                if marks(client.received) == list(range(events)):
                    poll.unregister(descriptor)
                    del waiting[descriptor]
    if waiting:
        raise CheckFailedError(f"{len(waiting)} subscribers did not get {events} events in order")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def check(peer: Peer, folder: Path, *, subscribers: int | None = None) -> list[str]:
    """Runs a peer that was prepared, checks it, and that nothing is left of it.

    Args:
        peer: the peer.
        folder: where its files go.
        subscribers: how many to hold, instead of checking everything with a few.

    Returns:
        What was checked.

    Raises:
        CheckFailedError: it does not do what it says.
        PeerError: it does not start.
    """
    done: list[str] = []
    if subscribers is None:
        with peer.run(folder, options={"history": "1000"}) as running:
            pids = running.pids()
            if not pids:
                raise CheckFailedError("no process")
            done = check_running(peer, running)
        _expect_gone(pids)
    else:
        for transport in peer.transports:
            with peer.run(folder / transport, options={"transport": transport}) as running:
                pids = running.pids()
                with Visit(running) as visit:
                    done.append(_hold(visit, transport, subscribers))
            _expect_gone(pids)
    return done


def _expect_gone(pids: Sequence[int]) -> None:
    left = [pid for pid in pids if process_tree(pid)]
    if left:
        raise CheckFailedError(f"processes {left} are left")


def main() -> None:
    """Reads the command line, checks, and fails when a peer that is here does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("names", nargs="*", help="peers whose names have this in them; none is all")
    parser.add_argument("--build", type=Path, default=Path("build/bench"), help="where peers are built")
    parser.add_argument("--subscribers", type=int, default=None, help="hold so many instead")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended
    failed = 0
    for peer in PEERS:
        if arguments.names and not any(name.lower() in peer.name.lower() for name in arguments.names):
            continue
        missing = peer.prepare(arguments.build)
        if missing is not None:
            print(f"{peer.name}: missing: {missing}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = check(peer, Path(folder), subscribers=arguments.subscribers)
            except (CheckFailedError, PeerError, OSError) as error:
                failed += 1
                print(f"{peer.name}: FAILED: {error}", flush=True)
            else:
                print(f"{peer.name} ({peer.version()}): {'; '.join(done)}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
