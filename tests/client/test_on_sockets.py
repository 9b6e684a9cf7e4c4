"""The client on real sockets: against scripts for what goes wrong, and against the server for what goes right."""

import socket
import struct

import pytest
import trio
from client.scripted import EAGER, ScriptedServer, gap_json, refuse_upgrade, sse_event, take, take_events
from serving import serving, until

from tricast.client import ClientError, Connected, Disconnected, publish, publish_ndjson, subscribe
from tricast.client.endpoint import dial
from tricast.event import Gap, GapReason

TRANSPORTS = ["auto", "ws", "sse", "poll"]


async def test_reset_within_an_event():
    async def reset(peer):
        await peer.begin_stream(b"id: 5-0\n\n")
        await peer.chunk(sse_event(6) + sse_event(7)[:-2])
        await seen.wait()
        # Closing with a linger time of zero resets the connection instead.
        peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def go_on(peer):
        await peer.begin_stream(b"id: 6-0\n\n")
        await peer.chunk(sse_event(7))
        await peer.wait_closed()

    seen = trio.Event()
    server = ScriptedServer(reset, go_on)
    async with server.on_sockets(), subscribe(server.url, ["news"], transport="sse", settings=EAGER) as subscription:
        assert await take_events(subscription, 1) == [6]
        seen.set()
        lost, connected = await take(subscription, 2)
        assert lost.why == "the connection broke"
        assert connected == Connected("sse", "6-0")
        assert await take_events(subscription, 1) == [7]
    assert server.peers[1].headers["last-event-id"] == "6-0"


async def test_busy_then_refused_then_fallen_back_with_a_gap():
    async def busy(peer):
        await peer.read_request()
        await peer.problem(503, "too many connections", Retry_After="0")

    async def stream(peer):
        await peer.begin_stream(b"id: 5-0\n\n")
        await peer.chunk(f"event: tricast.gap\nid: 9-0\ndata: {gap_json(5, 9, 'slow')}\n\n".encode() + sse_event(10))
        await peer.wait_closed()

    server = ScriptedServer(busy, refuse_upgrade, stream)
    async with server.on_sockets(), subscribe(server.url, ["news"], settings=EAGER) as subscription:
        lost, fallen, connected, gap, event = await take(subscription, 5)
    assert lost.why == "the server answered 503 Reason: too many connections"
    assert fallen == Disconnected("the server answered 426 Reason: no Upgrade here", 0)
    assert connected == Connected("sse", "5-0")
    assert gap.reason is GapReason.SLOW
    assert event.id.ms == 10


async def read(subscription, count):
    return [(item.topic, item.type, item.decode()) for item in await take(subscription, count)]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_published_arrives(transport):
    async with serving() as server:
        first = await publish(server.url, "news.a", "plain text")
        subscribed = subscribe(server.url, ["news.>", "other"], transport=transport, last_id="0-0", settings=EAGER)
        async with subscribed as subscription:
            connected = await anext(subscription)
            assert isinstance(connected, Connected)
            assert await read(subscription, 1) == [("news.a", "message", "plain text")]
            assert subscription.position == first
            ids = await publish_ndjson(
                server.url,
                ['{"topic":"news.b","type":"x","data":{"n":[1.5,null]}}', '{"topic":"other","data":"\\r\\n"}'],
            )
            assert await read(subscription, 2) == [("news.b", "x", {"n": [1.5, None]}), ("other", "message", "\r\n")]
            assert subscription.position == ids[1]


async def test_a_first_poll_that_broke_misses_nothing():
    streams, published = [], trio.Event()

    async def dial_again_when_published(endpoint, settings):
        if streams:
            await published.wait()
        streams.append(await dial(endpoint, settings))
        return streams[-1]

    async with serving() as server:
        before = await publish(server.url, "news", "before")
        subscribed = subscribe(server.url, ["news"], transport="poll", settings=EAGER, dial=dial_again_when_published)
        async with subscribed as subscription:
            assert await anext(subscription) == Connected("poll", before)
            await until(lambda: server.hub.statistics().subscribers == 1)
            streams[0].socket.shutdown(socket.SHUT_RDWR)
            assert (await anext(subscription)).why == "the server closed the connection"
            await until(lambda: server.hub.statistics().subscribers == 0)
            missed = await publish(server.url, "news", "missed")
            published.set()
            assert await anext(subscription) == Connected("poll", before)
            assert await read(subscription, 1) == [("news", "message", "missed")]
            assert subscription.position == missed


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_position_that_is_gone_is_a_gap(transport):
    async with serving(events={"history": 2}) as server:
        given = [await publish(server.url, "news", str(n)) for n in range(5)]
        subscribed = subscribe(server.url, ["news"], transport=transport, last_id=given[0], settings=EAGER)
        async with subscribed as subscription:
            _, gap, *events = await take(subscription, 4)
    assert isinstance(gap, Gap)
    assert (gap.reason, str(gap.after)) == (GapReason.EVICTED, given[0])
    assert [str(event.id) for event in events] == given[3:]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_server_says_what_is_wrong_with_a_topic(transport):
    async with serving() as server, subscribe(server.url, ["a..b"], transport=transport) as subscription:
        with pytest.raises(ClientError, match=r"the server answered 400 .*: a topic is dot-separated words"):
            await take_events(subscription, 1)


async def test_the_same_key_publishes_once():
    async with serving() as server:
        ids = {await publish(server.url, "news", "x", idempotency_key="mine") for _ in range(3)}
    assert len(ids) == 1


async def test_the_server_says_what_is_wrong_with_an_event():
    async with serving() as server:
        with pytest.raises(ClientError, match=r"400 .*: a topic is dot-separated words without \* or >"):
            await publish(server.url, "news.*", "x")
