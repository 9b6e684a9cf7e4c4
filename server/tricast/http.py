"""The request loop of one connection: head, route, answer or stream, and again.

Owns h11's state and everything that HTTP/1.1 asks of a connection: deadlines, limits of the head, ``Expect``,
keep-alive and pipelining, ``Date``, and how a connection ends after a mistake. What a path means is in ``routes.py``.
"""

from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple, Protocol

import h11
import trio

from tricast.connection import Connection
from tricast.errors import ConnectionLost, LimitExceeded, RemoteProtocolError, Unavailable
from tricast.runtime import Runtime
from tricast.transports.stream import Stream
from tricast.wire.http1 import Headers, Request, Response, problem, problem_of

#: Pipelined bytes that are read while an answer is waited for; behind them, a client that leaves is seen late.
_MAX_READ_AHEAD = 64 * 2**10
#: How long a client may take for the answer that its request made the server fail.
_LAST_WORD_SECONDS = 2.0


class Handover(NamedTuple):
    """The end of HTTP on a connection.

    Attributes:
        head: the response head and whatever goes with it, to be sent first.
        stream: what the connection is from then on.
    """

    head: bytes
    stream: Stream


class Router(Protocol):
    """What turns a request into an answer."""

    async def __call__(self, exchange: "Exchange") -> Response | Handover:
        """Answers one request.

        Raises:
            RemoteProtocolError: the client's mistake, to be answered as a problem.
        """
        ...


class Exchange:
    """One request on its connection, as a route sees it.

    Args:
        request: its head.
        connection: where it came from.
        runtime: what all connections share.
        h11_connection: behind the head.

    Attributes:
        request: its head.
        connection: where it came from.
        runtime: what all connections share.
        label: the route for the metrics, set by the router; a path of the client's own making would be unbounded.
    """

    __slots__ = ("_h11", "connection", "label", "request", "runtime")

    def __init__(
        self, request: Request, connection: Connection, runtime: Runtime, h11_connection: h11.Connection
    ) -> None:
        self._h11 = h11_connection
        self.request = request
        self.connection = connection
        self.runtime = runtime
        self.label = "other"

    async def read_body(self, limit: str, max_bytes: int) -> bytes:
        """The whole body of the request.

        Args:
            limit: the configuration key of ``max_bytes``, for the message.
            max_bytes: how long it may be.

        Raises:
            LimitExceeded: it is longer, by its own word or in fact.
            RemoteProtocolError: it did not come in time, or its framing is wrong.
            ConnectionLost: the client closed in the middle of it.
        """
        length = self.request.header(b"content-length")
        if length is not None and int(length) > max_bytes:
            raise LimitExceeded(limit, max_bytes, int(length), closes=True)
        seconds = self.runtime.config.limits.body_timeout
        with trio.move_on_after(seconds):
            return await self._read_body(limit, max_bytes)
        raise RemoteProtocolError(f"the body did not come within {seconds:g} s", status=408, closes=True)

    async def _read_body(self, limit: str, max_bytes: int) -> bytes:
        if self._h11.they_are_waiting_for_100_continue:
            await self.connection.send(_bytes_of(self._h11, h11.InformationalResponse(status_code=100, headers=[])))
        body = bytearray()
        pieces = 0
        # A request without a body has come to its end already.
        while self._h11.their_state is h11.SEND_BODY:
            event = self._h11.next_event()
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > max_bytes:
                    raise LimitExceeded(limit, max_bytes, closes=True)
                pieces += 1
                if pieces % 64 == 0:  # chunks of one byte each come by the thousand in one read
                    await trio.lowlevel.checkpoint()
            elif event is h11.NEED_DATA:
                self._h11.receive_data(await self.connection.receive())
        return bytes(body)

    async def until_peer_leaves(self) -> None:
        """Waits for ever, unless the client closes.

        Raises:
            ConnectionLost: it did. A client that only closed its sending side cannot be told apart from one that is
                gone, and waiting on for that one would keep its descriptor.
        """
        ahead = len(self._h11.trailing_data[0])
        while ahead < _MAX_READ_AHEAD:
            data = await self.connection.receive()
            if not data:
                raise ConnectionLost("left while waiting", reason="left")
            self._h11.receive_data(data)
            ahead += len(data)
        await trio.sleep_forever()

    def stream_head(self, headers: Headers) -> bytes:
        """The head of a 200 response whose body is written from then on by somebody else."""
        head = h11.Response(status_code=200, headers=[*headers, *common_headers(self.runtime)], reason="OK")
        return _bytes_of(self._h11, head)

    def unread(self) -> bytes:
        """What the client has sent behind this request, for the protocol that takes over."""
        return self._h11.trailing_data[0]


class HttpConnection:
    """HTTP on one connection.

    Args:
        connection: the client's.
        runtime: what all connections share.
        route: answers requests.
    """

    __slots__ = ("_connection", "_h11", "_head_scope", "_route", "_runtime")

    def __init__(self, connection: Connection, runtime: Runtime, route: Router) -> None:
        self._connection = connection
        self._runtime = runtime
        self._route = route
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=runtime.config.limits.head_size)
        self._head_scope: trio.CancelScope | None = None

    async def run(self) -> Stream | None:
        """Answers requests until HTTP ends here; returns the stream that takes over, or None to close.

        Raises:
            ConnectionLost: the peer is gone.
        """
        self._runtime.open[self._connection] = self
        stream: Stream | None = None
        is_first = True
        while stream is None and (request := await self._next_request(is_first=is_first)) is not None:
            if not is_first:
                await trio.lowlevel.checkpoint()  # pipelined requests come by the thousand in one read
            is_first = False
            exchange = Exchange(request, self._connection, self._runtime, self._h11)
            answer = await self._answer(exchange)
            if isinstance(answer, Handover):
                await self._connection.send(answer.head)
                stream = answer.stream
                self._log(exchange, 101 if answer.head.startswith(b"HTTP/1.1 101") else 200)
            else:
                self._log(exchange, answer.status)
                if not await self._respond(answer, request.method):
                    break
        return stream

    def drain(self, retry_after: float) -> None:  # noqa: ARG002 - who has no stream need not be told
        """See ``Drainable.drain``: an idle connection ends now, a busy one after its answer."""
        if self._head_scope is not None and self._h11.trailing_data[0] == b"":
            self._head_scope.cancel()

    # The head

    async def _next_request(self, *, is_first: bool) -> Request | None:
        """The next request's head, or None when there is none to come; mistakes in it are answered here."""
        head: h11.Request | None = None
        try:
            head = await self._read_head(is_first=is_first)
            if head is None:
                return None
            self._check_head(head)
            return _request_of(head)
        except (h11.RemoteProtocolError, RemoteProtocolError) as error:
            mistake = _mistake_of(error, has_request_line=b"\n" in self._h11.trailing_data[0])
            self._runtime.counters.requests["malformed", mistake.status] += 1
            await self._respond(problem_of(mistake), "GET" if head is None else head.method.decode("ascii"))
            return None

    async def _read_head(self, *, is_first: bool) -> h11.Request | None:
        limits = self._runtime.config.limits
        has_begun = is_first or self._h11.trailing_data[0] != b""
        seconds = limits.head_timeout if has_begun else limits.idle_timeout
        scope = self._head_scope = trio.move_on_after(seconds)
        with scope:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                data = await self._connection.receive()
                if not has_begun:
                    has_begun = True
                    scope.deadline = trio.current_time() + limits.head_timeout
                self._h11.receive_data(data)
            self._head_scope = None
            return event if isinstance(event, h11.Request) else None
        # Cut off here: by the deadline, or by a drain while nothing was on its way.
        self._head_scope = None
        if self._h11.trailing_data[0]:
            raise RemoteProtocolError(f"the head did not come within {seconds:g} s", status=408)
        return None

    def _check_head(self, request: h11.Request) -> None:
        """What h11 leaves to its user.

        Raises:
            RemoteProtocolError: then the connection closes, for where the next request begins is not sure.
        """
        limits = self._runtime.config.limits
        names = [name for name, _ in request.headers]
        if request.http_version not in (b"1.0", b"1.1"):
            raise RemoteProtocolError("only HTTP/1.0 and HTTP/1.1 are spoken here", status=505)
        if len(request.target) > limits.target_size:
            raise LimitExceeded("limits.target_size", limits.target_size, len(request.target), status=414)
        if len(names) > limits.head_fields:
            raise LimitExceeded("limits.head_fields", limits.head_fields, len(names), status=431)
        # h11 limits only heads that come in pieces.
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > limits.head_size:
            raise LimitExceeded("limits.head_size", limits.head_size, size, status=431)
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
            # RFC 9112 6.1: the ways to read such a message differ, which is how requests are smuggled.
            raise RemoteProtocolError("Transfer-Encoding with Content-Length, or in HTTP/1.0")
        expectation = next((value for name, value in request.headers if name == b"expect"), b"100-continue")
        if expectation.lower() != b"100-continue":
            raise RemoteProtocolError("the only expectation known is 100-continue", status=417)

    # The answer

    async def _answer(self, exchange: Exchange) -> Response | Handover:
        try:
            if self._has_no_body(exchange.request):
                self._h11.next_event()
            return await self._route(exchange)
        except (RemoteProtocolError, Unavailable) as error:
            return problem_of(error)
        except h11.RemoteProtocolError as error:
            return problem_of(_mistake_of(error))
        except ConnectionLost:
            raise
        except Exception:
            with trio.move_on_after(_LAST_WORD_SECONDS, shield=True):
                await self._tell_of_failure(exchange)
            raise

    async def _tell_of_failure(self, exchange: Exchange) -> None:
        """Answers with 500, unless an answer has begun already. What failed is for the guard around the connection."""
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._log(exchange, 500)
            with suppress(ConnectionLost):
                failure = problem(500, "the server failed at this", code="internal-error", closes=True)
                await self._respond(failure, exchange.request.method)

    @staticmethod
    def _has_no_body(request: Request) -> bool:
        return request.header(b"transfer-encoding") is None and int(request.header(b"content-length") or 0) == 0

    async def _respond(self, response: Response, method: str = "GET") -> bool:
        """Sends a whole answer in one piece; returns whether another request may follow."""
        # Where a request was not read to its end, the next one's beginning cannot be found.
        is_unread = self._h11.their_state in (h11.SEND_BODY, h11.ERROR)
        closes = response.closes or self._runtime.is_draining or is_unread
        headers = [*response.headers, *common_headers(self._runtime)]
        # What GET would answer is not always known here, and must not be told wrong then (RFC 9110 8.6).
        if response.status not in (204, 304) and (response.body or method != "HEAD"):
            headers.append((b"content-length", b"%d" % len(response.body)))
        if closes:
            headers.append((b"connection", b"close"))
        reason = HTTPStatus(response.status).phrase
        parts = [_bytes_of(self._h11, h11.Response(status_code=response.status, headers=headers, reason=reason))]
        if response.body and method != "HEAD":
            parts.append(_bytes_of(self._h11, h11.Data(data=response.body)))
        parts.append(_bytes_of(self._h11, h11.EndOfMessage()))
        await self._connection.send(b"".join(parts))
        is_reusable = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        # The draining may have begun while this was sent.
        if is_reusable and not self._runtime.is_draining:
            self._h11.start_next_cycle()
            return True
        await self._connection.linger()
        return False

    def _log(self, exchange: Exchange, status: int) -> None:
        self._runtime.counters.requests[exchange.label, status] += 1
        if self._runtime.config.logging.access:
            request = exchange.request
            self._runtime.logger.info(
                "request",
                peer=exchange.connection.peer,
                method=request.method,
                target=request.target.decode("ascii", "backslashreplace"),
                status=status,
            )


def common_headers(runtime: Runtime) -> Headers:
    """What every response carries."""
    return ((b"date", runtime.date()), (b"server", b"tricast"))


def _request_of(head: h11.Request) -> Request:
    return Request(head.method, head.target, list(head.headers), head.http_version)


def _bytes_of(connection: h11.Connection, event: h11.Event) -> bytes:
    data = connection.send(event)
    assert data is not None  # only ConnectionClosed has no bytes
    return data


def _mistake_of(
    error: h11.RemoteProtocolError | RemoteProtocolError, *, has_request_line: bool = True
) -> RemoteProtocolError:
    """The error with all that its answer needs: the connection cannot be used after it."""
    if isinstance(error, RemoteProtocolError):
        return RemoteProtocolError(error.detail, code=error.code, status=error.status, closes=True)
    status = error.error_status_hint
    if status == 431 and not has_request_line:
        status = 414
    return RemoteProtocolError(str(error), code="bad-http", status=status, closes=True)
