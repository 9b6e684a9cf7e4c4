"""Invariant: whatever a client writes into ``Forwarded`` and ``X-Forwarded-*``, behind a trusted proxy that adds the
client to it the client is the one that the proxy saw, or the request is refused as its mistake; without such a proxy
nothing that it writes counts.
"""

import ipaddress

from tricast.addresses import Networks
from tricast.errors import RemoteProtocolError
from tricast.wire.forwarded import Origin, origin_by_forwarded, origin_by_x_forwarded
from tricast.wire.http1 import Request

_PROXY, _CLIENT = "10.0.0.1", "192.0.2.7"
_TRUSTED = Networks(["10.0.0.0/8", "2001:db8::/32", "unix"])
#: What inputs are made of.
DICTIONARY = (
    *(b"for=", b"by=", b"proto=https", b"host=a:80", b'for="[2001:db8::1]:80"', b"for=10.0.0.2", b"for=unknown"),
    *(b"_hidden", b'"', b'\\"', b",", b";", b"10.0.0.3", b"::ffff:10.0.0.4", b"[::1]", b"unix", b"198.51.100.1:80"),
    *(b" ", b"\t", b"%lo"),
)


def check(data: bytes) -> None:
    """The first byte says in which field the rest stands, and whether the proxy begins a line of its own."""
    if not data:
        return
    manner, text = data[0], data[1:].translate(None, b"\r\n\0")
    if manner & 1:
        _check_client(b"forwarded", text, b"for=%b;proto=https;host=a.example" % _CLIENT.encode(), manner)
    else:
        _check_client(b"x-forwarded-for", text, _CLIENT.encode(), manner)
    _check_alone(text)


def _check_client(name: bytes, text: bytes, added: bytes, manner: int) -> None:
    lines = (text, added) if manner & 2 else (text + b", " + added,)
    request = Request(b"GET", b"/", tuple((name, line.strip()) for line in lines), b"1.1")
    by = origin_by_forwarded if name == b"forwarded" else origin_by_x_forwarded
    told = ("https", "a.example") if name == b"forwarded" else (None, None)
    try:
        assert by(request, _PROXY, _TRUSTED) == Origin(_CLIENT, *told)
    except RemoteProtocolError as error:
        assert error.code == "bad-forwarded"
    assert by(request, _CLIENT, _TRUSTED) == Origin(_CLIENT, None, None)


def _check_alone(text: bytes) -> None:
    """Where a trusted proxy has written all of it."""
    fields = [(name, text) for name in (b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")]
    for by in (origin_by_forwarded, origin_by_x_forwarded):
        try:
            origin = by(Request(b"GET", b"/", fields, b"1.1"), _PROXY, _TRUSTED)
        except RemoteProtocolError as error:
            assert error.detail.isascii()
            assert error.detail.isprintable()
            continue
        assert str(ipaddress.ip_address(origin.client)) == origin.client
        assert origin.scheme in (None, "http", "https")
        assert origin.authority is None or origin.authority.isascii()
        assert origin.authority is None or not set(origin.authority) & set('/?#@ \\"')
