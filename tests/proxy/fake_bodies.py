"""Bodies without a network: a server that says what it says when it says it, and a client that notes what it gets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from tricast_proxy.heads import Fields, ResponseHead
from tricast_proxy.relay import Cut, pour_by_turns


def response_head(*fields: tuple[bytes, bytes], status: int = 200, content_type: bytes = b"text/plain") -> ResponseHead:
    """The head of an answer."""
    return ResponseHead(status, b"OK", [(b"Content-Type", content_type), *fields], b"1.1")


class FakeSource:
    """A server's body, of which each piece comes at its time, whoever reads and however late.

    Args:
        script: bytes that come, seconds that pass, or a cut; after the last item the body has ended.
        head: of the answer.
        length: as in ``Content-Length``.
        is_chunked: whether it comes in chunks.
        trailers: what follows it.

    Attributes:
        given: bytes that were taken.
    """

    def __init__(
        self,
        script: Sequence[bytes | float | Cut],
        *,
        head: ResponseHead | None = None,
        length: int | None = None,
        is_chunked: bool = True,
        trailers: Fields | None = None,
    ) -> None:
        self.head = head or response_head()
        self.length = length
        self.is_chunked = is_chunked
        self.trailers = trailers or []
        self.given = 0
        due = trio.current_time()
        self._items: list[tuple[float, bytes | Cut]] = []
        for item in script:
            if isinstance(item, float):
                due += item
            else:
                self._items.append((due, item))
        self._items.append((due, b""))
        self._next = 0

    async def receive(self) -> bytes:
        await trio.sleep_until(self._items[self._next][0])
        return self._take()

    def receive_now(self) -> bytes | None:
        return self._take() if self._items[self._next][0] <= trio.current_time() else None

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        return await pour_by_turns(self, take)

    def _take(self) -> bytes:
        item = self._items[self._next][1]
        if isinstance(item, Cut):
            raise item
        if item:
            self._next += 1
            self.given += len(item)
        return item


class EndlessSource(FakeSource):
    """So many bytes that come as fast as they are taken, and are made only then."""

    def __init__(self, size: int, *, is_chunked: bool = True, piece: bytes = bytes(64 * 2**10)) -> None:
        super().__init__([], is_chunked=is_chunked)
        self._size = size
        self._piece = piece

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.receive_now()

    def receive_now(self) -> bytes:
        payload = self._piece[: self._size - self.given]
        self.given += len(payload)
        return payload


class Got(NamedTuple):
    """Something that reached the client.

    Attributes:
        seconds: since the client asked.
        what: ``"head"``, some of the body, or ``"end"``.
    """

    seconds: float
    what: bytes | str


class FakeSink:
    """A client that notes what it gets, and may be slow, blocked or gone.

    Attributes:
        got: what arrived, in order.
        taken: bytes of the body.
        trailers: what came behind the body.
        lost: raised by whatever is sent from now on.
        before_send: called with each piece of the body, before it is taken.
    """

    def __init__(self, *, keeps: bool = True, bytes_per_second: float = float("inf")) -> None:
        self._beginning = trio.current_time()
        self._keeps = keeps
        self._rate = bytes_per_second
        self._open = trio.Event()
        self._open.set()
        self._is_begun = False
        self._unsent = b""
        self.got: list[Got] = []
        self.taken = 0
        self.trailers: Fields | None = None
        self.lost: Exception | None = None
        self.before_send: Callable[[bytes], None] | None = None

    @property
    def body(self) -> bytes:
        return b"".join(got.what for got in self.got if isinstance(got.what, bytes))

    @property
    def events(self) -> list[tuple[float, bytes]]:
        """When which part of the body came, in tenths of a second."""
        return [(round(got.seconds, 1), got.what) for got in self.got if isinstance(got.what, bytes)]

    def at(self, what: str) -> float | None:
        """When the head or the end came, in tenths of a second; None when it did not."""
        return next((round(got.seconds, 1) for got in self.got if got.what == what), None)

    def block(self) -> None:
        """Takes nothing of the body from now on; the head, which is small, it does."""
        self._open = trio.Event()

    def unblock(self) -> None:
        """Takes whatever comes."""
        self._open.set()

    async def begin(self) -> None:
        assert not self._is_begun, "the head was sent already"
        await trio.lowlevel.checkpoint()
        self._raise_if_lost()
        self._begin()

    async def send(self, payload: bytes) -> None:
        assert payload, "nothing was sent, which would end a chunked body"
        assert self.trailers is None, "the body has ended"
        if self.before_send is not None:
            self.before_send(payload)
        await self._wait(len(payload))
        self._begin()
        self.taken += len(payload)
        self._note(payload if self._keeps else "")

    def take(self, payload: bytes) -> bool:
        self._unsent = payload
        return False

    async def drain(self) -> None:
        await self.send(self._unsent)

    async def finish(self, trailers: Fields) -> None:
        assert self.trailers is None, "the body has ended already"
        await self._wait(0)
        self._begin()
        self.trailers = trailers
        self._note("end")

    def _begin(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._note("head")

    def _note(self, what: bytes | str) -> None:
        if what:
            self.got.append(Got(trio.current_time() - self._beginning, what))

    async def _wait(self, size: int) -> None:
        await trio.lowlevel.checkpoint()
        await self._open.wait()
        self._raise_if_lost()
        if size and self._rate != float("inf"):
            await trio.sleep(size / self._rate)

    def _raise_if_lost(self) -> None:
        if self.lost is not None:
            raise self.lost
