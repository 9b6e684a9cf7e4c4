"""One client's connection: request after request, and the tunnel that one of them may turn it into."""

import math
from typing import NamedTuple

import trio

from tricast.connection import Connection
from tricast.errors import ConnectionLost
from tricast.wire.heads import BadHead, HeadReader
from tricast.wire.secrecy import without_secrets
from tricast_proxy.answers import Failure, answer_of, failure_of, refusal
from tricast_proxy.counted import CountedSocket
from tricast_proxy.errand import Established
from tricast_proxy.exchange import Exchange
from tricast_proxy.faults import Disturbed, Duplex, Injected
from tricast_proxy.fields import Hop
from tricast_proxy.heads import RequestHead, limits_of_requests, parse_request
from tricast_proxy.overview import Access, ConnectionView, State, escaped, log_access
from tricast_proxy.servers import Server
from tricast_proxy.shared import Shared
from tricast_proxy.tunnel import Tunnel, rules_of
from tricast_proxy.upstream import ConnectFailed, Upstream


class Ending(NamedTuple):
    """How a request or its tunnel ended.

    Attributes:
        began: ``trio.current_time()`` of its beginning.
        server: the label of the server that had it; empty for none.
        why: in a word.
        detail: what went wrong, for people.
    """

    began: float
    server: str
    why: str
    detail: str = ""


class Client:
    """A client's connection, and what the proxy does for it.

    Args:
        shared: what all exchanges share.
        connection: the client's.
        sock: beneath it, with its numbers.
        hop: where the client is, and how it came.

    Attributes:
        connection: the client's.
        data: what it sent that nobody has taken yet.
        has_left: whether it will send no more.
        tunnel: what it has become, if it has.
        scope: around all that is done for it.
    """

    __slots__ = (
        "_exchange",
        "_hop",
        "_is_last",
        "_request",
        "_request_deadline",
        "_scope",
        "_served",
        "_server",
        "_shared",
        "_sock",
        "connection",
        "data",
        "has_left",
        "scope",
        "tunnel",
    )

    def __init__(self, shared: Shared, connection: Connection, sock: CountedSocket, hop: Hop) -> None:
        self._shared = shared
        self._sock = sock
        self._hop = hop
        self._served = 0
        self._is_last = False
        self._request_deadline = math.inf
        self.scope = trio.CancelScope()
        #: Around the TLS handshake, and around the wait for a request, of which nothing has come yet.
        self._scope: trio.CancelScope | None = None
        self._exchange: Exchange | None = None
        self._request = b""
        self._server: Server | None = None
        self.connection: Duplex = connection
        self.data = bytearray()
        self.has_left = False
        self.tunnel: Tunnel | None = None

    async def run(self) -> None:
        """Serves the client until it leaves or is left.

        Raises:
            ConnectionLost: it is gone.
        """
        try:
            if not await self._open():
                return
            await (self._run_tcp() if self._shared.config.proxy.mode == "tcp" else self._run_http())
        finally:
            self._calm_down()
        if not self.connection.is_closed:
            await self.connection.linger()

    async def _open(self) -> bool:
        """Does the TLS handshake, if there is one; returns whether the client is to be served."""
        with trio.CancelScope() as self._scope:
            await self.connection.open()
        self._scope = None
        return not self._is_last

    async def _run_http(self) -> None:
        while (request := await self._next_request()) is not None:
            established = await self._serve(request)
            if established is not None:
                await self._run_tunnel(established, request)
                return
            # What was pipelined before it left is answered; a part of a head never becomes one.
            if self._is_last or self.connection.is_closed or (self.has_left and not self.data):
                return

    def drain(self) -> None:
        """Lets no other request follow; ends it at once where nothing of one has come."""
        self._is_last = True
        if self._scope is not None and not self.data:
            self._scope.cancel()

    def cut(self, close_code: int) -> None:
        """Ends it now. What the client of a tunnel was told last still reaches it.

        Args:
            close_code: what a close frame of WebSocket says; 0 for none.
        """
        if self.tunnel is None:
            self.scope.cancel()
            return
        if close_code:
            self.tunnel.say_goodbye(close_code)
        self.tunnel.end("drain")

    def view(self, now: float) -> ConnectionView:
        """What is done for it at the moment."""
        sock, server, exchange = self._sock, self._server, self._exchange
        label = server.label if server is not None else exchange.server if exchange is not None else ""
        return ConnectionView(
            peer=f"{self.connection.peer}:{self._hop.port}",
            state=self._state(),
            request=escaped(without_secrets(self._request)),
            server=label,
            received=sock.received,
            sent=sock.sent,
            age=now - sock.opened,
            idle_received=now - sock.last_received,
            idle_sent=now - sock.last_sent,
        )

    def _state(self) -> State:
        if self.tunnel is not None:
            return State.TUNNEL
        if self._exchange is None:
            return State.HEAD if self.data else State.IDLE
        if self._exchange.is_answering:
            return State.RESPONSE
        return State.REQUEST if self._exchange.is_receiving else State.WAITING

    # Heads

    async def _next_request(self) -> RequestHead | None:
        """The next request; None where there is none, or where the client was told what is wrong with it."""
        config = self._shared.config
        reader = HeadReader(limits_of_requests(config.limits), config.proxy.strict)
        try:
            head = await self._next_head(reader)
            if head is None:
                return None
            request = parse_request(head, config.proxy.strict)
        except BadHead as bad:
            failure = failure_of(config, bad.limit, bad.detail) if bad.limit else refusal(bad.status, bad.detail)
            await self._refuse(failure)
            return None
        if not request.is_http_11 and not config.client.http_1_0:
            await self._refuse(refusal(426, "HTTP/1.0 is not spoken here"))
            return None
        return request

    async def _next_head(self, reader: HeadReader) -> bytes | None:
        config = self._shared.config.client
        self._request_deadline = trio.current_time() + config.request_timeout
        if self.data and (head := reader.take(self.data)) is not None:
            await trio.lowlevel.checkpoint()  # pipelined requests come by the thousand in one read
            return head
        has_begun = self._served == 0 or bool(self.data)
        patience = min(config.header_timeout, config.request_timeout)
        seconds = patience if has_begun else config.keepalive_timeout
        head = None
        with trio.move_on_after(seconds) as scope:
            self._scope = scope
            while head is None and not self.has_left:
                data = await self.connection.receive()
                self.has_left = not data
                if not has_begun:
                    has_begun = True
                    scope.deadline = trio.current_time() + patience
                    self._request_deadline = trio.current_time() + config.request_timeout
                self.data += data
                head = reader.take(self.data)
        self._scope = None
        is_late = scope.cancelled_caught and has_begun and not self._is_last
        replies = config.header_timeout_reply == "408" or (config.header_timeout_reply == "408-if-begun" and self.data)
        if is_late and replies:
            await self._refuse(Failure("refused", 408, "the request did not come in time", "http_request_error"))
        return head

    async def _refuse(self, failure: Failure) -> None:
        """Answers what could not be read as a request; where the next one begins is not sure then."""
        self._is_last = True
        self._shared.counters.refused["request"] += 1
        self._tell(None, failure.status, 0, Ending(trio.current_time(), "", failure.kind))
        await self.connection.send(answer_of(self._shared.config, failure, is_head=False, closes=True))

    # Exchanges

    async def _serve(self, request: RequestHead) -> Established | None:
        began = trio.current_time()
        self._served += 1
        self._request = b"%b %b" % (request.method, request.target)
        try:
            self._exchange = exchange = Exchange(
                self._shared,
                self,
                request,
                self._hop,
                self._may_go_on,
                deadline=self._request_deadline,
                injected=self._injected(request),
            )
        except BadHead as bad:
            await self._refuse(refusal(bad.status, bad.detail))
            return None
        established = None
        try:
            established = await exchange.run()
        except ConnectionLost:
            exchange.why = "client"
            raise
        except BaseException:
            exchange.why = "proxy"
            raise
        finally:
            self._exchange = None
            if established is None:
                self._request = b""
                ending = Ending(began, exchange.server, exchange.why, exchange.detail)
                self._tell(request, exchange.status, exchange.sent, ending)
        self._is_last = self._is_last or exchange.closes
        if established is None:
            self._calm_down()
        return established

    def _injected(self, request: RequestHead | None) -> Injected:
        """What goes wrong on purpose from now on."""
        injected = self._shared.faults.choose(next(self._shared.numbers), request)
        disturbed = injected.disturb(self.connection, self._shared.background)
        if disturbed is not None:
            # What came in one piece with the head is on its way all the same; behind it, its end is seen once more.
            disturbed.hold(bytes(self.data))
            self.has_left = self.has_left and not self.data
            self.data.clear()
            self.connection = disturbed
        return injected

    def _calm_down(self) -> None:
        if isinstance(self.connection, Disturbed):
            self.connection = self.connection.stop()

    def _tell(self, request: RequestHead | None, status: int, sent: int, ending: Ending) -> None:
        """Counts a request that has come to its end, and logs it; None where there was no reading it."""
        if status:
            self._shared.counters.answered(status)
        self._report(request, status, ending)
        if self._shared.config.logging.access:
            seconds = trio.current_time() - ending.began
            method, target = (b"", b"") if request is None else (request.method, without_secrets(request.target))
            access = Access(self._hop.peer, method, target, status, sent, seconds, ending.server, ending.why)
            log_access(self._shared.logger, access)

    def _report(self, request: RequestHead | None, status: int, ending: Ending) -> None:
        reports, why = self._shared.reports, ending.why
        if why in ("done", "upstream") and ending.server:
            reports.answered(ending.server)
            return
        if status == 408 and why in ("refused", "client"):
            why = "request-head" if request is None else "request-body"
        # There is no telling when a head began that never came.
        seconds = 0.0 if why == "request-head" else trio.current_time() - ending.began
        peer = f"{self._hop.peer}:{self._hop.port}"
        reports.ended(why, peer=peer, server=ending.server, seconds=seconds, detail=ending.detail)

    def _may_go_on(self) -> bool:
        """Whether another request may follow the one that is answered."""
        config = self._shared.config.client
        is_worn_out = self._served >= config.keepalive_requests > 0
        is_old = trio.current_time() - self._sock.opened >= config.max_age
        self._is_last = self._is_last or is_worn_out or is_old
        return not self._is_last

    # Tunnels

    async def _run_tunnel(self, established: Established, request: RequestHead | None) -> None:
        began = trio.current_time()
        shared, upstream = self._shared, established.upstream
        is_websocket = established.protocol == b"websocket"
        self.tunnel = tunnel = Tunnel(
            self.connection, upstream.connection, shared.config.tunnel, shared.pump, is_websocket=is_websocket
        )
        shared.counters.tunnels += 1
        try:
            await self._tunnel(tunnel, upstream, established.head)
        finally:
            status = 0 if request is None else 101
            why = tunnel.why or "proxy"
            self._tell(request, status, self._sock.sent, Ending(began, upstream.server.label, why))

    async def _tunnel(self, tunnel: Tunnel, upstream: Upstream, head: bytes) -> None:
        shared = self._shared
        self._server = upstream.server
        upstream.server.active += 1
        try:
            # What either has sent behind its last head is the first of what goes through.
            if upstream.data or head:
                await self.connection.send(head + bytes(upstream.data))
            if self.data:
                await upstream.connection.send(bytes(self.data))
            self.data, upstream.data = bytearray(), bytearray()
            await tunnel.run(shared.timers, rules_of(shared.config.tunnel, shared.random))
        finally:
            upstream.server.active -= 1
            if tunnel.is_cut:
                shared.counters.cuts[tunnel.why] += 1
            upstream.end(with_reset=shared.config.upstream.abort == "rst" and tunnel.why != "upstream")

    async def _run_tcp(self) -> None:
        self._injected(None)
        upstream = await self._connect()
        if upstream is not None:
            await self._run_tunnel(Established(upstream, b"", b""), None)

    async def _connect(self) -> Upstream | None:
        """A connection to the first server that can be connected to, of as many as may be tried."""
        shared, retry = self._shared, self._shared.config.retry
        tried: list[Server] = []
        for _ in range(retry.tries if "connect" in retry.on else 1):
            choice = shared.balancer.choose(None, self.connection.peer, tried)
            if choice is None:
                break
            shared.counters.retries += bool(tried)
            tried.append(choice.server)
            choice.server.counts["requests"] += 1
            try:
                upstream = await shared.pool.open(choice.server)
            except ConnectFailed as failed:
                choice.server.failed(trio.current_time())
                ending = Ending(trio.current_time(), choice.server.label, "connect", str(failed))
                self._report(None, 0, ending)
            else:
                choice.server.succeeded(trio.current_time())
                shared.reports.answered(choice.server.label)
                return upstream
        shared.counters.refused["connect" if tried else "no-server"] += 1
        return None
