"""Where the transports put what they receive, and where the position is kept."""

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import trio

from tricast.client.badge import Badge
from tricast.client.endpoint import Dial, Endpoint
from tricast.client.exchange import Exchange, open_exchange
from tricast.client.items import Connected, Disconnected, Item, id_from
from tricast.client.settings import ClientSettings
from tricast.event import Event, Gap


class Wish(NamedTuple):
    """What a subscription asks for, and how.

    Attributes:
        endpoint: where the server is.
        topics: names and patterns.
        settings: deadlines and limits.
        dial: opens a byte stream to the server.
        badge: what every request shows.
    """

    endpoint: Endpoint
    topics: tuple[str, ...]
    settings: ClientSettings
    dial: Dial
    badge: Badge

    def target(self, **query: str) -> str:
        """The request target of these topics."""
        return self.endpoint.target("/events", [*(("topic", topic) for topic in self.topics), *query.items()])

    def open_exchange(self) -> AbstractAsyncContextManager[Exchange]:
        """A new connection to the server, for the length of a block."""
        return open_exchange(self.endpoint, self.settings, self.dial, self.badge)


class Inbox:
    """Receives from one transport at a time, in order, and remembers the position.

    A slow reader of the channel holds the transport back, and through it the server, which keeps nothing for
    a slow client but its position.

    Attributes:
        position: the id to resume after, or None for "from now on".
        connected_at: the clock when the present connection was made, or None.
        has_delivered: whether anything came over the present connection.
    """

    def __init__(self, channel: trio.MemorySendChannel[Item], position: str | None) -> None:
        self._channel = channel
        self.position = position
        self.connected_at: float | None = None
        self.has_delivered = False

    def begin(self) -> None:
        """Forgets about the last connection, but for its position."""
        self.connected_at = None
        self.has_delivered = False

    async def connected(self, transport: str, position: str | None) -> None:
        """A connection stands, and events come from this position, when it is known.

        Raises:
            ClientError: the position is no id.
        """
        if position:
            self.move_to(position)
        self.connected_at = trio.current_time()
        await self._channel.send(Connected(transport, self.position))

    async def event(self, event: Event) -> None:
        """An event came."""
        self.has_delivered = True
        await self._channel.send(event)
        self.position = str(event.id)

    async def gap(self, gap: Gap) -> None:
        """Events before some position are lost."""
        self.has_delivered = True
        await self._channel.send(gap)
        self.position = str(gap.resumed_at)

    def move_to(self, position: str) -> None:
        """The server says from where to go on. What is no id could not be sent back to it.

        Raises:
            ClientError: the position is no id.
        """
        self.position = str(id_from(position))

    async def disconnected(self, why: str, delay: float) -> None:
        """The connection is gone, or was not made."""
        await self._channel.send(Disconnected(why, delay))

    def resume_headers(self) -> list[tuple[str, str]]:
        """The header that tells the server the position."""
        return [] if self.position is None else [("Last-Event-ID", self.position)]
