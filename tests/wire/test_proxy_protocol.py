"""The PROXY protocol: each introduction whole, byte by byte, and with more behind it; and what is none."""

import ipaddress
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.addresses import UNKNOWN, normalized
from tricast.errors import RemoteProtocolError
from tricast.wire.proxy_protocol import MAX_HEADER_BYTES, Introduction, parse_introduction

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4 = bytes((192, 0, 2, 1, 192, 0, 2, 2)) + (4711).to_bytes(2) + (443).to_bytes(2)
V6 = ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("2001:db8::2").packed + V4[8:]
#: A type, two bytes of length, and what it is about: ALPN, and one that nobody has defined.
TLVS = b"\x01\x00\x02h2" + b"\xe7\x00\x05hello"


def binary(command: int, family: int, content: bytes, *, length: int | None = None, version: int = 2) -> bytes:
    size = len(content) if length is None else length
    return SIGNATURE + bytes((version * 16 + command, family)) + size.to_bytes(2) + content


INTRODUCTIONS = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n", "192.0.2.1"),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255"),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", "2001:db8::1"),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 4711 443\r\n", "192.0.2.1"),
    (b"PROXY TCP6" + b" ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" * 2 + b" 65535 65535\r\n", "ffff:" * 7 + "ffff"),
    (b"PROXY UNKNOWN\r\n", UNKNOWN),
    (b"PROXY UNKNOWN" + b" ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" * 2 + b" 65535 65535\r\n", UNKNOWN),
    (binary(1, 0x11, V4), "192.0.2.1"),
    (binary(1, 0x11, V4 + TLVS), "192.0.2.1"),
    (binary(1, 0x11, V4 + bytes(MAX_HEADER_BYTES - 28)), "192.0.2.1"),
    (binary(1, 0x21, V6), "2001:db8::1"),
    (binary(1, 0x21, V6 + TLVS), "2001:db8::1"),
    (binary(1, 0x31, bytes(216)), UNKNOWN),
    (binary(1, 0x00, b""), UNKNOWN),
    (binary(1, 0x00, TLVS), UNKNOWN),
    (binary(0, 0x00, b""), None),
    (binary(0, 0x11, V4), None),
    # All but the length is to be skipped.
    (binary(0, 0xFF, b"whatever"), None),
]


@pytest.mark.parametrize(("data", "client"), INTRODUCTIONS)
def test_an_introduction(data: bytes, client: str | None) -> None:
    expected = Introduction(len(data), client)
    assert parse_introduction(data) == expected
    for behind in (b"\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", data):
        assert parse_introduction(data + behind) == expected
    for size in (*range(min(len(data), 300)), len(data) - 1):
        assert parse_introduction(data[:size]) is None, size


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PROXYTCP4 192.0.2.1 192.0.2.2 4711 443\r\n",
        b"proxy TCP4 192.0.2.1 192.0.2.2 4711 443\r\n",
        b"PROXY tcp4 192.0.2.1 192.0.2.2 4711 443\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 4711 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 443 \r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\n\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 -1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 70000 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2.2 4711 443\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 4711 443\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 4711 443\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 4711 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 fe80::2 4711 443\r\n",
        b"PROXY TCP4 \xd9\xa1.0.0.1 192.0.2.2 4711 443\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 4711 443\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN" + b" " * 94,
        b"PROXY UNKNOWN" + b" " * 93 + b"\r\n",
        SIGNATURE[:-1] + b"\x00",
        binary(1, 0x11, V4, version=1),
        binary(1, 0x11, V4, version=3),
        binary(2, 0x11, V4),
        binary(15, 0x11, V4),
        binary(1, 0x12, V4),
        binary(1, 0x10, V4),
        binary(1, 0x01, V4),
        binary(1, 0x41, V4),
        binary(1, 0x32, bytes(216)),
        binary(1, 0x11, V4[:-1]),
        binary(1, 0x21, V6[:-1]),
        binary(1, 0x31, bytes(215)),
        binary(1, 0x11, V4, length=MAX_HEADER_BYTES - 15),
        binary(0, 0x00, b"", length=0xFFFF),
    ],
)
def test_what_is_none(data: bytes) -> None:
    for behind in (b"", b"\r\n" * 100):
        with pytest.raises(RemoteProtocolError) as caught:
            parse_introduction(data + behind)
        assert caught.value.code == "proxy-protocol-malformed"
        assert caught.value.closes


def test_a_line_without_an_end_is_not_waited_for() -> None:
    assert parse_introduction(b"PROXY UNKNOWN " + b"x" * 92) is None
    with pytest.raises(RemoteProtocolError, match="does not end in time"):
        parse_introduction(b"PROXY UNKNOWN " + b"x" * 93)


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=300).map(lambda rest: SIGNATURE + rest)))
def test_whatever_comes_is_an_introduction_or_none(data: bytes) -> None:
    """Invariant: more is asked for only while there is room for more, and what is found lies within the data."""
    with suppress(RemoteProtocolError):
        introduction = parse_introduction(data)
        assert len(data) < MAX_HEADER_BYTES if introduction is None else introduction.size <= len(data)


@given(st.ip_addresses(), st.ip_addresses())
def test_every_client_is_told(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address, target: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    if source.version != target.version:
        target = source
    family = 0x11 if source.version == 4 else 0x21
    line = f"PROXY TCP{source.version} {source} {target} 1 2\r\n".encode()
    by_line, by_bytes = map(parse_introduction, (line, binary(1, family, source.packed + target.packed + bytes(4))))
    assert by_line is not None
    assert by_bytes is not None
    assert by_line.client == by_bytes.client == normalized(str(source))
