"""How a response ends, well and badly, and whether the next one is right."""

from functools import partial
from typing import NamedTuple

import trio
from proxies.origin import CHUNKED, Exchange, response_head
from proxies.scenarios import APART, SOON, Cell, Outcome, add, counted, has_final, send_apart


class Ending(NamedTuple):
    """A response and how the origin goes on.

    Its head is sent some time before the body, where it has one that ends where it should, and the body before the end.

    Attributes:
        title: of the scenario.
        data: that it sends.
        then: "" stays, or "FIN", or "RST".
        method: of the request.
        leaves_bytes: True if there can be bytes left on a connection that is used again.
        rule: that the response breaks.
    """

    title: str
    data: bytes
    then: str = ""
    method: str = "GET"
    leaves_bytes: bool = False
    rule: str = ""


def _with(*fields: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    return response_head(status, *fields) + body


ENDINGS = [
    Ending("whole, with a length", _with("Content-Length: 5", body=b"whole")),
    Ending("whole, in chunks", _with(CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\n")),
    Ending("whole, up to the end of the connection", _with("Connection: close", body=b"whole"), "FIN"),
    Ending("length not reached, FIN", _with("Content-Length: 10", body=b"part"), "FIN"),
    Ending("length not reached, RST", _with("Content-Length: 10", body=b"part"), "RST"),
    Ending("no last chunk, FIN", _with(CHUNKED, body=b"4\r\npart\r\n"), "FIN"),
    Ending("no last chunk, RST", _with(CHUNKED, body=b"4\r\npart\r\n"), "RST"),
    Ending("within a chunk, FIN", _with(CHUNKED, body=b"a\r\npart"), "FIN"),
    Ending("up to the end of the connection, RST", _with("Connection: close", body=b"part"), "RST"),
    Ending("no answer, FIN", b"", "FIN"),
    Ending("no answer, RST", b"", "RST"),
    Ending("half a head, FIN", b"HTTP/1.1 200 OK\r\nContent-Le", "FIN"),
    Ending("no HTTP", b"220 mail.example ESMTP\r\n\r\n", "FIN",
           rule="RFC 9112 4: a response begins with its version"),
    Ending("bytes behind a length", _with("Content-Length: 5", body=b"wholesurplus"), leaves_bytes=True),
    Ending("another response behind the response",
           _with("Content-Length: 5", body=b"whole") + _with("Content-Length: 6", body=b"poison"), leaves_bytes=True),
    Ending("bytes behind the last chunk", _with(CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\nsurplus"), leaves_bytes=True),
    Ending("204 with a length and a body", _with("Content-Length: 5", body=b"whole", status="204 None"),
           leaves_bytes=True),
    Ending("204 in chunks", _with(CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\n", status="204 None"), leaves_bytes=True),
    Ending("304 with a length", _with("Content-Length: 5", status="304 Not Modified")),
    Ending("304 with a body", _with("Content-Length: 5", body=b"whole", status="304 Not Modified"), leaves_bytes=True),
    Ending("HEAD with a length", _with("Content-Length: 5"), method="HEAD"),
    Ending("HEAD with a body", _with("Content-Length: 5", body=b"whole"), method="HEAD", leaves_bytes=True),
    Ending("two lengths that differ", _with("Content-Length: 5", "Content-Length: 6", body=b"whole!"),
           leaves_bytes=True, rule="RFC 9112 6.3: lengths that differ are an error"),
    Ending("two lengths that agree", _with("Content-Length: 5", "Content-Length: 5", body=b"whole"),
           rule="RFC 9112 6.3: equal lengths are one, or an error"),
    Ending("length and chunks", _with("Content-Length: 5", CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\n"),
           leaves_bytes=True, rule="RFC 9112 6.1: a length beside chunks is an attack until proven otherwise"),
    Ending("length that is no number", _with("Content-Length: 5x", body=b"whole"),
           rule="RFC 9112 6.3: a length is digits"),
    Ending("length with a sign", _with("Content-Length: +5", body=b"whole"),
           rule="RFC 9112 6.3: a length is digits"),
    Ending("length of twenty digits", _with("Content-Length: 99999999999999999999", body=b"whole"), "FIN",
           rule="RFC 9110 8.6: a length too large for a number is an error"),
    Ending("unknown transfer coding", _with("Transfer-Encoding: odd", body=b"whole"), "FIN",
           rule="RFC 9112 6.1: a transfer coding has to be understood"),
    Ending("chunk size that is none", _with(CHUNKED, body=b"x\r\nwhole\r\n0\r\n\r\n"), "FIN"),
    Ending("chunk with bytes too many", _with(CHUNKED, body=b"5\r\nwhole!\r\n0\r\n\r\n"), "FIN"),
    Ending("chunk extensions", _with(CHUNKED, body=b"5;a=b\r\nwhole\r\n0;c\r\n\r\n")),
    Ending("chunks in HTTP/1.0", _with(CHUNKED, body=b"5\r\nwhole\r\n0\r\n\r\n").replace(b"1.1", b"1.0", 1), "FIN",
           rule="RFC 9112 6.1: there are no transfer codings in HTTP/1.0"),
    Ending("version 2.0", _with("Content-Length: 5", body=b"whole").replace(b"1.1", b"2.0", 1),
           rule="RFC 9110 2.5: another major version is another protocol"),
    Ending("status 600", _with("Content-Length: 5", body=b"whole", status="600 Odd"),
           rule="RFC 9110 15: a status is from 100 to 599"),
    Ending("status of two digits", _with("Content-Length: 5", body=b"whole", status="20 Odd"),
           rule="RFC 9112 4: a status has three digits"),
    Ending("space before a colon", _with("Content-Length: 5", "X-A : b", body=b"whole"),
           rule="RFC 9112 5.1: no space between name and colon"),
    Ending("folded field", _with("Content-Length: 5", "X-A: b\r\n c", body=b"whole"),
           rule="RFC 9112 5.2: a folded field is unfolded"),
    Ending("lines that end in LF", _with("Content-Length: 5", body=b"whole").replace(b"\r", b""),
           rule="RFC 9112 2.2: lines end in CRLF"),
    Ending("field of 3 KB", _with("Content-Length: 5", "X-A: " + "a" * 3000, body=b"whole")),
    Ending("field of 6 KB", _with("Content-Length: 5", "X-A: " + "a" * 6000, body=b"whole")),
    Ending("field of 12 KB", _with("Content-Length: 5", "X-A: " + "a" * 12_000, body=b"whole")),
    Ending("three fields of 7 KB", _with("Content-Length: 5", *["X-A: " + "a" * 7000] * 3, body=b"whole")),
    Ending("120 fields", _with("Content-Length: 5", *["X-A: a"] * 120, body=b"whole")),
]  # fmt: skip


async def end_as_told(exchange: Exchange, ending: Ending) -> None:
    """Sends what is to be sent, and ends, or stays, as is to be done."""
    if exchange.request_line.partition(" HTTP/")[0].endswith("?next"):
        await exchange.answer(b"next")
        return
    if ending.leaves_bytes or ending.method == "HEAD" or ending.data[9:12] in (b"204", b"304"):
        await exchange.send(ending.data)
    else:
        await send_apart(exchange.peer, ending.data)
    if ending.then:
        await trio.sleep(APART)
    exchange.mark("done")
    if ending.then == "FIN":
        exchange.close()
    elif ending.then == "RST":
        exchange.reset()


async def end_and_next(cell: Cell, ending: Ending) -> Outcome:
    """A response, and another one on the same connection of the client's if that lives."""
    client = await cell.ask(method=ending.method)
    await client.wait(has_final(client, ending.method), 3 * SOON)
    await client.wait_end(APART if ending.leaves_bytes else SOON / 2)
    cell.begun = max([cell.begun, *(exchange.times.get("done", 0.0) for exchange in cell.origin.of(cell.name))])
    story = cell.told(client, ending.method)
    requests = len(cell.origin.of(cell.name))
    if client.end is None and has_final(client, ending.method)():
        await cell.send(client, cell.request(suffix="?next"))
        await client.wait(has_final(client, ending.method, "GET", count=2), SOON)
        story = [*story[:-1], "then", *cell.told(client, ending.method)[len(story) - 1 :]]
    return Outcome(tuple(story), (counted(requests),))


_THEN_NEXT = r", then, 200 'next', stays open / 1 request"
for one in ENDINGS:
    add(
        "end",
        one.title,
        partial(end_and_next, ending=one),
        partial(end_as_told, ending=one),
        is_alone=one.leaves_bytes,
        rule=one.rule,
        strict=(r"200 'whole'" if one.title == "folded field" else r"50[23]") + _THEN_NEXT if one.rule else "",
    )
