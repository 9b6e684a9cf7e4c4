"""What publishers send over HTTP: a body to drafts, and an ``Idempotency-Key`` to what the log knows. Without I/O."""

import hashlib
import re
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from tricast.errors import LimitExceeded, RemoteProtocolError
from tricast.event import DEFAULT_TYPE, Draft
from tricast.log.base import IdempotencyKey

NDJSON = b"application/x-ndjson"
#: Longer keys are no keys: a UUID has 36 characters.
MAX_KEY_BYTES = 255
#: What is in a line, from its first character on that is not blank.
_TEXT = re.compile(rb"\S[^\n]*")


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
    lines = list(islice(_numbered_lines(body), max_events + 1))
    if not lines:
        raise RemoteProtocolError("the body has no lines", code="bad-data")
    if len(lines) > max_events:
        raise LimitExceeded("publish.max_batch", max_events)
    return [_draft_of_line(number, line, check) for number, line in lines]


def _numbered_lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, each with its number.

    Not split at once: a megabyte of line ends would be a million lines, which hold up everybody for 80 ms and more.
    """
    number, at = 1, 0
    for text in _TEXT.finditer(body):
        begin = body.rfind(b"\n", 0, text.start()) + 1
        number += body.count(b"\n", at, begin)
        at = begin
        yield number, body[begin : text.end()]


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
        told = RemoteProtocolError(
            f"line {number}: {error.detail}", code=error.code, status=error.status, headers=error.headers
        )
        told.reason = error.reason
        raise told from None


def idempotency_key(
    name: bytes, content: tuple[bytes, ...], *, account: str, window: float, max_keys: int
) -> IdempotencyKey:
    """The key under which the log remembers a request, so that a publisher may safely repeat it.

    Args:
        name: what the publisher sent.
        content: everything that makes the request what it is.
        account: whose the key is: another one's of the same name is another key, so that neither learns of the other's
            events, nor can keep the other from publishing; empty for who is not asked.
        window: seconds for which it is remembered.
        max_keys: how many are remembered at most.

    Raises:
        RemoteProtocolError: the name is empty or too long.
    """
    if not name or len(name) > MAX_KEY_BYTES:
        raise RemoteProtocolError(
            f"Idempotency-Key must have 1 to {MAX_KEY_BYTES} bytes, found {len(name)}", code="bad-idempotency-key"
        )
    fingerprint = hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest()
    return IdempotencyKey(_name_of(name, account), fingerprint, window, max_keys)


def _name_of(name: bytes, account: str) -> bytes:
    if not account:
        return name
    # No field of a request can hold a NUL, so that nobody without an account can name one of these.
    return b"\0" + hashlib.blake2b(msgspec.msgpack.encode((account, name)), digest_size=24).digest()
