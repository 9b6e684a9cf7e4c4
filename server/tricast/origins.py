"""Pages: which may use this server through their visitors' browsers, and what a browser is told about that (CORS).

A browser sends what a page asks for with its visitor's cookies and from its visitor's network. Whose pages may do so is
said once, in ``server.cors_origins``, and the server's own always may.
"""

from collections.abc import Awaitable, Callable, Sequence

from tricast.errors import Forbidden, RemoteProtocolError, Unavailable
from tricast.http import Answer, Exchange
from tricast.runtime import Runtime
from tricast.wire.http1 import Headers, Request, Response, allow

Route = Callable[[Exchange], Awaitable[Answer]]

_EXPOSED = (b"access-control-expose-headers", b"last-event-id, retry-after, ratelimit, ratelimit-policy")


def refuse_foreign_origin(exchange: Exchange) -> None:
    """Lets pages only of this server's own origin, and of those configured, use what CORS does not protect.

    A browser opens a WebSocket, and sends a simple POST, for any page; whether to take it is the server's to decide
    (RFC 6455 10.2). What is not a browser sends no ``Origin``.

    Raises:
        RemoteProtocolError: the page is of another origin.
    """
    value = exchange.request.header(b"origin")
    if value is None:
        return
    origin, allowed = value.decode("latin-1"), exchange.runtime.config.server.cors_origins
    scheme, _, host = origin.partition("://")
    is_own = bool(host) and host.lower() == exchange.authority.lower()
    if exchange.scheme == "https" and scheme != "https":
        is_own = False  # a page that came without TLS may be anybody's; without TLS here, a proxy may have added it
    if not is_own and "*" not in allowed and origin not in allowed:
        raise RemoteProtocolError(
            "pages of this origin may not do this: see server.cors_origins", code="origin-not-allowed", status=403
        )


def refuse_cookie_of_foreign_page(exchange: Exchange) -> None:
    """Lets a cookie count only where it was a page of this server, or one of those configured, that used it.

    Browsers say which page asks with ``Origin``, but leave it out where a page of the same origin GETs, and where an
    element such as an image does; there ``Sec-Fetch-Site`` tells these apart (Fetch Metadata 2.3). Neither comes over
    plain HTTP. A GET that says nothing is let through, for it changes nothing and no other page can read its answer.

    Raises:
        RemoteProtocolError: the page is of another origin.
        Forbidden: it was an element of one, or what could change something did not say what it is.
    """
    request = exchange.request
    if request.header(b"origin") is not None:
        refuse_foreign_origin(exchange)
        return
    site = request.header(b"sec-fetch-site")
    if site is None and request.method in ("GET", "HEAD") and not request.wants_websocket:
        return
    if site not in (b"same-origin", b"none"):  # none: its visitor has typed the address
        raise Forbidden(
            "a cookie counts only for pages of this server and of server.cors_origins; nothing says that it was one",
            code="cross-site",
        )


def cors_headers(request: Request, runtime: Runtime) -> Headers:
    """What an answer has to say for a page of another origin to be able to read it (Fetch 3.2)."""
    allowed = runtime.config.server.cors_origins
    if not allowed:
        return ()
    if "*" in allowed:
        return ((b"access-control-allow-origin", b"*"), _EXPOSED)
    origin = request.header(b"origin")
    if origin is None or origin.decode("latin-1") not in allowed:
        return ((b"vary", b"origin"),)
    # Only where a cookie means something, and never with the wildcard (Fetch 3.2.5): the configuration refuses both.
    credentials = ((b"access-control-allow-credentials", b"true"),) if runtime.config.auth.cookie else ()
    return ((b"access-control-allow-origin", origin), (b"vary", b"origin"), _EXPOSED, *credentials)


async def with_cors(exchange: Exchange, route: Route) -> Answer:
    """The route's answer, problems included, with the headers without which a page cannot read it."""
    if not exchange.runtime.config.server.cors_origins:
        return await route(exchange)
    try:
        answer = await route(exchange)
    except (RemoteProtocolError, Unavailable) as error:
        answer = exchange.runtime.refusal(error)
    if isinstance(answer, Response):
        return answer._replace(headers=(*answer.headers, *cors_headers(exchange.request, exchange.runtime)))
    return answer


def preflight_route(methods: Sequence[str], headers: bytes) -> Route:
    """``OPTIONS``: what a browser asks before a request from another origin that is not a simple one (Fetch 4.8).

    Args:
        methods: that are for the path.
        headers: that a page may set, beside ``Authorization``, which a wildcard would not cover (Fetch 3.2.3).
    """
    granted = (
        (b"access-control-allow-methods", ", ".join(methods).encode()),
        (b"access-control-allow-headers", b"authorization, x-api-key, " + headers),
        (b"access-control-max-age", b"600"),
    )

    async def preflight(exchange: Exchange) -> Response:
        cors = cors_headers(exchange.request, exchange.runtime)
        is_allowed = any(name == b"access-control-allow-origin" for name, _ in cors)
        return Response(204, (allow(sorted([*methods, "OPTIONS"])), *cors, *(granted if is_allowed else ())))

    return preflight
