"""``/.tricast/probe/…``: what a probe may ask for, from whom it is taken, and within which bounds."""

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import trio

from tricast.companion.records import Records, Trace
from tricast.companion.streams import EventStreamProbe, HangUp, PollProbe, Script, WebSocketProbe
from tricast.errors import LimitExceeded, RemoteProtocolError
from tricast.http import Answer, Exchange, Handover
from tricast.runtime import Runtime
from tricast.transports.stream import last_id_of
from tricast.upgrade import check_upgrade, refuse_while_draining, switching_head
from tricast.wire import sse
from tricast.wire.http1 import (
    CLOSE,
    END_OF_HEAD,
    Headers,
    Request,
    Response,
    encode_head,
    encode_headers,
    json_response,
)
from tricast.wire.probe import LONGEST_HOLD, MAX_REPORTED, PROBE_PREFIX, Echo, Record, Report, Sunk

Route = Callable[[Exchange], Awaitable[Answer]]

_NAMES = ("echo", "sse", "poll", "ws", "hdr", "sink", "once", "report")
PATHS = tuple(f"{PROBE_PREFIX}{name}" for name in _NAMES)
_NO_STORE = (b"cache-control", b"no-store")
_MODES = ("echo", "talk", "sink")
_MAX_EVENTS = 10_000
_MAX_ECHO_DELAY = 5.0
_SHORTEST_INTERVAL = 0.01
_MAX_PAD_BYTES = 256 * 2**10
_MAX_HEADER_BYTES = 256 * 2**10
_MAX_BODY_BYTES = 8 * 2**20
_MAX_PIECES = 10_000
_NONCE = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Directives of Cache-Control, and nothing that could end the line.
_CACHE_CONTROL = re.compile(r"[a-z0-9=, -]{1,100}")


class Endpoints:
    """The endpoints of one server.

    Args:
        runtime: what all connections share; its configuration has a token.

    Attributes:
        server: a name for this process, so that several behind one proxy can be told apart.
        records: what it saw.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._token = runtime.config.probe.token.encode()
        self.server = f"{runtime.random.getrandbits(48):012x}"
        self.records = Records(trio.current_time)

    def table(self) -> dict[str, Mapping[str, Route]]:
        """Path to method to route."""
        routes = {
            "echo": {"GET": self._echo},
            "sse": {"GET": self._sse},
            "poll": {"GET": self._poll},
            "ws": {"GET": self._ws},
            "hdr": {"GET": self._hdr},
            "sink": {"POST": self._sink},
            "once": {"GET": self._once, "POST": self._once},
            "report": {"GET": self._report},
        }
        return {
            f"{PROBE_PREFIX}{name}": {method: partial(self._guarded, route) for method, route in methods.items()}
            for name, methods in routes.items()
        }

    async def _guarded(self, route: Route, exchange: Exchange) -> Answer:
        """The route's answer to one who knows the token."""
        if not self._knows_token(exchange.request):
            challenge = ((b"www-authenticate", b"Bearer"),)
            detail = "this needs the token that probe.token names"
            raise RemoteProtocolError(detail, code="no-token", status=401, headers=challenge)
        answer = await route(exchange)
        if isinstance(answer, Response):
            self.records.touch(exchange.connection)
        return answer

    def _knows_token(self, request: Request) -> bool:
        scheme, _, given = (request.header(b"authorization") or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = (request.parameter("token") or "").encode()
        elif not hmac.compare_digest(given.strip(), self._token) and request.parameter("token") is not None:
            # A proxy may have put its own credentials there.
            given = (request.parameter("token") or "").encode()
        return hmac.compare_digest(given.strip(), self._token)

    def _begin(self, kind: str, exchange: Exchange) -> Trace:
        """Remembers the request under its nonce, or under none that anybody knows."""
        nonce = exchange.request.parameter("nonce")
        if nonce is None:
            nonce = f"~{exchange.serial}.{exchange.number}"
        elif _NONCE.fullmatch(nonce) is None:
            raise RemoteProtocolError("nonce must be 1 to 64 letters, digits, - or _", code="bad-query")
        connection = exchange.connection
        record = Record(
            nonce=nonce, kind=kind, conn=exchange.serial, number=exchange.number, peer=exchange.connection.peer
        )
        self._runtime.at_end[connection] = partial(self.records.ended, connection)
        return self.records.begin(connection, record)

    # What is answered at once

    async def _echo(self, exchange: Exchange) -> Answer:
        """The request as it came; a little later, where several are to be under way at once."""
        request = exchange.request
        delay = _seconds(request, "delay", 0.0, most=_MAX_ECHO_DELAY)
        trace = self._begin("echo", exchange)
        await trio.sleep(delay)
        seen = Echo(
            method=request.method,
            target=_text(request.target),
            http_version=exchange.http_version,
            headers=[(_text(name), _text(value)) for name, value in exchange.raw_headers()],
            peer=exchange.connection.peer,
            conn=exchange.serial,
            number=exchange.number,
            server=self.server,
            nonce=trace.record.nonce,
        )
        return json_response(200, seen, (_NO_STORE,))

    async def _hdr(self, exchange: Exchange) -> Answer:
        """A header of so many bytes."""
        size = _count(exchange.request, "n", 0, _MAX_HEADER_BYTES)
        return json_response(200, {"n": size}, (_NO_STORE, (b"x-tricast-probe", b"." * size)))

    async def _sink(self, exchange: Exchange) -> Answer:
        """When the body came, in which pieces."""
        trace = self._begin("sink", exchange)
        timeline: list[tuple[float, int]] = []
        size = 0
        while piece := await exchange.read_piece():
            trace.received(len(piece))
            size += len(piece)
            if size > _MAX_BODY_BYTES or len(timeline) == _MAX_PIECES:
                raise LimitExceeded("the body of a probe", _MAX_BODY_BYTES, closes=True)
            timeline.append((round(trace.age, 6), len(piece)))
        expect = exchange.request.header(b"expect")
        answer = Sunk(
            expect=None if expect is None else _text(expect),
            is_chunked=exchange.request.header(b"transfer-encoding") is not None,
            bytes=size,
            timeline=timeline,
            end=round(trace.age, 6),
            server=self.server,
            nonce=trace.record.nonce,
        )
        return json_response(200, answer, (_NO_STORE,))

    async def _once(self, exchange: Exchange) -> Answer:
        """Closes the connection without an answer, the first time; then tells how often it was called."""
        if exchange.request.parameter("nonce") is None:
            raise RemoteProtocolError("name a nonce", code="bad-query")
        await exchange.read_body("the body of a probe", _MAX_BODY_BYTES)
        record = self._begin("once", exchange).record
        if record.calls == 1:
            return Handover(b"", HangUp(exchange.connection))
        return json_response(200, {"calls": record.calls, "server": self.server, "nonce": record.nonce}, (_NO_STORE,))

    async def _report(self, exchange: Exchange) -> Answer:
        """What was seen of connections; those that another process has seen are not among them."""
        nonces = exchange.request.parameters("nonce")
        if len(nonces) > MAX_REPORTED:
            raise LimitExceeded("a report", MAX_REPORTED, len(nonces), status=400)
        found = {nonce: record for nonce in nonces if (record := self.records.find(nonce)) is not None}
        return json_response(200, Report(server=self.server, seen=found), (_NO_STORE,))

    # What stays open

    async def _sse(self, exchange: Exchange) -> Answer:
        request = exchange.request
        script = Script(
            count=_count(request, "n", 1, _MAX_EVENTS),
            gap=(gap := _seconds(request, "gap", 1.0)),
            first=_seconds(request, "first", gap),
            pad=_count(request, "pad", 0, _MAX_PAD_BYTES),
            hold=_seconds(request, "hold", 0.0),
            every=_seconds(request, "every", 0.0),
            last_event_id=last_id_of(request),
        )
        if script.every:
            _check_interval("every", script.every)
        head = _head_of_stream(exchange, _stream_headers(request), closes=script.hold == 0)
        refuse_while_draining(self._runtime)
        trace = self._begin("sse", exchange)
        stream = EventStreamProbe(
            exchange.connection,
            self._runtime,
            trace,
            head,
            script=script,
            server=self.server,
            is_chunked=request.is_http_11,
        )
        return Handover(b"", stream)

    async def _poll(self, exchange: Exchange) -> Answer:
        delay = _seconds(exchange.request, "delay", 0.0)
        refuse_while_draining(self._runtime)
        trace = self._begin("poll", exchange)
        response = json_response(
            200, {"delay": delay, "server": self.server, "nonce": trace.record.nonce}, (_NO_STORE,)
        )
        length = b"content-length: %d\r\n" % len(response.body)
        common = self._runtime.common_headers()
        answer = encode_head(200, encode_headers(response.headers), common, length, CLOSE, END_OF_HEAD, response.body)
        return Handover(b"", PollProbe(exchange.connection, self._runtime, trace, answer, delay=delay))

    async def _ws(self, exchange: Exchange) -> Answer:
        request = exchange.request
        check_upgrade(exchange)
        mode = request.parameter("mode") or "echo"
        if mode not in _MODES:
            raise RemoteProtocolError(f"mode must be one of {', '.join(_MODES)}", code="bad-query")
        gap, hold = _seconds(request, "gap", 1.0), _seconds(request, "hold", LONGEST_HOLD)
        _check_interval("gap", gap)
        session = WebSocketProbe(
            exchange.connection,
            self._runtime,
            self._begin("ws", exchange),
            b"",
            received=exchange.unread(),
            mode=mode,
            gap=gap,
            hold=hold,
            server=self.server,
        )
        return Handover(switching_head(exchange), session)


def _stream_headers(request: Request) -> list[tuple[bytes, bytes]]:
    """The headers of an event stream, with what the probe wants to be in them."""
    headers = [(b"content-type", sse.CONTENT_TYPE)]
    cache_control = request.parameter("cc")
    if cache_control is not None:
        if _CACHE_CONTROL.fullmatch(cache_control) is None:
            raise RemoteProtocolError("cc must be directives of Cache-Control", code="bad-query")
        headers.append((b"cache-control", cache_control.encode()))
    if request.parameter("xab") is not None:
        headers.append((b"x-accel-buffering", b"no"))
    if request.parameter("inc") is not None:
        headers.append((b"incremental", b"?1"))
    return headers


def _head_of_stream(exchange: Exchange, headers: Headers, *, closes: bool) -> bytes:
    """As that of any stream; one that is to end soon says that its connection does as well."""
    is_chunked = exchange.request.is_http_11
    return exchange.stream_head((*headers, (b"connection", b"close")) if closes and is_chunked else headers)


def _seconds(request: Request, name: str, default: float, *, most: float = LONGEST_HOLD) -> float:
    """A parameter that is a time.

    Raises:
        RemoteProtocolError: it is none, or too long.
    """
    text = request.parameter(name)
    if text is None:
        return default
    if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,9})?", text, re.ASCII) is None or float(text) > most:
        raise RemoteProtocolError(f"{name} must be seconds, {most:g} at most", code="bad-query")
    return float(text)


def _check_interval(name: str, seconds: float) -> None:
    if seconds < _SHORTEST_INTERVAL:
        raise RemoteProtocolError(f"{name} must be {_SHORTEST_INTERVAL:g} s or more", code="bad-query")


def _count(request: Request, name: str, default: int, most: int) -> int:
    """A parameter that is a number.

    Raises:
        RemoteProtocolError: it is none, or too large.
    """
    text = request.parameter(name)
    if text is None:
        return default
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) is None or int(text) > most:
        raise RemoteProtocolError(f"{name} must be a number, {most} at most", code="bad-query")
    return int(text)


def _text(value: bytes) -> str:
    return value.decode("latin-1")
