"""Keys that are fetched from a URL: when they are, and that they never are too often, too long or too large.

How a JWK set is read is in ``keys.py``. What cannot be fetched leaves the keys as they were.
"""

import random
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.error import HTTPError
from urllib.request import (
    AbstractHTTPHandler,
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    OpenerDirector,
    ProxyHandler,
    Request,
    getproxies,
)

import trio

from tricast.access.keys import Key, UnusableKey, keys_of_set
from tricast.config import AuthSection
from tricast.logs import Logger

#: Fetches what is at the URL: at most so many bytes, in about so many seconds. Cancelling it leaves nothing behind that
#: could disturb the next.
#:
#: Raises:
#:     OSError: it cannot be had.
#:     UnusableKey: it is longer.
Fetch = Callable[[str, int, float], Awaitable[bytes]]

#: Threads that fetch, and those that were given up and still look for a name. A resolver that is told nothing else
#: gives up after half a minute (resolv.conf(5)), so that with ``auth.jwks_cooldown`` there are hardly ever two.
MAX_THREADS = 4
_READ_BYTES = 16 * 2**10


class RemoteKeys:
    """The keys of a JWKS URL.

    One task fetches them, for everybody, and not more often than once in ``auth.jwks_cooldown``, so that tokens with
    made-up key ids cannot have it fetch without end.

    Args:
        auth: the configuration.
        logger: told of what was fetched, and of what could not be.
        fetch: how to fetch.
        changed: called when there are other keys than before.

    Attributes:
        keys: what was fetched last.
        failures: how often fetching failed.
        fetched_at: when it last succeeded, on Trio's clock; None before.
        is_stale: whether there may be other keys than these, because the last fetch failed, or none was made yet.
    """

    def __init__(
        self,
        auth: AuthSection,
        *,
        logger: Logger,
        fetch: Fetch,
        changed: Callable[[], None],
    ) -> None:
        self._auth = auth
        self._logger = logger
        self._fetch = fetch
        self._changed = changed
        self._url = auth.jwks_url.partition("?")[0]  # to be told: who knows what the query is for
        self._random = random.Random()  # noqa: S311 - jitter
        self._asked = trio.Event()
        self._fetched = trio.Event()  # set unless they are being fetched
        self._next_at = 0.0
        self._is_open = False
        self._content = b""
        self.keys: tuple[Key, ...] = ()
        self.failures = 0
        self.fetched_at: float | None = None
        self.is_stale = True

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """The scope in which the keys are fetched, at once and then again and again."""
        self._is_open = True
        self._fetched = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fetch_forever)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._is_open = False
            self._fetched.set()

    async def refresh(self) -> None:
        """Returns once the keys were fetched anew, or fetching them failed; at once when it is too early for that."""
        if not self._is_open or (not self._is_fetching and trio.current_time() < self._next_at):
            await trio.lowlevel.checkpoint()
            return
        if not self._is_fetching:
            self._fetched = trio.Event()
            self._asked.set()
        await self._fetched.wait()

    async def _fetch_forever(self) -> None:
        while True:
            await self._fetch_once()
            with trio.move_on_after(self._pause()):
                await self._asked.wait()
            if not self._is_fetching:
                self._fetched = trio.Event()

    @property
    def _is_fetching(self) -> bool:
        return not self._fetched.is_set()

    def _pause(self) -> float:
        """Seconds until they are fetched again when nobody asks: what failed is tried again soon."""
        longest = self._auth.jwks_cooldown if self.is_stale else self._auth.jwks_refresh
        return max(self._auth.jwks_cooldown, longest) * self._random.uniform(1.0, 1.2)

    async def _fetch_once(self) -> None:
        problem = "it took too long"
        with trio.move_on_after(self._auth.jwks_timeout):
            problem = await self._try()
        self._next_at = trio.current_time() + self._auth.jwks_cooldown
        self._asked = trio.Event()
        self.is_stale = bool(problem)
        if problem:
            self.failures += 1
            self._logger.warning("keys could not be fetched", url=self._url, problem=problem, keys_kept=len(self.keys))
        self._fetched.set()

    async def _try(self) -> str:
        """Fetches; returns what went wrong, or ""."""
        auth = self._auth
        try:
            content = await self._fetch(auth.jwks_url, auth.jwks_size, auth.jwks_timeout)
            keys = keys_of_set(content)
        except (OSError, HTTPException, UnusableKey, ValueError) as error:
            return _in_words(error)
        self.fetched_at = trio.current_time()
        if content != self._content:
            self._content = content
            self.keys = keys
            self._changed()
            self._logger.info("keys fetched", url=self._url, keys=len(keys))
        return ""


def fetching_in_threads() -> Fetch:
    """Fetches in a thread.

    When its time is over, it is cut off from its peer, so that it ends, whatever comes and however slowly. Only while a
    name is looked up, which nothing can cut short, it may live on; the next fetch has another thread then. There are
    ``MAX_THREADS`` at most: with as many look-ups stuck, no more are begun until one of them ends.
    """
    limiter = trio.CapacityLimiter(MAX_THREADS)

    async def fetch(url: str, max_bytes: int, seconds: float) -> bytes:
        line = _Line()
        fetching = partial(_fetch, url, max_bytes, seconds, line)
        try:
            with trio.fail_after(seconds):
                return await trio.to_thread.run_sync(fetching, abandon_on_cancel=True, limiter=limiter)
        except trio.TooSlowError:
            raise TimeoutError("it took too long") from None
        finally:
            line.cut()

    return fetch


class _Line:
    """The connections of a fetch, seen from another thread than its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cut = False
        self._sockets: list[socket.socket] = []

    def hold(self, sock: socket.socket) -> None:
        """Takes a connection that has just been made.

        Raises:
            TimeoutError: it was cut already.
        """
        with self._lock:
            if self._is_cut:
                raise TimeoutError("it took too long")
            self._sockets.append(sock.dup())  # TLS takes the descriptor over, and what is connected is the same

    def cut(self) -> None:
        """Ends all of them: who reads or writes there, in whatever thread, gets to the end."""
        with self._lock:
            self._is_cut = True
            for sock in self._sockets:
                with sock, suppress(OSError):  # it may have ended
                    sock.shutdown(socket.SHUT_RDWR)
            self._sockets.clear()


class _Connection(HTTPConnection):
    line: _Line

    def connect(self) -> None:
        super().connect()
        self.line.hold(self.sock)


class _TlsConnection(HTTPSConnection, _Connection):
    """Held before it shakes hands: HTTPSConnection has what stands behind it here connect, and goes on from there."""


class _Handler(AbstractHTTPHandler):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    http_request = https_request = AbstractHTTPHandler.do_request_

    def http_open(self, request: Request) -> HTTPResponse:
        return self.do_open(partial(self._connection, _Connection), request)

    def https_open(self, request: Request) -> HTTPResponse:
        return self.do_open(partial(self._connection, _TlsConnection), request)

    def _connection(self, kind: type[_Connection], host: str, **options: Any) -> _Connection:
        connection = kind(host, **options)
        connection.line = self._line
        return connection


def _fetch(url: str, max_bytes: int, seconds: float, line: _Line) -> bytes:
    """What is at the URL; see ``Fetch``.

    Redirects are not followed: where one leads to need not be as safe as what was configured.
    """
    opener = OpenerDirector()
    # Proxies of the environment are for the world outside, and http is for this machine.
    proxies = {scheme: proxy for scheme, proxy in getproxies().items() if scheme == "https"}
    for handler in (ProxyHandler(proxies), _Handler(line), HTTPErrorProcessor(), HTTPDefaultErrorHandler()):
        opener.add_handler(handler)
    request = Request(url, headers={"Accept": "application/jwk-set+json, application/json"})  # noqa: S310 - see config
    try:
        with opener.open(request, timeout=seconds) as response:
            return _read(response, max_bytes)
    except HTTPError as error:
        error.close()
        raise UnusableKey(f"the answer was {error.code}") from None


def _read(response: HTTPResponse, max_bytes: int) -> bytes:
    if response.status != HTTPStatus.OK:
        raise UnusableKey(f"the answer was {response.status}")
    body = bytearray()
    while chunk := response.read1(_READ_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise UnusableKey(f"the answer is longer than auth.jwks_size: {max_bytes} bytes")
    return bytes(body)


def _in_words(error: Exception) -> str:
    reason = getattr(error, "reason", error)  # of an URLError: what it was made of
    return str(reason)[:200] or type(reason).__name__
