"""The metrics, in the text format of Prometheus. Numbers are counted where things happen and read only here.

Where a server is several processes, each puts its numbers on a board every now and then: a piece of memory that all of
them have. Whoever is asked reads all boards, so that it does not matter which process a scrape hits.
"""

import os
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import accumulate

import msgspec
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tricast.log.statistics import BOUNDS, Timings
from tricast.runtime import Runtime

CONTENT_TYPE = CONTENT_TYPE_LATEST
#: Tells all metrics as text.
Expose = Callable[[], Awaitable[bytes]]

#: How often the numbers on a board are renewed.
POST_SECONDS = 1.0
#: A board that is just being written is read again, so often at most.
_READS = 5
_CHECKSUM_BYTES = 4


def registry_of(runtime: Runtime) -> CollectorRegistry:
    """A registry with everything that is known of one server, and of its process."""
    registry = CollectorRegistry()
    registry.register(_RuntimeCollector(runtime))
    ProcessCollector(registry=registry)
    return registry


def expose(registry: CollectorRegistry) -> bytes:
    """The metrics as text."""
    return generate_latest(registry)


def alone(runtime: Runtime) -> Expose:
    """The metrics of a server that is one process."""
    registry = registry_of(runtime)

    async def expose_registry() -> bytes:
        return expose(registry)

    return expose_registry


class _RuntimeCollector(Collector):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        counters, hub = self._runtime.counters, self._runtime.hub.statistics()
        yield GaugeMetricFamily("tricast_connections", "Connections that are open.", len(self._runtime.open))
        yield GaugeMetricFamily("tricast_subscribers", "Subscribers of all transports.", hub.subscribers)
        yield GaugeMetricFamily("tricast_subscribers_behind", "Subscribers that read from the log.", hub.behind)
        yield GaugeMetricFamily("tricast_feeds", "Distinct sets of topics subscribed to.", hub.feeds)
        if (keys := self._runtime.keys) is not None:
            yield GaugeMetricFamily(
                "tricast_certificate_expiry_timestamp_seconds",
                "When the certificate in use, or the chain behind it, expires.",
                keys.certificate.expires_at,
            )
        memory = self._runtime.memory.is_over
        yield GaugeMetricFamily("tricast_memory_over", "1 while there is no memory for new work.", memory)
        yield GaugeMetricFamily("tricast_draining", "1 while the server goes down.", self._runtime.is_leaving)
        # Of several processes each sees all events, so only what each has published itself may be added up.
        yield CounterMetricFamily("tricast_events_published", "Events taken from publishers here.", hub.published)
        yield CounterMetricFamily("tricast_events_committed", "Events of the log, from anywhere.", hub.committed)
        yield CounterMetricFamily("tricast_flushes", "Rounds in which events were handed out.", hub.flushes)
        yield CounterMetricFamily("tricast_deliveries", "Blocks handed to live subscribers.", hub.deliveries)
        yield CounterMetricFamily("tricast_fell_behind", "Times a subscriber could not take a block.", hub.fell_behind)
        yield CounterMetricFamily("tricast_gaps", "Gaps announced.", hub.gaps)
        yield CounterMetricFamily("tricast_connections_accepted", "Connections accepted.", counters.accepted)
        yield CounterMetricFamily(
            "tricast_connections_refused", "Connections turned away at the door.", counters.refused
        )
        yield CounterMetricFamily("tricast_connections_failed", "Connections ended by a bug.", counters.failed)
        yield CounterMetricFamily(
            "tricast_connections_unavailable", "Connections ended for want of the log or memory.", counters.unavailable
        )
        yield _labelled("tricast_connections_lost", "Connections that clients broke off.", "reason", counters.lost)
        yield _labelled("tricast_refusals", "What clients asked for and did not get.", "reason", counters.refusals)
        yield _labelled("tricast_streams", "Subscriptions begun.", "transport", counters.streams)
        requests = CounterMetricFamily("tricast_http_requests", "Requests answered.", labels=["path", "status"])
        for (path, status), count in counters.requests.items():
            requests.add_metric([path, str(status)], count)
        yield requests
        yield from self._about_the_log()
        remote = self._runtime.access.remote
        if remote is not None:
            stale = "1 while keys for tokens cannot be fetched."
            failed = "Times that keys for tokens could not be fetched."
            yield GaugeMetricFamily("tricast_auth_keys", "Keys for tokens that were fetched.", len(remote.keys))
            yield GaugeMetricFamily("tricast_auth_keys_stale", stale, remote.is_stale)
            yield CounterMetricFamily("tricast_auth_key_fetches_failed", failed, remote.failures)

    def _about_the_log(self) -> Iterator[Metric]:
        hub = self._runtime.hub
        log, is_available = hub.log_statistics, hub.problem is None
        yield GaugeMetricFamily("tricast_log_available", "0 while nothing can be published.", is_available)
        yield _histogram("tricast_log_append_seconds", "From asking the log to keep events to its answer.", log.appends)
        yield _histogram("tricast_log_read_seconds", "Reads of the log that memory could not answer.", log.reads)
        yield CounterMetricFamily("tricast_log_reconnects", "Connections to the log made again.", log.reconnects)
        left_out = "Records of Kafka's that hold no event."
        yield CounterMetricFamily("tricast_log_records_left_out", left_out, log.left_out)
        lag = GaugeMetricFamily("tricast_log_lag_events", "Events of the log not yet handed over.", labels=["shard"])
        for shard, events in sorted(log.lags.items()):
            lag.add_metric([str(shard)], events)
        yield lag


def _histogram(name: str, text: str, timings: Timings) -> Metric:
    bounds = [*map(str, BOUNDS), "+Inf"]
    buckets = list(zip(bounds, accumulate(timings.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=timings.sum)


def _labelled(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


# Several processes


class _Sample(msgspec.Struct, array_like=True):
    name: str
    labels: dict[str, str]
    value: float


class _Family(msgspec.Struct, array_like=True):
    name: str
    documentation: str
    kind: str
    samples: list[_Sample]


class Notice(msgspec.Struct, array_like=True):
    """What one process has on its board.

    Attributes:
        worker: its number.
        pid: its process.
        posted: when it put this there (``time.monotonic``, which is the same clock in all processes).
        families: its numbers.
    """

    worker: int
    pid: int
    posted: float
    families: list[_Family]


class Board:
    """A piece of memory in which one process leaves its numbers for the others.

    Args:
        fd: as ``create`` made it, here or in another process; this object does not own it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @staticmethod
    def create(worker: int) -> int:
        """Makes the memory for a board and returns its descriptor."""
        return os.memfd_create(f"tricast-worker-{worker}")

    def post(self, notice: Notice) -> None:
        """Puts a notice in the place of the one before."""
        data = msgspec.msgpack.encode(notice)
        os.pwrite(self._fd, zlib.crc32(data).to_bytes(_CHECKSUM_BYTES) + data, 0)
        os.ftruncate(self._fd, _CHECKSUM_BYTES + len(data))

    def wipe(self) -> None:
        """Takes the notice away, once nobody writes any more."""
        os.ftruncate(self._fd, 0)

    def read(self) -> Notice | None:
        """The notice, if there is one. A notice that changes while it is read is none, if it goes on doing so."""
        for _ in range(_READS):
            content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
            data = content[_CHECKSUM_BYTES:]
            if content[:_CHECKSUM_BYTES] == zlib.crc32(data).to_bytes(_CHECKSUM_BYTES):
                return msgspec.msgpack.decode(data, type=Notice)
            if not content:
                return None
        return None


class Noticeboards:
    """The boards of all processes of a server, as one of them has them.

    Args:
        worker: the number of this process.
        restarts: how often its predecessors have died.
        boards: of all processes, by number.
    """

    def __init__(self, worker: int, restarts: int, boards: Sequence[Board]) -> None:
        self._worker = worker
        self._restarts = restarts
        self._boards = boards
        self._is_over = False

    def withdraw(self) -> None:
        """Posts nothing any more: another process has this number now."""
        self._is_over = True

    async def post_forever(self, runtime: Runtime) -> None:
        """Keeps what is on this process's board up to date, until cancelled or withdrawn."""
        while not self._is_over:
            self._boards[self._worker].post(self._notice(runtime))
            await trio.sleep(POST_SECONDS)

    def exposing(self, runtime: Runtime) -> Expose:
        """The metrics of all processes, each sample with the number of its worker."""

        async def expose_boards() -> bytes:
            notices = {notice.worker: notice for board in self._boards if (notice := board.read()) is not None}
            if not self._is_over:  # else the board is another's, and so is the number
                notices[self._worker] = self._notice(runtime)
            # Counting the descriptors of a process with many takes long enough to be done beside the connections.
            return await trio.to_thread.run_sync(_expose_notices, [notices[worker] for worker in sorted(notices)])

        return expose_boards

    def _notice(self, runtime: Runtime) -> Notice:
        restarts = CounterMetricFamily("tricast_worker_restarts", "Times the worker died and was replaced.")
        restarts.add_metric([], self._restarts)
        families = [_family_of(metric) for metric in (*_RuntimeCollector(runtime).collect(), restarts)]
        return Notice(self._worker, os.getpid(), time.monotonic(), families)


def _family_of(metric: Metric) -> _Family:
    samples = [_Sample(sample.name, sample.labels, float(sample.value)) for sample in metric.samples]
    return _Family(metric.name, metric.documentation, metric.type, samples)


class _NoticesCollector(Collector):
    def __init__(self, notices: Sequence[Notice]) -> None:
        self._notices = notices

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for notice in self._notices:
            for family in (*notice.families, *_about_the_process(notice)):
                metric = merged.setdefault(family.name, Metric(family.name, family.documentation, family.kind))
                for sample in family.samples:
                    metric.add_sample(sample.name, {"worker": str(notice.worker), **sample.labels}, sample.value)
        yield from merged.values()


def _about_the_process(notice: Notice) -> Iterator[_Family]:
    # It may have ended in the meantime: the collector leaves out what it cannot read.
    for metric in ProcessCollector(pid=lambda: notice.pid, registry=None).collect():
        yield _family_of(metric)
    age = GaugeMetricFamily("tricast_worker_silence_seconds", "Time since the worker told its numbers.")
    age.add_metric([], max(0.0, time.monotonic() - notice.posted))
    yield _family_of(age)


def _expose_notices(notices: Sequence[Notice]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_NoticesCollector(notices))
    return generate_latest(registry)
