"""Subscribing by long polling."""

from typing import NoReturn

import trio

from tricast.client.endpoint import deadline
from tricast.client.exchange import Answer, Exchange, retry_after
from tricast.client.failures import ClientError, Lost
from tricast.client.inbox import Inbox, Wish
from tricast.client.items import PollAnswer, decode, event_from, gap_from
from tricast.event import Event

#: A refusal comes at once, an answer only with the next event. So a poll that hangs this long was accepted.
_ACCEPTED_AFTER = 1.0


async def follow_polls(wish: Wish, inbox: Inbox) -> NoReturn:
    """Passes on what polls bring, one after the other, until one fails. Cancelling it closes the connection.

    Raises:
        Lost: the connection broke or fell silent, or the server is busy.
        ClientError: the server refuses it for good.
    """
    while True:
        async with wish.open_exchange() as exchange:
            await _poll(exchange, wish, inbox)
            while exchange.is_reusable():
                await _poll(exchange, wish, inbox)


async def _poll(exchange: Exchange, wish: Wish, inbox: Inbox) -> None:
    seconds = wish.settings.silence_timeout
    silent = Lost(f"no answer to the poll for {seconds:g} s")
    with deadline(seconds, silent):
        await exchange.ask("GET", wish.target(), [("Accept", "application/json"), *inbox.resume_headers()])
    answer = await _wait_for_answer(exchange, inbox, seconds, silent)
    position = dict(answer.headers).get(b"last-event-id", b"").decode("latin-1")
    if answer.status_code not in (200, 204):
        raise await exchange.failure(answer)
    if not position:
        raise ClientError("the server answered a poll without a Last-Event-ID")
    if inbox.connected_at is None:
        await inbox.connected("poll", inbox.position)
    with deadline(seconds, silent):
        body = await exchange.body(wish.settings.max_message_bytes)
    if answer.status_code == 200:
        await _deliver(decode(PollAnswer, body), inbox)
    inbox.position = position
    wait = retry_after(dict(answer.headers).get(b"retry-after", b""))
    if wait is not None:
        raise Lost("the server asked to come back later", retry_after=wait)


async def _wait_for_answer(exchange: Exchange, inbox: Inbox, seconds: float, silent: Lost) -> Answer:
    if inbox.connected_at is None:
        with trio.move_on_after(_ACCEPTED_AFTER):
            return await exchange.head()
        await inbox.connected("poll", inbox.position)
    with deadline(seconds, silent):
        return await exchange.head()


async def _deliver(answer: PollAnswer, inbox: Inbox) -> None:
    events = [event_from(wire) for wire in answer.events]
    if answer.gap is not None:
        gap = gap_from(answer.gap)
        # A gap in one topic may lie behind events of another.
        earlier = [event for event in events if event.id <= gap.resumed_at]
        await _deliver_events(earlier, inbox)
        await inbox.gap(gap)
        events = events[len(earlier) :]
    await _deliver_events(events, inbox)


async def _deliver_events(events: list[Event], inbox: Inbox) -> None:
    for event in events:
        await inbox.event(event)
