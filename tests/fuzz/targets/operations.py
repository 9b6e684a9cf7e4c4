"""Invariant: every message to ``tricast.v1``, be it an operation or not, gets one reply, ``ok`` or ``error``, with its
``ref``; nothing that a message says ends the connection, and what is published is what was said.
"""

import json

import msgspec
import trio
from fuzz.world import converse
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionType
from wsproto.events import CloseConnection, TextMessage

from tricast.config import Config
from tricast.connection import Connection
from tricast.event import BEGINNING, Event, TopicSet
from tricast.runtime import Runtime
from tricast.transports.websocket import Session, serve_topics
from tricast.wire.http1 import Request
from tricast.wire.websocket import parse_operation

#: What inputs are made of.
DICTIONARY = (
    *(b'{"op":"subscribe","topics":["a"]}', b'{"op":"unsubscribe","topics":["a"]}', b'{"op":"ping","ref":1}'),
    *(b'{"op":"publish","topic":"a","data":1}', b'"ref":', b'"last_id":"0-0"', b'"type":"t"', b'"op"', b'"data"'),
    *(b"\n", b"null", b"true", b"1e999", b'"\\ud800"', b'"\\u0000"', b"[[[[[[[[", b'{"a":', b"*", b">", b"."),
    b"tricast.gap",
)
_CONFIG = Config.model_validate({"websocket": {"max_message": 2**16}})
_REQUEST = Request(b"GET", b"/ws", (), b"1.1")


def check(data: bytes) -> None:
    """Each line is a message."""
    messages = data.split(b"\n")[:50]
    texts = [message for message in messages if _is_text(message)]
    kept: list[Event] = []

    async def serve(connection: Connection, runtime: Runtime) -> None:
        session = Session(connection, runtime, _REQUEST, serve_topics, b"")
        async with trio.open_nursery() as nursery:
            await session.run(nursery)
            nursery.cancel_scope.cancel()
        kept.extend((await runtime.hub._log.read(TopicSet({">"}), BEGINNING, max_bytes=2**30)).events)

    output = converse(serve, b"".join(map(_frame, texts)), _CONFIG, leaves=True)
    replies = _replies_in(output)
    assert len(replies) == len(texts), "not every message got its reply"
    for text, reply in zip(texts, replies, strict=True):
        assert ("ok" in reply) != ("error" in reply)
        if "ok" in reply:
            assert reply.get("ref", msgspec.UNSET) == parse_operation(text.decode()).ref
    published = [text for text, reply in zip(texts, replies, strict=True) if reply.get("ok") == "publish"]
    assert [event.data for event in kept] == [bytes(parse_operation(text.decode()).data) for text in published]  # type: ignore[union-attr]


def _is_text(message: bytes) -> bool:
    try:
        message.decode()
    except UnicodeDecodeError:
        return False
    return True


def _frame(payload: bytes) -> bytes:
    size = len(payload)
    head = b"\x81%c" % (0x80 | size) if size < 126 else b"\x81\xfe%b" % size.to_bytes(2)
    return head + b"\0\0\0\0" + payload


def _replies_in(output: bytes) -> list[dict[str, object]]:
    """The replies; events that the session subscribed to come between them."""
    client = Protocol(ConnectionType.CLIENT)
    client.receive_data(output)
    replies = []
    for event in client.events():
        if isinstance(event, CloseConnection):
            break
        assert isinstance(event, TextMessage)
        assert event.message_finished
        message = json.loads(event.data)
        if "ok" in message or "error" in message:
            replies.append(message)
    return replies
