"""Which answers are held back, for how long, and how: the relay policies of ``[response]``, and who gets which.

The choice is a table from configuration to coroutine, and a row of signals in messages that override it. Times and
sizes are those that were observed with the proxies whose profiles use them.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import trio

from tricast_proxy.config import OFF, ProxyConfig, ResponseSection
from tricast_proxy.derived import accepts_gzip, gzipped, in_steps, is_compressible, vary_by_encoding
from tricast_proxy.heads import Fields, Head, RequestHead, ResponseHead, encode_response
from tricast_proxy.relay import Cut, Sink, Source, relay_at_once
from tricast_proxy.spool import Spool

#: Takes the body from a source and gives it to a sink. Raises what they raise.
Relay = Callable[[Source, Sink], Awaitable[None]]
_X_ACCEL_BUFFERING = b"x-accel-buffering"
#: As much as a socket's cork holds: Linux sends full segments, and on loopback one is as large as this.
CORK_BYTES = 64 * 2**10


class IncrementalRefused(Exception):
    """The message is to be forwarded as it comes (RFC 10036), and the configuration has it held back.

    It is to be answered with status 501 and the error ``incremental_refused`` in ``Proxy-Status``.
    """


async def relay_nginx(source: Source, sink: Sink, *, config: ResponseSection) -> None:
    """Holds what has no visible end in buffers, and reads ahead of a slow client, as ``proxy_buffering on`` does.

    What comes in chunks goes on chunk by chunk; all else only when a buffer is full, of which the first holds the
    head as well, and at the end. The head waits for the body's first byte. So observed with nginx 1.22.1; there, too,
    what had come goes to the client when the server breaks off.

    Raises:
        Cut: the server broke off, or the spool cannot be used.
        ConnectionLost: the client is gone.
    """
    if not source.is_chunked:
        head_bytes = len(encode_response(source.head.status, source.head.reason, source.head.fields))
        source = in_steps(source, config.buffer_size, first=config.buffer_size - head_bytes)
    failure: Exception | None = None
    with Spool(config.buffers * config.buffer_size, config.spool) as spool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fill, source, spool)
            try:
                await _empty(spool, sink)
                await sink.finish(source.trailers)
            except Exception as error:  # noqa: BLE001 - raised again below, where no nursery makes a group of it
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _fill(source: Source, spool: Spool) -> None:
    try:
        while payload := await source.receive():
            await spool.put(payload)
    except Exception as error:  # noqa: BLE001 - raised again by who takes from the spool, when it is empty
        spool.end(error)
    else:
        spool.end()


async def _empty(spool: Spool, sink: Sink) -> None:
    is_begun = False
    cut: Cut | None = None
    try:
        while payload := await spool.take():
            is_begun = True
            await sink.send(payload)
    except Cut as error:
        cut = error
    if cut is not None:
        if not is_begun:
            await sink.begin()
        raise cut


async def relay_whole(source: Source, sink: Sink, *, config: ResponseSection) -> None:
    """Stores the whole answer, and then forwards it; nothing of one that breaks off reaches the client.

    Of an answer that is larger than what may be stored, the rest is relayed as it comes, as Caddy documents it for
    ``response_buffers``; the server then waits for the client.

    Raises:
        Cut: the server broke off, or the spool cannot be used. Where nothing was sent, another answer still can be.
        ConnectionLost: the client is gone.
    """
    with Spool(config.buffers * config.buffer_size, config.spool) as spool:
        while (payload := await source.receive()) and spool.has_room_for(len(payload)):
            await spool.put(payload)
        spool.end()
        while stored := await spool.take():
            await sink.send(stored)
    while payload:
        await sink.send(payload)
        payload = await source.receive()
    await sink.finish(source.trailers)


async def relay_held(source: Source, sink: Sink, *, limit: int, seconds: float) -> None:
    """Holds what comes until it is so much, or until the first of it is so old. The head counts as what comes first.

    So do a corked socket, and a proxy that flushes at intervals (the ``FlushInterval`` of Go's reverse proxy). The
    end is not held, and where the server breaks off, what is held goes out.

    Raises:
        Cut: the server broke off.
        ConnectionLost: the client is gone.
    """
    held = _Held(sink, limit, seconds)
    cut: Cut | None = None
    try:
        while (payload := await held.receive(source)) != b"":
            await held.add(payload or b"")
    except Cut as error:
        cut = error
    if cut is not None:
        await held.flush()
        raise cut
    await held.flush_body()
    await sink.finish(source.trailers)


class _Held:
    """What is held back, and until when."""

    def __init__(self, sink: Sink, limit: int, seconds: float) -> None:
        self._sink = sink
        self._limit = limit
        self._seconds = seconds
        self._body = bytearray()
        self._holds_head = True
        self._deadline = trio.current_time() + seconds

    async def receive(self, source: Source) -> bytes | None:
        """What comes next, or None when what is held has waited long enough."""
        with trio.move_on_at(self._deadline):
            return await source.receive()
        return None

    async def add(self, payload: bytes) -> None:
        if payload and not self._body and not self._holds_head:
            self._deadline = trio.current_time() + self._seconds
        self._body += payload
        if not payload or len(self._body) >= self._limit:
            await self.flush()

    async def flush(self) -> None:
        if self._holds_head and not self._body:
            await self._sink.begin()
        await self.flush_body()
        self._holds_head = False
        self._deadline = OFF

    async def flush_body(self) -> None:
        if self._body:
            payload = bytes(self._body)
            self._body.clear()
            await self._sink.send(payload)


#: How an answer is held; what is released goes on at once whatever else is configured.
Buffering = Literal["released", "off", "corked", "nginx", "full", "fixed"]


class Relaying(NamedTuple):
    """How one answer is to be relayed.

    Attributes:
        source: to take the body from, in place of the one that was given; its head is the one to send.
        relay: what does it.
    """

    source: Source
    relay: Relay

    async def to(self, sink: Sink) -> None:
        """Relays it.

        Raises:
            Cut: the server broke off; what had come before was sent, where the policy would send it.
            ConnectionLost: the client is gone.
        """
        await self.relay(self.source, sink)


def relay_for(request: RequestHead, source: Source, config: ResponseSection) -> Relaying:
    """Chooses how an answer with a body is relayed, and makes its head fit.

    Args:
        request: which it answers.
        source: its body; fields are added to its head and removed from it.
        config: what is configured.

    Raises:
        IncrementalRefused: the answer forbids what is configured. Nothing was sent.
    """
    buffering = _buffering(source, config)
    relay = _RELAYS[buffering](config)
    if config.gzip and is_compressible(request, source.head, config.gzip_types):
        vary_by_encoding(source.head)
        if accepts_gzip(request):
            # What nginx does not buffer it flushes, also when it compresses (observed with 1.22.1).
            source = gzipped(source, flushes=config.gzip_flush or buffering == "released")
    return Relaying(source, relay)


def buffers_request(request: RequestHead, config: ProxyConfig) -> bool:
    """Whether the body of a request is to be had whole before any of it is sent to a server.

    Raises:
        IncrementalRefused: the request forbids what is configured.
    """
    is_held = config.request.buffering == "full"
    return is_held and not _must_go_on(request, config.response, is_held=is_held)


def _buffering(source: Source, config: ResponseSection) -> Buffering:
    for signal in _SIGNALS:
        found = signal(source, config)
        if found is not None:
            return found
    # HAProxy 2.6.12 corks what says where it ends, until it does; what the end of the connection ends it does not.
    if config.buffering == "off" and config.cork > 0 and (source.is_chunked or source.length is not None):
        return "corked"
    return config.buffering


def _by_x_accel_buffering(source: Source, config: ResponseSection) -> Buffering | None:
    """The field by which a server tells nginx to buffer its answer or not; whoever obeys it also removes it."""
    if config.x_accel_buffering == "ignore":
        return None
    head = source.head
    value = (head.get(_X_ACCEL_BUFFERING) or b"").lower()
    head.fields = without_signals(head, config)
    if value == b"yes":
        return "nginx" if config.buffering == "off" else config.buffering
    return "released" if value == b"no" else None


def without_signals(head: ResponseHead, config: ResponseSection) -> Fields:
    """The fields of an answer without those that are for this proxy."""
    if config.x_accel_buffering == "ignore":
        return head.fields
    return [field for field in head.fields if field[0].lower() != _X_ACCEL_BUFFERING]


def _by_incremental(source: Source, config: ResponseSection) -> Buffering | None:
    return "released" if _must_go_on(source.head, config, is_held=config.buffering != "off") else None


def _must_go_on(head: Head, config: ResponseSection, *, is_held: bool) -> bool:
    """Whether the message says that it is to be forwarded as it comes (RFC 10036), and that is obeyed.

    Raises:
        IncrementalRefused: it says so, and is not.
    """
    if config.incremental == "ignore" or not _is_incremental(head):
        return False
    if config.incremental == "refuse" and is_held:
        raise IncrementalRefused
    return True


def _is_incremental(head: Head) -> bool:
    # A structured field of one Boolean item (RFC 9651 3.3); more than one member is none.
    values = head.all(b"incremental")
    return len(values) == 1 and values[0].partition(b";")[0].strip() == b"?1"


def _by_content_type(source: Source, config: ResponseSection) -> Buffering | None:
    """Proxies written in Go do not hold event streams, nor what has no length, unless they buffer whole answers."""
    is_stream = source.head.is_event_stream or source.length is None
    return "released" if config.event_stream == "unbuffered" and is_stream else None


#: The signals, of which the first that says something decides.
_SIGNALS: tuple[Callable[[Source, ResponseSection], Buffering | None], ...] = (
    _by_x_accel_buffering,
    _by_incremental,
    _by_content_type,
)
_RELAYS: Mapping[Buffering, Callable[[ResponseSection], Relay]] = {
    "released": lambda _: relay_at_once,
    "off": lambda _: relay_at_once,
    "corked": lambda config: partial(relay_held, limit=CORK_BYTES, seconds=config.cork),
    "nginx": lambda config: partial(relay_nginx, config=config),
    "full": lambda config: partial(relay_whole, config=config),
    "fixed": lambda config: partial(relay_held, limit=config.buffer_size, seconds=config.flush_interval),
}
