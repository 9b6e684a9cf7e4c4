"""Event streams that live on when their client brings a newer token, in whichever process of a server it arrives.

The request with the token is another connection than the stream, and the kernel may have given it to another worker. So
workers ask each other: each has a Unix datagram socket in a folder that is nobody else's, under the name with which
those of its streams begin.
"""

import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from tricast.access.identity import Identity
from tricast.errors import RemoteProtocolError, Unavailable

_NAME_BYTES = 4
_STREAM_BYTES = 12
#: How long another worker may take. It only does what is there to be done at once.
_ANSWER_SECONDS = 2.0
#: A process takes ten messages before it has read one (net.unix.max_dgram_qlen).
_ASKED_AT_ONCE = 8
_PAUSE_SECONDS = 0.002
#: An identity has a hundred patterns of 255 bytes in each of two lists, unless limits are changed.
_MAX_MESSAGE_BYTES = 2**18


class Leased(Protocol):
    """A stream whose client was let in for a while."""

    def renew(self, identity: Identity) -> None:
        """Lives on with a newer identity of the same account, or on an error as before.

        Raises:
            Forbidden: it is another account's, or does not allow all that the stream follows.
            RemoteProtocolError: the stream is ending.
        """
        ...


class _Ask(msgspec.Struct, tag="ask"):
    """To the worker that has the stream: renew it, and answer to this name."""

    number: int
    answer_to: str
    stream: str
    identity: Identity


class _Answer(msgspec.Struct, tag="answer"):
    """What came of it: nothing but the number when that was well."""

    number: int
    detail: str = ""
    code: str = ""
    status: int = 0


_decoder: msgspec.msgpack.Decoder[_Ask | _Answer] = msgspec.msgpack.Decoder(_Ask | _Answer)


class Leases:
    """The event streams of this process that can be renewed, by their names, and the way to those of others.

    Only the account that has opened a stream can renew it. Tokens without a subject are of no account, so for those the
    name is all that tells one from another: it cannot be guessed.

    Args:
        folder: where the processes of this server find each other; None for one that is alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._own = secrets.token_hex(_NAME_BYTES)
        self._streams: dict[str, Leased] = {}
        self._folder = folder
        self._post: _Post | None = None
        self._asked: dict[int, tuple[trio.Event, list[_Answer]]] = {}
        self._asking = trio.CapacityLimiter(_ASKED_AT_ONCE)
        self._number = 0

    def __len__(self) -> int:
        return len(self._streams)

    def new_name(self) -> str:
        """A name for a stream."""
        return self._own + secrets.token_hex(_STREAM_BYTES)

    def add(self, name: str, stream: Leased) -> None:
        """From now on the stream can be renewed."""
        self._streams[name] = stream

    def discard(self, name: str) -> None:
        """From now on it cannot, if it could."""
        self._streams.pop(name, None)

    async def renew(self, name: str, identity: Identity) -> None:
        """Renews a stream, wherever it is. Cancelling leaves open whether it was renewed.

        Raises:
            RemoteProtocolError: there is none of that name, or it cannot be renewed with this identity.
            Unavailable: another process has it, and does not answer.
        """
        stream = self._streams.get(name)
        if stream is not None:
            stream.renew(identity)
        elif self._post is None or name.startswith(self._own):
            raise _unknown()
        else:
            await self._ask(self._post, name, identity)

    async def _ask(self, post: "_Post", name: str, identity: Identity) -> None:
        self._number += 1
        number, answered = self._number, trio.Event()
        answers: list[_Answer] = []
        self._asked[number] = (answered, answers)
        try:
            with trio.move_on_after(_ANSWER_SECONDS):
                async with self._asking:
                    if not await post.send(name[: 2 * _NAME_BYTES], _Ask(number, self._own, name, identity)):
                        raise _unknown()
                    await answered.wait()
        finally:
            del self._asked[number]
        if not answers:
            raise Unavailable("the worker that has the stream does not answer", code="worker-busy")
        (answer,) = answers
        if answer.status:
            raise RemoteProtocolError(answer.detail, code=answer.code, status=answer.status)

    async def serve(self) -> None:
        """Lets others renew streams of this process, and hears what they answer, until cancelled."""
        if self._folder is None:
            return
        with _Post(self._folder, self._own) as post:
            self._post = post
            try:
                async with trio.open_nursery() as nursery:
                    while True:
                        message = await post.receive()
                        if isinstance(message, _Ask):
                            # Not here: two who wait for room with each other would both read nothing.
                            nursery.start_soon(self._answer, post, message)
                        elif message is not None:
                            self._hear(message)
                        await trio.lowlevel.checkpoint()
            finally:
                self._post = None

    async def _answer(self, post: "_Post", message: _Ask) -> None:
        with trio.move_on_after(_ANSWER_SECONDS):
            await post.send(message.answer_to, self._answer_to(message))

    def _hear(self, message: _Answer) -> None:
        if message.number in self._asked:
            answered, answers = self._asked[message.number]
            answers[:] = [message]
            answered.set()

    def _answer_to(self, message: _Ask) -> _Answer:
        try:
            stream = self._streams.get(message.stream)
            if stream is None:
                raise _unknown()
            stream.renew(message.identity)
        except RemoteProtocolError as error:
            return _Answer(message.number, error.detail, error.code, error.status)
        return _Answer(message.number)


def _unknown() -> RemoteProtocolError:
    detail = "there is no such stream; it has ended, or it is another server's"
    return RemoteProtocolError(detail, code="stream-unknown", status=404)


class _Post:
    """The socket of one process.

    Args:
        folder: where it is.
        name: its name there.

    Raises:
        OSError: there can be no socket there.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        # The address of a Unix socket has 107 bytes, and folders may be deeper than that: so this way round.
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_MESSAGE_BYTES)
            self._socket.bind(self._address(name))
        except OSError:
            self._close()
            raise

    def __enter__(self) -> "_Post":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._file(self._name), dir_fd=self._folder)
        self._close()

    async def send(self, name: str, message: _Ask | _Answer) -> bool:
        """Sends when there is room; returns whether anybody has that name and took it. Cancelling sends nothing."""
        if not name.isalnum():
            return False
        data = msgspec.msgpack.encode(message)
        while True:
            await trio.lowlevel.checkpoint()
            try:
                self._socket.sendto(data, self._address(name))
            except BlockingIOError:
                # Somebody else's queue, of which poll(2) tells nothing without a connection.
                await trio.sleep(_PAUSE_SECONDS)
            except OSError:
                return False
            else:
                return True

    async def receive(self) -> _Ask | _Answer | None:
        """The next message; None for one that is none."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return _decoder.decode(self._socket.recv(_MAX_MESSAGE_BYTES))
            except BlockingIOError:
                continue
            except msgspec.MsgspecError:
                return None

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._folder}/{self._file(name)}"

    @staticmethod
    def _file(name: str) -> str:
        return f"lease-{name}.sock"

    def _close(self) -> None:
        self._socket.close()
        os.close(self._folder)
