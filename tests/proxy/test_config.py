"""Reading the proxy's configuration: what lies beneath what, timers, and everything that can be wrong with it."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.config import PROXY_SECTIONS, SHARED_SECTIONS, Config, load_config
from tricast.errors import ConfigError
from tricast.schema import Section
from tricast_proxy.config import IS_TIMER, OFF, After, FaultEntry, ProxyConfig, load_proxy_config, sped_up
from tricast_proxy.profiles import profile_names

Overrides = Mapping[str, Mapping[str, object]]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TRICAST_"):
            monkeypatch.delenv(name)


class Loader:
    """Loads what is written into a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "proxy.toml"

    def __call__(self, text: str = "", overrides: Overrides | None = None) -> ProxyConfig:
        self.file.write_text(text)
        return load_proxy_config(self.file, overrides=overrides)

    def problems(self, text: str = "", overrides: Overrides | None = None) -> list[str]:
        """The problems with a file, where FILE stands for its name."""
        with pytest.raises(ConfigError) as caught:
            self(text, overrides)
        return [str(problem).replace(str(self.file), "FILE") for problem in caught.value.problems]


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


# Which one counts


def test_nothing_is_all_defaults(load: Loader) -> None:
    assert load() == load_proxy_config() == ProxyConfig()


def test_each_layer_over_the_one_beneath(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = '[proxy]\nprofile = "haproxy-debian"\n'
    file = profile + '[tunnel]\nidle_timeout = "20s"\n'
    assert load(profile).tunnel.idle_timeout == 50.0
    assert load(file).tunnel.idle_timeout == 20.0
    monkeypatch.setenv("TRICAST_PROXY_TUNNEL__IDLE_TIMEOUT", "30s")
    assert load(file).tunnel.idle_timeout == 30.0
    assert load(file, {"tunnel": {"idle_timeout": "40s"}}).tunnel.idle_timeout == 40.0
    # What no layer above speaks of is still the profile's, and what that does not speak of is the default.
    config = load(file)
    assert (config.tunnel.half_close, config.tunnel.max_lifetime) == ("forward-client", OFF)


def test_the_profile_is_named_in_any_layer(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    file = '[proxy]\nprofile = "nginx-default"\n'
    assert load(file).tunnel.upgrade == "strip"
    monkeypatch.setenv("TRICAST_PROXY_PROXY__PROFILE", "envoy-default")
    assert load(file).tunnel.upgrade == "deny"
    config = load(file, {"proxy": {"profile": "aws-alb"}})
    assert (config.proxy.profile, config.tunnel.upgrade) == ("aws-alb", "websocket")


def test_lists_are_replaced_and_tables_are_merged(load: Loader) -> None:
    config = load(
        '[proxy]\nprofile = "apache-default"\n[retry]\non = ["502"]\n[headers.request_add]\nX-Mine = "1"\n'
        '[[server]]\naddress = "127.0.0.1:1"\n'
    )
    assert config.retry.on == ("502",)
    assert config.headers.request_add == {"X-Forwarded-Server": "localhost", "X-Mine": "1"}
    assert [server.address for server in config.server] == ["127.0.0.1:1"]


def test_what_is_set_to_the_default_is_set(load: Loader) -> None:
    config = load(
        '[proxy]\nprofile = "nginx-default"\n[response]\nbuffering = "off"\n[upstream]\nread_timeout = "off"\n'
    )
    assert (config.response.buffering, config.upstream.read_timeout) == ("off", OFF)


def test_lists_in_the_environment(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_PROXY_SERVER", '[{"address": "127.0.0.1:1"}, {"address": "127.0.0.1:2", "name": "b"}]')
    monkeypatch.setenv("TRICAST_PROXY_PROXY__CHAIN", '["plain", "aws-alb"]')
    config = load('[[server]]\naddress = "127.0.0.1:9"')
    assert [server.label for server in config.server] == ["127.0.0.1:1", "b"]
    assert config.proxy.chain == ("plain", "aws-alb")


def test_server_and_proxy_do_not_read_the_variables_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_PROXY_PROXY__PORT", "1")
    monkeypatch.setenv("TRICAST_SERVER__PORT", "2")
    monkeypatch.setenv("TRICAST_LOGGING__LEVEL", "debug")
    assert load_config().server.port == 2
    config = load_proxy_config()
    assert (config.proxy.port, config.logging.level) == (1, "info")


# Timers


@pytest.mark.parametrize(("text", "seconds"), [("off", OFF), ("90s", 90.0), ("250ms", 0.25), ("1h", 3600.0)])
def test_timers(load: Loader, text: str, seconds: float) -> None:
    config = load(f'[tunnel]\nidle_timeout = "{text}"')
    assert config.tunnel.idle_timeout == seconds
    assert ProxyConfig.model_validate({"tunnel": {"idle_timeout": seconds}}) == config
    assert ProxyConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("value", ['"0s"', '"Off"', '"on"', '""', "0", "60", "true", "nan", "-inf", "-1.0", "[]"])
def test_no_timers(load: Loader, value: str) -> None:
    (problem,) = load.problems(f"[tunnel]\nidle_timeout = {value}")
    expected = 'FILE: tunnel.idle_timeout: expected a duration above zero such as "30s", or "off", found '
    assert problem.startswith(expected)


def timers_of(section: Section) -> Iterator[tuple[str, object, bool]]:
    """Every value in a configuration: its key, itself, and whether it is a timer."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        for index, item in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(item, Section):
                yield from ((f"{name}.{index}.{key}", *rest) for key, *rest in timers_of(item))  # type: ignore[misc]
            else:
                yield f"{name}.{index}", item, IS_TIMER in field.metadata


@pytest.mark.parametrize("profile", profile_names())
def test_speed_divides_each_timer_and_nothing_else(profile: str) -> None:
    faults = ({"delay_up": "1s", "delay_down": "2s", "jitter": "100ms", "rate_up": 1000},)
    overrides: Overrides = {"proxy": {"profile": profile, "speed": 20.0}, "fault": faults}  # type: ignore[dict-item]
    config = load_proxy_config(overrides=overrides)
    before, after = list(timers_of(config)), list(timers_of(sped_up(config)))
    assert [(key, is_timer) for key, _, is_timer in before] == [(key, is_timer) for key, _, is_timer in after]
    for (key, was, is_timer), (_, now, _) in zip(before, after, strict=True):
        if is_timer:
            assert isinstance(was, (float, After)), key
            assert now == was / 20, key
        else:
            assert now == was, key


def test_what_is_a_timer() -> None:
    timers = {key.replace(".0", "") for key, _, is_timer in timers_of(ProxyConfig(fault=(FaultEntry(),))) if is_timer}
    assert timers == {
        *(f"client.{name}_timeout" for name in ("header", "request", "body", "send", "keepalive")),
        *(f"upstream.{name}_timeout" for name in ("connect", "send", "response_header", "read", "response")),
        *("client.max_age", "upstream.stream_idle_timeout", "upstream.max_stream_duration"),
        *("upstream.keepalive_timeout", "retry.timeout"),
        *("response.flush_interval", "response.cork", "response.cache_ttl"),
        *("tunnel.idle_timeout", "tunnel.max_lifetime", "drain.grace"),
        *("fault.delay_up", "fault.delay_down", "fault.jitter"),
        *("fault.reset_after", "fault.close_after", "fault.blackhole_after"),
    }


def test_no_timer_stays_none_at_any_speed() -> None:
    config = sped_up(ProxyConfig.model_validate({"proxy": {"speed": 1000.0}}))
    assert math.isinf(config.tunnel.idle_timeout)
    assert config.client.keepalive_timeout == 0.075


def test_a_speed_of_one_changes_nothing() -> None:
    config = load_proxy_config(overrides={"proxy": {"profile": "aws-alb"}})
    assert sped_up(config) == config


@given(st.floats(min_value=1e-3, max_value=1e9))
def test_any_timer_is_written_as_it_is(seconds: float) -> None:
    config = ProxyConfig.model_validate({"tunnel": {"idle_timeout": seconds}})
    again = ProxyConfig.model_validate(config.model_dump(mode="json"))
    assert again.tunnel.idle_timeout == pytest.approx(seconds, rel=1e-15)


# What is wrong


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tunel]\nupgrade = 1", "FILE: tunel: unknown key 'tunel'; did you mean 'tunnel'?"),
        (
            "[tunnel]\nidle_timout = 1",
            "FILE: tunnel.idle_timout: unknown key 'idle_timout'; did you mean 'idle_timeout'?",
        ),
        ("[request]\nxyzzy = 1", "FILE: request.xyzzy: unknown key 'xyzzy'; known are buffering, expect"),
        (
            '[tunnel]\nupgrade = "yes"',
            "FILE: tunnel.upgrade: expected 'strip', 'websocket', 'any' or 'deny', found 'yes'",
        ),
        ('[proxy]\nprofile = "nginx-defualt"', "FILE: proxy.profile: unknown profile 'nginx-defualt'; did you mean"),
        ("[proxy]\nprofile = 1", "FILE: proxy.profile: expected a valid string, found 1"),
        ("[proxy]\nspeed = 0", "FILE: proxy.speed: expected greater than 0, found 0"),
        ("[proxy]\nspeed = inf", "FILE: proxy.speed: expected a finite number, found inf"),
        ("[proxy]\nport = 65536", "FILE: proxy.port: expected less than or equal to 65535, found 65536"),
        ("[errors]\nconnect = 200", "FILE: errors.connect: expected greater than or equal to 400, found 200"),
        ("[errors]\nconnect = 600", "FILE: errors.connect: expected less than or equal to 599, found 600"),
        ('[retry]\non = ["error"]', "FILE: retry.on.0: expected 'connect', 'empty', 'timeout', 'invalid', "),
        ('[limits]\nheader_total = "0B"', "FILE: limits.header_total: expected greater than 0, found '0B'"),
        ('[balance]\nhash_key = "header:"', 'FILE: balance.hash_key: expected "address", "path", or "header:NAME",'),
        ('[balance]\ncookie = "a b"', "FILE: balance.cookie: expected a name of letters, digits"),
        (
            '[health]\npath = "healthz"',
            "FILE: health.path: expected a path, which must begin with /, or nothing, found 'healthz'",
        ),
        ('[health]\nexpect = "2xx"', 'FILE: health.expect: expected a status such as "200", or a range'),
        ('[headers]\nvia = "a b"', "FILE: headers.via: expected to match pattern"),
        ('[headers]\nserver = "a\\r\\nb: c"', "FILE: headers.server: expected to match pattern"),
        ('[headers]\naccept_encoding = "a\\n"', "FILE: headers.accept_encoding: expected to match pattern"),
        ('[headers]\nrequest_id = "a: b"', "FILE: headers.request_id: expected a name such as X-Name, and none that"),
        ('[headers]\nrequest_start = "a\\n"', "FILE: headers.request_start: expected a name such as X-Name, and"),
        ('[headers.request_add]\nA = "b\\r\\nC: d"', "FILE: headers.request_add.A: expected to match pattern"),
        ('[headers.response_add]\nA = "\\u0000"', "FILE: headers.response_add.A: expected to match pattern"),
        ('[headers.request_add]\nContent-Length = "5"', "FILE: headers.request_add.Content-Length.[key]: expected a"),
        ('[headers.request_add]\nhost = "a"', "FILE: headers.request_add.host.[key]: expected a name such as"),
        ('[headers.response_add]\nTRANSFER-ENCODING = "a"', "FILE: headers.response_add.TRANSFER-ENCODING.[key]: "),
        ('[headers.response_add]\n"a b" = "c"', "FILE: headers.response_add.a b.[key]: expected a name such as"),
        ('[headers]\ntrusted = ["10.0.0.0/33"]', "FILE: headers.trusted.0: expected a network such as"),
        ("server = []", "FILE: expected at least one [[server]], each with a name of its own"),
        ("[server]\naddress = 1", "FILE: server: expected a list of tables: write [[server]]"),
        (
            '[proxy]\nprofile = "nginx"',
            "FILE: proxy.profile: unknown profile 'nginx'; did you mean 'nginx-1.29.7' or 'nginx-default' or 'nginx",
        ),
        ("[[server]]", "FILE: server.0.address: Field required"),
        (
            '[[server]]\naddress = "127.0.0.1:1"\nwieght = 1',
            "FILE: server.0.wieght: unknown key 'wieght'; did you mean 'weight'?",
        ),
        ('[[fault]]\ndelay = "1s"', "FILE: fault.0.delay: unknown key 'delay'; did you mean 'delay_"),
        ("[[fault]]\nprobability = 1.1", "FILE: fault.0.probability: expected less than or equal to 1, found 1.1"),
        ("[[fault]]\ninject_1xx = [200]", "FILE: fault.0.inject_1xx.0: expected less than or equal to 199, found 200"),
        ('[tls]\nkey = "key.pem"', "FILE: tls: expected a certificate as well, where there is a key"),
    ],
)
def test_one_problem(load: Loader, text: str, problem: str) -> None:
    (found,) = load.problems(text)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "address",
    [
        "a..b:1",
        f"{'a' * 64}:1",
        "",
        "127.0.0.1",
        ":80",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "::1:80",
        "[::1:80",
        "h:8 0",
        "h:٣",
    ],
)
def test_what_is_no_address(load: Loader, address: str) -> None:
    (found,) = load.problems(f'[[server]]\naddress = "{address}"')
    assert found.startswith('FILE: server.0.address: expected an address such as "127.0.0.1:8080"')


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:65535", "backend.example:8080"])
def test_what_is_an_address(load: Loader, address: str) -> None:
    assert load(f'[[server]]\naddress = "{address}"').server[0].label == address


@pytest.mark.parametrize(
    "servers",
    [
        '[[server]]\naddress = "127.0.0.1:1"\n[[server]]\naddress = "127.0.0.1:1"',
        '[[server]]\naddress = "127.0.0.1:1"\nname = "a"\n[[server]]\naddress = "127.0.0.1:2"\nname = "a"',
        '[[server]]\naddress = "127.0.0.1:1"\n[[server]]\naddress = "127.0.0.1:2"\nname = "127.0.0.1:1"',
    ],
)
def test_servers_that_cannot_be_told_apart(load: Loader, servers: str) -> None:
    (found,) = load.problems(servers)
    assert re.search(r"each with a name of its own: (a|127\.0\.0\.1:1) is there twice$", found)


def test_one_address_under_two_names(load: Loader) -> None:
    servers = load(
        '[[server]]\naddress = "127.0.0.1:1"\nname = "a"\n[[server]]\naddress = "127.0.0.1:1"\nname = "b"'
    ).server
    assert [server.label for server in servers] == ["a", "b"]


def test_all_problems_at_once(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_PROXY_RETRY__TRIES", "0")
    monkeypatch.setenv("TRICAST_PROXY_TUNNEL__UPGRAD", "any")
    monkeypatch.setenv("TRICAST_PROXY_TUNEL__UPGRADE", "any")
    monkeypatch.setenv("TRICAST_PROXY_PROXY__CHAIN", "plain")
    found = load.problems(
        '[proxy]\nprofile = "nginx-default"\nport = "x"\n[nope]\n[upstream]\nread_timeout = 5\n',
        {"headers": {"via": 1}},
    )
    assert [problem.partition(" expected")[0].partition(" unknown")[0] for problem in found] == [
        "FILE: proxy.port:",
        "FILE: upstream.read_timeout:",
        "environment: TRICAST_PROXY_RETRY__TRIES:",
        "environment: TRICAST_PROXY_TUNNEL__UPGRAD:",
        "command line: headers.via:",
        "FILE: nope:",
        "environment: TRICAST_PROXY_TUNEL__UPGRADE:",
        "environment: TRICAST_PROXY_PROXY__CHAIN:",
    ]


def test_an_unknown_profile_hides_nothing_else(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load.problems("[tunnel]\nidle_timeout = 5", {"proxy": {"profile": "aws"}})
    assert [problem.partition(" expected")[0].partition(";")[0] for problem in found] == [
        "FILE: tunnel.idle_timeout:",
        "command line: proxy.profile: unknown profile 'aws'",
    ]
    monkeypatch.setenv("TRICAST_PROXY_PROXY__PROFILE", "aws")
    (found_once,) = load.problems("")
    assert found_once.startswith("environment: TRICAST_PROXY_PROXY__PROFILE: unknown profile 'aws'")


CONFIG = Path(__file__).parents[2] / "config"


def test_a_file_of_the_server_is_told_as_one() -> None:
    file = CONFIG / "server.toml"
    with pytest.raises(ConfigError) as caught:
        load_proxy_config(file)
    assert str(caught.value) == f"{file}: this is a configuration of the server: tricast check {file}"


def test_a_file_of_the_proxy_is_told_as_one() -> None:
    assert frozenset(ProxyConfig.model_fields) == PROXY_SECTIONS | SHARED_SECTIONS
    assert PROXY_SECTIONS.isdisjoint(Config.model_fields)
    file = CONFIG / "proxy.toml"
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file}: this is a configuration of the proxy: tricast proxy --config {file} --check"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        load_proxy_config(tmp_path / "none.toml")
