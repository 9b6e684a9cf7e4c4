"""What to write into a proxy's configuration."""

import re
from pathlib import Path

import pytest

from tricast.probe import advice
from tricast.probe.advice import KNOWN, PROBLEMS, SNIPPETS, advise
from tricast.probe.fingerprint import NAMES

PROBE = Path(advice.__file__).parent
CONFIG = Path(__file__).parents[2] / "config"


def text(proxy, *problems):
    return "\n".join(line for _, lines in advise([proxy], problems) for line in lines)


def test_every_snippet_is_for_a_proxy_with_a_name():
    assert set(KNOWN) <= set(NAMES)
    assert len(SNIPPETS) == len(KNOWN)


@pytest.mark.parametrize("proxy", KNOWN)
def test_nothing_failed(proxy):
    assert list(advise([proxy], [])) == []


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_can_be_solved_somewhere(problem):
    assert list(advise(KNOWN, [problem]))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_is_one_that_a_check_can_find(problem):
    name = next(name for name, value in vars(advice).items() if value == problem)
    assert any(f"advice.{name}" in path.read_text() for path in (PROBE / "verdicts").glob("*.py"))


def test_only_what_failed():
    websocket = text("nginx", "no-ws")
    assert "proxy_set_header Upgrade" in websocket
    assert "proxy_buffering" not in websocket
    streams = text("nginx", "buffered")
    assert "proxy_buffering off;" in streams
    assert "Upgrade" not in streams
    assert streams.count("proxy_http_version 1.1") == 1


@pytest.mark.parametrize("proxy", KNOWN)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_brackets_match(proxy, problem):
    shown = "\n".join(line.partition("#")[0] for line in text(proxy, problem).split("\n"))
    assert shown.count("{") == shown.count("}")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.proxy)
def test_the_whole_configuration_that_it_names_is_there(snippet):
    for name in re.findall(r"config/([\w.]+)", snippet.where):
        assert (CONFIG / name).is_file()


def test_apache_has_no_comments_behind_directives():
    assert not [
        line for line in text("apache", *PROBLEMS).split("\n") if line.partition("#")[0].strip() and "#" in line
    ]


def test_a_proxy_without_advice():
    assert list(advise(["cloudfront", "no such"], PROBLEMS)) == []
