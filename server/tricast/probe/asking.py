"""The companion endpoints from the probe's side: what they answer, as the types of ``wire.probe``."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple, TypeVar

import msgspec
import trio

from tricast.client.endpoint import deadline
from tricast.client.failures import ClientError, Lost
from tricast.probe.http_link import Fields, Head, HttpAnswer, HttpLink, open_http
from tricast.probe.link import Cut
from tricast.probe.target import Target
from tricast.wire.probe import MAX_REPORTED, Echo, Record, Report

_Answer = TypeVar("_Answer")

#: How often a report is asked for before a nonce is taken to be unknown to every process behind the URL: so often
#: that each of a few that are chosen at random is as good as sure to have been among them.
_TRIES_PER_SERVER = 9
_TRIES_AT_ONCE = 4
_MAX_TRIES = 33


class Refused(ClientError):
    """The companion endpoints are not there, or not for this token.

    Attributes:
        answer: what was answered instead.
    """

    def __init__(self, why: str, answer: HttpAnswer) -> None:
        super().__init__(why, status=answer.status)
        self.answer = answer


class Seen(NamedTuple):
    """What the server, or the servers, saw of a nonce.

    Attributes:
        record: of the last process that was asked and knows it.
        server: the name of that process.
        calls: how often it came, to all of them.
    """

    record: Record
    server: str
    calls: int


Query = Sequence[tuple[str, object]]


async def ask(target: Target, name: str, query: Query = (), *, seconds: float | None = None) -> HttpAnswer:
    """The answer of a companion endpoint to a GET on a connection of its own, whatever its status.

    Raises:
        Lost: none came in time, or not whole.
        ClientError: the server cannot be connected to, ever.
    """
    seconds = target.settings.answer_timeout if seconds is None else seconds
    with deadline(seconds, Lost(f"no answer from {target.endpoint}")):
        async with open_http(target) as http:
            try:
                await http.ask("GET", target.companion(name, query), target.credentials())
                head = await http.head()
                # A foreign server may answer anything with a stream without an end.
                is_json = "json" in (head.header("content-type") or "")
                return await http.answer_to(head) if is_json or head.status >= 400 else HttpAnswer(head, b"")
            except Cut as cut:
                raise Lost(f"the connection ended before the answer: {cut}") from None


async def echo(target: Target, query: Query = ()) -> tuple[Echo, Head]:
    """The request as it came to the server, and the head of the answer as it came back.

    Raises:
        Refused: there are no such endpoints, or not for this token.
        Lost: no answer came.
    """
    answer = await ask(target, "echo", query)
    return read(answer, Echo), answer.head


async def find_companion(target: Target) -> Target:
    """The target with the token where it arrives: in Authorization, or else in the URL.

    Raises:
        Refused: there are no such endpoints, or not for this token.
        Lost: no answer came.
        ClientError: the server cannot be connected to, ever.
    """
    try:
        await echo(target)
    except Refused as refused:
        # In a URL it ends up in logs, so nobody gets it there who did not ask for one.
        if target.token_in_query or not target.token or refused.status not in (401, 403):
            raise
        target = replace(target, token_in_query=True)
        await echo(target)
    return target


def read(answer: HttpAnswer, kind: type[_Answer]) -> _Answer:
    """The body of an answer of a companion endpoint.

    Raises:
        Refused: it is another answer.
    """
    if answer.status == 200:
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refused("the answer is not one of Tricast's probe endpoints", answer) from None
    why = {
        401: "the token is not the server's probe.token",
        404: "the server has no probe endpoints: set probe.token in its configuration",
    }
    raise Refused(why.get(answer.status, f"the probe endpoints answer {answer.status}"), answer)


async def reports(target: Target, nonces: Iterable[str]) -> dict[str, Seen]:
    """What the server saw of requests by these nonces; where several processes answer, all of them are looked for.

    Raises:
        Lost: no answer came.
        Refused: the endpoints are not there any more.
    """
    wanted = list(dict.fromkeys(nonces))
    seen: dict[str, Seen] = {}
    for start in range(0, len(wanted), MAX_REPORTED // 4):  # so that the target stays short
        seen |= await _reports(target, wanted[start : start + MAX_REPORTED // 4])
    return seen


async def _reports(target: Target, wanted: Sequence[str]) -> dict[str, Seen]:
    by_server: dict[str, dict[str, Record]] = {}
    failures: list[Exception] = []

    async def ask_once() -> None:
        try:
            report = read(await ask(target, "report", [("nonce", nonce) for nonce in wanted]), Report)
            by_server[report.server] = report.seen
        except (Lost, ClientError) as error:
            failures.append(error)

    await ask_once()
    tries = 1
    # One that has seen them all is as a rule the only one, or the others have nothing to add.
    while (
        by_server and not _are_known(wanted, by_server) and tries < min(_MAX_TRIES, _TRIES_PER_SERVER * len(by_server))
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(_TRIES_AT_ONCE):
                nursery.start_soon(ask_once)
        tries += _TRIES_AT_ONCE
    if not by_server:
        raise failures[0]
    return merge(by_server)


def _are_known(wanted: Sequence[str], by_server: Mapping[str, Mapping[str, Record]]) -> bool:
    known = {nonce for seen in by_server.values() for nonce in seen}
    return known.issuperset(wanted)


def merge(by_server: Mapping[str, Mapping[str, Record]]) -> dict[str, Seen]:
    """What several processes saw, put together by nonce; of one that came to several, the first that came counts.

    Args:
        by_server: process to nonce to record.
    """
    merged: dict[str, Seen] = {}
    for server, records in by_server.items():
        for nonce, record in records.items():
            known = merged.get(nonce)
            if known is None:
                merged[nonce] = Seen(record, server, record.calls)
            else:
                first = known if known.record.age >= record.age else Seen(record, server, 0)
                merged[nonce] = first._replace(calls=known.calls + record.calls)
    return merged


@asynccontextmanager
async def asking(target: Target, name: str, query: Query = (), fields: Fields = ()) -> AsyncIterator[HttpLink]:
    """A connection on which a companion endpoint was just asked by GET; closed at the end of the block.

    Args:
        target: whose endpoint.
        name: of the endpoint.
        query: parameters in order.
        fields: behind those that say who asks.

    Raises:
        Lost: it cannot be made now.
        ClientError: it can never be made.
        Cut: it was gone before the request was.
    """
    async with open_http(target) as http:
        await http.ask("GET", target.companion(name, query), [*target.credentials(), *fields])
        yield http
