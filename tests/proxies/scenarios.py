"""What a client does and what an origin does, and in words what each of the two saw, when, and how it ended.

A scenario knows nothing of what stands between the two. What it tells is the same whenever the same thing happens:
dates, the text of error pages and milliseconds are left out, and times are told as multiples of the one timer, which
all programs are configured to have.
"""

import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import trio
from proxies.origin import Exchange, Origin, Script, answer, response_head
from proxies.recorder import End, Gone, Recorder, Response, read_responses

#: Seconds: every timer of every program, where it has one. Apache knows whole seconds only.
TIMER = 2.0
#: Seconds in which what happens at once has happened.
SOON = TIMER / 2
#: Seconds after which what has not happened is taken not to happen.
HORIZON = 2.7 * TIMER


#: What the story of a scenario that could not be played begins with.
BROKEN = "broken"


class Outcome(NamedTuple):
    """What the client saw, and what the origin saw, one after the other."""

    client: tuple[str, ...]
    origin: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.client) or 'nothing'} / {', '.join(self.origin) or 'nothing'}"


class Cell:
    """A scenario that is run through one program.

    Args:
        name: what requests are recognised by.
        port: of the program, on 127.0.0.1.
        origin: behind it.
        nursery: for what the scenario does at once.
    """

    def __init__(self, name: str, port: int, origin: Origin, nursery: trio.Nursery) -> None:
        self.name = name
        self.origin = origin
        self._port = port
        self._nursery = nursery
        self._clients: list[Recorder] = []
        self.begun = trio.current_time()

    async def connect(self, *, receive_buffer: int = 0) -> Recorder:
        """A new connection of a client."""
        sock = trio.socket.socket()
        client = Recorder(sock)
        self._clients.append(client)
        if receive_buffer:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", self._port))
        self._nursery.start_soon(client.record)
        return client

    async def ask(self, *fields: str, method: str = "GET", version: str = "1.1", body: bytes = b"") -> Recorder:
        """A client that has sent a request, just now."""
        client = await self.connect()
        await self.send(client, self.request(*fields, method=method, version=version) + body)
        return client

    async def send(self, client: Recorder, data: bytes) -> None:
        """Sends it; what comes afterwards is told by the time from now."""
        self.begun = trio.current_time()
        with suppress(Gone):  # it is told as how it ended
            await client.send(data)

    def request(self, *fields: str, method: str = "GET", version: str = "1.1", suffix: str = "") -> bytes:
        """A request's head."""
        lines = [f"{method} /{self.name}{suffix} HTTP/{version}", "Host: test.example", *fields, "", ""]
        return "\r\n".join(lines).encode("latin-1")

    async def exchange(self, seconds: float = SOON) -> Exchange | None:
        """What the origin saw, if it saw it within so many seconds."""
        return await self.origin.wait_exchange(self.name, seconds)

    def since(self, time: float) -> str:
        """In words, how long after the beginning something happened."""
        elapsed = (time - self.begun) / TIMER
        words = ("", " after T", " after 2T", " after 3T")
        return words[max(0, min(3, int(elapsed + 0.4)))]

    def ending(self, end: End | None) -> str:
        """In words, how the connection ended."""
        return "stays open" if end is None else end.how + self.since(end.time)

    def told(self, client: Recorder, *methods: str) -> list[str]:
        """In words, the responses that the client got, whatever else it got, and how its connection ended."""
        responses, rest = read_responses(bytes(client.data), *methods, ended=client.end and client.end.how)
        story = [tell(response) + self.since(arrived(client, response.at)) for response in responses]
        return [*story, *(["other bytes"] if rest else []), self.ending(client.end)]

    def close(self) -> None:
        """Ends all of the client's connections."""
        for client in self._clients:
            client.close()


def tell(response: Response) -> str:
    """In words, a response, with the body if it is the origin's own."""
    text = str(response.status)
    if response.get("x-origin") and 0 < len(response.body) <= 24:
        text += f" {response.body.decode('latin-1')!r}"
    return text + {"whole": "", "short": " cut short", "begun": " unfinished"}[response.state]


def counted(count: int) -> str:
    """In words, how many requests."""
    return "1 request" if count == 1 else f"{count} requests"


def arrived(recorder: Recorder, place: int) -> float:
    """When the byte at that place came."""
    for arrival in recorder.arrivals:
        place -= len(arrival.data)
        if place < 0:
            return arrival.time
    raise AssertionError("there is no such byte")


def has_final(client: Recorder, *methods: str, count: int = 1) -> Callable[[], bool]:
    """A condition: so many whole final responses have come."""

    def condition() -> bool:
        responses, _ = read_responses(bytes(client.data), *methods)
        return sum(one.status >= 200 and one.state == "whole" for one in responses) >= count

    return condition


async def settled(client: Recorder, *methods: str, seconds: float = SOON, count: int = 1) -> None:
    """Returns when a whole response has come, and then its end, or time enough for one."""
    await client.wait(has_final(client, *methods, count=count), seconds)
    await client.wait_end(SOON / 2)


Play = Callable[[Cell], Awaitable[Outcome]]


class Scenario(NamedTuple):
    """What is played.

    Attributes:
        matrix: the kind of thing that it shows.
        title: what happens, in words.
        play: the client's part.
        script: the origin's.
        name: the same in every request.
        is_alone: True if it may spoil connections to the origin, which others would use: it is played by itself.
    """

    matrix: str
    title: str
    play: Play
    script: Script
    name: str
    is_alone: bool


SCENARIOS: dict[str, Scenario] = {}
#: The matrices, in the order of the table, with what each one shows.
MATRICES = {
    "tunnel": "Upgrade and tunnel",
    "stream": "Latency of a stream of events",
    "end": "How a response ends",
    "leave": "The client leaves",
    "slow": "Slow origins, slow clients, and timers",
    "body": "Bodies and interim responses",
    "field": "Header fields",
    "framing": "Framing of requests",
}


def add(matrix: str, title: str, play: Play, script: Script = answer, is_alone: bool = False) -> None:
    """Makes it one of the scenarios."""
    name = f"c-{matrix}-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    assert name not in SCENARIOS, name
    SCENARIOS[name] = Scenario(matrix, title, play, script, name, is_alone)


def scenario(matrix: str, title: str, script: Script = answer) -> Callable[[Play], Play]:
    """Makes the function one of the scenarios."""

    def decorate(play: Play) -> Play:
        add(matrix, title, play, script)
        return play

    return decorate


async def play_all(port: int, origin: Origin, names: Collection[str]) -> dict[str, Outcome]:
    """The outcomes of the scenarios of these names, each on connections of its own.

    Those that can share the program do so, all at once; then come the others, one by one.
    """
    outcomes: dict[str, Outcome] = {}

    async def play(one: Scenario) -> None:
        async with trio.open_nursery() as nursery:
            cell = Cell(one.name, port, origin, nursery)
            try:
                outcomes[one.name] = await one.play(cell)
            except Exception as error:  # noqa: BLE001 - one cell that breaks hides no other
                outcomes[one.name] = Outcome((f"{BROKEN}: {error!r}",), ())
            cell.close()
            nursery.cancel_scope.cancel()

    chosen = [SCENARIOS[name] for name in names]
    async with trio.open_nursery() as nursery:
        for one in chosen:
            if not one.is_alone:
                nursery.start_soon(play, one)
                await trio.sleep(0.005)  # programs are asked to do many things at once, not all in one moment
    for one in chosen:
        if one.is_alone:
            await play(one)
            origin.hang_up(one.name)
    return {one.name: outcomes[one.name] for one in chosen}


# Upgrade and tunnel

HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
#: A text frame from the client, and the same from the server (RFC 6455 5.7).
CLIENT_FRAME = b"\x81\x85\x00\x00\x00\x00hello"
SERVER_FRAME = b"\x81\x05hello"
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nX-Origin: yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def switch(exchange: Exchange, behind: bytes = b"") -> bool:
    """Answers a handshake with 101, and whatever follows that at once, and any other request with 426."""
    if exchange.get("upgrade") is None:
        await exchange.answer(b"no", "426 Upgrade Required", "Upgrade: websocket", "Connection: Upgrade")
        return False
    await exchange.send(SWITCHING + behind)
    return True


async def hold(exchange: Exchange) -> None:
    """Does nothing more until the other side ends the connection; then ends it as well."""
    await exchange.peer.wait_end(float("inf"))
    exchange.close()


async def switch_and_hold(exchange: Exchange) -> None:
    """Opens a tunnel, and is silent."""
    if await switch(exchange):
        await hold(exchange)


async def switch_and_echo(exchange: Exchange) -> None:
    """Opens a tunnel, and says the frame for the frame."""
    if await switch(exchange):
        while await exchange.peer.wait(lambda: CLIENT_FRAME in exchange.behind, float("inf")):
            exchange.place += len(CLIENT_FRAME)
            await exchange.send(SERVER_FRAME)
        exchange.close()


async def switch_and_speak(exchange: Exchange) -> None:
    """Opens a tunnel, and says something three times in the time of a timer, for the time of two."""
    if await switch(exchange):
        for _ in range(6):
            await trio.sleep(TIMER / 3)
            await exchange.send(SERVER_FRAME)
        await hold(exchange)


async def open_tunnel(cell: Cell, *fields: str, version: str = "1.1") -> tuple[Recorder, Exchange | None]:
    """A client with the answer to its handshake, and what the origin saw of that if it was 101."""
    client = await cell.ask(*(fields or HANDSHAKE), version=version)
    await client.wait(lambda: b"\r\n\r\n" in client.data, SOON)
    if not client.data.startswith(b"HTTP/1.1 101"):
        return client, None
    return client, await cell.exchange()


def upgrade_seen(cell: Cell) -> str:
    """In words, what became of the Upgrade on the way to the origin."""
    exchanges = cell.origin.of(cell.name)
    if not exchanges:
        return "nothing"
    token = exchanges[0].get("upgrade")
    return f"HTTP/{exchanges[0].version}, " + ("no Upgrade" if token is None else f"Upgrade: {token}")


async def refused(cell: Cell, client: Recorder) -> Outcome:
    """What is told of a handshake that did not succeed."""
    await settled(client)
    return Outcome(tuple(cell.told(client)), (upgrade_seen(cell),))


async def frame_and_back(cell: Cell, version: str = "1.1", fields: tuple[str, ...] = HANDSHAKE) -> Outcome:
    """A handshake, and one frame each way."""
    client, exchange = await open_tunnel(cell, *fields, version=version)
    if exchange is None:
        return await refused(cell, client)
    await client.send(CLIENT_FRAME)
    echoed = await client.wait_data(SERVER_FRAME, SOON)
    return Outcome(("101", "echo" if echoed else "no echo", cell.ending(client.end)), (upgrade_seen(cell),))


async def switch_to_any(exchange: Exchange) -> None:
    """Opens a tunnel of whatever protocol was asked for, and says the frame for the frame."""
    if (token := exchange.get("upgrade")) is None:
        await switch(exchange)
        return
    await exchange.send(SWITCHING.replace(b"websocket", token.encode()))
    await exchange.peer.wait(lambda: CLIENT_FRAME in exchange.behind, float("inf"))
    await exchange.send(SERVER_FRAME)
    await hold(exchange)


add("tunnel", "handshake, a frame each way", frame_and_back, switch_and_echo)
add("tunnel", "handshake in HTTP/1.0", partial(frame_and_back, version="1.0"), switch_and_echo)
add(
    "tunnel",
    "Upgrade to another protocol",
    partial(frame_and_back, fields=("Connection: Upgrade", "Upgrade: chat")),
    switch_to_any,
)
add(
    "tunnel",
    "Upgrade that Connection does not name",
    partial(frame_and_back, fields=HANDSHAKE[1:]),
    switch_and_echo,
)


@scenario("tunnel", "silent tunnel", switch_and_hold)
async def silent_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await client.wait_end(HORIZON)
    await exchange.peer.wait_end(SOON / 2)
    return Outcome(("101", cell.ending(client.end)), (cell.ending(exchange.end),))


@scenario("tunnel", "only the client speaks", switch_and_hold)
async def only_the_client_speaks(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    for _ in range(6):
        await client.wait_end(TIMER / 3)
        if client.end is None:
            try:
                await client.send(CLIENT_FRAME)
            except Gone:
                break
    return Outcome(("101", cell.ending(client.end)), (cell.ending(exchange.end),))


@scenario("tunnel", "only the origin speaks", switch_and_speak)
async def only_the_origin_speaks(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await client.wait_end(6.5 * TIMER / 3)
    return Outcome(("101", cell.ending(client.end)), (cell.ending(exchange.end),))


async def switch_and_speak_at_once(exchange: Exchange) -> None:
    """Opens a tunnel, with a frame in the same bytes as the head."""
    if await switch(exchange, SERVER_FRAME):
        await hold(exchange)


@scenario("tunnel", "frame in the same bytes as the 101", switch_and_speak_at_once)
async def frame_with_the_101(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    came = await client.wait_data(SERVER_FRAME, SOON)
    return Outcome(("101", "frame" if came else "no frame"), ())


@scenario("tunnel", "frame in the same bytes as the handshake", switch_and_hold)
async def frame_with_the_handshake(cell: Cell) -> Outcome:
    client = await cell.connect()
    await cell.send(client, cell.request(*HANDSHAKE) + CLIENT_FRAME)
    exchange = await cell.exchange()
    await client.wait(lambda: b"\r\n\r\n" in client.data, SOON)
    if exchange is None or not client.data.startswith(b"HTTP/1.1 101"):
        return await refused(cell, client)
    came = await exchange.peer.wait_data(CLIENT_FRAME, SOON)
    return Outcome(("101",), ("frame" if came else "no frame",))


async def switch_and_answer_the_end(exchange: Exchange) -> None:
    """Opens a tunnel; when the other side has ended its direction, says something and ends it as well."""
    if await switch(exchange):
        await exchange.peer.wait_end(float("inf"))
        await exchange.send(SERVER_FRAME)
        exchange.close()


@scenario("tunnel", "client ends its direction of the tunnel", switch_and_answer_the_end)
async def client_half_closes_a_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    cell.begun = trio.current_time()
    client.finish()
    await client.wait_end(HORIZON)
    await exchange.peer.wait_end(SOON / 2)
    late = ["frame"] if SERVER_FRAME in client.data else []
    return Outcome(("101", *late, cell.ending(client.end)), (cell.ending(exchange.end),))


async def switch_and_finish(exchange: Exchange) -> None:
    """Opens a tunnel, and ends its own direction of it when the other side has said something."""
    if await switch(exchange):
        await exchange.peer.wait(lambda: CLIENT_FRAME in exchange.behind, float("inf"))
        exchange.finish()
        await hold(exchange)


@scenario("tunnel", "origin ends its direction of the tunnel", switch_and_finish)
async def origin_half_closes_a_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await cell.send(client, CLIENT_FRAME)
    await client.wait_end(HORIZON)
    await exchange.peer.wait_end(SOON / 2)
    was_open = exchange.end is None
    with suppress(Gone):
        await client.send(b"late")
    late = ["late bytes"] if was_open and await exchange.peer.wait_data(b"late", SOON / 2) else []
    client.close()
    await exchange.peer.wait_end(SOON)
    return Outcome(("101", cell.ending(client.end)), (*late, cell.ending(exchange.end)))


@scenario("tunnel", "client resets the tunnel", switch_and_echo)
async def client_resets_a_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await client.send(CLIENT_FRAME)
    await client.wait_data(SERVER_FRAME, SOON)
    cell.begun = trio.current_time()
    client.reset()
    await exchange.peer.wait_end(HORIZON)
    return Outcome(("101",), (cell.ending(exchange.end),))


@scenario("tunnel", "client closes the tunnel", switch_and_echo)
async def client_closes_a_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await client.send(CLIENT_FRAME)
    await client.wait_data(SERVER_FRAME, SOON)
    cell.begun = trio.current_time()
    client.close()
    await exchange.peer.wait_end(HORIZON)
    return Outcome(("101",), (cell.ending(exchange.end),))


async def switch_and_end(exchange: Exchange, *, reset: bool) -> None:
    """Opens a tunnel, and ends it when the other side has said something."""
    if await switch(exchange):
        await exchange.peer.wait(lambda: CLIENT_FRAME in exchange.behind, float("inf"))
        if reset:
            exchange.reset()
        else:
            exchange.close()


async def origin_ends_a_tunnel(cell: Cell) -> Outcome:
    """The tunnel's end as the client sees it."""
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await cell.send(client, CLIENT_FRAME)
    await client.wait_end(HORIZON)
    return Outcome(("101", cell.ending(client.end)), ())


add("tunnel", "origin resets the tunnel", origin_ends_a_tunnel, partial(switch_and_end, reset=True))
add("tunnel", "origin closes the tunnel", origin_ends_a_tunnel, partial(switch_and_end, reset=False))


async def refuse(exchange: Exchange) -> None:
    """Answers with 426."""
    await exchange.answer(b"no", "426 Upgrade Required", "Upgrade: websocket", "Connection: Upgrade")


@scenario("tunnel", "frame after a refused handshake", refuse)
async def frame_after_a_refusal(cell: Cell) -> Outcome:
    client = await cell.ask(*HANDSHAKE)
    await client.wait(has_final(client), SOON)
    await cell.send(client, CLIENT_FRAME + b"\r\n\r\n")
    await client.wait_end(SOON)
    passed = ["frame"] if cell.origin.saw(CLIENT_FRAME) and passed_on(cell, CLIENT_FRAME) else []
    return Outcome(tuple(cell.told(client)), tuple(passed))


def passed_on(cell: Cell, data: bytes) -> bool:
    """Whether the data reached the origin behind a request of this scenario."""
    return any(data in exchange.peer.data for exchange in cell.origin.of(cell.name))


@scenario("tunnel", "request after a refused handshake", refuse)
async def request_after_a_refusal(cell: Cell) -> Outcome:
    client = await cell.ask(*HANDSHAKE)
    await client.wait(has_final(client), SOON)
    inner = cell.request("x-iNNer: yes", suffix="?inner")
    await cell.send(client, inner)
    await settled(client, count=2)
    unseen = passed_on(cell, inner)
    return Outcome(tuple(cell.told(client)), ("byte for byte as the client sent it" if unseen else "a request",))


async def switch_unasked(exchange: Exchange) -> None:
    """Answers a request without Upgrade with 101, and ends the connection a little later."""
    await exchange.send(SWITCHING + SERVER_FRAME)
    await exchange.peer.wait_end(SOON / 4)
    exchange.close()


async def one_answer(cell: Cell, *fields: str, method: str = "GET", body: bytes = b"") -> Outcome:
    """A request, and whatever comes for it."""
    client = await cell.ask(*fields, method=method, body=body)
    await settled(client, method)
    return Outcome(tuple(cell.told(client, method)), ())


add("tunnel", "101 that was not asked for", one_answer, switch_unasked)


async def switch_to_another(exchange: Exchange) -> None:
    """Answers a handshake with 101 to another protocol."""
    if exchange.get("upgrade") is None:
        await switch(exchange)
    else:
        await exchange.send(SWITCHING.replace(b"websocket", b"other"))
        await hold(exchange)


async def switch_to_nothing(exchange: Exchange) -> None:
    """Answers a handshake with 101 that names no protocol."""
    if exchange.get("upgrade") is None:
        await switch(exchange)
    else:
        await exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nX-Origin: yes\r\n\r\n")
        await hold(exchange)


add("tunnel", "101 to another protocol", lambda cell: one_answer(cell, *HANDSHAKE), switch_to_another)
add("tunnel", "101 that names no protocol", lambda cell: one_answer(cell, *HANDSHAKE), switch_to_nothing)


@scenario("tunnel", "POST with Upgrade and a body", switch)
async def post_with_upgrade(cell: Cell) -> Outcome:
    client = await cell.ask(*HANDSHAKE, "Content-Length: 4", method="POST", body=b"body")
    await settled(client)
    return Outcome(tuple(cell.told(client)), (upgrade_seen(cell),))


# Latency of a stream of events

EVENTS = 6
GAP = 0.3
#: Seconds between the last event and the end of the stream.
LAST_GAP = 0.9
DURATION = (EVENTS - 1) * GAP + LAST_GAP


def event(number: int, size: int = 0) -> bytes:
    """An event; of so many bytes, if that is more than it needs."""
    start = b"data: event %d" % number
    return start + b" " * max(0, size - len(start) - 2) + b"\n\n"


_CHUNKED = "Transfer-Encoding: chunked"


def chunk(data: bytes) -> bytes:
    """The data as a chunk (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def stream_events(exchange: Exchange, *fields: str, framing: str = "", first: float = 0.0, size: int = 0) -> None:
    """Sends events, each at its time.

    Args:
        exchange: to answer.
        fields: more of the response.
        framing: "length", "close" or "chunked"; as the request's version allows if it does not say.
        first: seconds between the head and the first event.
        size: of an event, at least, in bytes.
    """
    framing = framing or ("close" if exchange.version == "1.0" else "chunked")
    total = sum(len(event(number, size)) for number in range(EVENTS))
    field = {
        "chunked": "Transfer-Encoding: chunked",
        "close": "Connection: close",
        "length": f"Content-Length: {total}",
    }
    head = response_head("200 OK", "Content-Type: text/event-stream", field[framing], *fields)
    wrap = chunk if framing == "chunked" else bytes
    exchange.mark("head")
    if first:
        await exchange.send(head)
        await trio.sleep(first)
        head = b""
    for number in range(EVENTS):
        exchange.mark(f"event {number}")
        await exchange.send(head + wrap(event(number, size)))
        head = b""
        await trio.sleep(GAP if number < EVENTS - 1 else LAST_GAP)
    exchange.mark("end")
    if framing == "chunked":
        await exchange.send(b"0\r\n\r\n")
    elif framing == "close":
        exchange.close()


def delays(client: Recorder, exchange: Exchange) -> str:
    """In words, how long the events were under way."""
    times = [client.time_of(event(number).rstrip()) for number in range(EVENTS)]
    if None in times:
        return f"{sum(time is not None for time in times)} of {EVENTS} events"
    late = [time - exchange.times[f"event {number}"] for number, time in enumerate(times) if time is not None]
    if late[0] > 0.8 * DURATION:
        return "events at the end"
    middle = sorted(late)[EVENTS // 2]
    return "events at once" if middle < 0.1 else "events 0.2 s late" if middle < 0.4 else "events later"


def head_delay(client: Recorder, exchange: Exchange) -> str:
    """In words, when the head came."""
    came = client.time_of(b"\r\n\r\n")
    if came is None:
        return "no head"
    late = came - exchange.times["head"]
    if late < 0.1:
        return "head at once"
    if came < exchange.times["event 0"]:
        return "head 0.2 s late"
    return "head with the first event" if came < exchange.times["event 0"] + DURATION / 2 else "head at the end"


async def events(cell: Cell, *, head: bool = False, accel: bool = False) -> Outcome:
    """One client's stream, to its end."""
    client = await cell.ask("Accept: text/event-stream")
    exchange = await cell.exchange()
    if exchange is None:
        return Outcome(tuple(cell.told(client)), ())
    await client.wait(has_final(client), DURATION + SOON * 2)
    responses, _ = read_responses(bytes(client.data), ended=client.end and client.end.how)
    story = [tell(one) for one in responses]
    if head:
        story.append(head_delay(client, exchange))
    story.append(delays(client, exchange))
    if accel:
        seen = responses and responses[0].get("x-accel-buffering")
        story.append("sees X-Accel-Buffering" if seen else "does not see X-Accel-Buffering")
    return Outcome(tuple(story), ())


_NO_BUFFERING = "X-Accel-Buffering: no"
add("stream", "events, framed as the request's version allows", events, stream_events)
add("stream", "the same with X-Accel-Buffering: no", partial(events, accel=True),
    lambda exchange: stream_events(exchange, _NO_BUFFERING))  # fmt: skip
add("stream", "events in chunks", events, partial(stream_events, framing="chunked"))
add("stream", "events up to the end of the connection", events, partial(stream_events, framing="close"))
add("stream", "events in a body of known length", events, partial(stream_events, framing="length"))
add("stream", "the same length with X-Accel-Buffering: no", events,
    lambda exchange: stream_events(exchange, _NO_BUFFERING, framing="length"))  # fmt: skip
add("stream", "head long before the first event", partial(events, head=True), partial(stream_events, first=0.6))
add("stream", "the same head with X-Accel-Buffering: no", partial(events, head=True),
    lambda exchange: stream_events(exchange, _NO_BUFFERING, first=0.6))  # fmt: skip


async def second_client(cell: Cell) -> Outcome:
    first = await cell.ask("Accept: text/event-stream")
    if await cell.exchange() is None:
        return Outcome(tuple(cell.told(first)), ())
    await trio.sleep(2.5 * GAP)
    exchange = cell.origin.of(cell.name)[0]
    second = await cell.connect()
    asked = trio.current_time()
    await second.send(cell.request("Accept: text/event-stream"))
    await second.wait(has_final(second), DURATION + SOON * 2)
    count = len(cell.origin.of(cell.name))
    came = second.time_of(event(EVENTS - 1))
    ahead = came is not None and came < asked + (EVENTS - 2) * GAP and exchange.times["event 1"] < asked
    return Outcome(
        ("the events that others got before" if ahead else "events of its own",),
        (counted(count),),
    )


add("stream", "second client for the same stream", second_client, stream_events)
add("stream", "second client, Cache-Control: no-cache", second_client,
    lambda exchange: stream_events(exchange, "Cache-Control: no-cache"))  # fmt: skip


# How a response ends


#: Seconds between what is sent apart, so that each part is seen by itself. Caddy waits 0.2 s for the beginning of a
#: request's body before it sends the head.
APART = 0.5


class Ending(NamedTuple):
    """A response and how the origin goes on.

    Its head is sent some time before the body, where it has one, and the body before the end.

    Attributes:
        title: of the scenario.
        data: that it sends.
        then: "" stays, or "FIN", or "RST".
        method: of the request.
        leaves_bytes: True if there can be bytes left on a connection that is used again.
    """

    title: str
    data: bytes
    then: str = ""
    method: str = "GET"
    leaves_bytes: bool = False


def _with(*fields: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    return response_head(status, *fields) + body


ENDINGS = [
    Ending("whole, with a length", _with("Content-Length: 5", body=b"whole")),
    Ending("whole, in chunks", _with(_CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\n")),
    Ending("whole, up to the end of the connection", _with("Connection: close", body=b"whole"), "FIN"),
    Ending("length not reached, FIN", _with("Content-Length: 10", body=b"part"), "FIN"),
    Ending("length not reached, RST", _with("Content-Length: 10", body=b"part"), "RST"),
    Ending("no last chunk, FIN", _with(_CHUNKED, body=b"4\r\npart\r\n"), "FIN"),
    Ending("no last chunk, RST", _with(_CHUNKED, body=b"4\r\npart\r\n"), "RST"),
    Ending("within a chunk, FIN", _with(_CHUNKED, body=b"a\r\npart"), "FIN"),
    Ending("up to the end of the connection, RST", _with("Connection: close", body=b"part"), "RST"),
    Ending("no answer, FIN", b"", "FIN"),
    Ending("no answer, RST", b"", "RST"),
    Ending("half a head, FIN", b"HTTP/1.1 200 OK\r\nContent-Le", "FIN"),
    Ending("no HTTP", b"220 mail.example ESMTP\r\n\r\n", "FIN"),
    Ending("bytes behind a length", _with("Content-Length: 5", body=b"wholesurplus"), leaves_bytes=True),
    Ending("another response behind the response",
           _with("Content-Length: 5", body=b"whole") + _with("Content-Length: 6", body=b"poison"), leaves_bytes=True),
    Ending("bytes behind the last chunk", _with(_CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\nsurplus"), leaves_bytes=True),
    Ending("204 with a length and a body", _with("Content-Length: 5", body=b"whole", status="204 None"),
           leaves_bytes=True),
    Ending("204 in chunks", _with(_CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\n", status="204 None"), leaves_bytes=True),
    Ending("304 with a length", _with("Content-Length: 5", status="304 Not Modified")),
    Ending("304 with a body", _with("Content-Length: 5", body=b"whole", status="304 Not Modified"), leaves_bytes=True),
    Ending("HEAD with a length", _with("Content-Length: 5"), method="HEAD"),
    Ending("HEAD with a body", _with("Content-Length: 5", body=b"whole"), method="HEAD", leaves_bytes=True),
    Ending("two lengths that differ", _with("Content-Length: 5", "Content-Length: 6", body=b"whole!"),
           leaves_bytes=True),
    Ending("two lengths that agree", _with("Content-Length: 5", "Content-Length: 5", body=b"whole")),
    Ending("length and chunks", _with("Content-Length: 5", _CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\n"),
           leaves_bytes=True),
    Ending("length that is no number", _with("Content-Length: 5x", body=b"whole")),
    Ending("length with a sign", _with("Content-Length: +5", body=b"whole")),
    Ending("length of twenty digits", _with("Content-Length: 99999999999999999999", body=b"whole"), "FIN"),
    Ending("unknown transfer coding", _with("Transfer-Encoding: odd", body=b"whole"), "FIN"),
    Ending("chunk size that is none", _with(_CHUNKED, body=b"x\r\nwhole\r\n0\r\n\r\n"), "FIN"),
    Ending("chunk with bytes too many", _with(_CHUNKED, body=b"5\r\nwhole!\r\n0\r\n\r\n"), "FIN"),
    Ending("chunk extensions", _with(_CHUNKED, body=b"5;a=b\r\nwhole\r\n0;c\r\n\r\n")),
    Ending("chunks in HTTP/1.0", _with(_CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\n").replace(b"1.1", b"1.0", 1), "FIN"),
    Ending("version 2.0", _with("Content-Length: 5", body=b"whole").replace(b"1.1", b"2.0", 1)),
    Ending("status 600", _with("Content-Length: 5", body=b"whole", status="600 Odd")),
    Ending("status of two digits", _with("Content-Length: 5", body=b"whole", status="20 Odd")),
    Ending("space before a colon", _with("Content-Length: 5", "X-A : b", body=b"whole")),
    Ending("folded field", _with("Content-Length: 5", "X-A: b\r\n c", body=b"whole")),
    Ending("lines that end in LF", _with("Content-Length: 5", body=b"whole").replace(b"\r", b"")),
    Ending("field of 3 KB", _with("Content-Length: 5", "X-A: " + "a" * 3000, body=b"whole")),
    Ending("field of 6 KB", _with("Content-Length: 5", "X-A: " + "a" * 6000, body=b"whole")),
    Ending("field of 12 KB", _with("Content-Length: 5", "X-A: " + "a" * 12_000, body=b"whole")),
    Ending("three fields of 7 KB", _with("Content-Length: 5", *["X-A: " + "a" * 7000] * 3, body=b"whole")),
    Ending("120 fields", _with("Content-Length: 5", *["X-A: a"] * 120, body=b"whole")),
]  # fmt: skip


async def send_apart(peer: Recorder, data: bytes) -> None:
    """Sends a message, its head some time before the rest."""
    end = re.search(rb"\r?\n\r?\n", data)
    place = end.end() if end else len(data)
    if place:
        await peer.send(data[:place])
    if data[place:]:
        await trio.sleep(APART)
        await peer.send(data[place:])


async def end_as_told(exchange: Exchange, ending: Ending) -> None:
    """Sends what is to be sent, and ends, or stays, as is to be done."""
    if exchange.request_line.partition(" HTTP/")[0].endswith("?next"):
        await exchange.answer(b"next")
        return
    if ending.method == "HEAD" or ending.data[9:12] in (b"204", b"304"):
        await exchange.send(ending.data)
    else:
        await send_apart(exchange.peer, ending.data)
    if ending.then:
        await trio.sleep(APART)
    if ending.then == "FIN":
        exchange.close()
    elif ending.then == "RST":
        exchange.reset()


async def end_and_next(cell: Cell, ending: Ending) -> Outcome:
    """A response, and another one on the same connection of the client's if that lives."""
    client = await cell.ask(method=ending.method)
    await client.wait(has_final(client, ending.method), 3 * SOON)
    await client.wait_end(APART if ending.leaves_bytes else SOON / 2)
    story = cell.told(client, ending.method)
    requests = len(cell.origin.of(cell.name))
    if client.end is None and has_final(client, ending.method)():
        await cell.send(client, cell.request(suffix="?next"))
        await client.wait(has_final(client, ending.method, "GET", count=2), SOON)
        story = [*story[:-1], "then", *cell.told(client, ending.method)[len(story) - 1 :]]
    return Outcome(tuple(story), (counted(requests),))


for one in ENDINGS:
    add("end", one.title, partial(end_and_next, ending=one), partial(end_as_told, ending=one), one.leaves_bytes)


# The client leaves


async def stream_slowly(exchange: Exchange) -> None:
    """Sends an event a second, and notes how many it has sent."""
    await exchange.send(response_head("200 OK", "Content-Type: text/event-stream", _CHUNKED, _NO_BUFFERING))
    for number in range(5):
        exchange.mark(f"event {number}")
        await exchange.send(chunk(event(number)))
        await exchange.peer.wait_end(1.0)
        if exchange.end is not None:
            break
    exchange.close()


def leaving(exchange: Exchange) -> str:
    """In words, when the origin saw that the client had left its stream."""
    if exchange.end is None:
        return "never"
    number = sum(name.startswith("event") and time <= exchange.end.time for name, time in exchange.times.items()) - 1
    return f"{exchange.end.how} {('at once', 'at the next write', 'two writes later')[min(number, 2)]}"


async def leave_stream(cell: Cell, how: str) -> Outcome:
    """Leaves a stream after its first event."""
    client = await cell.ask("Accept: text/event-stream", *(["Cookie: a=b"] if how == "cookie" else []))
    exchange = await cell.exchange()
    if exchange is None or not await client.wait_data(event(0).rstrip(), 0.9):
        return Outcome(tuple(cell.told(client)), ("no stream",))
    leave(client, how)
    await exchange.peer.wait_end(3.3)
    if how == "finish":
        await client.wait_end(SOON / 2)
    story = cell.told(client)[-1:] if how == "finish" else []
    return Outcome(tuple(story), (leaving(exchange),))


def leave(client: Recorder, how: str) -> None:
    """Ends the client's side: "finish", "reset" or anything else."""
    if how == "finish":
        client.finish()
    elif how == "reset":
        client.reset()
    else:
        client.close()


async def answer_late(exchange: Exchange, seconds: float = 0.35 * TIMER) -> None:
    """Answers after a while, if the other side is there."""
    await exchange.peer.wait_end(seconds)
    exchange.mark("answer")
    try:
        await exchange.answer(b"late")
    except Gone:
        exchange.close()


async def leave_waiting(cell: Cell, how: str) -> Outcome:
    """Leaves while it waits for a response."""
    client = await cell.ask()
    exchange = await cell.exchange()
    if exchange is None:
        return Outcome(tuple(cell.told(client)), ("nothing",))
    leave(client, how)
    await exchange.peer.wait_end(SOON / 2)
    seen = "stays open until it answers" if exchange.end is None else exchange.end.how
    if how == "finish":
        await client.wait_end(SOON)
    return Outcome(tuple(cell.told(client)) if how == "finish" else (), (seen,))


add("leave", "closes during a stream", partial(leave_stream, how="close"), stream_slowly)
add("leave", "closes during a stream, with a cookie", partial(leave_stream, how="cookie"), stream_slowly)
add("leave", "resets during a stream", partial(leave_stream, how="reset"), stream_slowly)
add("leave", "ends its direction during a stream", partial(leave_stream, how="finish"), stream_slowly)
add("leave", "closes while it waits", partial(leave_waiting, how="close"), answer_late)
add("leave", "resets while it waits", partial(leave_waiting, how="reset"), answer_late)
add("leave", "ends its direction while it waits", partial(leave_waiting, how="finish"), answer_late)


@scenario("leave", "closes in the middle of a body")
async def leave_body(cell: Cell) -> Outcome:
    client = await cell.connect()
    await cell.send(client, cell.request("Content-Length: 10", method="POST") + b"half ")
    exchange = await cell.exchange(SOON / 2)
    client.close()
    if exchange is None:
        return Outcome((), ("nothing",))
    await exchange.peer.wait_end(HORIZON)
    return Outcome((), (f"{len(exchange.behind)} bytes", cell.ending(exchange.end)))


BIG = 24 * 1024 * 1024


async def send_big(exchange: Exchange) -> None:
    """Sends a body that fits into no buffer of a kernel, and notes when it is done."""
    await exchange.send(response_head("200 OK", f"Content-Length: {BIG}"))
    block = b"b" * 65536
    for _ in range(BIG // len(block)):
        await exchange.send(block)
    exchange.mark("sent")


@scenario("leave", "stops reading a large body", send_big)
async def stops_reading(cell: Cell) -> Outcome:
    client = await cell.connect(receive_buffer=4096)
    client.stop_reading()
    await cell.send(client, cell.request("Cookie: a=b"))
    exchange = await cell.exchange()
    if exchange is None:
        return Outcome((), ("nothing",))
    await trio.sleep(3 * SOON)
    seen = "all of it sent" if "sent" in exchange.times else "waits"
    client.reset()
    return Outcome((), (seen,))


# Slow origins, slow clients, and timers


async def slow_answer(cell: Cell, *fields: str, method: str = "GET", body: bytes = b"") -> Outcome:
    """A request, and what comes for it in the time of more than two timers."""
    client = await cell.ask(*fields, method=method, body=body)
    exchange = await cell.exchange()
    await client.wait(has_final(client), HORIZON)
    await client.wait_end(SOON / 2)
    if exchange is None:
        return Outcome(tuple(cell.told(client)), ("nothing",))
    await exchange.peer.wait_end(SOON / 2)
    number = len(cell.origin.of(cell.name))
    again = [f"{number} requests"] if number > 1 else []
    return Outcome(tuple(cell.told(client)), (*again, cell.ending(exchange.end)))


async def fall_silent(exchange: Exchange, *fields: str) -> None:
    """Begins a body and does not go on."""
    data = chunk(b"part") if _CHUNKED in fields else b"part"
    await exchange.send(response_head("200 OK", *fields) + data)
    await hold(exchange)


async def speak_now_and_then(exchange: Exchange) -> None:
    """Sends an event three times in the time of a timer, for the time of two."""
    await exchange.send(response_head("200 OK", "Content-Type: text/event-stream", _CHUNKED, _NO_BUFFERING))
    for number in range(6):
        await trio.sleep(TIMER / 3)
        await exchange.send(chunk(event(number)))
    await exchange.send(b"0\r\n\r\n")


add("slow", "no answer to GET", slow_answer, hold)
add("slow", "no answer to POST", lambda cell: slow_answer(cell, "Content-Length: 4", method="POST", body=b"body"),
    hold)  # fmt: skip
add("slow", "silence in chunks", slow_answer, lambda exchange: fall_silent(exchange, _CHUNKED))
add("slow", "silence in a body of known length", slow_answer,
    lambda exchange: fall_silent(exchange, "Content-Length: 10"))  # fmt: skip
add("slow", "silence before the end of the connection", slow_answer,
    lambda exchange: fall_silent(exchange, "Connection: close"))  # fmt: skip


@scenario("slow", "events three times as often as the timer", speak_now_and_then)
async def frequent_events(cell: Cell) -> Outcome:
    client = await cell.ask()
    await client.wait(has_final(client), HORIZON)
    count = sum(client.time_of(event(number).rstrip()) is not None for number in range(6))
    return Outcome((*cell.told(client)[:1], f"{count} of 6 events"), ())


@scenario("slow", "no next request")
async def no_next_request(cell: Cell) -> Outcome:
    client = await cell.ask()
    await client.wait(has_final(client), SOON)
    await client.wait_end(HORIZON)
    return Outcome(tuple(cell.told(client)), ())


async def slow_head(cell: Cell, data: bytes) -> Outcome:
    """A client that begins and does not go on."""
    client = await cell.connect()
    await cell.send(client, data)
    await client.wait_end(HORIZON)
    return Outcome(tuple(cell.told(client)), ())


add("slow", "connection without a request", partial(slow_head, data=b""))
add("slow", "half a head", partial(slow_head, data=b"GET /half HTTP/1.1\r\nHost: te"))


@scenario("slow", "half a body")
async def half_a_body(cell: Cell) -> Outcome:
    client = await cell.connect()
    await cell.send(client, cell.request("Content-Length: 10", method="POST") + b"half ")
    await client.wait_end(HORIZON)
    exchanges = cell.origin.of(cell.name)
    if not exchanges:
        return Outcome(tuple(cell.told(client)), ("nothing",))
    await exchanges[0].peer.wait_end(SOON / 2)
    return Outcome(tuple(cell.told(client)), (f"{len(exchanges[0].behind)} bytes", cell.ending(exchanges[0].end)))


# Bodies and interim responses


async def answer_behind(exchange: Exchange, *statuses: str) -> None:
    """Sends interim responses, then after a pause the final one."""
    await exchange.body()
    for status in statuses:
        await exchange.send(response_head(status))
    await trio.sleep(0.3)
    exchange.mark("final")
    await exchange.send(response_head("200 OK", "Content-Length: 5") + b"whole")
    if exchange.version == "1.0":
        exchange.close()


async def interim(cell: Cell) -> Outcome:
    """A request, and the responses to it."""
    client = await cell.ask()
    await settled(client, seconds=2 * SOON)
    responses, rest = read_responses(bytes(client.data), ended=client.end and client.end.how)
    final = cell.origin.of(cell.name)[0].times.get("final", float("inf"))
    story = []
    for response in responses:
        early = response.status < 200 and arrived(client, response.at) >= final
        story.append(tell(response) + (" with the final one" if early else ""))
    return Outcome((*story, *(["other bytes"] if rest else []), cell.ending(client.end)), ())


for title, statuses in {
    "103, then 200": ["103 Early Hints"],
    "102 three times, then 200": ["102 Processing"] * 3,
    "100 that was not asked for, then 200": ["100 Continue"],
}.items():
    add("body", title, interim, lambda exchange, statuses=statuses: answer_behind(exchange, *statuses))


async def send_trailers(exchange: Exchange) -> None:
    """Sends a chunked response with a trailer field."""
    await exchange.send(response_head("200 OK", _CHUNKED, "Trailer: X-Trailer"))
    for part in (b"5\r\nwhole\r\n", b"0\r\nX-Trailer: yes\r\n\r\n"):
        await trio.sleep(APART)
        await exchange.send(part)


@scenario("body", "trailer field of a response", send_trailers)
async def trailers(cell: Cell) -> Outcome:
    client = await cell.ask("TE: trailers", "Connection: TE")
    await settled(client, seconds=2 * SOON)
    responses, _ = read_responses(bytes(client.data), ended=client.end and client.end.how)
    seen = any(b"x-trailer" in response.trailers.lower() for response in responses)
    return Outcome((*cell.told(client), "trailer" if seen else "no trailer"), ())


async def answer_body(exchange: Exchange) -> None:
    """Answers with the number of bytes that the request's body took on the wire."""
    await exchange.body()
    exchange.mark("whole")
    await exchange.send(response_head("200 OK", "Content-Length: 5") + b"whole")
    if exchange.version == "1.0":
        exchange.close()


def framing_of(exchange: Exchange) -> str:
    """In words, how a request says where its body ends."""
    names = {name.lower() for name, _ in exchange.fields}
    parts = [word for word, name in (("a length", "content-length"), ("chunks", "transfer-encoding")) if name in names]
    return " and ".join(parts) or "no body"


async def upload(cell: Cell, first: bytes, rest: bytes, *fields: str) -> Outcome:
    """A body in two parts, with a pause between them that the origin can see."""
    client = await cell.connect()
    await cell.send(client, cell.request(*fields, method="POST") + first)
    exchange = await cell.exchange(SOON / 2)
    seen = "not before all of it" if exchange is None else "from its first bytes"
    if exchange is not None and not await exchange.peer.wait(lambda: b"half" in exchange.behind, SOON / 2):
        seen = "head first, then all of it"
    await cell.send(client, rest)
    exchange = await cell.exchange()
    await settled(client)
    if exchange is None:
        return Outcome(tuple(cell.told(client)), ("nothing",))
    return Outcome(tuple(cell.told(client)), (seen, framing_of(exchange)))


add("body", "request body of known length", lambda cell: upload(cell, b"half ", b"whole", "Content-Length: 10"),
    answer_body)  # fmt: skip
add("body", "request body in chunks",
    lambda cell: upload(cell, b"5\r\nhalf \r\n", b"5\r\nwhole\r\n0\r\n\r\n", _CHUNKED), answer_body)  # fmt: skip


async def answer_expectation(exchange: Exchange) -> None:
    """Sends 100 if that is expected of it, then the final response to all of the body."""
    if "100-continue" in (exchange.get("expect") or ""):
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await answer_body(exchange)


@scenario("body", "Expect: 100-continue", answer_expectation)
async def expectation(cell: Cell) -> Outcome:
    client = await cell.connect()
    await cell.send(client, cell.request("Content-Length: 4", "Expect: 100-continue", method="POST"))
    exchange = await cell.exchange(SOON / 2)
    await client.wait_data(b"100 Continue\r\n\r\n", SOON / 2)
    seen = [] if exchange is None else ["head before the body"]
    await client.send(b"body")
    exchange = await cell.exchange()
    await settled(client)
    if exchange is None:
        return Outcome(tuple(cell.told(client)), ("nothing",))
    passed = "Expect" if exchange.get("expect") else "no Expect"
    return Outcome(tuple(cell.told(client)), (*seen, passed))


@scenario("body", "Expect: something else")
async def odd_expectation(cell: Cell) -> Outcome:
    client = await cell.ask("Content-Length: 4", "Expect: something", method="POST", body=b"body")
    await settled(client)
    exchanges = cell.origin.of(cell.name)
    seen = "nothing" if not exchanges else "Expect" if exchanges[0].get("expect") else "no Expect"
    return Outcome(tuple(cell.told(client)), (seen,))


async def answer_before_the_body(exchange: Exchange) -> None:
    """Answers when it has the head, and takes no more."""
    await exchange.send(response_head("413 Content Too Large", "Content-Length: 2", "Connection: close") + b"no")
    exchange.finish()
    await hold(exchange)


@scenario("body", "final response before the body", answer_before_the_body)
async def early_answer(cell: Cell) -> Outcome:
    client = await cell.connect()
    await cell.send(client, cell.request("Content-Length: 10", method="POST") + b"half ")
    await settled(client)
    early = has_final(client)()
    if client.end is None:
        await cell.send(client, b"whole")
    await settled(client)
    return Outcome((*cell.told(client), "before the body's end" if early else "behind the body's end"), ())


# Header fields

FIELDS = (
    "X-Case-Kept: 1",
    "X-Twice: one",
    "X-Twice: two",
    "X_Under_Score: 1",
    "Connection: X-Named, keep-alive, TE",
    "X-Named: 1",
    "Keep-Alive: 300",
    "TE: trailers",
    "Proxy-Connection: keep-alive",
    "Proxy-Authorization: Basic YTpi",
    "X-Forwarded-For: 192.0.2.7",
    "X-Forwarded-Proto: gopher",
    "X-Forwarded-Host: spoofed.example",
    "Last-Event-ID: 17-0",
    "Origin: http://page.example",
    "Authorization: Bearer x",
)


async def fields_seen(cell: Cell, look: Callable[[Exchange], str]) -> Outcome:
    """A request with all kinds of fields, and what the origin saw of them."""
    client = await cell.ask(*FIELDS)
    await settled(client)
    exchange = await cell.exchange()
    return Outcome((), ("nothing" if exchange is None else look(exchange),))


def _value(exchange: Exchange, name: str) -> str:
    value = exchange.get(name)
    if value is None:
        return "none"
    return re.sub(r"127\.0\.0\.1(:\d+)?", lambda match: "origin" if match[1] else "client", value)


def _presence(exchange: Exchange, *names: str) -> str:
    there = [name for name in names if exchange.get(name.lower()) is not None]
    return ", ".join(there) or "none"


LOOKS: dict[str, Callable[[Exchange], str]] = {
    "version": lambda exchange: f"HTTP/{exchange.version}",
    "Host": lambda exchange: _value(exchange, "host"),
    "Connection": lambda exchange: _value(exchange, "connection").lower(),
    "field that Connection names": lambda exchange: _presence(exchange, "X-Named"),
    "Keep-Alive, TE": lambda exchange: _presence(exchange, "Keep-Alive", "TE"),
    "Proxy-Connection, Proxy-Authorization": lambda exchange: _presence(
        exchange, "Proxy-Connection", "Proxy-Authorization"
    ),
    "X-Forwarded-For": lambda exchange: _value(exchange, "x-forwarded-for"),
    "X-Forwarded-Proto": lambda exchange: _value(exchange, "x-forwarded-proto"),
    "X-Forwarded-Host": lambda exchange: _value(exchange, "x-forwarded-host"),
    "Via, Forwarded": lambda exchange: _presence(exchange, "Via", "Forwarded"),
    "case of a name": lambda exchange: next((n for n, _ in exchange.fields if n.lower() == "x-case-kept"), "none"),
    "field that comes twice": lambda exchange: " | ".join(v for n, v in exchange.fields if n.lower() == "x-twice"),
    "name with underscores": lambda exchange: _presence(exchange, "X_Under_Score"),
    "Last-Event-ID, Origin, Authorization": lambda exchange: _presence(
        exchange, "Last-Event-ID", "Origin", "Authorization"
    ),
}
for title, look in LOOKS.items():
    add("field", title, partial(fields_seen, look=look))


async def answer_with_fields(exchange: Exchange) -> None:
    """Answers with fields that are for the next hop only, and some that are not."""
    fields = ("Connection: X-Named, keep-alive", "X-Named: 1", "Keep-Alive: timeout=9", "Proxy-Authenticate: Basic")
    await exchange.answer(b"whole", "200 OK", *fields, "Server: origin", "Set-Cookie: a=1", "Set-Cookie: b=2")


@scenario("field", "fields of a response", answer_with_fields)
async def response_fields(cell: Cell) -> Outcome:
    client = await cell.ask()
    await settled(client)
    responses, _ = read_responses(bytes(client.data), ended=client.end and client.end.how)
    if not responses:
        return Outcome(("nothing",), ())
    response = responses[0]
    story = [name for name in ("X-Named", "Proxy-Authenticate", "Via") if response.get(name.lower()) is not None]
    server = "Server as it was" if response.get("server") == "origin" else "Server changed"
    return Outcome((*story, server, f"Set-Cookie: {response.get('set-cookie')}"), ())
