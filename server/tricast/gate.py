"""Who is asking: what a request shows is turned into an identity before its route does anything.

Owns ``POST /ticket`` and ``POST /refresh``. What an identity may do is decided by ``access``.
"""

from tricast.access.identity import Identity, identity_of
from tricast.errors import LimitExceeded, RemoteProtocolError, Unauthorized
from tricast.http import Answer, Exchange
from tricast.origins import refuse_cookie_of_foreign_page, refuse_foreign_origin, with_cors
from tricast.upgrade import refuse_while_draining, subject_of
from tricast.wire.credentials import Place, shown_by
from tricast.wire.http1 import Response, json_response

_NO_STORE = (b"cache-control", b"no-store")


async def let_in(exchange: Exchange) -> None:
    """Finds out who is asking, for all that comes behind; nobody is asked where access is open to all.

    Raises:
        Unauthorized: what the request shows is not good, and why.
        RemoteProtocolError: it shows more than one thing, or a cookie that a page of another origin has used.
        Unavailable: what it shows cannot be looked at now.
    """
    runtime = exchange.runtime
    if runtime.access.is_on:
        exchange.identity = await _identify(exchange)
    # Who says nothing else is who the certificate says.
    if exchange.identity is runtime.access.anonymous and (certified := runtime.certified(exchange.connection)):
        exchange.identity = identity_of(certified, exchange.identity)


async def _identify(exchange: Exchange) -> Identity:
    request, runtime = exchange.request, exchange.runtime
    shown = shown_by(request, runtime.config.auth)
    if shown.place is Place.TICKET:
        refuse_while_draining(runtime)  # it is good for once, and would be lost
        return runtime.access.redeem(shown.ticket)
    if shown.place is Place.COOKIE:
        refuse_cookie_of_foreign_page(exchange)
    return await runtime.access.identify(shown.credentials)


async def _let_in_somebody(exchange: Exchange) -> None:
    """As ``let_in``, where nobody is anonymous.

    Raises:
        Unauthorized: nothing is shown.
    """
    refuse_foreign_origin(exchange)
    await let_in(exchange)
    refuse_nobody(exchange)


def refuse_nobody(exchange: Exchange) -> None:
    """Lets only those pass who have said who they are, where anybody is asked that.

    Raises:
        Unauthorized: nobody has.
    """
    if exchange.identity.is_anonymous:
        raise Unauthorized("this needs a token: send Authorization: Bearer", code="token-missing")


async def trade_ticket(exchange: Exchange) -> Answer:
    """``POST /ticket``: a ticket for the URL of an EventSource or a browser's WebSocket, which can set no header."""
    return await with_cors(exchange, _trade_ticket)


async def _trade_ticket(exchange: Exchange) -> Response:
    await _let_in_somebody(exchange)
    runtime = exchange.runtime
    runtime.accounts.count_ticket(subject_of(exchange))
    ticket = runtime.access.issue_ticket(exchange.identity)
    if len(ticket) >= (allowed := runtime.config.limits.target_size):
        # A ticket has in it all that the token grants, and nobody could use it.
        detail = (
            f"the ticket would be longer than a URL may be (limits.target_size, {allowed}): the token grants too much"
        )
        raise LimitExceeded("limits.target_size", allowed, len(ticket), detail=detail, status=431)
    return json_response(200, {"ticket": ticket, "expires_in": runtime.config.auth.ticket_lifetime}, (_NO_STORE,))


async def refresh_stream(exchange: Exchange) -> Answer:
    """``POST /refresh?stream=…``: an event stream lives on with a newer token of the same account."""
    return await with_cors(exchange, _refresh_stream)


async def _refresh_stream(exchange: Exchange) -> Response:
    await _let_in_somebody(exchange)
    name = exchange.request.parameter("stream")
    if name is None:
        raise RemoteProtocolError("name the stream: its event tricast.lease says what it is called", code="bad-query")
    await exchange.runtime.leases.renew(name, exchange.identity)
    return json_response(200, {"expires_at": whole(exchange.identity.expires_at)}, (_NO_STORE,))


def whole(expires_at: float | None) -> int | None:
    """Unix seconds as they are told."""
    return None if expires_at is None else int(expires_at)
