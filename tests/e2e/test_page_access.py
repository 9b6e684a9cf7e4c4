"""The page at ``/`` of a server that asks who somebody is."""

import time

from browser import Browser, Page
from credentials import AUTH, token
from serving import failures, serving
from structlog.testing import LogCapture

import tricast
from tricast.transports.stream import Stream

ASKED = "!document.getElementById('identity').hidden"
ALL_OPEN = "document.querySelectorAll('.pane[data-state=open]').length === 3"


async def give(page: Page, text: str) -> None:
    """Gives the page a token."""
    await page.wait_for(ASKED)
    await page.fill("#token", text)
    await page.click("#identity button")


async def received(page: Page, count: int) -> None:
    """Returns when each pane has got so many."""
    for pane in ("poll", "sse", "ws"):
        text = f"document.querySelector('#pane-{pane} [data-count=received]').textContent"
        await page.wait_for(f"{text} === '{count}'")


def end_tokens(server: tricast.Server) -> None:
    """Lets an hour go by for all who were let in; a poll finds out when it asks again."""
    runtime = server._runtime
    runtime._clock = late = lambda: time.time() + 3600
    for busy in list(runtime.open.values()):
        if isinstance(busy, Stream):
            busy.renew(busy.identity)
    runtime.access._clock = runtime.access.tokens._clock = late


def token_for_later(**claims: object) -> str:
    """A token that is good behind that hour as well."""
    return token(exp=time.time() + 7200, **claims)


async def test_the_page_asks_for_a_token_and_shows_it_over_all_three_transports(browser: Browser) -> None:
    logged = LogCapture()
    given = [token(aud="another"), token(exp=time.time() + 3000), token_for_later()]
    section = {"access": True, "level": "debug"}
    async with serving(auth=AUTH, records=logged, logging=section, poll={"timeout": "1s"}) as server:
        page = await browser.open_page(f"{server.url}/")
        await give(page, given[0])
        await page.wait_for(f"{ASKED} && document.getElementById('identity-why').className === 'problem'")
        await page.wait_for(f"{ASKED} && document.getElementById('identity-why').textContent.includes('audience')")
        await give(page, given[1])
        await page.wait_for(ALL_OPEN)
        await page.click("#publish .primary")
        await received(page, 1)
        end_tokens(server)
        # When it ends, so do the connections, and the page asks again; what came meanwhile is not missed.
        await page.wait_for(f"{ASKED} && document.querySelectorAll('.pane[data-state=refused]').length === 3")
        await server.hub.publish("demo", 2)
        await give(page, given[2])
        await page.wait_for(ALL_OPEN)
        await received(page, 2)
        assert "$TRICAST_TOKEN" in await page.evaluate("document.getElementById('curl').textContent")
        assert await page.evaluate("location.search + location.hash + document.cookie") == ""
        assert await page.evaluate("localStorage.length + sessionStorage.length") == 0
        # Chromium's own words for a 401, and for the 426 of the page's look at what became of its WebSocket; nothing
        # that went wrong in the page.
        expected = (" 401", " 426", "HTTP Authentication failed")
        assert [error for error in page.errors if not any(words in error for words in expected)] == []
    text = str(logged.entries)
    assert not failures(logged)
    assert all(part not in text for secret in given for part in secret.split(".")[1:])


async def test_the_page_works_with_a_cookie(browser: Browser) -> None:
    async with serving(auth=AUTH | {"cookie": "tricast_token"}) as server:
        page = await browser.open_page(f"{server.url}/style.css")
        await page.evaluate(f"document.cookie = 'tricast_token={token()}; SameSite=Strict'")
        await page.navigate(f"{server.url}/")
        await page.wait_for(ALL_OPEN)
        await page.click("#publish .primary")
        await received(page, 1)
        assert not await page.evaluate(ASKED)


async def test_who_may_do_something_else_is_asked_for_another_token(browser: Browser) -> None:
    async with serving(auth=AUTH, poll={"timeout": "1s"}) as server:
        page = await browser.open_page(f"{server.url}/")
        await give(page, token(subscribe=["other"]))
        await page.wait_for(f"{ASKED} && document.getElementById('identity-why').textContent.includes('not cover')")
        await give(page, token(publish=["other"], exp=time.time() + 3000))
        await page.wait_for(ALL_OPEN)
        await page.click("#publish .primary")
        await page.wait_for(f"{ASKED} && document.getElementById('identity-why').textContent.includes('not cover')")
        # This token does not do for the connections when their own ends, so all three are asked.
        await give(page, token_for_later(subscribe=["other"]))
        end_tokens(server)
        await page.wait_for(f"{ASKED} && document.querySelectorAll('.pane[data-state=refused]').length === 3")
        await give(page, token_for_later())
        await page.wait_for(ALL_OPEN)
        await page.click("#publish .primary")
        await received(page, 1)


async def test_who_may_read_and_not_publish_is_asked_then(browser: Browser) -> None:
    async with serving(auth=AUTH | {"anonymous_subscribe": ["demo"]}) as server:
        page = await browser.open_page(f"{server.url}/")
        await page.wait_for(ALL_OPEN)
        await page.click("#publish .primary")
        await give(page, token())
        await page.click("#publish .primary")
        await received(page, 1)
