"""Which log the configuration asks for. What a log needs is imported only where it is used."""

import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import cast

from tricast.config import Config
from tricast.errors import ConfigError, ConfigProblem
from tricast.log.base import Log
from tricast.log.memory import MemoryLog
from tricast.log.sqlite import SqliteLog
from tricast.log_urls import MEMORY_URL, KafkaUrl, RedisUrl, parse_log_url
from tricast.logs import Logger


def log_of(config: Config, logger: Logger) -> Log:
    """The log that the configuration asks for; nothing is opened yet.

    Raises:
        ConfigError: what it needs is not installed, or a file that it names cannot be used.
    """
    events, url = config.events, parse_log_url(config.log.url)
    if isinstance(url, RedisUrl):
        return cast("Log", _import("redis", "coredis").redis_log(config, url, logger=logger))
    if isinstance(url, KafkaUrl):
        return cast("Log", _import("kafka", "confluent_kafka").kafka_log(config, url, logger=logger))
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


def _import(extra: str, library: str) -> ModuleType:
    try:
        import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        message = f"this log needs {library}, which is not installed: pip install 'tricast[{extra}]'"
        raise ConfigError([ConfigProblem("configuration", "log.url", message)]) from None
    return import_module(f"tricast.log.{extra}")
