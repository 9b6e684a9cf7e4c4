"""Subscribing by long polling."""

from typing import NoReturn

from tricast.client.endpoint import deadline
from tricast.client.exchange import Answer, Exchange, retry_after
from tricast.client.failures import ClientError, Lost
from tricast.client.inbox import Inbox, Wish
from tricast.client.items import PollAnswer, decode, event_from, gap_from

#: What a poll that was taken is answered with, sooner or later.
_TAKEN_STATUSES = frozenset({200, 204})


async def follow_polls(wish: Wish, inbox: Inbox) -> NoReturn:
    """Passes on what polls bring, one after the other, until one fails. Cancelling it closes the connection.

    Raises:
        Lost: the connection broke or fell silent, or the server is busy.
        ClientError: the server refuses it for good.
    """
    async with wish.open_exchange() as exchange:
        # Who does not know this HEAD may not know either that its answer has no body, and that would be taken for the
        # beginning of the next answer. So the connection is used on only after a good one.
        is_good = await _ask_position(exchange, wish, inbox)
        while is_good and exchange.is_reusable():
            await _poll(exchange, wish, inbox)
    while True:
        async with wish.open_exchange() as exchange:
            await _poll(exchange, wish, inbox)
            while exchange.is_reusable():
                await _poll(exchange, wish, inbox)


async def _ask_position(exchange: Exchange, wish: Wish, inbox: Inbox) -> bool:
    """Learns where the stream stands: a HEAD is answered at once, a GET only with the next event.

    Without that, what is published between a first poll that broke and the next one would be missed.

    Returns:
        Whether the server told it, which makes a connection. If not, it is left to a GET, whose answer has a body that
        says why; but not when the server asks to be left alone for a while.

    Raises:
        Lost: the connection broke or fell silent, or the server asks to come back later.
    """
    with deadline(wish.settings.silence_timeout, _silent(wish)):
        answer = await _ask("HEAD", exchange, wish, inbox)
    position = _position_in(answer)
    if answer.status_code in _TAKEN_STATUSES and position:
        await exchange.body(0)  # finishes the answer, which has no body, whatever its Content-Length (RFC 9112 6.3)
        # A position that the client has already is the better one: it is that of what was handed out.
        await inbox.connected("poll", inbox.position or position)
        return True
    if b"retry-after" in dict(answer.headers):
        failure = await exchange.failure(answer)
        if isinstance(failure, Lost):
            raise failure
    return False


async def _poll(exchange: Exchange, wish: Wish, inbox: Inbox) -> None:
    with deadline(wish.settings.silence_timeout, _silent(wish)):
        answer = await _ask("GET", exchange, wish, inbox)
    if answer.status_code not in _TAKEN_STATUSES:
        raise await exchange.failure(answer)
    position = _position_in(answer)
    if not position:
        raise ClientError("the server answered a poll without a Last-Event-ID")
    if inbox.connected_at is None:
        await inbox.connected("poll", inbox.position)
    with deadline(wish.settings.silence_timeout, _silent(wish)):
        body = await exchange.body(wish.settings.max_message_bytes)
    if answer.status_code == 200:
        await _deliver(decode(PollAnswer, body), inbox)
    inbox.move_to(position)
    wait = retry_after(dict(answer.headers).get(b"retry-after", b""))
    if wait is not None:
        raise Lost("the server asked to come back later", retry_after=wait)


async def _ask(method: str, exchange: Exchange, wish: Wish, inbox: Inbox) -> Answer:
    await exchange.ask(method, wish.target(), [("Accept", "application/json"), *inbox.resume_headers()])
    return await exchange.head()


def _silent(wish: Wish) -> Lost:
    return Lost(f"no answer to the poll for {wish.settings.silence_timeout:g} s")


def _position_in(answer: Answer) -> str:
    return dict(answer.headers).get(b"last-event-id", b"").decode("latin-1")


async def _deliver(answer: PollAnswer, inbox: Inbox) -> None:
    events = [event_from(wire) for wire in answer.events]
    if answer.gap is not None:
        await inbox.gap(gap_from(answer.gap))
    for event in events:
        await inbox.event(event)
