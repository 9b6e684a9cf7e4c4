"""Holds one connection as its cell says, until it ends, and notes how."""

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import trio

from tricast.client.failures import ClientError, Lost
from tricast.probe.cells import POOL, Mode, Outcome, Plan, State
from tricast.probe.http_link import Fields, Head, HttpLink, open_http
from tricast.probe.link import Cut, End, Ending, Link
from tricast.probe.target import Target
from tricast.probe.websocket_link import WebSocketLink, open_websocket

_PING = b"tricast-probe"
#: Statuses that speak of a timer, when they come late.
_LATE = frozenset({408, 460, 499, 500, 502, 503, 504, 524})
#: So many requests are under way at once that none of them goes out on the connection of another one.
_ECHO_SECONDS = 0.5
_EVENT_STREAM = (("Accept", "text/event-stream"),)


class Paths(NamedTuple):
    """Where a server without companion endpoints has something to hold; what is None is not measured.

    Attributes:
        ws: of a WebSocket.
        sse: of an event stream.
        keepalive: of any answer.
    """

    ws: str | None = None
    sse: str | None = None
    keepalive: str | None = "/"


class Held:
    """One cell as whoever holds it sees it.

    Args:
        outcome: what becomes of it.
        plan: what is held beside it.
        target: what is probed.
        paths: where something can be held, for a server without companion endpoints.
    """

    def __init__(self, outcome: Outcome, plan: Plan, target: Target, paths: Paths) -> None:
        self._link: Link | None = None
        self._paths = paths
        self.outcome = outcome
        self.plan = plan
        self.target = target

    @property
    def mode(self) -> Mode:
        """What happens while it is held."""
        return self.outcome.cell.mode

    @property
    def gap(self) -> float:
        """For a rung, how long nothing does."""
        return self.outcome.cell.gap

    def path(self, name: str, query: list[tuple[str, object]]) -> str:
        """The request target: of the companion endpoint, or of what a foreign server has for this transport.

        Raises:
            ClientError: nothing of that kind is known of it.
        """
        if not self.plan.is_foreign:
            return self.target.companion(name, [*query, ("nonce", self.outcome.nonce)])
        path: str | None = getattr(self._paths, self.outcome.cell.transport)
        if path is None:
            raise ClientError("no path to hold is known")
        return self.target.path(path)

    def fields(self, *more: tuple[str, str]) -> Fields:
        """The headers of a request."""
        return [*([] if self.plan.is_foreign else self.target.credentials()), *more]

    def begin(self, link: Link) -> None:
        """Its time begins now."""
        self._link = link
        self.outcome.began = trio.current_time()
        if self.mode is Mode.KEEPALIVE:
            keep_alive(link, self.plan.interval)

    def answered(self, head: Head) -> None:
        """Remembers who says to be the author."""
        said = [(name, head.header(name)) for name in ("server", "via")]
        self.outcome.page = ", ".join(f"{name}: {value}" for name, value in said if value)

    def came(self, count: int) -> None:
        """So many bytes came behind the head."""
        self.outcome.received_bytes += count

    def refuse(self, why: str) -> None:
        """It never was what it should be."""
        self.outcome.why = why
        self.end(State.REFUSED)

    def cut(self, ending: Ending) -> None:
        """Somebody has ended it. A rung that is ended by being used was lost before, without a word."""
        outcome = self.outcome
        outcome.how, outcome.code, outcome.why = ending.how, ending.code, ending.why
        self.end(State.CUT)
        is_timer = outcome.age >= self.plan.shortest
        if ending.how is End.STATUS:
            is_timer = is_timer and ending.code in _LATE
        if not is_timer:
            outcome.state = State.REFUSED
            outcome.why = ending.why or f"at once: {ending.how} {ending.code or ''}".rstrip()
        elif self.mode is Mode.RUNG and ending.how in (End.FIN, End.RST) and outcome.age >= self.gap:
            outcome.state = State.LOST

    def end(self, state: State) -> None:
        """It is over."""
        self.look()
        self.outcome.state = state

    def look(self) -> None:
        """Notes how old it is, and how silent."""
        outcome, link, now = self.outcome, self._link, trio.current_time()
        if link is not None:
            outcome.age = now - outcome.began
            outcome.quiet = now - max(link.last_sent, link.last_received)
            outcome.silence = max(link.longest_silence, outcome.quiet)


async def hold(held: Held) -> None:
    """Holds a cell until it ends. Cancelling closes its connection, and leaves its outcome as it is."""
    holders: dict[str, Callable[[Held], Awaitable[None]]] = {
        "ws": _hold_websocket,
        "sse": _hold_event_stream,
        "poll": _hold_poll,
        "keepalive": _hold_idle,
        POOL: _leave_behind,
    }
    try:
        await holders[held.outcome.cell.transport](held)
    except Cut as cut:
        held.cut(cut.ending)
    except (Lost, ClientError) as error:
        held.refuse(str(error))


def keep_alive(link: Link, interval: float) -> None:
    """Has the kernel ask now and then whether the other side is there (SO_KEEPALIVE), every so many seconds.

    It knows whole seconds only.
    """
    seconds = max(1, round(interval))
    link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
    link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)


# WebSocket


async def _hold_websocket(held: Held) -> None:
    plan = held.plan
    mode = {Mode.SERVER: "talk", Mode.BOTH: "talk", Mode.PINGED: "echo", Mode.RUNG: "echo"}.get(held.mode, "sink")
    path = held.path("ws", [("mode", mode), ("gap", plan.interval), ("hold", plan.hold)])
    async with open_websocket(held.target) as ws:
        held.begin(ws.link)
        with trio.move_on_after(held.target.settings.first_bytes_timeout) as scope:
            handshake = await ws.shake_hands(path, held.fields())
            held.answered(handshake.head)
            if not handshake.is_open:
                held.refuse(f"no WebSocket: status {handshake.head.status}")
                return
        if scope.cancelled_caught:
            held.refuse("no answer to the handshake")
        elif held.mode is Mode.RUNG:
            await _use_later(held, ws)
        else:
            await _talk(held, ws)


async def _use_later(held: Held, ws: WebSocketLink) -> None:
    """Nothing for a while, and then a ping that must be answered."""
    with trio.move_on_after(held.gap):
        while True:
            await ws.frame()
    with trio.move_on_after(held.plan.patience):
        await ws.pong_of(_PING)
        held.end(State.ANSWERED)
        return
    held.end(State.LOST)


async def _talk(held: Held, ws: WebSocketLink) -> None:
    """Says what the mode has the client say, until the connection ends, or the server is not heard any more."""
    plan = held.plan
    every = {Mode.CLIENT: plan.interval, Mode.BOTH: plan.interval, Mode.PINGED: plan.ping}.get(held.mode)
    patience = float("inf")
    if held.mode in (Mode.SERVER, Mode.BOTH, Mode.PINGED):
        patience = 2 * (every or plan.interval) + plan.patience
    ending: Ending | None = None
    async with trio.open_nursery() as nursery:
        if every is not None:
            nursery.start_soon(_ping_forever, ws, every)
        ending = await _listen(held, ws, patience)
        nursery.cancel_scope.cancel()
    if ending is None:
        held.end(State.LOST)
    else:
        held.cut(ending)


async def _ping_forever(ws: WebSocketLink, every: float) -> None:
    with suppress(Cut):  # who listens is told as well
        while True:
            await trio.sleep(every)
            await ws.ping(_PING)


async def _listen(held: Held, ws: WebSocketLink, patience: float) -> Ending | None:
    """How the connection ends; None if nothing comes for too long."""
    while True:
        try:
            with trio.move_on_after(patience):
                held.came(len((await ws.frame()).payload))
                continue
        except Cut as cut:
            return cut.ending
        return None


# Event streams


async def _hold_event_stream(held: Held) -> None:
    plan = held.plan
    every = {Mode.SERVER: plan.interval, Mode.PINGED: plan.ping}.get(held.mode, 0.0)
    query: list[tuple[str, object]] = [("first", 0), ("cc", "no-store,no-transform"), ("xab", 1)]
    if held.mode is Mode.RUNG:
        query += [("n", 2), ("gap", held.gap)]
    else:
        query += [("n", 1), ("hold", plan.hold), ("every", every)]
    path = held.path("sse", query)
    async with open_http(held.target) as http:
        held.begin(http.link)
        await http.ask("GET", path, held.fields(*_EVENT_STREAM))
        if held.mode is Mode.RUNG:
            await _wait_later(held, http)
        else:
            await _follow(held, http, every)


async def _wait_later(held: Held, http: HttpLink) -> None:
    """Nothing for a while, and then an event that must arrive."""
    with trio.move_on_after(held.gap + held.plan.patience):
        await _read_to_end(held, http)
        held.end(State.ANSWERED)
        return
    # Where even the first event is held back, the second one says nothing of timers.
    if held.outcome.received_bytes:
        held.end(State.LOST)
    else:
        held.refuse("nothing arrives: it is held back")


async def _follow(held: Held, http: HttpLink, every: float) -> None:
    """Takes what comes, until the stream ends, or what came before does not come any more."""
    await _read_head(held, http)
    pieces = 0
    while True:
        # A path that collects what comes has not shown so far how it lets it go.
        patience = 2 * every + held.plan.patience if every and pieces > 2 else float("inf")
        with trio.move_on_after(patience) as scope:
            piece = await http.piece()
            if piece is None:
                raise Cut(Ending(End.COMPLETE, trio.current_time()))
            held.came(len(piece.data))
            pieces += 1
        if scope.cancelled_caught:
            held.end(State.LOST)
            return


async def _read_to_end(held: Held, http: HttpLink) -> None:
    """Waits for all of an answer that comes late.

    Raises:
        Cut: it ended sooner, or not as its framing has it.
    """
    head = await _read_head(held, http)
    try:
        while (piece := await http.piece()) is not None:
            held.came(len(piece.data))
    except Cut as cut:
        is_late = cut.ending.at - held.outcome.began >= held.gap
        if cut.ending.how is not End.FIN or not http.ends_with_connection(head) or not is_late:
            raise


async def _read_head(held: Held, http: HttpLink) -> Head:
    head = await http.head()
    held.answered(head)
    if head.status != 200:
        raise Cut(Ending(End.STATUS, head.at, head.status))
    return head


# Polls, and connections between two requests


async def _hold_poll(held: Held) -> None:
    delay = held.gap if held.mode is Mode.RUNG else held.plan.hold
    path = held.path("poll", [("delay", delay)])
    async with open_http(held.target) as http:
        held.begin(http.link)
        await http.ask("GET", path, held.fields())
        with trio.move_on_after(delay + held.plan.patience):
            await _read_to_end(held, http)
            held.end(State.ANSWERED)
            return
        held.end(State.LOST)


async def _hold_idle(held: Held) -> None:
    """One request, nothing for a while, and another one on the same connection."""
    path = held.path("echo", [])
    async with open_http(held.target) as http:
        held.begin(http.link)
        await http.ask("GET", path, held.fields())
        answer = await http.answer()
        if http.ends_with_connection(answer.head) or not http.is_reusable():
            held.refuse("the connection is not kept after an answer")
            return
        held.begin(http.link)
        seconds = held.gap if held.mode is Mode.RUNG else float("inf")
        with trio.move_on_after(seconds):
            await http.link.receive()
            raise Cut(Ending(End.GARBLED, trio.current_time(), why="bytes that nobody asked for"))
        with trio.move_on_after(held.plan.patience):
            await http.ask("GET", path, held.fields())
            await http.answer()
            held.end(State.ANSWERED)
            return
        held.end(State.LOST)


async def _leave_behind(held: Held) -> None:
    """One request, whose client leaves; its connection to the server may be kept, and only the server can tell."""
    path = held.path("echo", [("delay", _ECHO_SECONDS)])
    async with open_http(held.target) as http:
        held.begin(http.link)
        await http.ask("GET", path, held.fields())
        answer = await http.answer()
        if answer.status != 200:
            raise Cut(Ending(End.STATUS, answer.head.at, answer.status))
    await trio.sleep_forever()
