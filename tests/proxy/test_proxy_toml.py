"""``config/proxy.toml`` is the documentation of the configuration, so it must say what is true."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest

from tricast_proxy.config import NEVER, After, FaultEntry, ProxyConfig, load_proxy_config

FILE = Path(__file__).parents[2] / "config" / "proxy.toml"
SECTIONS = [name for name in ProxyConfig.model_fields if name not in ("server", "fault")]
#: A key; words in comments have a space before them.
KEY = re.compile(r"#[a-z_0-9]+ = ")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("TRICAST_"):
            monkeypatch.delenv(name)


def uncommented() -> str:
    return re.sub(r"(?m)^#(\[\[|[a-z_0-9]+ = )", r"\1", FILE.read_text())


def test_as_it_is_it_sets_nothing() -> None:
    """So that a copy of it leaves everything to the profile."""
    assert not any(tomllib.loads(FILE.read_text()).values())
    changed = load_proxy_config(FILE, overrides={"proxy": {"profile": "nginx-default"}})
    assert changed == load_proxy_config(overrides={"proxy": {"profile": "nginx-default"}})


def test_values_shown_are_the_defaults() -> None:
    shown = tomllib.loads(uncommented())
    (shown["server"], shown["fault"]) = shown["server"][:1], []
    assert ProxyConfig.model_validate(shown) == ProxyConfig()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_there_in_order(section: str) -> None:
    written = tomllib.loads(uncommented())
    assert list(written[section]) == list(type(getattr(ProxyConfig(), section)).model_fields)


def test_sections_are_in_order() -> None:
    shown = list(dict.fromkeys(re.findall(r"(?m)^#?\[+([a-z]+)\]", FILE.read_text())))
    assert shown == list(ProxyConfig.model_fields)


def test_every_key_is_explained() -> None:
    """A comment stands above each key, or above the keys that follow one another; examples need none of their own."""
    lines = FILE.read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if KEY.match(line):
            assert above.startswith(("# ", "#[[")) or KEY.match(above), line


def test_the_server_is_shown_with_all_keys() -> None:
    server, _ = tomllib.loads(uncommented())["server"]
    assert list(server) == list(type(ProxyConfig().server[0]).model_fields)


def test_the_fault_is_shown_with_all_keys_and_does_nothing() -> None:
    fault, *_ = tomllib.loads(uncommented())["fault"]
    assert list(fault) == list(FaultEntry.model_fields)
    assert FaultEntry.model_validate(fault) == FaultEntry()


def test_what_is_shown_in_comments_works(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(uncommented())
    config = load_proxy_config(file)
    assert [server.label for server in config.server] == ["127.0.0.1:8080", "second"]
    assert [(fault.probability, fault.transport, fault.reset_after) for fault in config.fault] == [
        (1.0, "any", NEVER),
        (0.1, "sse", After(seconds=10)),
    ]
