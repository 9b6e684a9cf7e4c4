"""Publishing: once, however often the connection fails."""

import random
import secrets
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import trio

from tricast.client.backoff import Backoff
from tricast.client.badge import Badge, Token
from tricast.client.endpoint import Dial, Endpoint, deadline, dial
from tricast.client.exchange import Headers, open_exchange
from tricast.client.failures import ClientError, Lost
from tricast.client.settings import ClientSettings
from tricast.event import DEFAULT_TYPE, shorten

_MAX_ANSWER_BYTES = 16 * 2**20


class _Answer(msgspec.Struct):
    """What the server says once the log holds the events: one of the two."""

    id: str | None = None
    ids: list[str] | None = None


async def publish(
    url: str,
    topic: str,
    data: bytes | str,
    *,
    type: str = DEFAULT_TYPE,  # noqa: A002 - that is what it is called everywhere
    idempotency_key: str | None = None,
    token: Token = "",
    api_key: str = "",
    settings: ClientSettings | None = None,
    dial: Dial = dial,
) -> str:
    """Publishes one event and returns its id, once the server's log holds it.

    When the connection fails it is tried again under the same key, so the event is never published twice.
    Cancelling it leaves open whether the event was published; the same key settles that.

    Args:
        url: of the server, such as ``http://127.0.0.1:8080``.
        topic: dot-separated words.
        data: a JSON text, or any other text.
        type: the name of the event's kind.
        idempotency_key: names this event among all publishes of some minutes; None makes one.
        token: a token, or an ``async def`` that returns one.
        api_key: an API key instead.
        settings: deadlines and limits.
        dial: opens the byte stream to the server.

    Raises:
        Lost: the server could not be reached, or is busy, also at the last attempt.
        ClientError: the server refuses the event.
    """
    body = data.encode() if isinstance(data, str) else data
    query = [("topic", topic), *([("type", type)] if type != DEFAULT_TYPE else [])]
    endpoint = Endpoint.parse(url)
    post = _post_of(endpoint, query, "application/octet-stream", body, idempotency_key)
    answer = await _send(post, endpoint, settings or ClientSettings(), dial, Badge(token, api_key))
    if answer.id is None:
        raise ClientError("the server answered without the event's id; is it a Tricast server?")
    return answer.id


async def publish_ndjson(
    url: str,
    lines: Iterable[bytes | str],
    *,
    idempotency_key: str | None = None,
    token: Token = "",
    api_key: str = "",
    settings: ClientSettings | None = None,
    dial: Dial = dial,
) -> list[str]:
    """Publishes several events, all or none, and returns their ids in order.

    Args:
        url: of the server, such as ``http://127.0.0.1:8080``.
        lines: each a JSON object with ``topic``, ``data`` and perhaps ``type``.
        idempotency_key: names this batch among all publishes of some minutes; None makes one.
        token: a token, or an ``async def`` that returns one.
        api_key: an API key instead.
        settings: deadlines and limits.
        dial: opens the byte stream to the server.

    Raises:
        Lost: the server could not be reached, or is busy, also at the last attempt.
        ClientError: the server refuses the events.
    """
    body = b"".join((line.encode() if isinstance(line, str) else line).rstrip(b"\r\n") + b"\n" for line in lines)
    endpoint = Endpoint.parse(url)
    post = _post_of(endpoint, [], "application/x-ndjson", body, idempotency_key)
    answer = await _send(post, endpoint, settings or ClientSettings(), dial, Badge(token, api_key))
    if answer.ids is None:
        raise ClientError("the server answered without the events' ids; is it a Tricast server?")
    return answer.ids


class _Post(NamedTuple):
    """One request to publish, the same at every attempt."""

    target: str
    headers: Headers
    body: bytes


def _post_of(endpoint: Endpoint, query: Headers, content_type: str, body: bytes, key: str | None) -> _Post:
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Idempotency-Key", key or secrets.token_hex(16)),
        ("Connection", "close"),
    ]
    return _Post(endpoint.target("/publish", query), headers, body)


async def _send(post: _Post, endpoint: Endpoint, settings: ClientSettings, dial: Dial, badge: Badge) -> _Answer:
    backoff = Backoff(settings, random.Random())  # noqa: S311 - spreads load only
    attempts_left = settings.publish_attempts
    while True:
        attempts_left -= 1
        refusal: ClientError | None = None
        try:
            return await _send_once(post, endpoint, settings, dial, badge)
        except Lost as lost:
            if attempts_left <= 0:
                raise
            delay = backoff.next_delay(lost.retry_after)
        except ClientError as error:
            if attempts_left <= 0:
                raise
            refusal, delay = error, backoff.next_delay()
        if refusal is not None and not await badge.may_be_renewed(refusal):
            raise refusal
        await trio.sleep(delay)


async def _send_once(post: _Post, endpoint: Endpoint, settings: ClientSettings, dial: Dial, badge: Badge) -> _Answer:
    late = Lost(f"no answer from {endpoint} within {settings.answer_timeout:g} s")
    async with open_exchange(endpoint, settings, dial, badge) as exchange:
        with deadline(settings.answer_timeout, late):
            await exchange.ask("POST", post.target, post.headers, post.body)
            answer = await exchange.head()
            if answer.status_code != 200:
                raise await exchange.failure(answer)
            text = await exchange.body(_MAX_ANSWER_BYTES)
    try:
        return msgspec.json.decode(text, type=_Answer)
    except msgspec.DecodeError:
        said = shorten(text.decode(errors="replace"))
        raise ClientError(f"the server answered {said}; is it a Tricast server?") from None
