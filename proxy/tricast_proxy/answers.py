"""What the proxy says itself: errors of its own making, and which part of its work failed."""

import html
import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import NamedTuple

from tricast.wire.http1 import PROBLEM_TYPE, retry_after
from tricast_proxy.config import ProxyConfig
from tricast_proxy.heads import Fields, encode_response


class Failure(NamedTuple):
    """Why an exchange cannot be completed.

    Attributes:
        kind: what retries and statuses go by: ``connect``, ``timeout``, ``empty``, ``invalid``, ``client`` and others.
        status: what the client is told.
        detail: why, for people.
        error: the type of RFC 9209 2.3 for ``Proxy-Status``.
    """

    kind: str
    status: int
    detail: str
    error: str = "proxy_internal_error"


#: Where the status stands in ``[errors]``, and what RFC 9209 calls it.
_KINDS = {
    "connect": ("connect", "connection_refused"),
    "connect-timeout": ("connect_timeout", "connection_timeout"),
    "timeout": ("header_timeout", "http_response_timeout"),
    "response-timeout": ("response_timeout", "http_response_timeout"),
    "empty": ("empty_response", "connection_terminated"),
    "invalid": ("bad_response", "http_protocol_error"),
    "cut": ("bad_response", "http_response_incomplete"),
    "upgrade": ("bad_response", "http_upgrade_failed"),
    "no-server": ("no_server", "destination_unavailable"),
    "request_line": ("request_line", "http_request_error"),
    "header": ("header", "http_request_error"),
    "header_count": ("header_count", "http_request_error"),
    "body": ("body", "http_request_error"),
}
#: Statuses that no RFC knows, but some proxies send.
_OTHER_PHRASES = {520: "Unknown Error", 522: "Connection Timed Out", 524: "A Timeout Occurred"}


#: What asks to be forwarded as it comes, where that is not done (RFC 10036 has this status and error).
INCREMENTAL_REFUSED = Failure("refused", 501, "incremental messages are not forwarded here", "incremental_refused")
#: Nothing is answered.
CLOSED_ON_PURPOSE = Failure("fault", 0, "closed before the answer, on purpose")


def failure_of(config: ProxyConfig, kind: str, detail: str) -> Failure:
    """A failure with the status that is configured for its kind."""
    if kind.isdecimal():
        return Failure(kind, int(kind), detail, "http_response_incomplete")
    key, error = _KINDS[kind]
    return Failure(kind, getattr(config.errors, key), detail, error)


def refusal(status: int, detail: str) -> Failure:
    """What a client is told whose request cannot be forwarded."""
    return Failure("refused", status, detail, "http_request_error")


def phrase_of(status: int) -> str:
    """The words for a status; those for the ones that only some proxies have are their own."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return _OTHER_PHRASES.get(status, "Error")


def answer_of(config: ProxyConfig, failure: Failure, *, is_head: bool, closes: bool) -> bytes:
    """An answer of the proxy's own as bytes.

    Args:
        config: how it looks.
        failure: what it tells.
        is_head: whether it answers a HEAD, so that the body is left out.
        closes: whether the connection ends after it.
    """
    written: Fields = []
    body = b""
    if failure.status not in (204, 304):  # RFC 9110 15.3.5, 15.4.5
        media_type, body = _BODIES[config.errors.text](failure.status, failure.detail)
        if body:
            written.append((b"Content-Type", media_type))
        written.append((b"Content-Length", b"%d" % len(body)))
    written.append((b"Cache-Control", b"no-store"))
    if failure.status == 503:
        written.append(retry_after(config.errors.retry_after))
    if failure.status == 426:
        written += [(b"Upgrade", b"HTTP/1.1"), (b"Connection", b"upgrade")]  # RFC 9110 15.5.22: it must say to what
    if config.headers.server:
        written.append((b"Server", config.headers.server.encode()))
    if config.headers.proxy_status:
        name = config.headers.via or "proxy"
        written.append((b"Proxy-Status", f"{name}; error={failure.error}".encode()))
    if closes:
        written.append((b"Connection", b"close"))
    head = encode_response(failure.status, phrase_of(failure.status).encode(), written)
    return head if is_head else head + body


def interim_answers(statuses: Iterable[int]) -> bytes:
    """Answers before the answer (RFC 9110 15.2), with nothing but their status."""
    return b"".join(encode_response(status, phrase_of(status).encode(), ()) for status in statuses)


def _problem(status: int, detail: str) -> tuple[bytes, bytes]:
    body = {"type": "urn:tricast:proxy", "title": phrase_of(status), "status": status, "detail": detail}
    return PROBLEM_TYPE, json.dumps(body).encode() + b"\n"


def _html(status: int, detail: str) -> tuple[bytes, bytes]:  # noqa: ARG001 - pages of proxies say no more than this
    title = html.escape(f"{status} {phrase_of(status)}")
    page = f"<html>\n<head><title>{title}</title></head>\n<body><h1>{title}</h1></body>\n</html>\n"
    return b"text/html", page.encode()


def _empty(status: int, detail: str) -> tuple[bytes, bytes]:  # noqa: ARG001 - the status says it
    return b"", b""


_BODIES = {"problem": _problem, "html": _html, "empty": _empty}
