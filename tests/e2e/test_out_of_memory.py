"""Over the memory watermark new work is refused and may come back; who is there is served on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from clients import TEXT, Answer, Wire, ask, attempt, frame, head, open_websocket, read_answer, subscribe
from serving import metrics_of, serving

import tricast
from tricast.memory import Usage

#: For the time of a test, nothing is measured but what it says.
HIGH = "1000GiB"


@asynccontextmanager
async def short_of_memory(**sections: Any) -> AsyncIterator[tricast.Server]:
    """A server with plenty of memory, which a test can set to have none."""
    async with serving(limits={"memory": HIGH}, **sections) as server:
        yield server


def set_memory(server: tricast.Server, *, is_over: bool) -> None:
    """Has the server find that it takes too much, or little."""
    watermark = server._runtime.memory
    watermark._measure = lambda: Usage(2 * watermark.allowed if is_over else 0, 0)
    watermark.sample()


def check_refused(answer: Answer) -> None:
    assert (answer.status, answer.code) == (503, "overloaded")
    assert 5 <= int(answer.headers["retry-after"]) <= 8


async def test_new_work_is_refused_and_who_is_there_is_served() -> None:
    async with short_of_memory() as server:
        with (
            await subscribe("sse", server.url, "news") as stream,
            await subscribe("ws", server.url, "news") as websocket,
            await Wire.open(server.url) as waiting,
        ):
            await waiting.send(head("GET", "/events?topic=news"))
            while server.hub.statistics().subscribers < 3:
                await ask(server.url, "GET", "/healthz")
            set_memory(server, is_over=True)
            for transport in ("poll", "sse", "ws"):
                check_refused(await attempt(transport, server.url, "topic=news"))
            check_refused(await ask(server.url, "POST", "/publish?topic=news", body=b"1"))
            check_refused(await ask(server.url, "GET", "/readyz"))
            for operation in ({"op": "publish", "topic": "news", "data": 1}, {"op": "subscribe", "topics": ["more"]}):
                refused = await websocket.operate(**operation)  # type: ignore[attr-defined]
                assert refused["error"]["code"] == "overloaded"
            assert (await ask(server.url, "GET", "/healthz")).status == 200
            metrics = await metrics_of(server.url)
            assert metrics["memory_over",] == 1
            assert metrics["refusals_total", "limits.memory"] == 7

            await server.hub.publish("news", "for those who are there")
            for subscriber in (stream, websocket):
                assert (await subscriber.event()).data == "for those who are there"
            assert (await read_answer(waiting)).status == 200

            set_memory(server, is_over=False)
            assert (await ask(server.url, "GET", "/readyz")).status == 200
            assert (await ask(server.url, "POST", "/publish?topic=news", body=b"1")).status == 200
            assert (await websocket.operate(op="subscribe", topics=["more"]))["ok"]  # type: ignore[attr-defined]
            assert (await metrics_of(server.url))["memory_over",] == 0


async def test_a_handler_that_publishes_is_told_and_its_client_comes_back_later() -> None:
    handler = [{"path": "/publish-all", "handler": "talking:publish"}]
    async with short_of_memory(websocket={"handler": handler}) as server:
        with await open_websocket(server.url, "/publish-all") as websocket:
            set_memory(server, is_over=True)
            await websocket.wire.send(frame(TEXT, b"hello"))
            assert (await websocket.closed()).code == 1013
        metrics = await metrics_of(server.url)
        assert metrics["connections_failed_total",] == 0
        assert metrics["refusals_total", "limits.memory"] == 1
