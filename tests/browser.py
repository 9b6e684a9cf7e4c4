"""A driver of headless Chromium over the DevTools protocol, as small as the tests of the page need it.

One process serves all tests of a run. A `Browser` is one connection to it with a profile of its own, and a `Page` is
one tab. Nothing polls and nothing sleeps: waiting is done by the page itself, through a promise and a MutationObserver.
"""

import base64
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
import trio_websocket
from clocks import HANG_SECONDS

CHROMIUM = Path("/usr/bin/chromium")
#: A screenshot comes as one message of base64.
MAX_MESSAGE_BYTES = 64 * 2**20

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--remote-debugging-port=0",
)
_ANNOUNCEMENT = re.compile(rb"DevTools listening on (ws://\S+)\s")

_WAIT_FOR = """
new Promise((resolve, reject) => {
  const observer = new MutationObserver(check);
  function check() {
    try {
      const value = (%s);
      if (!value) return;
      resolve(value);
    } catch (error) {
      reject(error);
    }
    observer.disconnect();
    removeEventListener("load", check);
  }
  addEventListener("load", check);
  observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
  check();
})
"""

_MIDDLE_OF = """
(() => {
  const element = document.querySelector(%s);
  element.scrollIntoView({block: "center", inline: "center", behavior: "instant"});
  const box = element.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
})()
"""


class BrowserError(Exception):
    """Chromium refused a command, a script in the page threw, or the browser went away."""


@dataclass
class _Reply:
    """A command that was sent, until its answer is there."""

    arrived: trio.Event = field(default_factory=trio.Event)
    message: dict[str, Any] = field(default_factory=dict)


class Browser:
    """The connection that steers Chromium, and a fresh profile, which goes with it.

    Attributes:
        profile: its id, for commands that ask for one.
    """

    def __init__(self, socket: trio_websocket.WebSocketConnection) -> None:
        self.profile = ""
        self._socket = socket
        self._numbers = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        self._is_gone = False

    async def call(self, method: str, *, session: str | None = None, **params: object) -> dict[str, Any]:
        """Sends one command and returns the result.

        Raises:
            BrowserError: Chromium says no, or is gone.
        """
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        reply = self._replies[number] = _Reply()
        try:
            await self._socket.send_message(json.dumps(message))
            if not self._is_gone:
                await reply.arrived.wait()
        except trio_websocket.ConnectionClosed as error:
            raise BrowserError(f"{method}: Chromium is gone") from error
        finally:
            del self._replies[number]
        if "result" not in reply.message:
            raise BrowserError(f"{method}: {reply.message.get('error', 'Chromium is gone')}")
        result: dict[str, Any] = reply.message["result"]
        return result

    async def begin(self) -> None:
        """Makes the profile."""
        made = await self.call("Target.createBrowserContext", disposeOnDetach=True)
        self.profile = made["browserContextId"]

    async def open_page(self, url: str, *, width: int = 1440, height: int = 900) -> "Page":
        """Opens a tab of the given size and waits until the document is loaded."""
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=self.profile)
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        self._listeners[attached["sessionId"]] = page.hear
        for domain in ("Page", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        # The clipboard, among others, is for the tab in front of somebody only.
        await page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        await page.resize(width, height)
        await page.navigate(url)
        return page

    async def receive(self) -> None:
        """Hands answers and events to those who wait for them, until the connection ends."""
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            while True:
                self._dispatch(json.loads(await self._socket.get_message()))
        self._is_gone = True
        for reply in self._replies.values():
            reply.arrived.set()

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "id" not in message:
            listener = self._listeners.get(message.get("sessionId", ""))
            if listener is not None:
                listener(message["method"], message["params"])
        elif message["id"] in self._replies:
            reply = self._replies[message["id"]]
            reply.message = message
            reply.arrived.set()


class Page:
    """One tab.

    Attributes:
        errors: what the console called an error, and exceptions nobody caught, as text.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.errors: list[str] = []

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """Sends one command to this tab."""
        with trio.fail_after(HANG_SECONDS):
            return await self._browser.call(method, session=self._session, **params)

    def hear(self, method: str, params: dict[str, Any]) -> None:
        """Keeps what the console and the browser complain about."""
        if method == "Runtime.exceptionThrown":
            self.errors.append(_describe(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(arg.get("value", arg)) for arg in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} ({params['entry'].get('url', '')})")

    async def navigate(self, url: str) -> None:
        """Goes to the address and waits until the document and its parts are loaded."""
        result = await self.call("Page.navigate", url=url)
        if "errorText" in result:
            raise BrowserError(f"{url}: {result['errorText']}")
        await self.wait_for("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression; of what it resolves to when it is a promise.

        Raises:
            BrowserError: the script threw.
        """
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(_describe(result["exceptionDetails"]))
        return result["result"].get("value")

    async def wait_for(self, expression: str) -> Any:
        """Waits until the expression is truthy and returns its value; looks after every change of the document."""
        try:
            with trio.fail_after(HANG_SECONDS):
                return await self._wait_in_documents(_WAIT_FOR % expression)
        except trio.TooSlowError:
            text = await self.evaluate("document.body.innerText")
            raise AssertionError(f"never became true: {expression}\nthe page says:\n{text}") from None

    async def _wait_in_documents(self, waiting: str) -> Any:
        while True:
            try:
                return await self.evaluate(waiting)
            except BrowserError as error:
                # The document went away with the promise; the wait goes on in the one that follows.
                if "navigated" not in str(error) and "context was destroyed" not in str(error):
                    raise

    async def click(self, selector: str) -> None:
        """Presses the left button in the middle of the element, whatever lies on top there."""
        x, y = await self.evaluate(_MIDDLE_OF % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def fill(self, selector: str, text: str) -> None:
        """Replaces the text of a field, as if it were pasted."""
        field = f"document.querySelector({json.dumps(selector)})"
        await self.evaluate(f"(field => {{ field.focus(); field.select(); }})({field})")
        await self.call("Input.insertText", text=text)

    async def resize(self, width: int, height: int, scheme: Literal["light", "dark"] = "light") -> None:
        """Gives the tab a size in CSS pixels and a preferred colour scheme; narrow ones are phones."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", media="screen", features=features)

    async def screenshot(self, path: Path, width: int, height: int, scheme: Literal["light", "dark"]) -> None:
        """Writes a PNG of what the tab shows at this size."""
        await self.resize(width, height, scheme)
        picture = await self.call("Page.captureScreenshot", format="png")
        await trio.Path(path).write_bytes(base64.b64decode(picture["data"]))


@pytest.fixture(scope="session")
def chromium() -> Iterator[str]:
    """The DevTools address of a Chromium of this run. After it neither its processes nor its files are left."""
    with tempfile.TemporaryDirectory(prefix="tricast-chromium-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"HOME": folder, "XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder},
            # A group of its own, so that the renderers can be ended with the browser.
            start_new_session=True,
        )
        assert process.stderr is not None
        try:
            said = b""
            while (match := _ANNOUNCEMENT.search(said)) is None:
                line = process.stderr.readline()
                if not line:
                    raise BrowserError(f"Chromium did not start: {said.decode(errors='replace')}")
                said += line
            # It says more, and the pipe must not fill up.
            reader = threading.Thread(target=process.stderr.read)
            reader.start()
            yield match[1].decode()
            # Asked nicely it puts its files in order; what is there after that is ended.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(HANG_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join()
        process.stderr.close()


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """A browser with a profile of this test's own."""
    async with (
        trio_websocket.open_websocket_url(chromium, max_message_size=MAX_MESSAGE_BYTES) as socket,
        trio.open_nursery() as nursery,
    ):
        browser = Browser(socket)
        nursery.start_soon(browser.receive)
        with trio.fail_after(HANG_SECONDS):
            await browser.begin()
        yield browser
        nursery.cancel_scope.cancel()


def _describe(details: dict[str, Any]) -> str:
    thrown = details.get("exception", {})
    return str(thrown.get("description") or thrown.get("value") or details["text"])
