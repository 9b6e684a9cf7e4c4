"""The metrics, in the text format of Prometheus. Numbers are counted where things happen and read only here."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tricast.runtime import Runtime

CONTENT_TYPE = CONTENT_TYPE_LATEST


def registry_of(runtime: Runtime) -> CollectorRegistry:
    """A registry with everything that is known of one server, and of its process."""
    registry = CollectorRegistry()
    registry.register(_RuntimeCollector(runtime))
    ProcessCollector(registry=registry)
    return registry


def expose(registry: CollectorRegistry) -> bytes:
    """The metrics as text."""
    return generate_latest(registry)


class _RuntimeCollector(Collector):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        counters, hub = self._runtime.counters, self._runtime.hub.statistics()
        yield GaugeMetricFamily("tricast_connections", "Connections that are open.", len(self._runtime.open))
        yield GaugeMetricFamily("tricast_subscribers", "Subscribers of all transports.", hub.subscribers)
        yield GaugeMetricFamily("tricast_subscribers_behind", "Subscribers that read from the log.", hub.behind)
        yield GaugeMetricFamily("tricast_feeds", "Distinct sets of topics subscribed to.", hub.feeds)
        yield GaugeMetricFamily("tricast_draining", "1 while the server goes down.", self._runtime.is_draining)
        yield CounterMetricFamily("tricast_events_published", "Events that the log committed.", hub.published)
        yield CounterMetricFamily("tricast_flushes", "Rounds in which events were handed out.", hub.flushes)
        yield CounterMetricFamily("tricast_deliveries", "Blocks handed to live subscribers.", hub.deliveries)
        yield CounterMetricFamily("tricast_fell_behind", "Times a subscriber could not take a block.", hub.fell_behind)
        yield CounterMetricFamily("tricast_gaps", "Gaps announced.", hub.gaps)
        yield CounterMetricFamily("tricast_connections_accepted", "Connections accepted.", counters.accepted)
        yield CounterMetricFamily("tricast_connections_refused", "Connections answered with 503.", counters.refused)
        yield CounterMetricFamily("tricast_connections_failed", "Connections ended by a bug.", counters.failed)
        yield CounterMetricFamily(
            "tricast_connections_unavailable", "Connections ended because the log was not there.", counters.unavailable
        )
        yield _labelled("tricast_connections_lost", "Connections that clients broke off.", "reason", counters.lost)
        yield _labelled("tricast_streams", "Subscriptions begun.", "transport", counters.streams)
        requests = CounterMetricFamily("tricast_http_requests", "Requests answered.", labels=["path", "status"])
        for (path, status), count in counters.requests.items():
            requests.add_metric([path, str(status)], count)
        yield requests


def _labelled(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
