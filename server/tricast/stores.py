"""Which log the configuration asks for. What a log needs is imported only where it is used."""

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import cast

from tricast.config import Config
from tricast.errors import ConfigError, ConfigProblem
from tricast.log.base import Log
from tricast.log.inspection import Inspected
from tricast.log.memory import MemoryLog
from tricast.log.sqlite import SqliteLog
from tricast.log.sqlite_inspection import SqliteInspection
from tricast.log_urls import MEMORY_URL, KafkaUrl, RedisUrl, parse_log_url
from tricast.logs import Logger

#: What each extra is for.
_LIBRARIES = {"redis": "coredis", "kafka": "confluent_kafka"}


def log_of(config: Config, logger: Logger) -> Log:
    """The log that the configuration asks for; nothing is opened yet.

    Raises:
        ConfigError: what it needs is not installed, or a file that it names cannot be used.
    """
    events, url = config.events, parse_log_url(config.log.url)
    if isinstance(url, RedisUrl):
        return cast("Log", _import("redis").redis_log(config, url, logger=logger))
    if isinstance(url, KafkaUrl):
        return cast("Log", _import("kafka").kafka_log(config, url, logger=logger))
    if url == MEMORY_URL:
        return MemoryLog(
            history=events.history,
            history_age=events.history_age,
            history_size=events.history_size,
            clock=time.time,
        )
    return SqliteLog(
        Path(url),
        history=events.history,
        history_age=events.history_age,
        history_size=events.history_size,
        cache_size=config.log.cache_size,
        synchronous=config.log.synchronous,
        clock=time.time,
        logger=logger,
    )


def announce_log(config: Config, logger: Logger) -> None:
    """Logs which log the configuration asks for, without user name and password."""
    url, log = parse_log_url(config.log.url), config.log
    about: dict[str, object] = {}
    if isinstance(url, RedisUrl):
        about = {"namespace": log.namespace, "shards": log.shards, "delivery": log.delivery}
    elif isinstance(url, KafkaUrl):
        about = {"shards": log.shards}
    logger.info(f"the log is {log.url if isinstance(url, str) else url}", **about)


async def adopted(config: Config) -> Config:
    """The configuration, with what it leaves out of the log's settings as it is where that log is already.

    Raises:
        ConfigError: what it needs is not installed, or the log there has other settings.
        LogUnavailable: it cannot be asked.
    """
    url = parse_log_url(config.log.url)
    if isinstance(url, RedisUrl):
        return cast("Config", await _import("redis", "_layout").adopted(config, url))
    return config


def inspecting(config: Config, logger: Logger) -> AbstractAsyncContextManager[Inspected]:
    """The scope in which the log that the configuration asks for can be inspected.

    Raises:
        ConfigError: what it needs is not installed, or it is in the memory of a server.
        LogUnavailable: when the scope is entered: there is no log there.
    """
    url = parse_log_url(config.log.url)
    if isinstance(url, RedisUrl | KafkaUrl):
        extra = "redis" if isinstance(url, RedisUrl) else "kafka"
        inspect = _import(extra, "_inspection").inspecting
        return cast("AbstractAsyncContextManager[Inspected]", inspect(config, url, logger=logger))
    if url == MEMORY_URL:
        message = "this log is in the memory of its server, and nothing else can see it; metrics and subscribers can"
        raise ConfigError([ConfigProblem("configuration", "log.url", message)])
    return _inspecting_file(SqliteInspection(Path(url), synchronous=config.log.synchronous))


@asynccontextmanager
async def _inspecting_file(file: SqliteInspection) -> AsyncIterator[Inspected]:
    async with file.open():
        yield Inspected({0: file}, is_sharded=False)


def _import(extra: str, suffix: str = "") -> ModuleType:
    library = _LIBRARIES[extra]
    try:
        import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        message = f"this log needs {library}, which is not installed: pip install 'tricast[{extra}]'"
        raise ConfigError([ConfigProblem("configuration", "log.url", message)]) from None
    return import_module(f"tricast.log.{extra}{suffix}")
