"""What docs/logs.md names is there."""

import re
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[1]
_NAMED = re.findall(r"\btest_\w+", (_TESTS.parent / "docs" / "logs.md").read_text())


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Modules of tests, and the tests in them."""
    modules = list(_TESTS.rglob("test_*.py"))
    tests = [re.findall(r"^(?:async )?def (test_\w+)", module.read_text(), re.MULTILINE) for module in modules]
    return {module.stem for module in modules}.union(*tests)


@pytest.mark.parametrize("name", sorted(set(_NAMED)))
def test_a_test_that_the_page_names(known: set[str], name: str) -> None:
    assert name in known
