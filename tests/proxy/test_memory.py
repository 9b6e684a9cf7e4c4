"""However much goes through the proxy, and however slowly it is taken, its memory stays as it is."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from clients import WEBSOCKET_HEADERS, Wire, head, read_answer, read_head
from proxy.origins import OK, Origin, Visit, origin
from serving import ServerProcess, serving_as

#: Bytes that go through. More of them change nothing but the time it takes: run it with another number to see.
VOLUME = int(os.environ.get("TRICAST_TEST_VOLUME", str(256 * 2**20)))
PIECE = b"x" * 2**20
#: How much the proxy may grow while all of it goes through. The buffers of sockets are the kernel's.
MOST_GROWTH = 24 * 2**20


async def serve_much(visit: Visit) -> None:
    """Sends much, or takes much, or both in a tunnel."""
    while True:
        asked = await visit.head()
        if asked.line.startswith("POST"):
            await take(visit.wire, int(asked.all("content-length")[0]))
            await visit.wire.send(OK)
        elif asked.all("upgrade"):
            await visit.wire.send(b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pour, visit.wire, VOLUME // 2)
                await take(visit.wire, VOLUME // 2)
        else:
            await visit.wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % VOLUME)
            await pour(visit.wire, VOLUME)


async def pour(wire: Wire, count: int) -> None:
    """Sends so many bytes."""
    for _ in range(count // len(PIECE)):
        await wire.send(PIECE)


async def take(wire: Wire, count: int) -> None:
    """Receives so many bytes: none at first, so that everything on the way fills up, and then all of them."""
    await trio.sleep(0.5)
    left = count - len(wire.buffer)
    while left > 0:
        wire.buffer.clear()
        await wire.more()
        left -= len(wire.buffer)
    wire.buffer.clear()
    assert left == 0


def resident(proxy: ServerProcess, what: str) -> int:
    """Bytes of memory that a process has now (``VmRSS``), or has ever had (``VmHWM``)."""
    lines = Path(f"/proc/{proxy.process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


@asynccontextmanager
async def proxy_process(server: Origin, *settings: str) -> AsyncIterator[ServerProcess]:
    """A proxy as a program."""
    command = [sys.executable, "-m", "tricast", "proxy", "--listen", "127.0.0.1:0"]
    command += ["--upstream", server.url.removeprefix("http://"), "--set", "admin.enabled=false"]
    for setting in settings:
        command += ["--set", setting]
    async with serving_as(*command, within=300) as proxy:
        yield proxy


async def download(url: str) -> None:
    with await Wire.open(url) as wire:
        await wire.send(head("GET", "/"))
        assert (await read_head(wire)).status == 200
        await take(wire, VOLUME)


async def upload(url: str) -> None:
    with await Wire.open(url) as wire:
        await wire.send(head("POST", "/", f"Content-Length: {VOLUME}"))
        await pour(wire, VOLUME)
        assert (await read_answer(wire)).status == 200


async def tunnel(url: str) -> None:
    with await Wire.open(url) as wire:
        await wire.send(head("GET", "/", *WEBSOCKET_HEADERS))
        assert (await read_head(wire)).status == 101
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, wire, VOLUME // 2)
            await take(wire, VOLUME // 2)


@pytest.mark.parametrize("settings", [(), ("response.buffering=nginx", "response.spool=1MiB")], ids=["plain", "nginx"])
async def test_memory_is_bounded_whatever_goes_through(settings: tuple[str, ...]) -> None:
    async with origin(serve_much) as server, proxy_process(server, *settings) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("POST", "/", "Content-Length: 0"))
            await read_answer(wire)
        before = resident(proxy, "VmRSS")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(download, proxy.url)
            if not settings:
                nursery.start_soon(upload, proxy.url)
                nursery.start_soon(tunnel, proxy.url)
        assert resident(proxy, "VmHWM") - before < MOST_GROWTH
