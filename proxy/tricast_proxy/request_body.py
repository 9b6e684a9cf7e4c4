"""The body of a request: as it comes from the client, or from where it was kept so that it can be sent again."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Protocol, TypeVar

import trio

from tricast.errors import ConnectionLost
from tricast.wire.bodies import BadBody, BodyReader
from tricast_proxy.config import Leaves, ProxyConfig
from tricast_proxy.faults import Duplex
from tricast_proxy.timers import CLIENT, Watch

#: What of a request's body is kept in memory where it is buffered; the rest is on disk.
_MAX_IN_MEMORY = 2**20
Item = TypeVar("Item")
_PIECE = 64 * 2**10
#: Pipelined bytes that are read while an answer is waited for; behind them, a client that leaves is seen late.
_MAX_READ_AHEAD = 64 * 2**10


class NotKept(Exception):
    """A body that is to be sent as a whole cannot be kept: it is the machine's fault, and nobody else's."""


class ClientSide(Protocol):
    """The client of an exchange.

    Attributes:
        connection: its connection.
        data: what it sent that nobody has taken yet.
        has_left: whether it will send no more.
    """

    connection: Duplex
    data: bytearray
    has_left: bool


async def read_ahead(client: ClientSide, leaves: Leaves) -> str:
    """Reads what a client sends behind its request, and so notices when it leaves. Cancelling loses nothing.

    Args:
        client: the client.
        leaves: see ``client.leaves``.

    Returns:
        Why nobody is to be answered any more; empty where the answer is to be given all the same.
    """
    try:
        while not client.has_left and len(client.data) < _MAX_READ_AHEAD:
            data = await client.connection.receive()
            client.data += data
            client.has_left = not data
    except ConnectionLost as lost:
        client.has_left = True
        return str(lost) if leaves == "abort" else ""
    return "left" if client.has_left and leaves == "abort" else ""


class RequestBody:
    """The body of a request, as it comes from the client or from where it was buffered.

    Args:
        client: where it comes from.
        reader: takes it off what comes in.
        config: how long it may pause, and be.
        deadline: when all of it must have come.
    """

    def __init__(self, client: ClientSide, reader: BodyReader, config: ProxyConfig, deadline: float) -> None:
        self._client = client
        self._reader = reader
        self._config = config
        self._deadline = deadline
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
            with trio.move_on_at(min(trio.current_time() + self._config.client.body_timeout, self._deadline)) as scope:
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
            NotKept: the temporary file cannot be written.
            TimeoutError: see ``receive``.
        """
        file = tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY)  # noqa: SIM115 - closed with the exchange
        try:
            while payload := await self.receive(watch):
                _do(file.write, payload)
            _do(file.seek, 0)  # which writes what was not yet
        except BaseException:
            with suppress(OSError):  # what is still to be written cannot be either
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


def _do(write: Callable[[Item], object], item: Item) -> None:
    try:
        write(item)
    except OSError as error:
        raise NotKept(f"the body cannot be kept: {error.strerror}") from None
