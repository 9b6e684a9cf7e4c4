"""Clients that say who they are, and go on when what they said it with is over."""

import time

import pytest
import trio
from client.scripted import EAGER, take, take_events
from clocks import HANG_SECONDS
from credentials import API_KEY, API_KEY_HASH, AUTH, token
from serving import serving, until

from tricast.client import ClientError, Connected, Disconnected, publish, publish_ndjson, subscribe
from tricast.client.badge import Badge
from tricast.event import Event

TRANSPORTS = ["auto", "ws", "sse", "poll"]


class Tokens:
    """Gives one token after the other, and then the last again and again.

    Args:
        seconds: after how many, from when the first is asked for, each is over.
        ahead: how many more they are good for: how far the clock runs ahead by which who was let in is let out.

    Attributes:
        given: those that it gave.
    """

    def __init__(self, *seconds: float, ahead: float = 0.0) -> None:
        self._seconds = seconds
        self._ahead = ahead
        self._tokens: list[str] = []
        self._ends: list[float] = []
        self.given: set[str] = set()

    async def __call__(self) -> str:
        if not self._tokens:
            self._ends = [time.time() + each for each in self._seconds]
            self._tokens = [token(exp=end + self._ahead) for end in self._ends]
        elif len(self._tokens) > 1 and time.time() >= self._ends[0]:
            del self._tokens[0], self._ends[0]
        self.given.add(self._tokens[0])
        return self._tokens[0]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_with_a_token(transport):
    async with serving(auth=AUTH) as server:
        shown = token(subscribe=["news"], publish=["news"])
        options = {"transport": transport, "token": shown, "settings": EAGER}
        async with subscribe(server.url, ["news"], **options) as subscription:
            assert isinstance((await take(subscription, 1))[0], Connected)
            first = await publish(server.url, "news", "1", token=shown)
            (second,) = await publish_ndjson(server.url, ['{"topic":"news","data":2}'], token=shown)
            assert [str(item.id) for item in await take(subscription, 2)] == [first, second]
        with pytest.raises(ClientError, match="may not publish to 'other'"):
            await publish(server.url, "other", "1", token=shown)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_without_a_token(transport):
    async with serving(auth=AUTH) as server:
        async with subscribe(server.url, ["news"], transport=transport) as subscription:
            with pytest.raises(ClientError, match="401 Unauthorized") as caught:
                await take(subscription, 1)
            assert caught.value.status == 401
        with pytest.raises(ClientError, match="401"):
            await publish(server.url, "news", "1")


async def test_with_an_api_key():
    auth = AUTH | {"api_key": [{"name": "a", "hash": API_KEY_HASH, "publish": ["news"], "subscribe": ["news"]}]}
    async with serving(auth=auth) as server:
        given = await publish(server.url, "news", "1", api_key=API_KEY)
        async with subscribe(server.url, ["news"], last_id="0-0", api_key=API_KEY, transport="sse") as subscription:
            items = await take(subscription, 2)
        assert [str(item.id) for item in items if isinstance(item, Event)] == [given]


async def test_newer_tokens_are_shown_and_nothing_is_missed():
    ahead = 60.0
    async with serving(auth=AUTH) as server:
        # However late the first token comes, it is good, and what it lets in ends in a moment.
        server._runtime._clock = lambda: time.time() + ahead
        tokens = {transport: Tokens(0.5, HANG_SECONDS, ahead=ahead) for transport in ("ws", "sse", "poll")}
        items = {transport: [] for transport in tokens}

        async def follow(transport):
            options = {"transport": transport, "token": tokens[transport], "settings": EAGER}
            async with subscribe(server.url, ["news"], **options) as subscription:
                async for item in subscription:
                    items[transport].append(item)

        def ids_of(transport):
            return [str(item.id) for item in items[transport] if isinstance(item, Event)]

        async with trio.open_nursery() as nursery:
            for transport in tokens:
                nursery.start_soon(follow, transport)
            await until(lambda: server.hub.statistics().subscribers == 3)
            ids = []
            for shown in (1, 2):
                await until(lambda: all(len(each.given) >= shown for each in tokens.values()))  # noqa: B023
                ids.append(str(await server.hub.publish("news", shown)))
            await until(lambda: all(ids_of(transport) == ids for transport in tokens))
            nursery.cancel_scope.cancel()
        ends = [item.why for item in items["ws"] if isinstance(item, Disconnected)]
        assert ends == ["the server closed the WebSocket (4401: token expired)"]


@pytest.mark.parametrize("transport", ["ws", "sse", "poll"])
async def test_when_there_is_nothing_newer_it_ends(transport):
    tokens = Tokens(1.0)
    async with serving(auth=AUTH) as server:
        options = {"transport": transport, "token": tokens, "settings": EAGER}
        async with subscribe(server.url, ["news"], **options) as subscription:
            with pytest.raises(ClientError, match="expired") as caught:
                await take(subscription, 100)
        assert caught.value.status == 401


async def test_publishing_with_a_token_that_was_too_old():
    tokens = iter([token(exp=time.time() - 5), token()])
    current = []

    async def find():
        current.append(next(tokens, current[-1] if current else ""))
        return current[-1]

    async with serving(auth=AUTH) as server:
        assert await publish(server.url, "news", "1", token=find, settings=EAGER)
        with pytest.raises(ClientError, match="expired"):
            await publish(server.url, "news", "1", token=token(exp=time.time() - 5))
        assert server.hub.statistics().published == 1


@pytest.mark.parametrize("bad", ["a b", "a\r\nX-Other: 1", "é", "\x00"])
async def test_what_cannot_be_in_a_header(bad):
    for badge in (Badge(bad), Badge(api_key=bad)):
        with pytest.raises(ClientError, match="visible ASCII") as caught:
            await badge.headers()
        assert bad not in str(caught.value)


async def test_events_come_to_nobody_else():
    async with serving(auth=AUTH) as server:
        shown = token(subscribe=["users.{sub}"])
        async with subscribe(server.url, ["users.ada"], token=shown, transport="ws") as subscription:
            await take(subscription, 1)
            await server.hub.publish("users.bob", 1)
            later = await server.hub.publish("users.ada", 2)
            assert await take_events(subscription, 1) == [later.ms]
