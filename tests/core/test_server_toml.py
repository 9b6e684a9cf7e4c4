"""``config/server.toml`` is the documentation of the configuration, so it must say what is true."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tricast import Config, load_config
from tricast.config import SourceEntry
from tricast.schema import model_of

FILE = Path(__file__).parents[2] / "config" / "server.toml"
SECTIONS = sorted(Config.model_fields)


def test_values_are_the_defaults() -> None:
    assert load_config(FILE) == Config()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_there(section: str) -> None:
    written = tomllib.loads(FILE.read_text())
    fields = type(getattr(Config(), section)).model_fields
    # Lists of tables are empty by default, and shown in comments.
    assert set(written[section]) == {key for key, field in fields.items() if model_of(field.annotation) is None}


def test_every_key_is_explained() -> None:
    """A comment stands above each key, or above the keys that follow one another."""
    lines = FILE.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-z_]+ = ", line):
            above = lines[number - 1]
            assert above.startswith("#") or re.match(r"[a-z_]+ = ", above), line


def test_the_keys_shown_in_comments_work(tmp_path: Path) -> None:
    keys = "algorithm|secret|id|file|name|hash|publish|subscribe"
    tables = rf"(?m)^#(\[\[auth|(?:{keys}) =)"
    # In TOML, tables end what belongs to the section itself.
    before, section, after = FILE.read_text().partition("[auth]\n")
    own, following, rest = after.partition("[tls]\n")
    shown = "\n".join(line[1:] for line in own.splitlines() if re.match(tables, line))
    file = tmp_path / "server.toml"
    file.write_text(f"{before}{section}{own}{shown}\n{following}{rest}")
    auth = load_config(file).auth
    assert auth.is_on
    assert [key.algorithm for key in auth.key] == ["HS256", "ES256"]
    assert [(key.name, key.publish) for key in auth.api_key] == [("billing", ("billing.>",))]


def test_the_handlers_shown_in_comments_work(tmp_path: Path) -> None:
    shown = re.sub(r"(?m)^#(\[\[websocket|path =|handler =)", r"\1", FILE.read_text())
    file = tmp_path / "server.toml"
    file.write_text(shown)
    handlers: Any = load_config(file).websocket.handler
    assert [entry.path for entry in handlers] == ["/echo", "/chat"]


def test_the_sources_shown_in_comments_work(tmp_path: Path) -> None:
    before, section, after = FILE.read_text().partition("[log]\n")
    own, following, rest = after.partition("[poll]\n")
    own = own.replace('url = "memory:"', 'url = "kafka://localhost/events"')
    lines = re.findall(r"(?m)^#(\[\[log\.source\]\]|[a-z_]+ = .*)$", own)
    file = tmp_path / "server.toml"
    file.write_text(before + section + own + "\n".join(lines) + "\n" + following + rest)
    (source,) = load_config(file).log.source
    assert source == SourceEntry(kafka_topic="orders", topic="orders.{key}")
    # Every key of a source is there.
    assert len(lines) == 1 + len(SourceEntry.model_fields)


def test_the_settings_of_kafka_shown_in_comments_work(tmp_path: Path) -> None:
    (shown,) = re.findall(r"such as (\{ \"security.protocol\".* \})", FILE.read_text())
    file = tmp_path / "server.toml"
    file.write_text(f'[log]\nurl = "kafka://localhost/events"\nkafka = {shown}\n')
    assert load_config(file).log.kafka["security.protocol"] == "SASL_SSL"
