"""The loop and the connections of the load generator, on real sockets."""

import os
import select
import socket
import ssl
import threading
from contextlib import suppress

import pytest
import trustme
from clocks import HANG_SECONDS

from tricast.bench.engine import READABLE, WRITABLE, Engine
from tricast.bench.link import Link, LinkLost, Target


class Party:
    """Does something when its descriptor is ready; what went wrong first is kept for the test."""

    def __init__(self, function) -> None:
        self._function = function
        self.lost: LinkLost | None = None

    def ready(self, mask: int) -> None:
        try:
            self._function(mask)
        except LinkLost as lost:
            # A broken connection stays ready: until somebody looks it may be tried again, and fail otherwise.
            self.lost = self.lost or lost


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def target_of(listener, context=None) -> Target:
    return Target(socket.AF_INET, listener.getsockname(), "localhost", context)


def drive(engine: Engine, condition) -> None:
    """Goes round until the condition holds."""

    def look():
        if condition():
            engine.stop()
        else:
            engine.call_in(0.001, look)

    look()
    engine.run()


def connect(target) -> None:
    """Connects, closes the connection, and raises what was wrong, whether that is found out at once or later."""
    engine = Engine()
    party = Party(lambda mask: link.go_on())
    link = Link(engine, party, target, 0)
    drive(engine, lambda: party.lost or link.is_open)
    link._sock.close()
    if party.lost is not None:
        raise party.lost


# The loop


def test_it_calls_in_time_and_in_order():
    engine, called = Engine(), []
    engine.call_in(0.002, lambda: called.append(2))
    engine.call_at(0, lambda: called.append(1))
    engine.call_in(0.03, engine.stop)
    engine.run()
    assert called == [1, 2]


def test_who_was_forgotten_in_the_same_round_is_not_called():
    engine, called = Engine(), []
    pipes = [os.pipe() for _ in range(2)]

    def forget_the_other(reading):
        called.append(reading)
        engine.forget(next(other for other, _ in pipes if other != reading))
        engine.stop()

    for reading, writing in pipes:
        os.write(writing, b"x")
        engine.watch(reading, Party(lambda mask, reading=reading: forget_the_other(reading)), READABLE)
    engine.run()
    assert len(called) == 1
    for descriptor in (end for pipe in pipes for end in pipe):
        os.close(descriptor)


# Connections


def test_sources_have_ports_for_all():
    here = Target(socket.AF_INET, ("127.0.0.1", 80), "x", None)
    sources = [here.source(index) for index in (0, 9_999, 10_000, 2_500_000)]
    assert sources == ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.1.1"]
    assert Target(socket.AF_INET, ("192.0.2.1", 80), "x", None).source(5) is None
    assert Target(socket.AF_INET6, ("::1", 80, 0, 0), "x", None).source(5) is None


def test_it_comes_from_that_source(listener):
    link = Link(Engine(), Party(lambda mask: None), target_of(listener), 20_000)
    peer, address = listener.accept()
    assert address[0] == "127.0.0.3"
    peer.close()
    link.close()


def test_nobody_listens():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # so that nobody else gets the port
        with pytest.raises(LinkLost, match=r"^connection refused$"):
            connect(target_of(listener))


def test_an_address_that_is_none():
    # TCP reaches no broadcast address, and the kernel knows that at once.
    with pytest.raises(LinkLost, match=r"^network is unreachable$"):
        connect(Target(socket.AF_INET, ("255.255.255.255", 1), "x", None))


def test_more_than_there_is_room_for(listener):
    size, received = 20_000_000, 0
    engine = Engine()

    def ready(mask):
        if not link.is_open:
            link.go_on()
            link.send(b"x" * size)
            tails.append(len(link._tail))
        elif mask & WRITABLE:
            link.flush()

    def read_all():
        """The peer reads all the time: how much the other side may send is up to the kernel."""
        nonlocal received
        with suppress(BlockingIOError):
            while data := peer.recv(1_000_000):
                received += len(data)
        return received == size

    tails = []
    link = Link(engine, Party(ready), target_of(listener), 0)
    peer, _ = listener.accept()
    peer.setblocking(False)
    drive(engine, read_all)
    assert tails[0] > 0
    assert link._tail == b""
    assert link.receive() == b""
    peer.close()
    assert select.select([link._sock], [], [], HANG_SECONDS)[0]
    with pytest.raises(LinkLost, match="closed by the server"):
        link.receive()
    link._sock.close()


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def secure_peer(listener, authority):
    """Accepts one connection, sends a megabyte over TLS, and waits for a byte."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    def serve():
        peer, _ = listener.accept()
        with peer:
            try:
                with context.wrap_socket(peer, server_side=True) as secure:
                    secure.sendall(b"y" * 1_000_000)
                    secure.recv(1)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join()


def test_tls(listener, authority, secure_peer):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    engine, received = Engine(), bytearray()

    def ready(mask):
        if link.is_open or link.go_on():
            received.extend(link.receive())

    party = Party(ready)
    link = Link(engine, party, target_of(listener, context), 0)
    drive(engine, lambda: party.lost or len(received) == 1_000_000)
    assert party.lost is None
    link._sock.send(b"z")
    link._sock.close()


def test_a_certificate_that_is_not_trusted(listener, secure_peer):
    with pytest.raises(LinkLost, match=r"^certificate not trusted: "):
        connect(target_of(listener, ssl.create_default_context()))
