"""What the admin listener answers: what the proxy does at the moment, and what it is to do. For tools, not for pages.

``GET /healthz``, ``/readyz``, ``/metrics``, ``/connections``, ``/servers`` and ``/fault`` tell;
``POST /drain``, ``POST /servers/NAME?state=up|down|draining`` and ``PUT /fault`` change. There is nobody to be known
here: whoever can connect may do all of it, so it listens on the loopback interface unless told otherwise. What a
browser may be made to send by a page of somebody else is refused.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tricast.errors import ConfigError, RemoteProtocolError, Unavailable
from tricast.schema import unknown_key
from tricast.wire.http1 import (
    Request,
    Response,
    allow,
    json_response,
    problem_of,
)
from tricast_proxy.config import FaultEntry
from tricast_proxy.metrics import registry_of
from tricast_proxy.overview import ConnectionView, Overview, escaped
from tricast_proxy.servers import Health, Server

_NO_STORE = (b"cache-control", b"no-store")
#: By these a browser says that a page is behind a request (Fetch 3.1; Fetch Metadata 2.4); tools send neither.
_FROM_PAGES = (b"origin", b"sec-fetch-site")
_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::[0-9]*)?")
_FAULTS = TypeAdapter(tuple[FaultEntry, ...])

Route = Callable[[Request, bytes], Response]


class Admin:
    """Answers requests.

    Args:
        overview: the proxy.
        clock: the one by which its servers are judged.
    """

    def __init__(self, overview: Overview, clock: Callable[[], float]) -> None:
        self._overview = overview
        self._clock = clock
        self._registry = registry_of(overview, clock)
        self._routes: dict[str, dict[str, Route]] = {
            "/healthz": {"GET": self._health},
            "/readyz": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
            "/connections": {"GET": self._connections},
            "/servers": {"GET": self._servers},
            "/drain": {"POST": self._drain},
            "/fault": {"GET": self._faults, "PUT": self._set_faults},
        }

    def answer(self, request: Request, body: bytes, *, is_local: bool) -> Response:
        """The answer to a request.

        Args:
            request: its head.
            body: all of it.
            is_local: whether it came by the loopback interface.
        """
        try:
            _check_host(request, is_local=is_local)
            return self._route_of(request)(request, body)
        except (RemoteProtocolError, Unavailable) as error:
            return problem_of(error)

    def _route_of(self, request: Request) -> Route:
        routes = self._routes_of(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        if method not in routes:
            detail = f"{request.path} knows {', '.join(sorted(routes))}"
            raise RemoteProtocolError(detail, code="bad-method", status=405, headers=[allow(sorted(routes))])
        if method != "GET":
            _check_not_a_page(request)
        return routes[method]

    def _routes_of(self, path: str) -> Mapping[str, Route]:
        if path in self._routes:
            return self._routes[path]
        label = path.removeprefix("/servers/")
        for server in self._overview.servers:
            if server.label == label != path:
                return {"GET": partial(self._server, server), "POST": partial(self._set_server, server)}
        raise RemoteProtocolError("there is nothing here", code="not-found", status=404)

    def _health(self, _: Request, __: bytes) -> Response:
        return _json({"status": "ok"})

    def _ready(self, _: Request, __: bytes) -> Response:
        if self._overview.is_draining:
            raise Unavailable("the proxy is going down", code="draining")
        now = self._clock()
        if not any(server.health(now) is Health.UP for server in self._overview.servers):
            raise Unavailable("no server is up", code="no-server")
        return _json({"status": "ready"})

    def _metrics(self, _: Request, __: bytes) -> Response:
        return Response(200, ((b"content-type", CONTENT_TYPE_LATEST.encode()),), generate_latest(self._registry))

    def _connections(self, request: Request, _: bytes) -> Response:
        views = list(self._overview.connections())
        form = request.parameter("format") or "json"
        if form == "text":
            return Response(200, ((b"content-type", b"text/plain; charset=utf-8"), _NO_STORE), table(views).encode())
        if form != "json":
            raise RemoteProtocolError("format is json or text", code="bad-query")
        return _json({"connections": [_as_json(view) for view in views]})

    def _servers(self, _: Request, __: bytes) -> Response:
        return _json({"servers": [self._state_of(server) for server in self._overview.servers]})

    def _server(self, server: Server, _: Request, __: bytes) -> Response:
        return _json(self._state_of(server))

    def _set_server(self, server: Server, request: Request, _: bytes) -> Response:
        states = {health.value: health for health in Health} | {"drain": Health.DRAINING}
        wanted = states.get(request.parameter("state") or "")
        if wanted is None:
            raise RemoteProtocolError(f"state is one of {', '.join(states)}", code="bad-query")
        self._overview.ask_of(server, wanted)
        return _json(self._state_of(server))

    def _state_of(self, server: Server) -> dict[str, Any]:
        now = self._clock()
        return {
            "name": server.label,
            "address": server.address,
            "health": server.health(now).value,
            "wanted": server.wanted.value,
            "passes_checks": server.passes_checks,
            "weight": server.entry.weight,
            "weight_now": round(server.weight(now), 2),
            "backup": server.entry.backup,
            "active": server.active,
            "max_connections": server.entry.max_connections,
            "counts": dict(server.counts),
            "url": f"/servers/{quote(server.label, safe='')}",
        }

    def _drain(self, _: Request, __: bytes) -> Response:
        self._overview.drain()
        return _json({"status": "draining"}, 202)

    def _faults(self, _: Request, __: bytes) -> Response:
        return _json([fault.model_dump(mode="json", exclude_defaults=True) for fault in self._overview.faults])

    def _set_faults(self, request: Request, body: bytes) -> Response:
        try:
            self._overview.set_faults(_FAULTS.validate_json(body))
        except ValidationError as error:
            told = (f"{'.'.join(map(str, found['loc'])) or 'body'}: {_in_words(found)}" for found in error.errors())
            raise RemoteProtocolError("; ".join(told), code="bad-faults") from None
        except ConfigError as error:
            raise RemoteProtocolError(str(error), code="bad-faults") from None
        return self._faults(request, body)


def _in_words(found: ErrorDetails) -> str:
    is_unknown = found["type"] == "extra_forbidden"
    return unknown_key(str(found["loc"][-1]), FaultEntry) if is_unknown else found["msg"]


def _json(value: object, status: int = 200) -> Response:
    return json_response(status, value, (_NO_STORE,))


def _as_json(view: ConnectionView) -> dict[str, Any]:
    return view._asdict() | {"state": view.state.value} | {name: round(getattr(view, name), 3) for name in _SECONDS}


_SECONDS = ("age", "idle_received", "idle_sent")


def table(views: Iterable[ConnectionView]) -> str:
    """The connections as text, one a line."""
    rows = [tuple(field.replace("_", " ") for field in ConnectionView._fields)]
    for view in views:
        seconds = (f"{getattr(view, name):.1f}" for name in _SECONDS)
        request = escaped(view.request.encode())
        rows.append((view.peer, view.state.value, request, view.server, str(view.received), str(view.sent), *seconds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


# Who may ask


def _check_host(request: Request, *, is_local: bool) -> None:
    """By a name of its own that it has point to 127.0.0.1, a page could read all of this (DNS rebinding).

    Raises:
        RemoteProtocolError: the name is one that nobody uses who means this machine.
    """
    match = _HOST.fullmatch((request.header(b"host") or b"").decode("latin-1").lower())
    name = "" if match is None else match[1] or match[2]
    if is_local and name != "localhost" and not _is_address(name):
        raise RemoteProtocolError("ask for localhost, or for an address", code="bad-host", status=421)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_not_a_page(request: Request) -> None:
    """Nothing is changed for a page, whichever it is: there is none that should (OWASP: cross-site request forgery).

    Raises:
        RemoteProtocolError: a browser has sent this.
    """
    if any(request.header(name) is not None for name in _FROM_PAGES):
        raise RemoteProtocolError("pages may not do this", code="origin-not-allowed", status=403)
