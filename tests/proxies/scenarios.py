"""What a client does and what an origin does, and in words what each of the two saw, when, and how it ended.

A scenario knows nothing of what stands between the two. What it tells is the same whenever the same thing happens:
dates, the text of error pages and milliseconds are left out, and times are told as multiples of the one timer, which
all programs are configured to have.
"""

import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, NamedTuple

import trio
from proxies.origin import Exchange, Origin, Script, answer
from proxies.recorder import End, Gone, Recorder, Response, read_responses

#: Seconds: every timer of every program, where it has one. Apache knows whole seconds only.
TIMER = 2.0
#: Seconds in which what happens at once has happened.
SOON = TIMER / 2
#: Seconds between what is sent apart, so that each part is seen by itself. Caddy waits 0.2 s for the beginning of a
#: request's body before it sends the head.
APART = 0.5
#: Seconds after which what has not happened is taken not to happen.
HORIZON = 2.7 * TIMER


#: Seconds by which a machine is late that has too much to do.
_LATE = 0.03
_MOST_WAITS = 50
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
        rule: that a peer breaks in it, or that a program has to keep; empty if there is none.
        strict: pattern of the outcomes of a program that keeps to the rule, whatever others do.
    """

    matrix: str
    title: str
    play: Play
    script: Script
    name: str
    is_alone: bool = False
    rule: str = ""
    strict: str = ""


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


def add(
    matrix: str,
    title: str,
    play: Play,
    script: Script = answer,
    *,
    is_alone: bool = False,
    rule: str = "",
    strict: str = "",
) -> None:
    """Makes it one of the scenarios."""
    name = f"c-{matrix}-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    assert name not in SCENARIOS, name
    SCENARIOS[name] = Scenario(matrix, title, play, script, name, is_alone, rule, strict)


def scenario(matrix: str, title: str, script: Script = answer, **options: Any) -> Callable[[Play], Play]:
    """Makes the function one of the scenarios."""

    def decorate(play: Play) -> Play:
        add(matrix, title, play, script, **options)
        return play

    return decorate


class Pace:
    """Has scenarios begin one after the other, and waits while the machine has so much to do that all would be late.

    Args:
        seconds: between two of them, at least.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = trio.Lock()

    async def wait_turn(self) -> None:
        """Returns when the next one may begin."""
        async with self._turn:
            for _ in range(_MOST_WAITS):
                begun = trio.current_time()
                await trio.sleep(self._seconds)
                if trio.current_time() - begun - self._seconds < _LATE:
                    return


async def play_all(port: int, origin: Origin, names: Collection[str], pace: Pace) -> dict[str, Outcome]:
    """The outcomes of the scenarios of these names, each on connections of its own.

    Those that can share the program do so, at the same time; then come the others, one by one.
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
                await pace.wait_turn()
                nursery.start_soon(play, one)
    for one in chosen:
        if one.is_alone:
            await play(one)
            origin.hang_up(one.name)
    return {one.name: outcomes[one.name] for one in chosen}


# What several scenarios do


def event(number: int, size: int = 0) -> bytes:
    """An event; of so many bytes, if that is more than it needs."""
    start = b"data: event %d" % number
    return start + b" " * max(0, size - len(start) - 2) + b"\n\n"


async def send_apart(peer: Recorder, data: bytes) -> None:
    """Sends a message, its head some time before the rest."""
    end = re.search(rb"\r?\n\r?\n", data)
    place = end.end() if end else len(data)
    if place:
        await peer.send(data[:place])
    if data[place:]:
        await trio.sleep(APART)
        await peer.send(data[place:])


async def one_answer(cell: Cell, *fields: str, method: str = "GET", body: bytes = b"") -> Outcome:
    """A request, and whatever comes for it."""
    client = await cell.ask(*fields, method=method, body=body)
    await settled(client, method)
    return Outcome(tuple(cell.told(client, method)), ())


def framing_of(exchange: Exchange) -> str:
    """In words, how a request says where its body ends."""
    names = {name.lower() for name, _ in exchange.fields}
    parts = [word for word, name in (("a length", "content-length"), ("chunks", "transfer-encoding")) if name in names]
    return " and ".join(parts) or "no body"
