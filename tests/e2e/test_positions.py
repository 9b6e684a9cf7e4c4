"""Positions that are taken over before they were looked up."""

import json

from clients import TEXT, WebSocket, frame, open_websocket
from serving import serving


async def test_topics_added_right_behind_a_position_that_is_ahead_of_the_log() -> None:
    async with serving() as server:
        with await open_websocket(server.url, "/ws") as websocket:
            assert isinstance(websocket, WebSocket)
            ahead = "9999999999999-0"
            operations = [
                {"op": "subscribe", "topics": ["a"], "last_id": ahead},
                {"op": "subscribe", "topics": ["b"]},
            ]
            await websocket.wire.send(b"".join(frame(TEXT, json.dumps(each).encode()) for each in operations))
            for _ in operations:
                assert (await websocket.reply())["ok"] == "subscribe"
            gap = await websocket.gap()
            assert (gap.reason, gap.after) == ("unknown_id", ahead)
            await server.hub.publish("a", 1)
            await server.hub.publish("b", 2)
            assert [event.data for event in await websocket.events(2)] == [1, 2]


async def test_publishing_nothing() -> None:
    async with serving() as server:
        assert await server.hub.append([]) == []
