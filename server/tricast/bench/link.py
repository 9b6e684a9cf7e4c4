"""One non-blocking connection of a generator, plain or TLS. The edge where errors of sockets and of TLS enter.

Knows nothing of what is said over it.
"""

import errno
import os
import socket
import ssl
from typing import Any, NamedTuple

from tricast.bench.engine import READABLE, WRITABLE, Engine, Party

_RECEIVE_BYTES = 128 * 2**10
#: Connections from each loopback address: well under the 28,000 ports that the kernel hands out unless told otherwise.
_PER_SOURCE = 10_000
#: Not in the socket module before Python 3.12 (linux/in.h). With it, the port is chosen when the destination is known,
#: so that two addresses may use the same one.
_BIND_ADDRESS_NO_PORT = 24


class LinkLost(Exception):
    """The connection could not be made, broke or was closed. The message is one of a few phrases, to count by."""


class Target(NamedTuple):
    """Where the server is.

    Attributes:
        family: of the address.
        address: as ``socket.connect`` takes it.
        host: the name that a certificate has to be for.
        ssl_context: for TLS, or None.
    """

    family: int
    address: tuple[Any, ...]
    host: str
    ssl_context: ssl.SSLContext | None

    def source(self, index: int) -> str | None:
        """The address to connect from, for the connection with this number; None leaves it to the kernel.

        To one address and port there are only as many connections from another address as that one has ports. All of
        127.0.0.0/8 is this machine.
        """
        if self.family != socket.AF_INET or not str(self.address[0]).startswith("127."):
            return None
        turn = index // _PER_SOURCE
        return f"127.0.{turn // 250}.{turn % 250 + 1}"


class Link:
    """A connection, from its first packet on.

    Args:
        engine: tells when it can go on.
        party: whom to tell.
        target: where to.
        index: the number of the connection, which decides where from.

    Attributes:
        is_open: whether bytes may be sent and received.

    Raises:
        LinkLost: it cannot be made.
    """

    __slots__ = ("_engine", "_is_secure", "_mask", "_sock", "_tail", "_target", "is_open")

    def __init__(self, engine: Engine, party: Party, target: Target, index: int) -> None:
        self._engine = engine
        self._target = target
        self._is_secure = False
        self._tail = b""
        self._mask = WRITABLE
        self.is_open = False
        try:
            self._sock: socket.socket | ssl.SSLSocket = socket.socket(target.family, socket.SOCK_STREAM)
        except OSError as error:
            raise _lost(error) from None
        try:
            self._connect(target, index)
        except OSError as error:
            self._sock.close()
            raise _lost(error) from None
        engine.watch(self._sock.fileno(), party, self._mask)

    def _connect(self, target: Target, index: int) -> None:
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        source = target.source(index)
        if source is not None:
            self._sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            self._sock.bind((source, 0))
        code = self._sock.connect_ex(target.address)
        if code != errno.EINPROGRESS:
            _raise_for(code)

    def go_on(self) -> bool:
        """Goes on with connecting and with the TLS handshake; returns whether that is done.

        Raises:
            LinkLost: it failed.
        """
        try:
            if not self._is_secure:
                _raise_for(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            if self._target.ssl_context is not None and not self._shake_hands(self._target.ssl_context):
                return False
        except OSError as error:
            raise _lost(error) from None
        self.is_open = True
        self._want(READABLE)
        return True

    def _shake_hands(self, context: ssl.SSLContext) -> bool:
        if not self._is_secure:
            self._is_secure = True
            # The descriptor stays the same.
            self._sock = context.wrap_socket(
                self._sock, server_hostname=self._target.host, do_handshake_on_connect=False
            )
        assert isinstance(self._sock, ssl.SSLSocket)
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            self._want(READABLE)
            return False
        except ssl.SSLWantWriteError:
            self._want(WRITABLE)
            return False
        return True

    def receive(self) -> bytes:
        """What has come, and nothing when that is nothing.

        Raises:
            LinkLost: the server has closed or reset the connection.
        """
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
            if self._is_secure:
                data += self._pending()
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        except OSError as error:
            raise _lost(error) from None
        if not data:
            raise LinkLost("closed by the server")
        return data

    def _pending(self) -> bytes:
        """What TLS has decrypted already, which epoll does not see."""
        assert isinstance(self._sock, ssl.SSLSocket)
        data = b""
        while more := self._sock.pending():
            data += self._sock.recv(more)
        return data

    def send(self, data: bytes) -> None:
        """Sends, and keeps what there is no room for now.

        Raises:
            LinkLost: the connection is broken.
        """
        self._tail += data
        self.flush()

    def flush(self) -> None:
        """Sends on what is kept.

        Raises:
            LinkLost: the connection is broken.
        """
        try:
            while self._tail:
                self._tail = self._tail[self._sock.send(self._tail) :]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            raise _lost(error) from None
        self._want(READABLE | WRITABLE if self._tail else READABLE)

    def close(self) -> None:
        """Closes the connection."""
        self._engine.forget(self._sock.fileno())
        self._sock.close()

    def _want(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._engine.change(self._sock.fileno(), mask)


def _raise_for(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


def _lost(error: OSError) -> LinkLost:
    if isinstance(error, ssl.SSLCertVerificationError):
        return LinkLost(f"certificate not trusted: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return LinkLost("TLS failed")
    return LinkLost(os.strerror(error.errno).lower() if error.errno else "connection failed")
