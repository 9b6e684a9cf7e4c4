"""Envoy's ready configuration, which is read here and not run: it says what its comments promise."""

from typing import Any

import yaml
from proxies.ready import CONFIG

import tricast

TEXT = (CONFIG / "envoy.yaml").read_text(encoding="utf-8")
RESOURCES: dict[str, Any] = yaml.safe_load(TEXT)["static_resources"]
(CLUSTER,) = RESOURCES["clusters"]


def manager() -> dict[str, Any]:
    """What is done with HTTP."""
    (listener,) = RESOURCES["listeners"]
    (chain,) = listener["filter_chains"]
    (entry,) = chain["filters"]
    config: dict[str, Any] = entry["typed_config"]
    assert config["@type"].endswith(".v3.HttpConnectionManager")
    return config


def routes() -> list[dict[str, Any]]:
    (host,) = manager()["route_config"]["virtual_hosts"]
    assert host["domains"] == ["*"]
    return list(host["routes"])


def seconds(duration: str) -> float:
    assert duration.endswith("s")
    return float(duration[:-1])


def test_websockets_are_let_through() -> None:
    assert manager()["upgrade_configs"] == [{"upgrade_type": "websocket"}]
    assert manager()["http2_protocol_options"]["allow_connect"] is True


def test_every_route_but_the_operators_leads_to_the_server() -> None:
    refused, passed = routes()
    assert refused == {"match": {"path": "/metrics"}, "direct_response": {"status": 403}}
    assert passed["match"] == {"prefix": "/"}
    assert passed["route"]["cluster"] == CLUSTER["name"] == CLUSTER["load_assignment"]["cluster_name"]


def test_only_silence_ends_a_stream() -> None:
    config, route = tricast.Config(), routes()[-1]["route"]
    assert route["timeout"] == "0s"
    silence = max(2 * config.sse.keepalive, 2 * config.websocket.ping_interval, config.poll.timeout)
    assert seconds(route["idle_timeout"]) > silence


def test_connections_are_kept_for_less_time_than_the_server_keeps_them() -> None:
    (options,) = CLUSTER["typed_extension_protocol_options"].values()
    assert seconds(options["common_http_protocol_options"]["idle_timeout"]) < tricast.Config().limits.idle_timeout


def test_subscribers_are_not_limited_to_the_default_of_requests() -> None:
    (limits,) = CLUSTER["circuit_breakers"]["thresholds"]
    assert min(limits.values()) > 1024


def test_servers_are_asked_whether_they_are_ready() -> None:
    (check,) = CLUSTER["health_checks"]
    assert check["http_health_check"] == {"path": "/readyz"}


def test_another_server_can_be_added_as_it_is_shown() -> None:
    shown = TEXT.index("              # - endpoint:")
    text = TEXT[:shown] + TEXT[shown:].replace("              # ", "              ")
    (cluster,) = yaml.safe_load(text)["static_resources"]["clusters"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    ports = [entry["endpoint"]["address"]["socket_address"]["port_value"] for entry in locality["lb_endpoints"]]
    assert ports == [8080, 8081]
