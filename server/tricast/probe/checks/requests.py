"""Measures requests: P7 fields, P8 limits, P10 bodies, P11 retries."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import trio

from tricast.client.failures import Lost
from tricast.probe.asking import Refused, read, reports
from tricast.probe.checks.asked import Query, Way, asked, is_servers
from tricast.probe.differences import Difference, Fields, differences, habits
from tricast.probe.findings import Finding
from tricast.probe.http_link import HttpAnswer, open_http
from tricast.probe.limits import Limit, search
from tricast.probe.link import Cut
from tricast.probe.target import new_nonce
from tricast.probe.verdicts.requests import Refusal, Upload, fields, limit, retries, uploads
from tricast.wire.probe import PROBE_PREFIX, Echo, Sunk

#: What every proxy should leave as it is, and what tells proxies apart.
_FIELDS = (
    ("Last-Event-ID", "1795360951079-0"),
    ("Cookie", "probe=1; other=2"),
    ("Origin", "https://app.example"),
    ("Sec-WebSocket-Protocol", "tricast.v1"),
    ("X-Probe-Custom", "as it is"),
    ("X-Probe-Twice", "one"),
    ("X-Probe-Twice", "two"),
    ("x_probe_under", "score"),
    ("Connection", "X-Probe-Hop"),
    ("X-Probe-Hop", "for the next hop alone"),
)
#: Written in a way that some would write otherwise.
_QUERY = "probe=a%20b+c%2Fd&probe=%C3%A9&empty="

_BYTES = (2000, 4000, 8000, 16000, 32000, 64000, 128000)
_COUNTS = (50, 100, 200, 500, 1000)
_BYTES_PER_FIELD = 2000

_PIECES, _PIECE_BYTES, _PIECE_SECONDS = 10, 1024, 0.2
#: RFC 9110 10.1.1: who expects 100 may send the body without, after some time.
_EXPECT_SECONDS = 1.0
#: What proxies answer that got nothing from a server (RFC 9110 15.6.3 to 15.6.5).
_GATEWAY_FAILED = frozenset({502, 503, 504})
#: For so long a proxy may ask no server after one that failed: nginx's ``fail_timeout``, and a little more.
_RECOVERY_SECONDS = 12.0


class Received(NamedTuple):
    """A request as it was sent and as it came.

    Attributes:
        sent: its fields.
        echo: what the server got.
        target: as it was sent, and as it came: both from the probe's own part on, without the token.
    """

    sent: Fields
    echo: Echo
    target: tuple[str, str]


async def check_fields(way: Way, direct: Way | None) -> tuple[list[Finding], Fields, set[str]]:
    """P7. Also returns the fields that the server got, and what that says of who is in the way."""
    path = await _echoed_with_authorization(way)
    known: Sequence[Difference] = ()
    if direct is not None:
        there = await _echoed(direct)
        known = differences(there.sent, there.echo.headers)
    received = path.echo.headers
    return (
        list(fields(path.sent, received, path.target, known)),
        received,
        habits(path.sent, received, path.echo.http_version),
    )


async def _echoed_with_authorization(way: Way) -> Received:
    """Also where the token is in the URL: what became of Authorization there is to be told."""
    if way.target.token_in_query:
        with suppress(Refused):
            return await _echoed(way, replace(way.target, token_in_query=False).credentials())
    return await _echoed(way)


async def _echoed(way: Way, more: Fields = ()) -> Received:
    target = way.target
    common = [("Host", target.endpoint.authority), ("User-Agent", "tricast-probe")]
    sent = [*common, *target.credentials(), *more, *_FIELDS]
    path = target.companion("echo")
    path += ("&" if "?" in path else "?") + _QUERY
    with trio.move_on_after(target.settings.answer_timeout):
        try:
            async with open_http(target) as http:
                await http.ask("GET", path, sent)
                answer = way.note(await http.answer())
        except Cut as cut:
            raise Lost(f"a request with many fields was not answered ({cut.ending.how})") from None
        echo = read(answer, Echo)
        return Received(sent, echo, (_own_part(path), _own_part(echo.target)))
    raise Lost("a request with many fields was not answered in time")


def _own_part(target: str) -> str:
    """From the probe's own path on, without the token: what is before it belongs to the proxy."""
    _, found, rest = target.partition(PROBE_PREFIX)
    part = found + rest if found else target
    return re.sub(r"(?<=[?&]token=)[^&]*", "…", part)  # however the way has written it


# P8

#: Asks once, with a query and with fields.
Ask = Callable[[Query, Fields], Awaitable[HttpAnswer | None]]


async def check_limits(way: Way, direct: Way | None) -> list[Finding]:
    """P8."""
    path = await _limits(way)
    there = {} if direct is None else await _limits(direct)
    return [limit(name, found, there.get(name)) for name, found in path.items()]


async def _limits(way: Way) -> dict[str, Refusal]:
    async def ask(query: Query, fields: Fields) -> HttpAnswer | None:
        return await asked(way, "GET", "echo", query, fields)

    async def ask_for_field(size: int) -> HttpAnswer | None:
        return await asked(way, "GET", "hdr", [("n", size)])

    return await limits_of(ask, {"an answer's field": ask_for_field}, status=200)


async def limits_of(
    ask: Ask, more: Mapping[str, Callable[[int], Awaitable[HttpAnswer | None]]], *, status: int
) -> dict[str, Refusal]:
    """The limits of requests, looked for at the same time, and then those of answers.

    A proxy may take an answer that it refuses for a fault of its server, and not ask that for a while.

    Args:
        ask: asks for something small.
        more: further limits to look for: their names, and what asks with a size.
        status: with which what comes through is answered.
    """
    found: dict[str, Refusal] = {}

    async def one(name: str, attempt: Callable[[int], Awaitable[HttpAnswer | None]]) -> None:
        found[name] = await _limit(attempt, partial(ask, (), ()), is_count=name.startswith("number"), status=status)

    async with trio.open_nursery() as nursery:
        for name, grown in _GROWN.items():
            nursery.start_soon(one, name, partial(_ask_grown, ask, grown))
    for name, attempt in more.items():
        await one(name, attempt)
    return {name: found[name] for name in [*_GROWN, *more]}


async def _ask_grown(ask: Ask, grown: Callable[[int], tuple[Query, Fields]], size: int) -> HttpAnswer | None:
    return await ask(*grown(size))


async def _limit(
    attempt: Callable[[int], Awaitable[HttpAnswer | None]],
    ask_for_little: Callable[[], Awaitable[HttpAnswer | None]],
    *,
    is_count: bool,
    status: int,
) -> Refusal:
    steps = search(_COUNTS if is_count else _BYTES, lambda about: 1 if is_count else about // 128)
    refused: HttpAnswer | None = None
    known = Limit(0, None)
    try:
        size = next(steps)
        while True:
            answer = await attempt(size)
            passed = answer is not None and answer.status == status
            if not passed and _is_gateways(answer) and _is_gateways(await ask_for_little()):
                break  # nothing gets through now, however small it is
            refused = refused if passed else answer
            known = Limit(size, known.fails) if passed else Limit(known.passes, size)
            size = steps.send(passed)
    except StopIteration as stop:
        known = stop.value
    how = None if refused is None else refused.status
    return Refusal(known, how, refused is not None and is_servers(refused))


def _is_gateways(answer: HttpAnswer | None) -> bool:
    """Whether a proxy says that it got nothing from a server."""
    return answer is not None and answer.status in _GATEWAY_FAILED and not is_servers(answer)


def _all_fields(size: int) -> tuple[Query, Fields]:
    whole, rest = divmod(size, _BYTES_PER_FIELD)
    pads = [*(["." * _BYTES_PER_FIELD] * whole), *(["." * rest] if rest else [])]
    return (), [(f"X-Probe-{index}", pad) for index, pad in enumerate(pads)]


_GROWN: dict[str, Callable[[int], tuple[Query, Fields]]] = {
    "one field": lambda size: ((), [("X-Probe-Pad", "." * size)]),
    "all fields": _all_fields,
    "number of fields": lambda count: ((), [(f"X-Probe-{index}", "") for index in range(count)]),
    "request target": lambda size: ([("pad", "." * size)], ()),
}


# P10


async def check_uploads(way: Way) -> Finding:
    """P10."""
    return uploads(await _upload(way))


async def _upload(way: Way) -> Upload:
    sent = (_PIECES - 1) * _PIECE_SECONDS
    expect_reached, interim = await _expect(way)
    nothing = Upload(sent, None, expect_reached, interim)
    with trio.move_on_after(sent + way.target.settings.answer_timeout):
        try:
            async with open_http(way.target) as http:
                framing = [*way.target.credentials(), ("Transfer-Encoding", "chunked")]
                await http.ask("POST", way.target.companion("sink"), framing, has_more=True)
                for index in range(_PIECES):
                    await http.send_body(b"." * _PIECE_BYTES, has_more=index < _PIECES - 1)
                    await trio.sleep(_PIECE_SECONDS if index < _PIECES - 1 else 0)
                answer = way.note(await http.answer())
        except Cut:
            return nothing
        if answer.status != 200:
            return nothing
        sunk = read(answer, Sunk)
        times = [at for at, _ in sunk.timeline]
        return Upload(sent, max(times, default=0.0) - min(times, default=0.0), expect_reached, interim, sunk.is_chunked)
    return nothing


async def _expect(way: Way) -> tuple[bool | None, tuple[int, ...]]:
    """Whether the server sees ``Expect: 100-continue``, and what came before the answer."""
    with trio.move_on_after(way.target.settings.answer_timeout):
        try:
            async with open_http(way.target) as http:
                fields = [*way.target.credentials(), ("Content-Length", "2"), ("Expect", "100-continue")]
                await http.ask("POST", way.target.companion("sink"), fields, has_more=True)
                with trio.move_on_after(_EXPECT_SECONDS):
                    await http.informational()
                await http.send_body(b"ok", has_more=False)
                answer = way.note(await http.answer())
        except Cut:
            return None, ()
        reached = read(answer, Sunk).expect is not None if answer.status == 200 else None
        return reached, answer.head.informational
    return None, ()


# P11


async def _recovered(way: Way) -> None:
    """Returns when something small is answered by a server, or has not been for long."""
    with trio.move_on_after(_RECOVERY_SECONDS):
        while _is_gateways(await asked(way, "GET", "echo")):  # noqa: ASYNC110 - nobody would set an event
            await trio.sleep(1.0)


async def check_retries(way: Way) -> Finding:
    """P11."""
    nonces = {"GET": new_nonce(), "POST": new_nonce()}
    for method, nonce in nonces.items():
        await _recovered(way)
        await asked(way, method, "once", [("nonce", nonce)], body=b"{}" if method == "POST" else b"")
    await _recovered(way)
    seen = await reports(way.target, nonces.values())
    return retries({method: seen[nonce].calls if nonce in seen else None for method, nonce in nonces.items()})
