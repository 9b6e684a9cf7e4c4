"""The fuzzer itself: that a short round of it finds nothing in any target, and that it finds what there is to find."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.run import HERE, TARGETS

#: It has builds for some Pythons and machines only.
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None
#: The same inputs each time, so that a change is judged by itself. Longer rounds are for scripts/fuzz.
ROUND = ("--runs", "200", "--seed", "1")
_PLANTED = '''
"""Invariant: nobody says the word."""
DICTIONARY = (b"mellon",)

def check(data: bytes) -> None:
    assert b"mellon" not in data
'''


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "run.py"), *arguments, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def check_says_why_not(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2
    assert "atheris has no build for this Python or this machine" in done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_round_finds_nothing(target: str, tmp_path: Path) -> None:
    done = run("0", target, *ROUND, folder=tmp_path)
    if not HAS_ATHERIS:
        check_says_why_not(done)
        return
    assert (done.returncode, done.stdout.partition(" inputs in ")[0]) == (0, f"{target}: 200"), (
        done.stdout + done.stderr
    )
    assert not list((tmp_path / "findings").iterdir())


def test_what_breaks_an_invariant_is_found(tmp_path: Path) -> None:
    planted = tmp_path / "targets" / "planted.py"
    planted.parent.mkdir()
    planted.write_text(_PLANTED, encoding="utf-8")
    done = run("20", str(planted), *ROUND[2:], folder=tmp_path)
    if not HAS_ATHERIS:
        check_says_why_not(done)
        return
    assert done.returncode == 1
    assert "planted: found something" in done.stdout
    assert 'assert b"mellon" not in data' in done.stdout
    (found,) = (tmp_path / "findings").iterdir()
    assert b"mellon" in found.read_bytes()


@pytest.mark.parametrize("arguments", [("1", "nothing"), ("-1",), ("soon",), ()])
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert "usage: scripts/fuzz" in done.stderr
