"""Long polling: one answer for one request, as soon as there is something to say, or nothing after a while."""

from typing import Protocol, Self

import trio

from tricast.access.identity import ANYBODY, Identity
from tricast.event import TopicSet
from tricast.hub import Subscriber
from tricast.runtime import Runtime
from tricast.sent import ALL, Sent
from tricast.transports.stream import Start
from tricast.wire import long_poll as wire
from tricast.wire.http1 import Headers, encode_headers, retry_after


class Answering(Protocol):
    """The connection of a waiting request, which sends the answer."""

    def answer_poll(self, status: int, end: bytes) -> None:
        """Sends the answer to the request that waits, without waiting itself.

        Args:
            status: 200 or 204.
            end: the headers that tell of the events, and the body.

        Raises:
            ConnectionLost: the client is gone.
        """
        ...

    def fail_poll(self, error: Exception) -> None:
        """Ends the connection with this error. Must not raise."""
        ...


class LongPoll(Subscriber):
    """One waiting request.

    It is answered by whoever has something for it (the flush, the sweep or a drain), in one send, and the connection's
    own task is not woken for it: that one waits for the client's next request meanwhile. What a poll cycle costs is so
    one wake-up and one parsed head.

    Args:
        runtime: what all connections share.
        start: from where on.
        headers: what its answer has beside the position and the body.
        identity: who is asking.

    Attributes:
        headers: the same, encoded.
        kept: the end of the answer, where the log had it already.
        patience: seconds it waits at most; no longer than its client has been let in for.
        answering: where the answer goes; to be set before anything else can happen to a poll that is live.
    """

    __slots__ = ("_runtime", "answering", "headers", "kept", "patience")

    def __init__(self, runtime: Runtime, start: Start, headers: Headers = (), identity: Identity = ANYBODY) -> None:
        super().__init__(wire.FORM, start.position)
        self.patience = min(runtime.config.poll.timeout, max(runtime.time_left(identity), 0.0))
        self._runtime = runtime
        self.headers = encode_headers(headers)
        self.kept: bytes | None = None
        self.answering: Answering

    @classmethod
    async def begin(
        cls,
        runtime: Runtime,
        topics: TopicSet,
        start: Start,
        headers: Headers = (),
        identity: Identity = ANYBODY,
        *,
        account: str,
    ) -> Self:
        """A poll that is live from then on, and has to be left; or one that found its answer in the log.

        Raises:
            LimitExceeded: there is no place left, for its account or with one of the topics.
            LogUnavailable: the log cannot be read now.
        """
        poll = cls(runtime, start, headers, identity)
        runtime.accounts.let_in(poll, account)
        try:
            runtime.hub.join(poll, topics)
            runtime.counters.streams["poll"] += 1
            await poll._read_kept(must_read=start.is_given)
        finally:
            if not poll.is_live:
                poll.leave()
        return poll

    def leave(self) -> None:
        """Gives back what it has: its places, and its position among the subscribers."""
        self._runtime.hub.leave(self)
        self._runtime.accounts.let_go(self)

    async def _read_kept(self, *, must_read: bool) -> None:
        hub = self._runtime.hub
        while must_read or not hub.try_go_live(self):
            must_read = False
            found = await hub.read(self, max_bytes=self._runtime.config.poll.max_bytes)
            hub.advance(self, found)
            if found.events or found.gap is not None:
                self.kept = wire.FORM.block(found.events, found.gap)
                return
            await trio.lowlevel.checkpoint()

    def push(self, block: bytes) -> Sent:
        """See ``Subscriber.push``: takes one block and is done; what comes next is for the next request."""
        self.answering.answer_poll(200, block)
        return ALL

    def fell_behind(self) -> None:
        """See ``Subscriber.fell_behind``: what was missed is in the log, for the next poll."""
        self.give_up()

    def fail(self, error: Exception) -> None:
        """See ``Subscriber.fail``."""
        self.answering.fail_poll(error)

    def give_up(self, come_back: float | None = None) -> None:
        """Answers that there is nothing, and with ``come_back``, in seconds, when to ask again.

        The task that calls it serves all others as well, so what it raises stays here.
        """
        headers = () if come_back is None else (retry_after(come_back),)
        try:
            self.answering.answer_poll(204, wire.nothing(self._runtime.hub.settled(self), headers))
        except Exception as error:  # noqa: BLE001
            self.fail(error)
