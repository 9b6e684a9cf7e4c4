"""Server-Sent Events: a response that never ends (HTML 9.2)."""

import trio

from tricast.access.identity import ANYBODY, Identity
from tricast.connection import Connection
from tricast.errors import ConnectionLost
from tricast.event import TopicSet
from tricast.runtime import Runtime
from tricast.sent import Sent
from tricast.transports.stream import Farewell, Start, Stream
from tricast.wire import sse
from tricast.wire.http1 import LAST_CHUNK, chunk


class EventStream(Stream):
    """One SSE subscriber, from behind the response head on.

    Args:
        connection: its connection.
        runtime: what all connections share.
        topics: what it follows.
        start: from where on.
        envelope: whether ``data:`` is the whole event as JSON.
        is_chunked: whether the body is in chunks; otherwise the connection's end is the body's.
        identity: who asks for it.
    """

    __slots__ = ("_is_chunked", "_last_sent", "_lease", "_start", "_topics")
    transport = "sse"

    def __init__(
        self,
        connection: Connection,
        runtime: Runtime,
        topics: TopicSet,
        start: Start,
        *,
        envelope: bool,
        is_chunked: bool,
        identity: Identity = ANYBODY,
    ) -> None:
        super().__init__(connection, runtime, (sse.CHUNKED if is_chunked else sse.UNFRAMED)[envelope], identity)
        self._topics = topics
        self._start = start
        self._is_chunked = is_chunked
        self._last_sent = trio.current_time()
        #: Under which name it can be renewed, by the account that opened it.
        self._lease = "" if identity.expires_at is None else runtime.leases.new_name()

    def opening(self) -> bytes:
        """The first bytes of the body."""
        retry = self.runtime.jitter(self.runtime.config.sse.retry)
        opening = sse.opening(retry_ms=round(retry * 1000), position=self._start.position)
        if self._lease and self.identity.expires_at is not None:
            opening += sse.lease(self._lease, self.identity.expires_at)
        return self._framed(opening)

    async def serve(self) -> None:
        """See ``Stream.serve``: events are pushed; here is only watched for the client to leave."""
        self.follow(self._topics, self._start)
        del self._topics, self._start  # the feed has them, shared
        if self._lease:
            self.runtime.leases.add(self._lease, self)
        try:
            while await self.connection.receive():
                pass  # an event stream's client has nothing to say
        finally:
            self.runtime.leases.discard(self._lease)
        raise ConnectionLost("left", reason="left")

    def push(self, block: bytes) -> Sent:
        """See ``Subscriber.push``."""
        self._last_sent = self.runtime.wheel.now
        return self.connection.send_now(block)

    def keep_alive(self, now: float) -> float:
        """Sends a comment after a silence, so that proxies and the client see a living stream."""
        keepalive = self.runtime.config.sse.keepalive
        if self._last_sent + keepalive <= now:
            self.send_aside(self._framed(sse.KEEPALIVE))
            self._last_sent = now
        return self._last_sent + keepalive

    def say_goodbye(self, farewell: Farewell) -> None:
        """Ends the body as HTTP ends one, so that nobody takes it for a failure."""
        seconds = farewell.retry_after
        retry_ms = None if seconds is None else round(seconds * 1000)
        goodbye = self._framed(sse.farewell(farewell.reason, retry_ms=retry_ms))
        self.connection.send_now(goodbye + LAST_CHUNK if self._is_chunked else goodbye)
        self.runtime.wheel.discard(self)  # no comment behind the end
        self.nursery.start_soon(self._end)  # the room that there was a moment ago may not have been enough

    async def _end(self) -> None:
        await self.connection.finish()
        self.nursery.cancel_scope.cancel()

    def _framed(self, text: bytes) -> bytes:
        return chunk(text) if self._is_chunked else text
