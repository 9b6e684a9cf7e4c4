"""Ten thousand clients that break off in each phase of a connection leave nothing behind.

Clients are bare sockets here, which come and end many at a time, with a reset. What there is of tasks, descriptors,
entries in registries and objects is counted before and after.
"""

import gc
import socket
import ssl
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self

import pytest
import trio
import trio.testing
from clients import TEXT, WEBSOCKET_HEADERS, frame, head
from clocks import HANG_SECONDS
from encryption import client_hello, tls_section
from serving import capturing_logger, failures, serving, until, what_is_open
from structlog.testing import LogCapture

import tricast
from tricast.garbage import calm_collector
from tricast.http import HttpConnection
from tricast.listening import _Arrival, _Handshake
from tricast.quotas import Tally
from tricast.transports.websocket import Session

ENDS = 10_000
#: So many at a time, which with the server's side of them fit into a descriptor limit of 1024.
CROWD = 400
#: A linger time of zero: the end is a reset (socket(7)).
RESET = struct.pack("ii", 1, 0)
#: Nothing is over before the client is.
PATIENCE: dict[str, Any] = {
    "limits": {"head_timeout": "1h", "body_timeout": "1h", "idle_timeout": "1h", "write_timeout": "1h",
               "send_buffer": 4096},
    "poll": {"timeout": "1h"},
    "sse": {"keepalive": "1h"},
    "websocket": {"ping_interval": "1h", "ping_timeout": "2h", "close_timeout": "1h", "max_message": "100B"},
    "events": {"history": 1},
}  # fmt: skip

POLL = head("GET", "/events?topic=news")
STREAM = head("GET", "/events?topic=news", "Accept: text/event-stream")
WEBSOCKET = head("GET", "/events?topic=news", *WEBSOCKET_HEADERS)
HALF_A_HEAD = POLL[:-2]
HALF_A_BODY = head("POST", "/publish?topic=news", "Transfer-Encoding: chunked") + b"5\r\nhe"
ANSWERED = head("GET", "/healthz")
MALFORMED = b"GET / HTTP/9.9\r\n\r\n"
TOO_LONG_MESSAGE = head("GET", "/ws", *WEBSOCKET_HEADERS) + frame(TEXT, b"x" * 101)


@pytest.fixture(autouse=True)
def _lingers_until_the_client_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a silence ends would otherwise be over before the last of a crowd has got there."""
    for limit in ("_LINGER_SECONDS", "_LINGER_SILENCE_SECONDS"):
        monkeypatch.setattr(tricast.connection, limit, 3600.0)


class Crowd:
    """Clients that come together, and leave together, at the latest at the end of the block.

    Args:
        address: the server's.
        sent: what they send, in turn.
        receive_buffer: of each; 0 leaves it to the kernel.
    """

    def __init__(self, address: tuple[str, int], sent: Sequence[bytes], receive_buffer: int = 0) -> None:
        self.sent = [sent[number % len(sent)] for number in range(CROWD)]
        self._sockets = []
        for data in self.sent:
            sock = socket.socket()
            self._sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.connect(address)  # which is between the kernel and itself, until somebody accepts it
            sock.sendall(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()

    def reset(self, part: slice = slice(None)) -> None:
        """Ends all connections, or a part of them. Nobody was there to notice it before this returns."""
        for sock in self._sockets[part]:
            sock.close()


@contextmanager
def as_in_a_program() -> Iterator[None]:
    """With the garbage collector as the program has it, and without coverage, which learns nothing from so many.

    Either would take longer than all else.
    """
    tracer, thresholds = sys.gettrace(), gc.get_threshold()
    sys.settrace(None)
    calm_collector()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        sys.settrace(tracer)


def objects() -> Counter[str]:
    """How many there are of whatever a connection consists of, by class; what the log keeps is not its."""
    kinds = (trio.Nursery, trio.lowlevel.Task, ssl.SSLObject, socket.socket)
    gc.collect()
    names = Counter(
        f"{type(each).__module__}.{type(each).__qualname__}"
        for each in gc.get_objects()
        if isinstance(each, kinds) or str(type(each).__module__).startswith(("tricast.", "h11.", "wsproto."))
    )
    return Counter({name: n for name, n in names.items() if not name.startswith(("tricast.event.", "tricast.log."))})


async def census(server: tricast.Server) -> tuple[dict[str, int], Counter[str]]:
    """How much there is of all that a connection could leave behind, once nothing is under way.

    First the server's own, and then the process's, of which there may be less later: what tests before this one left
    may be tidied up meanwhile.
    """
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()  # also what other tests in this process have left to it
    runtime, statistics, acceptor = server._runtime, server.hub.statistics(), server._entrance._acceptor
    held = {
        "registry": len(runtime.open),
        "to be told of the end": len(runtime.at_end),
        "subscribers": statistics.subscribers,
        "feeds": statistics.feeds,
        "behind": statistics.behind,
        "wheel": len(runtime.wheel),
        "inside": acceptor._inside,
        "refusing": acceptor._refusing,
    }
    quotas = Counter(quotas=sum(len(each) for each in gc.get_objects() if isinstance(each, Tally)))
    return held, quotas + what_is_open() + objects()


# Where they are when they end

Reached = Callable[[tricast.Server, Crowd], Awaitable[None]]


async def let_in_or_not(server: tricast.Server, crowd: Crowd) -> None:
    """Nobody has accepted them yet: what they sent is found there with the reset behind it."""


def all_are(condition: Callable[[Any], bool]) -> Reached:
    """All connections are busy with something of which this is true."""

    async def reached(server: tricast.Server, crowd: Crowd) -> None:
        await until(lambda: sum(map(condition, server._runtime.open.values())) == CROWD)

    return reached


async def shaking_hands(server: tricast.Server, crowd: Crowd) -> None:
    """Those who have sent something of it were heard, and answered where it was complete."""

    def begun() -> int:
        busy_with = server._runtime.open.values()
        return sum(isinstance(it, _Handshake) and it._connection.has_begun for it in busy_with)

    await until(lambda: server.connections == CROWD and begun() == sum(map(bool, crowd.sent)))


async def subscribed(server: tricast.Server, crowd: Crowd) -> None:
    await until(lambda: server.hub.statistics().subscribers == CROWD)


async def subscribed_to_something(server: tricast.Server, crowd: Crowd) -> None:
    """Every other crowd has ended already when it is sent something."""
    await subscribed(server, crowd)
    if server._runtime.counters.accepted // CROWD % 2:
        await server.hub.publish("news", 1)
        crowd.reset()


async def behind(server: tricast.Server, crowd: Crowd) -> None:
    await subscribed(server, crowd)
    await server.hub.publish("news", "x" * 60_000)
    await until(lambda: server.hub.statistics().behind == CROWD)


async def refused(server: tricast.Server, crowd: Crowd) -> None:
    """All have their answer, behind which the server waits for them to leave."""
    counters = server._runtime.counters
    await until(lambda: server.connections == CROWD and counters.refusals.total() == counters.accepted)


class Phase(NamedTuple):
    """Of a connection.

    Attributes:
        name: of the phase.
        sent: what clients send to get there, in turn.
        reached: returns when they are there.
        is_lost: whether the server takes it for a loss, rather than what it was about to do itself.
        receive_buffer: of the clients; 0 leaves it to the kernel.
    """

    name: str
    sent: Sequence[bytes]
    reached: Reached
    is_lost: bool = True
    receive_buffer: int = 0


def is_in_head(it: object) -> bool:
    return isinstance(it, HttpConnection) and it._ahead != b""


def is_idle(it: object) -> bool:
    return isinstance(it, HttpConnection) and it._number == 1 and it._scope is not None


def is_arriving(it: object) -> bool:
    return isinstance(it, _Arrival)


def is_in_body(it: object) -> bool:
    return isinstance(it, HttpConnection) and it._body is not None and not it._body.is_complete


def is_closing(it: object) -> bool:
    return isinstance(it, Session) and it.close_code == 1009


PHASES = [
    Phase("accept", [b"", POLL, HALF_A_HEAD], let_in_or_not),
    Phase("head", [HALF_A_HEAD], all_are(is_in_head)),
    Phase("body", [HALF_A_BODY], all_are(is_in_body)),
    Phase("idle behind an answer", [ANSWERED], all_are(is_idle)),
    Phase("lingering behind a refusal", [MALFORMED], refused, is_lost=False),
    Phase("poll waiting", [POLL], subscribed),
    Phase("event stream, live", [STREAM], subscribed_to_something),
    Phase("event stream, behind", [STREAM], behind, receive_buffer=4096),
    Phase("websocket handshake", [WEBSOCKET], let_in_or_not),
    Phase("websocket, open", [WEBSOCKET], subscribed),
    Phase("websocket, closing", [TOO_LONG_MESSAGE], all_are(is_closing), is_lost=False),
]


async def ends_in(phase: Phase, **sections: Any) -> None:
    """Has them come and end there, and looks at what is left."""
    async with serving(**PATIENCE, **sections) as server:
        counters, address = server._runtime.counters, ("127.0.0.1", server.port)

        async def come_and_go() -> None:
            accepted = counters.accepted + CROWD
            with Crowd(address, phase.sent, phase.receive_buffer) as crowd:
                await phase.reached(server, crowd)
            await until(lambda: counters.accepted == accepted and server.connections == 0)

        await come_and_go()  # what is kept for all has been made then
        held, before = await census(server)
        with as_in_a_program():
            for _ in range(ENDS // CROWD):
                await come_and_go()
        held_now, now = await census(server)
        assert held_now == held
        assert not now - before
        rounds = ENDS // CROWD + 1
        assert counters.accepted == rounds * CROWD
        assert counters.lost.total() == (rounds * CROWD if phase.is_lost else 0)
        assert counters.failed == counters.unavailable == 0


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_nothing_is_left_of_those_who_end_in(phase: Phase) -> None:
    await ends_in(phase)


async def test_nothing_is_left_of_those_who_end_in_a_tls_handshake() -> None:
    hello = client_hello()
    phase = Phase("tls handshake", [b"", hello[:100], hello], shaking_hands)
    await ends_in(phase, tls=tls_section())


async def test_nothing_is_left_of_those_who_end_before_their_proxy_has_said_whose_they_are() -> None:
    phase = Phase("introduction", [b"", b"PROXY TCP4 192.0.2.1"], all_are(is_arriving))
    await ends_in(phase, server={"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]})


async def test_nothing_is_left_of_those_who_end_in_a_drain() -> None:
    config = tricast.Config.model_validate(
        PATIENCE | {"server": {"port": 0}, "drain": {"period": "10ms", "grace": "1h"}}
    )
    sent = [STREAM, WEBSOCKET, POLL, STREAM, WEBSOCKET, HALF_A_HEAD, HALF_A_BODY, TOO_LONG_MESSAGE]
    subscribers = sum(data in (STREAM, WEBSOCKET, POLL) for data in sent) * CROWD // len(sent)
    records = LogCapture()

    async def come_and_go() -> None:
        async with trio.open_nursery() as nursery:
            server: tricast.Server = await nursery.start(
                partial(tricast.serve, config, logger=capturing_logger(records))
            )
            with Crowd(("127.0.0.1", server.port), sent, receive_buffer=4096) as crowd:
                await until(lambda: server.connections == CROWD and server.hub.statistics().subscribers == subscribers)
                await server.hub.publish("news", "x" * 60_000)  # so that streams have something to send before they end
                server.drain()
                crowd.reset(slice(0, CROWD // 3))
                # The others are told, and have yet to take it.
                await until(lambda: server.hub.statistics().subscribers == 0)
        # It has ended by itself: nobody was waited for.
        assert (server.connections, server.hub.statistics().subscribers, len(server._runtime.wheel)) == (0, 0, 0)

    with trio.fail_after(HANG_SECONDS):
        await come_and_go()
        before = objects() + what_is_open()
        with as_in_a_program():
            for _ in range(ENDS // CROWD):
                await come_and_go()
        assert not objects() + what_is_open() - before
    assert failures(records) == []
