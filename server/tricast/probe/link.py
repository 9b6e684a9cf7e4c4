"""One connection as a probe wants it: every byte with its time, and how it ended.

The edge where errors of streams enter. Knows nothing of what is said on it.
"""

from enum import StrEnum
from typing import NamedTuple

import trio

from tricast.client.endpoint import dial
from tricast.client.failures import ClientError, Lost
from tricast.probe.target import Target

__all__ = ["ClientError", "Cut", "End", "Ending", "Link", "Lost", "open_link"]

_RECEIVE_BYTES = 64 * 2**10


class End(StrEnum):
    """How something ended, as it looked from here."""

    COMPLETE = "complete"  # as its framing has it: the last chunk, or all of the length
    CLOSE = "close"  # a WebSocket close frame
    FIN = "fin"  # the connection's end, with nothing said before
    RST = "rst"
    GARBLED = "garbled"  # what came is neither HTTP nor WebSocket
    STATUS = "status"  # another status than the one that was asked for


class Ending(NamedTuple):
    """An end with its time.

    Attributes:
        how: what it looked like.
        at: ``trio.current_time()`` of it.
        code: the close code, 1005 for none, or the status.
        why: what was wrong, where something was garbled.
    """

    how: End
    at: float
    code: int | None = None
    why: str = ""


class Cut(Exception):
    """What was waited for does not come any more.

    Attributes:
        ending: how it ended.
    """

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"{ending.how} {ending.why}".strip())
        self.ending = ending


class Link:
    """Bytes both ways.

    Args:
        stream: connected; closed by whoever opened it.

    Attributes:
        stream: the same.
        opened: when it was there. All times are of ``trio.current_time()``.
        sent_bytes: how much was sent.
        received_bytes: how much came.
        last_sent: when something was sent last.
        last_received: when something came last.
        longest_silence: seconds of silence that something ended, at most.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.opened = trio.current_time()
        self.sent_bytes = 0
        self.received_bytes = 0
        self.last_sent = self.opened
        self.last_received = self.opened
        self.longest_silence = 0.0

    async def send(self, data: bytes) -> None:
        """Sends bytes as they are. Cancelling leaves a part unsent.

        Raises:
            Cut: the connection is gone.
        """
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, OSError):
            raise Cut(Ending(End.RST, trio.current_time())) from None
        now = trio.current_time()
        self._end_silence(now)
        self.sent_bytes += len(data)
        self.last_sent = now

    async def receive(self) -> bytes:
        """Waits for bytes as they come. Cancelling loses none.

        Raises:
            Cut: there are no more.
        """
        try:
            data = bytes(await self.stream.receive_some(_RECEIVE_BYTES))
        except (trio.BrokenResourceError, OSError):
            raise Cut(Ending(End.RST, trio.current_time())) from None
        now = trio.current_time()
        if not data:
            raise Cut(Ending(End.FIN, now))
        self._end_silence(now)
        self.received_bytes += len(data)
        self.last_received = now
        return data

    def _end_silence(self, now: float) -> None:
        self.longest_silence = max(self.longest_silence, now - max(self.last_sent, self.last_received))

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket under it, for its options."""
        stream = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        assert isinstance(stream, trio.SocketStream)
        return stream.socket


async def open_link(target: Target) -> Link:
    """A new connection to the target; whoever asked for it closes it. Cancelling leaves nothing open.

    Raises:
        Lost: it cannot be made now.
        ClientError: it can never be made.
    """
    return Link(await dial(target.endpoint, target.settings))
