"""TLS on a connection: what goes out is encrypted, what comes in decrypted, and all else is as without it.

The only place that knows the ``ssl`` module. OpenSSL works on memory (``ssl.MemoryBIO``), so that sending stays one
non-blocking call, and what the kernel does not take is kept encrypted as the tail.
"""

import socket
import ssl
from contextlib import suppress

import trio

from tricast.config import TlsSection
from tricast.connection import RECEIVE_BYTES, Connection
from tricast.errors import ConfigError, ConfigProblem, ConnectionLost
from tricast.sent import Sent
from tricast.wire.http1 import CLOSE, END_OF_HEAD, encode_head, encode_headers, problem

_PROBLEM = problem(400, "this port speaks HTTPS", code="https-required")
#: For clients that speak plain HTTP to it: an alert of TLS would tell them nothing.
_SPOKE_HTTP = encode_head(400, encode_headers(_PROBLEM.headers), CLOSE, END_OF_HEAD, _PROBLEM.body)


def load_context(config: TlsSection) -> ssl.SSLContext | None:
    """What all connections share of TLS; None where none is configured.

    Raises:
        ConfigError: the certificate or the key cannot be used.
    """
    if not config.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that asks for new keys in the middle costs the server more than itself (and TLS 1.3 has no such thing).
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    for key, file in (("certificate", config.certificate), ("key", config.key)):
        try:
            if file:
                with open(file, "rb"):  # noqa: PTH123 - ssl does not say which of the two files it could not read
                    pass
        except OSError as error:
            raise ConfigError([ConfigProblem("configuration", f"tls.{key}", f"{file}: {error.strerror}")]) from None
    try:
        context.load_cert_chain(config.certificate, config.key or None, password=_no_password)
    except (OSError, ValueError) as error:
        # OpenSSL's words are few: [SSL: KEY_VALUES_MISMATCH] key values mismatch (_ssl.c:3900)
        words = str(getattr(error, "reason", None) or error).lower().replace("_", " ")
        message = f"the certificate in {config.certificate} cannot be used with its key: {words}"
        raise ConfigError([ConfigProblem("configuration", "tls.certificate", message)]) from None
    return context


def _no_password() -> str:
    """Called for an encrypted key; OpenSSL would ask on the terminal, where a server has nobody to answer."""
    raise ValueError("the key is encrypted, and a server has nobody to ask for its password")


class TlsConnection(Connection):
    """A client's socket with TLS on it. See ``Connection``.

    Args:
        sock: connected and non-blocking.
        peer: the client's address as text.
        context: certificate, key and what may be negotiated.
        write_timeout: as without TLS.
        handshake_timeout: seconds that the handshake may take.
    """

    __slots__ = ("_handshake_timeout", "_incoming", "_outgoing", "_tls")

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        context: ssl.SSLContext,
        *,
        write_timeout: float,
        handshake_timeout: float,
    ) -> None:
        super().__init__(sock, peer, write_timeout=write_timeout)
        self._handshake_timeout = handshake_timeout
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def open(self) -> None:
        """See ``Connection.open``: the handshake. Cancelling leaves a connection that can only be closed."""
        with trio.move_on_after(self._handshake_timeout) as scope:
            await self._shake_hands()
        if scope.cancelled_caught:
            raise ConnectionLost(f"no TLS handshake within {self._handshake_timeout:g} s", reason="tls")

    async def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_outgoing()
            except ssl.SSLError as error:
                if error.reason == "HTTP_REQUEST":
                    super().send_now(_SPOKE_HTTP)
                else:
                    await self._send_outgoing()  # the alert, which tells the client why
                raise _failed(error) from None
            else:
                await self._send_outgoing()  # the last of the handshake, and session tickets
                return
            sealed = await super().receive()
            if not sealed:
                raise ConnectionLost("left during the TLS handshake", reason="left")
            self._incoming.write(sealed)

    async def receive(self) -> bytes:
        """See ``Connection.receive``."""
        if self._held is not None:
            await self.send(b"")
        while (data := self._opened()) is None:
            self._take(await super().receive())
            # An answer of TLS itself, to a key update; where there is no room, it goes out before what is sent next.
            if self._outgoing.pending and not self.has_tail:
                super().send_now(self._outgoing.read())
        return data

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
            return Sent.NOTHING
        if self._held is not None:
            data = b"".join((*self._held, data))
            self._held = None
        return super().send_now(self._sealed(data))

    def shutdown_write(self) -> None:
        """See ``Connection.shutdown_write``: says in TLS as well that this is the end, and not a cut (RFC 8446 6.1)."""
        with suppress(ssl.SSLError):  # it would also wait for the peer's word, which nobody needs
            self._tls.unwrap()
        try:
            if self._outgoing.pending and not self.has_tail and not self.is_closed:
                super().send_now(self._outgoing.read())
        except ConnectionLost:
            return
        super().shutdown_write()

    def _take(self, sealed: bytes) -> None:
        if sealed:
            self._incoming.write(sealed)
        else:
            self._incoming.write_eof()

    def _opened(self) -> bytes | None:
        """What was decrypted; empty at the end, None when more is needed.

        An end without TLS's own is an end all the same: HTTP and WebSocket know by themselves what is complete.
        """
        try:
            return self._tls.read(RECEIVE_BYTES)
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""
        except ssl.SSLError as error:
            raise _failed(error) from None

    def _sealed(self, data: bytes) -> bytes:
        try:
            written = self._tls.write(data) if data else 0
            if written < len(data):  # OpenSSL takes one record at a time
                view = memoryview(data)
                while written < len(data):
                    written += self._tls.write(view[written:])
        except ssl.SSLError as error:
            raise _failed(error) from None
        return self._outgoing.read()

    async def _send_outgoing(self) -> None:
        if self._outgoing.pending:
            super().send_now(self._outgoing.read())
            await self.drain()


def _failed(error: ssl.SSLError) -> ConnectionLost:
    words = (error.reason or str(error)).lower().replace("_", " ")
    return ConnectionLost(f"TLS failed: {words}", reason="tls")
