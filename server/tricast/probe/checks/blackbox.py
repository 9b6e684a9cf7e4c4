"""What shows from outside, of a server that does not help: P2 by its errors, P3, P4 and P8."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Self

import trio

from tricast.client.failures import Lost
from tricast.probe import advice
from tricast.probe.checks import connections, requests
from tricast.probe.checks.asked import Query, Way, refusal_or_head
from tricast.probe.checks.holding import Paths
from tricast.probe.findings import Finding, Verdict
from tricast.probe.fingerprint import Seen
from tricast.probe.http_link import Fields, HttpAnswer, open_http
from tricast.probe.link import Cut
from tricast.probe.target import Target
from tricast.probe.verdicts.connections import websocket
from tricast.probe.verdicts.requests import Refusal, limit

#: How long an event stream is looked at.
_STREAM_SECONDS = 6.0
#: A head that every server and proxy refuses, so that the one in front shows its error page (RFC 9112 6.3).
_NONSENSE = b"GET / HTTP/1.1\r\nHost: %b\r\nContent-Length: nonsense\r\nConnection: close\r\n\r\n"


class Places(NamedTuple):
    """Where to ask.

    Attributes:
        websocket: a path that takes WebSockets.
        stream: one with an event stream.
        plain: one that is answered.
        is_tricast: whether they are a Tricast server's, of which it is known what it answers.
    """

    websocket: str
    stream: str
    plain: str
    is_tricast: bool = True

    @classmethod
    def at(cls, target: Target, *, is_tricast: bool) -> Self:
        """Those of a Tricast server, or the one path that is known of a foreign one: that of the URL."""
        if is_tricast:
            return cls(target.path("/ws"), target.path("/events?topic=tricast.probe"), target.path("/healthz"))
        path = target.endpoint.prefix or "/"
        return cls(path, path, path, is_tricast=False)

    def to_hold(self, target: Target) -> Paths:
        """What can be held to see how long it stays: what a Tricast server ends by itself, or keeps alive, is not."""
        if self.is_tricast:
            return Paths(keepalive="/healthz")
        path = "" if target.endpoint.prefix else "/"
        return Paths(ws=path, sse=path, keepalive=path)


async def check_websocket(way: Way, direct: Way | None, paths: Places) -> Finding:
    """P3."""
    path = await connections.handshake(way, paths.websocket)
    there = None if direct is None else await connections.handshake(direct, paths.websocket)
    if paths.is_tricast or path.is_accepted or (there is not None and there.is_accepted):
        return websocket(path, there)
    said = path.why if path.status is None else f"the answer is {path.status}"
    return Finding(
        check="P3",
        title="WebSocket",
        verdict=Verdict.UNKNOWN,
        summary=f"not known: there is none at this URL, or it does not get there ({said})",
        detail={"status": path.status},
    )


class Looked(NamedTuple):
    """The first seconds of what should be an event stream.

    Attributes:
        status: of the answer; None if there was none.
        kind: its Content-Type.
        head: after how many seconds it came.
        pieces: after how many seconds bytes of the body came.
    """

    status: int | None = None
    kind: str = ""
    head: float = 0.0
    pieces: Sequence[float] = ()

    @property
    def is_stream(self) -> bool:
        """Whether it is one."""
        return self.status == 200 and self.kind.startswith("text/event-stream")


async def check_stream(way: Way, direct: Way | None, paths: Places, *, is_answered: bool = True) -> Finding:
    """P4, as far as it shows: whether a stream begins at once.

    Args:
        way: to what is probed.
        direct: to the server itself.
        paths: where to ask.
        is_answered: whether anything that was asked so far was answered.
    """
    path = await _look(way, paths.stream)
    there = None if direct is None else await _look(direct, paths.stream)
    return judge_stream(path, there, is_tricast=paths.is_tricast, is_answered=is_answered)


def judge_stream(path: Looked, there: Looked | None, *, is_tricast: bool, is_answered: bool = True) -> Finding:
    """Whether a stream is held back, if that can be said.

    Args:
        path: what came through whatever is in the way.
        there: what came from the server itself.
        is_tricast: whether the server is one that begins its streams with a comment.
        is_answered: whether anything that was asked before was answered.
    """
    should_begin = is_tricast or (there is not None and bool(there.pieces) and there.is_stream)
    verdict, kind = Verdict.UNKNOWN, None
    if path.is_stream and path.pieces:
        verdict, kind = Verdict.OK, "begins"
        words = f"a stream begins after {path.pieces[0] * 1000:.0f} ms, and brings {_pieces(len(path.pieces))} in "
        words += f"{_STREAM_SECONDS:g} s; whether events wait on the way is not known"
    elif path.status not in (None, 200) or (path.status == 200 and not path.is_stream):
        words = f"not known: there is no event stream at this URL (the answer is {path.status} {path.kind})"
    elif should_begin:
        verdict, kind = Verdict.BROKEN, "held"
        words = (
            f"events are held back: a stream that begins at once{_at(there)} shows nothing within {_STREAM_SECONDS:g} s"
        )
    elif not is_answered and there is None:
        verdict, kind = Verdict.BROKEN, "unanswered"
        words = "no answer: the server gives none, or the proxy in front holds the stream back (--origin tells which)"
    elif not is_answered:
        verdict, kind = Verdict.BROKEN, "unanswered"
        words = "no answer; but the server itself sends no event stream at once either"
    else:
        words = f"not known: nothing came within {_STREAM_SECONDS:g} s"
    return Finding(
        check="P4",
        title="SSE",
        verdict=verdict,
        summary=words,
        detail={"kind": kind, "status": path.status, "pieces": [round(at, 3) for at in path.pieces]},
        advice=advice.BUFFERED if verdict is Verdict.BROKEN and (there is None or kind == "held") else None,
    )


def _at(there: Looked | None) -> str:
    return " at the server itself" if there is not None and there.pieces else ""


def _pieces(count: int) -> str:
    return "1 piece" if count == 1 else f"{count} pieces"


async def _look(way: Way, path: str) -> Looked:
    looked = Looked()
    began = trio.current_time()
    pieces: list[float] = []
    with trio.move_on_after(_STREAM_SECONDS):
        try:
            async with open_http(way.target) as http:
                await http.ask("GET", path, [("Accept", "text/event-stream"), ("Cache-Control", "no-cache")])
                head = await http.head()
                way.seen.append(Seen(head.fields))
                looked = Looked(head.status, head.header("content-type") or "", head.at - began, pieces)
                while looked.is_stream and (piece := await http.piece()) is not None:
                    pieces.append(piece.at - began)
        except (Cut, Lost):
            pass
    return looked


async def check_limits(way: Way, direct: Way | None, paths: Places) -> list[Finding]:
    """P8, as far as it shows: what is not answered as a small request is."""
    path = await _limits(way, paths)
    there = {} if direct is None else await _limits(direct, paths)
    return [limit(name, found, there.get(name), is_servers_known=paths.is_tricast) for name, found in path.items()]


async def _limits(way: Way, paths: Places) -> dict[str, Refusal]:
    async def ask(query: Query, fields: Fields) -> HttpAnswer | None:
        return await _answer(way, paths.plain + "".join(f"?{name}={value}" for name, value in query), fields)

    small = await ask((), ())
    if small is None:
        raise Lost("a small request is not answered")
    return await requests.limits_of(ask, {}, status=small.status)


async def _answer(way: Way, path: str, fields: Fields) -> HttpAnswer | None:
    with trio.move_on_after(way.target.settings.answer_timeout):
        try:
            async with open_http(way.target) as http:
                await http.ask("GET", path, fields)
                return way.note(await refusal_or_head(http, await http.head()))
        except (Cut, Lost):
            pass
    return None


async def is_gateway_failed(way: Way, paths: Places, statuses: Collection[int]) -> bool:
    """Whether whatever is asked for is answered with one of these statuses, by whoever it is that answers."""
    for path in dict.fromkeys((way.target.path("/healthz"), way.target.endpoint.prefix or "/", paths.plain)):
        answer = await _answer(way, path, ())
        if answer is None or answer.status not in statuses:
            return False
    return True


async def provoke(way: Way) -> None:
    """Sends what nobody forwards, so that the one in front shows its error page."""
    with trio.move_on_after(way.target.settings.answer_timeout):
        try:
            async with open_http(way.target) as http:
                await http.link.send(_NONSENSE % way.target.endpoint.authority.encode())
                way.note(await refusal_or_head(http, await http.head()))
        except (Cut, Lost):
            pass
