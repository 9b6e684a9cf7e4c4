"""One request and its answer: what is asked of the proxy itself, which servers are asked, and what a failure becomes.

A failed attempt may be followed by another one as long as nothing of an answer has reached the client, and as long as
the request may be sent twice.
"""

from collections.abc import Callable

import trio

from tricast.errors import ConnectionLost
from tricast.wire.bodies import BadBody
from tricast.wire.heads import BadHead
from tricast_proxy.answers import (
    CLOSED_ON_PURPOSE,
    INCREMENTAL_REFUSED,
    Failure,
    answer_of,
    failure_of,
    interim_answers,
    refusal,
)
from tricast_proxy.attempt import Attempt
from tricast_proxy.bodies import reader_of
from tricast_proxy.buffering import IncrementalRefused, buffers_request
from tricast_proxy.coalesce import Coalescer, SharedSource
from tricast_proxy.delivery import Delivery
from tricast_proxy.errand import Errand, Established, mistake_of
from tricast_proxy.faults import Injected
from tricast_proxy.fields import Hop, forwards_left
from tricast_proxy.heads import Fields, RequestHead, encode_response
from tricast_proxy.relay import Cut
from tricast_proxy.request_body import ClientSide, NotKept, RequestBody, read_ahead
from tricast_proxy.servers import Server
from tricast_proxy.shared import Shared
from tricast_proxy.streams import ClientBody
from tricast_proxy.timers import Watch
from tricast_proxy.upstream import ConnectFailed

#: What says that a server is not well, rather than that it does not like the request.
_SERVERS_FAULT = frozenset(("connect", "connect-timeout", "timeout", "empty", "invalid", "upgrade"))


class Exchange:
    """A request and its answer.

    Args:
        shared: what all exchanges share.
        client: who asks.
        request: the head.
        hop: the client's side, for the fields that tell of it.
        may_go_on: says whether the client's connection may be used for another request after this one.
        deadline: when all of the request must have come, by ``trio.current_time()``.
        injected: what goes wrong on purpose.

    Attributes:
        request: the head.
        status: what the client was told; 0 while nothing.
        why: how it ended, in a word.
        detail: what went wrong, for people; empty while nothing has.
        server: the label of the server that was asked last; empty for none.
        closes: whether the client's connection ends after it.

    Raises:
        BadHead: there is no telling where the request's body ends.
    """

    def __init__(
        self,
        shared: Shared,
        client: ClientSide,
        request: RequestHead,
        hop: Hop,
        may_go_on: Callable[[], bool],
        *,
        deadline: float,
        injected: Injected,
    ) -> None:
        self._shared = shared
        self._config = shared.config
        self._client = client
        self._hop = hop
        self._may_go_on = may_go_on
        limits = shared.config.limits
        reader = reader_of(
            request, is_request=True, max_extensions=limits.chunk_extensions, max_trailers=limits.header_total
        )
        self._body = RequestBody(client, reader, shared.config, deadline)
        self._errand = Errand(shared, client, request, self._body, hop, self._closing, injected)
        self._attempt: Attempt | None = None
        self._joined: ClientBody | None = None
        self._began = trio.current_time()
        self.request = request
        self.status = 0
        self.why = "done"
        self.detail = ""
        self.server = ""
        # RFC 9112 9.3: a proxy must not keep a connection open with a client that speaks HTTP/1.0.
        self.closes = not (request.keeps_alive and request.is_http_11)

    @property
    def sent(self) -> int:
        """Bytes of the answer's body that were sent to the client."""
        return 0 if self._sink is None else self._sink.count

    @property
    def _sink(self) -> ClientBody | None:
        return self._joined if self._attempt is None else self._attempt.sink

    @property
    def is_answering(self) -> bool:
        """Whether the answer is on its way to the client."""
        return self._sink is not None and self._sink.has_begun

    @property
    def is_receiving(self) -> bool:
        """Whether the request is still on its way from the client."""
        return not self._body.is_complete

    async def run(self) -> Established | None:
        """Asks a server and answers the client; returns the tunnel that follows, if one does.

        Raises:
            ConnectionLost: the client is gone.
        """
        try:
            await self._errand.injected.hold_head()
            failure = self._fault() or self._refused() or await self._prepare()
            outcome = failure if failure is not None else await self._join_or_ask()
        finally:
            self._body.close()
        if self._attempt is not None:
            self.status = self._attempt.status
            self.closes = self.closes or (self._attempt.sink is not None and self._attempt.sink.closes)
        if isinstance(outcome, Failure):
            is_closed = self._errand.injected.close_before_response and not self.is_answering
            await self._end_badly(CLOSED_ON_PURPOSE if is_closed and outcome.kind != "client" else outcome)
            return None
        return outcome

    # Before a server is asked

    def _fault(self) -> Failure | None:
        status = self._errand.injected.status
        return Failure("fault", status, "refused on purpose", "proxy_internal_response") if status else None

    def _refused(self) -> Failure | None:
        request, config = self.request, self._config
        try:
            self._shared.policy.check_request(request)
        except BadHead as bad:
            return refusal(bad.status, bad.detail)
        if request.upgrades and config.tunnel.upgrade == "deny":
            return Failure("refused", config.tunnel.deny_status, "upgrades are not allowed", "http_request_denied")
        if request.method in (b"TRACE", b"OPTIONS") and forwards_left(request.get(b"max-forwards") or b"") == 0:
            # RFC 9110 7.6.2: whoever gets it then is the one that it is for.
            return refusal(501, "this proxy is the last that the request may reach, and has no answer to it")
        expected = request.members(b"expect") if request.is_http_11 else []
        if expected and (config.request.expect == "reject" or not self._expects_continue):
            return refusal(417, "the only expectation that is met here, if any, is 100-continue")
        length = request.length
        if length is not None and length > config.limits.body > 0:
            return failure_of(config, "body", f"the body is longer than {config.limits.body} bytes")
        return None

    @property
    def _expects_continue(self) -> bool:
        return self.request.is_http_11 and self.request.members(b"expect") == [b"100-continue"]

    async def _prepare(self) -> Failure | None:
        """Takes the request's body, where it goes up as a whole."""
        request, config = self.request, self._config
        try:
            is_held = request.has_body and buffers_request(request, config)
        except IncrementalRefused:
            return INCREMENTAL_REFUSED
        # A body that comes when the server has asked for it cannot be had before.
        is_held = is_held and not (config.request.expect == "forward" and self._expects_continue)
        # In HTTP/1.0 there are no chunks, so that the length has to be known.
        is_held = is_held or (request.is_chunked and config.upstream.http_version == "1.0")
        if self._errand.answers_continue(is_held=is_held):
            await self._client.connection.send(encode_response(100, b"Continue", ()))
        if is_held:
            try:
                await self._body.buffer(Watch(self._shared.timers))
            except (BadBody, TimeoutError) as error:
                return mistake_of(config, error)
            except NotKept as error:
                self._shared.logger.warning("a request cannot be kept", error=str(error))
                return Failure("spool", 500, str(error))
        return None

    # Answers that are shared

    async def _join_or_ask(self) -> Established | Failure | None:
        coalescer = self._shared.coalescer
        if coalescer is None:
            return await self._ask()
        try:
            outcome = await self._join(coalescer)
            if outcome is False:
                return await self._ask()
            return None if outcome is True else outcome
        finally:
            coalescer.forgo(self.request)

    async def _join(self, coalescer: Coalescer) -> Failure | bool:
        """Gives the client what somebody else has asked for; returns False where there is no such thing."""
        outcome: Failure | bool = Failure("client", 0, "left")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_client, nursery.cancel_scope)
            joined = await coalescer.join(self.request)
            outcome = joined is not None and await self._give_joined(joined)
            nursery.cancel_scope.cancel()
        return outcome

    async def _watch_client(self, scope: trio.CancelScope) -> None:
        if await read_ahead(self._client, self._config.client.leaves):
            scope.cancel()

    async def _give_joined(self, source: SharedSource) -> Failure | bool:
        """Gives the client what somebody else has asked for; returns True when it has it."""
        self.server = "shared"
        try:
            if self._errand.injected.close_before_response:
                return CLOSED_ON_PURPOSE
            delivery = Delivery(
                self.request,
                source,
                [],
                connection=self._client.connection,
                watch=Watch(self._shared.timers),
                config=self._config.response,
                has_body=self.request.method != b"HEAD",
                passes_end=False,
                closing=self._closing,
                ignores_loss=self._config.client.leaves == "never",
                injected=self._errand.injected,
            )
            self._joined = delivery.sink
            self.status = source.head.status
            await delivery.run()
        except Cut as cut:
            return failure_of(self._config, "cut", cut.detail)
        except IncrementalRefused:
            return INCREMENTAL_REFUSED
        except ConnectionLost as lost:
            return Failure("client", 0, str(lost))
        finally:
            source.close()
        return True

    # Servers

    async def _ask(self) -> Established | Failure | None:
        """Asks servers, one after the other, until one has answered or none may be asked any more."""
        tried: list[Server] = []
        failure: Failure | None = None
        while len(tried) < self._config.retry.tries and (failure is None or self._may_ask_again(failure)):
            is_secure = self._hop.scheme == "https"
            choice = self._shared.balancer.choose(self.request, self._hop.peer, tried, is_secure=is_secure)
            if choice is None:
                return failure or failure_of(self._config, "no-server", "no server can take this request now")
            server = choice.server
            self.server = server.label
            tried.append(server)
            if failure is not None:
                self._shared.counters.retries += 1
                self._body.rewind()
            server.active += 1
            server.counts["requests"] += 1
            try:
                is_last = len(tried) >= self._config.retry.tries or not self._shared.balancer.has_another(tried)
                outcome = await self._ask_server(server, choice.fields, is_last=is_last)
            finally:
                server.active -= 1
            failure = self._judged(server, outcome)
            if failure is None:
                assert not isinstance(outcome, Failure)
                return outcome
        return failure

    def _judged(self, server: Server, outcome: Established | Failure | None) -> Failure | None:
        """Tells the server's records how it went."""
        failure = outcome if isinstance(outcome, Failure) else None
        if failure is None:
            server.succeeded(trio.current_time())
        elif failure.kind in _SERVERS_FAULT:
            server.failed(trio.current_time())
        return failure

    def _may_ask_again(self, failure: Failure) -> bool:
        """Whether another attempt may follow this one."""
        retry = self._config.retry
        is_meant = failure.kind.partition("-")[0] in retry.on and not self.is_answering
        if not is_meant or trio.current_time() - self._began > retry.timeout:
            return False
        return failure.kind.startswith("connect") or self._may_be_repeated

    @property
    def _may_be_repeated(self) -> bool:
        """Whether the server may get the request twice (RFC 9110 9.2.2), and the proxy can send it twice."""
        retry = self._config.retry
        is_harmless = self.request.method.decode() in retry.methods or retry.non_idempotent
        return is_harmless and self._body.can_be_sent_again

    async def _ask_server(self, server: Server, fields: Fields, *, is_last: bool) -> Established | Failure | None:
        """Asks one server, on a connection that waits for it where there is one."""
        refused = frozenset[int]() if is_last or not self._may_be_repeated else self._retried_statuses()
        upstream = self._shared.pool.take(server)
        if upstream is not None:
            if self._errand.injected.stale_keepalive:
                upstream.connection.close()
            self._attempt = Attempt(self._errand, upstream, fields, refused)
            outcome = await self._attempt.run()
            if not (isinstance(outcome, Failure) and outcome.kind == "empty"):
                return outcome
            # It was closed while the request was on its way (RFC 9112 9.5): that says nothing of the server.
            if not self._may_be_repeated:
                return outcome._replace(kind="stale")
            self._body.rewind()
        try:
            upstream = await self._shared.pool.open(server)
        except ConnectFailed as failed:
            return failure_of(self._config, "connect-timeout" if failed.has_timed_out else "connect", str(failed))
        self._attempt = Attempt(self._errand, upstream, fields, refused)
        return await self._attempt.run()

    def _retried_statuses(self) -> frozenset[int]:
        return frozenset(int(reason) for reason in self._config.retry.on if reason.isdecimal())

    def _closing(self) -> bool:
        """Whether the client's connection ends after the answer, as of now."""
        # A request that has not come as a whole would have to be read to its end (RFC 9112 9.3).
        self.closes = self.closes or not self._body.is_complete or not self._may_go_on()
        return self.closes

    # The end

    async def _end_badly(self, failure: Failure) -> None:
        """Tells the client as well as can be that there is no answer, or not all of it.

        Raises:
            ConnectionLost: the client is gone.
        """
        self.why, self.detail = failure.kind, failure.detail
        connection = self._client.connection
        if failure.kind == "client" or (not failure.status and not self.is_answering):
            self.closes = True
            self._shared.counters.cuts[failure.kind] += 1
            connection.close()
        elif self.is_answering:
            self._shared.counters.cuts[failure.kind] += 1
            await self._cut()
        else:
            # A client that hears no to its upgrade may have gone on as if it were yes, and what follows were frames.
            self.closes = self._closing() or bool(self.request.upgrades)
            self.status = failure.status
            self._shared.counters.refused[failure.kind] += 1
            is_head = self.request.method == b"HEAD"
            interim = self._errand.injected.inject_1xx if self.request.is_http_11 else ()
            answer = answer_of(self._config, failure, is_head=is_head, closes=self.closes)
            await connection.send(interim_answers(interim) + answer)

    async def _cut(self) -> None:
        """Ends an answer that has begun and will not be completed."""
        connection, on_cut = self._client.connection, self._config.response.on_cut
        sink = self._sink
        assert sink is not None
        is_clean = on_cut == "clean" and sink.can_be_finished and not connection.has_tail
        self.closes = self.closes or not is_clean
        if on_cut == "rst":
            connection.reset()
        elif is_clean:
            await sink.finish([])
