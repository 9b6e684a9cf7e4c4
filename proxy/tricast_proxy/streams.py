"""The two ends of an exchange as the body of an answer sees them: the server it comes from, the client it goes to."""

from collections.abc import Callable

from tricast.errors import ConnectionLost
from tricast.sent import ALL, NOTHING, Sent
from tricast.wire.bodies import BadBody, BodyReader
from tricast.wire.http1 import chunk
from tricast_proxy.bodies import encode_trailers
from tricast_proxy.faults import Duplex
from tricast_proxy.heads import Fields, ResponseHead, encode_response
from tricast_proxy.pump import Pump
from tricast_proxy.relay import Cut
from tricast_proxy.timers import CLIENT, UPSTREAM, Watch
from tricast_proxy.upstream import Upstream


class ServerBody:
    """The body of a server's answer: a ``Source``.

    Args:
        upstream: where it comes from.
        pump: takes it from there, where it goes on at once.
        head: of the answer, as the client will get it.
        reader: takes it off what comes in.
        is_chunked: whether it comes in chunks.
        length: by the server's word.
        watch: is told of what comes.
        passed: which of the fields behind it go on; raises ``Cut`` where there must be none.

    Attributes:
        watch: is told of what comes.
    """

    __slots__ = ("_passed", "_pump", "_reader", "_upstream", "head", "is_chunked", "length", "watch")

    def __init__(
        self,
        upstream: Upstream,
        pump: Pump,
        head: ResponseHead,
        reader: BodyReader,
        *,
        is_chunked: bool,
        length: int | None,
        watch: Watch,
        passed: Callable[[Fields], Fields],
    ) -> None:
        self._upstream = upstream
        self._pump = pump
        self._passed = passed
        self._reader = reader
        self.watch = watch
        self.head = head
        self.is_chunked = is_chunked
        self.length = length

    @property
    def trailers(self) -> Fields:
        """See ``Source.trailers``."""
        return self._passed(self._reader.trailers)

    @property
    def is_complete(self) -> bool:
        """Whether all of it has come."""
        return self._reader.is_complete

    async def receive(self) -> bytes:
        """See ``Source.receive``."""
        while not (payload := self._taken()) and not self._reader.is_complete:
            # Its time does not run while it was the client that was waited for. Nor does it begin anew: who holds an
            # answer back stops to wait now and then, to let go what is held.
            self.watch.await_server()
            try:
                self._received(await self._upstream.connection.receive())
            except ConnectionLost as lost:
                raise Cut(f"the server broke off: {lost}") from None
            finally:
                self.watch.stand_still()
        return payload

    def receive_now(self) -> bytes | None:
        """See ``Source.receive_now``."""
        if (payload := self._taken()) or self.is_complete:
            return payload
        try:
            data = self._upstream.connection.receive_now()
        except ConnectionLost as lost:
            raise Cut(f"the server broke off: {lost}") from None
        if data is None:
            return None
        self._received(data)
        payload = self._taken()
        return payload if payload or self.is_complete else None

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """See ``Source.pour``."""
        has_room = True

        def step() -> bool:
            nonlocal has_room
            if payload := self.receive_now():
                has_room = take(payload)
            return has_room and not self.is_complete

        if not self.is_complete:
            descriptor = self._upstream.connection.descriptor
            assert descriptor is not None, "connections to servers are not encrypted"
            self.watch.await_server()
            try:
                await self._pump.flow(descriptor, step)
            finally:
                self.watch.stand_still()
        return has_room and self.is_complete

    def _taken(self) -> bytes:
        if not self._upstream.data:
            return b""
        try:
            return self._reader.take(self._upstream.data)
        except BadBody as bad:
            raise Cut(f"the server's answer is broken: {bad.detail}") from None

    def _received(self, data: bytes) -> None:
        self.watch.touch(UPSTREAM)
        if data:
            self._upstream.data += data
        elif self._reader.ends_with_connection and not self._upstream.was_reset:
            self._reader.is_complete = True
        else:
            raise Cut("the server closed in the middle of its answer")


class ClientBody:
    """Where the body of an answer goes: a ``Sink``.

    Args:
        connection: the client's.
        head: of the answer; what framing it has is decided when it begins.
        watch: is told when the client takes something.
        knows_chunks: whether the body may be sent in chunks.
        is_framed: whether its end is to be seen at all; what is taken for a final answer and is none has no frame.
        has_body: whether the answer may have one at all.
        closes: says, when the head goes out, whether the connection ends after the answer.
        ignores_loss: whether the client may leave without anything being the worse for it.

    Attributes:
        has_begun: whether anything was sent.
        closes: whether the connection ends after the answer.
        count: bytes of the body that were sent.
    """

    __slots__ = (
        "_closing",
        "_connection",
        "_has_body",
        "_ignores_loss",
        "_is_chunked",
        "_is_deaf",
        "_is_framed",
        "_knows_chunks",
        "_unsent",
        "_watch",
        "closes",
        "count",
        "has_begun",
        "head",
        "length",
    )

    def __init__(
        self,
        connection: Duplex,
        head: ResponseHead,
        watch: Watch,
        *,
        knows_chunks: bool,
        is_framed: bool,
        has_body: bool,
        length: int | None,
        closing: Callable[[], bool],
        ignores_loss: bool,
    ) -> None:
        self._connection = connection
        self._watch = watch
        self._knows_chunks = knows_chunks
        self._is_framed = is_framed
        self._has_body = has_body
        self._closing = closing
        self._ignores_loss = ignores_loss
        self._is_chunked = False
        self._is_deaf = False
        self._unsent = b""
        self.head = head
        self.length = length
        self.has_begun = False
        self.closes = False
        self.count = 0

    @property
    def can_be_finished(self) -> bool:
        """Whether the body can be given an end that looks like its own, wherever it is."""
        return self._is_chunked

    def _first(self) -> bytes:
        """The head, with its framing."""
        fields = self.head.fields
        self.closes = self._closing()
        if self.length is not None:
            fields = [*fields, (b"Content-Length", b"%d" % self.length)]
        elif self._has_body and self._knows_chunks and self._is_framed:
            self._is_chunked = True
            fields = [*fields, (b"Transfer-Encoding", b"chunked")]
        elif self._has_body and self._is_framed:
            self.closes = True  # RFC 9112 6.3: nothing else could end it
        if self.closes:
            fields = [*fields, (b"Connection", b"close")]
        self.has_begun = True
        return encode_response(self.head.status, self.head.reason, fields)

    async def precede(self, data: bytes) -> None:
        """Sends what comes before the head, without beginning.

        Raises:
            ConnectionLost: the client is gone, or takes nothing.
        """
        if data:
            await self._send(data)

    async def begin(self) -> None:
        """See ``Sink.begin``."""
        if not self.has_begun:
            await self._send(self._first())

    async def send(self, payload: bytes) -> None:
        """See ``Sink.send``."""
        if payload and not self.take(payload):
            await self.drain()

    def take(self, payload: bytes) -> bool:
        """See ``Sink.take``."""
        first = b"" if self.has_begun else self._first()
        self.count += len(payload)
        return self._put(first + (chunk(payload) if self._is_chunked else payload))

    async def drain(self) -> None:
        """See ``Sink.drain``."""
        unsent, self._unsent = self._unsent, b""
        try:
            await (self._connection.send(unsent) if unsent else self._connection.drain())
        except ConnectionLost:
            if not self._ignores_loss:
                raise
            self._is_deaf = True
        self._watch.touch(CLIENT)

    async def finish(self, trailers: Fields) -> None:
        """See ``Sink.finish``."""
        data = b"" if self.has_begun else self._first()
        if self._is_chunked:
            data += encode_trailers(trailers)
        if data:
            await self._send(data)

    async def _send(self, data: bytes) -> None:
        if not self._put(data):
            await self.drain()

    def _put(self, data: bytes) -> bool:
        """Sends what can be sent at once; returns whether that was all."""
        if self._is_deaf:
            return True
        sent: Sent = NOTHING
        if self._connection.sends_at_once:
            try:
                sent = self._connection.send_now(data)
            except ConnectionLost:
                if not self._ignores_loss:
                    raise
                self._is_deaf = True
                return True
        if sent is ALL:
            self._watch.touch(CLIENT)
        elif sent is NOTHING:
            self._unsent = data
        return sent is ALL
