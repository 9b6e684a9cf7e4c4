"""What publishers send over HTTP: a body to drafts, and the memory of idempotency keys. Without I/O."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from tricast.errors import LimitExceeded, RemoteProtocolError
from tricast.event import DEFAULT_TYPE, Draft, data_as_json
from tricast.wire.http1 import Response

NDJSON = b"application/x-ndjson"
#: Longer keys are no keys: a UUID has 36 characters.
MAX_KEY_BYTES = 255


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    topic: str
    data: msgspec.Raw
    type: str = DEFAULT_TYPE


_line_decoder = msgspec.json.Decoder(_Line)


def single_draft(topic: str, event_type: str, body: bytes, *, max_event: int) -> Draft:
    """The draft of one event whose body is its data.

    Raises:
        RemoteProtocolError: the body is not UTF-8.
        LimitExceeded: the body is longer than ``max_event``.
    """
    if len(body) > max_event:
        raise LimitExceeded("publish.max_event", max_event, len(body))
    return Draft(topic, event_type, data_as_json(body))


def batch_drafts(body: bytes, *, max_event: int, check: Callable[[Draft], Draft]) -> list[Draft]:
    """The drafts of an NDJSON body: one ``{"topic","type","data"}`` a line; empty lines do not count.

    Args:
        body: lines that end in LF or CRLF.
        max_event: bytes of data per event.
        check: raises RemoteProtocolError for names that may not be used.

    Raises:
        RemoteProtocolError: a line is not one, or there is none; its number is in the message.
    """
    drafts = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            try:
                drafts.append(_draft_of_line(line, max_event=max_event, check=check))
            except RemoteProtocolError as error:
                raise RemoteProtocolError(
                    f"line {number}: {error.detail}", code=error.code, status=error.status
                ) from None
    if not drafts:
        raise RemoteProtocolError("the body has no lines", code="bad-data")
    return drafts


def _draft_of_line(line: bytes, *, max_event: int, check: Callable[[Draft], Draft]) -> Draft:
    try:
        found = _line_decoder.decode(line)
        data = bytes(found.data)
        # Raw data is passed on without a look, so that it is well-formed inside as well must be seen here.
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f'expected {{"topic","type","data"}}: {error}', code="bad-data") from None
    if len(data) > max_event:
        raise LimitExceeded("publish.max_event", max_event, len(data))
    return check(Draft(found.topic, found.type, data))


class Idempotency:
    """Remembers answers by ``Idempotency-Key``, so that a publisher may safely repeat a request.

    Args:
        window: seconds for which an answer is remembered.
        max_keys: how many are remembered at most; the oldest are forgotten first.
        clock: monotonic seconds.
    """

    def __init__(self, *, window: float, max_keys: int, clock: Callable[[], float]) -> None:
        self._window = window
        self._max_keys = max_keys
        self._clock = clock
        self._answers: OrderedDict[bytes, tuple[float, bytes, Response | None]] = OrderedDict()

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
        self._forget_before(self._clock() - self._window)
        fingerprint = hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest()
        known = self._answers.get(key)
        if known is None:
            while len(self._answers) >= self._max_keys:
                self._answers.popitem(last=False)
            self._answers[key] = (self._clock(), fingerprint, None)
            return None
        if known[1] != fingerprint:
            raise RemoteProtocolError(
                "this Idempotency-Key was used for another request", code="idempotency-key-reused", status=422
            )
        if known[2] is None:
            raise RemoteProtocolError(
                "the first request with this Idempotency-Key is not answered yet",
                code="idempotency-key-in-use",
                status=409,
                headers=((b"retry-after", b"1"),),
            )
        return known[2]

    def end(self, key: bytes, answer: Response | None) -> None:
        """Remembers the answer; None when there was none, so that the key may be used again."""
        known = self._answers.pop(key, None)
        if known is not None and answer is not None:
            self._answers[key] = (self._clock(), known[1], answer)

    def _forget_before(self, oldest: float) -> None:
        while self._answers and next(iter(self._answers.values()))[0] < oldest:
            self._answers.popitem(last=False)
