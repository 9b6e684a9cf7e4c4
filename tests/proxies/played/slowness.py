"""Slow origins, slow clients, and the timers that end the waiting."""

from functools import partial

import trio
from proxies.origin import CHUNKED, NO_BUFFERING, Exchange, chunk, hold, response_head
from proxies.scenarios import HORIZON, SOON, TIMER, Cell, Outcome, add, event, has_final, scenario


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
    data = chunk(b"part") if CHUNKED in fields else b"part"
    await exchange.send(response_head("200 OK", *fields) + data)
    await hold(exchange)


async def speak_now_and_then(exchange: Exchange) -> None:
    """Sends an event three times in the time of a timer, for the time of two."""
    await exchange.send(response_head("200 OK", "Content-Type: text/event-stream", CHUNKED, NO_BUFFERING))
    for number in range(6):
        await trio.sleep(TIMER / 3)
        await exchange.send(chunk(event(number)))
    await exchange.send(b"0\r\n\r\n")


add("slow", "no answer to GET", slow_answer, hold)
add("slow", "no answer to POST", lambda cell: slow_answer(cell, "Content-Length: 4", method="POST", body=b"body"),
    hold)  # fmt: skip
add("slow", "silence in chunks", slow_answer, lambda exchange: fall_silent(exchange, CHUNKED))
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
