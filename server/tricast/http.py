"""The request loop of one connection: head, route, answer or stream, and again.

Owns everything that HTTP/1.1 asks of a connection: deadlines, limits of the head, ``Expect``, keep-alive and
pipelining, ``Date``, and how a connection ends after a mistake. What a head may be is in ``wire/heads.py``, bodies are
in ``request_body.py``, and what a path means is in ``routes.py``.
"""

from contextlib import suppress
from typing import NamedTuple, Protocol

import trio

from tricast.access.identity import ANYBODY
from tricast.connection import Connection
from tricast.errors import ConnectionLost, LimitExceeded, RemoteProtocolError, TooSlow, Unavailable
from tricast.request_body import RequestBody
from tricast.runtime import Runtime
from tricast.sent import ALL, NOTHING
from tricast.transports.long_poll import LongPoll
from tricast.wire.forwarded import Origin, origin_by_forwarded, origin_by_x_forwarded
from tricast.wire.heads import TLS_HELLO, BadHead, HeadReader, ParsedRequest, parse_request
from tricast.wire.http1 import (
    CLOSE,
    END_OF_HEAD,
    Headers,
    Request,
    Response,
    encode_head,
    encode_headers,
    problem,
)
from tricast.wire.probe import PROBE_PREFIX
from tricast.wire.secrecy import without_secrets

#: Pipelined bytes that are read while an answer is waited for; behind them, a client that leaves is seen late.
_MAX_READ_AHEAD = 64 * 2**10
#: How those are read that ``server.forwarded`` may name.
_ORIGIN_BY = {"x-forwarded": origin_by_x_forwarded, "forwarded": origin_by_forwarded}
#: The configuration keys of what a head may exceed.
_LIMITS = {"request_line": "target_size", "header": "head_size", "header_count": "head_fields"}
#: How long a client may take for the answer that its request made the server fail.
_LAST_WORD_SECONDS = 2.0


class Takeover(Protocol):
    """What a connection is when HTTP has ended on it."""

    async def run(self, nursery: trio.Nursery) -> None:
        """Serves the connection until it ends.

        Args:
            nursery: the connection's, in which it may start what it needs; cancelled when this returns.

        Raises:
            ConnectionLost: the peer is gone.
        """
        ...

    def abandon(self) -> None:
        """Gives back what it has taken already, in place of ``run``."""
        ...


class Handover(NamedTuple):
    """The end of HTTP on a connection.

    Attributes:
        head: the response head and whatever goes with it, to be sent first; empty where it comes later.
        stream: what the connection is from then on.
    """

    head: bytes
    stream: Takeover


#: A whole answer, a stream that takes the connection over, or one that comes when there is something to say.
Answer = Response | Handover | LongPoll


class Router(Protocol):
    """What turns a request into an answer."""

    async def __call__(self, exchange: "Exchange") -> "Answer":
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
        head: the same head as it came.
        body: what follows it.
        serial: a number that only this connection has.
        number: the request's on its connection, from 1 on.

    Attributes:
        request: its head.
        connection: where it came from.
        runtime: what all connections share.
        serial: a number that only this connection has.
        number: the request's on its connection, from 1 on.
        label: the route for the metrics, set by the router; a path of the client's own making would be unbounded.
        identity: who is asking, set by the router where anybody is asked that.
    """

    __slots__ = (
        "_body",
        "_head",
        "_origin",
        "connection",
        "identity",
        "label",
        "number",
        "request",
        "runtime",
        "serial",
    )

    def __init__(
        self,
        request: Request,
        connection: Connection,
        runtime: Runtime,
        head: ParsedRequest,
        body: RequestBody,
        *,
        serial: int,
        number: int,
    ) -> None:
        self._head = head
        self._body = body
        self.serial = serial
        self.number = number
        self.request = request
        self.connection = connection
        self.runtime = runtime
        self.label = "other"
        self.identity = ANYBODY
        self._origin: Origin | None = None  # as a trusted proxy has told it

    @property
    def client(self) -> str:
        """The client's address, behind whatever proxies are trusted; ``unix`` where a Unix socket tells no other."""
        return self.connection.client

    @property
    def scheme(self) -> str:
        """``http`` or ``https``, as the client knows it."""
        told = self._origin and self._origin.scheme
        return told or ("https" if self.runtime.config.tls.certificate else "http")

    @property
    def authority(self) -> str:
        """The host that the client has asked for, as it wrote it, with its port where that is not the scheme's own."""
        told = self._origin and self._origin.authority
        return told or self.request.authority.decode("latin-1")

    def take_origin(self) -> None:
        """Believes what a trusted proxy says of the client it forwards for.

        Raises:
            RemoteProtocolError: it cannot be read.
        """
        tell = _ORIGIN_BY[self.runtime.config.server.forwarded]
        self._origin = tell(self.request, self.connection.peer, self.runtime.proxies)
        self.connection.client = self._origin.client

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The (name, value) pairs in wire order, with the names in the case in which they came."""
        return [(bytes(name), bytes(value)) for name, value in self._head.event.headers.raw_items()]

    @property
    def http_version(self) -> str:
        """As the request line has it: ``1.1``."""
        return self._head.event.http_version.decode("ascii")

    async def read_piece(self) -> bytes:
        """The next bytes of the request's body as they come, empty at its end. Asks for a body that is held back.

        Raises:
            RemoteProtocolError: nothing came in time, or its framing is wrong.
            ConnectionLost: the client closed in the middle of it.
        """
        return await self._body.read_piece()

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
        return await self._body.read(limit, max_bytes)

    def stream_head(self, headers: Headers) -> bytes:
        """The head of a 200 response whose body is written from then on by somebody else.

        The body is in chunks, or where the client knows none, up to the end of the connection (RFC 9112 6.3).
        """
        framing = b"transfer-encoding: chunked\r\n" if self.request.is_http_11 else CLOSE
        return encode_head(200, encode_headers(headers), self.runtime.common_headers(), framing, END_OF_HEAD)

    def unread(self) -> bytes:
        """What the client has sent behind this request, for the protocol that takes over."""
        return self._body.behind()


class HttpConnection:
    """HTTP on one connection.

    Args:
        connection: the client's.
        runtime: what all connections share.
        route: answers requests.

    Attributes:
        slot: its place on the wheel, where what waits too long is ended.
    """

    __slots__ = (
        "_ahead",
        "_asked",
        "_body",
        "_closes",
        "_connection",
        "_deadline",
        "_failure",
        "_head",
        "_is_proxied",
        "_late",
        "_look_at",
        "_number",
        "_poll",
        "_route",
        "_runtime",
        "_scope",
        "_serial",
        "slot",
    )

    def __init__(self, connection: Connection, runtime: Runtime, route: Router) -> None:
        self._connection = connection
        self._runtime = runtime
        self._route = route
        #: What came in behind the request that is being answered, or else of the next one.
        self._ahead = bytearray()
        self._body: RequestBody | None = None  # of the request that is being answered
        #: Around whatever waits for the client, and may be cut short: by its deadline, a drain or an answer. The
        #: deadline is on the wheel, which costs a tenth of one in the scope.
        self._scope: trio.CancelScope | None = None
        self._deadline = 0.0
        self._look_at = 0.0  # when the wheel comes back here
        self._poll: LongPoll | None = None
        self._asked: tuple[str, Request] | None = None  # the poll's label and request
        self._closes = False
        self._late: bytes | None = None  # the poll's answer, for which there is no room yet
        self._failure: Exception | None = None
        self._head: ParsedRequest | None = None  # while its answer is looked for
        self._serial = runtime.next_serial()
        self._number = 0
        #: Whether what is at the other end may say whom it speaks for.
        self._is_proxied = connection.peer in runtime.proxies
        self.slot = -1

    async def run(self) -> Takeover | None:
        """Answers requests until HTTP ends here; returns the stream that takes over, or None to close.

        Raises:
            ConnectionLost: the peer is gone.
        """
        self._runtime.open[self._connection] = self
        try:
            return await self._answer_requests()
        finally:
            self._runtime.wheel.discard(self)

    async def _answer_requests(self) -> Takeover | None:
        is_first = True
        while (request := await self._next_request(is_first=is_first)) is not None:
            is_first = False
            label, answer = await self._answer(request)
            if isinstance(answer, Handover):
                self._log(label, request, 101 if answer.head.startswith(b"HTTP/1.1 101") else 200)
                await self._hand_over(answer)
                return answer.stream
            if isinstance(answer, LongPoll):
                is_open = await self._keep_waiting(label, request, answer)
            else:
                self._log(label, request, answer.status)
                is_open = await self._respond(answer, request)
            if not is_open:
                break
            del request, answer  # else they would be kept until the next request has come
        return None

    async def _hand_over(self, handover: Handover) -> None:
        if handover.head:
            try:
                await self._connection.send(handover.head)
            except BaseException:
                handover.stream.abandon()  # what it was let in with; nobody will run it
                raise

    def drain(self, retry_after: float) -> None:
        """See ``Drainable.drain``: an idle connection ends now, a waiting poll is answered, others end after that."""
        if self._poll is not None:
            self._poll.give_up(retry_after)
        elif self._scope is not None and not self._ahead:
            self._end()

    def _end(self) -> None:
        """Ends the connection while nothing is asked of it, or nothing more of what was begun comes."""
        assert self._scope is not None
        self._closes = True
        self._scope.cancel()

    def _wait_at_most(self, seconds: float) -> trio.CancelScope:
        """A scope for something that waits for the client, with its deadline on the wheel."""
        self._set_deadline(trio.current_time() + seconds)
        self._scope = trio.CancelScope()
        return self._scope

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        # Most are set anew before they come, and then the wheel is told when it looks here.
        if self.slot < 0 or deadline < self._look_at:
            self._look_at = deadline
            self._runtime.wheel.add(self, deadline)

    def sweep(self, now: float) -> float | None:
        """See ``Swept.sweep``."""
        if self._scope is None:
            return None  # busy; whatever waits next comes back here
        if now >= self._deadline:
            if self._poll is None:
                self._end()
                return None
            self._poll.give_up()
        self._look_at = self._deadline
        return self._deadline

    # The head

    async def _next_request(self, *, is_first: bool) -> Request | None:
        """The next request's head, or None when there is none to come; mistakes in it are answered here."""
        head: bytes | None = None
        try:
            reader = HeadReader(self._runtime.head_limits, "strict")
            # A client sends its first request with the connection, so that it may have come with it.
            if is_first and (data := self._connection.receive_now()) is not None:
                self._ahead += data
            if self._ahead:
                head = reader.take(self._ahead)
            if head is None:
                head = await self._wait_for_head(reader, is_first=is_first)
            elif not is_first:
                await trio.lowlevel.checkpoint()  # pipelined requests come by the thousand in one read
            if head is None:
                return None
            self._head = parsed = parse_request(head, "strict")
            self._check_head(parsed)
            return Request(parsed.event.method, parsed.target, parsed.fields, parsed.version, parsed.authority)
        except (BadHead, RemoteProtocolError) as error:
            # Not kept in a variable: an error that its own traceback leads to is for the garbage collector to find.
            answer = self._runtime.refusal(self._mistake_of(error))
            self._runtime.counters.requests["malformed", answer.status] += 1
            # What cannot be read to its end begins with its method all the same.
            is_head = (head or self._ahead).startswith(b"HEAD ")
            await self._respond(answer, None, is_head=is_head)
            return None

    async def _wait_for_head(self, reader: HeadReader, *, is_first: bool) -> bytes | None:
        limits = self._runtime.config.limits
        has_begun = is_first or bool(self._ahead)
        head = None
        try:
            with self._wait_at_most(limits.head_timeout if has_begun else limits.idle_timeout) as scope:
                while data := await self._connection.receive():
                    self._ahead += data
                    head = reader.take(self._ahead)
                    if head is not None:
                        break  # most come whole, and cost no look at the clock, nor a place on the wheel
                    begun = self._deadline if has_begun else trio.current_time() + limits.head_timeout
                    has_begun = True
                    self._set_deadline(begun + len(data) / limits.receive_rate)
        finally:
            self._scope = None
        if head is None and self._ahead:
            if scope.cancelled_caught:
                raise TooSlow("limits.head_timeout", "the head", limits.head_timeout, limits.receive_rate)
            raise RemoteProtocolError("the connection ended in the middle of the head", code="bad-http")
        return head

    def _check_head(self, head: ParsedRequest) -> None:
        """What is left to check of a head that is as it should be.

        Raises:
            RemoteProtocolError: then the connection closes, for where the next request begins is not sure.
        """
        limits = self._runtime.config.limits
        if len(head.target) > limits.target_size:
            raise LimitExceeded("limits.target_size", limits.target_size, len(head.target), status=414)
        if head.framing.expectation not in (None, b"100-continue"):
            raise RemoteProtocolError("the only expectation is 100-continue", code="bad-expectation", status=417)

    def _mistake_of(self, error: BadHead | RemoteProtocolError) -> RemoteProtocolError:
        """The error with all that its answer needs: the connection cannot be used after it."""
        if isinstance(error, RemoteProtocolError):
            error.closes = True
            return error
        if error.code == TLS_HELLO:
            self._runtime.warn_once("a client speaks TLS to a port without", peer=self._connection.peer)
        if error.limit:
            key = _LIMITS[error.limit]
            allowed = getattr(self._runtime.config.limits, key)
            return LimitExceeded(f"limits.{key}", allowed, status=error.status, closes=True)
        return RemoteProtocolError(error.detail, code=error.code, status=error.status, closes=True)

    # The answer

    async def _answer(self, request: Request) -> tuple[str, Answer]:
        """The answer, and the label of the route that it came from."""
        assert self._head is not None
        self._number += 1
        self._body = RequestBody(
            self._head.framing,
            self._connection,
            self._ahead,
            self._runtime.config.limits,
            expects=request.is_http_11 and self._head.framing.expectation is not None,
        )
        exchange = Exchange(
            request,
            self._connection,
            self._runtime,
            self._head,
            self._body,
            serial=self._serial,
            number=self._number,
        )
        self._head = None  # it would be kept while a poll waits
        answer: Answer
        try:
            if self._is_proxied:
                exchange.take_origin()
                self._runtime.places.take(self._connection, self._connection.client)
            answer = await self._route(exchange)
        except (RemoteProtocolError, Unavailable) as error:
            answer = self._runtime.refusal(error)
        except ConnectionLost:
            raise
        except Exception:
            with trio.move_on_after(_LAST_WORD_SECONDS, shield=True):
                await self._tell_of_failure(exchange.label, request)
            raise
        return exchange.label, answer

    async def _tell_of_failure(self, label: str, request: Request) -> None:
        """Answers with 500. What failed is for the guard around the connection."""
        self._log(label, request, 500)
        with suppress(ConnectionLost):
            await self._respond(problem(500, "the server failed at this", code="internal-error", closes=True), request)

    async def _respond(self, response: Response, request: Request | None, *, is_head: bool = False) -> bool:
        """Sends a whole answer in one piece; returns whether another request may follow.

        Args:
            response: the answer.
            request: what it answers, or None where that could not be read.
            is_head: whether at least that much is known, that it wants no body.
        """
        is_head = is_head or (request is not None and request.method == "HEAD")
        closes = response.closes or request is None or self._closes_after(request)
        self._free_place()
        lines = [encode_headers(response.headers), self._runtime.common_headers()]
        # What GET would answer is not always known here, and must not be told wrong then (RFC 9110 8.6).
        if response.status not in (204, 304) and (response.body or not is_head):
            lines.append(b"content-length: %d\r\n" % len(response.body))
        if closes:
            lines.append(CLOSE)
        answer = encode_head(response.status, *lines, END_OF_HEAD, b"" if is_head else response.body)
        if not closes and self._ahead:
            await self._connection.send_soon(answer)  # with the answers to what the client has sent behind this
        else:
            await self._connection.send(answer)
        # The draining may have begun while this was sent.
        if closes or self._runtime.is_draining:
            await self._connection.linger()
            return False
        self._body = None
        return True

    def _free_place(self) -> None:
        """Behind a proxy, lets another one of the same client take the place of a request that is answered."""
        if self._is_proxied:
            self._runtime.places.give_back(self._connection)

    def _closes_after(self, request: Request) -> bool:
        # Where a request was not read to its end, the next one's beginning cannot be found.
        is_unread = self._body is not None and not self._body.is_complete
        is_last = self._runtime.is_draining or self._is_old or not request.keeps_alive
        return is_unread or is_last or self._may_be_a_pipe(request)

    @property
    def _is_old(self) -> bool:
        """Whether the connection has been there for long enough. An idle one is left: a request may be on its way."""
        return self._runtime.wheel.now >= self._connection.rotates_at

    def _may_be_a_pipe(self, request: Request) -> bool:
        """Whether a trusted proxy may look at nothing more that comes, having seen a request for an upgrade.

        Varnish does not wait for the answer (``pipe``), so that what its client sends behind a refusal would be taken
        for the proxy's own words.
        """
        return self._is_proxied and request.header(b"upgrade") is not None

    # Waiting polls

    async def _keep_waiting(self, label: str, request: Request, poll: LongPoll) -> bool:
        """Holds a poll until it is answered, and where nothing forbids it, until the client sends more.

        Returns:
            Whether another request may follow.

        Raises:
            ConnectionLost: the client is gone, or has closed its sending side, and was told that there is nothing: the
                two cannot be told apart, and waiting on for the one would keep the descriptor of the other.
        """
        has_left = False
        self._closes = self._closes_after(request)
        self._body = None
        self._asked, self._poll = (label, request), poll
        try:
            poll.answering = self
            if poll.kept is not None:
                self.answer_poll(200, poll.kept)
            elif self._runtime.is_draining:
                # It began while the log was read, and found nothing here that it could end.
                poll.give_up(self._runtime.returns.delay())
            else:
                has_left = await self._wait_for_answer(poll.patience)
        finally:
            self._poll = self._asked = None
            poll.leave()
        if self._failure is not None:
            if not isinstance(self._failure, ConnectionLost):
                with trio.move_on_after(_LAST_WORD_SECONDS):
                    await self._tell_of_failure(label, request)
            try:
                raise self._failure
            finally:
                self._failure = None  # its traceback leads to this
        if self._late is not None:
            late, self._late = self._late, None
            await self._connection.send(late)
        await self._connection.drain()
        if has_left:
            raise ConnectionLost("left while waiting", reason="left")
        # The draining may have begun while this was sent.
        closes = self._closes or (self._runtime.is_draining and not self._ahead)
        if closes:
            await self._connection.linger()
        return not closes

    async def _wait_for_answer(self, patience: float) -> bool:
        """Returns whether the client sends no more, for which it was answered."""
        has_left = False
        ahead = len(self._ahead)
        with self._wait_at_most(patience) as scope:
            while ahead < _MAX_READ_AHEAD:
                data = await self._connection.receive()
                if self._poll is not None and not data:
                    has_left = self._closes = True
                    self._poll.give_up()
                    break
                self._ahead += data
                if self._poll is None and not scope.cancel_called:
                    break
                ahead += len(data)
            else:
                await self._connection.flush()
                await trio.sleep_forever()
        self._scope = None
        return has_left

    def answer_poll(self, status: int, end: bytes) -> None:
        """See ``Answering.answer_poll``."""
        asked, poll = self._asked, self._poll
        assert asked is not None
        assert poll is not None
        self._poll = None
        poll.leave()
        self._free_place()
        self._log(*asked, status)
        self._set_deadline(trio.current_time() + self._runtime.config.limits.idle_timeout)
        self._closes = self._closes or self._runtime.is_draining or self._is_old
        closing = CLOSE if self._closes else b""
        answer = encode_head(status, poll.headers, self._runtime.common_headers(), closing, end)
        sent = self._connection.send_now(answer)
        if sent is NOTHING:  # the client has yet to read what it asked for before
            self._late = answer
        if self._scope is not None and (self._closes or sent is not ALL or self._ahead):
            self._scope.cancel()

    def fail_poll(self, error: Exception) -> None:
        """See ``Answering.fail_poll``."""
        self._failure = error
        if self._scope is not None:
            self._scope.cancel()

    def _log(self, label: str, request: Request, status: int) -> None:
        self._runtime.counters.requests[label, status] += 1
        if self._runtime.config.logging.access:
            self._runtime.logger.info(
                "request",
                **self._connection.named(),
                method=request.method,
                target=_without_secrets(request).decode("ascii", "backslashreplace"),
                status=status,
            )


def _without_secrets(request: Request) -> bytes:
    """The target as it may be logged: the query of a probe holds its token where no header could."""
    if request.path.startswith(PROBE_PREFIX):
        return request.target.partition(b"?")[0]
    return without_secrets(request.target)
