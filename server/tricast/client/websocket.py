"""Subscribing by WebSocket. The edge where errors of wsproto enter."""

import re
from typing import NoReturn

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token, generate_nonce

from tricast.client.endpoint import deadline
from tricast.client.exchange import Answer, Exchange
from tricast.client.failures import ClientError, Lost
from tricast.client.inbox import Inbox, Wish
from tricast.client.items import Frame, decode, event_from, gap_from

_SUBPROTOCOL = "tricast.v1"
#: An Upgrade that is answered so may work the next time. Any other answer is one to the Upgrade as such.
_BUSY_STATUSES = frozenset({408, 425, 429, 503})
#: An answer to who asks, which is the same whatever is asked for (RFC 9110 15.5.2).
_UNAUTHORIZED = 401
#: What the server says of what is asked for, whichever way. All else may be about the Upgrade, or from a proxy.
_WHATEVER_THE_WAY = frozenset(
    {(400, "bad-topic"), (400, "bad-last-id"), (400, "limit-exceeded"), (403, "topic-not-allowed")}
)
#: The server's own codes: what the client was let in with is over, or not enough.
_EXPIRED, _FORBIDDEN = 4401, 4403
#: Closing with one of these, the server says that coming back in the same way is of no use (RFC 6455 7.4.1).
_FINAL_CODES = frozenset(
    {
        CloseReason.PROTOCOL_ERROR,
        CloseReason.UNSUPPORTED_DATA,
        CloseReason.INVALID_FRAME_PAYLOAD_DATA,
        CloseReason.POLICY_VIOLATION,
        CloseReason.MESSAGE_TOO_BIG,
        CloseReason.MANDATORY_EXT,
        _EXPIRED,
        _FORBIDDEN,
    }
)
_COME_BACK = re.compile(r"come back in ([0-9]{1,6}(?:\.[0-9]{1,6})?) s", re.ASCII)
_CLOSE_TIMEOUT = 1.0


async def follow_websocket(wish: Wish, inbox: Inbox) -> NoReturn:
    """Passes on what one WebSocket brings, until it ends. Cancelling it closes the connection.

    Raises:
        Lost: the connection was not made, was closed, broke, or fell silent.
        ClientError: the server refuses it for good.
    """
    async with wish.open_exchange() as exchange:
        seconds = wish.settings.first_bytes_timeout
        slow = Lost(f"the WebSocket handshake took longer than {seconds:g} s", is_transport_fault=True)
        with deadline(seconds, slow):
            await _upgrade(exchange, wish, inbox)
        await _Session(exchange, wish, inbox).run()


async def _upgrade(exchange: Exchange, wish: Wish, inbox: Inbox) -> None:
    """The opening handshake (RFC 6455 4.1). No extension is offered: what inflates has no bounded size."""
    nonce = generate_nonce()
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", nonce.decode()),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Protocol", _SUBPROTOCOL),
        *inbox.resume_headers(),
    ]
    try:
        await exchange.ask("GET", wish.target(), headers)
        answer = await exchange.head()
    except Lost as lost:  # the connection itself was made; some proxies drop it on an Upgrade
        raise Lost(f"no WebSocket: {lost}", is_transport_fault=True) from lost
    if answer.status_code != 101:
        failure = await exchange.failure(answer)
        failure.is_transport_fault = not (answer.status_code in _BUSY_STATUSES or _is_final_everywhere(failure))
        raise _final_if_upgrade_was_ignored(answer, failure)
    found = dict(answer.headers)
    if found.get(b"sec-websocket-accept") != generate_accept_token(nonce) or b"sec-websocket-extensions" in found:
        raise ClientError("the server does not know how to upgrade to WebSocket", is_transport_fault=True)


def _is_final_everywhere(failure: Lost | ClientError) -> bool:
    if not isinstance(failure, ClientError):
        return False
    return failure.status == _UNAUTHORIZED or (failure.status, failure.code) in _WHATEVER_THE_WAY


def _final_if_upgrade_was_ignored(answer: Answer, failure: Lost | ClientError) -> Lost | ClientError:
    if answer.status_code in (200, 204):
        return ClientError(
            "no WebSocket: something between here and the server drops the Upgrade header",
            status=answer.status_code,
            is_transport_fault=True,
        )
    return failure


class _Session:
    """An open WebSocket."""

    def __init__(self, exchange: Exchange, wish: Wish, inbox: Inbox) -> None:
        self._exchange = exchange
        self._inbox = inbox
        self._settings = wish.settings
        self._ws = Connection(ConnectionType.CLIENT, [], exchange.trailing_bytes())
        self._parts: list[str] = []
        self._size = 0
        self._complaint = ""

    async def run(self) -> NoReturn:
        while True:
            # One by one, because what may be answered depends on how far wsproto has read.
            for event in self._ws.events():
                await self._take(event)
            self._ws.receive_data(await self._receive())

    async def _receive(self) -> bytes:
        """Waits for bytes; asks for a sign of life half-way to giving up."""
        half = self._settings.silence_timeout / 2
        with trio.move_on_after(half):
            return await self._receive_some()
        with deadline(half, Lost(f"the WebSocket was silent for {2 * half:g} s")):
            await self._exchange.send_bytes(self._ws.send(Ping()))
            return await self._receive_some()

    async def _receive_some(self) -> bytes:
        data = await self._exchange.receive_bytes()
        if not data:
            raise Lost("the server closed the connection")
        return data

    async def _take(self, event: Event) -> None:
        if isinstance(event, TextMessage | BytesMessage):
            await self._take_part(event)
        elif isinstance(event, Ping):
            seconds = self._settings.silence_timeout
            with deadline(seconds, Lost(f"the WebSocket took no bytes for {seconds:g} s")):
                await self._exchange.send_bytes(self._ws.send(event.response()))
        elif isinstance(event, CloseConnection):
            raise await self._close(event)

    async def _take_part(self, event: TextMessage | BytesMessage) -> None:
        if not isinstance(event, TextMessage):
            raise ClientError("the server sent a binary message, which Tricast does not do")
        self._size += len(event.data.encode())
        if self._size > self._settings.max_message_bytes:
            raise ClientError(f"the server sent an event of more than {self._settings.max_message_bytes} bytes")
        self._parts.append(event.data)
        if event.message_finished:
            text, self._parts, self._size = "".join(self._parts), [], 0
            await self._deliver(decode(Frame, text))

    async def _deliver(self, frame: Frame) -> None:
        if frame.error is not None:
            self._complaint = frame.error.message or frame.error.code
        elif frame.gap is not None:
            await self._inbox.gap(gap_from(frame.gap))
        elif frame.ok == "subscribe":
            await self._inbox.connected("ws", frame.last_id)
        elif frame.ok is None:
            await self._inbox.event(event_from(frame))

    async def _close(self, event: CloseConnection) -> Lost | ClientError:
        """Answers the close frame, and says what it means."""
        is_theirs = self._ws.state is ConnectionState.REMOTE_CLOSING
        with trio.move_on_after(_CLOSE_TIMEOUT):
            await self._exchange.send_bytes(self._ws.send(event.response()))
        if not is_theirs:  # wsproto's own, on meeting what is no frame
            return Lost(f"the server broke the WebSocket protocol: {event.reason}")
        words = ", ".join(filter(None, (self._complaint, event.reason)))
        said = f"the server closed the WebSocket ({int(event.code)}{': ' if words else ''}{words})"
        if event.code in _FINAL_CODES:
            return ClientError(said, status=_UNAUTHORIZED if event.code == _EXPIRED else None)
        delay = _COME_BACK.search(event.reason or "")
        return Lost(said, retry_after=float(delay[1]) if delay else None)
