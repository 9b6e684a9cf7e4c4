"""What the clients of librdkafka are told: from the configuration, and what the log relies on. Without I/O."""

from collections.abc import Mapping
from typing import Any

from tricast.config import LogSection
from tricast.errors import ConfigError, ConfigProblem
from tricast.log_urls import KafkaUrl

Settings = Mapping[str, Any]

#: A transaction of a process that is gone holds back what others write behind it for so long.
TRANSACTION_SECONDS = 10.0
#: How long a broker may wait for something new before it answers, in ms; a partition that is read from elsewhere waits
#: for it.
_FETCH_WAIT_MS = 100
#: What is read ahead, in KiB: by the one who follows, and by each of those who read what is older.
_READ_AHEAD_KB = 16 * 2**10
_HISTORY_READ_AHEAD_KB = 2**10
#: How long to wait for room in what was read ahead, in ms; 1 s by default.
_READ_AHEAD_PAUSE_MS = 20
#: How long an event waits for others to be sent with it, in ms: a third less CPU when there are many.
_LINGER_MS = 1
#: Records are as large as the topic takes them.
_MAX_RECORD_BYTES = 2**27

#: What cannot be set, because the log relies on it.
RESERVED = frozenset(
    (
        "bootstrap.servers", "metadata.broker.list", "group.id", "enable.auto.commit", "enable.auto.offset.store",
        "auto.offset.reset", "isolation.level", "enable.partition.eof", "acks", "request.required.acks",
        "enable.idempotence", "transactional.id", "transaction.timeout.ms", "delivery.timeout.ms", "message.timeout.ms",
        "message.max.bytes", "receive.message.max.bytes", "fetch.max.bytes", "queue.buffering.max.messages",
        "queue.buffering.max.kbytes", "delivery.report.only.error", "group.instance.id", "group.protocol",
        "default.topic.config", "on_delivery", "logger",
    )
)  # fmt: skip


def check_settings(url: KafkaUrl, config: LogSection) -> None:
    """Sees whether ``log.kafka`` is only what can be set there, and each source another topic.

    Raises:
        ConfigError: with everything that is not.
    """
    problems = [
        ConfigProblem("configuration", f"log.kafka.{name}", "is set by Tricast, and cannot be set here")
        for name in config.kafka
        if name in RESERVED or name.endswith("_cb")
    ]
    names = [entry.kafka_topic for entry in config.source]
    problems += [
        ConfigProblem(
            "configuration", f"log.source.{number}.kafka_topic", "is read already: it has to be another topic"
        )
        for number, name in enumerate(names)
        if name == url.topic or name in names[:number]
    ]
    if problems:
        raise ConfigError(problems)


def settings(url: KafkaUrl, config: LogSection) -> dict[str, Any]:
    """What every client is told."""
    timeout_ms = max(int(config.timeout * 1000), 1000)
    found: dict[str, Any] = {
        "bootstrap.servers": ",".join(map(str, url.nodes)),
        "client.id": "tricast",
        "socket.timeout.ms": timeout_ms,
        "socket.connection.setup.timeout.ms": timeout_ms,
        "api.version.request.timeout.ms": timeout_ms,
        "reconnect.backoff.ms": int(config.reconnect * 1000),
        "reconnect.backoff.max.ms": max(int(config.reconnect_max * 1000), int(config.reconnect * 1000)),
        "socket.keepalive.enable": True,
        "log.connection.close": False,
    }
    if config.tls_ca or config.tls_certificate:
        found["security.protocol"] = "ssl"
    files = {
        "ssl.ca.location": config.tls_ca,
        "ssl.certificate.location": config.tls_certificate,
        "ssl.key.location": config.tls_key or config.tls_certificate,
    }
    return found | {name: path for name, path in files.items() if path} | config.kafka


def reader_settings(common: Settings) -> dict[str, Any]:
    """What the consumer is told that follows all partitions."""
    return _consumer_settings(common, _READ_AHEAD_KB)


def history_settings(common: Settings) -> dict[str, Any]:
    """What those consumers are told that read what is older."""
    return _consumer_settings(common, _HISTORY_READ_AHEAD_KB) | {"max.partition.fetch.bytes": 256 * 2**10}


def _consumer_settings(common: Settings, read_ahead_kb: int) -> dict[str, Any]:
    return {
        "fetch.wait.max.ms": _FETCH_WAIT_MS,
        "fetch.queue.backoff.ms": _READ_AHEAD_PAUSE_MS,
        "queued.max.messages.kbytes": read_ahead_kb,
        "queued.min.messages": 10_000,
        **common,
        # It has to be there. No group is joined, and nothing is committed.
        "group.id": "tricast",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
    }


def publisher_settings(common: Settings, timeout: float) -> dict[str, Any]:
    """What the producer is told; it keeps trying for so many seconds."""
    return {
        "linger.ms": _LINGER_MS,
        "message.max.bytes": _MAX_RECORD_BYTES,
        "queue.buffering.max.messages": 0,  # as many as there are: how much waits is bounded before
        "queue.buffering.max.kbytes": 2**20,
        **common,
        "acks": "all",
        "enable.idempotence": True,
        "delivery.timeout.ms": max(int(timeout * 1000), 1000),
    }


def transaction_settings(common: Settings, timeout: float, name: str) -> dict[str, Any]:
    """What the producer of batches is told, which is known to Kafka by this name."""
    transaction_ms = max(int(TRANSACTION_SECONDS * 1000), 2 * max(int(timeout * 1000), 1000))
    return publisher_settings(common, timeout) | {
        "linger.ms": 0,  # a transaction is sent off as a whole
        "transactional.id": name,
        "transaction.timeout.ms": transaction_ms,
    }
