"""Latency of a stream of events: when a client gets what an origin sent."""

from functools import partial

import trio
from proxies.origin import NO_BUFFERING, Exchange, chunk, response_head
from proxies.recorder import Recorder, read_responses
from proxies.scenarios import SOON, Cell, Outcome, add, counted, event, has_final, tell

EVENTS = 6
GAP = 0.3
#: Seconds between the last event and the end of the stream.
LAST_GAP = 0.9
DURATION = (EVENTS - 1) * GAP + LAST_GAP


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
    if late[0] > 0.8 * (EVENTS - 1) * GAP:
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


add("stream", "events, framed as the request's version allows", events, stream_events)
add("stream", "the same with X-Accel-Buffering: no", partial(events, accel=True),
    lambda exchange: stream_events(exchange, NO_BUFFERING))  # fmt: skip
add("stream", "events in chunks", events, partial(stream_events, framing="chunked"))
add("stream", "events up to the end of the connection", events, partial(stream_events, framing="close"))
add("stream", "events in a body of known length", events, partial(stream_events, framing="length"))
add("stream", "the same length with X-Accel-Buffering: no", events,
    lambda exchange: stream_events(exchange, NO_BUFFERING, framing="length"))  # fmt: skip
add("stream", "head long before the first event", partial(events, head=True), partial(stream_events, first=0.6))
add("stream", "the same head with X-Accel-Buffering: no", partial(events, head=True),
    lambda exchange: stream_events(exchange, NO_BUFFERING, first=0.6))  # fmt: skip


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
