"""One request on its way to a server, and the answer on its way back.

Who does what, at the same time: one task sends the request's body up, and then watches whether the client leaves; the
other takes the answer down. The first thing that goes wrong in either ends both. A failed attempt may be followed by
another one, as long as nothing of an answer has reached the client.
"""

import math
import random
import tempfile
from collections.abc import Callable, Container
from contextlib import suppress
from typing import IO, NamedTuple, Protocol

import trio

from tricast.connection import Connection
from tricast.errors import ConnectionLost
from tricast.wire.http1 import LAST_CHUNK, chunk
from tricast_proxy.answers import Failure, answer_of, failure_of, refusal
from tricast_proxy.bodies import BadBody, BodyReader, NoBody, OpenBody, reader_of
from tricast_proxy.config import LimitsSection, ProxyConfig
from tricast_proxy.fields import FieldPolicy, Hop
from tricast_proxy.heads import (
    BadHead,
    Fields,
    HeadLimits,
    HeadReader,
    RequestHead,
    ResponseHead,
    ResponseParser,
    encode_request,
    encode_response,
)
from tricast_proxy.relay import Cut, relay_at_once
from tricast_proxy.servers import Server
from tricast_proxy.streams import ClientBody, ServerBody
from tricast_proxy.timers import CLIENT, UPSTREAM, Rule, Timers, Watch
from tricast_proxy.upstream import ConnectFailed, Pool, Upstream

#: Pipelined bytes that are read while an answer is waited for; behind them, a client that leaves is seen late.
_MAX_READ_AHEAD = 64 * 2**10
#: What of a request's body is kept in memory where it is buffered; the rest is on disk.
_MAX_IN_MEMORY = 2**20
_PIECE = 64 * 2**10


class ClientSide(Protocol):
    """The client of an exchange.

    Attributes:
        connection: its connection.
        data: what it sent that nobody has taken yet.
        has_left: whether it will send no more.
    """

    connection: Connection
    data: bytearray
    has_left: bool


class Choice(NamedTuple):
    """Where a request goes.

    Attributes:
        server: there.
        fields: what the answer carries so that the client comes back to it.
    """

    server: Server
    fields: Fields


class Balancer(Protocol):
    """What chooses servers."""

    def choose(self, request: RequestHead | None, peer: str, exclude: Container[Server]) -> Choice | None:
        """The server for a client's request (None without HTTP), other than those; None when there is none."""
        ...

    def without_cookie(self, fields: Fields) -> Fields:
        """The fields without what is between the client and the proxy."""
        ...


class Shared(NamedTuple):
    """What all exchanges share.

    Attributes:
        config: with timers divided already.
        balancer: chooses servers.
        policy: of header fields.
        pool: of connections to servers.
        timers: keeps the time.
        random: for jitter only, so it need not be secret.
    """

    config: ProxyConfig
    balancer: Balancer
    policy: FieldPolicy
    pool: Pool
    timers: Timers
    random: random.Random


class Established(NamedTuple):
    """The answer was 101: what follows is a tunnel.

    Attributes:
        upstream: its other end.
        head: the answer as the client gets it.
        protocol: what is spoken in it.
    """

    upstream: Upstream
    head: bytes
    protocol: bytes


class RequestBody:
    """The body of a request, as it comes from the client or from where it was buffered.

    Args:
        client: where it comes from.
        reader: takes it off what comes in.
        config: how long it may take, and be.
    """

    def __init__(self, client: ClientSide, reader: BodyReader, config: ProxyConfig) -> None:
        self._client = client
        self._reader = reader
        self._config = config
        self._file: IO[bytes] | None = None
        self._count = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of it has come."""
        return self._reader.is_complete

    @property
    def can_be_sent_again(self) -> bool:
        """Whether it is there as a whole, or nothing of it was taken."""
        return self._file is not None or self._count == 0

    @property
    def buffered_length(self) -> int | None:
        """How long it is, where it is buffered."""
        return None if self._file is None else self._count

    async def receive(self, watch: Watch) -> bytes:
        """The next bytes; empty at its end.

        Raises:
            BadBody: its frame is broken, or it is too long.
            ConnectionLost: the client left in the middle of it.
            TimeoutError: nothing came for too long.
        """
        if self._file is not None:
            await trio.lowlevel.checkpoint()
            return self._file.read(_PIECE)
        client = self._client
        while not (payload := self.take_now()) and not self._reader.is_complete:
            with trio.move_on_after(self._config.client.body_timeout) as scope:
                data = await client.connection.receive()
            if scope.cancelled_caught:
                raise TimeoutError
            if not data:
                client.has_left = True
                raise ConnectionLost("left in the middle of its request", reason="left")
            watch.touch(CLIENT)
            client.data += data
        return payload

    def take_now(self) -> bytes:
        """What of it has come in already and was not buffered.

        Raises:
            BadBody: see ``receive``.
        """
        if self._file is not None or not self._client.data:
            return b""
        payload = self._reader.take(self._client.data)
        self._count += len(payload)
        if self._count > self._config.limits.body > 0:
            raise BadBody(f"the body is longer than {self._config.limits.body} bytes", is_too_large=True)
        return payload

    async def buffer(self, watch: Watch) -> None:
        """Takes all of it, so that it can be sent any number of times.

        Raises:
            BadBody: see ``receive``.
            ConnectionLost: see ``receive``.
            TimeoutError: see ``receive``.
        """
        file = tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY)  # noqa: SIM115 - closed with the exchange
        try:
            while payload := await self.receive(watch):
                file.write(payload)
        except BaseException:
            file.close()
            raise
        self._file = file

    def rewind(self) -> None:
        """Has it sent from its beginning once more."""
        if self._file is not None:
            self._file.seek(0)

    def close(self) -> None:
        """Gives up what is buffered."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _Unusable(Exception):
    """What a server said, or that it said nothing, cannot become an answer.

    Attributes:
        kind: see ``Failure.kind``.
        detail: why.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class Exchange:
    """A request and its answer.

    Args:
        shared: what all exchanges share.
        client: who asks.
        request: the head.
        hop: the client's side, for the fields that tell of it.
        may_go_on: says whether the client's connection may be used for another request after this one.

    Attributes:
        request: the head.
        status: what the client was told; 0 while nothing.
        why: how it ended, in a word; empty where it ended well.
        server: the label of the server that was asked last.
        closes: whether the client's connection ends after it.
    """

    def __init__(
        self, shared: Shared, client: ClientSide, request: RequestHead, hop: Hop, may_go_on: Callable[[], bool]
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
        self._body = RequestBody(client, reader, shared.config)
        self._is_sent = False
        self._sent_at = math.inf
        self._failure: Failure | None = None
        self._sink: ClientBody | None = None
        self._choice: Choice | None = None
        self._attempts_left = 0
        self._began = trio.current_time()
        self.request = request
        self.status = 0
        self.why = ""
        self.server = ""
        self.closes = not (request.keeps_alive and request.is_http_11)

    @property
    def _cookie(self) -> Fields:
        return [] if self._choice is None else self._choice.fields

    @property
    def sent(self) -> int:
        """Bytes of the answer's body that were sent to the client."""
        return 0 if self._sink is None else self._sink.count

    async def run(self) -> Established | None:
        """Asks a server and answers the client; returns the tunnel that follows, if one does.

        Raises:
            ConnectionLost: the client is gone.
        """
        try:
            refused = self._refused()
            if refused is None:
                refused = await self._prepare()
            outcome = refused if refused is not None else await self._ask()
        finally:
            self._body.close()
        if isinstance(outcome, Failure):
            await self._end_badly(outcome)
            return None
        return outcome

    # Before a server is asked

    def _refused(self) -> Failure | None:
        request, config = self.request, self._config
        try:
            self._shared.policy.check_request(request)
        except BadHead as bad:
            return refusal(bad.status, bad.detail)
        if request.upgrades and config.tunnel.upgrade == "deny":
            return Failure("refused", config.tunnel.deny_status, "upgrades are not allowed", "http_request_denied")
        if request.method in (b"TRACE", b"OPTIONS") and (request.get(b"max-forwards") or b"").strip() == b"0":
            return refusal(405, "this proxy is the last that this request may reach, and has no answer to it")
        expected = request.members(b"expect") if request.is_http_11 else []
        if expected and (config.request.expect == "reject" or expected != [b"100-continue"]):
            return refusal(417, "the only expectation known is 100-continue, if any")
        length = request.length
        if length is not None and length > config.limits.body > 0:
            return failure_of(config, "body", f"the body is longer than {config.limits.body} bytes")
        return None

    async def _prepare(self) -> Failure | None:
        """Does what must be done before a server can be asked: takes the body, where it goes up as a whole."""
        request, config = self.request, self._config
        is_held = config.request.buffering == "full" and request.has_body
        is_held = is_held or (request.is_chunked and config.upstream.http_version == "1.0")
        if self._answers_continue(is_held=is_held):
            await self._client.connection.send(encode_response(100, b"Continue", ()))
        if not is_held:
            return None
        watch = Watch(self._shared.timers)
        try:
            await self._body.buffer(watch)
        except (BadBody, TimeoutError) as error:
            return self._mistake(error)
        return None

    def _answers_continue(self, *, is_held: bool) -> bool:
        """Whether it is for the proxy to say that the body may come (RFC 9110 10.1.1)."""
        config = self._config
        is_ours = is_held or config.request.expect == "answer" or config.upstream.http_version == "1.0"
        return is_ours and self.request.is_http_11 and bool(self.request.members(b"expect"))

    def _mistake(self, error: BadBody | TimeoutError) -> Failure:
        self.closes = True
        if isinstance(error, TimeoutError):
            return Failure("refused", 408, "the body did not come in time", "http_request_error")
        if error.is_too_large:
            return failure_of(self._config, "body", error.detail)
        return refusal(400, error.detail)

    # Attempts

    async def _ask(self) -> Established | Failure | None:
        """Asks servers, one after the other, until one has answered or none may be asked any more."""
        retry = self._config.retry
        tried: list[Server] = []
        failure: Failure | None = None
        while len(tried) < retry.tries and (failure is None or self._may_ask_again(failure)):
            choice = self._shared.balancer.choose(self.request, self._hop.peer, exclude=tried)
            if choice is None and tried:
                choice = self._shared.balancer.choose(self.request, self._hop.peer, exclude=())
            if choice is None:
                return failure_of(self._config, "no-server", "no server can take this request now")
            self._choice = choice
            self.server = choice.server.label
            tried.append(choice.server)
            self._attempts_left = retry.tries - len(tried)
            choice.server.active += 1
            try:
                outcome = await self._ask_server(choice.server)
            finally:
                choice.server.active -= 1
            if not isinstance(outcome, Failure):
                return outcome
            failure = outcome
            self._body.rewind()
        return failure

    def _may_ask_again(self, failure: Failure) -> bool:
        """Whether another attempt may follow this one."""
        retry = self._config.retry
        kind = failure.kind.partition("-")[0]
        if kind not in retry.on or (self._sink is not None and self._sink.has_begun):
            return False
        if trio.current_time() - self._began > retry.timeout:
            return False
        return failure.kind.startswith("connect") or self._may_be_repeated

    @property
    def _may_be_repeated(self) -> bool:
        """Whether the server may get the request twice (RFC 9110 9.2.2), and the proxy can send it twice."""
        is_harmless = self.request.method.decode() in self._config.retry.methods or self._config.retry.non_idempotent
        return is_harmless and self._body.can_be_sent_again

    async def _ask_server(self, server: Server) -> Established | Failure | None:
        """Asks one server, on a connection that waits for it where there is one."""
        upstream = self._shared.pool.take(server)
        if upstream is not None:
            outcome = await self._attempt(upstream)
            # It was closed while the request was on its way (RFC 9112 9.5): that says nothing of the server.
            is_stale = isinstance(outcome, Failure) and outcome.kind == "empty" and self._may_be_repeated
            if not is_stale:
                return outcome
            self._body.rewind()
        try:
            upstream = await self._shared.pool.open(server)
        except ConnectFailed as failed:
            return failure_of(self._config, "connect-timeout" if failed.has_timed_out else "connect", str(failed))
        return await self._attempt(upstream)

    async def _attempt(self, upstream: Upstream) -> Established | Failure | None:
        """Sends the request on a connection, and takes the answer."""
        self._failure = None
        self._is_sent = False
        self._sent_at = math.inf
        watch = Watch(self._shared.timers)
        watch.obey(*self._rules_before_the_head())
        outcome: Established | bool = False
        try:
            with watch.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_up, upstream, watch)
                    outcome = await self._take_down(upstream, watch)
                    nursery.cancel_scope.cancel()
            failure = self._ran_out(watch.expired) if watch.expired else self._failed()
            if isinstance(outcome, Established) and failure is None:
                return outcome
        except BaseException:
            upstream.end(with_reset=self._config.upstream.abort == "rst")
            raise
        finally:
            watch.end()
        upstream.served += 1
        if outcome is True and failure is None:
            self._shared.pool.give_back(upstream)
        else:
            upstream.end(with_reset=failure is not None and self._config.upstream.abort == "rst")
        return failure

    def _failed(self) -> Failure | None:
        return self._failure

    def _rules_before_the_head(self) -> tuple[Rule, ...]:
        config = self._config.upstream
        return (
            Rule("timeout", config.response_header_timeout, by_client=True),
            Rule("response-timeout", config.response_timeout),
            Rule("response-timeout", config.max_stream_duration),
        )

    def _rules_behind_the_head(self, since: float) -> tuple[Rule, ...]:
        config = self._config.upstream
        return (
            Rule("read-timeout", config.read_timeout, by_upstream=True),
            Rule("stream-idle", config.stream_idle_timeout, by_upstream=True, by_client=True),
            Rule("response-timeout", config.response_timeout, since=since),
            Rule("stream-duration", config.max_stream_duration, since=since),
        )

    def _ran_out(self, name: str) -> Failure:
        if name in ("timeout", "response-timeout"):
            return failure_of(self._config, name, f"{self.server} did not answer in time")
        return Failure(name, 0, f"cut off: {name}")

    def _fail(self, failure: Failure, watch: Watch) -> None:
        """Ends the attempt for the first reason that there is."""
        if self._failure is None:
            self._failure = failure
            watch.scope.cancel()

    # Up

    async def _send_up(self, upstream: Upstream, watch: Watch) -> None:
        """Sends the request, and from then on watches whether the client leaves."""
        # Where it takes no more, its answer may be there all the same: a server may refuse a request before it has come
        # (RFC 9112 9.3).
        with suppress(ConnectionLost):
            self._is_sent = await self._send_request(upstream, watch)
        if self._is_sent:
            self._sent_at = trio.current_time()
        if self._failed() is None:
            await self._watch_client(watch)

    async def _send_request(self, upstream: Upstream, watch: Watch) -> bool:
        """Sends the request; returns whether all of it was sent.

        Raises:
            ConnectionLost: the server takes no more of it.
        """
        frames = self.request.is_chunked and self._body.buffered_length is None
        head = self._encoded_request(upstream.server)
        try:
            payload = self._body.take_now()
            await upstream.connection.send(head + (chunk(payload) if frames and payload else payload))
            while payload := await self._next_payload(watch):
                await upstream.connection.send(chunk(payload) if frames else payload)
                watch.touch(CLIENT)
        except (BadBody, TimeoutError) as error:
            self._fail(self._mistake(error), watch)
            return False
        if self._failed() is not None:
            return False
        if frames:
            await upstream.connection.send(LAST_CHUNK)
        watch.touch(CLIENT)
        return True

    async def _next_payload(self, watch: Watch) -> bytes:
        try:
            return await self._body.receive(watch)
        except ConnectionLost as lost:
            self._fail(Failure("client", 0, str(lost)), watch)
            return b""

    def _encoded_request(self, server: Server) -> bytes:
        request, config = self.request, self._config
        fields = self._shared.policy.for_server(request, self._hop, server.address)
        fields = self._shared.balancer.without_cookie(fields)
        if self._answers_continue(is_held=self._body.buffered_length is not None):
            fields = [field for field in fields if field[0].lower() != b"expect"]
        length = self._body.buffered_length if self._body.buffered_length is not None else request.length
        if length is not None:
            fields.append((b"Content-Length", b"%d" % length))
        elif request.is_chunked:
            fields.append((b"Transfer-Encoding", b"chunked"))
        if self._forwards_upgrade:
            fields += [(b"Connection", b"upgrade"), (b"Upgrade", b", ".join(request.all(b"upgrade")))]
        elif config.upstream.http_version == "1.0" or not config.upstream.keepalive:
            fields.append((b"Connection", b"close"))
        return encode_request(request.method, request.target, fields, config.upstream.http_version.encode())

    @property
    def _forwards_upgrade(self) -> bool:
        """Whether the server hears of the upgrade: a request with a body asks for it in vain (RFC 9110 7.8)."""
        allowed = self._config.tunnel.upgrade
        upgrades = self.request.upgrades
        return not self.request.has_body and bool(
            upgrades and (allowed == "any" or (allowed == "websocket" and upgrades == [b"websocket"]))
        )

    async def _watch_client(self, watch: Watch) -> None:
        """Reads ahead what the client sends, and notices when it leaves."""
        client, leaves = self._client, self._config.client.leaves
        try:
            while not client.has_left and len(client.data) < _MAX_READ_AHEAD:
                data = await client.connection.receive()
                if data:
                    client.data += data
                    continue
                client.has_left = True
                self.closes = True
                if leaves == "abort":
                    self._fail(Failure("client", 0, "left"), watch)
        except ConnectionLost as lost:
            client.has_left = True
            if leaves != "never":
                self._fail(Failure("client", 0, str(lost)), watch)

    # Down

    async def _take_down(self, upstream: Upstream, watch: Watch) -> Established | bool:
        """Takes the answer, and gives it to the client.

        Returns:
            The tunnel that the answer begins, if it does; else whether the connection to the server can be used again.
        """
        try:
            if self._forwards_upgrade and not self._config.tunnel.check_101:
                return Established(upstream, b"", self.request.upgrades[0])
            answer = await self._next_answer(upstream, watch)
            return answer if isinstance(answer, Established) else await self._give(answer, upstream, watch)
        except _Unusable as unusable:
            self._fail(failure_of(self._config, unusable.kind, unusable.detail), watch)
        except Cut as cut:
            self._fail(Failure("cut", 0, cut.detail), watch)
        except ConnectionLost as lost:
            self._fail(Failure("client", 0, str(lost)), watch)
        return False

    async def _next_answer(self, upstream: Upstream, watch: Watch) -> ResponseHead | Established:
        """The final head, after those that come before it."""
        config = self._config
        reader = HeadReader(HeadLimits.of_responses(config.limits), config.proxy.strict)
        parser = ResponseParser(self.request, config.proxy.strict)
        interim = 0
        while True:
            head = await self._next_head(upstream, watch, reader, parser)
            if head.status == 101:
                return self._established(upstream, head)
            if head.status >= 200 or config.response.informational == "as-final":
                return head
            interim += 1
            if interim > config.limits.informational or config.response.informational == "refuse":
                raise _Unusable("invalid", "an answer before the answer")
            watch.obey(*self._rules_before_the_head())
            is_ours = head.status == 100 and self._answers_continue(is_held=self._body.buffered_length is not None)
            if config.response.informational == "forward" and self.request.is_http_11 and not is_ours:
                fields = self._shared.policy.for_client(head)
                await self._client.connection.send(encode_response(head.status, head.reason, fields))

    async def _next_head(
        self, upstream: Upstream, watch: Watch, reader: HeadReader, parser: ResponseParser
    ) -> ResponseHead:
        try:
            while (head := reader.take(upstream.data)) is None:
                try:
                    data = await upstream.connection.receive()
                except ConnectionLost:
                    data = b""
                if not data:
                    kind = "invalid" if upstream.data else "empty"
                    raise _Unusable(kind, f"{upstream.server.label} closed the connection instead of an answer")
                watch.touch(UPSTREAM)
                upstream.data += data
            return parser.parse(head)
        except BadHead as bad:
            raise _Unusable("invalid", f"{upstream.server.label} answered with something else: {bad.detail}") from None

    def _established(self, upstream: Upstream, head: ResponseHead) -> Established:
        """The tunnel that a server has agreed to, if it was asked to (RFC 9110 7.8, 15.2.2)."""
        chosen = head.members(b"upgrade")
        asked = self.request.upgrades if self._forwards_upgrade else []
        if not chosen or not set(chosen) <= set(asked):
            raise _Unusable("upgrade", f"{upstream.server.label} switched to a protocol that nobody asked for")
        fields = [*self._shared.policy.for_client(head), *self._cookie]
        fields += [(b"Connection", b"upgrade"), (b"Upgrade", b", ".join(head.all(b"upgrade")))]
        self.status = 101
        return Established(upstream, encode_response(101, head.reason, fields), chosen[0])

    async def _give(self, head: ResponseHead, upstream: Upstream, watch: Watch) -> bool:
        """Gives the answer to the client; returns whether the connection to the server can be used again."""
        request, config = self.request, self._config
        if str(head.status) in config.retry.on and self._may_be_repeated and self._attempts_left:
            raise _Unusable(str(head.status), f"{upstream.server.label} answered {head.status}")
        since = min(self._sent_at, trio.current_time())
        watch.obey(*self._rules_behind_the_head(since))
        is_final = head.status >= 200
        has_body = head.has_body(request.method) or not is_final
        limits = config.limits
        reader: BodyReader = NoBody()
        if has_body:
            reader = OpenBody() if not is_final else _reader_of_answer(head, limits)
        length = None if head.is_chunked or head.status == 204 or not is_final else head.length
        fields = self._shared.policy.for_client(head) + self._cookie
        if head.status == 426:
            fields += [(b"Connection", b"upgrade"), (b"Upgrade", b", ".join(head.all(b"upgrade")))]
        passed = ResponseHead(head.status, head.reason, fields, head.version)
        source = ServerBody(upstream, passed, reader, is_chunked=head.is_chunked, length=length, watch=watch)
        self._sink = ClientBody(
            self._client.connection,
            passed,
            watch,
            knows_chunks=request.is_http_11,
            has_body=has_body,
            length=length,
            closing=self._closing,
            ignores_loss=config.client.leaves == "never",
        )
        self.status = head.status
        await relay_at_once(source, self._sink)
        self.closes = self.closes or self._sink.closes
        return (
            self._is_sent
            and not reader.ends_with_connection
            and head.keeps_alive
            and not upstream.data
            and config.upstream.http_version == "1.1"
        )

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
        self.why = failure.kind
        self.closes = self.closes or not self._body.is_complete
        connection = self._client.connection
        if failure.kind == "client":
            self.closes = True
            connection.close()
        elif self._sink is None or not self._sink.has_begun:
            self._closing()
            # A client that hears no to its upgrade may have gone on as if it were yes (RFC 6455 4.1 has it wait).
            self.closes = self.closes or (failure.kind == "refused" and bool(self.request.upgrades))
            self.status = failure.status
            is_head = self.request.method == b"HEAD"
            await connection.send(answer_of(self._config, failure, is_head=is_head, closes=self.closes))
        else:
            self.closes = True
            on_cut = self._config.response.on_cut
            if on_cut == "rst":
                connection.reset()
            elif on_cut == "clean" and not connection.has_tail:
                await self._sink.finish([])


def _reader_of_answer(head: ResponseHead, limits: LimitsSection) -> BodyReader:
    try:
        return reader_of(
            head,
            is_request=False,
            max_extensions=limits.chunk_extensions,
            max_trailers=limits.response_header_total,
        )
    except BadHead as bad:
        raise _Unusable("invalid", bad.detail) from None
