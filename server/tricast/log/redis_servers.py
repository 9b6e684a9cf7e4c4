"""Which Redis server has a key, and connections to it. Maps what coredis raises to ``LogUnavailable``.

Knows nothing of what a log is made of. For every connection the server is looked for anew: after a failover it is
another one.
"""

import os
import re
import ssl
from binascii import crc_hqx
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from socket import gaierror
from typing import Any

import anyio
import trio
from anyio.abc import ByteStream
from coredis import Redis
from coredis.connection import TCPConnection, TCPLocation
from coredis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationRequiredError,
    AuthorizationError,
    BusyLoadingError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from coredis.pool import ConnectionPool
from coredis.retry import NoRetryPolicy

from tricast.config import LogSection
from tricast.errors import ConfigError, ConfigProblem, LogUnavailable, leaf, leaves
from tricast.log_urls import CLUSTER, SENTINEL, Node, RedisUrl

#: What using a connection of coredis's may raise, when it is lost and when the server refuses.
ERRORS = (RedisError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)

#: Slots of a cluster, over which keys are spread.
SLOTS = 16384
#: Nodes that are asked where a key is, before somebody is told that none of them knows; next time others are asked.
_MAX_ASKED = 3

_WANTS_CREDENTIALS = "Redis wants a user name and a password in log.url"
#: What each error means to the user. Redis's own words hold names of users, commands and keys, and no secrets.
_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (AuthenticationRequiredError, _WANTS_CREDENTIALS),
    (AuthenticationError, "Redis refused the user name or the password in log.url"),
    (AuthorizationError, "the user in log.url lacks a right in Redis: {}"),
    (BusyLoadingError, "Redis is loading its data"),
    (ReadOnlyError, "the Redis server is a replica"),
    (AskError, "the shard has moved to another server of the cluster"),
    (TryAgainError, "the shard is moving to another server of the cluster"),
    (ResponseError, "Redis answered: {}"),
    (TimeoutError, "Redis does not answer"),
    (gaierror, "the name of the Redis server cannot be found"),
)

#: What some versions say in the place of NOPERM, of a command in a script; not all of them which command it is.
_LACKS_A_RIGHT = ("The user executing the script", "ACL failure in script")
#: Where in a script, which tells a user nothing; and what a command was given, which may be a password.
_DETAILS = re.compile(r"( script: [0-9a-f]{40}, on @user_script|,? with args beginning with).*", re.DOTALL)


def slot_of(key: bytes) -> int:
    """The slot of a key in a cluster: of what is between the first braces, if that is not empty, else of all of it."""
    _, brace, rest = key.partition(b"{")
    tag, end, _ = rest.partition(b"}")
    return crc_hqx(tag if brace and end and tag else key, 0) % SLOTS


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
        #: Whom to ask next where a key is. All of a cluster's nodes know, and there may be others by now.
        self._informants = deque(url.nodes)

    @property
    def database(self) -> int:
        """Where keys are; channels are the same in all databases of a server."""
        return self._url.database

    @property
    def is_cluster(self) -> bool:
        """Whether each key is on one of several servers."""
        return self._url.topology == CLUSTER

    @property
    def may_return(self) -> bool:
        """Whether a primary whose place was taken may be made the primary again without having been a replica.

        Sentinel does that, when one is back before it was told, and its successor fails. Nodes of a cluster ask the
        others before they take anything.
        """
        return self._url.topology == SENTINEL

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
        node, informant = await self._find(key)
        try:
            async with self._open(node, block=block) as redis:
                if self._url.topology == SENTINEL:
                    await _check_role(redis, node)
                yield redis
        except LogUnavailable:
            # Who is cut off from the others tells what was once true.
            if self._informants[0] == informant:
                self._informants.rotate(-1)
            raise

    async def _find(self, key: bytes) -> tuple[Node, Node]:
        """Where the key is, and who says so."""
        if self.is_cluster:
            return await self._ask("the cluster", lambda node: self._owner(node, slot_of(key)))
        if self._url.topology == SENTINEL:
            return await self._ask("the sentinels", self._primary)
        return self._url.nodes[0], self._url.nodes[0]

    async def _ask(self, whom: str, question: Callable[[Node], Awaitable[Node]]) -> tuple[Node, Node]:
        why = ""
        for node in list(self._informants)[:_MAX_ASKED]:
            try:
                return await question(node), node
            except LogUnavailable as error:
                why = error.why
            self._informants.rotate(-1)
        raise LogUnavailable(f"none of {whom} tells where the primary is: {why}")

    async def _owner(self, asked: Node, slot: int) -> Node:
        async with self._open(asked) as redis:
            ranges = await redis.create_request(b"CLUSTER SLOTS", callback=_as_it_is)
        # A node that does not know its own name is where it was asked.
        owners = [
            (first, last, Node((primary[0] or b"").decode() or asked.host, primary[1]))
            for first, last, primary, *_ in ranges
        ]
        self._informants = deque(dict.fromkeys((asked, *(owner for _, _, owner in owners), *self._url.nodes)))
        for first, last, owner in owners:
            if first <= slot <= last:
                return owner
        raise LogUnavailable("no server of the cluster has the shard")

    async def _primary(self, sentinel: Node) -> Node:
        try:
            return await self._ask_sentinel(sentinel, has_credentials=False)
        except LogUnavailable as error:
            if not error.why.endswith(_WANTS_CREDENTIALS):
                raise
        return await self._ask_sentinel(sentinel, has_credentials=True)

    async def _ask_sentinel(self, sentinel: Node, *, has_credentials: bool) -> Node:
        async with self._open(sentinel, has_credentials=has_credentials, database=0) as redis:
            found = await redis.sentinel_get_master_addr_by_name(self._url.name)
        if found is None:
            raise LogUnavailable(f"Sentinel knows nothing of {self._url.name}")
        return Node(*found)

    @asynccontextmanager
    async def _open(
        self, node: Node, *, block: float = 0.0, has_credentials: bool = True, database: int | None = None
    ) -> AsyncIterator[Redis[bytes]]:
        stream = await self._dial(node)
        pool = _OneConnection(
            connection_class=Connection,
            location=_Dialed(*node, stream),
            stream_timeout=self._timeout + block,
            username=(has_credentials and self._url.username) or None,
            password=(has_credentials and self._url.password) or None,
            db=self._url.database if database is None else database,
        )
        failure: Exception | None = None
        # Raised outside, where no nursery makes a group of it.
        async with stream, Redis(connection_pool=pool, verify_version=False, retry_policy=NoRetryPolicy()) as redis:
            try:
                with self._in_time(node):
                    await pool.get_connection()
                yield redis
            except Exception as error:  # noqa: BLE001 - raised below
                failure = error
        if failure is not None:
            # Of a cancelled handshake coredis makes a ConnectionError.
            await trio.lowlevel.checkpoint_if_cancelled()
            reason = unavailable(failure, node)
            if reason is None:
                raise failure
            # What coredis says may have in it what was sent.
            raise reason from None

    async def _dial(self, node: Node) -> ByteStream:
        try:
            with self._in_time(node):
                if self._tls is None:
                    return await anyio.connect_tcp(*node)
                return await anyio.connect_tcp(*node, ssl_context=self._tls, tls_standard_compatible=False)
        except ERRORS as error:
            raise unavailable(error, node) or error from None

    @contextmanager
    def _in_time(self, node: Node) -> Iterator[None]:
        with trio.move_on_after(self._timeout) as scope:
            try:
                yield
            except ERRORS:
                if not scope.cancel_called:
                    raise
        if scope.cancel_called:
            raise LogUnavailable(f"{node}: no connection to Redis within {self._timeout:g} s")


@dataclass(unsafe_hash=True)
class _Dialed(TCPLocation):
    """Where a server is, and a stream that leads to it already."""

    stream: ByteStream


class Connection(TCPConnection):
    """What coredis makes of a stream; when it cannot open one by itself, it leaves things open."""

    location: _Dialed

    async def _connect(self) -> ByteStream:
        return self.location.stream

    async def pushed(self) -> list[Any]:
        """All messages that came since the last call and answer no command, as soon as there are any.

        One at a time, as coredis hands them over, they would be taken more slowly than they come, and pile up.
        """
        messages = [await self._push_message_buffer_out.receive()]
        while self._push_message_buffer_out.statistics().current_buffer_used:
            messages.append(self._push_message_buffer_out.receive_nowait())
        return messages


class _OneConnection(ConnectionPool[Connection]):
    """A pool that makes no other connection in the place of a lost one: that server may have lost the key since."""

    _connection: Connection | None = None

    async def get_connection(self, **_: Any) -> Connection:
        if self._connection is None:
            self._connection = await super().get_connection()
        return self._connection

    def release(self, connection: Connection) -> None:
        """Does nothing: everybody uses the one connection at the same time."""


async def _check_role(redis: Redis[bytes], node: Node) -> None:
    if (await redis.role()).role != "master":
        raise LogUnavailable(f"{node}: what Sentinel names as the primary is a replica")


async def connection_of(redis: Redis[bytes]) -> Connection:
    """The connection of a client from ``Servers.connect``."""
    connection = await redis.connection_pool.get_connection()
    assert isinstance(connection, Connection)
    return connection


def unavailable(error: Exception, node: Node | None = None) -> LogUnavailable | None:
    """What an error of the library's means for the log, in a few words without secrets; None for any other error.

    Args:
        error: what was raised.
        node: the server that it is about, where the words are to name it.
    """
    if isinstance(error, ExceptionGroup):
        reasons = [unavailable(each, node) for each in leaves(error)]
        return reasons[0] if all(reasons) else None
    if isinstance(error, LogUnavailable):
        return error
    if not isinstance(error, ERRORS):
        return None
    return LogUnavailable(_in_words(error) if node is None else f"{node}: {_in_words(error)}")


def _in_words(error: BaseException) -> str:
    said = _DETAILS.sub("", str(error))
    if said.startswith(_LACKS_A_RIGHT):
        return f"the user in log.url lacks a right in Redis, see ACL LOG there: {said}"
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return words.format(said)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of Redis is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"no connection to Redis: {os.strerror(error.errno)}"
    cause = leaf(error) if isinstance(error, ExceptionGroup) else error.__cause__
    if cause is not None:
        return _in_words(cause)
    return f"no connection to Redis: {error}" if isinstance(error, RedisError) else "the connection to Redis was lost"


def _as_it_is(reply: Any, **_: object) -> Any:
    return reply


def _tls_context(config: LogSection) -> ssl.SSLContext:
    for key in ("tls_ca", "tls_certificate", "tls_key"):
        file = getattr(config, key)
        if file and not os.access(file, os.R_OK):
            raise _problem(key, f"{file} cannot be read")
    try:
        context = ssl.create_default_context(cafile=config.tls_ca or None)
    except ssl.SSLError as error:
        raise _problem("tls_ca", f"{config.tls_ca}: {error.strerror}") from None
    if config.tls_certificate:
        try:
            # Of an encrypted key the password would be asked for on the terminal.
            context.load_cert_chain(config.tls_certificate, config.tls_key or None, password="")
        except ssl.SSLError as error:
            files = " and ".join(filter(None, (config.tls_certificate, config.tls_key)))
            raise _problem("tls_certificate", f"{files}: {error.strerror}") from None
    return context


def _problem(key: str, message: str) -> ConfigError:
    return ConfigError([ConfigProblem("configuration", f"log.{key}", message)])
