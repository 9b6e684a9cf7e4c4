"""Messages as RFC 6455 and RFC 7692 have them: slow, simple, and written apart from what it is compared with."""

import zlib
from typing import NamedTuple

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_DEFLATE_TAIL = b"\x00\x00\xff\xff"


class _Frame(NamedTuple):
    """One frame (RFC 6455 5.2)."""

    is_last: bool
    reserved: int
    opcode: int
    payload: bytes


class _Wrong(Exception):
    """Not allowed, or not whole: nothing behind it counts."""


def messages_in(data: bytes, *, has_deflate: bool) -> list[str | bytes]:
    """The messages of a client, up to its first mistake or its close frame."""
    messages: list[str | bytes] = []
    parts: list[_Frame] = []
    try:
        while True:
            frame, data = _read_frame(data)
            if frame.opcode in (_PING, _PONG, _CLOSE):
                _check(frame.is_last and frame.reserved == 0 and len(frame.payload) <= 125 and frame.opcode != _CLOSE)
                continue
            _check(frame.opcode == (0 if parts else frame.opcode) and (bool(parts) or frame.opcode in (_TEXT, _BINARY)))
            _check(frame.reserved == 0 or (frame.reserved == 4 and has_deflate and not parts))
            parts.append(frame)
            if frame.is_last:
                messages.append(_message_of(parts))
                parts = []
    except _Wrong:
        return messages


def _check(is_allowed: bool) -> None:
    if not is_allowed:
        raise _Wrong


def _read_frame(data: bytes) -> tuple[_Frame, bytes]:
    _check(len(data) >= 2 and data[1] >= 0x80)  # a client masks (RFC 6455 5.1)
    size, begin = data[1] & 0x7F, 2
    if size >= 126:
        begin = 4 if size == 126 else 10
        size = int.from_bytes(data[2:begin])
        _check(125 < size <= 0xFFFF if begin == 4 else 0xFFFF < size < 2**63)
    mask, begin = data[begin : begin + 4], begin + 4
    _check(len(data) >= begin + size)
    payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data[begin : begin + size]))
    return _Frame(data[0] >= 0x80, data[0] >> 4 & 7, data[0] & 0xF, payload), data[begin + size :]


def _message_of(parts: list[_Frame]) -> str | bytes:
    payload = b"".join(part.payload for part in parts)
    try:
        if parts[0].reserved:
            payload = zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + _DEFLATE_TAIL)
        return payload.decode() if parts[0].opcode == _TEXT else payload
    except (zlib.error, UnicodeDecodeError):
        raise _Wrong from None
