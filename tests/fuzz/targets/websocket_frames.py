"""Invariant: whatever frames a client sends, in whatever pieces, compressed or not, the session hands on the messages
that RFC 6455 and RFC 7692 see in them, up to the first that is longer than allowed or is not allowed at
all, and no others; what goes out is whole frames, and nothing follows a close frame.
"""

from typing import NamedTuple

import trio
from fuzz.reference_frames import messages_in
from fuzz.world import converse

from tricast.config import Config
from tricast.connection import Connection
from tricast.runtime import Runtime
from tricast.transports.websocket import Session
from tricast.wire.http1 import Request

#: What inputs are made of: FIN and opcodes with masked lengths, and a mask of zeros, which changes nothing.
DICTIONARY = (
    *(b"\x81\x80", b"\x81\x85", b"\x82\x81", b"\x01\x81", b"\x00\x81", b"\x80\x80", b"\x80\x81", b"\x89\x80"),
    *(b"\x8a\x80", b"\x88\x80", b"\x88\x82", b"\x81\xfe", b"\x81\xff", b"\xc1\x87", b"\x41\x81", b"\xc2\x85"),
    *(b"\x00\x00\x00\x00", b"\x03\xe8", b"\xf2\x48\xcd\xc9\xc9\x07\x00", b"\xed\xa0\x80", b"\xc3\xa9"),
    *(b"\x00\x00\xff\xff", b"\x01\x00\x00\xff\xff"),
)
_PONG, _CLOSE = 0x8A, 0x88
_MAX_MESSAGE = 1000
_CONFIG = Config.model_validate({"websocket": {"max_message": _MAX_MESSAGE}})
_REQUEST = Request(b"GET", b"/echo", (), b"1.1")


class _Got(NamedTuple):
    """What came of it.

    Attributes:
        messages: that the handler was given.
        close_code: as the session has it at the end.
        frames: that the client got.
    """

    messages: list[str | bytes]
    close_code: int | None
    frames: list[tuple[int, bytes]]


def check(data: bytes) -> None:
    """The first byte says how the rest comes, and whether compression was negotiated."""
    if not data:
        return
    manner, sent = data[0], data[1:]
    has_deflate = bool(manner & 1)
    whole = _serve(sent, has_deflate=has_deflate)
    assert _serve(sent, has_deflate=has_deflate, step=1 + (manner >> 1)) == whole, "it depends on how the bytes come"
    _check_messages(whole, messages_in(sent, has_deflate=has_deflate))


def _serve(sent: bytes, *, has_deflate: bool, **manner: int) -> _Got:
    messages: list[str | bytes] = []
    sessions: list[Session] = []

    async def handler(session: Session) -> None:
        async for message in session:
            messages.append(message)  # noqa: PERF401 - what came before an error counts

    async def serve(connection: Connection, runtime: Runtime) -> None:
        session = Session(connection, runtime, _REQUEST, handler, b"", window_bits=15 if has_deflate else None)
        sessions.append(session)
        async with trio.open_nursery() as nursery:
            await session.run(nursery)
            nursery.cancel_scope.cancel()

    output = converse(serve, sent, _CONFIG, leaves=True, **manner)
    return _Got(messages, sessions[0].close_code, _frames_in(output))


def _check_messages(got: _Got, meant: list[str | bytes]) -> None:
    found = got.messages
    sizes = [len(message.encode() if isinstance(message, str) else message) for message in meant]
    too_big = next((number for number, size in enumerate(sizes) if size > _MAX_MESSAGE), len(meant))
    assert found == meant[: len(found)], "messages were understood differently"
    assert len(found) <= too_big, "a message is longer than allowed"
    # What stands behind the last block of a compressed message is looked at here only.
    assert len(found) == too_big or got.close_code == 1007, "messages were lost"


def _frames_in(output: bytes) -> list[tuple[int, bytes]]:
    """The opcode and the payload of each pong and of the close frame behind them, whose reason is for people."""
    frames = []
    while output:
        first, size = output[0], output[1]
        assert first in (_PONG, _CLOSE)
        assert size <= min(125, len(output) - 2)
        assert first == _PONG or len(output) == 2 + size, "something follows a close frame"
        frames.append((first, output[2 : 2 + size][: 125 if first == _PONG else 2]))
        output = output[2 + size :]
    return frames
