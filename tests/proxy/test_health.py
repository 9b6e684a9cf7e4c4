"""Who asks servers whether they are well: on real sockets what is asked and understood, on a fake clock when."""

import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from clocks import HANG_SECONDS
from serving import capturing_logger, until
from structlog.testing import LogCapture

from tricast_proxy import health
from tricast_proxy.config import HealthSection, ServerEntry
from tricast_proxy.health import ask, check_forever, log_changes
from tricast_proxy.servers import Health, Server

Behaviour = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def listening(behaviour: Behaviour) -> AsyncIterator[str]:
    """Something on a port that treats each connection like this; yields its address."""
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, behaviour, [listener])
            yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


def saying(*pieces: bytes) -> Behaviour:
    """Answers a request with this, in so many pieces."""

    async def behave(stream: trio.SocketStream) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            asked += await stream.receive_some()
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()

    return behave


async def silent(_: trio.SocketStream) -> None:
    """Says nothing for as long as anybody waits."""
    await trio.sleep_forever()


def server_at(address: str, **more: Any) -> Server:
    return Server(ServerEntry(address=address, **more))


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("pieces", "expect", "is_well", "detail"),
    [
        ([OK], "200-399", True, "answered 200"),
        ([OK], "200", True, "answered 200"),
        ([OK], "201-299", False, "answered 200"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], "200-204", True, "answered 204"),
        ([b"HTTP/1.0 503 No\r\n\r\n"], "200-399", False, "answered 503"),
        ([b"HTTP/1.1 404 No\r\n\r\n"], "200-399", False, "answered 404"),
        ([OK[:10], OK[10:]], "200-399", True, "answered 200"),
        ([b"HTTP/1.1 103 Early Hints\r\n\r\n", OK], "200-399", True, "answered 200"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"], "200-399", True, "answered 200"),
        ([b"+PONG\r\n\r\n"], "200-399", False, "not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nX: "], "200-399", False, "not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000], "200-399", False, "not HTTP"),
        ([], "200-399", False, "not HTTP"),
    ],
)
async def test_what_is_said_and_what_it_means(pieces: list[bytes], expect: str, is_well: bool, detail: str) -> None:
    async with listening(saying(*pieces)) as address:
        found, told = await ask(server_at(address), HealthSection(path="/", expect=expect, timeout=10.0))
    assert found is is_well
    assert told.startswith(detail)


async def test_what_is_asked() -> None:
    heard = b""

    async def hear(stream: trio.SocketStream) -> None:
        nonlocal heard
        heard += await stream.receive_some()
        await stream.send_all(OK)

    async with listening(hear) as address:
        await ask(server_at(address), HealthSection(path="/healthz?deep=1", timeout=10.0))
    line, *fields = heard.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert line == "GET /healthz?deep=1 HTTP/1.1"
    assert fields == [f"Host: {address}", "User-Agent: tricast-health-check", "Connection: close"]


async def test_nobody_is_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        is_well, told = await ask(
            server_at(f"127.0.0.1:{taken.getsockname()[1]}"), HealthSection(path="/", timeout=10.0)
        )
    assert not is_well
    assert told


async def test_it_breaks_off() -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with listening(reset) as address:
        assert await ask(server_at(address), HealthSection(path="/", timeout=10.0)) == (False, "it broke off")


async def test_it_says_nothing_for_too_long() -> None:
    async with listening(silent) as address:
        told = await ask(server_at(address), HealthSection(path="/", timeout=0.05))
    assert told == (False, "no answer within 0.05 s")


async def test_answers_that_never_end_are_no_answer() -> None:
    async def hint(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)

    async with listening(hint) as address:
        told = await ask(server_at(address), HealthSection(path="/", timeout=0.05))
    assert told == (False, "no answer within 0.05 s")


async def test_a_server_goes_and_comes_and_each_is_told_once() -> None:
    status, asked = b"200", 0

    async def behave(stream: trio.SocketStream) -> None:
        nonlocal asked
        asked += 1
        await saying(b"HTTP/1.1 %b X\r\nContent-Length: 0\r\n\r\n" % status)(stream)

    records = LogCapture()
    rules = HealthSection(path="/healthz", interval=0.01, timeout=10.0, rise=2, fall=2)
    async with listening(behave) as address, trio.open_nursery() as nursery:
        entry = ServerEntry(address=address, name="a")
        server = Server(entry, rules, changed=log_changes(capturing_logger(records)))

        def is_now(wanted: Health) -> Callable[[], bool]:
            return lambda: server.health(trio.current_time()) is wanted

        nursery.start_soon(check_forever, [server], rules, random.Random(1))
        await until(lambda: asked >= 3)
        assert is_now(Health.UP)()
        status = b"500"
        await until(is_now(Health.DOWN))
        before = asked
        await until(lambda: asked >= before + 3)
        status = b"200"
        await until(is_now(Health.UP))
        nursery.cancel_scope.cancel()
    told = [(entry["log_level"], entry["event"], entry["server"], entry["reason"]) for entry in records.entries]
    assert told == [
        ("warning", "server is down", "a", "check: answered 500"),
        ("info", "server is up", "a", "check: answered 200"),
    ]


async def test_without_a_path_nobody_is_asked() -> None:
    with trio.fail_after(HANG_SECONDS):
        await check_forever([server_at("127.0.0.1:1")], HealthSection(), random.Random(1))


# When


class Asked:
    """Answers in place of servers, after some time.

    Attributes:
        at: when somebody was asked.
        most: how many were being asked at once.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._now = 0
        self.at: list[float] = []
        self.most = 0

    async def __call__(self, _: Server, __: HealthSection) -> tuple[bool, str]:
        self.at.append(trio.current_time())
        self._now += 1
        self.most = max(self.most, self._now)
        await trio.sleep(self._seconds)
        self._now -= 1
        return True, "answered 200"

    @property
    def gaps(self) -> list[float]:
        """Seconds between one and the next."""
        return [later - earlier for earlier, later in pairwise(self.at)]


async def test_rounds_are_an_interval_apart_more_or_less(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked = Asked(0.5)
    monkeypatch.setattr(health, "ask", asked)
    with trio.move_on_after(1000):
        await check_forever([server_at("127.0.0.1:1")], HealthSection(path="/", interval=2.0), random.Random(1))
    assert 1.8 <= min(asked.gaps) < 1.9
    assert 2.1 < max(asked.gaps) <= 2.2
    assert 480 < len(asked.at) < 520


async def test_a_round_that_takes_longer_than_the_interval_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked = Asked(5.0)
    monkeypatch.setattr(health, "ask", asked)
    with trio.move_on_after(52):
        await check_forever([server_at("127.0.0.1:1")], HealthSection(path="/", interval=2.0), random.Random(1))
    assert asked.gaps == pytest.approx([5.0] * 10)


async def test_so_many_are_asked_at_once_and_no_more(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked = Asked(1.0)
    monkeypatch.setattr(health, "ask", asked)
    servers = [server_at("127.0.0.1:1", name=str(number)) for number in range(40)]
    with trio.move_on_after(5):
        await check_forever(servers, HealthSection(path="/", interval=60.0), random.Random(1))
    assert asked.most == 16
    assert [at - asked.at[0] for at in asked.at] == pytest.approx([0.0] * 16 + [1.0] * 16 + [2.0] * 8)
