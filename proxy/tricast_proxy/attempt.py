"""One try of having a request answered by a server, on one connection.

Two tasks at the same time: one sends the request up, and then watches whether the client leaves; the other takes the
answer down. The first thing that goes wrong in either ends both.
"""

import math
from contextlib import suppress
from functools import partial

import trio

from tricast.errors import ConnectionLost
from tricast.wire.bodies import BadBody, BodyReader, NoBody
from tricast.wire.heads import BadHead, HeadReader
from tricast.wire.http1 import LAST_CHUNK, chunk
from tricast_proxy.answers import CLOSED_ON_PURPOSE, INCREMENTAL_REFUSED, Failure, failure_of
from tricast_proxy.buffering import IncrementalRefused
from tricast_proxy.coalesce import Fetch, SharedSource
from tricast_proxy.delivery import Delivery
from tricast_proxy.errand import (
    Clock,
    Errand,
    Established,
    Unusable,
    mistake_of,
    rules_before_the_head,
    rules_behind_the_head,
    upgrade_fields,
)
from tricast_proxy.heads import Fields, ResponseHead, ResponseParser, encode_response, limits_of_responses
from tricast_proxy.relay import Cut, Source
from tricast_proxy.request_body import read_ahead
from tricast_proxy.streams import ClientBody, ServerBody
from tricast_proxy.timers import CLIENT, UPSTREAM, Rule, Watch
from tricast_proxy.upstream import ConnectFailed, Upstream

#: For the answer to a request that is sent once more on purpose, to nobody.
_LISTENS_SECONDS = 5.0


class _ClosedOnPurpose(Exception):
    """An answer has come, and the client is not to get any."""


class Attempt:
    """A request on a connection to a server.

    Args:
        errand: what is to be done.
        upstream: the connection.
        fields: what the answer carries beside what the server says.
        refused_statuses: answers that are not given to the client, because another server may be asked.

    Attributes:
        sink: the client as the answer's body sees it, once there is an answer.
        status: of the final answer; 0 while there is none.
    """

    def __init__(self, errand: Errand, upstream: Upstream, fields: Fields, refused_statuses: frozenset[int]) -> None:
        self._errand = errand
        self._upstream = upstream
        self._fields = fields
        self._refused_statuses = refused_statuses
        self._config = errand.shared.config
        self._watch = Watch(errand.shared.timers)
        self._is_sent = False
        self._is_handed_over = False
        self._clock = Clock(trio.current_time(), math.inf)
        self._awaits_client = False
        self._failure: Failure | None = None
        self.sink: ClientBody | None = None
        self.status = 0

    async def run(self) -> Established | Failure | None:
        """Makes the attempt; returns the tunnel that follows, or why it failed, or None where all is well.

        The connection is given back to the pool, or closed, but where it is a tunnel's.
        """
        watch, upstream, config = self._watch, self._upstream, self._config
        self._obey_before_the_head()
        outcome: Established | bool | None = None
        try:
            with watch.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_up)
                    outcome = await self._take_down()
                    nursery.cancel_scope.cancel()
            # What goes wrong or runs out when all has been said does not matter any more.
            failure = None if outcome is not None else self._failed() or self._ran_out(watch.expired)
            if watch.expired and failure is not None:
                await self._begin_at_least()
            if isinstance(outcome, Established):
                return outcome
        except BaseException:
            if not self._is_handed_over:
                upstream.end(with_reset=config.upstream.abort == "rst")
            raise
        finally:
            watch.end()
        if not self._is_handed_over:
            self._let_go(is_reusable=outcome is True and failure is None, is_cut=failure is not None)
        return failure

    def _failed(self) -> Failure | None:
        return self._failure

    def _fail(self, failure: Failure) -> None:
        """Ends the attempt for the first reason that there is."""
        if self._failure is None:
            self._failure = failure
            self._watch.scope.cancel()

    # Time

    def _obey_before_the_head(self) -> None:
        self._watch.obey(*rules_before_the_head(self._config.upstream, self._clock))

    def _rules_behind_the_head(self) -> tuple[Rule, ...]:
        # The answer may begin before all of the request has been sent.
        sent = min(self._clock.sent, trio.current_time())
        return rules_behind_the_head(self._config.upstream, self._clock._replace(sent=sent))

    async def _begin_at_least(self) -> None:
        """Sends the head of an answer whose body was held when its time ran out, unless nothing of it may be seen."""
        if self.sink is not None and self._config.response.buffering != "full":
            await self.sink.begin()

    def _ran_out(self, name: str) -> Failure:
        if name == "timeout" and self._awaits_client:
            # HAProxy answers the same there (observed with 2.6.12), but it is not the server that is slow.
            return failure_of(self._config, name, "the body did not come in time")._replace(kind="request-timeout")
        if name == "timeout":
            return failure_of(self._config, name, f"{self._upstream.server.label} did not answer in time")
        # What a client is told that has seen nothing of an answer: there is none yet, or it was held.
        kind = "cut" if name == "read-timeout" else "response-timeout"
        return failure_of(self._config, kind, f"cut off: {name}")._replace(kind=name)

    # Up

    async def _send_up(self) -> None:
        """Sends the request, and from then on watches whether the client leaves."""
        try:
            self._is_sent = await self._send_request()
        except ConnectionLost as lost:
            # Where it has closed, its answer may be there all the same: a server may refuse a request before all of it
            # has come (RFC 9112 9.3). A pipe that is broken is no reset: then its end came before.
            self._upstream.was_reset = isinstance(lost.__context__, ConnectionResetError)
            if lost.reason == "write-timeout":
                self._fail(failure_of(self._config, "timeout", f"{self._upstream.server.label}: {lost}"))
        if self._is_sent:
            self._clock = self._clock._replace(sent=trio.current_time())
            if self.sink is None:
                self._obey_before_the_head()
        if self._failed() is None:
            await self._watch_client()

    async def _send_request(self) -> bool:
        """Sends the request; returns whether all of it was sent.

        Raises:
            ConnectionLost: the server takes no more of it.
        """
        body, connection = self._errand.body, self._upstream.connection
        frames = self._errand.request.is_chunked and body.buffered_length is None
        head = self._errand.encoded_request(self._upstream.server)
        if self._errand.injected.duplicate_request and not self._errand.request.has_body:
            self._errand.shared.background.start_soon(self._send_once_more, head)
        try:
            payload = body.take_now()
            await connection.send(head + (chunk(payload) if frames and payload else payload))
            while payload := await self._next_payload():
                await connection.send(chunk(payload) if frames else payload)
                self._watch.touch(CLIENT)
        except (BadBody, TimeoutError) as error:
            self._fail(mistake_of(self._config, error))
            return False
        if self._failed() is not None:
            return False
        if frames:
            await connection.send(LAST_CHUNK)
        self._watch.touch(CLIENT)
        return True

    async def _send_once_more(self, head: bytes) -> None:
        """Sends the request on another connection, and hears no more than the beginning of the answer."""
        with suppress(ConnectionLost, ConnectFailed):
            upstream = await self._errand.shared.pool.open(self._upstream.server)
            try:
                await upstream.connection.send(head)
                with trio.move_on_after(_LISTENS_SECONDS):
                    await upstream.connection.receive()
            finally:
                upstream.end(with_reset=False)

    async def _next_payload(self) -> bytes:
        # Whoever is cancelled here goes on to wait, for the one who asks why it was.
        self._awaits_client = True
        try:
            payload = await self._errand.body.receive(self._watch)
        except ConnectionLost as lost:
            self._fail(Failure("client", 0, str(lost)))
            return b""
        self._awaits_client = False
        return payload

    async def _watch_client(self) -> None:
        if why := await read_ahead(self._errand.client, self._config.client.leaves):
            self._fail(Failure("client", 0, why))

    # Down

    async def _take_down(self) -> Established | bool | None:
        """Takes the answer, and gives it to the client.

        Returns:
            The tunnel that the answer begins, if it does; else whether the connection to the server can be used again;
            None where there is no answer, or not all of it.
        """
        try:
            if self._errand.forwards_upgrade and not self._config.tunnel.check_101:
                self._check_answered()
                return Established(self._upstream, b"", self._errand.request.upgrades[0])
            answer = await self._next_answer()
            return answer if isinstance(answer, Established) else await self._give(answer)
        except Unusable as unusable:
            self._fail(failure_of(self._config, unusable.kind, unusable.detail))
        except Cut as cut:
            self._fail(failure_of(self._config, "cut", cut.detail))
        except _ClosedOnPurpose:
            self._fail(CLOSED_ON_PURPOSE)
        except IncrementalRefused:
            self._fail(INCREMENTAL_REFUSED)
        except ConnectionLost as lost:
            self._fail(Failure("client", 0, str(lost)))
        return None

    def _check_answered(self) -> None:
        if self._errand.injected.close_before_response:
            raise _ClosedOnPurpose

    async def _next_answer(self) -> ResponseHead | Established:
        """The final head, after those that come before it."""
        config, request = self._config, self._errand.request
        reader = HeadReader(limits_of_responses(config.limits), config.proxy.strict)
        parser = ResponseParser(request, config.proxy.strict)
        interim = 0
        while True:
            head = await self._next_head(reader, parser)
            if head.status == 101:
                return self._established(head)
            if head.status >= 200 or config.response.informational == "as-final":
                return head
            interim += 1
            if interim > config.limits.informational or config.response.informational == "refuse":
                raise Unusable("invalid", "an answer before the answer")
            self._obey_before_the_head()
            await self._pass_on_interim(head)

    async def _pass_on_interim(self, head: ResponseHead) -> None:
        errand = self._errand
        is_held = errand.body.buffered_length is not None
        is_ours = head.status == 100 and errand.answers_continue(is_held=is_held)
        # RFC 9110 15.2: never to a client that speaks HTTP/1.0.
        if self._config.response.informational == "forward" and errand.request.is_http_11 and not is_ours:
            fields = errand.shared.policy.for_client(head)
            try:
                await errand.client.connection.send(encode_response(head.status, head.reason, fields))
            except ConnectionLost:
                if self._config.client.leaves != "never":
                    raise

    async def _next_head(self, reader: HeadReader, parser: ResponseParser) -> ResponseHead:
        upstream = self._upstream
        try:
            while (head := reader.take(upstream.data)) is None:
                try:
                    data = await upstream.connection.receive()
                except ConnectionLost:
                    data = b""
                if not data:
                    kind = "invalid" if upstream.data else "empty"
                    raise Unusable(kind, f"{upstream.server.label} closed the connection instead of an answer")
                self._watch.touch(UPSTREAM)
                upstream.data += data
            return parser.parse(head)
        except BadHead as bad:
            raise Unusable("invalid", f"{upstream.server.label} answered with something else: {bad.detail}") from None

    def _established(self, head: ResponseHead) -> Established:
        """The tunnel that a server has agreed to, if it was asked to (RFC 9110 7.8, 15.2.2)."""
        errand, upstream = self._errand, self._upstream
        chosen = head.members(b"upgrade")
        asked = errand.request.upgrades if errand.forwards_upgrade else []
        if not chosen or not set(chosen) <= set(asked):
            raise Unusable("upgrade", f"{upstream.server.label} switched to a protocol that nobody asked for")
        self._check_answered()
        fields = [*errand.shared.policy.for_client(head), *self._fields, *upgrade_fields(head)]
        self.status = 101
        answer = encode_response(101, head.reason, errand.injected.response_fields(fields))
        return Established(upstream, answer, chosen[0])

    async def _give(self, head: ResponseHead) -> bool:
        """Gives the answer to the client; returns whether the connection to the server can be used again."""
        errand, upstream, config = self._errand, self._upstream, self._config
        if head.status in self._refused_statuses:
            raise Unusable(str(head.status), f"{upstream.server.label} answered {head.status}")
        self._check_answered()
        reader = errand.reader_of(head)
        body, is_shared = self._shared_or_own(head, reader)
        try:
            # What is shared has a watch of its own, as it goes on without this client.
            self._watch.obey(*(() if is_shared else self._rules_behind_the_head()))
            delivery = Delivery(
                errand.request,
                body,
                self._fields,
                connection=errand.client.connection,
                watch=self._watch,
                config=config.response,
                has_body=not isinstance(reader, NoBody),
                passes_end=reader.ends_with_connection and config.response.open_ended == "close",
                closing=errand.closing,
                ignores_loss=config.client.leaves == "never",
                injected=errand.injected,
            )
            self.sink = delivery.sink
            self.status = head.status
            await delivery.run()
        finally:
            if isinstance(body, SharedSource):
                body.close()
        return not is_shared and self._can_be_used_again(head, reader)

    def _shared_or_own(self, head: ResponseHead, reader: BodyReader) -> tuple[Source, bool]:
        """The answer, and whether it is shared with others: then the connection to the server is theirs as well."""
        errand, upstream = self._errand, self._upstream
        fields = errand.shared.policy.for_client(head)
        if head.status == 426:
            fields += upgrade_fields(head)
        has_length = not head.is_chunked and head.status >= 200 and head.status != 204
        coalescer = errand.shared.coalescer
        watch = self._watch if coalescer is None else Watch(errand.shared.timers)
        body = ServerBody(
            upstream,
            errand.shared.pump,
            ResponseHead(head.status, head.reason, fields, head.version),
            reader,
            is_chunked=head.is_chunked,
            length=head.length if has_length else None,
            watch=watch,
            passed=partial(errand.trailers_of, head),
        )
        if coalescer is None:
            return body, False
        shared = coalescer.share(errand.request, body, partial(self._keep_fetching, head, body, reader, watch))
        self._is_handed_over = shared is not body
        if shared is body:
            body.watch = self._watch
        return shared, self._is_handed_over

    async def _keep_fetching(
        self, head: ResponseHead, body: ServerBody, reader: BodyReader, watch: Watch, fetch: Fetch
    ) -> None:
        """Takes an answer that is shared to its end, whoever has left meanwhile."""
        is_reusable = False
        watch.obey(*self._rules_behind_the_head())
        try:
            with watch.scope:
                await fetch()
                is_reusable = self._can_be_used_again(head, reader)
        finally:
            watch.end()
            self._let_go(is_reusable=is_reusable, is_cut=not body.is_complete)

    def _can_be_used_again(self, head: ResponseHead, reader: BodyReader) -> bool:
        """Whether the connection to the server is as it was before the request."""
        is_at_its_end = reader.is_complete and not reader.ends_with_connection and not self._upstream.data
        # RFC 9110 8.6: it must not announce a body there, so that one may well be on its way.
        announces = head.status == 204 and (head.is_chunked or head.length)
        is_sound = self._is_sent and is_at_its_end and not announces
        return is_sound and head.keeps_alive and self._config.upstream.http_version == "1.1"

    def _let_go(self, *, is_reusable: bool, is_cut: bool) -> None:
        """Gives the connection to the server back, or closes it."""
        self._upstream.served += 1
        if is_reusable:
            self._errand.shared.pool.give_back(self._upstream)
        else:
            self._upstream.end(with_reset=is_cut and self._config.upstream.abort == "rst")
