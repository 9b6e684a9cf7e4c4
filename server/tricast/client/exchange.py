"""One HTTP/1.1 connection to the server, on h11.

The edge where errors of h11, and of streams that stand, enter.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import msgspec
import trio

from tricast import __version__
from tricast.client.badge import Badge
from tricast.client.endpoint import Dial, Endpoint, deadline
from tricast.client.failures import ClientError, Lost
from tricast.client.settings import ClientSettings

_RECEIVE_BYTES = 64 * 2**10
_MAX_HEAD_BYTES = 64 * 2**10
_MAX_PROBLEM_BYTES = 64 * 2**10
_PROBLEM_TIMEOUT = 5.0
#: What may succeed when it is simply asked again (RFC 9110 15.5.9, RFC 8470 5.2, RFC 6585 4).
_TRANSIENT_STATUSES = frozenset({204, 408, 425, 429})
#: What the server's own problem types begin with.
_OWN_TYPE = "urn:tricast:"

Headers = list[tuple[str, str]]
Answer = h11.Response | h11.InformationalResponse


class Exchange:
    """Requests and their responses, one after the other on one byte stream.

    Args:
        stream: connected to the server; whoever opened it closes it.
        endpoint: what the Host header says.
        badge: what every request shows; None for nothing.
    """

    def __init__(self, stream: trio.abc.Stream, endpoint: Endpoint, badge: Badge | None = None) -> None:
        self._badge = badge or Badge()
        self._stream = stream
        self._endpoint = endpoint
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)

    async def ask(self, method: str, target: str, headers: Headers, body: bytes = b"") -> None:
        """Sends one request. Cancelling it leaves a connection that cannot be used.

        Raises:
            Lost: the connection broke.
            ClientError: what is to be shown cannot be sent.
        """
        identity = await self._badge.headers()
        common = [("Host", self._endpoint.authority), ("User-Agent", f"tricast/{__version__}"), *identity]
        request = h11.Request(method=method, target=target, headers=[*common, *headers])
        events: list[h11.Event] = [request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        await self.send_bytes(b"".join(self._http.send(event) or b"" for event in events))

    async def head(self) -> Answer:
        """Waits for the head of the answer: a final one, or ``101``.

        Raises:
            Lost: the connection ended before, or this is not HTTP.
        """
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Response):
                return event
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                return event

    async def chunk(self) -> bytes:
        """Waits for the next bytes of the body and returns them, none at its end.

        Raises:
            Lost: the connection ended within the body.
        """
        while True:
            event = await self._next_event()
            if isinstance(event, h11.EndOfMessage):
                return b""
            if isinstance(event, h11.Data) and event.data:
                return bytes(event.data)

    async def body(self, max_bytes: int) -> bytes:
        """Waits for the rest of the body.

        Raises:
            Lost: the connection ended within the body.
            ClientError: it is larger than ``max_bytes``.
        """
        body = bytearray()
        while chunk := await self.chunk():
            body += chunk
            if len(body) > max_bytes:
                raise ClientError(f"the server sent an answer of more than {max_bytes} bytes")
        return bytes(body)

    def is_reusable(self) -> bool:
        """Whether another request may follow on this connection; readies it for that (RFC 9112 9.3)."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        if self._http.trailing_data[0]:  # an answer to nothing, so where the next one begins is unknown (RFC 9112 9.2)
            return False
        self._http.start_next_cycle()
        return True

    def trailing_bytes(self) -> bytes:
        """What arrived behind a ``101`` already, and belongs to the protocol that was switched to."""
        return self._http.trailing_data[0]

    async def send_bytes(self, data: bytes) -> None:
        """Sends bytes as they are.

        Raises:
            Lost: the connection broke.
        """
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, OSError) as error:
            raise Lost("the connection broke") from error

    async def receive_bytes(self) -> bytes:
        """Waits for bytes as they come, none at the end.

        Raises:
            Lost: the connection broke.
        """
        try:
            return bytes(await self._stream.receive_some(_RECEIVE_BYTES))
        except (trio.BrokenResourceError, OSError) as error:
            raise Lost("the connection broke") from error

    async def failure(self, answer: Answer) -> Lost | ClientError:
        """What it means that the answer is not the one hoped for; reads what the server says about it.

        Args:
            answer: the head of the answer.
        """
        headers = dict(answer.headers)
        why, code = await self._explanation(answer, headers)
        status = answer.status_code
        if status in _TRANSIENT_STATUSES or status >= 500:
            return Lost(why, retry_after=retry_after(headers.get(b"retry-after", b"")))
        return ClientError(why, status=status, code=code)

    async def _explanation(self, answer: Answer, headers: dict[bytes, bytes]) -> tuple[str, str]:
        """What the answer says, and the server's own code for it."""
        reason = bytes(answer.reason).decode("latin-1")
        said = f"the server answered {answer.status_code} {reason}".rstrip()
        if 300 <= answer.status_code < 400 and b"location" in headers:
            return f"{said}: use {headers[b'location'].decode('latin-1')}", ""
        if not headers.get(b"content-type", b"").startswith(b"application/problem+json"):
            return said, ""
        # The body only says more; without it the status stands.
        try:
            with deadline(_PROBLEM_TIMEOUT, Lost("slow")):
                problem = msgspec.json.decode(await self.body(_MAX_PROBLEM_BYTES), type=_Problem)
        except (Lost, ClientError, msgspec.DecodeError):
            return said, ""
        why = f"{said}: {problem.detail or problem.title}".removesuffix(": ")
        return why, problem.type.removeprefix(_OWN_TYPE) if problem.type.startswith(_OWN_TYPE) else ""

    async def _next_event(self) -> h11.Event:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self.receive_bytes())
        except h11.RemoteProtocolError as error:
            if self._http.trailing_data[1]:
                raise Lost("the server closed the connection") from error
            raise Lost(f"the server does not speak HTTP: {error}") from error
        if not isinstance(event, h11.Event) or isinstance(event, h11.ConnectionClosed):
            raise Lost("the server closed the connection")
        return event


@asynccontextmanager
async def open_exchange(
    endpoint: Endpoint, settings: ClientSettings, dial: Dial, badge: Badge | None = None
) -> AsyncIterator[Exchange]:
    """A new connection to the server, closed at the end of the block.

    Raises:
        Lost: it cannot be made now.
        ClientError: it can never be made.
    """
    stream = await dial(endpoint, settings)
    try:
        yield Exchange(stream, endpoint, badge)
    finally:
        await trio.aclose_forcefully(stream)


class _Problem(msgspec.Struct):
    """What is read of an ``application/problem+json`` body (RFC 9457)."""

    type: str = ""
    title: str = ""
    detail: str = ""


def retry_after(value: bytes) -> float | None:
    """The seconds that a Retry-After header asks for; a date is left to the backoff (RFC 9110 10.2.3)."""
    return float(value) if value.isdigit() and len(value) < 10 else None
