"""Requests as RFC 9112 has them and no others: slow, simple, and written apart from what it is compared with."""

import re
from typing import NamedTuple

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(?:\r\n)*(%b) ([!-~]+) HTTP/1\.([0-9])\r\n" % _TOKEN)  # RFC 9112 2.2, 2.3, 3
_FIELD = re.compile(rb"(%b):[ \t]*((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*\r\n" % _TOKEN)  # 5
#: RFC 9112 7.1.1: ignored, so all that matters is where it ends; hence no control character.
_EXTENSIONS = rb"[ \t]*(?:;[\t -~\x80-\xff]*)?"
_CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]+)%b\r\n" % _EXTENSIONS)  # 7.1
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?#]*(.*)", re.IGNORECASE | re.DOTALL)
_LENGTH = re.compile(rb"[0-9]+")


Fields = tuple[tuple[bytes, bytes], ...]


class Asked(NamedTuple):
    """One request.

    Attributes:
        method: the method.
        target: the target; of the absolute form what stands behind the authority (RFC 9112 3.2.2).
        fields: (lower-case name, value) in wire order.
        body: None where it is not there to its end, or not framed in one clear way.
    """

    method: bytes
    target: bytes
    fields: Fields
    body: bytes | None


class _Unclear(Exception):
    """Not to be read, or not in one way only."""


def origin_form(target: bytes) -> bytes:
    """The target without what an absolute form has before its path (RFC 9112 3.2.1, 3.2.2)."""
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute is None:
        return target
    return absolute[1] if absolute[1].startswith(b"/") else b"/" + absolute[1]


def requests_in(data: bytes) -> list[Asked]:
    """The requests that the bytes begin with, up to the first that is not whole or not clear."""
    found: list[Asked] = []
    at = 0
    while (line := _REQUEST_LINE.match(data, at)) is not None:
        try:
            fields, at = _fields(data, line.end())
        except _Unclear:
            break
        asked = Asked(line[1], origin_form(line[2]), _with_one_length(fields), None)
        try:
            body, at = _body(data, at, fields, is_http_11=line[3] != b"0")
        except _Unclear:
            found.append(asked)
            break
        found.append(asked._replace(body=body))
    return found


def _fields(data: bytes, at: int) -> tuple[Fields, int]:
    fields = []
    while not data.startswith(b"\r\n", at):
        field = _FIELD.match(data, at)
        if field is None:
            raise _Unclear
        fields.append((field[1].lower(), field[2]))
        at = field.end()
    return tuple(fields), at + 2


def _with_one_length(fields: Fields) -> Fields:
    """A length that is repeated may be replaced by one (RFC 9110 8.6)."""
    lengths = [(name, value.partition(b",")[0].strip()) for name, value in fields if name == b"content-length"]
    others = [field for field in fields if field[0] != b"content-length"]
    return (*others, *lengths[:1]) if lengths else fields


def _body(data: bytes, at: int, fields: Fields, *, is_http_11: bool) -> tuple[bytes, int]:
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    lengths = {part.strip() for name, value in fields if name == b"content-length" for part in value.split(b",")}
    if codings:
        if lengths or not is_http_11 or [coding.lower() for coding in codings] != [b"chunked"]:
            raise _Unclear
        return _chunks(data, at)
    if not lengths:
        return b"", at
    (length,) = lengths if len(lengths) == 1 else (b"",)
    if not _LENGTH.fullmatch(length) or int(length) > len(data) - at:
        raise _Unclear
    end = at + int(length)
    return data[at:end], end


def _chunks(data: bytes, at: int) -> tuple[bytes, int]:
    parts = []
    while (head := _CHUNK_HEAD.match(data, at)) is not None:
        size, at = int(head[1], 16), head.end()
        if size == 0:
            return b"".join(parts), _fields(data, at)[1]
        end = at + size
        if not data.startswith(b"\r\n", end):
            break
        parts.append(data[at:end])
        at = end + 2
    raise _Unclear
