"""The recording origin, and what reads responses and tells of them, judge proxies; so they are judged first."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from clocks import HANG_SECONDS
from proxies.origin import Exchange, Origin, response_head
from proxies.played.framing import VECTORS
from proxies.played.streams import delays, head_delay, stream_events
from proxies.recorder import FIN, RST, Gone, Recorder, read_responses
from proxies.scenarios import (
    BROKEN,
    SCENARIOS,
    TIMER,
    Cell,
    Outcome,
    Pace,
    add,
    arrived,
    play_all,
    send_apart,
    tell,
)

REQUEST = b"POST /c-one HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 4\r\n\r\nbody"


@asynccontextmanager
async def connected(origin: Origin) -> AsyncIterator[Recorder]:
    """A client of the origin's."""
    with trio.fail_after(HANG_SECONDS):
        async with origin.listening(), trio.open_nursery() as nursery:
            sock = trio.socket.socket()
            with sock:
                await sock.connect(("127.0.0.1", origin.port))
                client = Recorder(sock)
                nursery.start_soon(client.record)
                yield client
                nursery.cancel_scope.cancel()


async def exchange_of(origin: Origin, name: str = "c-one", count: int = 1) -> Exchange:
    exchange = await origin.wait_exchange(name, HANG_SECONDS, count)
    assert exchange is not None
    return exchange


async def test_a_request_is_recorded_and_answered_as_the_script_says() -> None:
    bodies: list[bytes] = []

    async def script(exchange: Exchange) -> None:
        bodies.append(await exchange.body())
        await exchange.answer(b"hello", "201 Created", "X-B: c")

    origin = Origin({"c-one": script})
    async with connected(origin) as client:
        await client.send(REQUEST[:30])
        await client.send(REQUEST[30:] + b"GET /other HTTP/1.0\r\n\r\n")
        await client.wait_data(b"origin", HANG_SECONDS)
        exchange = await exchange_of(origin)
        assert (exchange.request_line, exchange.version) == ("POST /c-one HTTP/1.1", "1.1")
        assert exchange.get("x-a") == "1, 2"
        assert exchange.get("x-b") is None
        assert bodies == [b"body"]
        assert origin.saw(b"X-A: 1")
        assert not origin.saw(b"X-A: 2")
        assert origin.of("")[0].version == "1.0"
        responses, rest = read_responses(bytes(client.data))
        assert [tell(response) for response in responses] == ["201 'hello'", "200 'origin'"]
        assert rest == b""


async def test_a_chunked_body_ends_with_its_last_chunk() -> None:
    bodies: list[bytes] = []

    async def script(exchange: Exchange) -> None:
        bodies.append(await exchange.body())

    origin = Origin({"c-one": script})
    body = b"5\r\n0\r\n\r\n\r\n0\r\nX-A: b\r\n\r\n"
    async with connected(origin) as client:
        await client.send(b"POST /c-one HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + body[:4])
        await client.send(body[4:] + b"GET /c-one HTTP/1.1\r\n\r\n")
        await exchange_of(origin, count=2)
        assert bodies == [body, b""]


@pytest.mark.parametrize("how", [FIN, RST])
async def test_the_clients_end_is_recorded_while_the_script_does_something_else(how: str) -> None:
    begun = trio.Event()

    async def script(exchange: Exchange) -> None:
        begun.set()
        await trio.sleep_forever()

    origin = Origin({"c-one": script})
    async with connected(origin) as client:
        await client.send(REQUEST)
        await begun.wait()
        client.finish() if how == FIN else client.reset()
        end = await (await exchange_of(origin)).peer.wait_end(HANG_SECONDS)
        assert end is not None
        assert end.how == how
        assert end.time <= trio.current_time()


@pytest.mark.parametrize("how", [FIN, RST])
async def test_the_origins_end_is_seen_by_the_client(how: str) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.close() if how == FIN else exchange.reset()

    origin = Origin({"c-one": script})
    async with connected(origin) as client:
        await client.send(b"GET /c-one HTTP/1.1\r\n\r\n")
        end = await client.wait_end(HANG_SECONDS)
        assert end is not None
        assert end.how == how


async def test_half_a_connection_ends_and_the_other_half_lives() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.finish()
        await exchange.peer.wait_data(b"late", HANG_SECONDS)

    origin = Origin({"c-one": script})
    async with connected(origin) as client:
        await client.send(b"GET /c-one HTTP/1.1\r\n\r\n")
        await client.wait_end(HANG_SECONDS)
        await client.send(b"late")
        assert await (await exchange_of(origin)).peer.wait_data(b"late", HANG_SECONDS)


async def test_a_peer_that_is_gone_takes_nothing() -> None:
    origin = Origin({})
    async with connected(origin) as client:
        await client.send(b"GET /c-one HTTP/1.1\r\n\r\n")
        (await exchange_of(origin)).reset()
        await client.wait_end(HANG_SECONDS)
        assert client.end is not None
        assert client.end.how == RST
        client.close()
        with pytest.raises(Gone):
            await client.send(b"more")


async def test_what_is_not_read_stays_where_it_is() -> None:
    sent: list[int] = []

    async def script(exchange: Exchange) -> None:
        for _ in range(1000):
            await exchange.send(b"x" * 65536)
            sent.append(65536)

    origin = Origin({"c-one": script})
    async with connected(origin) as client:
        client.stop_reading()
        await client.send(b"GET /c-one HTTP/1.1\r\n\r\n")
        assert not await client.wait(lambda: len(sent) == 1000, 0.5)
        assert len(client.data) <= 65536


async def test_what_is_sent_apart_arrives_apart() -> None:
    async def script(exchange: Exchange) -> None:
        await send_apart(exchange.peer, response_head("200 OK", "Content-Length: 5") + b"whole")

    origin = Origin({"c-one": script})
    async with connected(origin) as client:
        await client.send(b"GET /c-one HTTP/1.1\r\n\r\n")
        await client.wait_data(b"whole", HANG_SECONDS)
        head, body = client.time_of(b"\r\n\r\n"), client.time_of(b"whole")
        assert head is not None
        assert body is not None
        assert body > head
        assert client.time_of(b"never") is None
        assert arrived(client, 0) == head
        with pytest.raises(AssertionError):
            arrived(client, len(client.data))


async def test_events_that_arrive_at_once_and_events_that_do_not() -> None:
    origin = Origin({"c-one": stream_events, "c-two": stream_events})
    async with connected(origin) as client:
        await client.send(b"GET /c-one HTTP/1.1\r\n\r\n")
        await client.wait_data(b"\r\n0\r\n", HANG_SECONDS)
        exchange = await exchange_of(origin)
        assert delays(client, exchange) == "events at once"
        assert head_delay(client, exchange) == "head at once"

        def told(late: float) -> tuple[str, str]:
            other = Recorder(client.sock)
            other.data = client.data
            other.arrivals = [arrival._replace(time=arrival.time + late) for arrival in client.arrivals]
            return head_delay(other, exchange), delays(other, exchange)

        assert told(0.2) == ("head with the first event", "events 0.2 s late")
        assert told(5) == ("head at the end", "events at the end")


async def test_words_for_times_and_ends() -> None:
    async with trio.open_nursery() as nursery:
        cell = Cell("c-one", 0, Origin({}), nursery)
        words = [cell.since(cell.begun + factor * TIMER) for factor in (0, 0.5, 1, 1.5, 2, 2.5, 3)]
        assert words == ["", "", " after T", " after T", " after 2T", " after 2T", " after 3T"]
        assert cell.ending(None) == "stays open"


RESPONSES = {
    b"": [],
    b"HTTP/1.1 200 OK\r\nContent-Le": [],
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Origin: y\r\n\r\nbodyHTTP/1.1 204 No\r\n\r\nrest": [
        "200 'body'",
        "204",
    ],
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 304 No\r\nContent-Length: 4\r\n\r\n": ["100", "304"],
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbod": ["200 unfinished"],
    b"HTTP/1.1 200 OK\r\n\r\nbody": ["200 unfinished"],
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n": ["200 unfinished"],
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n": ["200"],
    b"HTTP/1.1 101 Switching\r\n\r\nHTTP/1.1 200 OK\r\n\r\n": ["101"],
}


@pytest.mark.parametrize("data", RESPONSES)
def test_responses_are_read_as_far_as_they_came(data: bytes) -> None:
    responses, rest = read_responses(data)
    assert [tell(response) for response in responses] == RESPONSES[data]
    assert (b"rest" in rest) == (b"rest" in data)
    ended, _ = read_responses(data, ended=RST)
    assert [tell(response) for response in ended] == [
        text.replace("unfinished", "cut short") for text in RESPONSES[data]
    ]


def test_a_body_may_end_with_the_connection_but_not_with_a_reset() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nbody"
    assert [read_responses(data, ended=how)[0][0].state for how in (None, FIN, RST)] == ["begun", "whole", "short"]


def test_an_answer_to_head_has_no_body_and_trailers_are_kept() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\nX-A: b\r\n\r\n"
    responses, rest = read_responses(head + chunked, "HEAD", "GET")
    assert [response.state for response in responses] == ["whole", "whole"]
    assert (responses[1].body, responses[1].trailers, rest) == (b"a", b"X-A: b\r\n", b"")


async def test_a_scenario_that_breaks_is_told_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    scenarios = dict(SCENARIOS)
    monkeypatch.setattr("proxies.scenarios.SCENARIOS", scenarios)

    async def breaks(cell: Cell) -> Outcome:
        raise KeyError(cell.name)

    async def works(cell: Cell) -> Outcome:
        client = await cell.ask()
        await client.wait_data(b"origin", HANG_SECONDS)
        return Outcome(tuple(cell.told(client)), ())

    add("tunnel", "breaks", breaks)
    add("tunnel", "works alone", works, is_alone=True)
    origin = Origin({})
    async with origin.listening():
        outcomes = await play_all(origin.port, origin, ["c-tunnel-breaks", "c-tunnel-works-alone"], Pace(0))
    assert str(outcomes["c-tunnel-breaks"]) == f"{BROKEN}: KeyError('c-tunnel-breaks') / nothing"
    assert str(outcomes["c-tunnel-works-alone"]) == "200 'origin', stays open / nothing"
    assert all(peer.end is not None or peer.sock.fileno() == -1 for peer in origin.connections)


def test_vectors_are_written_out() -> None:
    vectors = {vector.title: vector for vector in VECTORS}
    assert vectors["NUL in a value"].data("c-x") == (b"GET /c-x HTTP/1.1\r\nHost: test.example\r\nX-A: b\0c\r\n\r\n")
    assert vectors["chunk extension"].is_streamed
    assert not vectors["length and chunks"].is_streamed
    assert len(vectors) == len(VECTORS)
