"""Bodies of requests, and the responses that come before the final one."""

import trio
from proxies.origin import CHUNKED, Exchange, hold, response_head
from proxies.recorder import read_responses
from proxies.scenarios import APART, SOON, Cell, Outcome, add, arrived, framing_of, has_final, scenario, settled, tell


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
    await settled(client, seconds=3 * SOON)
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
    await exchange.send(response_head("200 OK", CHUNKED, "Trailer: X-Trailer"))
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


async def upload(cell: Cell, first: bytes, rest: bytes, *fields: str) -> Outcome:
    """A body in two parts, with a pause between them that the origin can see."""
    client = await cell.connect()
    await cell.send(client, cell.request(*fields, method="POST") + first)
    exchange = await cell.exchange(SOON)
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
    lambda cell: upload(cell, b"5\r\nhalf \r\n", b"5\r\nwhole\r\n0\r\n\r\n", CHUNKED), answer_body)  # fmt: skip


async def answer_expectation(exchange: Exchange) -> None:
    """Sends 100 if that is expected of it, then the final response to all of the body."""
    if "100-continue" in (exchange.get("expect") or ""):
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await answer_body(exchange)


@scenario("body", "Expect: 100-continue", answer_expectation)
async def expectation(cell: Cell) -> Outcome:
    client = await cell.connect()
    await cell.send(client, cell.request("Content-Length: 4", "Expect: 100-continue", method="POST"))
    exchange = await cell.exchange(SOON)
    await client.wait_data(b"100 Continue\r\n\r\n", SOON / 2)
    seen = [] if exchange is None else ["head before the body"]
    await client.send(b"body")
    exchange = await cell.exchange()
    await settled(client)
    if exchange is None:
        return Outcome(tuple(cell.told(client)), ("nothing",))
    passed = "Expect" if exchange.get("expect") else "no Expect"
    return Outcome(tuple(cell.told(client)), (*seen, passed))


@scenario(
    "body",
    "Expect: something else",
    rule="RFC 9110 10.1.1: an expectation that is not known may be refused",
    strict=r"417, FIN / nothing",
)
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


@scenario(
    "body",
    "final response before the body",
    answer_before_the_body,
    rule="RFC 9112 9.3: the final response is passed on at once, and no request follows a body that was not read",
    strict=r"413 'no', FIN, before the body's end / nothing",
)
async def early_answer(cell: Cell) -> Outcome:
    client = await cell.connect()
    await cell.send(client, cell.request("Content-Length: 10", method="POST") + b"half ")
    await settled(client)
    early = has_final(client)()
    if client.end is None:
        await cell.send(client, b"whole")
    await settled(client)
    return Outcome((*cell.told(client), "before the body's end" if early else "behind the body's end"), ())
