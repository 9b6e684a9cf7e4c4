"""How a log is laid out in Redis, which all servers that share it have to have the same: its shards, and its delivery.

With another number of shards, or another delivery, it would be another log under other keys, and neither server would
notice the other. So it is written down beside the shards, in a key whose name depends on none of that. Who begins the
log writes it; who comes later compares. Servers that run look again and again: where Redis has lost it, they write it
anew, and of two that differ, the one that was there first is right.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import trio
from coredis import Redis

from tricast.config import Config, LogSection
from tricast.errors import ConfigError, ConfigProblem, LogUnavailable
from tricast.event import Draft, Position, TopicSet
from tricast.log.base import Committed, IdempotencyKey, Log, Skipped, Slice, ignore
from tricast.log.redis_link import beside
from tricast.log.redis_scripts import FUNCTIONS, Script
from tricast.log.redis_servers import Servers
from tricast.log.statistics import Statistics
from tricast.log_urls import RedisUrl
from tricast.logs import Logger

_WATCH_SECONDS = 2.0

#: Writes a layout down where there is none, or half of one, or one that was written later; returns what is there then.
#: KEYS: the layout. ARGV: shards, delivery, and since when this is it, in ms; 0 for now.
_CLAIM = Script(
    FUNCTIONS
    + """
local layout, since = KEYS[1], tonumber(ARGV[3])
if since == 0 then since = now_ms() end
local written = {}
for index, name in ipairs({'shards', 'delivery', 'since'}) do written[index] = redis.call('HGET', layout, name) end
local is_whole = tonumber(written[1]) and written[2] and tonumber(written[3])
if is_whole and since >= tonumber(written[3]) then return written end
written = {ARGV[1], ARGV[2], string.format('%.0f', since)}
redis.call('HSET', layout, 'shards', written[1], 'delivery', written[2], 'since', written[3])
return written
"""
)


class Layout(NamedTuple):
    """The settings that make it this log and no other one.

    Attributes:
        shards: how many there are.
        delivery: ``stream`` or ``pubsub``.
    """

    shards: int
    delivery: str

    @classmethod
    def of(cls, config: LogSection) -> "Layout":
        """The one that is configured."""
        return cls(config.shards, config.delivery)


def key_of(namespace: str) -> bytes:
    """Where the layout is written down. In a cluster, that is in any slot."""
    return f"{namespace}:layout".encode()


async def adopted(config: Config, url: RedisUrl) -> Config:
    """The configuration, with those settings that it leaves out as the log there has them.

    Raises:
        ConfigError: the log has others than are configured; or a file for TLS cannot be used.
        LogUnavailable: there is no Redis, or it cannot be used.
    """
    log = config.log
    key = key_of(log.namespace)
    async with Servers(url, log).connect(key) as redis:
        shards, delivery = [await redis.hget(key, name) for name in Layout._fields]
    if shards is None or delivery is None:
        return config
    found = Layout(int(shards), delivery.decode())
    configured = {f"log.{name}" for name in log.model_fields_set}
    problems = [problem for problem in conflicts(log, found) if problem.key in configured]
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update={"log": log.model_copy(update=found._asdict())})


def conflicts(config: LogSection, found: Layout) -> list[ConfigProblem]:
    """What is configured otherwise than the log in Redis is."""
    pairs = zip(Layout._fields, Layout.of(config), found, strict=True)
    return [
        ConfigProblem(
            "configuration",
            f"log.{key}",
            f"expected {_quoted(there)}, as on the servers that share this log in Redis "
            f'(log.namespace = "{config.namespace}"), found {_quoted(here)}; '
            "for how to change it on all of them, see docs/logs.md",
        )
        for key, here, there in pairs
        if here != there
    ]


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


class LaidOutLog:
    """See ``Log``. One in Redis, which is away for a server that is configured otherwise than the log is laid out.

    Args:
        log: what it is where all is well.
        servers: where the layout is.
        config: what is configured.
        logger: where to say that it is another one, and that it is not any more.
    """

    def __init__(self, log: Log, servers: Servers, config: LogSection, *, logger: Logger) -> None:
        self._log = log
        self._servers = servers
        self._config = config
        self._logger = logger
        self._key = key_of(config.namespace)
        #: Since when the layout is this one, in ms of Redis's clock; 0 until that is known.
        self._since = 0
        self._conflict: str | None = None
        self._committed: Committed = ignore

    @property
    def last_id(self) -> Position:
        """See ``Log.last_id``."""
        return self._log.last_id

    @property
    def waits(self) -> bool:
        """See ``Log.waits``."""
        return self._log.waits

    @property
    def problem(self) -> str | None:
        """See ``Log.problem``."""
        return self._log.problem or self._conflict

    @property
    def statistics(self) -> Statistics:
        """See ``Log.statistics``."""
        return self._log.statistics

    def shards_of(self, topics: TopicSet) -> Sequence[int] | None:
        """See ``Log.shards_of``."""
        return self._log.shards_of(topics)

    @asynccontextmanager
    async def open(self, committed: Committed, skipped: Skipped | None = None) -> AsyncIterator[None]:
        """See ``Log.open``.

        Raises:
            ConfigError: the log there is laid out otherwise.
            LogUnavailable: there is no Redis, or it cannot be used.
        """
        self._conflict, self._committed = None, committed
        async with self._servers.connect(self._key) as redis:
            problems = await self._compare(redis)
        if problems:
            raise ConfigError(problems)
        async with self._log.open(committed, skipped), beside(self._watch):
            yield

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> Sequence[Position]:
        """See ``Log.append``."""
        self._check()
        return await self._log.append(drafts, key)

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """See ``Log.read``."""
        self._check()
        return await self._log.read(topics, after, max_bytes=max_bytes)

    def _check(self) -> None:
        if self._conflict is not None:
            raise LogUnavailable(self._conflict)

    async def _watch(self) -> None:
        while True:
            await trio.sleep(_WATCH_SECONDS)
            # That Redis is away, the shards tell.
            with suppress(LogUnavailable):
                async with self._servers.connect(self._key) as redis:
                    while True:
                        self._judge(await self._compare(redis))
                        await trio.sleep(_WATCH_SECONDS)

    async def _compare(self, redis: Redis[bytes]) -> list[ConfigProblem]:
        """What is configured otherwise; of what is the same, it is remembered since when."""
        claim: list[bytes | str | int] = [*Layout.of(self._config), self._since]
        reply: list[Any] = await _CLAIM.run(redis, [self._key], claim)
        shards, delivery, since = reply
        problems = conflicts(self._config, Layout(int(shards), delivery.decode()))
        if not problems:
            self._since = int(since)
        return problems

    def _judge(self, problems: Sequence[ConfigProblem]) -> None:
        conflict = "; ".join(f"{key}: {message}" for _, key, message in problems) or None
        before, self._conflict = self._conflict, conflict
        if conflict is not None and before is None:
            self._logger.error("the log is not available", why=conflict)
        elif conflict is None and before is not None:
            self._logger.info("the log is available again")
            self._committed(())
