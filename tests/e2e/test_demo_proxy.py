"""``scripts/demo-proxy``, watched in a real browser: what the page says of each connection, act by act."""

import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from browser import Browser, Page
from serving import ServerProcess, serving_as

SCRIPT = str(Path(__file__).parents[2] / "scripts" / "demo-proxy")
#: Seconds of silence that the proxy bears.
IDLE = 2
KEEPALIVES = {"poll": "poll.timeout", "sse": "sse.keepalive", "ws": "websocket.ping_interval"}


class Demo(ServerProcess):
    """The script, and somebody at its keyboard."""

    async def press_enter(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"\n")

    async def close_stdin(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.aclose()


@asynccontextmanager
async def demo(*options: str) -> AsyncIterator[Demo]:
    async with serving_as(SCRIPT, *options, kind=Demo, stdin=subprocess.PIPE) as running:
        yield running


async def finding(page: Page, pane: str, kind: str) -> str:
    """What the page says of a connection, once it is of this kind."""
    text: str = await page.wait_for(
        f"document.querySelector('#pane-{pane}[data-finding={kind}] .finding')?.textContent"
    )
    return text


def seconds_in(text: str) -> float:
    match = re.search(r"([\d.]+) s without an event", text)
    assert match is not None, text
    return float(match[1])


def verdict(text: str) -> str:
    return f"document.getElementById('verdict').textContent === '{text}'"


async def test_the_page_tells_what_each_act_shows(browser: Browser) -> None:
    async with demo("--idle", str(IDLE)) as running:
        page = await browser.open_page(f"{running.url}/?topic=demo")

        await running.wait_said("tricast proxy --profile nginx-default")
        refused = await finding(page, "ws", "refused")
        assert "426" in refused
        assert "a proxy in front does not forward Upgrade" in refused
        held = await finding(page, "sse", "held")
        assert re.fullmatch(
            r"No answer for \d+ s, although \d+ events came over the other connections: "
            r"a proxy in front holds them back\.",
            held,
        )
        await page.wait_for(verdict("Not connected: WebSocket; held back: Server-Sent Events"))
        assert await page.evaluate("document.querySelectorAll('#pane-poll[data-state=open] .event').length > 2")
        assert await page.evaluate("document.getElementById('pane-poll').dataset.finding") == ""

        await running.press_enter()
        await running.wait_said("Act 2 of 3")
        silences = {}
        for pane, keepalive in KEEPALIVES.items():
            cut = await finding(page, pane, "cut")
            assert f"Probably a proxy in front has no more patience than that: {keepalive} has to be shorter." in cut
            silences[pane] = seconds_in(cut)
        # Not earlier than the timer says, but for how a number of one decimal is rounded.
        assert min(silences.values()) >= IDLE - 0.1
        assert "HTTP 504" in await page.evaluate("document.querySelector('#pane-poll .lost').textContent")

        await running.press_enter()
        await running.wait_said("Act 3 of 3")
        for pane in KEEPALIVES:
            assert seconds_in(await finding(page, pane, "outlived")) > IDLE

        # Through all of it nothing was lost.
        await page.wait_for(
            "document.getElementById('verdict').textContent.endsWith(': nothing missed, nothing twice')"
        )
        assert not await page.evaluate("document.querySelectorAll('.pane .gap').length")

        await running.press_enter()
        await running.process.wait()
        assert running.process.returncode == 0


async def test_it_goes_on_by_itself_to_the_end() -> None:
    began = trio.current_time()
    async with demo("--auto", "0.1", "--idle", str(IDLE)) as running:
        await running.process.wait()
        assert running.process.returncode == 0
        # However little is asked for, there is time for two silences to be cut, or to be outlived.
        assert trio.current_time() - began > 2 * 3 * IDLE
        await running.wait_said("The end")
        for number in (1, 2, 3):
            assert running.said(f"Act {number} of 3")
        assert not running.said("Enter")


async def test_interrupted_it_leaves_nothing() -> None:
    async with demo() as running:
        await running.wait_said("Enter for the next act")
        port = int(running.url.rpartition(":")[2])
        running.process.send_signal(signal.SIGINT)
        await running.process.wait()
        assert running.process.returncode == 130
        with trio.socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            await sock.connect(("127.0.0.1", port))


async def test_nobody_to_press_enter() -> None:
    async with demo() as running:
        await running.wait_said("Enter for the next act")
        await running.close_stdin()
        await running.wait_said("use --auto SECONDS")
        await running.process.wait()
        assert running.process.returncode == 1


async def test_a_port_that_is_taken_and_options_that_make_no_sense() -> None:
    async def refused(*options: str) -> tuple[int, str]:
        done = await trio.run_process([SCRIPT, *options], capture_stderr=True, capture_stdout=True, check=False)
        return done.returncode, done.stderr.decode()

    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        status, said = await refused("--port", str(port))
    assert (status, said) == (1, f"demo-proxy: cannot listen on 127.0.0.1:{port}: address already in use\n")
    status, said = await refused("--idle", "1")
    assert status == 2
    assert "expected at least 2 seconds, found 1" in said
