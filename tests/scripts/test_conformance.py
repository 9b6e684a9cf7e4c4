"""Autobahn's test suite: the quick part of the real one; and with one that is ours, what is made of what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clocks import HANG_SECONDS

ROOT = Path(__file__).parents[2]
#: The suite of a test: it takes the URL out of its specification, and reports what it was told to.
_FAKE = """#!/usr/bin/env python3
import json, pathlib, sys
specification = json.loads(pathlib.Path(sys.argv[-1]).read_text())
(server,) = specification["servers"]
assert server["url"].startswith("ws://127.0.0.1:") and server["url"].endswith("/echo")
told = json.loads(pathlib.Path(__file__).with_name("told.json").read_text())
if told is None:
    sys.exit("it is broken")
pathlib.Path(specification["outdir"], "index.json").write_text(json.dumps({server["agent"]: told}))
"""


def test_the_quick_cases_end_well() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "conformance", "--quick"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (total,) = re.findall(r"\*\*all\*\* \| (\d+)", done.stdout)
    assert int(total) > 250


def test_a_folder_that_is_something_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = subprocess.run(
        [ROOT / "scripts" / "conformance", "--set-up"],
        env=os.environ | {"AUTOBAHN": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 1
    assert "is there already, and is not Autobahn's suite" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


#: Where nobody has to be, for our suite asks nobody.
ELSEWHERE = ("--url", "ws://127.0.0.1:9/echo")


def conformance(folder: Path, told: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it with a suite that is told what to say."""
    programs = folder / "env" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(_FAKE, encoding="utf-8")
    (programs / "python").chmod(0o755)
    (programs / "told.json").write_text(json.dumps(told), encoding="utf-8")
    command = [sys.executable, str(ROOT / "scripts" / "conformance.py"), "--suite", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)


def case(behavior: str, closing: str = "OK") -> dict[str, str]:
    return {"behavior": behavior, "behaviorClose": closing}


def test_what_ends_well_is_counted(tmp_path: Path) -> None:
    told = {"1.1.1": case("OK"), "7.1.6": case("INFORMATIONAL", "INFORMATIONAL"), "9.1.1": case("NON-STRICT")}
    done = conformance(tmp_path, told)
    assert done.returncode == 0
    assert "| 1. Framing | 1 | 0 | 0 | 1 |" in done.stdout
    assert "| **all** | 3 | 1 | 1 | 1 |" in done.stdout


@pytest.mark.parametrize(
    "wrong", [case("FAILED"), case("OK", "UNCLEAN"), case("OK", "WRONG CODE"), case("OK", "FAILED BY CLIENT")]
)
def test_what_ends_badly_is_named(tmp_path: Path, wrong: dict[str, str]) -> None:
    done = conformance(tmp_path, {"1.1.1": case("OK"), "12.1.1": wrong}, "1.1.1", "12.*", *ELSEWHERE)
    assert done.returncode == 1
    assert done.stdout.endswith(f"case 12.1.1: {wrong['behavior']}, closing {wrong['behaviorClose']}\n")


def test_a_suite_that_fails(tmp_path: Path) -> None:
    done = conformance(tmp_path, None, *ELSEWHERE)
    assert done.returncode == 3
    assert "it is broken" in done.stderr


def test_a_suite_that_leaves_no_case(tmp_path: Path) -> None:
    done = conformance(tmp_path, {}, *ELSEWHERE)
    assert done.returncode == 3


@pytest.mark.parametrize("arguments", [("--quick", "1.*"), ("--nothing",)])
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert conformance(tmp_path, {}, *arguments).returncode == 2
