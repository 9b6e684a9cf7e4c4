"""Has the server read requests, and compares what it understood with what they are."""

import io
import re
from typing import NamedTuple

from fuzz.reference_requests import Asked, origin_form, requests_in
from fuzz.world import converse

from tricast.config import Config
from tricast.connection import Connection
from tricast.http import Exchange, HttpConnection
from tricast.runtime import Runtime
from tricast.wire.http1 import Response

#: Every request has a line in the log.
CONFIGS = [Config.model_validate({"logging": {"access": True, "format": kind}}) for kind in ("console", "json")]
_MAX_BODY = 2**20
_ANSWER = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [A-Za-z' -]+\r\n((?:[a-z-]+: [^\r\n\0]*\r\n)*)\r\n")


class Understood(NamedTuple):
    """What came of it.

    Attributes:
        asked: the requests that were handed on; a body that was not read to its end is None.
        statuses: of the answers; without those before the final ones.
    """

    asked: list[Asked]
    statuses: list[int]


def understand(data: bytes, *, leaves: bool, **manner: int) -> Understood:
    """What the server makes of these bytes; see ``converse`` for the manner in which they come."""
    said = io.StringIO()
    asked: list[Asked] = []

    async def route(exchange: Exchange) -> Response:
        request = exchange.request
        head = Asked(request.method.encode(), origin_form(request.target), tuple(request.headers), None)
        asked.append(head)
        if b"unread" in request.target:
            return Response(200, body=b"not wanted")
        asked[-1] = head._replace(body=await exchange.read_body("fuzz.max_body", _MAX_BODY))
        return Response(200, body=b"thanks")

    async def serve(connection: Connection, runtime: Runtime) -> None:
        assert await HttpConnection(connection, runtime, route).run() is None

    output = converse(serve, data, CONFIGS[leaves], leaves=leaves, said=said, **manner)
    lines = said.getvalue().splitlines()
    assert all(map(str.isprintable, lines)), "a line of the log has more in it than can be seen"
    # What is no request may be told as well: somebody who speaks TLS here is.
    assert len(lines) <= len(asked) + 1, "the log has a line that is none"
    return Understood(asked, statuses_in(output, [found.method for found in asked]))


def statuses_in(output: bytes, methods: list[bytes]) -> list[int]:
    """The statuses of all answers, which must be whole and framed.

    Args:
        output: what the client got.
        methods: of the requests that were answered; behind them may be one answer to what is none.
    """
    statuses: list[int] = []
    at = 0
    while at < len(output):
        answer = _ANSWER.match(output, at)
        assert answer is not None, f"no answer: {output[at : at + 200]!r}"
        at = answer.end()
        status = int(answer[1])
        if status == 100:
            continue
        lengths = re.findall(rb"^content-length: ([0-9]+)\r$", answer[2], re.MULTILINE)
        assert len(lengths) <= 1
        is_head = len(statuses) < len(methods) and methods[len(statuses)] == b"HEAD"
        statuses.append(status)
        if len(statuses) > len(methods) and at == len(output):
            continue  # to a HEAD that was no request for another reason
        if lengths and not is_head:
            at += int(lengths[0])
            assert at <= len(output), "an answer is cut off"
    return statuses


def check_requests(data: bytes, *, step: int, leaves: bool) -> None:
    """See the invariant of ``targets/request_head.py``."""
    whole = understand(data, leaves=leaves)
    check_understood(data, whole)
    assert understand(data, step=step, leaves=leaves) == whole, "it depends on how the bytes come"


def check_understood(data: bytes, understood: Understood) -> None:
    """Raises AssertionError where that is not what the bytes say."""
    asked, statuses = understood
    meant = requests_in(data)
    assert len(asked) <= len(meant), f"understood what is no request: {asked[len(meant) :]}"
    for number, (found, wanted) in enumerate(zip(asked, meant, strict=False)):
        assert (*found[:2], sorted(found.fields)) == (*wanted[:2], sorted(wanted.fields)), (
            "a head was understood differently"
        )
        if found.body is not None:
            assert found.body == wanted.body, "a body was understood differently"
        elif wanted.body != b"":
            assert number == len(asked) - 1, "it went on behind a body that it had not read"
    assert len(asked) <= len(statuses) + 1 <= len(asked) + 2, (asked, statuses)
    assert all(status >= 400 for status in statuses[len(asked) :]), "answered what is no request"
