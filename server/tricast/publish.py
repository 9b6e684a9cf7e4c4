"""What publishers send over HTTP: a body to drafts, and the memory of idempotency keys. Without I/O."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from tricast.errors import LimitExceeded, RemoteProtocolError
from tricast.event import DEFAULT_TYPE, Draft
from tricast.wire.http1 import Response

NDJSON = b"application/x-ndjson"
#: Longer keys are no keys: a UUID has 36 characters.
MAX_KEY_BYTES = 255


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    topic: str
    data: msgspec.Raw
    type: str = DEFAULT_TYPE


_line_decoder = msgspec.json.Decoder(_Line)


def batch_drafts(body: bytes, *, max_events: int, check: Callable[[Draft], Draft]) -> list[Draft]:
    """The drafts of an NDJSON body: one ``{"topic","type","data"}`` a line; empty lines do not count.

    Args:
        body: lines that end in LF or CRLF.
        max_events: how many there may be.
        check: raises RemoteProtocolError for what may not be published.

    Raises:
        RemoteProtocolError: a line is not one, or there is none; its number is in the message.
        LimitExceeded: there are too many.
    """
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise RemoteProtocolError("the body has no lines", code="bad-data")
    if len(lines) > max_events:
        raise LimitExceeded("publish.max_batch", max_events, len(lines))
    return [_draft_of_line(number, line, check) for number, line in lines]


def _draft_of_line(number: int, line: bytes, check: Callable[[Draft], Draft]) -> Draft:
    try:
        found = _line_decoder.decode(line)
        data = bytes(found.data)
        # Raw data is passed on without a look, so that it is well-formed inside as well must be seen here.
        msgspec.json.decode(data)
        return check(Draft(found.topic, found.type, data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = f'line {number}: expected {{"topic","type","data"}}: {error}'
        raise RemoteProtocolError(detail, code="bad-data") from None
    except RemoteProtocolError as error:
        raise RemoteProtocolError(f"line {number}: {error.detail}", code=error.code, status=error.status) from None


class _Remembered(NamedTuple):
    at: float
    fingerprint: bytes
    answer: Response | None

    @property
    def weight(self) -> int:
        return 1 if self.answer is None else 1 + len(self.answer.body) // 1024


class Idempotency:
    """Remembers answers by ``Idempotency-Key``, so that a publisher may safely repeat a request.

    Args:
        window: seconds for which an answer is remembered.
        max_keys: how many are remembered at most; the oldest are forgotten first. One of more than a kilobyte, the
            answer to a large batch, counts as several.
        clock: monotonic seconds.
    """

    def __init__(self, *, window: float, max_keys: int, clock: Callable[[], float]) -> None:
        self._window = window
        self._max_keys = max_keys
        self._clock = clock
        self._answers: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._weight = 0

    def begin(self, key: bytes, content: tuple[bytes, ...]) -> Response | None:
        """Returns the first answer to this key; or None, and from then on until ``end`` the key is in use.

        Args:
            key: what the publisher sent.
            content: everything that makes the request what it is.

        Raises:
            RemoteProtocolError: the key is too long or was used for something else, or its first request is not
                answered yet.
        """
        if not key or len(key) > MAX_KEY_BYTES:
            raise RemoteProtocolError(
                f"Idempotency-Key must have 1 to {MAX_KEY_BYTES} bytes, found {len(key)}",
                code="bad-idempotency-key",
            )
        oldest = self._clock() - self._window
        while self._answers and next(iter(self._answers.values())).at < oldest:
            self._forget(next(iter(self._answers)))
        fingerprint = hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest()
        known = self._answers.get(key)
        if known is None:
            self._remember(key, _Remembered(self._clock(), fingerprint, None))
            return None
        if known.fingerprint != fingerprint:
            raise RemoteProtocolError(
                "this Idempotency-Key was used for another request", code="idempotency-key-reused", status=422
            )
        if known.answer is None:
            raise RemoteProtocolError(
                "the first request with this Idempotency-Key is not answered yet",
                code="idempotency-key-in-use",
                status=409,
                headers=((b"retry-after", b"1"),),
            )
        return known.answer

    def end(self, key: bytes, answer: Response | None) -> None:
        """Remembers the answer; None when there was none, so that the key may be used again."""
        known = self._answers.get(key)
        if known is not None:
            self._forget(key)
            if answer is not None:
                self._remember(key, _Remembered(self._clock(), known.fingerprint, answer))

    def _remember(self, key: bytes, remembered: _Remembered) -> None:
        self._answers[key] = remembered
        self._weight += remembered.weight
        while self._weight > self._max_keys and len(self._answers) > 1:
            self._forget(next(iter(self._answers)))

    def _forget(self, key: bytes) -> None:
        self._weight -= self._answers.pop(key).weight
