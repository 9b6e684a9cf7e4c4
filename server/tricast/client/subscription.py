"""Subscribing for as long as one likes: choosing a transport, and reconnecting from the last position."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Literal, NoReturn, Self

import trio

from tricast.client.backoff import Backoff
from tricast.client.badge import Badge, Token
from tricast.client.endpoint import Dial, Endpoint, dial
from tricast.client.event_stream import follow_event_stream
from tricast.client.failures import ClientError, Lost
from tricast.client.inbox import Inbox, Wish
from tricast.client.items import Connected, Item
from tricast.client.long_poll import follow_polls
from tricast.client.settings import ClientSettings
from tricast.client.websocket import follow_websocket
from tricast.errors import RemoteProtocolError
from tricast.event import Event, Gap, parse_position

Transport = Literal["auto", "ws", "sse", "poll"]

_FOLLOW: dict[str, Callable[[Wish, Inbox], Awaitable[NoReturn]]] = {
    "ws": follow_websocket,
    "sse": follow_event_stream,
    "poll": follow_polls,
}
#: From the cheapest for an event each way to the one that gets through everywhere.
_PREFERENCE = ("ws", "sse", "poll")


class Subscription:
    """What ``subscribe`` hands out: iterate over it for items, in order.

    The iteration ends only by raising ``ClientError``.
    """

    def __init__(self, wish: Wish, transport: Transport, last_id: str | None, chance: random.Random) -> None:
        self._send, self._receive = trio.open_memory_channel[Item](0)
        self._wish = wish
        self._inbox = Inbox(self._send, last_id)
        self._position = last_id
        self._choices = _PREFERENCE if transport == "auto" else (transport,)
        self._preferred = 0
        self._backoff = Backoff(wish.settings, chance)
        self._refusal: ClientError | None = None

    @property
    def position(self) -> str | None:
        """Where to resume after what was handed out up to now, or None when the server did not say yet."""
        return self._position

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        try:
            item = await self._receive.receive()
        except trio.EndOfChannel:
            raise self._refusal or StopAsyncIteration from None
        if isinstance(item, Event):
            self._position = str(item.id)
        elif isinstance(item, Gap):
            self._position = str(item.resumed_at)
        elif isinstance(item, Connected):
            self._position = item.position
        return item

    async def run(self) -> None:
        """Connects again and again, until the server refuses. Cancelling it closes the connection."""
        with self._send:
            try:
                while True:
                    await self._connect()
            except ClientError as refusal:
                self._refusal = refusal

    async def _connect(self) -> None:
        """Follows the first transport that stands, from the preferred one on, until it ends."""
        failure = await self._follow(self._preferred)
        while failure.is_transport_fault and self._inbox.connected_at is None and self._can_fall_back():
            self._preferred += 1
            await self._inbox.disconnected(str(failure), 0.0)
            failure = await self._follow(self._preferred)
        if isinstance(failure, ClientError):
            if not await self._wish.badge.may_be_renewed(failure):
                raise failure
            failure = Lost(str(failure))
        if self._inbox.connected_at is None:
            # Nothing stands. Once something does again, the way there may be another, and the best may work.
            self._preferred = 0
        await self._pause(failure)

    def _can_fall_back(self) -> bool:
        return self._preferred < len(self._choices) - 1

    async def _follow(self, choice: int) -> Lost | ClientError:
        self._inbox.begin()
        try:
            await _FOLLOW[self._choices[choice]](self._wish, self._inbox)
        except (Lost, ClientError) as failure:
            return failure

    async def _pause(self, lost: Lost) -> None:
        since = self._inbox.connected_at
        held = since is not None and trio.current_time() - since >= self._wish.settings.backoff_longest
        if held or self._inbox.has_delivered:
            self._backoff.reset()
        delay = self._backoff.next_delay(lost.retry_after)
        await self._inbox.disconnected(str(lost), delay)
        await trio.sleep(delay)


@asynccontextmanager
async def subscribe(
    url: str,
    topics: Iterable[str],
    *,
    transport: Transport = "auto",
    last_id: str | None = None,
    token: Token = "",
    api_key: str = "",
    settings: ClientSettings | None = None,
    dial: Dial = dial,
    chance: random.Random | None = None,
) -> AsyncIterator[Subscription]:
    """Subscribes to topics within a block, reconnecting for as long as it lasts.

    Leaving or cancelling the block closes the connection. Events come in order, none twice, and where some
    are missing a ``Gap`` says so.

    Args:
        url: of the server, such as ``http://127.0.0.1:8080``.
        topics: names and patterns.
        transport: ``auto`` tries WebSocket, then Server-Sent Events, then long polling.
        last_id: the id to resume after, ``0-0`` for all that is kept, or None for "from now on".
        token: a token, or an ``async def`` that returns one; it is asked before every request, so that there is a newer
            one when the last has ended. What it raises ends the subscription.
        api_key: an API key instead.
        settings: deadlines and limits.
        dial: opens the byte stream to the server.
        chance: the source of jitter.

    Raises:
        ClientError: the URL or the id is none. The iteration raises it when the server refuses for good.
    """
    if last_id is not None:
        try:
            parse_position(last_id)
        except RemoteProtocolError as error:
            raise ClientError(error.detail) from None
    wish = Wish(Endpoint.parse(url), tuple(topics), settings or ClientSettings(), dial, Badge(token, api_key))
    subscription = Subscription(wish, transport, last_id, chance or random.Random())  # noqa: S311 - spreads load only
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscription.run)
        try:
            yield subscription
        except Exception as error:  # noqa: BLE001 - it is raised again, outside of the nursery's group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
