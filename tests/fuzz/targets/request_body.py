"""Invariant: of a body in any framing the server takes exactly the bytes that RFC 9112 sees in it, or refuses it and
ends the connection; what stands behind it is the next request, and nothing within it is one.
"""

from fuzz.http_server import check_requests

#: What inputs are made of.
DICTIONARY = (
    *(b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\n", b"\r\n", b";a=b", b';a="b"', b"000000000000000"),
    *(b"ffffffffffffffff", b"Trailer: x\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    b"POST / HTTP/1.1\r\nHost: a\r\n",
)
_FRAMINGS = (
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
    b"Content-Length: 5\r\nContent-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
)


def check(data: bytes) -> None:
    """The first byte says how the body is framed, and how it comes."""
    if not data:
        return
    manner, body = data[0], data[1:]
    target = b"/unread" if manner & 8 else b"/"
    head = b"POST %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, _FRAMINGS[manner % 8])
    check_requests(head + body, step=1 + (manner >> 4 & 7) * 5, leaves=manner >= 128)
