"""Coming back: connections are cut at random places, and nothing is lost, doubled or out of order."""

import json
import random

import pytest
import trio
from clients import (
    TEXT,
    TRANSPORTS,
    Closed,
    CutOff,
    Event,
    EventStream,
    Subscription,
    WebSocket,
    Wire,
    ask,
    frame,
    head,
    open_websocket,
    query_of,
    read_head,
    subscribe,
)
from serving import serving, until

import tricast
from tricast.event import EventId, TopicSet
from tricast.log.base import Slice
from tricast.log.memory import MemoryLog

CUTS = 300


class Follower:
    """Follows topics over connections that are cut at random places.

    Attributes:
        seen: the numbers that came.
        connections: how many it took.
    """

    def __init__(self, server: tricast.Server, source: random.Random, transports: tuple[str, ...]) -> None:
        self._server = server
        self._source = source
        self._transports = transports
        self._last_id: str | None = "0-0"
        self.seen: list[int] = []
        self.connections = 0

    async def follow(self) -> None:
        """Follows until cancelled."""
        while True:
            self.connections += 1
            try:
                with await self._subscribe(budget=int(self._source.expovariate(1 / 3000))) as subscriber:
                    await self._read(subscriber)
            except (CutOff, Closed):
                await trio.lowlevel.checkpoint()

    async def _subscribe(self, budget: int) -> Subscription:
        return await subscribe(
            self._source.choice(self._transports),
            self._server.url,
            "torture.*",
            last_id=self._last_id,
            by_header=self._source.random() < 0.5,
            budget=budget,
        )

    async def _read(self, subscriber: Subscription) -> None:
        while self._source.random() > 0.002:  # else it leaves in good order
            item = await subscriber.next()
            assert isinstance(item, Event), item
            self.seen.append(item.data["n"])
            self._last_id = subscriber.last_id


async def publish_until_cut_often(server: tricast.Server, source: random.Random, followers: list[Follower]) -> int:
    """Publishes, not too far ahead of the followers, and returns how many events it were."""
    published = 0
    while min(follower.connections for follower in followers) < CUTS:
        await server.hub.publish(f"torture.{published % 3}", {"n": published, "text": "x" * source.randrange(300)})
        published += 1
        while min(len(follower.seen) for follower in followers) < published - 50:
            await trio.lowlevel.checkpoint()
        if source.random() < 0.2:
            await trio.lowlevel.checkpoint()
    return published


@pytest.mark.parametrize("transports", [*[(name,) for name in TRANSPORTS], TRANSPORTS], ids="/".join)
async def test_reconnects_lose_nothing_and_double_nothing(transports: tuple[str, ...]) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # pytest shows it when the test fails
    source = random.Random(seed)
    async with serving(events={"history": 10**6}, limits={"send_buffer": 8192}, poll={"max_bytes": 1000}) as server:
        followers = [Follower(server, random.Random(source.random()), transports) for _ in range(2)]
        async with trio.open_nursery() as nursery:
            for follower in followers:
                nursery.start_soon(follower.follow)
            published = await publish_until_cut_often(server, source, followers)
            await until(lambda: min(len(follower.seen) for follower in followers) >= published)
            nursery.cancel_scope.cancel()
        for follower in followers:
            assert follower.seen == list(range(published))
        assert server.hub.statistics().gaps == 0


async def test_ids_are_contiguous_or_a_gap_is_announced_where_history_is_short() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    source = random.Random(seed)
    async with serving(events={"history": 20}, limits={"send_buffer": 4096}) as server:
        ids: list[str] = []
        last_id, position, connections, gaps = "0-0", -1, 0, 0

        async def publisher() -> None:
            for n in range(2000):
                ids.append(str(await server.hub.publish("torture", {"n": n, "text": "x" * source.randrange(400)})))
                if source.random() < 0.3:
                    await trio.lowlevel.checkpoint()

        def take(item: object) -> None:
            nonlocal position, gaps
            if isinstance(item, Event):
                assert item.data["n"] == position + 1, f"{position} then {item.data['n']} without a gap"
                position += 1
            else:
                gaps += 1
                assert item.resumed_at in ids  # type: ignore[attr-defined]
                resumed = ids.index(item.resumed_at)  # type: ignore[attr-defined]
                assert resumed >= position
                position = resumed

        first = str(server.hub.last_id)
        last_id = first
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher)
            while position < 1999:
                connections += 1
                try:
                    with await subscribe(
                        source.choice(TRANSPORTS),
                        server.url,
                        "torture",
                        last_id=last_id,
                        receive_buffer=4096,
                        budget=source.randrange(5000) if connections < 200 else None,
                    ) as subscriber:
                        while position < 1999:
                            take(await subscriber.next())
                            assert subscriber.last_id is not None
                            last_id = subscriber.last_id
                except (CutOff, Closed):
                    await trio.lowlevel.checkpoint()
        assert gaps > 0
        assert server.hub.statistics().gaps >= gaps


class SlowLog(MemoryLog):
    """Holds reads until it is let go."""

    def __init__(self) -> None:
        super().__init__(history=1000, history_age=1000.0, history_size=10**8, clock=lambda: 1000.0)
        self.asked = trio.Event()
        self.let_go = trio.Event()

    async def read(self, topics: TopicSet, after: EventId, *, max_bytes: int) -> Slice:
        found = await super().read(topics, after, max_bytes=max_bytes)
        self.asked.set()
        await self.let_go.wait()
        return found


async def test_replies_that_take_the_room_while_the_log_is_read_cost_no_event() -> None:
    log = SlowLog()
    async with serving(log=log, limits={"send_buffer": 4096}) as server:
        before = str(server.hub.last_id)
        for n in range(20):
            await server.hub.publish("news", n)
        websocket = await subscribe("ws", server.url, "news", last_id=before, receive_buffer=4096)
        with websocket:
            assert isinstance(websocket, WebSocket)
            await log.asked.wait()
            operation = frame(TEXT, json.dumps({"op": "ping", "ref": "x" * 60_000}).encode())
            (connection,) = server._runtime.open
            asked = 0
            while not connection.has_tail:
                await websocket.wire.send(operation)
                asked += 1
            log.let_go.set()
            assert [event.data for event in await websocket.events(20)] == list(range(20))
            for _ in range(asked):
                assert (await websocket.reply())["ok"] == "ping"


async def told(transport: str, url: str, topics: tuple[str, ...]) -> str:
    """The position that a client is told which asks for all that is kept, and leaves before there is anything."""
    target = f"/events?{query_of(topics, '0-0')}"
    if transport == "poll":
        answer = await ask(url, "GET", target)
        assert answer.status == 204
        return answer.headers["last-event-id"]
    if transport == "ws":
        with await open_websocket(url, target) as websocket:
            return str((await websocket.reply())["last_id"])
    with await Wire.open(url) as wire:
        await wire.send(head("GET", target, "Accept: text/event-stream"))
        await read_head(wire)
        stream = await EventStream(wire, None).begun()
        assert stream.last_id is not None
        return stream.last_id


@pytest.mark.parametrize("others", [0, 1, 30], ids="{} of others".format)
@pytest.mark.parametrize("topics", [("news.a",), ("news.a", "more"), ("news.>", "*.a"), (">",)], ids=" ".join)
@pytest.mark.parametrize("transport", ["poll", "sse", "ws"])
async def test_all_of_nothing_is_a_position_to_come_back_to(
    transport: str, topics: tuple[str, ...], others: int
) -> None:
    async with serving(events={"history": 10}, poll={"timeout": "20ms"}) as server:
        for n in range(others if topics != (">",) else 0):
            await server.hub.publish("elsewhere", n)
        here = str(server.hub.last_id)
        position = await told(transport, server.url, topics)
        assert position == here
        assert position != "0-0"
        ids = [str(await server.hub.publish("news.a", n)) for n in range(50)]
        with await subscribe(transport, server.url, *topics, last_id=position) as back:
            gap = await back.gap()
            assert (gap.reason, gap.after, gap.resumed_at) == ("evicted", here, ids[39])
            assert [event.id for event in await back.events(10)] == ids[40:]


@pytest.mark.parametrize("topic", ["news.a", "news.*"])
@pytest.mark.parametrize("transport", ["poll", "sse", "ws"])
async def test_all_of_nothing_misses_nothing_that_comes_later(transport: str, topic: str) -> None:
    async with serving(poll={"timeout": "20ms"}) as server:
        await server.hub.publish("elsewhere", 1)
        position = await told(transport, server.url, (topic,))
        await server.hub.publish("elsewhere", 2)
        for n in range(5):
            await server.hub.publish("news.a", n)
        with await subscribe(transport, server.url, topic, last_id=position) as back:
            assert [event.data for event in await back.events(5)] == list(range(5))


@pytest.mark.parametrize("topic", ["news.a", "news.*"])
async def test_a_subscription_that_is_widened_from_the_beginning_gets_a_position_too(topic: str) -> None:
    async with serving(events={"history": 10}) as server:
        await server.hub.publish("elsewhere", 1)
        with await open_websocket(server.url, "/ws") as websocket:
            reply = await websocket.operate(op="subscribe", topics=[topic], last_id="0-0")
            assert reply["last_id"] == str(server.hub.last_id)
            await server.hub.publish("news.a", 1)
            assert (await websocket.event()).data == 1
            # Now there is something, and 0-0 means from there on.
            reply = await websocket.operate(op="subscribe", topics=["more"], last_id="0-0")
            assert reply["last_id"] == "0-0"
            assert (await websocket.event()).data == 1
