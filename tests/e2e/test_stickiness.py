"""Behind a plain round-robin, with nothing that holds a client to a server: each request lands on another one."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from clients import TRANSPORTS, Event, Wire, ask, head, publish, query_of, read_head, subscribe, subscription_headers
from forwarding import forwarding
from proxies.real import real_proxy
from services import RedisServer
from serving import about, metrics_of, serving

SERVERS = 3
CONNECTIONS = 15
TOPICS = ("news", "alerts", "chat.one", "chat.two")
NAMES = ("news", "alerts", "chat.*")
#: What one writes who wants no more than that.
NGINX = """\
worker_processes 1;
events {}
http {
    upstream servers { server 127.0.0.1:@a@; server 127.0.0.1:@b@; server 127.0.0.1:@c@; }
    map $http_upgrade $connection_upgrade { default upgrade; "" close; }
    server {
        listen 127.0.0.1:@port@;
        location / {
            proxy_pass http://servers;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }
    }
}
"""
FRONTS = ("tricast proxy", "nginx")
LOGS = ("sqlite", "redis", "redis in shards")
#: What servers count them as.
COUNTED = {"poll": "poll", "sse": "sse", "sse-envelope": "sse", "ws": "websocket"}


@contextmanager
def log_at(kind: str, folder: Path) -> Iterator[dict[str, Any]]:
    """What the section ``log`` says."""
    if kind == "sqlite":
        yield {"url": f"sqlite:///{folder / 'log.db'}"}
    else:
        with RedisServer() as redis:
            yield {"url": redis.url, "shards": 3 if kind == "redis in shards" else 1}


@asynccontextmanager
async def front_of(kind: str, urls: list[str]) -> AsyncIterator[str]:
    """The URL of a proxy that gives each request to the next one of the servers."""
    if kind == "nginx":
        ports = dict(zip("abc", (url.rpartition(":")[2] for url in urls), strict=True))
        async with real_proxy("nginx", NGINX, **ports) as proxy:
            yield proxy.url
    else:
        async with forwarding(*urls) as proxy:
            yield proxy.url


@asynccontextmanager
async def three_behind(front: str, log: str, folder: Path) -> AsyncIterator[tuple[list[str], str]]:
    """The URLs of three servers that share a log, and of the proxy in front of them."""
    with log_at(log, folder) as section:
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(serving(log=section)) for _ in range(SERVERS)]
            urls = [server.url for server in servers]
            yield urls, await stack.enter_async_context(front_of(front, urls))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("front", FRONTS)
async def test_nothing_is_lost_or_comes_twice(front: str, log: str, transport: str, tmp_path: Path) -> None:
    published: dict[str, list[int]] = {topic: [] for topic in TOPICS}
    seen: dict[str, list[int]] = {topic: [] for topic in TOPICS}
    count = 0

    async def publish_next() -> None:
        nonlocal count
        topic = TOPICS[count % len(TOPICS)]
        published[topic].append(count)
        await publish(urls[count % SERVERS], topic, {"topic": topic, "n": count})
        count += 1

    def take(event: Event) -> None:
        assert event.topic in (None, event.data["topic"])
        seen[event.data["topic"]].append(event.data["n"])

    async with three_behind(front, log, tmp_path) as (urls, url):
        position = (await ask(url, "HEAD", f"/events?{query_of(NAMES)}")).headers["last-event-id"]
        for number in range(CONNECTIONS):
            await publish_next()  # while the client is away
            await publish_next()
            with await subscribe(transport, url, *NAMES, last_id=position) as subscriber:
                for event in await subscriber.events(1 + number % 2):
                    take(event)
                await publish_next()  # while it is there, and it may have enough before that comes
                if number % 3:
                    take(await subscriber.event())
                assert subscriber.last_id is not None
                position = subscriber.last_id
        with await subscribe(transport, url, *NAMES, last_id=position) as subscriber:
            while seen != published:
                take(await subscriber.event())
        begun = [about(await metrics_of(each), "streams_total")[COUNTED[transport],] for each in urls]
    assert sum(begun) >= CONNECTIONS + 1  # a long poll may ask more than once on a connection
    assert max(begun) - min(begun) <= 1


@pytest.mark.parametrize("front", FRONTS)
async def test_a_poll_on_one_connection_is_answered_by_one_server_after_the_other(front: str, tmp_path: Path) -> None:
    async with three_behind(front, "sqlite", tmp_path) as (urls, url):
        position = (await ask(url, "HEAD", f"/events?{query_of(NAMES)}")).headers["last-event-id"]
        with await subscribe("poll", url, *NAMES, last_id=position) as subscriber:
            for n in range(4 * SERVERS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(publish, urls[n % SERVERS], "news", n)
                    assert (await subscriber.event()).data == n
        begun = [about(await metrics_of(each), "streams_total")["poll",] for each in urls]
    assert begun == [4, 4, 4]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_there_is_no_cookie(transport: str, tmp_path: Path) -> None:
    async with three_behind("nginx", "sqlite", tmp_path) as (urls, url):
        position = await publish(urls[0], "news", 1)
        await publish(urls[1], "news", 2)
        with await Wire.open(url) as wire:
            target = f"/events?{query_of(NAMES, position)}"
            await wire.send(head("GET", target, *subscription_headers(transport)))
            answer = await read_head(wire)
    assert answer.status in (101, 200)
    assert "set-cookie" not in answer.headers
