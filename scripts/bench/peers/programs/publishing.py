"""What the Python programs here share: sockets to listen on, and publishing over HTTP beside WebSocket libraries."""

import asyncio
import socket
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

Publish = Callable[[str, bytes], None]
_HEAD_BYTES = 16 * 1024
_BODY_BYTES = 1024 * 1024
_DONE = b"HTTP/1.1 204 No Content\r\n\r\n"
_REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

#: Events that wait for one subscriber, before it is cut off.
QUEUED = 256


def listening_socket() -> socket.socket:
    """On a free port of the loopback address, with room for many who connect at once."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    sock.setblocking(False)
    return sock


def announce(*socks: socket.socket) -> None:
    """Says where the server listens: for subscribers, then for publishers where that is another socket."""
    print("listening on", *(f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in socks), flush=True)


def topic_of(target: str) -> str:
    """The topic that a request target names."""
    return parse_qs(urlsplit(target).query).get("topic", [""])[0]


def event_stream_event(number: int, data: bytes) -> bytes:
    """An event as SSE sends it."""
    return b"id: %d\ndata: %b\n\n" % (number, data)


def _parse(head: bytes) -> tuple[str, int]:
    """The topic and the length of the body.

    Raises:
        ValueError: it is not a request to publish, or its body is too large.
    """
    request, *fields = head.decode("latin-1").split("\r\n")
    method, target, _ = request.split(" ")
    parts = [field.partition(":") for field in fields]
    lengths = [int(value) for name, _, value in parts if name.lower() == "content-length"]
    if method != "POST" or len(lengths) != 1 or not 0 <= lengths[0] <= _BODY_BYTES:
        raise ValueError(request)
    return topic_of(target), lengths[0]


async def serve_publishing_asyncio(sock: socket.socket, publish: Publish) -> asyncio.Server:
    """Takes ``POST /publish?topic=T`` on a socket of its own."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                topic, length = _parse(await reader.readuntil(b"\r\n\r\n"))
                publish(topic, await reader.readexactly(length))
                writer.write(_DONE)
        except ValueError:
            writer.write(_REFUSED)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(serve, sock=sock, limit=_HEAD_BYTES)


async def serve_publishing_trio(sock: socket.socket, publish: Publish) -> None:
    """The same on Trio; runs until it is cancelled."""
    import trio  # noqa: PLC0415  (the programs on asyncio have none)

    async def serve(stream: trio.SocketStream) -> None:
        received = bytearray()

        async def receive_until(enough: Callable[[], bool]) -> None:
            while not enough():
                chunk = await stream.receive_some(65536)
                if not chunk or len(received) > _BODY_BYTES + _HEAD_BYTES:
                    raise trio.EndOfChannel
                received.extend(chunk)

        try:
            while True:
                await receive_until(lambda: b"\r\n\r\n" in received)
                head, _, _ = bytes(received).partition(b"\r\n\r\n")
                topic, length = _parse(head)
                used = len(head) + 4 + length
                await receive_until(lambda used=used: len(received) >= used)
                publish(topic, bytes(received[used - length : used]))
                del received[:used]
                await stream.send_all(_DONE)
        except ValueError:
            await stream.send_all(_REFUSED)
        except (trio.EndOfChannel, trio.BrokenResourceError):
            pass
        finally:
            await stream.aclose()

    await trio.serve_listeners(serve, [trio.SocketListener(trio.socket.from_stdlib_socket(sock))])
