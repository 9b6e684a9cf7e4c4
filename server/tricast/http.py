"""The request loop of one connection: head, route, answer or stream, and again.

Owns h11's state and everything that HTTP/1.1 asks of a connection: deadlines, limits of the head, ``Expect``,
keep-alive and pipelining, ``Date``, and how a connection ends after a mistake. What a path means is in ``routes.py``.
"""

from contextlib import suppress
from typing import NamedTuple, Protocol

import h11
import trio

from tricast.access.identity import ANYBODY
from tricast.connection import Connection
from tricast.errors import ConnectionLost, LimitExceeded, RemoteProtocolError, Unavailable
from tricast.runtime import Runtime
from tricast.sent import ALL, NOTHING
from tricast.transports.long_poll import LongPoll
from tricast.wire.credentials import without_secrets
from tricast.wire.forwarded import Origin, origin_by_forwarded, origin_by_x_forwarded
from tricast.wire.http1 import (
    CLOSE,
    CONTINUE,
    END_OF_HEAD,
    Headers,
    Request,
    Response,
    encode_head,
    encode_headers,
    problem,
)
from tricast.wire.probe import PROBE_PREFIX

#: Pipelined bytes that are read while an answer is waited for; behind them, a client that leaves is seen late.
_MAX_READ_AHEAD = 64 * 2**10
_PIECES_PER_TURN = 64
#: h11's states of a request of which something is still to come, or cannot be read.
_UNREAD = (h11.SEND_BODY, h11.ERROR)
#: How those are read that ``server.forwarded`` may name.
_ORIGIN_BY = {"x-forwarded": origin_by_x_forwarded, "forwarded": origin_by_forwarded}
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
        h11_connection: behind the head.
        head: the same head as h11 has it.
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
        "_h11",
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
        h11_connection: h11.Connection,
        head: h11.Request,
        *,
        serial: int,
        number: int,
    ) -> None:
        self._h11 = h11_connection
        self._head = head
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
        return told or (self.request.header(b"host") or b"").decode("latin-1")

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
        return [(bytes(name), bytes(value)) for name, value in self._head.headers.raw_items()]

    @property
    def http_version(self) -> str:
        """As the request line has it: ``1.1``."""
        return self._head.http_version.decode("ascii")

    async def read_piece(self) -> bytes:
        """The next bytes of the request's body as they come, empty at its end. Asks for a body that is held back.

        Raises:
            RemoteProtocolError: nothing came in time, or its framing is wrong.
            ConnectionLost: the client closed in the middle of it.
        """
        seconds = self.runtime.config.limits.body_timeout
        with trio.move_on_after(seconds):
            return await self._next_piece()
        raise RemoteProtocolError(f"no more of the body came within {seconds:g} s", status=408, closes=True)

    async def _next_piece(self) -> bytes:
        while not isinstance(event := self._h11.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data) and event.data:
                return bytes(event.data)
            if event is h11.NEED_DATA:
                if self._h11.they_are_waiting_for_100_continue:
                    await self.connection.send(CONTINUE)
                self._h11.receive_data(await self.connection.receive())
        return b""

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
        body = bytearray()
        if isinstance(self._take_pieces(body, limit, max_bytes), h11.EndOfMessage):
            return bytes(body)  # it came with the head, as a short one does
        seconds = self.runtime.config.limits.body_timeout
        with trio.move_on_after(seconds):
            await self._read_rest(body, limit, max_bytes)
            return bytes(body)
        raise RemoteProtocolError(f"the body did not come within {seconds:g} s", status=408, closes=True)

    async def _read_rest(self, body: bytearray, limit: str, max_bytes: int) -> None:
        if self._h11.they_are_waiting_for_100_continue:
            await self.connection.send(CONTINUE)
        while not isinstance(event := self._take_pieces(body, limit, max_bytes), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self.connection.receive())
            else:
                await trio.lowlevel.checkpoint()

    def _take_pieces(self, body: bytearray, limit: str, max_bytes: int) -> object:
        """Takes what has come of the body, but not too much in a row; returns the last event of h11."""
        # Chunks of one byte each come by the thousand in one read.
        pieces = 0
        while isinstance(event := self._h11.next_event(), h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise LimitExceeded(limit, max_bytes, closes=True)
            pieces += 1
            if pieces == _PIECES_PER_TURN:
                break
        return event

    def stream_head(self, headers: Headers) -> bytes:
        """The head of a 200 response whose body is written from then on by somebody else.

        The body is in chunks, or where the client knows none, up to the end of the connection (RFC 9112 6.3).
        """
        framing = b"transfer-encoding: chunked\r\n" if self.request.is_http_11 else CLOSE
        return encode_head(200, encode_headers(headers), self.runtime.common_headers(), framing, END_OF_HEAD)

    def unread(self) -> bytes:
        """What the client has sent behind this request, for the protocol that takes over."""
        return self._h11.trailing_data[0]


class HttpConnection:
    """HTTP on one connection.

    h11 reads requests, a new one for each: what goes out is written by ``wire.http1``, so h11 would only have to be
    told of it.

    Args:
        connection: the client's.
        runtime: what all connections share.
        route: answers requests.

    Attributes:
        slot: its place on the wheel, where what waits too long is ended.
    """

    __slots__ = (
        "_asked",
        "_closes",
        "_connection",
        "_deadline",
        "_failure",
        "_h11",
        "_head",
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
        #: Reads the request that is on its way or being answered; None while nothing of one is there.
        self._h11: h11.Connection | None = None
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
        self._head: h11.Request | None = None  # while its answer is looked for
        self._serial = runtime.next_serial()
        self._number = 0
        self.slot = -1

    def _feed(self, data: bytes) -> h11.Connection:
        """Has h11 read what came in."""
        if self._h11 is None:
            self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=self._runtime.config.limits.head_size)
        self._h11.receive_data(data)
        return self._h11

    @property
    def _ahead(self) -> bytes:
        """What came in behind the request that is being answered, or else of the next one."""
        return b"" if self._h11 is None else self._h11.trailing_data[0]

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
            if not is_first:
                await trio.lowlevel.checkpoint()  # pipelined requests come by the thousand in one read
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
        head: h11.Request | None = None
        try:
            head = await self._read_head(is_first=is_first)
            if head is None:
                return None
            fields = list(head.headers)  # once: h11's sequence is slow to walk
            self._check_head(head, fields)
            self._head = head
            return Request(head.method, head.target, fields, head.http_version)
        except (h11.RemoteProtocolError, RemoteProtocolError) as error:
            # Not kept in a variable: an error that its own traceback leads to is for the garbage collector to find.
            answer = self._runtime.refusal(_mistake_of(error, has_request_line=b"\n" in self._ahead))
            self._runtime.counters.requests["malformed", answer.status] += 1
            await self._respond(answer, None, is_head=head is not None and head.method == b"HEAD")
            return None

    async def _read_head(self, *, is_first: bool) -> h11.Request | None:
        # A client sends its first request with the connection, so that it may have come with it.
        if is_first and (data := self._connection.receive_now()) is not None:
            self._feed(data)
        event = h11.NEED_DATA if self._h11 is None else self._h11.next_event()
        if event is h11.NEED_DATA:
            return await self._wait_for_head(is_first=is_first)
        return event if isinstance(event, h11.Request) else None

    async def _wait_for_head(self, *, is_first: bool) -> h11.Request | None:
        limits = self._runtime.config.limits
        has_begun = is_first or self._ahead != b""
        event: object = h11.NEED_DATA
        with self._wait_at_most(limits.head_timeout if has_begun else limits.idle_timeout):
            while event is h11.NEED_DATA:
                data = await self._connection.receive()
                if not has_begun:
                    has_begun = True
                    self._set_deadline(trio.current_time() + limits.head_timeout)
                event = self._feed(data).next_event()
            self._scope = None
            return event if isinstance(event, h11.Request) else None
        # Cut off here: by the deadline, or by a drain while nothing was on its way.
        self._scope = None
        if self._ahead:
            raise RemoteProtocolError(f"the head did not come within {limits.head_timeout:g} s", status=408)
        return None

    def _check_head(self, request: h11.Request, fields: Headers) -> None:
        """What h11 leaves to its user.

        Raises:
            RemoteProtocolError: then the connection closes, for where the next request begins is not sure.
        """
        limits = self._runtime.config.limits
        names = {name for name, _ in fields}
        if request.http_version not in (b"1.0", b"1.1"):
            raise RemoteProtocolError("only HTTP/1.0 and HTTP/1.1 are spoken here", status=505)
        if len(request.target) > limits.target_size:
            raise LimitExceeded("limits.target_size", limits.target_size, len(request.target), status=414)
        if len(fields) > limits.head_fields:
            raise LimitExceeded("limits.head_fields", limits.head_fields, len(fields), status=431)
        # h11 limits only heads that come in pieces.
        size = len(request.target) + sum([len(name) + len(value) + 4 for name, value in fields])
        if size > limits.head_size:
            raise LimitExceeded("limits.head_size", limits.head_size, size, status=431)
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
            # RFC 9112 6.1: the ways to read such a message differ, which is how requests are smuggled.
            raise RemoteProtocolError("Transfer-Encoding with Content-Length, or in HTTP/1.0")
        expected = [value for name, value in fields if name == b"expect"] if b"expect" in names else []
        if expected and expected[0].lower() != b"100-continue":
            raise RemoteProtocolError("the only expectation known is 100-continue", status=417)

    # The answer

    async def _answer(self, request: Request) -> tuple[str, Answer]:
        """The answer, and the label of the route that it came from."""
        assert self._h11 is not None
        assert self._head is not None
        self._number += 1
        exchange = Exchange(
            request,
            self._connection,
            self._runtime,
            self._h11,
            self._head,
            serial=self._serial,
            number=self._number,
        )
        self._head = None  # it would be kept while a poll waits
        answer: Answer
        try:
            if self._connection.peer in self._runtime.proxies:
                exchange.take_origin()
                self._runtime.places.take(self._connection, self._connection.client)
            answer = await self._route(exchange)
        except (RemoteProtocolError, Unavailable) as error:
            answer = self._runtime.refusal(error)
        except h11.RemoteProtocolError as error:
            answer = self._runtime.refusal(_mistake_of(error))
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
        self._begin_cycle()
        return True

    def _free_place(self) -> None:
        """Behind a proxy, lets another one of the same client take the place of a request that is answered."""
        if self._connection.peer in self._runtime.proxies:
            self._runtime.places.give_back(self._connection)

    def _closes_after(self, request: Request) -> bool:
        # Where a request was not read to its end, the next one's beginning cannot be found.
        is_unread = request.has_body and self._h11 is not None and self._h11.their_state in _UNREAD
        return is_unread or self._runtime.is_draining or not request.keeps_alive or self._may_be_a_pipe(request)

    def _may_be_a_pipe(self, request: Request) -> bool:
        """Whether a trusted proxy may look at nothing more that comes, having seen a request for an upgrade.

        Varnish does not wait for the answer (``pipe``), so that what its client sends behind a refusal would be taken
        for the proxy's own words.
        """
        return request.header(b"upgrade") is not None and self._connection.peer in self._runtime.proxies

    def _begin_cycle(self) -> None:
        """Gets ready for the next request, of which a part may be here already."""
        assert self._h11 is not None
        ahead, is_closed = self._h11.trailing_data
        self._h11 = None
        if ahead:
            self._feed(ahead)
        if is_closed:
            self._feed(b"")

    # Waiting polls

    async def _keep_waiting(self, label: str, request: Request, poll: LongPoll) -> bool:
        """Holds a poll until it is answered, and where nothing forbids it, until the client sends more.

        Returns:
            Whether another request may follow.

        Raises:
            ConnectionLost: the client is gone; a client that only closed its sending side cannot be told apart from
                one that is, and waiting on for that one would keep its descriptor.
        """
        self._closes = self._closes_after(request)
        if not self._closes:
            self._begin_cycle()  # by far most of what a connection holds while it waits is the parser
        self._asked, self._poll = (label, request), poll
        try:
            poll.answering = self
            if poll.kept is not None:
                self.answer_poll(200, poll.kept)
            elif self._runtime.is_draining:
                # It began while the log was read, and found nothing here that it could end.
                poll.give_up(self._runtime.jitter(self._runtime.config.drain.retry_after))
            else:
                await self._wait_for_answer(poll.patience)
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
        # The draining may have begun while this was sent.
        closes = self._closes or (self._runtime.is_draining and not self._ahead)
        if closes:
            await self._connection.linger()
        return not closes

    async def _wait_for_answer(self, patience: float) -> None:
        ahead = len(self._ahead)
        with self._wait_at_most(patience) as scope:
            while ahead < _MAX_READ_AHEAD:
                data = await self._connection.receive()
                if self._poll is not None and not data:
                    raise ConnectionLost("left while waiting", reason="left")
                self._feed(data)
                if self._poll is None and not scope.cancel_called:
                    break
                ahead += len(data)
            else:
                await self._connection.flush()
                await trio.sleep_forever()
        self._scope = None

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
        self._closes = self._closes or self._runtime.is_draining
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


def _mistake_of(
    error: h11.RemoteProtocolError | RemoteProtocolError, *, has_request_line: bool = True
) -> RemoteProtocolError:
    """The error with all that its answer needs: the connection cannot be used after it."""
    if isinstance(error, RemoteProtocolError):
        error.closes = True
        return error
    error.__traceback__ = None  # h11 raises it in a method of its own, whose frame would keep it
    status = error.error_status_hint
    if status == 431 and not has_request_line:
        status = 414
    return RemoteProtocolError(str(error), code="bad-http", status=status, closes=True)
