"""What each path does: the events, publishing, health and metrics, and the page."""

import hashlib
from collections.abc import Mapping
from functools import partial
from importlib.resources import files

from tricast import metrics
from tricast.companion.endpoints import PATHS, Endpoints
from tricast.config import PublishSection
from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import DEFAULT_TYPE, Draft, data_as_json
from tricast.gate import let_in, refresh_stream, refuse_nobody, trade_ticket
from tricast.http import Answer, Exchange, Handover
from tricast.log.base import IdempotencyKey
from tricast.origins import Route, cors_headers, preflight_route, refuse_foreign_origin, with_cors
from tricast.publish import NDJSON, batch_drafts, idempotency_key
from tricast.runtime import Handler, Runtime
from tricast.transports.event_stream import EventStream
from tricast.transports.long_poll import LongPoll
from tricast.transports.stream import check_topics, last_id_of, settle, start_of
from tricast.transports.websocket import Subscription, serve_topics
from tricast.upgrade import account_of, check_upgrade, going_down, refuse_while_draining, upgrade
from tricast.wire import sse
from tricast.wire.http1 import Request, Response, allow, json_response
from tricast.wire.long_poll import position_headers
from tricast.wire.websocket import SUBPROTOCOL

_PAGE_FILES = {
    "/": ("index.html", b"text/html; charset=utf-8"),
    "/style.css": ("style.css", b"text/css; charset=utf-8"),
    "/tricast.js": ("tricast.js", b"text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", b"image/svg+xml"),
}
#: The page loads nothing from elsewhere and runs nothing that is not in its files.
_PAGE_POLICY = b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
_EVENT_STREAM_HEADERS = (
    (b"content-type", sse.CONTENT_TYPE),
    # no-transform keeps proxies from compressing, and by that from holding back, the stream.
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
#: Where what somebody gets is not for everybody, no cache on the way may keep it, whatever showed who that is.
_PRIVATE_EVENT_STREAM_HEADERS = tuple(
    (name, value.replace(b"no-cache", b"no-store")) for name, value in _EVENT_STREAM_HEADERS
)
_OPERATIONS = ("/healthz", "/readyz", "/metrics")
#: Where no application handler can be.
RESERVED_PATHS = frozenset({"/events", "/ws", "/publish", "/ticket", "/refresh", *_OPERATIONS, *_PAGE_FILES, *PATHS})


class Routes:
    """All paths of one listener.

    Args:
        runtime: what all connections share.
        table: path to method to route.
    """

    def __init__(self, runtime: Runtime, table: Mapping[str, Mapping[str, Route]]) -> None:
        self._runtime = runtime
        self._table = table

    async def __call__(self, exchange: Exchange) -> Answer:
        """Answers one request; see ``tricast.http.Router``."""
        request = exchange.request
        methods = self._table.get(request.path)
        if methods is None:
            if request.target == b"*" and request.method == "OPTIONS":  # RFC 9110 9.3.7: the server as a whole
                return Response(204)
            raise RemoteProtocolError("there is nothing at this path", code="not-found", status=404)
        exchange.label = request.path
        # HEAD is GET without the body, which the connection leaves away.
        route = methods.get("GET" if request.method == "HEAD" else request.method)
        if route is not None:
            return await route(exchange)
        allowed = allow(sorted({*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"}))
        if request.method == "OPTIONS":
            return Response(204, (allowed,))
        detail = f"{request.method} is not for this path"
        raise RemoteProtocolError(detail, code="method-not-allowed", status=405, headers=(allowed,))


def public_routes(runtime: Runtime, expose: metrics.Expose) -> Routes:
    """The paths for subscribers and publishers, the page, and health and metrics unless these have a listener."""
    # HTML 9.2 names Last-Event-ID; the rest of what subscribers send is safelisted (Fetch 2.2.2).
    events: Mapping[str, Route] = {
        "GET": subscribe,
        "OPTIONS": preflight_route(["GET", "HEAD"], b"last-event-id, cache-control"),
    }
    publish: Mapping[str, Route] = {
        "POST": publish_events,
        "OPTIONS": preflight_route(["POST"], b"content-type, idempotency-key"),
    }
    table: dict[str, Mapping[str, Route]] = {
        "/events": events,
        "/ws": {"GET": subscribe_websocket},
        "/publish": publish,
    }
    if runtime.access.is_on:
        for path, route in (("/ticket", trade_ticket), ("/refresh", refresh_stream)):
            table[path] = {"POST": route, "OPTIONS": preflight_route(["POST"], b"content-type")}
    if runtime.config.probe.token:
        table.update(Endpoints(runtime).table())
    for_anybody = {entry.path for entry in runtime.config.websocket.handler if entry.anonymous}
    for path, handler in runtime.handlers.items():
        table[path] = {"GET": _websocket_route(handler, is_for_anybody=path in for_anybody)}
    if runtime.config.server.page:
        table.update({path: {"GET": page} for path, page in _page_routes().items()})
    if not runtime.config.admin.enabled:
        table.update(_operations(expose))
    return Routes(runtime, table)


def admin_routes(runtime: Runtime, expose: metrics.Expose) -> Routes:
    """The paths for those who run the server."""
    return Routes(runtime, _operations(expose))


# Subscribing


async def subscribe(exchange: Exchange) -> Answer:
    """``GET /events``: a WebSocket, an event stream or a long poll, whatever the request's headers ask for."""
    if exchange.request.wants_websocket:
        return await subscribe_websocket(exchange)
    return await with_cors(exchange, _subscribe_over_http)


async def _subscribe_over_http(exchange: Exchange) -> Answer:
    request, runtime = exchange.request, exchange.runtime
    await let_in(exchange)
    topics = check_topics(request.parameters("topic"), runtime)
    runtime.access.check_subscribe(exchange.identity, topics.names)
    start = await settle(start_of(last_id_of(request), runtime.hub.last_id), topics, runtime.hub)
    envelope = _wants_envelope(request)
    refuse_while_draining(runtime)
    runtime.check_memory()
    if request.wants_event_stream:
        headers = _PRIVATE_EVENT_STREAM_HEADERS if runtime.access.is_on else _EVENT_STREAM_HEADERS
        if request.method == "HEAD":
            return Response(200, headers)
        stream = EventStream(
            exchange.connection,
            runtime,
            topics,
            start,
            envelope=envelope,
            is_chunked=request.is_http_11,
            identity=exchange.identity,
        )
        stream.take_places(account_of(exchange), topics)
        head = exchange.stream_head((*headers, *cors_headers(request, runtime)))
        return Handover(head + stream.opening(), stream)
    if request.method == "HEAD":
        # The position, so that a client can learn it before its first poll, and miss nothing if that one breaks.
        return Response(200, ((b"content-type", b"application/json"), *position_headers(start.position)))
    return await LongPoll.begin(
        runtime, topics, start, cors_headers(request, runtime), exchange.identity, account=account_of(exchange)
    )


def _wants_envelope(request: Request) -> bool:
    envelope = request.parameter("envelope")
    if envelope not in (None, "json"):
        raise RemoteProtocolError("the only envelope is json", code="bad-query")
    return envelope is not None


# WebSocket


async def subscribe_websocket(exchange: Exchange) -> Answer:
    """``GET /ws``, and ``/events`` with Upgrade: the subprotocol ``tricast.v1``."""
    check_upgrade(exchange)
    request, runtime = exchange.request, exchange.runtime
    await let_in(exchange)
    if not (exchange.identity.subscribe or exchange.identity.publish):
        refuse_nobody(exchange)  # who may do nothing at all holds no connection
    subscription = None
    # What the URL asks for is checked before the upgrade, so that a mistake in it gets an HTTP answer.
    if names := request.parameters("topic"):
        topics = check_topics(names, runtime)
        runtime.access.check_subscribe(exchange.identity, topics.names)
        start = await settle(start_of(last_id_of(request), runtime.hub.last_id), topics, runtime.hub)
        subscription = Subscription(topics, start)
    return upgrade(exchange, serve_topics, SUBPROTOCOL, subscription)


def _websocket_route(handler: Handler, *, is_for_anybody: bool) -> Route:
    async def route(exchange: Exchange) -> Answer:
        check_upgrade(exchange)
        await let_in(exchange)
        if not is_for_anybody:
            refuse_nobody(exchange)
        return upgrade(exchange, handler, None)

    return route


# Publishing


async def publish_events(exchange: Exchange) -> Answer:
    """``POST /publish``: one event, or a batch of them; with a key that is known, the answer of the first time."""
    return await with_cors(exchange, _publish)


async def _publish(exchange: Exchange) -> Response:
    request, runtime = exchange.request, exchange.runtime
    hub, config = runtime.hub, runtime.config.publish
    refuse_foreign_origin(exchange)
    await let_in(exchange)
    runtime.check_certified(exchange.connection)
    runtime.check_memory()
    account = account_of(exchange)
    check = partial(_check_draft, exchange)
    content_type = request.header(b"content-type") or b""
    is_batch = content_type.partition(b";")[0].strip().lower() == NDJSON
    # What can be refused without the body is refused before it is asked for.
    topic = None if is_batch else request.parameter("topic")
    if topic:
        exchange.runtime.access.check_publish(exchange.identity, topic)
    elif not exchange.identity.publish:
        refuse_nobody(exchange)
    body = await exchange.read_body("publish.max_body", config.max_body)
    runtime.check_certified(exchange.connection)  # which may be over by now, as may be what _check_draft looks at
    runtime.accounts.check(account)  # before it is looked at; having read it, the connection can go on
    key = _idempotency_key(exchange, (request.target, content_type, body), config)
    if is_batch:
        drafts = batch_drafts(body, max_events=config.max_batch, check=check)
    else:
        event_type = request.parameter("type")
        draft = Draft(topic or "", DEFAULT_TYPE if event_type is None else event_type, b"")
        # The names first: they are wrong more often than the data, and cheaper to look at.
        drafts = [hub.check(check(draft)._replace(data=data_as_json(body)))]
    runtime.accounts.charge(account, len(drafts))
    if hub.log_waits:
        # Nobody waits with his answer for another one's event to be written.
        await exchange.connection.flush()
    ids = [str(event_id) for event_id in await hub.append(drafts, key)]
    return json_response(
        200, {"ids": ids} if is_batch else {"id": ids[0]}, runtime.accounts.publishing_headers(account)
    )


def _check_draft(exchange: Exchange, draft: Draft) -> Draft:
    checked = exchange.runtime.hub.check(draft)
    exchange.runtime.access.check_publish(exchange.identity, checked.topic)
    return checked


def _idempotency_key(exchange: Exchange, content: tuple[bytes, ...], config: PublishSection) -> IdempotencyKey | None:
    name = exchange.request.header(b"idempotency-key")
    if name is None:
        return None
    return idempotency_key(
        name,
        content,
        account=exchange.identity.account,
        window=config.idempotency_window,
        max_keys=config.idempotency_keys,
    )


# Operations


def _operations(expose: metrics.Expose) -> Mapping[str, Mapping[str, Route]]:
    routes: tuple[Route, ...] = (health, ready, _Metrics(expose))
    return {path: {"GET": route} for path, route in zip(_OPERATIONS, routes, strict=True)}


async def health(_: Exchange) -> Response:
    """``GET /healthz``: 200 as long as the process can answer at all."""
    return json_response(200, {"status": "ok"}, ((b"cache-control", b"no-store"),))


async def ready(exchange: Exchange) -> Response:
    """``GET /readyz``: 200 while new work is welcome, else 503.

    It is not when the server goes down, or has no memory for it, or the log is not available; with ``?exclude=log``, as
    Kubernetes' own servers have it, whatever the log is.
    """
    excluded = exchange.request.parameter("exclude")
    if excluded not in (None, "log"):
        raise RemoteProtocolError("all that can be excluded is log", code="bad-query")
    if exchange.runtime.is_leaving:
        raise going_down(exchange.runtime)
    exchange.runtime.check_memory()
    problem_with_log = exchange.runtime.hub.problem
    if problem_with_log is not None and excluded is None:
        raise LogUnavailable(problem_with_log)
    return json_response(200, {"status": "ready"}, ((b"cache-control", b"no-store"),))


class _Metrics:
    def __init__(self, expose: metrics.Expose) -> None:
        self._expose = expose

    async def __call__(self, _: Exchange) -> Response:
        return Response(200, ((b"content-type", metrics.CONTENT_TYPE.encode()),), await self._expose())


# The page


def _page_routes() -> dict[str, Route]:
    folder = files("tricast") / "web"
    return {
        path: _file_route((folder / name).read_bytes(), media_type) for path, (name, media_type) in _PAGE_FILES.items()
    }


def _file_route(content: bytes, media_type: bytes) -> Route:
    etag = b'"%b"' % hashlib.blake2b(content, digest_size=12).hexdigest().encode()
    headers = (
        (b"content-type", media_type),
        (b"cache-control", b"no-cache"),
        (b"etag", etag),
        (b"content-security-policy", _PAGE_POLICY),
        (b"x-content-type-options", b"nosniff"),
    )

    async def route(exchange: Exchange) -> Response:
        if etag in exchange.request.tokens(b"if-none-match"):
            return Response(304, headers)
        return Response(200, headers, content)

    return route
