"""Where an HTTP/1.1 answer ends: as much of it as a load generator needs."""

import re

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]+)[^\r\n]*\r\n")


class AnswerError(Exception):
    """Something came that is no answer with an end."""


def read_status(buffer: bytes) -> int:
    """Returns the status of the answer that this begins with."""
    if not buffer.startswith(b"HTTP/1.") or not buffer[9:12].isdigit():
        raise AnswerError(f"expected an HTTP answer, found {buffer[:60]!r}")
    return int(buffer[9:12])


def measure_answer(buffer: bytes) -> int:
    """Returns how many bytes the first answer takes, or 0 while its end is not there yet."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return 0
    body = head_end + 4
    head = bytes(buffer[: head_end + 2])
    if read_status(head) in (204, 304):
        return body
    if (length := _LENGTH.search(head)) is not None:
        end = body + int(length[1])
        return end if len(buffer) >= end else 0
    if _CHUNKED.search(head) is not None:
        return _measure_chunks(buffer, body)
    raise AnswerError(f"an answer without a length: {head[:200]!r}")


def _measure_chunks(buffer: bytes, position: int) -> int:
    while (size := _CHUNK_SIZE.match(buffer, position)) is not None:
        length = int(size[1], 16)
        position = size.end() + length + 2
        if len(buffer) < position:
            return 0
        if length == 0:
            return position
    return 0
