"""Asking, with an eye on everything that is answered: who answers, and whether it is the server."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import trio

from tricast.client.failures import Lost
from tricast.probe.fingerprint import Seen
from tricast.probe.http_link import Fields, Head, HttpAnswer, HttpLink, open_http
from tricast.probe.link import Cut
from tricast.probe.target import Target

_PROBLEM_TYPE = b'"urn:tricast:'
#: The type of those that ``tricast proxy`` makes by itself.
_PROXYS_TYPE = b'"urn:tricast:proxy"'
#: More of an error page than this is not looked at.
_MOST_OF_A_PAGE = 4096

Query = Sequence[tuple[str, object]]


class Way(NamedTuple):
    """One way to a server, and what came back on it.

    Attributes:
        target: where it begins.
        seen: heads of answers, and bodies of those that are not the server's.
    """

    target: Target
    seen: list[Seen]

    def note(self, answer: HttpAnswer) -> HttpAnswer:
        """Remembers what the answer looks like."""
        page = "" if answer.status < 400 or is_servers(answer) else answer.body[:_MOST_OF_A_PAGE].decode("latin-1")
        self.seen.append(Seen(answer.head.fields, page))
        return answer


async def refusal_or_head(http: HttpLink, head: Head) -> HttpAnswer:
    """The answer with its body if it is an error; what is none may be a stream without an end.

    Raises:
        Cut: it does not come, or not whole.
    """
    return await http.answer_to(head) if head.status >= 400 else HttpAnswer(head, b"")


def is_servers(answer: HttpAnswer) -> bool:
    """Whether an error is one of a Tricast server's own."""
    return (answer.head.header("content-type") or "").startswith("application/problem+json") and (
        _PROBLEM_TYPE in answer.body and _PROXYS_TYPE not in answer.body
    )


class _Problem(msgspec.Struct):
    """What is read of a problem (RFC 9457 3.1)."""

    title: str = ""
    detail: str = ""


def problem_of(answer: HttpAnswer) -> str:
    """What a problem says of itself, in printable words; empty for any other answer."""
    if not (answer.head.header("content-type") or "").startswith("application/problem+json"):
        return ""
    try:
        problem = msgspec.json.decode(answer.body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return "".join(filter(str.isprintable, problem.detail or problem.title))


async def asked(
    way: Way,
    method: str,
    name: str,
    query: Query = (),
    fields: Fields = (),
    *,
    body: bytes = b"",
    on: HttpLink | None = None,
) -> HttpAnswer | None:
    """The answer of a companion endpoint; None if the connection ended before it was whole, or nothing came in time.

    Args:
        way: on which it is asked.
        method: of the request.
        name: of the endpoint.
        query: parameters in order.
        fields: behind those that say who asks.
        body: of the request.
        on: the connection; None for one of its own.
    """
    target = way.target
    framing = [("Content-Length", str(len(body)))] if method == "POST" else []
    fields = [*target.credentials(), *framing, *fields]
    with trio.move_on_after(target.settings.answer_timeout):
        try:
            if on is not None:
                return way.note(await _ask(on, method, target.companion(name, query), fields, body))
            async with open_http(target) as http:
                return way.note(await _ask(http, method, target.companion(name, query), fields, body))
        except (Cut, Lost):
            pass
    return None


async def _ask(http: HttpLink, method: str, path: str, fields: Fields, body: bytes) -> HttpAnswer:
    await http.ask(method, path, fields, body)
    return await http.answer()
