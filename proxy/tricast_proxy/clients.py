"""One client's connection: request after request, and the tunnel that one of them may turn it into."""

import secrets
import time

import trio

from tricast.connection import Connection
from tricast.errors import ConnectionLost
from tricast_proxy.answers import Failure, answer_of, failure_of, refusal
from tricast_proxy.exchange import Established, Exchange, Shared
from tricast_proxy.fields import Hop
from tricast_proxy.heads import BadHead, HeadLimits, HeadReader, RequestHead, parse_request, skip_empty_lines
from tricast_proxy.tunnel import Tunnel, rules_of
from tricast_proxy.upstream import ConnectFailed, Upstream


class Client:
    """A client's connection, and what the proxy does for it.

    Args:
        shared: what all exchanges share.
        connection: the client's.
        port: the client's.
        own_port: the port that it came by.
        scheme: ``http`` or ``https``.

    Attributes:
        connection: the client's.
        data: what it sent that nobody has taken yet.
        has_left: whether it will send no more.
        state: what is done for it now, in a word.
        tunnel: what it has become, if it has.
        is_last: whether the answer that is on its way is the last on this connection.
    """

    __slots__ = (
        "_began",
        "_own_port",
        "_port",
        "_scheme",
        "_scope",
        "_served",
        "_shared",
        "connection",
        "data",
        "has_left",
        "is_last",
        "state",
        "tunnel",
    )

    def __init__(self, shared: Shared, connection: Connection, port: int, own_port: int, scheme: str) -> None:
        self._shared = shared
        self._port = port
        self._own_port = own_port
        self._scheme = scheme
        self._served = 0
        self._began = trio.current_time()
        self._scope: trio.CancelScope | None = None
        self.connection = connection
        self.data = bytearray()
        self.has_left = False
        self.state = "new"
        self.tunnel: Tunnel | None = None
        self.is_last = False

    async def run(self) -> None:
        """Serves the client until it leaves or is left.

        Raises:
            ConnectionLost: it is gone.
        """
        if self._shared.config.proxy.mode == "tcp":
            await self._run_tcp()
            return
        while (request := await self._next_request()) is not None:
            established = await self._serve(request)
            if established is not None:
                await self._run_tunnel(established.upstream, head=established.head, protocol=established.protocol)
                return
            if self.is_last or self.connection.is_closed:
                break
            if self.has_left:
                self._check_ahead()
        if not self.connection.is_closed:
            self.state = "closing"
            await self.connection.linger()

    def drain(self) -> None:
        """Lets no other request follow; ends it at once where none is on its way."""
        self.is_last = True
        if self.state in ("new", "idle") and self._scope is not None:
            self._scope.cancel()

    # Heads

    async def _next_request(self) -> RequestHead | None:
        """The next request; None where there is none, or where the client was told what is wrong with it."""
        config = self._shared.config
        reader = HeadReader(HeadLimits.of_requests(config.limits), config.proxy.strict)
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
        is_new = self._served == 0
        self.state = "new" if is_new else "idle"
        skip_empty_lines(self.data)
        if self.data and (head := reader.take(self.data)) is not None:
            return head
        has_begun = is_new or bool(self.data)
        seconds = config.header_timeout if has_begun else config.keepalive_timeout
        head = None
        with trio.move_on_after(seconds) as scope:
            self._scope = scope
            while head is None and not self.has_left:
                data = await self.connection.receive()
                self.has_left = not data
                if not has_begun:
                    has_begun = True
                    scope.deadline = trio.current_time() + config.header_timeout
                self.state = "head"
                self.data += data
                skip_empty_lines(self.data)
                head = reader.take(self.data)
        self._scope = None
        is_late = scope.cancelled_caught and has_begun and not self.is_last
        if is_late and config.header_timeout_reply == "408":
            await self._refuse(Failure("refused", 408, "the request did not come in time", "http_request_error"))
        return head

    async def _refuse(self, failure: Failure) -> None:
        self.is_last = True
        await self.connection.send(answer_of(self._shared.config, failure, is_head=False, closes=True))

    # Exchanges

    async def _serve(self, request: RequestHead) -> Established | None:
        self.state = "request"
        self._served += 1
        try:
            exchange = Exchange(self._shared, self, request, self._hop(), self._may_go_on)
        except BadHead as bad:
            await self._refuse(refusal(bad.status, bad.detail))
            return None
        established = await exchange.run()
        self.is_last = self.is_last or exchange.closes
        return established

    def _hop(self) -> Hop:
        request_id = secrets.token_hex(8) if self._shared.config.headers.request_id else ""
        return Hop(self.connection.peer, self._port, self._scheme, self._own_port, time.time(), request_id)

    def _may_go_on(self) -> bool:
        """Whether another request may follow the one that is answered."""
        config = self._shared.config.client
        if self._served >= config.keepalive_requests > 0 or trio.current_time() - self._began >= config.max_age:
            self.is_last = True
        return not self.is_last

    def _check_ahead(self) -> None:
        # What was pipelined before it left is answered; an incomplete head never becomes one.
        if not self.data:
            self.is_last = True

    # Tunnels

    async def _run_tunnel(self, upstream: Upstream, *, head: bytes, protocol: bytes) -> None:
        shared = self._shared
        self.state = "tunnel"
        server = upstream.server
        server.active += 1
        is_websocket = protocol == b"websocket"
        self.tunnel = Tunnel(self.connection, upstream.connection, shared.config.tunnel, is_websocket=is_websocket)
        try:
            # What either has sent behind its last head is the first of what goes through.
            if upstream.data or head:
                await self.connection.send(head + bytes(upstream.data))
            upstream.data.clear()
            if self.data:
                await upstream.connection.send(bytes(self.data))
            self.data.clear()
            if self.has_left:
                upstream.connection.shutdown_write()
            await self.tunnel.run(shared.timers, rules_of(shared.config.tunnel, shared.random))
        except ConnectionLost:
            if not self.connection.is_closed:
                return
            raise
        finally:
            server.active -= 1
            upstream.end(with_reset=shared.config.upstream.abort == "rst" and self.tunnel.why != "upstream")

    async def _run_tcp(self) -> None:
        choice = self._shared.balancer.choose(None, self.connection.peer, ())
        if choice is None:
            return
        self.state = "connecting"
        try:
            upstream = await self._shared.pool.open(choice.server)
        except ConnectFailed:
            return
        await self._run_tunnel(upstream, head=b"", protocol=b"")
