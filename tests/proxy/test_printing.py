"""What ``--print-config`` shows can be read again, and says where each value comes from."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tricast_proxy.cli import proxy
from tricast_proxy.config import ProxyConfig, given_to_proxy, load_proxy_config
from tricast_proxy.printing import config_as_toml, toml_value
from tricast_proxy.profiles import MARKS, load_profile, profile_names


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("TRICAST_"):
            monkeypatch.delenv(name)


class Printer:
    """Prints what is written into a file of its own, as the command does."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "proxy.toml"
        self.again = folder / "again.toml"

    def __call__(self, text: str = "", overrides: Mapping[str, Mapping[str, object]] | None = None) -> str:
        self.file.write_text(text)
        self.config = load_proxy_config(self.file, overrides=overrides)
        printed = config_as_toml(self.config, given_to_proxy(self.file, overrides=overrides))
        self.again.write_text(printed)
        return printed.replace(str(self.file), "FILE")

    def read_again(self) -> ProxyConfig:
        return load_proxy_config(self.again)


@pytest.fixture
def shown(tmp_path: Path) -> Printer:
    return Printer(tmp_path)


def origins(printed: str) -> dict[str, list[str]]:
    """What stands behind the values: section.key to origins, of which tables of a list have one each."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in printed.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif match := re.fullmatch(r"([a-z_0-9]+) = .*  # (.+)", line):
            found.setdefault(f"{section}.{match[1]}", []).append(match[2])
    return found


@pytest.mark.parametrize("profile", profile_names())
def test_every_profile_can_be_read_again(shown: Printer, profile: str) -> None:
    printed = shown(f'[proxy]\nprofile = "{profile}"')
    assert shown.read_again() == shown.config
    where = origins(printed)
    for dotted, known in load_profile(profile).keys.items():
        assert where.pop(dotted) == [f"profile {known.profile}, {known.mark}"]
    assert where.pop("proxy.profile") == ["FILE"]
    assert {origin for of_key in where.values() for origin in of_key} == {"default"}


def test_every_key_is_shown(shown: Printer) -> None:
    written = tomllib.loads(shown())
    assert set(written) == set(ProxyConfig.model_fields) - {"fault"}
    for section in set(written) - {"server"}:
        assert list(written[section]) == list(type(getattr(ProxyConfig(), section)).model_fields)


def test_the_legend_tells_of_every_mark_and_of_the_profile(shown: Printer) -> None:
    printed = shown('[proxy]\nprofile = "aws-alb"')
    legend = printed.partition("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in legend)
    assert load_profile("aws-alb").description in legend[1]
    assert [line for mark, meaning in MARKS.items() for line in legend if line == f"#   {mark}  {meaning}"] == legend[
        -5:
    ]


def test_where_values_come_from(shown: Printer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_PROXY_TUNNEL__HALF_CLOSE", "forward")
    monkeypatch.setenv("TRICAST_PROXY_CLIENT__MAX_AGE", "5m")
    printed = shown(
        '[proxy]\nprofile = "nginx-websocket"\n[tunnel]\nidle_timeout = "60s"\n[client]\nmax_age = "10m"',
        {"proxy": {"port": 0}, "client": {"max_age": "7m"}},
    )
    where = origins(printed)
    assert where["proxy.port"] == ["command line"]
    assert where["client.max_age"] == ["command line"]
    assert where["tunnel.half_close"] == ["environment"]
    assert where["tunnel.idle_timeout"] == ["FILE"]  # though the profile says the same
    assert where["tunnel.upgrade"] == ["profile nginx-websocket, O"]
    assert where["headers.underscores"] == ["profile nginx-default, O"]
    assert where["tunnel.deny_status"] == ["default"]
    assert shown.config.client.max_age == 420.0
    monkeypatch.delenv("TRICAST_PROXY_CLIENT__MAX_AGE")
    monkeypatch.delenv("TRICAST_PROXY_TUNNEL__HALF_CLOSE")
    assert shown.read_again() == shown.config


def test_a_guess_is_shown_as_one(shown: Printer) -> None:
    assert origins(shown('[proxy]\nprofile = "cloudflare"'))["tunnel.idle_timeout"] == ["profile cloudflare, ?"]


def test_servers_and_faults(shown: Printer) -> None:
    printed = shown(
        '[[server]]\naddress = "127.0.0.1:1"\nweight = 3\n[[server]]\naddress = "127.0.0.1:2"\n'
        '[[fault]]\ntransport = "sse"\nreset_after = "10s"\ndelay_up = "250ms"\n'
    )
    assert shown.read_again() == shown.config
    where = origins(printed)
    assert where["server.address"] == ["FILE", "FILE"]
    assert where["server.weight"] == ["FILE", "default"]
    assert (where["fault.reset_after"], where["fault.path"]) == (["FILE"], ["default"])


def test_servers_of_the_command_line_are_not_those_of_the_file(shown: Printer) -> None:
    servers = ({"address": "127.0.0.1:8"}, {"address": "127.0.0.1:9"})
    printed = shown('[[server]]\naddress = "127.0.0.1:1"\nweight = 3\n', {"server": servers})  # type: ignore[dict-item]
    assert origins(printed)["server.address"] == ["command line", "command line"]
    assert origins(printed)["server.weight"] == ["default", "default"]
    assert shown.read_again() == shown.config


def test_lists_and_tables_of_the_environment(shown: Printer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_PROXY_SERVER", '[{"address": "[::1]:8", "name": "a\\u007f"}]')
    monkeypatch.setenv("TRICAST_PROXY_HEADERS__REQUEST_ADD", '{"X-A": "1", "X.B": "\\" \\u00e9"}')
    printed = shown()
    monkeypatch.delenv("TRICAST_PROXY_SERVER")
    monkeypatch.delenv("TRICAST_PROXY_HEADERS__REQUEST_ADD")
    assert origins(printed)["server.name"] == ["environment"]
    assert origins(printed)["headers.request_add"] == ["environment"]
    assert shown.read_again() == shown.config


def test_timers_are_written_as_they_are(shown: Printer) -> None:
    printed = shown('[proxy]\nprofile = "nginx-default"\nspeed = 20.0\n')
    assert shown.read_again().upstream.read_timeout == 60.0
    assert "by proxy.speed they pass 20 times as fast" in printed
    assert "proxy.speed they pass" not in shown('[proxy]\nprofile = "nginx-default"\n')


def test_a_chain_is_told_of(shown: Printer) -> None:
    printed = shown('[proxy]\nchain = ["cloudflare", "nginx-websocket"]\n')
    assert "several proxies, with values of their own: cloudflare, nginx-websocket." in printed
    assert shown.read_again() == shown.config


def test_no_secret_is_shown(shown: Printer) -> None:
    printed = shown('[balance]\ncookie_secret = "hunter2"')
    assert "hunter2" not in printed
    assert "# cookie_secret is a secret, and not shown; FILE" in printed
    assert shown.read_again().balance.cookie_secret == ""


def test_without_layers_what_is_not_of_the_profile_is_a_default() -> None:
    printed = config_as_toml(ProxyConfig.model_validate({"proxy": {"profile": "plain", "port": 1}}))
    assert {origin for of_key in origins(printed).values() for origin in of_key} == {"default"}


def test_the_command_prints_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(proxy, ["--profile", "aws-alb", "--set", "tunnel.idle_timeout=7s", "--print-config"])
    assert result.exit_code == 0, result.output
    (tmp_path / "again.toml").write_text(result.output)
    config = load_proxy_config(tmp_path / "again.toml")
    assert config == load_proxy_config(overrides={"proxy": {"profile": "aws-alb"}, "tunnel": {"idle_timeout": "7s"}})
    where = origins(result.output)
    assert (where["tunnel.idle_timeout"], where["tunnel.upgrade"]) == (["command line"], ["profile aws-alb, D"])


def test_the_command_prints_each_proxy_of_a_chain() -> None:
    result = CliRunner().invoke(proxy, ["--chain", "cloudflare,nginx-websocket", "--print-config"])
    assert result.exit_code == 0, result.output
    assert re.findall("with the profile (.+):", result.output) == ["cloudflare", "nginx-websocket"]
    assert "\n# ===== Proxy 2 of 2, nginx-websocket =====\n" in result.output
    where = origins(result.output)
    assert where["tunnel.idle_timeout"] == ["profile cloudflare, ?", "profile nginx-websocket, O"]
    assert where["proxy.profile"] == ["chain", "chain"]
    assert where["proxy.port"] == ["default", "chain"]
    assert where["admin.enabled"] == ["default", "chain"]
    assert "command line" not in {origin for of_key in where.values() for origin in of_key}


JSON = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_any_value_can_be_read_again(value: object) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}") == {"value": value}
