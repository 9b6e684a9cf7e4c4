"""Which Redis server has a key, and connections to it. Maps what coredis raises to ``LogUnavailable``.

Knows nothing of what a log is made of. For every connection the server is looked for anew: after a failover it is
another one.
"""

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import gaierror
from typing import Any

import anyio
import trio
from coredis import Redis
from coredis.connection import TCPConnection, TCPLocation
from coredis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - the library's
    RedisError,
    ResponseError,
)
from coredis.pool import ConnectionPool
from coredis.retry import NoRetryPolicy

from tricast.config import LogSection
from tricast.errors import ConfigError, ConfigProblem, LogUnavailable
from tricast.log_urls import Node, RedisUrl

#: What using a connection of coredis's may raise, when it is lost and when the server refuses.
ERRORS = (RedisError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)

#: What the user can do something about, in words.
_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (AuthenticationError, "Redis refused the user name or the password in log.url"),
    (AuthorizationError, "the user in log.url lacks a right in Redis: {}"),
    (BusyLoadingError, "Redis is loading its data"),
    (ResponseError, "Redis answered: {}"),
    (TimeoutError, "Redis does not answer"),
    (gaierror, "the name of the Redis server is not known"),
)


class Servers:
    """The servers of a log.

    Args:
        url: where they are.
        config: deadlines, and the files for TLS.

    Raises:
        ConfigError: a file for TLS cannot be used.
    """

    def __init__(self, url: RedisUrl, config: LogSection) -> None:
        self._url = url
        self._timeout = config.timeout
        self._tls = _tls_context(config) if url.has_tls else None

    @asynccontextmanager
    async def connect(self, key: bytes, *, block: float = 0.0) -> AsyncIterator[Redis[bytes]]:
        """A connection to the server that has the key and takes what is written to it.

        It is one connection, and no other one is made: when it is lost, or the key is elsewhere, every command fails.
        What commands raise leaves the scope as LogUnavailable.

        Args:
            key: of a log.
            block: seconds for which commands are asked to wait, so that their answers may come so much later.

        Raises:
            LogUnavailable: there is no such server now, or the connection was lost.
        """
        async with self._open(self._find(key), block) as redis:
            yield redis

    def _find(self, _key: bytes) -> Node:
        return self._url.nodes[0]

    @asynccontextmanager
    async def _open(self, node: Node, block: float = 0.0) -> AsyncIterator[Redis[bytes]]:
        pool = _OneConnection(
            connection_class=TCPConnection,
            location=TCPLocation(*node),
            max_connections=1,
            connect_timeout=self._timeout,
            stream_timeout=self._timeout + block,
            username=self._url.username or None,
            password=self._url.password or None,
            db=self._url.database,
            ssl_context=self._tls,
        )
        failure: Exception | None = None
        # Without a nursery's group around it.
        async with Redis(connection_pool=pool, verify_version=False, retry_policy=NoRetryPolicy()) as redis:
            try:
                await self._connect(pool)
                yield redis
            except Exception as error:  # noqa: BLE001 - raised below
                failure = error
        if failure is not None:
            # Of a cancelled handshake coredis makes a ConnectionError.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise unavailable(failure) or failure

    async def _connect(self, pool: "_OneConnection") -> None:
        with trio.move_on_after(self._timeout) as scope:
            try:
                pool.release(await pool.get_connection())
            except ConnectionError:
                if not scope.cancel_called:
                    raise
        if scope.cancel_called:
            raise LogUnavailable(f"no connection within {self._timeout:g} s")


class _OneConnection(ConnectionPool[TCPConnection]):
    """A pool that makes no other connection in the place of a lost one: that server may have lost the key since."""

    _connection: TCPConnection | None = None

    async def get_connection(self, **_: Any) -> TCPConnection:
        if self._connection is None:
            self._connection = await super().get_connection()
        return self._connection

    def release(self, connection: TCPConnection) -> None:
        """Does nothing: everybody uses the one connection at the same time."""


def unavailable(error: Exception) -> LogUnavailable | None:
    """What an error of the library's means for the log, in a few words without secrets; None for any other error."""
    if isinstance(error, ExceptionGroup):
        rest = error.split(lambda each: not isinstance(each, ExceptionGroup) and unavailable(each) is not None)[1]
        return None if rest is not None else unavailable(error.exceptions[0])
    if isinstance(error, LogUnavailable):
        return error
    return LogUnavailable(_in_words(error)) if isinstance(error, ERRORS) else None


def _in_words(error: BaseException) -> str:
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return words.format(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of Redis is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"no connection to Redis: {os.strerror(error.errno)}"
    if error.__cause__ is not None:
        return _in_words(error.__cause__)
    return str(error) if isinstance(error, RedisError) else "the connection to Redis was lost"


def _tls_context(config: LogSection) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.tls_ca or None)
    except OSError as error:
        raise _problem("log.tls_ca", config.tls_ca, error) from None
    if config.tls_certificate:
        try:
            context.load_cert_chain(config.tls_certificate, config.tls_key or None, password="")
        except OSError as error:
            raise _problem("log.tls_certificate", config.tls_certificate, error) from None
    return context


def _problem(key: str, file: str, error: OSError) -> ConfigError:
    return ConfigError([ConfigProblem("configuration", key, f"{file}: {error.strerror or error}")])
