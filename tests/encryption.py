"""Certificates for tests, and the client's side of TLS on a socket, with a hand on each record."""

import atexit
import hashlib
import hmac
import socket
import ssl
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Self

import trio
import trustme
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509 import load_pem_x509_certificate

#: Types of records (RFC 8446 5.1).
ALERT, HANDSHAKE, APPLICATION_DATA = 21, 22, 23
#: "New keys from here on, on your side as well" (RFC 8446 4.6.3).
KEY_UPDATE = bytes([24, 0, 0, 1, 1])


@cache
def authority() -> trustme.CA:
    """Who signs the certificates of this run."""
    return trustme.CA()


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def authority_file() -> str:
    """What a client is told to trust."""
    path = _folder() / "authority.pem"
    authority().cert_pem.write_to_path(path)
    return str(path)


@cache
def certificate_file() -> str:
    """A server's certificate and key in one file."""
    path = _folder() / "server.pem"
    authority().issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)


def write_certificate(
    path: Path, *names: str, by: trustme.CA | None = None, begins: float | None = None, expires: float | None = None
) -> int:
    """Puts another certificate with its key into a file, in the place of what is there; returns its serial number.

    Args:
        path: the file.
        names: for which it is; the default is this machine.
        by: who signs it.
        begins: in so many days.
        expires: in so many days.
    """
    found = (by or authority()).issue_cert(
        *(names or ("127.0.0.1", "localhost")), not_before=_in_days(begins), not_after=_in_days(expires)
    )
    new = path.with_suffix(".new")
    found.private_key_and_cert_chain_pem.write_to_path(new)
    new.rename(path)
    return load_pem_x509_certificate(found.cert_chain_pems[0].bytes()).serial_number


def _in_days(days: float | None) -> datetime | None:
    return None if days is None else datetime.now(UTC) + timedelta(days=days)


def client_certificate(
    *names: str, called: str | None = None, by: trustme.CA | None = None, expires: float | None = None
) -> ssl.SSLContext:
    """A context that trusts this run's servers, and shows them a certificate.

    Args:
        names: for which it is.
        called: its common name.
        by: who signs it.
        expires: in so many days.
    """
    context = client_context()
    found = (by or authority()).issue_cert(*names, common_name=called, not_after=_in_days(expires))
    found.configure_cert(context)
    return context


def tls_section() -> dict[str, str]:
    """The section ``tls`` of a configuration."""
    return {"certificate": certificate_file()}


def client_context(*protocols: str) -> ssl.SSLContext:
    """A context that trusts this run's servers.

    Args:
        protocols: offered by ALPN.
    """
    context = ssl.create_default_context(cafile=authority_file())
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def client_hello() -> bytes:
    """What TLS begins with."""
    outgoing = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


class Truncated(OSError):
    """The connection ended, but not TLS: anybody in between could have cut it."""


class TlsSocket:
    """A connected socket with TLS on it, with the methods of a socket that ``Wire`` uses.

    Args:
        sock: connected.
        context: what is offered and trusted.
        session: to be resumed.

    Attributes:
        raw: the socket.
        tls: OpenSSL's side of it.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        context: ssl.SSLContext | None = None,
        *,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.raw = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._sending = trio.Lock()
        self.tls = (context or client_context()).wrap_bio(
            self._incoming, self._outgoing, server_hostname="127.0.0.1", session=session
        )

    @classmethod
    async def over(cls, sock: trio.socket.SocketType, context: ssl.SSLContext | None = None) -> Self:
        """The socket behind the handshake."""
        self = cls(sock, context)
        await self.shake_hands()
        await self.flush()
        return self

    async def shake_hands(self) -> None:
        """The handshake; the last that is to be sent of it is left for ``flush``."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                await self._read()
            else:
                return

    def seal(self, data: bytes) -> None:
        """Encrypts it as one record, for ``flush``."""
        assert self.tls.write(data) == len(data)

    def sealed(self) -> bytes:
        """What is to be sent, instead of ``flush``."""
        return self._outgoing.read()

    async def flush(self) -> None:
        """Sends what was encrypted."""
        async with self._sending:
            rest = memoryview(self._outgoing.read())
            while rest:
                rest = rest[await self.raw.send(rest) :]

    async def _read(self) -> None:
        data = await self.raw.recv(65536)
        if not data:
            raise Truncated("ended without close_notify")
        self._incoming.write(data)

    async def send(self, data: bytes | memoryview) -> int:
        size = self.tls.write(data)
        await self.flush()
        return size

    async def recv(self, size: int) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                await self.flush()
                await self._read()

    def say_end(self) -> None:
        """Sends close_notify, and nothing else."""
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        with suppress(OSError):
            self.raw._sock.send(self._outgoing.read())

    def shutdown(self, how: int) -> None:
        self.say_end()
        self.raw.shutdown(how)

    def close(self) -> None:
        self.say_end()
        self.raw.close()

    def fileno(self) -> int:
        return self.raw.fileno()

    def setsockopt(self, *arguments: int | bytes) -> None:
        self.raw.setsockopt(*arguments)


class Sealer:
    """Records of TLS 1.3 by hand, in place of OpenSSL, which has no word for some that may come.

    Args:
        secret: the client's first for application data, as a key log has it; nothing must have been sent with it.
        cipher: the suite's name.
    """

    def __init__(self, secret: bytes, cipher: str) -> None:
        assert cipher == "TLS_AES_256_GCM_SHA384", "OpenSSL's first choice"
        self._use(secret)

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(self._derived(b"key", 32))
        self._iv = self._derived(b"iv", 12)
        self._count = 0

    def _derived(self, label: bytes, size: int) -> bytes:
        # HKDF-Expand-Label (RFC 8446 7.1) for what one block of HMAC is enough for.
        label = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return hmac.digest(self._secret, info + b"\1", hashlib.sha384)[:size]

    def record(self, data: bytes, kind: int = APPLICATION_DATA) -> bytes:
        """One record."""
        inner = data + bytes([kind])
        head = bytes([APPLICATION_DATA, 3, 3]) + (len(inner) + 16).to_bytes(2, "big")
        nonce = int.from_bytes(self._iv, "big") ^ self._count
        self._count += 1
        return head + self._key.encrypt(nonce.to_bytes(12, "big"), inner, head)

    def key_update(self) -> bytes:
        """A record with a key update; what follows it is under the new key."""
        record = self.record(KEY_UPDATE, HANDSHAKE)
        self._use(self._derived(b"traffic upd", 48))
        return record


def logging_secrets(context: ssl.SSLContext, file: Path) -> ssl.SSLContext:
    """Lets the context write its secrets to a file, for a ``Sealer``."""
    context.keylog_filename = str(file)
    return context


def sealer_of(sock: TlsSocket, file: Path) -> Sealer:
    """What seals in place of a socket that has just shaken hands, and has sent nothing yet."""
    (secret,) = [line.split()[2] for line in file.read_text().splitlines() if "CLIENT_TRAFFIC_SECRET_0" in line]
    cipher = sock.tls.cipher()
    assert cipher is not None
    return Sealer(bytes.fromhex(secret), cipher[0])


async def connected(url: str) -> trio.socket.SocketType:
    """A socket connected to the URL's port on this machine, without TLS."""
    sock = trio.socket.socket(socket.AF_INET)
    try:
        await sock.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    except BaseException:
        sock.close()
        raise
    return sock
