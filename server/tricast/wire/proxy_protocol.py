"""The PROXY protocol, versions 1 and 2: what a proxy says of its client before that one's own bytes.

After HAProxy's proxy-protocol.txt. Pure: bytes in, an address out.
"""

import ipaddress
import re
from typing import NamedTuple

from tricast.addresses import UNKNOWN, normalized
from tricast.errors import RemoteProtocolError

#: The longest line of version 1, with its end (2.1).
_MAX_LINE_BYTES = 107
#: Of version 2, which could be 64 KiB: the longest addresses are 216 bytes, and what is behind them is of no use here.
MAX_HEADER_BYTES = 4096
_LINE_BEGINS = b"PROXY "
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED_BYTES = 16
_LINE = re.compile(rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP([46]) (\S+) (\S+) ([0-9]{1,5}) ([0-9]{1,5}))\r\n")
_LOCAL, _PROXY = 0, 1
#: Family and transport to the bytes of their addresses, and of the source's in front of them (2.2).
_STREAMS = {0x00: (0, 0), 0x11: (12, 4), 0x21: (36, 16), 0x31: (216, 0)}


class Introduction(NamedTuple):
    """What was said.

    Attributes:
        size: bytes that it takes.
        client: the client's address; ``unknown`` where the proxy does not say, None where it speaks for itself.
    """

    size: int
    client: str | None


def parse_introduction(data: bytes) -> Introduction | None:
    """The introduction that the data begins with; None when more of it is to come.

    Raises:
        RemoteProtocolError: it is none, or malformed, or too long.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _parse_binary(data)
    if data.startswith(_LINE_BEGINS[: len(data)]):
        return _parse_line(data)
    raise _malformed("this listener wants the PROXY protocol first")


def _parse_line(data: bytes) -> Introduction | None:
    end = data.find(b"\r\n", 0, _MAX_LINE_BYTES) + 2
    if end < 2:
        if len(data) < _MAX_LINE_BYTES:
            return None
        raise _malformed("its line does not end in time")
    line = _LINE.fullmatch(data[:end])
    if line is None:
        raise _malformed("its line is malformed")
    if line[1] is None:
        return Introduction(end, UNKNOWN)
    version = int(line[1])
    source, _ = (_address(text, version) for text in (line[2], line[3]))
    if any(int(port) > 65535 for port in (line[4], line[5])):
        raise _malformed("a port is out of range")
    return Introduction(end, source)


def _address(text: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        address = None
    if address is None or address.version != version or b"%" in text:
        raise _malformed(f"{text.decode('latin-1')!a} is no address of IPv{version}")
    return normalized(str(address))


def _parse_binary(data: bytes) -> Introduction | None:
    if len(data) < _FIXED_BYTES:
        return None
    version, command = divmod(data[12], 16)
    size = _FIXED_BYTES + int.from_bytes(data[14:16])
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise _malformed(f"its version is {version}, its command {command}")
    if size > MAX_HEADER_BYTES:
        raise _malformed(f"it takes {size} bytes, of {MAX_HEADER_BYTES} at most")
    if len(data) < size:
        return None
    if command == _LOCAL:  # as a health check is: all else that it says is to be skipped
        return Introduction(size, None)
    # The proxy cannot have had anything but a stream of a client that it makes a stream of.
    both_bytes, source_bytes = _STREAMS.get(data[13], (-1, 0))
    if both_bytes < 0:
        raise _malformed(f"its family and transport are {data[13]:#04x}")
    if size < _FIXED_BYTES + both_bytes:
        raise _malformed("it is too short for its addresses")
    source = data[_FIXED_BYTES : _FIXED_BYTES + source_bytes]
    return Introduction(size, normalized(str(ipaddress.ip_address(source))) if source else UNKNOWN)


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"PROXY protocol: {detail}", code="proxy-protocol-malformed", closes=True)
