"""The profiles are data, and data has typing mistakes: each value has to be one that the proxy can be given."""

import tomllib
from importlib.resources import files
from typing import Any

import pytest

from tricast.errors import ConfigError
from tricast_proxy.config import OFF, ProxyConfig, Section, load_proxy_config
from tricast_proxy.profiles import MARKS, load_profile, profile_names, profile_values

NAMES = profile_names()
#: What a profile must not decide: it is for whoever runs the proxy.
NOT_OF_PROFILES = ("server", "fault", "faults", "tls", "admin", "logging")
OF_PROXY = {"proxy.mode"}


def written(name: str) -> dict[str, Any]:
    return tomllib.loads((files("tricast_proxy.profiles") / f"{name}.toml").read_text(encoding="utf-8"))


def configured(name: str) -> ProxyConfig:
    return load_proxy_config(overrides={"proxy": {"profile": name}})


def value_of(config: ProxyConfig, dotted: str) -> object:
    section, _, key = dotted.partition(".")
    return getattr(getattr(config, section), key)


def test_all_that_are_promised_are_there() -> None:
    assert set(NAMES) == {
        *("plain", "paranoid"),
        *("nginx-default", "nginx-1.29.7", "nginx-websocket", "nginx-sse"),
        *("haproxy-default", "haproxy-debian", "haproxy-tunnel"),
        *("caddy-2.6", "caddy-2.11", "apache-default", "apache-websocket", "varnish-default", "varnish-pipe"),
        *("envoy-default", "envoy-websocket", "traefik-3"),
        *("aws-alb", "aws-nlb", "gcp-alb", "azure-appgw", "azure-frontdoor", "azure-lb", "azure-appservice"),
        *("cloudflare", "heroku", "fastly"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_loaded_and_every_value_arrives(name: str) -> None:
    config = configured(name)
    # Serialised and back, the value of the profile is what the configuration has.
    alone = ProxyConfig.model_validate(profile_values({"proxy": {"profile": name}}))
    for dotted in load_profile(name).keys:
        assert value_of(config, dotted) == value_of(alone, dotted)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_one_of_the_configuration(name: str) -> None:
    for dotted in load_profile(name).keys:
        section, _, key = dotted.partition(".")
        assert section not in NOT_OF_PROFILES
        assert section != "proxy" or dotted in OF_PROXY
        part = getattr(ProxyConfig(), section)
        assert isinstance(part, Section)
        assert key in type(part).model_fields


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_a_mark(name: str) -> None:
    for known in load_profile(name).keys.values():
        assert known.mark in MARKS
        assert known.profile in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_what_it_is_and_nothing_else(name: str) -> None:
    file = written(name)
    assert set(file) <= {"description", "extends", "keys"}
    assert 20 < len(file["description"]) <= 110
    assert file["description"].endswith(".")
    assert all(isinstance(entry, list) and len(entry) == 2 for entry in file.get("keys", {}).values())


@pytest.mark.parametrize("name", NAMES)
def test_keys_stand_in_the_order_of_the_configuration(name: str) -> None:
    sections = list(ProxyConfig.model_fields)
    places = [sections.index(dotted.partition(".")[0]) for dotted in written(name).get("keys", {})]
    assert places == sorted(places)


@pytest.mark.parametrize("name", [name for name in NAMES if "extends" in written(name)])
def test_one_that_builds_on_another_says_something_new(name: str) -> None:
    beneath = load_profile(written(name)["extends"])
    profile = load_profile(name)
    own = {dotted for dotted, known in profile.keys.items() if known.profile == name}
    assert own == set(written(name)["keys"])
    assert beneath.keys.keys() <= profile.keys.keys()
    for dotted in beneath.keys.keys() - own:
        assert profile.keys[dotted] == beneath.keys[dotted]


def test_the_profile_on_top_counts() -> None:
    strip = load_profile("nginx-default").keys["tunnel.upgrade"]
    any_ = load_profile("nginx-websocket").keys["tunnel.upgrade"]
    assert (strip.value, strip.mark, strip.profile) == ("strip", "O", "nginx-default")
    assert (any_.value, any_.mark, any_.profile) == ("any", "O", "nginx-websocket")
    assert load_profile("nginx-websocket").keys["response.buffering"].profile == "nginx-default"


@pytest.mark.parametrize(
    ("name", "hint"), [("nginx", "did you mean 'nginx-"), ("caddy-2.7", "did you mean 'caddy-2."), ("", "known are ")]
)
def test_one_that_is_not_there(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["../profiles/plain", "plain.toml", "__init__", "Plain"])
def test_a_name_is_not_a_path(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown profile"):
        load_profile(name)


# What decides over push traffic: Upgrade, silence in a tunnel, and how that ends; time to the head, and what is said
# then; silence in an answer; all of it; and how it is held back.
CELLS: dict[str, tuple[str, float, str, float, int, float, float, str]] = {
    "plain": ("any", OFF, "fin", OFF, 504, OFF, OFF, "off"),
    "nginx-default": ("strip", OFF, "fin", 60, 504, 60, OFF, "nginx"),
    "nginx-1.29.7": ("strip", OFF, "fin", 60, 504, 60, OFF, "nginx"),
    "nginx-websocket": ("any", 60, "fin", 60, 504, 60, OFF, "nginx"),
    "nginx-sse": ("strip", OFF, "fin", 60, 504, 60, OFF, "off"),
    "haproxy-default": ("any", OFF, "fin", OFF, 504, OFF, OFF, "off"),
    "haproxy-debian": ("any", 50, "fin", 50, 504, 50, OFF, "off"),
    "haproxy-tunnel": ("any", 3600, "fin", 30, 504, 30, OFF, "off"),
    "caddy-2.6": ("any", OFF, "fin", OFF, 504, OFF, OFF, "fixed"),
    "caddy-2.11": ("any", OFF, "fin", OFF, 504, OFF, OFF, "fixed"),
    "apache-default": ("strip", OFF, "fin", 60, 502, 60, OFF, "off"),
    "apache-websocket": ("websocket", 60, "fin", 60, 502, 60, OFF, "off"),
    "varnish-default": ("strip", OFF, "fin", 60, 503, 60, OFF, "off"),
    "varnish-pipe": ("any", 60, "fin", 60, 503, 60, OFF, "off"),
    "envoy-default": ("deny", OFF, "fin", OFF, 504, OFF, 15, "off"),
    "envoy-websocket": ("websocket", 300, "fin", OFF, 504, OFF, 15, "off"),
    "traefik-3": ("any", OFF, "fin", OFF, 504, OFF, OFF, "off"),
    "aws-alb": ("websocket", 60, "fin", 60, 504, 60, OFF, "off"),
    "aws-nlb": ("any", 350, "silent-then-rst", OFF, 504, OFF, OFF, "off"),
    "gcp-alb": ("any", OFF, "fin", OFF, 502, OFF, 30, "off"),
    "azure-appgw": ("any", 20, "fin", 20, 504, 20, OFF, "full"),
    "azure-frontdoor": ("any", 300, "fin", 30, 503, OFF, OFF, "full"),
    "azure-lb": ("any", 240, "silent", OFF, 504, OFF, OFF, "off"),
    "azure-appservice": ("any", 230, "fin", 230, 502, 230, OFF, "off"),
    "cloudflare": ("any", 100, "fin", 120, 524, 120, OFF, "off"),
    "heroku": ("any", 55, "fin", 30, 503, OFF, OFF, "off"),
    "fastly": ("strip", OFF, "fin", 15, 503, 10, OFF, "off"),
    "paranoid": ("websocket", 15, "fin", 10, 504, 10, 30, "fixed"),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_decides_over_push_traffic(name: str) -> None:
    config = configured(name)
    assert CELLS[name] == (
        config.tunnel.upgrade,
        config.tunnel.idle_timeout,
        config.tunnel.on_idle,
        config.upstream.response_header_timeout,
        config.errors.header_timeout,
        config.upstream.read_timeout,
        config.upstream.response_timeout,
        config.response.buffering,
    )


@pytest.mark.parametrize(
    ("name", "dotted", "value", "mark"),
    [
        ("nginx-default", "upstream.http_version", "1.0", "O"),
        ("nginx-default", "client.leaves", "abort", "O"),
        ("nginx-default", "client.keepalive_timeout", 75, "O"),
        ("nginx-default", "retry.on", ("connect", "empty", "timeout"), "O"),
        ("nginx-default", "response.informational", "as-final", "O"),
        ("nginx-1.29.7", "upstream.http_version", "1.1", "D"),
        ("nginx-1.29.7", "upstream.keepalive", 32, "D"),
        ("nginx-websocket", "tunnel.half_close", "close-both", "O"),
        ("nginx-websocket", "response.x_accel_buffering", "honour", "O"),
        ("haproxy-default", "response.cork", 0.2, "O"),
        ("haproxy-debian", "upstream.abort", "rst", "O"),
        ("haproxy-debian", "client.leaves", "on-write", "O"),
        ("haproxy-tunnel", "tunnel.half_close", "forward-client", "O"),
        ("haproxy-tunnel", "tunnel.idle_timeout", 3600, "D"),
        ("caddy-2.6", "response.on_cut", "clean", "O"),
        ("caddy-2.6", "tunnel.idle_reset", "upstream", "O"),
        ("caddy-2.11", "response.on_cut", "truncate", "S"),
        ("caddy-2.11", "headers.via", "Caddy", "S"),
        ("apache-default", "errors.header_timeout", 502, "O"),
        ("apache-default", "headers.join", True, "O"),
        ("apache-websocket", "tunnel.half_close", "forward", "O"),
        ("varnish-default", "response.cache", "coalesce", "O"),
        ("varnish-default", "client.leaves", "on-write", "O"),
        ("varnish-pipe", "tunnel.check_101", False, "O"),
        ("envoy-default", "upstream.stream_idle_timeout", 300, "D"),
        ("envoy-websocket", "tunnel.idle_timeout", 300, "?"),
        ("traefik-3", "client.request_timeout", 60, "D"),
        ("aws-alb", "client.max_age", 3600, "D"),
        ("aws-alb", "headers.host", "preserve", "I"),
        ("aws-nlb", "proxy.mode", "tcp", "D"),
        ("gcp-alb", "tunnel.max_lifetime", 30, "D"),
        ("gcp-alb", "upstream.response_timeout", 30, "I"),
        ("azure-appgw", "upstream.response_header_timeout", 20, "?"),
        ("azure-frontdoor", "tunnel.max_lifetime", 14400, "D"),
        ("cloudflare", "errors.connect_timeout", 522, "D"),
        ("cloudflare", "tunnel.idle_timeout", 100, "?"),
        ("heroku", "upstream.stream_idle_timeout", 55, "D"),
        ("fastly", "upstream.read_timeout", 10, "D"),
        ("paranoid", "response.gzip_flush", False, "D"),
    ],
)
def test_other_cells(name: str, dotted: str, value: object, mark: str) -> None:
    assert value_of(configured(name), dotted) == value
    assert load_profile(name).keys[dotted].mark == mark
