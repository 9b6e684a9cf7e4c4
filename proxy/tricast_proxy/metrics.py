"""The metrics, in the text format of Prometheus. Numbers are counted where things happen and read only here."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tricast_proxy.overview import Overview, State
from tricast_proxy.servers import Health


def registry_of(overview: Overview, clock: Callable[[], float]) -> CollectorRegistry:
    """A registry with everything that is known of the proxy, and of its process.

    Args:
        overview: the proxy.
        clock: the one by which its servers are judged.
    """
    registry = CollectorRegistry()
    registry.register(_ProxyCollector(overview, clock))
    ProcessCollector(registry=registry)
    return registry


class _ProxyCollector(Collector):
    def __init__(self, overview: Overview, clock: Callable[[], float]) -> None:
        self._overview = overview
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        counters = self._overview.counters
        views = list(self._overview.connections())
        states = Counter(view.state for view in views)
        yield _gauges(
            "tricast_proxy_connections",
            "Connections of clients that are open.",
            "state",
            {state.value: states[state] for state in State},
        )
        yield GaugeMetricFamily("tricast_proxy_draining", "1 while the proxy goes down.", self._overview.is_draining)
        yield CounterMetricFamily(
            "tricast_proxy_connections_accepted", "Connections of clients accepted.", counters.accepted
        )
        yield _counters("tricast_proxy_requests", "Requests by the status of the answer.", "status", counters.requests)
        yield CounterMetricFamily("tricast_proxy_tunnels", "Connections that became tunnels.", counters.tunnels)
        yield CounterMetricFamily("tricast_proxy_retries", "Attempts behind the first of a request.", counters.retries)
        yield CounterMetricFamily(
            "tricast_proxy_upstream_connections_opened", "Connections to servers opened.", counters.opened
        )
        yield CounterMetricFamily(
            "tricast_proxy_upstream_connections_reused", "Requests on connections used before.", counters.reused
        )
        yield _counters("tricast_proxy_cuts", "Exchanges and tunnels that were cut, by why.", "reason", counters.cuts)
        yield _counters(
            "tricast_proxy_refused", "Requests that the proxy answered itself, by why.", "reason", counters.refused
        )
        yield CounterMetricFamily(
            "tricast_proxy_received_bytes",
            "Bytes received from clients.",
            counters.received + sum(view.received for view in views),
        )
        yield CounterMetricFamily(
            "tricast_proxy_sent_bytes", "Bytes sent to clients.", counters.sent + sum(view.sent for view in views)
        )
        yield from self._of_servers()

    def _of_servers(self) -> Iterator[Metric]:
        servers, now = self._overview.servers, self._clock()
        up = {server.label: server.health(now) is Health.UP for server in servers}
        yield _gauges("tricast_proxy_server_up", "1 for a server that gets new clients.", "server", up)
        active = {server.label: server.active for server in servers}
        yield _gauges("tricast_proxy_server_active", "Exchanges and tunnels with a server.", "server", active)
        events = CounterMetricFamily(
            "tricast_proxy_server_events", "What happened with a server.", labels=["server", "event"]
        )
        for server in servers:
            for event, count in server.counts.items():
                events.add_metric([server.label, event], count)
        yield events


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
