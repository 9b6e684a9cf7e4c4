"""The opening handshake of a WebSocket (RFC 6455 4.2), and who may make one."""

import binascii
from base64 import b64decode

from wsproto.utilities import generate_accept_token

from tricast.addresses import network_of
from tricast.errors import RemoteProtocolError, Unavailable
from tricast.http import Exchange, Handover
from tricast.origins import refuse_foreign_origin
from tricast.runtime import Handler, Runtime
from tricast.transports.websocket import Session, Subscription
from tricast.wire.credentials import TOKEN_PROTOCOL_TAKEN
from tricast.wire.http1 import END_OF_HEAD, Request, encode_head, encode_headers
from tricast.wire.websocket import accept_deflate

_VERSION = b"13"
_UPGRADE_HEADERS = ((b"upgrade", b"websocket"), (b"connection", b"upgrade"))


def check_upgrade(exchange: Exchange) -> None:
    """Lets those pass who make a valid handshake and may.

    Raises:
        RemoteProtocolError: it is not a handshake, not a valid one, or from a page that may not.
        Unavailable: the server goes down.
    """
    request, runtime = exchange.request, exchange.runtime
    if not request.wants_websocket:
        raise RemoteProtocolError(
            "this path speaks WebSocket only",
            code="upgrade-required",
            status=426,
            headers=_UPGRADE_HEADERS,
        )
    refuse_foreign_origin(exchange)
    _check_handshake(request)
    refuse_while_draining(runtime)
    runtime.check_memory()


def upgrade(
    exchange: Exchange, handler: Handler, subprotocol: bytes | None, subscription: Subscription | None = None
) -> Handover:
    """Answers a handshake that was checked, and hands the connection over to a session with this handler.

    The answer (RFC 6455 4.2.2) is written here: wsproto would have h11 parse the request once more for it, which was a
    third of what an upgrade cost.

    Args:
        exchange: the request.
        handler: what serves the session.
        subprotocol: the one that is spoken, if the client offers it.
        subscription: what the session follows from the start.

    Raises:
        LimitExceeded: there is no place left, for the client's account or with one of the topics.
    """
    request, runtime = exchange.request, exchange.runtime
    deflate = None
    if runtime.config.websocket.permessage_deflate:
        deflate = accept_deflate(b",".join(request.members(b"sec-websocket-extensions")).decode("ascii"))
    head = switching_head(exchange, subprotocol, None if deflate is None else deflate.answer)
    session = Session(
        exchange.connection,
        runtime,
        request,
        handler,
        exchange.unread(),
        subscription=subscription,
        window_bits=None if deflate is None else deflate.window_bits,
        identity=exchange.identity,
    )
    session.take_places(account_of(exchange), None if subscription is None else subscription.topics)
    return Handover(head + session.opening(), session)


def account_of(exchange: Exchange) -> str:
    """Whom limits count this request for; empty where none counts by account."""
    return subject_of(exchange) if exchange.runtime.accounts.is_limited else ""


def subject_of(exchange: Exchange) -> str:
    """Whom a limit counts this request for that is about whoever is asking."""
    return exchange.identity.account or f"address:{network_of(exchange.client)}"


def switching_head(exchange: Exchange, subprotocol: bytes | None = None, deflate: bytes | None = None) -> bytes:
    """The answer to a handshake that was checked.

    Args:
        exchange: the request.
        subprotocol: the one that is spoken, if the client offers it.
        deflate: what was agreed on of permessage-deflate.
    """
    request = exchange.request
    key = request.header(b"sec-websocket-key")
    assert key is not None
    headers = [*_UPGRADE_HEADERS, (b"sec-websocket-accept", generate_accept_token(key))]
    # Names of subprotocols are case-sensitive, unlike most tokens. One that is a token is not repeated.
    offered = request.members(b"sec-websocket-protocol")
    for chosen in (subprotocol, TOKEN_PROTOCOL_TAKEN) if offered else ():
        if chosen in offered:
            headers.append((b"sec-websocket-protocol", chosen))
            break
    if deflate is not None:
        headers.append((b"sec-websocket-extensions", deflate))
    return encode_head(101, encode_headers(headers), exchange.runtime.common_headers(), END_OF_HEAD)


def refuse_while_draining(runtime: Runtime) -> None:
    """Takes no new work while the server goes down.

    Raises:
        Unavailable: it does.
    """
    if runtime.is_draining:
        raise going_down(runtime)


def going_down(runtime: Runtime) -> Unavailable:
    """What those are told who come too late, or look whether to come."""
    return Unavailable("the server is going down", code="draining", retry_after=runtime.returns.delay())


def _check_handshake(request: Request) -> None:
    """RFC 6455 4.2.1.

    Raises:
        RemoteProtocolError: the handshake has a body, another version, a key that is none, or names that are none.
    """
    if request.header(b"transfer-encoding") is not None or request.header(b"content-length") not in (None, b"0"):
        raise RemoteProtocolError("a WebSocket handshake has no body", code="bad-handshake", closes=True)
    version = request.header(b"sec-websocket-version")
    if version != _VERSION:
        headers = (*_UPGRADE_HEADERS, (b"sec-websocket-version", _VERSION))
        raise RemoteProtocolError(
            "Sec-WebSocket-Version must be 13", code="bad-handshake", status=426 if version else 400, headers=headers
        )
    keys = [value for name, value in request.headers if name == b"sec-websocket-key"]
    try:
        sizes = [len(b64decode(key, validate=True)) for key in keys]
    except binascii.Error:
        sizes = []
    if sizes != [16]:
        raise RemoteProtocolError("Sec-WebSocket-Key must be 16 bytes in Base64, once", code="bad-handshake")
    for name in (b"host", b"sec-websocket-protocol", b"sec-websocket-extensions"):
        if not all(member.isascii() for member in request.members(name)):
            raise RemoteProtocolError(f"{name.decode()} must be ASCII", code="bad-handshake")
