"""Measures how soon a server learns that its client has left: P9."""

from contextlib import AsyncExitStack

import trio

from tricast.client.failures import ClientError, Lost
from tricast.probe.asking import reports
from tricast.probe.http_link import open_http
from tricast.probe.link import Cut
from tricast.probe.target import Target, new_nonce
from tricast.probe.verdicts.leaving import Left
from tricast.probe.websocket_link import open_websocket

_LOOK_SECONDS = 0.2
#: How long each of them stays, once the server knows of it.
_STAY_SECONDS = 0.5
_KINDS = ("ws", "sse", "silent sse", "poll")


async def measure_leaving(target: Target, *, patience: float = 10.0, says_every: float = 1.0) -> list[Left]:
    """Connects in several ways, leaves, and asks the server when it learnt of that.

    Args:
        target: with companion endpoints.
        patience: seconds to wait for that.
        says_every: seconds between what a server says that is not silent.
    """
    found: list[Left] = []

    async def leave(kind: str) -> None:
        every = says_every if kind == "sse" else 0.0
        try:
            found.append(Left(kind, await _leave(target, kind, every, patience), patience, every))
        except (Cut, Lost, ClientError) as error:
            found.append(Left(kind, None, patience, every, why=str(error)))

    async with trio.open_nursery() as nursery:
        for kind in _KINDS:
            nursery.start_soon(leave, kind)
    return sorted(found, key=lambda left: _KINDS.index(left.kind))


async def _leave(target: Target, kind: str, every: float, patience: float) -> float | None:
    """Seconds until the server knew; None if it did not in time.

    Raises:
        Lost: it did not come to that.
        ClientError: it did not come to that.
        Cut: it did not come to that.
    """
    nonce = new_nonce()
    hold = 3 * patience + 60
    queries: dict[str, list[tuple[str, object]]] = {
        "ws": [("mode", "sink"), ("hold", hold)],
        "poll": [("delay", hold)],
    }
    stream: list[tuple[str, object]] = [("n", 1), ("first", 0), ("every", every), ("hold", hold), ("xab", 1)]
    name = kind if kind in queries else "sse"
    path = target.companion(name, [*queries.get(kind, stream), ("nonce", nonce)])
    async with AsyncExitStack() as stack:
        if kind == "ws":
            ws = await stack.enter_async_context(open_websocket(target))
            asked_at = trio.current_time()
            with trio.move_on_after(target.settings.first_bytes_timeout):
                if not (await ws.shake_hands(path, target.credentials())).is_open:
                    raise Lost("no WebSocket")
        else:
            http = await stack.enter_async_context(open_http(target))
            asked_at = trio.current_time()
            await http.ask("GET", path, target.credentials())
        if await _ended(target, nonce, target.settings.first_bytes_timeout, is_begun=True) is None:
            raise Lost("the server was not reached")
        await trio.sleep(_STAY_SECONDS)
    left_at = trio.current_time()
    ended = await _ended(target, nonce, patience)
    return None if ended is None else max(0.0, ended - (left_at - asked_at))


async def _ended(target: Target, nonce: str, patience: float, *, is_begun: bool = False) -> float | None:
    """When the connection ended, as the server saw it, or 0 once it knows of it at all; None if neither in time."""
    with trio.move_on_after(patience):
        while True:
            seen = (await reports(target, [nonce])).get(nonce)
            if seen is not None and is_begun:
                return 0.0
            if seen is not None and seen.record.ended is not None:
                return seen.record.ended
            await trio.sleep(_LOOK_SECONDS)
    return None
