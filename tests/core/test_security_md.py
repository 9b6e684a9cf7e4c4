"""SECURITY.md speaks of what is there: keys, files and programs that it names exist."""

import re
from pathlib import Path

import pytest

from tricast.config import Config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
SECTIONS = "|".join(Config.model_fields)


@pytest.mark.parametrize("name", sorted(set(re.findall(rf"`((?:{SECTIONS})\.\w+)`", TEXT))))
def test_keys_are_there(name: str) -> None:
    section, key = name.split(".")
    assert key in type(getattr(Config(), section)).model_fields


@pytest.mark.parametrize(
    "path", sorted({*re.findall(r"\]\(([\w./-]+)\)", TEXT), *re.findall(r"scripts/[\w/-]+", TEXT)})
)
def test_files_are_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_it_speaks_of_limits_and_of_programs() -> None:
    assert TEXT.count("`auth.") >= 2
    assert {"scripts/audit", "scripts/conformance", "scripts/fuzz"} <= set(re.findall(r"scripts/\w+", TEXT))
