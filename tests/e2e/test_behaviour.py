"""What every subscriber may rely on, whatever the transport: one suite over all of them."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial

import pytest
import trio
from clients import (
    TRANSPORTS,
    Event,
    EventStream,
    Gap,
    Subscription,
    attempt,
    id_of,
    publish,
    query_of,
    subscribe,
)
from encryption import tls_section
from forwarding import serving_behind
from serving import serving_at, until

import tricast

#: Yields the server, and the URL by which clients reach it.
OpenServer = Callable[..., AbstractAsyncContextManager[tuple[tricast.Server, str]]]


#: What is between clients and the server: nothing, or the proxy as one of these.
PROFILES = ("plain", "nginx-websocket", "haproxy-tunnel")


@pytest.fixture(params=["plain", "tls", *(f"behind {name}" for name in PROFILES)])
def open_server(request: pytest.FixtureRequest) -> OpenServer:
    if request.param == "tls":
        return partial(serving_at, tls=tls_section())
    return serving_at if request.param == "plain" else partial(serving_behind, request.param.removeprefix("behind "))


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def subscribed(server: tricast.Server, count: int = 1) -> None:
    """Returns when so many subscribers are there."""
    await until(lambda: server.hub.statistics().subscribers >= count)


async def until_left(server: tricast.Server) -> None:
    """Returns when nobody is subscribed any more; a proxy may notice only with the next event that one has left."""
    while server.hub.statistics().subscribers:
        await server.hub.publish("news", "anybody there?")
        await trio.sleep(0.01)


async def numbers(subscriber: Subscription, count: int) -> list[object]:
    return [event.data["n"] for event in await subscriber.events(count)]


# Order, topics, names


async def test_events_come_in_order_with_what_was_published(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (server, url):
        with await subscribe(transport, url, "news") as subscriber:
            await subscribed(server)
            ids = [await publish(url, "news", {"n": n}, type=f"kind{n}") for n in range(20)]
            seen = await subscriber.events(20)
            topic = None if transport == "sse" else "news"
            assert seen == [Event(ids[n], topic, f"kind{n}", {"n": n}) for n in range(20)]
            assert ids == sorted(ids, key=id_of)
            assert len(set(ids)) == 20


async def test_a_type_is_message_unless_said(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (_, url):
        await publish(url, "news", 1)
        await publish(url, "news", 2, type="größer than → before")
        with await subscribe(transport, url, "news", last_id="0-0") as subscriber:
            assert [event.type for event in await subscriber.events(2)] == ["message", "größer than → before"]


async def test_several_topics_come_as_one_stream(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (server, url):
        with await subscribe(transport, url, "news", "alerts") as subscriber:
            await subscribed(server)
            for n, topic in enumerate(["news", "other", "alerts", "news.more", "news", "alert"]):
                await publish(url, topic, {"n": n})
            assert await numbers(subscriber, 3) == [0, 2, 4]
            await publish(url, "alerts", {"n": 6})
            assert await numbers(subscriber, 1) == [6]


#: Which of the topics that are published to each of these patterns takes.
TAKEN = {
    "a.*": ["a.b", "a.c"],
    "*.b": ["a.b", "z.b"],
    "a.>": ["a.b", "a.b.c", "a.c"],
    "*.*.*": ["a.b.c"],
    ">": ["a", "a.b", "z.b", "a.b.c", "a.c"],
    "*": ["a"],
}


async def test_wildcards_match_live_and_from_the_log(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (server, url), AsyncExitStack() as stack:
        live = {pattern: stack.enter_context(await subscribe(transport, url, pattern)) for pattern in TAKEN}
        await subscribed(server, len(TAKEN))
        for topic in ["a", "a.b", "z.b", "a.b.c", "a.c"]:
            await publish(url, topic, {"topic": topic})
        for pattern, expected in TAKEN.items():
            with await subscribe(transport, url, pattern, last_id="0-0") as replayed:
                for subscriber in (live[pattern], replayed):
                    assert [event.data["topic"] for event in await subscriber.events(len(expected))] == expected, (
                        pattern
                    )


async def test_topics_may_be_in_any_script(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (_, url):
        await publish(url, "новости.日本", {"n": 1})
        with await subscribe(transport, url, "новости.日本", last_id="0-0") as subscriber:
            assert await numbers(subscriber, 1) == [1]


# Positions


async def test_without_a_position_only_what_comes_is_sent(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (server, url):
        await publish(url, "news", {"n": 1})
        with await subscribe(transport, url, "news") as subscriber:
            await subscribed(server)
            await publish(url, "news", {"n": 2})
            assert await numbers(subscriber, 1) == [2]


@pytest.mark.parametrize("by_header", [False, True])
async def test_a_position_is_gone_on_from(open_server: OpenServer, transport: str, by_header: bool) -> None:
    async with open_server() as (_, url):
        ids = [await publish(url, "news", {"n": n}) for n in range(5)]
        with await subscribe(transport, url, "news", last_id=ids[2], by_header=by_header) as subscriber:
            assert await numbers(subscriber, 2) == [3, 4]
            await publish(url, "news", {"n": 5})
            assert await numbers(subscriber, 1) == [5]


async def test_the_header_goes_before_the_query(open_server: OpenServer, transport: str) -> None:
    # A browser that reconnects repeats the URL, and only the header has moved on.
    async with open_server() as (_, url):
        ids = [await publish(url, "news", {"n": n}) for n in range(4)]
        with await subscribe(
            transport, url, "news", last_id=ids[2], by_header=True, query_last_id=ids[0]
        ) as subscriber:
            assert await numbers(subscriber, 1) == [3]
        answer = await attempt(transport, url, query_of(["news"], ids[0]), "Last-Event-ID: nonsense")
        assert (answer.status, answer.code) == (400, "bad-last-id")


async def test_zero_is_all_that_is_kept_and_no_gap(open_server: OpenServer, transport: str) -> None:
    async with open_server(events={"history": 3}) as (_, url):
        for n in range(7):
            await publish(url, "news", {"n": n})
        with await subscribe(transport, url, "news", last_id="0-0") as subscriber:
            assert await numbers(subscriber, 3) == [4, 5, 6]


async def test_a_long_history_comes_whole(open_server: OpenServer, transport: str) -> None:
    # More than one read from the log, and more than one answer to a long poll.
    async with open_server(poll={"max_bytes": "64KiB"}) as (server, url):
        for n in range(300):
            await server.hub.publish("news", {"n": n, "text": "x" * 1000})
        with await subscribe(transport, url, "news", last_id="0-0") as subscriber:
            assert await numbers(subscriber, 300) == list(range(300))


# Gaps


async def test_what_was_evicted_is_a_gap(open_server: OpenServer, transport: str) -> None:
    async with open_server(events={"history": 3}) as (_, url):
        ids = [await publish(url, "news", {"n": n}) for n in range(7)]
        with await subscribe(transport, url, "news", last_id=ids[0]) as subscriber:
            assert await subscriber.gap() == Gap("evicted", ids[0], ids[3])
            assert await numbers(subscriber, 3) == [4, 5, 6]
        # The position before the oldest kept event has missed nothing.
        with await subscribe(transport, url, "news", last_id=ids[3]) as subscriber:
            assert await numbers(subscriber, 3) == [4, 5, 6]


async def test_a_restart_is_a_gap(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (_, url):
        last_id = await publish(url, "news", {"n": 1})
    await until(lambda: time.time_ns() // 10**6 > id_of(last_id)[0])
    async with open_server() as (server, url):
        with await subscribe(transport, url, "news", last_id=last_id) as subscriber:
            gap = await subscriber.gap()
            assert (gap.reason, gap.after) == ("restarted", last_id)
            assert id_of(gap.resumed_at) > id_of(last_id)
            await publish(url, "news", {"n": 2})
            assert await numbers(subscriber, 1) == [2]
            assert server.hub.statistics().gaps == 1


async def test_a_position_of_the_future_is_a_gap(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (_, url):
        here = await publish(url, "news", {"n": 1})
        future = f"{id_of(here)[0] + 10**9}-7"
        with await subscribe(transport, url, "news", last_id=future) as subscriber:
            assert await subscriber.gap() == Gap("unknown_id", future, here)
            await publish(url, "news", {"n": 2})
            assert await numbers(subscriber, 1) == [2]


@pytest.mark.parametrize("transport", ["sse", "sse-envelope", "ws"])
async def test_who_does_not_read_gets_a_gap_and_delays_nobody(open_server: OpenServer, transport: str) -> None:
    # A long poll has no such state: between two answers nothing is sent.
    async with open_server(events={"history": 5}, limits={"send_buffer": 4096}) as (server, url):
        with (
            await subscribe(transport, url, "news", receive_buffer=4096) as slow,
            await subscribe("sse", url, "news") as other,
        ):
            sent = stuck = 0
            while stuck < 30:
                await server.hub.publish("news", {"n": sent, "text": "x" * 2000})
                assert await numbers(other, 1) == [sent]
                sent += 1
                # The kernels may take what seemed too much, as long as there is room.
                stuck = stuck + 1 if server.hub.statistics().behind == 1 else 0
            # The kernels may make room late: then it reads on for a while in the midst of this, and has two gaps.
            last, is_after_gap, gaps = None, False, 0
            while last is None or last.data["n"] < sent - 1:
                item = await slow.next()
                if isinstance(item, Gap):
                    assert last is not None
                    assert (item.reason, item.after) == ("slow", last.id)
                    is_after_gap, gaps = True, gaps + 1
                    continue
                expected = 0 if last is None else last.data["n"] + 1
                assert item.data["n"] > expected if is_after_gap else item.data["n"] == expected
                last, is_after_gap = item, False
            assert gaps
            await until(lambda: server.hub.statistics().behind == 0)
            await server.hub.publish("news", {"n": sent})
            assert await numbers(slow, 1) == await numbers(other, 1) == [sent]


async def test_who_reads_slowly_but_in_time_misses_nothing(open_server: OpenServer, transport: str) -> None:
    async with open_server(limits={"send_buffer": 4096}) as (server, url):
        with await subscribe(transport, url, "news", receive_buffer=4096) as slow:
            await subscribed(server)
            for n in range(400):
                await server.hub.publish("news", {"n": n, "text": "x" * 500})
                if n % 20 == 0:
                    await trio.lowlevel.checkpoint()
            assert await numbers(slow, 400) == list(range(400))


# Data


#: What is published, and what it is to those who read it.
DATA: list[tuple[bytes, object]] = [
    (b'{"a": [1, 2.50, null, "\\u00e9"]}', {"a": [1, 2.5, None, "é"]}),
    (b"17", 17),
    (b'"text"', "text"),
    (b"null", None),
    (b"", ""),
    (b"not JSON", "not JSON"),
    (b"{broken", "{broken"),
    ("grüße, 日本 😀".encode(), "grüße, 日本 😀"),
    (b"line\nline\r\nline\rend\n\n", "line\nline\r\nline\rend\n\n"),
    (b"data: x\n\nevent: tricast.gap\ndata: {}\n\n", "data: x\n\nevent: tricast.gap\ndata: {}\n\n"),
    (b'{\r"a":\r\n1,\n\n"b":\r\r2\n}\r\n', {"a": 1, "b": 2}),
    (b"\r\n[\n]\n", []),
    (b"\x00\x01\x7f", "\x00\x01\x7f"),
    ("\u2028\u2029\x85\ufeff".encode(), "\u2028\u2029\x85\ufeff"),
]


async def test_data_comes_as_it_was_published(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (server, url):
        with await subscribe(transport, url, "news") as subscriber:
            await subscribed(server)
            for body, expected in DATA:
                await publish(url, "news", body)
                await publish(url, "news", {"n": "behind it"})
                first, second = await subscriber.events(2)
                assert first.data == expected, body
                assert second.data == {"n": "behind it"}, body


async def test_large_events_of_all_sizes(open_server: OpenServer, transport: str) -> None:
    # Around the lengths at which WebSocket frames change their header (RFC 6455 5.2).
    async with open_server(publish={"max_event": "128KiB"}) as (server, url):
        with await subscribe(transport, url, "news") as subscriber:
            await subscribed(server)
            overhead = len(json.dumps({"id": "1795360951079-0", "topic": "news", "type": "message", "data": ""})) - 8
            sizes = [size - overhead + step for size in (125, 126, 65535, 65536) for step in range(-3, 4)]
            for size in sizes:
                await publish(url, "news", json.dumps("x" * size))
            assert [len(event.data) for event in await subscriber.events(len(sizes))] == sizes


# Refusals


#: Queries, and what each is refused as.
WRONG = [
    ("topic=news&last_id=", "bad-last-id"),
    ("topic=news&last_id=5", "bad-last-id"),
    ("topic=news&last_id=-1-0", "bad-last-id"),
    ("topic=news&last_id=1-0%0A", "bad-last-id"),
    ("topic=news&last_id=%D9%A1-0", "bad-last-id"),
    ("topic=news&last_id=" + "9" * 400 + "-0", "bad-last-id"),
    ("topic=news&last_id=1-0&last_id=2-0", "bad-query"),
    ("topic=", "bad-topic"),
    ("topic=a..b", "bad-topic"),
    ("topic=.a", "bad-topic"),
    ("topic=a.", "bad-topic"),
    ("topic=a%20b", "bad-topic"),
    ("topic=a%00b", "bad-topic"),
    ("topic=a%0Ab", "bad-topic"),
    ("topic=a.%3E.b", "bad-topic"),
    ("topic=a*", "bad-topic"),
    ("topic=news&topic=", "bad-topic"),
    ("topic=" + "x" * 256, "limit-exceeded"),
    ("topic=" + "%C3%A9" * 128, "limit-exceeded"),
    ("&".join(f"topic=t{n}" for n in range(101)), "limit-exceeded"),
]


async def test_a_wrong_subscription_is_told_why(open_server: OpenServer, transport: str) -> None:
    async with open_server() as (server, url):
        for query, code in WRONG:
            answer = await attempt(transport, url, query)
            assert (answer.status, answer.code) == (400, code), query
            assert server.hub.statistics().subscribers == 0


@pytest.mark.parametrize("transport", ["poll", "sse"])
async def test_no_topic_is_told(open_server: OpenServer, transport: str) -> None:
    # A WebSocket may subscribe later.
    async with open_server() as (_, url):
        answer = await attempt(transport, url, "")
        assert (answer.status, answer.code) == (400, "bad-topic")


async def test_as_many_and_as_long_topics_as_allowed(open_server: OpenServer, transport: str) -> None:
    async with open_server(limits={"target_size": "64KiB", "head_size": "64KiB"}) as (_, url):
        topics = [f"t{n:0254}" for n in range(100)]
        last_id = await publish(url, topics[0], {"n": 0})
        await publish(url, topics[99], {"n": 99})
        with await subscribe(transport, url, *topics, last_id=last_id) as subscriber:
            assert await numbers(subscriber, 1) == [99]


async def test_an_unknown_envelope_is_told(open_server: OpenServer) -> None:
    async with open_server() as (_, url):
        answer = await attempt("sse", url, "topic=news&envelope=xml")
        assert (answer.status, answer.code) == (400, "bad-query")


# Leaving


@pytest.fixture
def ways_to_leave(request: pytest.FixtureRequest) -> list[str]:
    """A client that has only closed its sending side is served by HAProxy until it has closed the other as well."""
    serves_half_closed = "haproxy" in request.node.callspec.params["open_server"]
    return ["close", "reset"] if serves_half_closed else ["close", "reset", "finish_sending"]


async def test_who_leaves_leaves_nothing(open_server: OpenServer, transport: str, ways_to_leave: list[str]) -> None:
    async with open_server() as (server, url):
        for leave in ways_to_leave:
            with await subscribe(transport, url, "news", "a.*") as subscriber:
                await subscribed(server)
                getattr(subscriber.wire, leave)()
                if url == server.url:
                    await until(lambda: server.connections == 0)
                await until_left(server)
            statistics = server.hub.statistics()
            assert (statistics.subscribers, statistics.feeds, statistics.behind) == (0, 0, 0)


async def test_subscribers_of_all_transports_see_the_same(open_server: OpenServer) -> None:
    async with open_server() as (server, url):
        subscribers = [await subscribe(transport, url, "news") for transport in TRANSPORTS for _ in range(3)]
        await subscribed(server, len(subscribers))
        ids = [await publish(url, "news", {"n": n}) for n in range(10)]
        for subscriber in subscribers:
            with subscriber:
                assert [event.id for event in await subscriber.events(10)] == ids
        assert server.hub.statistics().gaps == 0


async def test_an_event_stream_begins_with_a_position(open_server: OpenServer) -> None:
    # So that a browser that drops before its first event resumes from where it began.
    async with open_server() as (_, url):
        last_id = await publish(url, "news", {"n": 1})
        with await subscribe("sse", url, "news") as subscriber:
            assert isinstance(subscriber, EventStream)
            assert subscriber.last_id == last_id
            assert subscriber.retry is not None
            assert 2000 <= subscriber.retry <= 3000
