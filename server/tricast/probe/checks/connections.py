"""Measures connections: P1 HTTP versions, P3 WebSockets, P16 several servers."""

import trio

from tricast.client.failures import Lost
from tricast.probe.asking import read
from tricast.probe.checks.asked import Way, asked, is_servers, refusal_or_head
from tricast.probe.findings import Finding
from tricast.probe.fingerprint import Seen
from tricast.probe.http_link import HttpAnswer, open_http
from tricast.probe.link import Cut
from tricast.probe.verdicts.connections import Echoes, Handshake, Visits, stickiness, versions, websocket
from tricast.probe.websocket_link import Kind, WebSocketLink, open_websocket
from tricast.wire.probe import Echo

_REQUESTS = 3
_VISITS = 20
#: How long a WebSocket may take to open and to answer.
_PATIENCE = 5.0
_UPGRADE = [
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),  # the one of RFC 6455 1.3
    ("Sec-WebSocket-Version", "13"),
]


async def check_versions(way: Way, direct: Way | None) -> Finding:
    """P1."""
    return versions(await echoes(way), None if direct is None else await echoes(direct))


async def echoes(way: Way) -> Echoes:
    """Requests on one connection, or on as many as it takes."""
    received: list[Echo] = []
    answered, links = "", 0
    while len(received) < _REQUESTS:
        links += 1
        async with open_http(way.target) as http:
            while len(received) < _REQUESTS:
                answer = await asked(way, "GET", "echo", on=http)
                if answer is None:
                    break
                received.append(read(answer, Echo))
                answered = answer.head.version
                if not http.is_reusable():
                    break
        if links > _REQUESTS:
            raise Lost("connections end before they are answered")
    return Echoes(
        answered,
        [echo.http_version for echo in received],
        [(echo.server, echo.conn) for echo in received],
        is_kept=links == 1,
    )


async def check_websocket(way: Way, direct: Way | None) -> Finding:
    """P3."""
    return websocket(await handshake(way), None if direct is None else await handshake(direct))


async def handshake(way: Way, path: str | None = None) -> Handshake:
    """Opens a WebSocket, and sends a message through it.

    Args:
        way: on which.
        path: the request target; None for the companion endpoint, which is then asked what it got of the handshake.
    """
    target = way.target.companion("ws", [("mode", "echo")]) if path is None else path
    fields = way.target.credentials() if path is None else []
    why = f"no answer within {_PATIENCE:g} s"
    with trio.move_on_after(_PATIENCE):
        try:
            async with open_websocket(way.target) as websocket:
                shaken = await websocket.shake_hands(target, fields)
                way.seen.append(Seen(shaken.head.fields))
                if shaken.is_open:
                    return Handshake(101, is_accepted=True, is_alive=await _is_alive(websocket, echoes=path is None))
                if shaken.head.status == 101:
                    return Handshake(101)
                answer = way.note(await refusal_or_head(shaken.http, shaken.head))
                return Handshake(
                    answer.status, reached=await _reached(way, path, answer), is_servers=is_servers(answer)
                )
        except Cut as cut:
            why = f"the connection is ended instead ({cut.ending.how})"
        except Lost as lost:
            why = str(lost)
    return Handshake(None, why=why)


async def _is_alive(websocket: WebSocketLink, *, echoes: bool) -> bool:
    """Whether something comes back through an open one."""
    with trio.move_on_after(_PATIENCE):
        try:
            if not echoes:
                await websocket.pong_of(b"tricast")
                return True
            await websocket.send("tricast")
            while True:
                frame = await websocket.frame()
                if frame.kind is Kind.MESSAGE and frame.payload == b"tricast":
                    return True
        except Cut:
            return False
    return False


async def _reached(way: Way, path: str | None, refusal: HttpAnswer) -> bool | None:
    """Whether the server was asked to upgrade."""
    if path is not None:
        # This is what Tricast says to those who do not ask for it.
        return False if refusal.status == 426 and is_servers(refusal) else None
    answer = await asked(way, "GET", "echo", fields=_UPGRADE)
    if answer is None or answer.status != 200:
        return None
    return any(name.lower() == "upgrade" for name, _ in read(answer, Echo).headers)


async def check_stickiness(way: Way) -> Finding:
    """P16."""
    without = [echo.server for echo, _ in [await _visit(way, {}) for _ in range(_VISITS)]]
    jar: dict[str, str] = {}
    with_cookies = []
    for _ in range(_VISITS):
        echo, given = await _visit(way, jar)
        jar.update(given)
        with_cookies.append(echo.server)
    # The first one had no cookie to bring.
    return stickiness(Visits(without, with_cookies[1:], list(jar)))


async def _visit(way: Way, jar: dict[str, str]) -> tuple[Echo, dict[str, str]]:
    cookies = [("Cookie", "; ".join(f"{name}={value}" for name, value in jar.items()))] if jar else []
    answer = await asked(way, "GET", "echo", fields=cookies)
    if answer is None:
        raise Lost("a request was not answered")
    return read(answer, Echo), dict(_cookies(answer))


def _cookies(answer: HttpAnswer) -> list[tuple[str, str]]:
    given = [value.partition(";")[0] for name, value in answer.head.fields if name.lower() == "set-cookie"]
    return [(name.strip(), value.strip()) for name, _, value in (pair.partition("=") for pair in given)]
