"""Listening sockets: one for each address, or as many as there are workers to share them."""

import socket
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from serving import capturing_logger
from structlog.testing import LogCapture

from tricast.config import Config
from tricast.listening import announce, listen, listen_in_groups, set_options


def taken(listener: socket.socket) -> int:
    """How many connections wait at a listener; they are closed."""
    count = 0
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return count
        sock.close()
        count += 1


@pytest.mark.parametrize(("host", "families"), [("127.0.0.1", {socket.AF_INET}), ("", None)])
async def test_groups_share_every_address_and_the_port(host: str, families: set[socket.AddressFamily] | None) -> None:
    with ExitStack() as sockets:
        groups = await listen_in_groups(sockets, host, 0, Config(), groups=3)
        addresses = [[listener.getsockname() for listener in group] for group in groups]
        assert addresses[0] == addresses[1] == addresses[2]
        assert len({address[1] for address in addresses[0]}) == 1
        if families is not None:
            assert {listener.family for listener in groups[0]} == families
        clients = [socket.create_connection(("127.0.0.1", addresses[0][0][1])) for _ in range(100)]
        counts = [sum(map(taken, group)) for group in groups]
        assert sum(counts) == 100
        assert min(counts) > 0
        for client in clients:
            client.close()


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("second", [1, 2])
async def test_two_servers_never_share(first: int, second: int) -> None:
    with ExitStack() as sockets:
        groups = await listen_in_groups(sockets, "127.0.0.1", 0, Config(), groups=first)
        port = groups[0][0].getsockname()[1]
        with pytest.raises(OSError, match="Address already in use") as caught:
            await listen_in_groups(sockets, "127.0.0.1", port, Config(), groups=second)
        assert caught.value.filename == f"127.0.0.1:{port}"


async def test_an_address_that_cannot_be_had_is_named() -> None:
    with ExitStack() as sockets, pytest.raises(OSError, match=r"'\[ff00::1:2\]:8080'$"):
        await listen(sockets, "ff00::1:2", 8080, Config())


async def test_who_is_let_in_is_asked_now_and_then_whether_it_is_there() -> None:
    with ExitStack() as sockets:
        (listener,) = await listen(sockets, "127.0.0.1", 0, Config.model_validate({"limits": {"write_timeout": "7s"}}))
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


async def test_options_can_be_set_again() -> None:
    def timeout() -> int:
        return listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    with ExitStack() as sockets:
        (listener,) = await listen(sockets, "127.0.0.1", 0, Config())
        assert timeout() == 30_000
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        set_options(listener, Config.model_validate({"limits": {"write_timeout": "7s", "send_buffer": 8192}}))
        assert timeout() == 7000
        set_options(listener, Config.model_validate({"limits": {"write_timeout": "30d"}}))
        assert timeout() == 2**31 - 1
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 8192  # as Linux counts it
        with socket.create_connection(listener.getsockname()):
            assert taken(listener) == 1


@pytest.mark.parametrize(
    ("host", "auth", "is_warned"),
    [
        ("127.0.0.1", {}, False),
        ("", {}, True),
        ("", {"anonymous_subscribe": ["public.>"]}, False),
    ],
)
async def test_where_others_can_connect_somebody_should_be_asked_who_they_are(
    host: str, auth: dict[str, Any], is_warned: bool
) -> None:
    logged, config = LogCapture(), Config.model_validate({"auth": auth})
    with ExitStack() as sockets:
        listeners = await listen(sockets, host, 0, config)
        announce(listeners, listeners, config, capturing_logger(logged))
    assert [entry["log_level"] for entry in logged.entries].count("info") == 2 * len(listeners)
    warnings = [entry["event"] for entry in logged.entries if entry["log_level"] == "warning"]
    assert any("without [auth]" in warning for warning in warnings) is is_warned
    assert any("no [tls]" in warning for warning in warnings) is (host != "127.0.0.1")


@pytest.mark.parametrize("ahead", [16 * 2**10, 128 * 2**10])
async def test_the_kernel_takes_little_for_who_does_not_read(ahead: int) -> None:
    with ExitStack() as sockets:
        config = Config.model_validate({"limits": {"send_ahead": ahead}})
        (listener,) = await listen(sockets, "127.0.0.1", 0, config)
        client = sockets.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        peer = sockets.enter_context(listener.accept()[0])
        peer.setblocking(False)
        taken = 0
        with suppress(BlockingIOError):
            while taken < 2**24:
                taken += peer.send(b"x" * 8192)
        # What the client's own window holds comes on top of it.
        assert ahead <= taken < ahead + 2**17
