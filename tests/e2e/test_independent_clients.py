"""Clients that others wrote, as they are."""

import json
import shutil
import subprocess

import httpx
import pytest
import trio
import trio_websocket
from clients import publish
from clocks import HANG_SECONDS
from httpx_sse import aconnect_sse
from serving import ended, serving, until
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

import tricast


async def subscribed(server: tricast.Server, count: int = 1) -> None:
    await until(lambda: server.hub.statistics().subscribers == count)


# curl


@pytest.fixture
def curl() -> str:
    path = shutil.which("curl")
    assert path is not None, "curl is missing"
    return path


async def test_curl_follows_an_event_stream(curl: str) -> None:
    async with serving() as server:
        process = await trio.lowlevel.open_process(
            [curl, "-sN", "-H", "Accept: text/event-stream", f"{server.url}/events?topic=news"],
            stdout=subprocess.PIPE,
        )
        async with ended(process):
            await subscribed(server)
            event_id = await publish(server.url, "news", {"n": 1}, type="t")
            wanted = f'id: {event_id}\nevent: t\ndata: {{"n": 1}}\n\n'.encode()
            seen = b""
            assert process.stdout is not None
            while wanted not in seen:
                data = await process.stdout.receive_some()
                assert data, seen
                seen += data
            server.drain()
            assert b"retry: " in await process.stdout.receive_some()
            # Zero: the body came to its proper end.
            assert await process.wait() == 0


async def run_curl(curl: str, *arguments: str) -> bytes:
    finished = await trio.run_process([curl, "-sS", "--fail-with-body", *arguments], capture_stdout=True)
    return bytes(finished.stdout)


async def test_curl_publishes_and_polls(curl: str) -> None:
    async with serving() as server:
        published = json.loads(await run_curl(curl, "-d", '{"n": 1}', f"{server.url}/publish?topic=news"))
        answer = json.loads(await run_curl(curl, f"{server.url}/events?topic=news&last_id=0-0"))
        assert answer["last_id"] == published["id"]
        assert [event["data"] for event in answer["events"]] == [{"n": 1}]


async def test_curl_expects_100_before_a_large_body(curl: str) -> None:
    async with serving(publish={"max_body": "4MiB", "max_event": "4MiB"}) as server:
        large = json.dumps("x" * 2_000_000)
        with trio.fail_after(HANG_SECONDS):
            process = await trio.run_process(
                [curl, "-sS", "-H", "Expect: 100-continue", "--data-binary", "@-", f"{server.url}/publish?topic=news"],
                stdin=large.encode(),
                capture_stdout=True,
            )
        assert "id" in json.loads(process.stdout)


async def test_curl_sends_in_chunks_and_reuses_its_connection(curl: str) -> None:
    async with serving() as server:
        one = ["-H", "Transfer-Encoding: chunked", "-d", "1", f"{server.url}/publish?topic=news"]
        output = await run_curl(
            curl, *one, "--next", "-sS", f"{server.url}/healthz", "--next", "-sSI", f"{server.url}/"
        )
        assert b'"status":"ok"' in output
        assert server._runtime.counters.accepted == 1


# WebSocket libraries


async def test_trio_websocket() -> None:
    async with serving() as server:
        url = server.url.replace("http", "ws")
        async with trio_websocket.open_websocket_url(
            f"{url}/events?topic=news", subprotocols=["tricast.v1"]
        ) as connection:
            assert connection.subprotocol == "tricast.v1"
            assert json.loads(await connection.get_message())["ok"] == "subscribe"
            await connection.send_message(json.dumps({"op": "publish", "topic": "news", "data": {"n": 1}, "ref": 1}))
            messages = [json.loads(await connection.get_message()) for _ in range(2)]
            assert {"n": 1} in [message.get("data") for message in messages]
            assert 1 in [message.get("ref") for message in messages]
            await connection.ping(b"hello")
        assert connection.closed is not None
        assert connection.closed.code == 1000
        await until(lambda: server.connections == 0)


async def test_websockets() -> None:
    async with serving() as server:
        url = server.url.replace("http", "ws")

        def talk() -> list[object]:
            with connect(f"{url}/ws", subprotocols=["tricast.v1"], compression="deflate") as connection:  # type: ignore[list-item]
                assert connection.subprotocol == "tricast.v1"
                connection.send(json.dumps({"op": "subscribe", "topics": ["news.>"], "last_id": "0-0"}))
                assert json.loads(connection.recv())["ok"] == "subscribe"
                first = json.loads(connection.recv())
                connection.send(["{", '"op"', ':"ping"', "}"])
                second = json.loads(connection.recv())
                assert connection.ping().wait(HANG_SECONDS)
                return [first["data"], second]

        await server.hub.publish("news.a", {"n": 1})
        with trio.fail_after(HANG_SECONDS):
            assert await trio.to_thread.run_sync(talk) == [{"n": 1}, {"ok": "ping"}]
        await until(lambda: server.connections == 0)


async def test_websockets_is_told_of_a_restart() -> None:
    async with serving(drain={"period": "0s"}) as server:
        url = server.url.replace("http", "ws")

        def wait_for_the_end() -> int | None:
            with connect(f"{url}/events?topic=news") as connection:
                assert json.loads(connection.recv())["ok"] == "subscribe"
                with pytest.raises(ConnectionClosedError, match="come back in"):
                    connection.recv()
                return connection.close_code

        async with trio.open_nursery() as nursery:
            codes: list[int | None] = []

            async def run() -> None:
                codes.append(await trio.to_thread.run_sync(wait_for_the_end))

            nursery.start_soon(run)
            await subscribed(server)
            server.drain()
        assert codes == [1012]


# HTTP libraries


async def test_httpx_sse() -> None:
    async with serving(drain={"period": "0s"}) as server, httpx.AsyncClient(base_url=server.url) as client:
        ids = [str(await server.hub.publish("news", {"n": n, "text": "a\nb\r\nc"}, type="t")) for n in range(4)]
        headers = {"Last-Event-ID": ids[0]}
        events = []
        async with aconnect_sse(client, "GET", "/events", params={"topic": "news"}, headers=headers) as source:
            source.response.raise_for_status()
            async for event in source.aiter_sse():
                if event.data:  # it hands out blocks without data as well, which HTML 9.2.6 drops
                    events.append(event)
                if len(events) == 3:
                    server.drain()
        assert [event.id for event in events] == ids[1:]
        assert [event.json() for event in events] == [{"n": n, "text": "a\nb\r\nc"} for n in (1, 2, 3)]
        assert {event.event for event in events} == {"t"}


async def test_httpx_polls() -> None:
    async with serving() as server, httpx.AsyncClient(base_url=server.url) as client:
        last_id, seen = "0-0", []
        for n in range(5):
            response = await client.post("/publish", params={"topic": "news"}, json={"n": n})
            response.raise_for_status()
            answer = (await client.get("/events", params={"topic": "news", "last_id": last_id})).json()
            last_id = answer["last_id"]
            assert last_id == response.json()["id"]
            seen += [event["data"]["n"] for event in answer["events"]]
        assert seen == list(range(5))
        assert server._runtime.counters.accepted == 1


async def test_httpx_is_told_what_is_wrong() -> None:
    async with serving() as server, httpx.AsyncClient(base_url=server.url) as client:
        response = await client.get("/events", params={"topic": "a b"})
        assert response.status_code == 400
        assert response.json()["type"] == "urn:tricast:bad-topic"
