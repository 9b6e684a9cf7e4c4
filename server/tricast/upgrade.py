"""The opening handshake of a WebSocket (RFC 6455 4.2), and who may make one."""

import binascii
from base64 import b64decode

from wsproto import ConnectionType
from wsproto.events import AcceptConnection
from wsproto.events import Request as Opening
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError as HandshakeError

from tricast.errors import RemoteProtocolError, Unavailable
from tricast.http import Exchange, Handover, common_headers
from tricast.runtime import Handler, Runtime
from tricast.transports.websocket import Session
from tricast.wire.http1 import Request

_VERSION = b"13"
_UPGRADE_HEADERS = ((b"upgrade", b"websocket"), (b"connection", b"upgrade"))


def upgrade(exchange: Exchange, handler: Handler, subprotocol: str | None) -> Handover:
    """Answers the handshake, and hands the connection over to a session with this handler.

    Args:
        exchange: the request.
        handler: what serves the session.
        subprotocol: the one that is spoken, if the client offers it.

    Raises:
        RemoteProtocolError: it is not a handshake, not a valid one, or from a page that may not.
        Unavailable: the server goes down.
    """
    request, runtime = exchange.request, exchange.runtime
    if not request.wants_websocket:
        raise RemoteProtocolError(
            "this path speaks WebSocket only", code="upgrade-required", status=426, headers=_UPGRADE_HEADERS
        )
    refuse_foreign_origin(request, runtime)
    _check_handshake(request)
    refuse_while_draining(runtime)
    handshake = H11Handshake(ConnectionType.SERVER)
    try:
        handshake.initiate_upgrade_connection(_normalised(request), request.target)
        offered = [name for event in handshake.events() if isinstance(event, Opening) for name in event.subprotocols]
    except (HandshakeError, UnicodeError) as error:
        raise RemoteProtocolError(f"WebSocket handshake: {error}", code="bad-handshake") from None
    accept = AcceptConnection(
        subprotocol=subprotocol if subprotocol in offered else None, extra_headers=list(common_headers(runtime))
    )
    head = handshake.send(accept)
    return Handover(head, Session(exchange.connection, runtime, request, handler, exchange.unread()))


def refuse_foreign_origin(request: Request, runtime: Runtime) -> None:
    """Lets pages only of this server's own origin, and of those configured, use what CORS does not protect.

    A browser opens a WebSocket, and sends a simple POST, for any page; whether to take it is the server's to decide
    (RFC 6455 10.2). What is not a browser sends no ``Origin``.

    Raises:
        RemoteProtocolError: the page is of another origin.
    """
    origin = request.header(b"origin")
    if origin is None:
        return
    allowed = runtime.config.server.cors_origins
    host = origin.partition(b"://")[2]
    is_own = bool(host) and host.lower() == (request.header(b"host") or b"").lower()
    if not is_own and "*" not in allowed and origin.decode("latin-1") not in allowed:
        raise RemoteProtocolError(
            "pages of this origin may not do this: see server.cors_origins", code="origin-not-allowed", status=403
        )


def refuse_while_draining(runtime: Runtime) -> None:
    """Takes no new work while the server goes down.

    Raises:
        Unavailable: it does.
    """
    if runtime.is_draining:
        seconds = runtime.jitter(runtime.config.drain.retry_after)
        raise Unavailable("the server is going down", code="draining", retry_after=seconds)


def _check_handshake(request: Request) -> None:
    """What wsproto leaves open of RFC 6455 4.2.1, or answers otherwise.

    Raises:
        RemoteProtocolError: the handshake has a body, another version, or a key that is none.
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


def _normalised(request: Request) -> list[tuple[bytes, bytes]]:
    """The headers with one member each in Upgrade and Connection: wsproto reads no lists, nor repeated lines."""
    others = [header for header in request.headers if header[0] not in (b"upgrade", b"connection")]
    return [*others, *_UPGRADE_HEADERS]
