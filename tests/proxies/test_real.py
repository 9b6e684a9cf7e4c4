"""The launcher of real proxies: that they run, say what they say, and leave nothing behind."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from clients import Wire, ask, head
from clocks import HANG_SECONDS
from proxies.real import DEFAULTS, KINDS, NotStarted, fill, processes_of_group, real_proxy, reserved_port
from serving import serving

#: What each one says to a configuration that is none.
COMPLAINTS = {
    "nginx": "unexpected end of file",
    "haproxy": "unknown keyword",
    "apache": "Invalid command",
    "caddy": "adapting config",
    "varnish": "nonsense",
}


async def test_every_proxy_forwards_and_is_gone_afterwards() -> None:
    async def check(kind: str) -> None:
        async with real_proxy(kind, DEFAULTS[kind], origin_port=server.port) as proxy:
            answer = await ask(proxy.url, "GET", "/healthz")
            assert answer.status == 200, kind
            assert proxy.process.pid in processes_of_group(proxy.process.pid)
        assert not processes_of_group(proxy.process.pid)
        assert not proxy.folder.exists()

    async with serving() as server, trio.open_nursery() as nursery:
        for kind in KINDS:
            nursery.start_soon(check, kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_proxy_complains_of_is_told(kind: str) -> None:
    with pytest.raises(NotStarted, match=COMPLAINTS[kind]):
        async with real_proxy(kind, DEFAULTS[kind] + "nonsense = 1\n", origin_port=1):
            pass


async def test_the_timer_is_the_proxys() -> None:
    """An origin that never answers: each gives up, with the status that it is known for."""

    async def check(kind: str, status: int) -> None:
        with silent_origin() as port:
            async with real_proxy(kind, DEFAULTS[kind], origin_port=port, timeout=4) as proxy:
                with await Wire.open(proxy.url) as wire:
                    await wire.send(head("GET", "/"))
                    line = await wire.until(b"\r\n")
                    assert line.startswith(b"HTTP/1.1 %d " % status), (kind, line)

    statuses = {"nginx": 504, "haproxy": 504, "apache": 502, "caddy": 504, "varnish": 503}
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            for kind in KINDS:
                nursery.start_soon(check, kind, statuses[kind])


@contextmanager
def silent_origin() -> Iterator[int]:
    """A port that accepts, as far as the kernel is concerned, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_every_place_has_a_value_and_every_value_a_place() -> None:
    assert fill("listen @port@; location @fallback", port=80) == "listen 80; location @fallback"
    with pytest.raises(ValueError, match="no value for origin_port, port"):
        fill("@port@ @origin_port@")
    with pytest.raises(ValueError, match="no place for prot"):
        fill("@port@", port=1, prot=2)


async def test_a_log_is_printed_when_a_test_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True):
        async with real_proxy("nginx", DEFAULTS["nginx"], origin_port=1) as proxy:
            assert (await ask(proxy.url, "GET", "/somewhere")).status == 502
            raise ZeroDivisionError
    assert "connect() failed (111: Connection refused)" in capsys.readouterr().out


def test_a_reserved_port_can_be_served_and_is_given_to_nobody_else() -> None:
    with reserved_port() as port:
        with socket.create_server(("127.0.0.1", port)):  # sets SO_REUSEADDR
            pass
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
