"""The client leaves: when the origin sees it."""

import socket
from functools import partial

from proxies.origin import CHUNKED, NO_BUFFERING, Exchange, chunk, response_head
from proxies.recorder import Gone, Recorder
from proxies.scenarios import HORIZON, SOON, TIMER, Cell, Outcome, add, event, scenario


async def stream_slowly(exchange: Exchange) -> None:
    """Sends an event a second, and notes how many it has sent."""
    await exchange.send(response_head("200 OK", "Content-Type: text/event-stream", CHUNKED, NO_BUFFERING))
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


#: More than the kernel holds on the way: in the proxy 6 MB received and 4 MB to be sent (tcp_rmem, tcp_wmem).
BIG = 20 * 1024 * 1024


async def send_big(exchange: Exchange) -> None:
    """Sends a body that fits into no buffer of a kernel, and notes when it is done."""
    exchange.peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    await exchange.send(response_head("200 OK", f"Content-Length: {BIG}"))
    block = b"b" * 65536
    for _ in range(BIG // len(block)):
        await exchange.send(block)
    exchange.mark("sent")


@scenario("leave", "stops reading a large body", send_big, is_alone=True)
async def stops_reading(cell: Cell) -> Outcome:
    client = await cell.connect(receive_buffer=4096)
    client.stop_reading()
    await cell.send(client, cell.request("Cookie: a=b"))
    exchange = await cell.exchange()
    if exchange is None:
        return Outcome((), ("nothing",))
    await exchange.peer.wait(lambda: "sent" in exchange.times, HORIZON)
    seen = "all of it sent" if "sent" in exchange.times else "waits"
    client.reset()
    return Outcome((), (seen,))
