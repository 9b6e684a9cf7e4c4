"""What reads the body behind a head that is forwarded, and what comes behind a body. No I/O."""

from tricast.wire.bodies import BodyReader, ChunkedBody, LengthBody, NoBody, OpenBody
from tricast.wire.heads import BadHead
from tricast.wire.http1 import LAST_CHUNK
from tricast_proxy.heads import Fields, Head


def reader_of(head: Head, *, is_request: bool, max_extensions: int, max_trailers: int) -> BodyReader:
    """What reads the body behind a head, for one that can have a body (RFC 9112 6.3).

    Raises:
        BadHead: the coding is not known.
    """
    coding = head.members(b"transfer-encoding")
    if coding:
        if coding != [b"chunked"]:
            raise BadHead("the only transfer coding known is chunked", status=501)
        return ChunkedBody(max_extensions=max_extensions, max_trailers=max_trailers)
    length = head.length
    if length is not None:
        return LengthBody(length)
    return NoBody() if is_request else OpenBody()


def encode_trailers(trailers: Fields) -> bytes:
    """The last chunk, and the fields behind it."""
    return b"0\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % field for field in trailers) if trailers else LAST_CHUNK
