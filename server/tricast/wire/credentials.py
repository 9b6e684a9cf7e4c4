"""What a request shows to say who is asking, and where that may stand. Nothing is believed here."""

from enum import Enum
from typing import NamedTuple

from tricast.access.access import Credentials
from tricast.config import AuthSection
from tricast.errors import RemoteProtocolError, Unauthorized
from tricast.wire.http1 import Request
from tricast.wire.secrecy import QUERY_TOKEN, TICKET

API_KEY_HEADER = b"x-api-key"
#: A browser's WebSocket can set no header but the list of subprotocols: a token is an entry with this in front, which
#: is never answered. Every character of a JWT may be in a subprotocol's name (RFC 7515 3.1, RFC 9110 5.6.2).
TOKEN_PROTOCOL = b"tricast.token."
#: Offered beside it, this can be answered where the path has no subprotocol of its own: a browser gives a connection up
#: on which it offered some and none was chosen (WHATWG WebSockets, "establish a WebSocket connection").
TOKEN_PROTOCOL_TAKEN = b"tricast.token"


class Place(Enum):
    """Where credentials stood."""

    NOWHERE = "nowhere"
    AUTHORIZATION = "Authorization"
    API_KEY = "X-API-Key"
    SUBPROTOCOL = "Sec-WebSocket-Protocol"
    TICKET = "ticket"
    QUERY = "access_token"
    COOKIE = "cookie"


class Shown(NamedTuple):
    """What a request shows.

    Attributes:
        place: where.
        credentials: what there is to be believed.
        ticket: or a ticket that stands for it.
    """

    place: Place
    credentials: Credentials = Credentials()
    ticket: str = ""

    def __repr__(self) -> str:
        return f"Shown({self.place})"


def shown_by(request: Request, auth: AuthSection) -> Shown:
    """What the request shows. A cookie counts where there is nothing else, for a browser sends it unasked.

    ``Authorization`` of another scheme than Bearer is left to whom it is for: a proxy in front may ask for a password.

    Raises:
        RemoteProtocolError: there is more than one thing, and taking one would be guessing (RFC 6750 2).
        Unauthorized: it is where it is not taken.
    """
    found = [
        *_in_authorization(request),
        *(Shown(Place.API_KEY, Credentials(api_key=_text(value))) for value in _values(request, API_KEY_HEADER)),
        *_in_subprotocols(request),
        *_in_query(request, auth),
    ]
    if not found and auth.cookie:
        found = _in_cookies(request, auth.cookie.encode())
    if len(found) > 1:
        places = ", ".join(sorted({shown.place.value for shown in found}))
        raise RemoteProtocolError(f"credentials are given {len(found)} times: {places}", code="credentials-twice")
    return found[0] if found else Shown(Place.NOWHERE)


def _in_authorization(request: Request) -> list[Shown]:
    found = []
    for value in _values(request, b"authorization"):
        scheme, _, token = value.partition(b" ")
        if scheme.lower() == b"bearer":  # RFC 9110 11.1: whatever its case
            if not token.strip():
                raise Unauthorized("Authorization: Bearer has no token behind it", code="token-malformed")
            found.append(Shown(Place.AUTHORIZATION, Credentials(token=_text(token.strip()))))
    return found


def _in_subprotocols(request: Request) -> list[Shown]:
    if not request.wants_websocket:
        return []
    entries = request.members(b"sec-websocket-protocol")
    return [
        Shown(Place.SUBPROTOCOL, Credentials(token=_text(entry.removeprefix(TOKEN_PROTOCOL))))
        for entry in entries
        if entry.startswith(TOKEN_PROTOCOL)
    ]


def _in_query(request: Request, auth: AuthSection) -> list[Shown]:
    if not request.query:
        return []
    found = []
    if request.method == "GET":  # who can choose another method can set a header as well
        found = [Shown(Place.TICKET, ticket=ticket) for ticket in request.parameters(TICKET)]
    for token in request.parameters(QUERY_TOKEN):
        if not auth.token_in_query:
            raise Unauthorized(
                "a token is not taken from the URL, because URLs are logged: send it in Authorization, or get a ticket",
                code="token-in-query",
            )
        found.append(Shown(Place.QUERY, Credentials(token=token)))
    return found


def _in_cookies(request: Request, name: bytes) -> list[Shown]:
    pairs = [pair.partition(b"=") for value in _values(request, b"cookie") for pair in value.split(b";")]
    tokens = {value.strip().strip(b'"') for found, _, value in pairs if found.strip() == name} - {b""}
    return [Shown(Place.COOKIE, Credentials(token=_text(token))) for token in tokens]


def _values(request: Request, name: bytes) -> list[bytes]:
    return [value for found, value in request.headers if found == name]


def _text(value: bytes) -> str:
    return value.decode("latin-1")
