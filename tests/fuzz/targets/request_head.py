"""Invariant: whatever a client sends, in whatever pieces, the server understands the requests that RFC 9112 sees in it,
or fewer, never other ones; each that it understood gets one whole answer, the first that it did not gets an error and
is the last; it raises nothing.

So nothing that a proxy in front reads as one request is two here.
"""

from fuzz.http_server import check_requests

#: What inputs are made of.
DICTIONARY = (
    *(b"GET / HTTP/1.1\r\n", b"HEAD ", b"POST ", b"OPTIONS * ", b" HTTP/1.0\r\n", b"Host: a\r\n", b"\r\n"),
    *(b"\r\n\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(b"Expect: 100-continue\r\n", b"http://a/", b"/unread", b"%ff", b"\t", b"\r", b"\n", b"\x00", b" :", b", "),
    *(b"0\r\n\r\n", b"5\r\nhello\r\n"),
)


def check(data: bytes) -> None:
    """The first byte says how the rest comes."""
    if data:
        manner, sent = data[0], data[1:]
        check_requests(sent, step=1 + manner % 64, leaves=manner >= 128)
