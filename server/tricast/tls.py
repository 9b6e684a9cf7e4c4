"""TLS on a connection: what goes out is encrypted, what comes in decrypted, and all else is as without it.

OpenSSL works on memory (``ssl.MemoryBIO``), so that sending stays one non-blocking call, and what the kernel does not
take is kept encrypted as the tail. Knows nothing of where certificates come from.
"""

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import trio

from tricast.access.identity import Certified
from tricast.connection import Connection, LetGo, at_once
from tricast.errors import ConnectionLost
from tricast.sent import NOTHING, Sent
from tricast.wire.http1 import encode_response, problem

#: For clients that speak plain HTTP to it: an alert of TLS would tell them nothing.
_SPOKE_HTTP = encode_response(problem(400, "this port speaks HTTPS", code="https-required", closes=True))
#: The most that a record holds (RFC 8446 5.1), and so the most that one call decrypts.
_RECORD_BYTES = 2**14
#: What is encrypted at a time. The memory that OpenSSL writes to never shrinks (BIO_s_mem(3)): all at once, each
#: subscriber that ever got an event of 300 kB would keep 340 KiB.
_SEALED_BYTES = 2**13


class TlsConnection(Connection):
    """A client's socket with TLS on it. See ``Connection``.

    Args:
        sock: connected and non-blocking.
        peer: the client's address as text.
        context: certificate, key and what may be negotiated.
        write_timeout: as without TLS; so are the others of ``Connection``.
        handshake_timeout: seconds that the handshake may take.
        turn: waited for before each step of the handshake that the client has asked for; the default is not to wait.

    Attributes:
        has_begun: whether the client has sent anything.
    """

    # All of it is decrypted at once, and in it may be key updates by the hundred, of 15 µs each.
    _receive_bytes = _RECORD_BYTES

    __slots__ = ("_handshake_timeout", "_incoming", "_is_cut", "_outgoing", "_tls", "_turn", "has_begun")

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        context: ssl.SSLContext,
        *,
        write_timeout: float,
        write_rate: int = 0,
        max_unsent: int = 0,
        let_go: LetGo = at_once,
        handshake_timeout: float,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(
            sock, peer, write_timeout=write_timeout, write_rate=write_rate, max_unsent=max_unsent, let_go=let_go
        )
        self._handshake_timeout = handshake_timeout
        self._turn = turn
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_cut = False
        self.has_begun = False

    async def open(self) -> None:
        """See ``Connection.open``: the handshake. Cancelling leaves a connection that can only be closed."""
        with trio.move_on_after(self._handshake_timeout) as scope:
            await self._shake_hands()
        if scope.cancelled_caught:
            raise ConnectionLost(f"no TLS handshake within {self._handshake_timeout:g} s", reason="tls-timeout")

    async def _shake_hands(self) -> None:
        first = b""
        failure: ssl.SSLError | None = None
        while True:
            try:
                self._tls.do_handshake()
                is_done = True
            except ssl.SSLWantReadError:
                is_done = False
            except ssl.SSLError as error:
                failure = error
                break
            await self._send_outgoing()  # of the handshake, with session tickets at its end
            if is_done:
                return
            sealed = await super().receive()
            if not sealed:
                raise ConnectionLost("left during the TLS handshake", reason="left")
            self.has_begun = True
            first = first or sealed[:1]
            self._incoming.write(sealed)
            if self._turn is not None:
                await self._turn()
        await self._refuse_handshake(first)
        raise _failed(failure)

    async def _refuse_handshake(self, first: bytes) -> None:
        # No record of TLS begins with a letter, and every request of HTTP does (RFC 8446 5.1, RFC 9110 9.1).
        if first.isalpha():
            super().send_now(_SPOKE_HTTP)
        else:
            await self._send_outgoing()  # the alert, which tells the client why
        await self.linger()

    @property
    def certified(self) -> Certified | None:
        """See ``Connection.certified``. Made from the certificate each time, which would be memory to keep."""
        if self._tls.context.verify_mode is ssl.CERT_NONE or not (shown := self._tls.getpeercert()):
            return None
        return Certified(_name_in(shown), ssl.cert_time_to_seconds(str(shown["notAfter"])))

    @property
    def descriptor(self) -> int | None:
        """See ``Connection.descriptor``."""
        return None

    async def receive(self) -> bytes:
        """See ``Connection.receive``."""
        await self.flush()
        while True:
            # What TLS itself answers to a key update goes out before more is read: who asks for many and takes no
            # answer must not make them pile up here.
            if self._outgoing.pending:
                await self._send_outgoing()
            self._check_open()
            data = self._opened()
            if data is not None:
                return data
            if not self._outgoing.pending:
                self._take(await super().receive())

    def receive_now(self) -> bytes | None:
        """See ``Connection.receive_now``."""
        data = self._opened()
        if data is None and (sealed := super().receive_now()) is not None:
            self._take(sealed)
            data = self._opened()
        return data

    def send_now(self, data: bytes) -> Sent:
        """See ``Connection.send_now``."""
        if self._tail is not None:
            return NOTHING
        if self._held is not None:
            data = self._with_held(data)
        return super().send_now(self._sealed(data))

    async def finish(self) -> None:
        """See ``Connection.finish``: says in TLS as well that this is the end, and not a cut (RFC 8446 6.1)."""
        await self.flush()
        self._seal_end()
        await self._send_outgoing()
        self.shutdown_write()

    def close(self) -> None:
        """See ``Connection.close``: without waiting, says the end or why it failed, unless it is in the middle."""
        try:
            if not self.is_closed and self._tail is None:
                self._held = None
                self._seal_end()
                if self._outgoing.pending:
                    with suppress(ConnectionLost):
                        super().send_now(self._outgoing.read())
        finally:
            super().close()

    def _seal_end(self) -> None:
        # A second time adds nothing. It would also wait for the peer's word, which nobody needs; and in place of it
        # stands an alert where TLS has failed.
        with suppress(ssl.SSLError):
            self._tls.unwrap()

    def _take(self, sealed: bytes) -> None:
        if sealed:
            self._incoming.write(sealed)
        else:
            # Not told to OpenSSL, which would take it for an attack, and send an alert behind the answer.
            self._is_cut = True

    def _opened(self) -> bytes | None:
        """All that can be decrypted; empty at the end, None when more is needed.

        An end without TLS's own is an end all the same: HTTP and WebSocket know by themselves what is complete.
        """
        pieces = []
        try:
            pieces.append(self._tls.read(_RECORD_BYTES))
            while pieces[-1] and self._incoming.pending:  # behind the end may be anything
                pieces.append(self._tls.read(_RECORD_BYTES))
        except ssl.SSLWantReadError:
            if self._is_cut and not pieces:
                return b""
        except ssl.SSLError as error:
            if pieces:  # it comes again in the next call
                return b"".join(pieces)
            if isinstance(error, ssl.SSLZeroReturnError):
                return b""
            raise _failed(error) from None
        return b"".join(pieces) if pieces else None

    def _sealed(self, data: bytes) -> bytes:
        try:
            if len(data) <= _SEALED_BYTES:
                if data:
                    self._tls.write(data)  # all of it: memory never lacks room (SSL_write(3))
                return self._outgoing.read()
            return b"".join(self._sealed_in_pieces(memoryview(data)))
        except ssl.SSLError as error:
            raise _failed(error) from None

    def _sealed_in_pieces(self, data: memoryview) -> Iterator[bytes]:
        for begin in range(0, len(data), _SEALED_BYTES):
            self._tls.write(data[begin : begin + _SEALED_BYTES])
            yield self._outgoing.read()

    async def _send_outgoing(self) -> None:
        """Sends what TLS itself has to say, behind whatever still waits."""
        while self._outgoing.pending:
            await self.drain()
            self.send_now(b"")  # which takes along what is held: that must not go out as it is
        await self.drain()


def _name_in(certificate: Mapping[str, Any]) -> str:
    """What a certificate calls its subject; the rest of it where it has no name."""
    common = [value for part in certificate["subject"] for kind, value in part if kind == "commonName"]
    others = [value for _, value in certificate.get("subjectAltName", ())]
    return str(next(iter((*common, *others)), certificate["serialNumber"]))


def _failed(error: ssl.SSLError) -> ConnectionLost:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionLost(f"the client's certificate: {error.verify_message}", reason="client-certificate")
    words = (error.reason or str(error)).lower().replace("_", " ")
    return ConnectionLost(f"TLS failed: {words}", reason="tls")
