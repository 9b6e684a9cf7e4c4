"""The metrics as text: names, kinds and labels as Prometheus reads them."""

import random

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from tricast import metrics
from tricast.config import Config
from tricast.hub import Hub
from tricast.log.memory import MemoryLog
from tricast.runtime import Runtime
from tricast.sweep import Wheel


@pytest.fixture
def runtime() -> Runtime:
    log = MemoryLog(history=10, history_age=10.0, history_size=10**6, clock=lambda: 1000.0)
    return Runtime(
        Config(),
        Hub(log, max_topic_bytes=100, max_event_bytes=100, wake=lambda: None),
        wheel=Wheel(tick=1.0),
        randomness=random.Random(1),
        clock=lambda: 1000.0,
        logger=structlog.wrap_logger(None, processors=[]),
        handlers={},
    )


def text_of(runtime: Runtime) -> str:
    return metrics.expose(metrics.registry_of(runtime)).decode()


def test_every_family_has_a_kind_and_an_explanation(runtime: Runtime) -> None:
    families = [family for family in text_string_to_metric_families(text_of(runtime)) if "tricast" in family.name]
    assert len(families) > 15
    for family in families:
        assert family.documentation.endswith(".") or family.name == "tricast_draining"
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


def test_what_is_counted_is_what_is_told(runtime: Runtime) -> None:
    counters = runtime.counters
    counters.accepted, counters.refused, counters.failed = 7, 5, 3
    counters.streams.update({"sse": 2, "poll": 1})
    counters.lost.update({"left": 4})
    counters.requests.update({("/events", 200): 6, ("/publish", 413): 1})
    runtime.is_draining = True
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text_of(runtime))
        for sample in family.samples
    }
    expected = {
        ("tricast_connections_accepted_total",): 7,
        ("tricast_connections_refused_total",): 5,
        ("tricast_connections_failed_total",): 3,
        ("tricast_connections_lost_total", "left"): 4,
        ("tricast_streams_total", "sse"): 2,
        ("tricast_streams_total", "poll"): 1,
        ("tricast_http_requests_total", "/events", "200"): 6,
        ("tricast_http_requests_total", "/publish", "413"): 1,
        ("tricast_draining",): 1,
    }
    assert {key: found[key] for key in expected} == expected


def test_the_process_is_told_of_as_well(runtime: Runtime) -> None:
    names = {family.name for family in text_string_to_metric_families(text_of(runtime))}
    assert {"process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds"} <= names


def test_two_servers_in_one_process_have_metrics_of_their_own(runtime: Runtime) -> None:
    before = text_of(runtime)
    metrics.registry_of(runtime)
    runtime.counters.accepted += 1
    assert "tricast_connections_accepted_total 0.0\n" in before
    assert "tricast_connections_accepted_total 1.0\n" in text_of(runtime)
