"""Long polling: one answer for one request, as soon as there is something to say, or nothing after a while."""

from collections.abc import Awaitable, Callable

import trio

from tricast.event import EventId, TopicSet
from tricast.hub import Subscriber
from tricast.runtime import Runtime
from tricast.sent import Sent
from tricast.transports.stream import Start
from tricast.wire import long_poll as wire
from tricast.wire.http1 import Response, retry_after


class LongPoll(Subscriber):
    """One waiting request.

    Args:
        runtime: what all connections share.
        topics: what it waits for.
        start: from where on.
    """

    __slots__ = ("_body", "_error", "_retry_after", "_runtime", "_scope", "_start", "_topics")

    def __init__(self, runtime: Runtime, topics: TopicSet, start: Start) -> None:
        super().__init__(wire.FORM, start.position)
        self._runtime = runtime
        self._topics = topics
        self._start = start
        self._scope = trio.CancelScope()
        self._body: bytes | None = None
        self._error: Exception | None = None
        self._retry_after: float | None = None
        runtime.counters.streams["poll"] += 1

    async def answer(self, until_peer_leaves: Callable[[], Awaitable[None]]) -> Response:
        """Waits for events and returns the answer: 200 with them, or 204.

        Args:
            until_peer_leaves: raises ConnectionLost when the client is gone; else waits for ever.
        """
        hub = self._runtime.hub
        hub.join(self, self._topics)
        try:
            if await self._read_kept():
                return self._ok()
            self._scope.deadline = trio.current_time() + self._runtime.config.poll.timeout
            with self._scope:
                await until_peer_leaves()
            if self._error is not None:
                raise self._error
            if self._body is None:
                self.position = hub.settled(self)
                return self._nothing()
            return self._ok()
        finally:
            hub.leave(self)

    async def _read_kept(self) -> bool:
        """Takes what the log has; returns whether that is an answer. If not, this is live."""
        hub = self._runtime.hub
        must_read = self._start.is_given
        while must_read or not hub.try_go_live(self):
            must_read = False
            found = await hub.read(self, max_bytes=self._runtime.config.poll.max_bytes)
            hub.advance(self, found)
            if found.events or found.gap is not None:
                self._body = wire.FORM.block(found.events, found.gap)
                # The body's last_id, and not the end of the log: both must be the same for the next request.
                self.position = wire.last_id(found.events, found.gap)
                return True
            await trio.lowlevel.checkpoint()
        return False

    def push(self, block: bytes) -> Sent:
        """See ``Subscriber.push``: takes one block and is done."""
        self._body = block
        # One is enough: what comes next is for the next request.
        self._runtime.hub.leave(self)
        self._scope.cancel()
        return Sent.ALL

    def fell_behind(self) -> None:
        """See ``Subscriber.fell_behind``: what was missed is in the log, for the next poll."""
        self._scope.cancel()

    def fail(self, error: Exception) -> None:
        """See ``Subscriber.fail``."""
        self._error = error
        self._scope.cancel()

    def drain(self, retry_after: float) -> None:
        """See ``Drainable.drain``: an empty answer, with the time to come back."""
        self._retry_after = retry_after
        self._scope.cancel()

    def _ok(self) -> Response:
        assert self._body is not None
        return Response(200, ((b"content-type", wire.CONTENT_TYPE), *self.position_headers(self.position)), self._body)

    def _nothing(self) -> Response:
        come_back = () if self._retry_after is None else (retry_after(self._retry_after),)
        return Response(204, (*self.position_headers(self.position), *come_back))

    @staticmethod
    def position_headers(position: EventId) -> tuple[tuple[bytes, bytes], ...]:
        """What tells the client from where its next request has to go on."""
        return ((b"last-event-id", str(position).encode()), (b"cache-control", b"no-store"))
