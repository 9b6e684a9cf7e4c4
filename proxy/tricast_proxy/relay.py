"""How the body of an answer gets from a server to a client: where it comes from, where it goes, and how in between.

A policy is a coroutine that takes from a source and gives to a sink. This module has the plainest one; what buffers,
corks, compresses or shares has modules of its own, made of the same two things.
"""

from collections.abc import Callable
from typing import Protocol

from tricast_proxy.heads import Fields, ResponseHead


class Cut(Exception):
    """The body ended before its end: the server broke off, or said something that cannot be.

    Attributes:
        detail: why.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Source(Protocol):
    """The body of an answer, as it comes from the server.

    Attributes:
        head: the answer's head, as the client will get it but for its framing.
        length: the body's length by ``Content-Length``, or None.
        is_chunked: whether the server sends chunks; with neither, the end of the connection ends the body.
        trailers: the fields behind the body, once it has ended.
    """

    head: ResponseHead
    length: int | None
    is_chunked: bool

    @property
    def trailers(self) -> Fields:
        """See above.

        Raises:
            Cut: there are some, and there must be none.
        """
        ...

    async def receive(self) -> bytes:
        """The next bytes of the body as soon as there are any; empty at its end, and from then on.

        Cancelling loses none.

        Raises:
            Cut: it breaks off here.
        """
        ...

    def receive_now(self) -> bytes | None:
        """As ``receive``, without waiting; None when nothing is there yet.

        Raises:
            Cut: it breaks off here.
        """
        ...

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """Gives ``take`` what comes as it comes, for as long as that returns True; returns whether it did to the end.

        Cancelling loses none.

        Args:
            take: does not wait. What it raises ends this.

        Raises:
            Cut: it breaks off here.
        """
        ...


class Sink(Protocol):
    """The client, as a body sees it. It is framed by what the source's head says when it begins."""

    async def begin(self) -> None:
        """Sends the head now. Without it, the head goes out with the first bytes or with the end.

        Raises:
            ConnectionLost: the client is gone, or takes nothing.
        """
        ...

    async def send(self, payload: bytes) -> None:
        """Sends some of the body, and waits until there is room for more.

        Raises:
            ConnectionLost: the client is gone, or takes nothing.
        """
        ...

    def take(self, payload: bytes) -> bool:
        """As ``send``, without waiting; returns whether there is room for more. If not, ``drain`` comes next.

        Raises:
            ConnectionLost: the client is gone.
        """
        ...

    async def drain(self) -> None:
        """Waits until there is room for more.

        Raises:
            ConnectionLost: the client is gone, or takes nothing.
        """
        ...

    async def finish(self, trailers: Fields) -> None:
        """Ends the body as it should end.

        Raises:
            ConnectionLost: the client is gone, or takes nothing.
        """
        ...


async def pour_by_turns(source: Source, take: Callable[[bytes], bool]) -> bool:
    """``Source.pour``, for those whose bytes do not come straight from a socket."""
    while payload := await source.receive():
        if not take(payload):
            return False
    return True


async def relay_at_once(source: Source, sink: Sink) -> None:
    """Sends on whatever comes as it comes; while the client takes nothing, nothing is read from the server.

    Raises:
        Cut: the server broke off.
        ConnectionLost: the client is gone.
    """
    payload, cut = None, None
    try:
        # What came together goes on together: a call less, and the client is not woken for a head alone.
        payload = source.receive_now()
    except Cut as error:
        cut = error
    if payload is None:
        await sink.begin()
    if cut is not None:
        raise cut
    if payload != b"":
        if payload:
            await sink.send(payload)
        while not await source.pour(sink.take):
            await sink.drain()
    await sink.finish(source.trailers)
