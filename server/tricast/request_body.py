"""The body of one request: as it comes, in time, and no more of it than may be."""

import trio

from tricast.config import LimitsSection
from tricast.connection import Connection
from tricast.errors import LimitExceeded, RemoteProtocolError, TooSlow
from tricast.wire.bodies import BadBody, BodyReader, ChunkedBody, LengthBody, NoBody
from tricast.wire.heads import Framing
from tricast.wire.http1 import CONTINUE

_CHUNKS_PER_TURN = 256
#: Most requests have no body; one reader is enough for all of them, as there is nothing that it could keep.
_NOTHING = NoBody()


class RequestBody:
    """The body of a request on its connection.

    Args:
        framing: what its head says of it.
        connection: where it comes from.
        data: what has come in already that nobody has taken; what belongs to the body is taken off it.
        limits: how long it may take.
        expects: whether the client waits to be asked for it.
    """

    __slots__ = ("_connection", "_data", "_deadline", "_expects", "_length", "_limits", "_reader")

    def __init__(
        self,
        framing: Framing,
        connection: Connection,
        data: bytearray,
        limits: LimitsSection,
        *,
        expects: bool = False,
    ) -> None:
        self._connection = connection
        self._data = data
        self._limits = limits
        self._length = framing.length
        self._reader = _reader_of(framing, limits)
        self._expects = expects and not data  # who has begun to send already waits for nothing (RFC 9110 10.1.1)
        self._deadline: float | None = None  # since it is waited for

    @property
    def is_complete(self) -> bool:
        """Whether all of it was taken, so that what is behind it belongs to another request."""
        return self._reader.is_complete

    def behind(self) -> bytes:
        """What the client has sent behind it."""
        return bytes(self._data)

    async def read_piece(self) -> bytes:
        """The next bytes of it as they come, empty at its end. Asks for a body that is held back.

        Raises:
            RemoteProtocolError: it did not come in time, or its framing is wrong.
            ConnectionLost: the client is gone.
        """
        while not (piece := self._take()) and not self._reader.is_complete:
            await self._receive()
        return piece

    async def read(self, limit: str, max_bytes: int) -> bytes:
        """All of it.

        Args:
            limit: the configuration key of ``max_bytes``, for the message.
            max_bytes: how long it may be.

        Raises:
            LimitExceeded: it is longer, by its own word or in fact.
            RemoteProtocolError: it did not come in time, or its framing is wrong.
            ConnectionLost: the client is gone.
        """
        if self._length is not None and self._length > max_bytes:
            raise LimitExceeded(limit, max_bytes, self._length, closes=True)
        piece = await self.read_piece()
        if self._reader.is_complete and len(piece) <= max_bytes:
            return piece  # it came with the head, as a short one does
        body = bytearray(piece)
        while len(body) <= max_bytes:
            if self._reader.is_complete:
                return bytes(body)
            await trio.lowlevel.checkpoint()
            body += await self.read_piece()
        raise LimitExceeded(limit, max_bytes, closes=True)

    def _take(self) -> bytes:
        try:
            return self._reader.take(self._data)
        except BadBody as bad:
            raise RemoteProtocolError(bad.detail, code="bad-http", closes=True) from None

    async def _receive(self) -> None:
        limits = self._limits
        if self._deadline is None:
            self._deadline = trio.current_time() + limits.body_timeout
        if self._expects:
            self._expects = False
            await self._connection.send(CONTINUE)
        with trio.move_on_at(self._deadline) as scope:
            data = await self._connection.receive()
        if scope.cancelled_caught:
            await self._connection.let_go()
            raise TooSlow("limits.body_timeout", "the body", limits.body_timeout, limits.receive_rate)
        if not data:
            raise RemoteProtocolError("the connection ended in the middle of the body", code="bad-http", closes=True)
        self._data += data
        self._deadline += len(data) / limits.receive_rate


def _reader_of(framing: Framing, limits: LimitsSection) -> BodyReader:
    """What takes a body off what comes in (RFC 9112 6.3)."""
    if framing.is_chunked:
        # What comes beside the payload may be as large as a head.
        most = limits.head_size
        return ChunkedBody(max_extensions=most, max_trailers=most, chunks_per_take=_CHUNKS_PER_TURN)
    return LengthBody(framing.length) if framing.length else _NOTHING
