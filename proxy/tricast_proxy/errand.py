"""What has to be done for a request, whichever server does it, on whatever connection."""

from collections.abc import Callable
from typing import NamedTuple

from tricast.wire.bodies import BadBody, BodyReader, NoBody, OpenBody
from tricast.wire.heads import BadHead
from tricast_proxy.answers import Failure, failure_of, refusal
from tricast_proxy.bodies import reader_of
from tricast_proxy.config import ProxyConfig, UpstreamSection
from tricast_proxy.faults import Injected
from tricast_proxy.fields import Hop
from tricast_proxy.heads import Fields, RequestHead, ResponseHead, encode_request
from tricast_proxy.relay import Cut
from tricast_proxy.request_body import ClientSide, RequestBody
from tricast_proxy.servers import Server
from tricast_proxy.shared import Shared
from tricast_proxy.timers import Rule
from tricast_proxy.upstream import Upstream


class Unusable(Exception):
    """What a server said, or that it said nothing, cannot become an answer.

    Attributes:
        kind: see ``Failure.kind``.
        detail: why.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


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


class Errand(NamedTuple):
    """What is to be done, whoever does it.

    Attributes:
        shared: what all exchanges share.
        client: who asks.
        request: what for.
        body: what goes with it.
        hop: the client's side, for the fields that tell of it.
        closing: says whether the client's connection ends after the answer, as of now.
        injected: what goes wrong on purpose.
    """

    shared: Shared
    client: ClientSide
    request: RequestHead
    body: RequestBody
    hop: Hop
    closing: Callable[[], bool]
    injected: Injected

    @property
    def forwards_upgrade(self) -> bool:
        """Whether the server hears of the upgrade: a request with a body asks for it in vain (RFC 9110 7.8)."""
        allowed = self.shared.config.tunnel.upgrade
        upgrades = self.request.upgrades
        is_lost = bool(self.injected.dropped_from_request & {b"connection", b"upgrade"})
        return not (self.request.has_body or is_lost) and bool(
            upgrades and (allowed == "any" or (allowed == "websocket" and upgrades == [b"websocket"]))
        )

    def answers_continue(self, *, is_held: bool) -> bool:
        """Whether it is for the proxy to say that the body may come (RFC 9110 10.1.1)."""
        config = self.shared.config
        is_ours = is_held or config.request.expect == "answer" or config.upstream.http_version == "1.0"
        return is_ours and self.request.is_http_11 and bool(self.request.members(b"expect"))

    def encoded_request(self, server: Server) -> bytes:
        """The head of the request as a server gets it."""
        request, shared = self.request, self.shared
        config = shared.config
        fields = shared.policy.for_server(request, self.hop, server.address)
        fields = self.injected.request_fields(shared.balancer.without_cookie(fields))
        buffered = self.body.buffered_length
        # RFC 9110 10.1.1: in HTTP/1.0 it says nothing.
        if self.answers_continue(is_held=buffered is not None) or not request.is_http_11:
            fields = [field for field in fields if field[0].lower() != b"expect"]
        length = buffered if buffered is not None else request.length
        if length is not None:
            fields.append((b"Content-Length", b"%d" % length))
        elif request.is_chunked:
            fields.append((b"Transfer-Encoding", b"chunked"))
        if self.forwards_upgrade:
            fields += [(b"Connection", b"upgrade"), (b"Upgrade", b", ".join(request.all(b"upgrade")))]
        elif config.upstream.http_version == "1.0" or not config.upstream.keepalive:
            fields.append((b"Connection", b"close"))
        return encode_request(request.method, request.target, fields, config.upstream.http_version.encode())

    def trailers_of(self, head: ResponseHead, trailers: Fields) -> Fields:
        """What goes on to the client of the fields behind the body.

        Raises:
            Cut: there are some, and the configuration has none of them.
        """
        mode = self.shared.config.response.trailers
        if mode == "refuse" and trailers:
            raise Cut("fields stand behind the answer's body")
        return self.shared.policy.trailers_for_client(head, trailers) if mode == "forward" else []

    def reader_of(self, head: ResponseHead) -> BodyReader:
        """What reads the body of an answer, if there can be one (RFC 9112 6.3).

        Raises:
            Unusable: there is no telling where it ends.
        """
        if head.status < 200:
            return OpenBody()  # an interim answer that is taken for the final one
        if not head.has_body(self.request.method):
            return NoBody()
        limits = self.shared.config.limits
        try:
            return reader_of(
                head,
                is_request=False,
                max_extensions=limits.chunk_extensions,
                max_trailers=limits.response_header_total,
            )
        except BadHead as bad:
            raise Unusable("invalid", bad.detail) from None


def mistake_of(config: ProxyConfig, error: BadBody | TimeoutError) -> Failure:
    """What a client is told of its request's body."""
    if isinstance(error, TimeoutError):
        kind = "client" if config.client.header_timeout_reply == "close" else "refused"
        return Failure(kind, 408, "the body did not come in time", "http_request_error")
    if error.is_too_large:
        return failure_of(config, "body", error.detail)
    return refusal(400, error.detail)


def upgrade_fields(head: ResponseHead) -> Fields:
    """``Upgrade`` is for this connection alone, so it is taken off and put on again (RFC 9110 7.8)."""
    upgrades = head.all(b"upgrade")
    return [(b"Connection", b"upgrade"), (b"Upgrade", b", ".join(upgrades))] if upgrades else []


class Clock(NamedTuple):
    """When what the timers count from happened; infinity for what has not.

    Attributes:
        began: the attempt.
        sent: the last byte of the request.
    """

    began: float
    sent: float


def rules_before_the_head(config: UpstreamSection, clock: Clock) -> tuple[Rule, ...]:
    """The timers until the head of the answer is there; interim answers put off the first two of them."""
    return (
        Rule("timeout", config.response_header_timeout, by_client=True),
        *_rules_of_the_whole(config, clock),
    )


def rules_behind_the_head(config: UpstreamSection, clock: Clock) -> tuple[Rule, ...]:
    """The timers from then on."""
    return (
        Rule("read-timeout", config.read_timeout, by_upstream=True, when_awaited=True),
        *_rules_of_the_whole(config, clock),
    )


def _rules_of_the_whole(config: UpstreamSection, clock: Clock) -> tuple[Rule, ...]:
    return (
        Rule("stream-idle", config.stream_idle_timeout, by_upstream=True, by_client=True),
        Rule("response-timeout", config.response_timeout, since=clock.sent),
        Rule("stream-duration", config.max_stream_duration, since=clock.began),
    )
