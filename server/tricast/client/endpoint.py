"""Where the server is: its URL taken apart, and a byte stream to it.

The edge where errors of name resolution, of connecting and of TLS handshakes enter.
"""

import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import trio

from tricast.client.failures import ClientError, Lost
from tricast.client.settings import ClientSettings

Loaded = TypeVar("Loaded")

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Endpoint(NamedTuple):
    """A server, as its URL names it.

    Attributes:
        is_secure: whether to speak TLS.
        host: name or address, without brackets.
        port: the port.
        authority: host and port as the Host header has them.
        prefix: the path under which a proxy serves it, without a slash at its end.
    """

    is_secure: bool
    host: str
    port: int
    authority: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Takes the URL of a server apart.

        Raises:
            ClientError: it is not an ``http`` or ``https`` URL of a server.
        """
        expected = "expected the URL of a server, such as http://127.0.0.1:8080"
        try:
            parts = urlsplit(url)
            port = parts.port
            host = (parts.hostname or "").encode("idna").decode()
        except ValueError as error:
            raise ClientError(f"{expected}; found {url!r}: {error}") from None
        if parts.scheme not in _DEFAULT_PORTS or not host or parts.query or parts.fragment or parts.username:
            raise ClientError(f"{expected}; found {url!r}")
        default = _DEFAULT_PORTS[parts.scheme]
        port = default if port is None else port
        bracketed = f"[{host}]" if ":" in host else host
        authority = bracketed if port == default else f"{bracketed}:{port}"
        return cls(parts.scheme == "https", host, port, authority, quote(parts.path.rstrip("/"), safe="/%"))

    def target(self, path: str, query: Iterable[tuple[str, str]]) -> str:
        """The request target of a path on this server."""
        written = urlencode(list(query))
        return f"{self.prefix}{path}?{written}" if written else f"{self.prefix}{path}"

    def __str__(self) -> str:
        return f"{'https' if self.is_secure else 'http'}://{self.authority}{self.prefix}"


class Certificates(NamedTuple):
    """Files in PEM format for TLS; empty where there is none.

    Attributes:
        cert: this client's certificate, with the chain behind it.
        key: its key; empty where that is in the same file.
        cacert: authorities that vouch for the server, in the place of those of the system.
    """

    cert: str = ""
    key: str = ""
    cacert: str = ""

    def context(self) -> ssl.SSLContext:
        """What a client shakes hands with.

        Raises:
            ClientError: a file cannot be used.
        """
        context = _with_files([self.cacert], lambda: ssl.create_default_context(cafile=self.cacert or None))
        if self.cert:
            # A key with a passphrase is refused: OpenSSL would ask the terminal for it.
            load = partial(context.load_cert_chain, self.cert, self.key or None, password=lambda: b"")
            _with_files([self.cert, self.key], load)
        return context


def settings_with(certificates: Mapping[str, str]) -> ClientSettings:
    """The settings of a client with these ``Certificates``, by their names.

    Raises:
        ClientError: a file cannot be used.
    """
    if not any(certificates.values()):
        return ClientSettings()
    return ClientSettings(ssl_context=Certificates(**certificates).context())


def _with_files(files: Iterable[str], load: Callable[[], Loaded]) -> Loaded:
    named = list(filter(None, files))
    try:
        for file in named:
            with Path(file).open("rb"):  # OpenSSL does not say which one it cannot read
                pass
        return load()
    except ssl.SSLError as error:
        reason = (error.reason or "").replace("_", " ").lower() or "not in PEM format"
        raise ClientError(f"cannot use {' and '.join(named)}: {reason}") from None
    except OSError as error:
        raise ClientError(f"cannot read {error.filename}: {_reason(error)}") from None


#: Opens a byte stream to a server, mapping errors to ``Lost`` and ``ClientError``.
Dial = Callable[[Endpoint, ClientSettings], Awaitable[trio.abc.Stream]]


async def dial(endpoint: Endpoint, settings: ClientSettings) -> trio.abc.Stream:
    """Connects to the server, and shakes hands when it is a secure one. Cancelling it leaves nothing open.

    Raises:
        Lost: it cannot be reached, or did not take the connection in time.
        ClientError: its certificate cannot be trusted.
    """
    where = f"cannot connect to {endpoint}"
    with deadline(settings.connect_timeout, Lost(f"{where}: timed out")):
        try:
            stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
        except OSError as error:
            raise Lost(f"{where}: {_in_words(error)}") from error
        return await _secure(stream, endpoint, settings, where) if endpoint.is_secure else stream


async def _secure(
    stream: trio.SocketStream, endpoint: Endpoint, settings: ClientSettings, where: str
) -> trio.abc.Stream:
    context = settings.ssl_context or ssl.create_default_context()
    secure = trio.SSLStream(stream, context, server_hostname=endpoint.host, https_compatible=True)
    try:
        await _shake_hands(secure, where)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secure


async def _shake_hands(secure: trio.SSLStream[trio.SocketStream], where: str) -> None:
    try:
        await secure.do_handshake()
    except (trio.BrokenResourceError, OSError) as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise ClientError(f"{where}: its certificate is not trusted: {cause.verify_message}") from error
        raise Lost(f"{where}: the TLS handshake failed") from error


@contextmanager
def deadline(seconds: float, failure: Exception) -> Iterator[None]:
    """Raises the failure when the block takes longer than that."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise failure


def _in_words(error: OSError) -> str:
    # Where a name has several addresses, Trio raises one error for all of them, with theirs as its cause.
    cause = error.__cause__ or error
    errors = cause.exceptions if isinstance(cause, BaseExceptionGroup) else (cause,)
    return ", ".join(dict.fromkeys(_reason(each) for each in errors))


def _reason(error: BaseException) -> str:
    if isinstance(error, socket.gaierror):
        return (error.strerror or str(error)).lower()
    # Not strerror, which Trio makes longer by the address.
    return os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
