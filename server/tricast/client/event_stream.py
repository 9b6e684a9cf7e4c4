"""Subscribing by Server-Sent Events."""

from typing import NoReturn

from tricast.client.endpoint import deadline
from tricast.client.event_stream_parser import EventStreamParser, StreamEvent
from tricast.client.exchange import Exchange
from tricast.client.failures import ClientError, Lost
from tricast.client.inbox import Inbox, Wish
from tricast.client.items import WireEvent, WireGap, decode, event_from, gap_from
from tricast.event import RESERVED_TYPE_PREFIX

_CONTENT_TYPE = "text/event-stream"


async def follow_event_stream(wish: Wish, inbox: Inbox) -> NoReturn:
    """Passes on what one event stream brings, until it ends. Cancelling it closes the connection.

    Raises:
        Lost: the stream ended, broke, or fell silent.
        ClientError: the server refuses it for good.
    """
    parser = EventStreamParser(max_bytes=wish.settings.max_message_bytes)
    try:
        async with wish.open_exchange() as exchange:
            await _follow(exchange, parser, wish, inbox)
    except Lost as lost:
        if lost.retry_after is None:
            lost.retry_after = parser.retry
        raise


async def _follow(exchange: Exchange, parser: EventStreamParser, wish: Wish, inbox: Inbox) -> NoReturn:
    chunk = await _open_stream(exchange, wish, inbox)
    while chunk:
        await _pass_on(parser, chunk, inbox)
        seconds = wish.settings.silence_timeout
        with deadline(seconds, Lost(f"the event stream was silent for {seconds:g} s")):
            chunk = await exchange.chunk()
    raise Lost("the server ended the stream")


async def _open_stream(exchange: Exchange, wish: Wish, inbox: Inbox) -> bytes:
    """Asks for the stream and returns its first bytes."""
    headers = [("Accept", _CONTENT_TYPE), ("Cache-Control", "no-store"), *inbox.resume_headers()]
    seconds = wish.settings.first_bytes_timeout
    buffered = Lost(f"the event stream did not begin within {seconds:g} s", is_transport_fault=True)
    with deadline(seconds, buffered):
        await exchange.ask("GET", wish.target(envelope="json"), headers)
        answer = await exchange.head()
        if answer.status_code != 200:
            raise await exchange.failure(answer)
        found = dict(answer.headers).get(b"content-type", b"").decode("latin-1")
        if found.partition(";")[0].strip().lower() != _CONTENT_TYPE:
            # Only this type is an event stream (HTML 9.2.2). Something in between may drop the Accept header.
            raise ClientError(f"the server sent {found or 'nothing'} for an event stream", is_transport_fault=True)
        return await exchange.chunk()


async def _pass_on(parser: EventStreamParser, chunk: bytes, inbox: Inbox) -> None:
    events = parser.feed(chunk)
    if inbox.connected_at is None and parser.opening_id is not None:
        await inbox.connected("sse", parser.opening_id)
    for event in events:
        await _deliver(event, inbox)
    if parser.last_event_id:
        inbox.move_to(parser.last_event_id)


async def _deliver(event: StreamEvent, inbox: Inbox) -> None:
    if event.type == f"{RESERVED_TYPE_PREFIX}gap":
        await inbox.gap(gap_from(decode(WireGap, event.data)))
    elif not event.type.startswith(RESERVED_TYPE_PREFIX):
        await inbox.event(event_from(decode(WireEvent, event.data)))
