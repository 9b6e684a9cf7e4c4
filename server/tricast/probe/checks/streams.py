"""Measures how event streams come: P4 buffering, P5 compression, P6 sharing."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import msgspec
import trio

from tricast.client.failures import Lost
from tricast.probe import arrivals
from tricast.probe.arrivals import Arrival, Flow, Stream
from tricast.probe.asking import asking
from tricast.probe.checks.asked import Way
from tricast.probe.findings import Finding
from tricast.probe.fingerprint import Seen
from tricast.probe.http_link import Fields, Head, HttpLink
from tricast.probe.link import Cut
from tricast.probe.target import new_nonce
from tricast.probe.verdicts.streams import Sharing, Streams, buffering, compression, sharing

Query = list[tuple[str, object]]

#: What Tricast sends with its own event streams.
OURS: Query = [("xab", 1), ("cc", "no-cache,no-transform")]
PLAIN: Query = []
_SLOW: Query = [("n", 8), ("gap", 0.25)]
#: Closer together than any timer that collects them.
_QUICK_EVENTS, _QUICK_GAP = 30, 0.04
_QUICK: Query = [("n", _QUICK_EVENTS), ("gap", _QUICK_GAP)]
#: Seconds beyond its own length that a stream may take.
_PATIENCE = 10.0
_PADS = (1024, 4096, 8192, 16384, 65536)
_GZIP = 16 + zlib.MAX_WBITS


class Followed(NamedTuple):
    """A stream that was followed to its end.

    Attributes:
        stream: how it came.
        name: what names it at the server: None if no event came.
        age: the Age field of the answer, or empty.
    """

    stream: Stream
    name: str | None = None
    age: str = ""


class _Event(msgspec.Struct):
    """What is read of an event's data."""

    i: int
    t_send: float
    nonce: str
    server: str


async def follow(way: Way, query: Query, fields: Fields = (), *, nonce: str | None = None) -> Followed:
    """Asks for an event stream and follows it to its end.

    Args:
        way: on which it is asked for.
        query: parameters; ``n`` and ``gap`` are among them.
        fields: of the request.
        nonce: names it; None to ask for the same URL as everybody else.
    """
    given = dict(query)
    count, gap = given["n"], given["gap"]
    assert isinstance(count, int)
    assert isinstance(gap, float)
    asked_at = trio.current_time()
    reader = _Reader(way, asked_at, count)
    parameters = query if nonce is None else [*query, ("nonce", nonce)]
    with trio.move_on_after(count * gap + _PATIENCE):
        try:
            async with asking(way.target, "sse", parameters, [("Accept", "text/event-stream"), *fields]) as http:
                await reader.read(http)
        except Cut as cut:
            reader.ended = cut.ending.at
        except Lost:
            reader.ended = trio.current_time()
    return reader.result()


class _Reader:
    """Takes one answer apart as it comes."""

    def __init__(self, way: Way, asked_at: float, expected: int) -> None:
        self._way = way
        self._asked_at = asked_at
        self._expected = expected
        self._head: Head | None = None
        self._arrivals: list[Arrival] = []
        self._name: str | None = None
        self._is_readable = True
        self._pieces: list[tuple[float, int]] = []
        self._rest = b""
        self.ended: float | None = None

    async def read(self, http: HttpLink) -> None:
        self._head = await http.head()
        self._way.seen.append(Seen(self._head.fields))
        decode = _decoder(self._encoding)
        while (piece := await http.piece()) is not None:
            self._pieces.append((piece.at, len(piece.data)))
            if self._head.status == 200 and self._is_readable:
                self._take(decode, piece.data, piece.at)
        self.ended = http.link.last_received

    def result(self) -> Followed:
        head = self._head
        stream = Stream(
            self._asked_at,
            None if head is None else head.at,
            self.ended,
            self._arrivals,
            self._expected,
            200 if head is None else head.status,
            self._encoding,
            self._is_readable,
            self._pieces,
        )
        return Followed(stream, self._name, "" if head is None else head.header("age") or "")

    @property
    def _encoding(self) -> str:
        return "" if self._head is None else self._head.header("content-encoding") or ""

    def _take(self, decode: Callable[[bytes], bytes], data: bytes, at: float) -> None:
        try:
            *blocks, self._rest = (self._rest + decode(data)).split(b"\n\n")
            for block in blocks:
                for event in _events_of(block):
                    self._name = f"{event.server} {event.nonce}"
                    self._arrivals.append(Arrival(event.t_send, at, len(block) + 2))
        except (msgspec.DecodeError, zlib.error):
            self._is_readable = False


def _events_of(block: bytes) -> Iterator[_Event]:
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            yield msgspec.json.decode(line.removeprefix(b"data:"), type=_Event)


def _decoder(encoding: str) -> Callable[[bytes], bytes]:
    if encoding.lower() in ("gzip", "x-gzip"):
        return zlib.decompressobj(_GZIP).decompress
    return bytes


async def streams(way: Way, query: Query) -> Streams:
    """How streams with such fields come, slow and quick ones."""
    found = await _all_of(way, {"slow": [*_SLOW, *query], "quick": [*_QUICK, *query]})
    return Streams(found["slow"], found["quick"])


async def _all_of(way: Way, queries: Mapping[str, Query]) -> dict[str, arrivals.Verdict]:
    found: dict[str, arrivals.Verdict] = {}

    async def one(name: str, query: Query) -> None:
        found[name] = arrivals.judge((await follow(way, query, nonce=new_nonce())).stream)

    async with trio.open_nursery() as nursery:
        for name, query in queries.items():
            nursery.start_soon(one, name, query)
    return found


async def with_padding(way: Way, query: Query, found: Streams) -> Streams:
    """The same with how large events have to be so that they come through, when small ones are held."""
    if found.slow.flow not in (Flow.HELD, Flow.STEPWISE):
        return found
    by_size = await _all_of(way, {str(pad): [("n", 12), ("gap", 0.25), ("pad", pad), *query] for pad in _PADS})
    return found._replace(padded={0: found.slow} | {pad: by_size[str(pad)] for pad in _PADS})


async def own_flow() -> Flow:
    """How quick events would come that nobody sends: as this program is woken by its own clock."""
    began = trio.current_time()
    ticks = []
    for number in range(_QUICK_EVENTS):
        await trio.sleep_until(began + number * _QUICK_GAP)
        ticks.append(Arrival(number * _QUICK_GAP, trio.current_time(), 0))
    return arrivals.judge(Stream(began, began, trio.current_time(), ticks, _QUICK_EVENTS)).flow


async def check_streams(way: Way, direct: Way | None, *, speed: float = 1.0) -> list[Finding]:
    """P4 to P6, all at the same time.

    Args:
        way: through the proxies.
        direct: to the server itself, if that can be reached.
        speed: by how much the timers on the way are sped up, while streams take as long as ever.
    """
    found: dict[str, Streams] = {}
    compressed: dict[str, Stream] = {}
    shared: dict[str, Sharing] = {}
    own: list[Flow] = []

    async def look_at_oneself() -> None:
        own.append(await own_flow())

    async def flow(name: str, on: Way, query: Query) -> None:
        found[name] = await with_padding(on, query, await streams(on, query))

    async def compress(name: str, query: Query) -> None:
        followed = await follow(way, [*_SLOW, *query], [("Accept-Encoding", "gzip")], nonce=new_nonce())
        compressed[name] = followed.stream

    async def ask_for_same(name: str, query: Query) -> None:
        shared[name] = await share(way, query)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_at_oneself)
        nursery.start_soon(flow, "ours", way, OURS)
        nursery.start_soon(flow, "plain", way, PLAIN)
        if direct is not None:
            nursery.start_soon(flow, "direct", direct, OURS)
        nursery.start_soon(compress, "ours", OURS)
        nursery.start_soon(compress, "plain", PLAIN)
        nursery.start_soon(ask_for_same, "ours", OURS)
        nursery.start_soon(ask_for_same, "plain", PLAIN)
    ours, plain = found["ours"], found["plain"]
    return [
        *buffering(ours, plain, found.get("direct"), is_held_up=own != [Flow.STREAMING], speed=speed),
        compression(compressed["ours"], compressed["plain"], without=ours.slow.flow, plain_without=plain.slow.flow),
        sharing(shared["ours"], shared["plain"]),
    ]


async def share(way: Way, query: Query) -> Sharing:
    """Asks for the same stream as several subscribers would, without anything that keeps caches away."""
    anonymous = way._replace(target=replace(way.target, token_in_query=bool(way.target.token)))
    asked_for: Query = [("n", 6), ("gap", 0.25), *query, ("url", new_nonce())]
    found: list[str | None] = [None, None]

    async def one(index: int, delay: float) -> None:
        await trio.sleep(delay)
        found[index] = (await follow(anonymous, asked_for)).name

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 0, 0.0)
        nursery.start_soon(one, 1, 0.6)
    third = await follow(anonymous, asked_for)
    return Sharing((found[0], found[1], third.name), third.age)
