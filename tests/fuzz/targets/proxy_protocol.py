"""Invariant: every part of an introduction that is good so far asks for more; a whole one says the same whatever
follows it, and its client is the address that stands in it; what is refused stays so when more comes.
"""

import ipaddress

from tricast.errors import RemoteProtocolError
from tricast.wire.proxy_protocol import MAX_HEADER_BYTES, Introduction, parse_introduction

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
#: What inputs are made of.
DICTIONARY = (
    *(_SIGNATURE, b"PROXY ", b"TCP4 192.0.2.7 192.0.2.8 4000 80\r\n", b"TCP6 2001:db8::1 ::1 4000 80\r\n"),
    *(b"UNKNOWN\r\n", b"\x21\x11\x00\x0c", b"\x21\x21\x00\x24", b"\x20\x00\x00\x00", b"\x21\x31\x00\xd8"),
    *(b"\x21\x12", b"\x11", b"\xff\xff", b"::ffff:192.0.2.7", b"65536", b"%lo", b"GET / HTTP/1.1\r\n"),
)


def check(data: bytes) -> None:
    """The input is what comes first on a connection."""
    found = _parsed(data)
    if found is None:
        assert len(data) < MAX_HEADER_BYTES
        _check_asks_for_more(data)
    elif isinstance(found, Introduction):
        assert 0 < found.size <= len(data)
        assert _parsed(data[: found.size]) == found
        assert _parsed(data[: found.size] + b"\r\n") == found
        _check_asks_for_more(data[: found.size - 1])
        assert found.client == _client_in(data[: found.size])
    else:
        assert isinstance(_parsed(data + b"\r\n"), str), "what was refused is good when more has come"


def _parsed(data: bytes) -> Introduction | str | None:
    try:
        return parse_introduction(data)
    except RemoteProtocolError as error:
        assert error.detail.isascii()
        assert error.detail.isprintable()
        return error.detail


def _check_asks_for_more(data: bytes) -> None:
    assert all(_parsed(data[:size]) is None for size in range(len(data) + 1))


def _client_in(data: bytes) -> str | None:
    """The source in a whole introduction, as proxy-protocol.txt 2.1 and 2.2 have it."""
    if not data.startswith(_SIGNATURE):
        words = data.decode("latin-1").split(" ")
        return "unknown" if words[1].startswith("UNKNOWN") else _address(ipaddress.ip_address(words[2]))
    family = data[13] >> 4
    if data[12] & 0xF == 0:
        return None
    if family not in (1, 2):
        return "unknown"
    return _address(ipaddress.ip_address(data[16 : 20 if family == 1 else 32]))


def _address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
