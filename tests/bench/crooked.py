"""A server that takes events and hands them out over all transports, and does to some of them what it must not."""

import json
from collections.abc import Callable

import h11
import trio
from client.scripted import Left, Peer, ScriptedServer, event_json, gap_json
from wsproto.events import CloseConnection, Ping

#: Handed out in place of an event: "events are missing here".
GAP = "gap"

Crook = Callable[[int, str], list[str]]


def honest(number: int, data: str) -> list[str]:
    return [data]


def dropping(number: int, data: str) -> list[str]:
    return [] if number == 5 else [data]


def duplicating(number: int, data: str) -> list[str]:
    return [data, data] if number == 5 else [data]


def announcing(number: int, data: str) -> list[str]:
    return [GAP] if number == 5 else [data]


class Reordering:
    """Holds one event back until the next one."""

    def __init__(self) -> None:
        self._held: list[str] = []

    def __call__(self, number: int, data: str) -> list[str]:
        if number == 5:
            self._held = [data]
            return []
        held, self._held = self._held, []
        return [data, *held]


class CrookedServer(ScriptedServer):
    """One topic.

    Args:
        crook: what is handed out for each published event.
        refusals: how many subscriptions are answered with 503 first.
        cuts: for how many connections the stream ends behind so many items; later ones go on.
        says_goodbye: whether it says then, on every transport, that it is to be asked again.
        publish_status: what publishers get as an answer.

    Attributes:
        refusals: how many are still to come.
        items: what is handed out: the data of events, or a gap.
        published: how many events came.
        pongs: how many pings were answered.
        subscriptions: how many subscriptions were asked for.
    """

    def __init__(
        self,
        crook: Crook = honest,
        *,
        refusals: int = 0,
        cuts: tuple[int, ...] = (),
        says_goodbye: bool = False,
        publish_status: int = 200,
    ) -> None:
        super().__init__()
        self._crook = crook
        self.refusals = refusals
        self._cuts = list(cuts)
        self._says_goodbye = says_goodbye
        self._publish_status = publish_status
        self._close_codes = [1012, 1013] if says_goodbye else [1011] * len(cuts)
        self._changed = trio.Event()
        self.items: list[str] = []
        self.published = 0
        self.pongs: list[bytes] = []
        self.subscriptions = 0

    async def handle(self, stream: trio.abc.Stream) -> None:
        peer = Peer(stream)
        try:
            while peer.http.our_state is not h11.MUST_CLOSE:
                await peer.read_request()
                await self._answer(peer)
        except (Left, trio.BrokenResourceError, h11.RemoteProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, peer: Peer) -> None:
        if peer.request.method == b"POST":
            await self._take(peer)
        elif peer.request.method == b"HEAD":
            await peer.respond(200, Last_Event_ID=f"{len(self.items)}-0")
        elif self.refusals:
            self.refusals -= 1
            await peer.problem(503, "no room", Retry_After="0")
        else:
            self.subscriptions += 1
            position = int(peer.headers.get("last-event-id", f"{len(self.items)}-0").partition("-")[0])
            if "upgrade" in peer.headers:
                await self._serve_websocket(peer, position)
            elif peer.headers.get("accept") == "text/event-stream":
                await self._serve_stream(peer, position)
            else:
                await self._serve_poll(peer, position)

    async def _take(self, peer: Peer) -> None:
        if self._publish_status != 200:
            await peer.problem(self._publish_status, "not that")
            return
        if not self.subscriptions:  # only whether it would be taken
            await peer.respond(200, "{}", Content_Type="application/json")
            return
        is_batch = peer.headers["content-type"] == "application/x-ndjson"
        lines = peer.body.decode().splitlines()
        for data in (
            [json.dumps(json.loads(line)["data"], separators=(",", ":")) for line in lines] if is_batch else lines
        ):
            self.items += self._crook(self.published, data)
            self.published += 1
        self._changed.set()
        self._changed = trio.Event()
        await peer.respond(200, "{}", Content_Type="application/json")

    async def _item(self, position: int) -> str:
        while len(self.items) <= position:
            await self._changed.wait()
        return self.items[position]

    async def _serve_stream(self, peer: Peer, position: int) -> None:
        await peer._send(h11.Response(status_code=200, headers=[("Content-Type", "text/event-stream")]))
        await peer.chunk(b"retry: 1\nid: %d-0\n\n" % position)
        for _ in range(self._cut()):
            item = await self._item(position)
            kind, data = ("tricast.gap", gap_json(position, position + 1)) if item == GAP else ("message", item)
            position += 1
            await peer.chunk(f"id: {position}-0\nevent: {kind}\ndata: {data}\n\n".encode())
        if self._says_goodbye:
            await peer.chunk(b": restarting\nretry: 10\n\n")
        await peer.end_stream()

    async def _serve_websocket(self, peer: Peer, position: int) -> None:
        await peer.upgrade(f'{{"ok":"subscribe","topics":["bench"],"last_id":"{position}-0"}}')
        await peer.frame(Ping(b"there?"))
        self.pongs.append(bytes((await peer.read_frame()).payload))
        for _ in range(self._cut()):
            item = await self._item(position)
            gap = f'{{"gap":{gap_json(position, position + 1)}}}'
            position += 1
            await peer.frame(gap if item == GAP else event_json(position, data=item))
        code = self._close_codes.pop(0)
        await peer.frame(CloseConnection(code, "restarting, come back in 0.0 s" if code == 1012 else ""))
        await peer.wait_closed()
        raise Left

    async def _serve_poll(self, peer: Peer, position: int) -> None:
        closing = self._connection(peer)
        if closing and self._says_goodbye:
            await peer.respond(204, Last_Event_ID=f"{position}-0", Retry_After="0", **closing)
            return
        item = await self._item(position)
        gap = f',"gap":{gap_json(position, position + 1)}' if item == GAP else ""
        position += 1
        events = "" if item == GAP else event_json(position, data=item)
        body = f'{{"events":[{events}],"last_id":"{position}-0"{gap}}}'
        await peer.respond(200, body, Last_Event_ID=f"{position}-0", **closing)

    def _connection(self, peer: Peer) -> dict[str, str]:
        if self._cuts and sum(heard.method == "GET" for heard in peer.heard) >= self._cuts[0]:
            self._cuts.pop(0)
            return {"Connection": "close"}
        return {}

    def _cut(self) -> int:
        return self._cuts.pop(0) if self._cuts else 10**9
