"""What the page finds out about the way between it and the server, and what it does not say of a server that went."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from browser import Browser, Page
from forwarding import forwarding
from serving import serving

import tricast
from engines.daemon import Port

PANES = ("poll", "sse", "ws")
ALL_OPEN = "document.querySelectorAll('.pane[data-state=open]').length === 3"


@asynccontextmanager
async def behind(profile: str, **sections: dict[str, Any]) -> AsyncIterator[tuple[tricast.Server, str]]:
    """A server behind a proxy with this profile and these sections on top, and the proxy's URL."""
    async with (
        serving() as server,
        forwarding(server.url, proxy={"profile": profile}, **sections) as proxy,
    ):
        yield server, proxy.url


async def finding(page: Page, pane: str, kind: str) -> str:
    text: str = await page.wait_for(
        f"document.querySelector('#pane-{pane}[data-finding={kind}] .finding')?.textContent"
    )
    return text


async def findings(page: Page) -> list[str]:
    found: list[str] = await page.evaluate("[...document.querySelectorAll('.finding')].map(e => e.textContent)")
    return found


async def test_a_proxy_that_stands_in_nobodys_way(browser: Browser) -> None:
    async with behind("plain") as (server, url):
        page = await browser.open_page(url)
        await page.wait_for(ALL_OPEN)
        await server.hub.publish("demo", 1)
        # Silence is told, and is nothing to worry about.
        for pane in PANES:
            text = f"document.querySelector('#pane-{pane} .state').textContent"
            await page.wait_for(f"Number({text}.match(/no event for (\\d+) s$/)?.[1]) >= 4")
        assert await findings(page) == ["", "", ""]
        assert page.errors == []


async def test_a_websocket_is_refused_because_host_is_not_forwarded(browser: Browser) -> None:
    async with behind("plain", headers={"host": "upstream"}) as (_, url):
        page = await browser.open_page(url)
        assert await finding(page, "ws", "refused") == (
            "Refused: the server does not take this page for its own. A proxy in front does not forward Host, or "
            f"server.cors_origins has to name {url}."
        )


async def test_a_websocket_is_refused_because_upgrades_are_denied(browser: Browser) -> None:
    async with behind("plain", tunnel={"upgrade": "deny"}) as (_, url):
        page = await browser.open_page(url)
        assert "a proxy in front does not forward Upgrade" in await finding(page, "ws", "refused")


async def test_events_are_held_back_behind_those_that_came(browser: Browser) -> None:
    """nginx passes a stream without a visible end on whenever a buffer is full."""
    holding = {"x_accel_buffering": "ignore", "buffer_size": "1KiB"}
    async with behind("nginx-default", response=holding) as (server, url):
        page = await browser.open_page(url)
        await page.wait_for("document.querySelector('#pane-poll[data-state=open]')")
        await server.hub.publish("demo", "x" * 2000)
        await page.wait_for("document.querySelector('#pane-sse[data-state=open]')")
        assert "No answer" not in await finding(page, "sse", "held")
        text = await finding(page, "sse", "held")
        assert text.startswith("Connected, but no event has come for ")
        # What fills the buffer up also lets go what was held.
        await server.hub.publish("demo", "x" * 2000)
        await page.wait_for("document.querySelectorAll('#pane-sse .event').length > 0")


@pytest.mark.parametrize("says_goodbye", [False, True], ids=["gone", "drained"])
async def test_a_server_that_goes_is_no_proxy_that_cuts(browser: Browser, says_goodbye: bool) -> None:
    # With a goodbye the stream comes back when it was told to, and then at the first attempt.
    drain = {"period": "0s", "retry_after": "2s"}
    port = Port()
    async with serving(server={"port": port.number}, sse={"retry": "100ms"}, drain=drain) as server:
        page = await browser.open_page(server.url)
        await page.wait_for(ALL_OPEN)
        for pane in PANES:
            await page.wait_for(f"document.querySelector('#pane-{pane} .state').textContent.includes('no event for')")
        if says_goodbye:
            server.drain()
            await server.wait_stopped()
    if not says_goodbye:
        for pane in PANES:
            requests = f"document.querySelector('#pane-{pane} [data-count=requests]').textContent"
            await page.wait_for(f"Number({requests}) >= 4")
    async with serving(server={"port": port.number}) as server:
        for pane in PANES:
            await page.wait_for(f"document.querySelector('#pane-{pane} .resumed')")
        await page.wait_for(ALL_OPEN)
        assert await findings(page) == ["", "", ""]
    port.release()
