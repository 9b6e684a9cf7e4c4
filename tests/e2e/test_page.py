"""The page at ``/`` in a real browser: three native clients side by side, and the page's own check on them."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from browser import Browser, Page

import tricast
from engines.daemon import Port

PANES = ("poll", "sse", "ws")
VERDICT = "document.getElementById('verdict').textContent"
ALL_OPEN = "document.querySelectorAll('.pane[data-state=open]').length === 3"


@contextlib.asynccontextmanager
async def open_server(**sections: dict[str, Any]) -> AsyncIterator[Any]:
    """A server of its own, gone at the end of the block."""
    config = tricast.Config(**{"server": {"port": 0}} | sections)  # type: ignore[arg-type]  # sections as dicts
    async with trio.open_nursery() as nursery:
        yield await nursery.start(tricast.serve, config)
        nursery.cancel_scope.cancel()


async def open_tricast(browser: Browser, server: Any, query: str = "", width: int = 1440) -> Page:
    page = await browser.open_page(f"{server.url}/{query}", width=width, height=900)
    await page.wait_for(ALL_OPEN)
    return page


async def publish(server: Any, first: int, last: int, *, topic: str = "demo") -> list[str]:
    return [str(await server.hub.publish(topic, {"n": number})) for number in range(first, last + 1)]


def ids_in(pane: str) -> str:
    """Newest on top on the page; here in the order of arrival."""
    return f"[...document.querySelectorAll('#pane-{pane} [data-id]')].map(row => row.dataset.id).reverse()"


async def wait_for_ids(page: Page, expected: list[str], *, panes: tuple[str, ...] = PANES) -> None:
    """Waits until as many rows are there, then compares: a copy or a wrong order is not waited away."""
    for pane in panes:
        await page.wait_for(f"{ids_in(pane)}.length >= {len(expected)}")
        assert await page.evaluate(ids_in(pane)) == expected


async def count(page: Page, pane: str, name: str) -> int:
    text = await page.evaluate(f"document.querySelector('#pane-{pane} [data-count={name}]').textContent")
    return int(text.replace(",", ""))


async def assert_nothing_wrong(page: Page, *, gaps: int = 0) -> None:
    for pane in PANES:
        assert await count(page, pane, "missed") == 0
        assert await count(page, pane, "twice") == 0
        assert await count(page, pane, "gaps") == gaps


async def stay_cut(page: Page) -> None:
    """From now on who is cut comes back when told to, and not after a while, which may be over on a busy machine."""
    await page.evaluate("{ const later = setTimeout; setTimeout = (call, ms) => later(call, ms === 4000 ? 1e9 : ms); }")


async def cut(page: Page, pane: str) -> None:
    await page.click(f"#pane-{pane} .cut")
    await page.wait_for(f"document.querySelector('#pane-{pane}[data-state=cut]')")


async def test_all_three_panes_show_the_same_events_in_the_same_order(browser: Browser) -> None:
    async with open_server() as server:
        page = await open_tricast(browser, server)
        ids = await publish(server, 1, 20)
        await server.hub.publish("other", {"n": "not on this page"})
        await wait_for_ids(page, ids)
        await page.wait_for(f"{VERDICT} === '20 events: nothing missed, nothing twice'")
        await assert_nothing_wrong(page)
        assert await page.evaluate("document.querySelectorAll('.tape .cell[data-cell=got]').length") == 60
        assert await count(page, "sse", "requests") == 1
        assert await count(page, "ws", "requests") == 1
        assert await count(page, "poll", "requests") >= 2
        assert page.errors == []


@pytest.mark.parametrize("pane", PANES)
async def test_a_cut_pane_misses_nothing_and_gets_nothing_twice(browser: Browser, pane: str) -> None:
    async with open_server() as server:
        page = await open_tricast(browser, server)
        ids = await publish(server, 1, 3)
        await wait_for_ids(page, ids)
        requests = await count(page, pane, "requests")
        await stay_cut(page)
        await cut(page, pane)
        ids += await publish(server, 4, 9)
        await wait_for_ids(page, ids, panes=tuple(other for other in PANES if other != pane))
        await page.click(f"#pane-{pane} .cut")
        await wait_for_ids(page, ids)
        ids += await publish(server, 10, 12)
        await wait_for_ids(page, ids)
        await assert_nothing_wrong(page)
        assert await count(page, pane, "requests") > requests
        assert await page.evaluate(f"document.querySelectorAll('#pane-{pane} .resumed').length") == 1
        assert page.errors == []


async def test_panes_cut_before_their_first_event_miss_nothing(browser: Browser) -> None:
    async with open_server() as server:
        page = await open_tricast(browser, server)
        for pane in PANES:
            await cut(page, pane)
        ids = await publish(server, 1, 3)
        # Left alone, they come back by themselves.
        await wait_for_ids(page, ids)
        await page.wait_for(ALL_OPEN)
        await assert_nothing_wrong(page)


async def test_publishing_through_the_box(browser: Browser) -> None:
    async with open_server() as server:
        page = await open_tricast(browser, server)
        await page.fill("#type", "price")
        await page.fill("#data", '{ "symbol": "ACME", "text": "<b>é\u2028</b>" }')
        await page.click("#publish .primary")
        answer = await page.wait_for("document.getElementById('published').textContent")
        ids = [answer.removeprefix("Published as ")]
        await wait_for_ids(page, ids)
        await page.fill("#data", "not JSON")
        await page.click("#publish .primary")
        for pane in PANES:
            await page.wait_for(f"{ids_in(pane)}.length === 2")
            texts = f"[...document.querySelectorAll('#pane-{pane} .payload')].map(e => e.textContent)"
            assert await page.evaluate(texts) == [
                'price "not JSON"',
                'price {"symbol":"ACME","text":"<b>é\u2028</b>"}',
            ]
            # Published here, so measured with this browser's clock alone.
            latency = f"document.querySelector('#pane-{pane} .event .latency').textContent"
            await page.wait_for(f"!{latency}.startsWith('≈')")
        await page.wait_for(f"{VERDICT}.startsWith('2 events')")
        assert page.errors == []


async def test_a_refused_publish_is_told_in_the_servers_words(browser: Browser) -> None:
    async with open_server() as server:
        page = await open_tricast(browser, server)
        await page.fill("#type", "tricast.gap")
        await page.click("#publish .primary")
        answer = await page.wait_for("document.querySelector('#published.problem')?.textContent")
        assert "reserved" in answer


async def test_a_gap_is_shown_where_history_was_dropped(browser: Browser) -> None:
    async with open_server(events={"history": 3}) as server:
        page = await open_tricast(browser, server)
        ids = await publish(server, 1, 1)
        await wait_for_ids(page, ids)
        await stay_cut(page)
        await cut(page, "sse")
        for number in range(2, 9):
            # One by one: a pane that asks for several at once would meet the short history, too.
            ids += await publish(server, number, number)
            await wait_for_ids(page, ids, panes=("poll", "ws"))
        await page.click("#pane-sse .cut")
        await page.wait_for("document.querySelector('#pane-sse .gap')")
        await wait_for_ids(page, [ids[0], *ids[-3:]], panes=("sse",))
        assert await count(page, "sse", "gaps") == 1
        assert await count(page, "poll", "gaps") == 0
        assert await count(page, "ws", "gaps") == 0
        text = await page.evaluate("document.querySelector('#pane-sse .gap').textContent")
        assert "no longer kept" in text
        assert ids[0] in text
        await page.wait_for("document.querySelectorAll('.tape .cell[data-cell=gap]').length === 4")
        await page.wait_for(f"{VERDICT} === '8 events: nothing missed, nothing twice; 1 gap announced'")


async def test_a_restarted_server_is_found_again_and_the_gap_announced(browser: Browser) -> None:
    port = Port()
    async with open_server(server={"port": port.number}) as server:
        page = await open_tricast(browser, server)
        before = await publish(server, 1, 3)
        await wait_for_ids(page, before)
    await page.wait_for("document.querySelectorAll('.pane:not([data-state=open])').length > 0")
    async with open_server(server={"port": port.number}) as server:
        for pane in PANES:
            # EventSource resumes with the Last-Event-ID header, which wins over the position in its URL.
            gap = await page.wait_for(f"document.querySelector('#pane-{pane} .gap')?.textContent")
            assert "restarted" in gap
            assert f"asked after {before[-1]}" in gap
        after = await publish(server, 4, 6)
        await wait_for_ids(page, before + after)
        await assert_nothing_wrong(page, gaps=1)
    port.release()


async def test_the_topic_comes_from_the_address_and_from_the_field(browser: Browser) -> None:
    async with open_server() as server:
        page = await open_tricast(browser, server, "?topic=prices.eu")
        ids = await publish(server, 1, 2, topic="prices.eu")
        await wait_for_ids(page, ids)
        await page.fill("#topic", "prices.us")
        await page.click(".topic button")
        await page.wait_for(f"document.title === 'prices.us · Tricast' && {ALL_OPEN}")
        ids = await publish(server, 3, 4, topic="prices.us")
        await wait_for_ids(page, ids)
        assert page.errors == []


async def test_a_topic_the_server_refuses_is_explained(browser: Browser) -> None:
    async with open_server() as server:
        page = await browser.open_page(f"{server.url}/?topic=two+words")
        problem = await page.wait_for("document.querySelector('#topic-error:not([hidden])')?.textContent")
        assert "dot-separated" in problem


async def test_the_command_on_the_page_publishes(browser: Browser) -> None:
    async with open_server() as server:
        page = await open_tricast(browser, server, "?topic=it's.é")
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        await browser.call("Browser.grantPermissions", permissions=permissions, browserContextId=browser.profile)
        await page.click("#copy")
        await page.wait_for("document.getElementById('announcer').textContent === 'Command copied'")
        command = await page.evaluate("navigator.clipboard.readText()")
        await trio.run_process(["sh", "-c", command], capture_stdout=True, capture_stderr=True)
        for pane in PANES:
            await page.wait_for(f"{ids_in(pane)}.length === 1")
        assert page.errors == []


async def test_the_lists_do_not_grow_without_end(browser: Browser) -> None:
    async with open_server() as server:
        page = await open_tricast(browser, server)
        ids = await publish(server, 1, 450)
        for pane in PANES:
            received = f"document.querySelector('#pane-{pane} [data-count=received]').textContent"
            await page.wait_for(f"{received} === '450'")
            assert await page.evaluate(ids_in(pane)) == ids[-200:]
        await assert_nothing_wrong(page)
        assert await page.evaluate("document.querySelectorAll('.tape .column').length") <= 120


@pytest.mark.parametrize("width", [320, 390, 820, 1440])
async def test_nothing_sticks_out_and_the_box_is_within_reach(browser: Browser, width: int) -> None:
    async with open_server() as server:
        page = await open_tricast(browser, server, "?topic=a." + "long" * 30, width=width)
        await page.fill("#data", '"' + "unbroken" * 100 + '"')
        await page.click("#publish .primary")
        for pane in PANES:
            await page.wait_for(f"{ids_in(pane)}.length === 1")
        root = "document.documentElement"
        assert await page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
        await page.evaluate("scrollTo(0, 0)")
        bottom = "document.querySelector('#publish .primary').getBoundingClientRect().bottom"
        assert await page.evaluate(f"{bottom} <= innerHeight")
        assert page.errors == []
