"""Header fields: what reaches the origin, and what comes back."""

import re
from collections.abc import Callable
from functools import partial

from proxies.origin import Exchange
from proxies.recorder import read_responses
from proxies.scenarios import (
    Cell,
    Outcome,
    add,
    scenario,
    settled,
)

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
    if value is None or (name == "connection" and value.lower() == "keep-alive"):  # that is what HTTP/1.1 does anyway
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
_HOP_BY_HOP = "RFC 9110 7.6.1: fields for one hop, and those that Connection names, end there"
_STRICT_LOOKS = {
    "Connection": r"nothing / (none|close)",
    "Keep-Alive, TE": r"nothing / none",
    "Proxy-Connection, Proxy-Authorization": r"nothing / none",
}
for title, look in LOOKS.items():
    strict = _STRICT_LOOKS.get(title, "")
    add("field", title, partial(fields_seen, look=look), rule=_HOP_BY_HOP if strict else "", strict=strict)


async def answer_with_fields(exchange: Exchange) -> None:
    """Answers with fields that are for the next hop only, and some that are not."""
    fields = ("Connection: X-Named, keep-alive", "X-Named: 1", "Keep-Alive: timeout=9")
    await exchange.answer(b"whole", "200 OK", *fields, "Server: origin", "Set-Cookie: a=1", "Set-Cookie: b=2")


@scenario("field", "fields of a response", answer_with_fields)
async def response_fields(cell: Cell) -> Outcome:
    client = await cell.ask()
    await settled(client)
    responses, _ = read_responses(bytes(client.data), ended=client.end and client.end.how)
    if not responses:
        return Outcome(("nothing",), ())
    response = responses[0]
    story = [name for name in ("X-Named", "Via") if response.get(name.lower()) is not None]
    server = "Server as it was" if response.get("server") == "origin" else "Server changed"
    return Outcome((*story, server, f"Set-Cookie: {response.get('set-cookie')}"), ())
