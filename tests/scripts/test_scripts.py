"""The scripts and the lock files: that they can be started, parsed, and trusted to install what they name."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from clocks import HANG_SECONDS

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts" / "bench"
FILES = sorted(
    [
        *(path for path in (ROOT / "scripts").iterdir() if path.suffix in ("", ".sh") and path.is_file()),
        *(path for path in BENCH.iterdir() if path.is_file() and not path.suffix),
        ROOT / ".ci" / "run",
    ]
)
PROGRAMS = [path for path in FILES if not path.suffix]
SHELL = [path for path in FILES if "python3" not in path.read_text(encoding="utf-8").splitlines()[0]]
LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-dev.lock"]
ALL_LOCKS = [*LOCKS, BENCH / "requirements.txt", ROOT / "scripts" / "autobahn.lock"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def normalize(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Name to (version, hashes)."""
    joined = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    matches = [re.match(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines]
    assert None not in matches
    return {
        normalize(match[1]): (match[2], re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
        for match, line in zip(matches, lines, strict=True)
        if match is not None
    }


def read_requirements(*extras: str) -> set[str]:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = metadata["project"]
    wanted = [*project["dependencies"], *metadata["build-system"]["requires"]]
    wanted += [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {normalize(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in wanted}  # type: ignore[index]


def test_all_programs_are_here() -> None:
    names = {path.name for path in PROGRAMS if path.parent.name == "scripts"}
    assert names >= {"demo-proxy", "lint", "lock", "proxy-parity", "raise-nofile", "run", "test"}
    assert names >= {"audit", "conformance", "fuzz", "release", "services"}
    measuring = {"check", "hostile", "hundred-thousand", "log-capacity", "proxy", "run"}
    assert {path.name for path in PROGRAMS if path.parent == BENCH} == measuring


@pytest.mark.parametrize("path", PROGRAMS, ids=relative)
def test_program_can_be_executed(path: Path) -> None:
    assert os.access(path, os.X_OK)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first in ("#!/usr/bin/env bash", "#!/usr/bin/env python3")


@pytest.mark.parametrize("path", SHELL, ids=relative)
def test_shell_can_be_parsed(path: Path) -> None:
    result = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("path", [path for path in SHELL if path.suffix != ".sh"], ids=relative)
def test_shell_stops_at_the_first_failure(path: Path) -> None:
    assert "\nset -euo pipefail\n" in path.read_text(encoding="utf-8")


def test_system_python_reads_raise_nofile_without_the_environment() -> None:
    source = (ROOT / "scripts" / "raise-nofile").read_text(encoding="utf-8")
    imported = re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)
    assert imported
    assert set(imported) <= sys.stdlib_module_names


@pytest.mark.parametrize("path", ALL_LOCKS, ids=relative)
def test_everything_locked_has_hashes(path: Path) -> None:
    locked = read_lock(path)
    assert locked
    assert not [name for name, (_, hashes) in locked.items() if not hashes]


@pytest.mark.parametrize("path", ALL_LOCKS, ids=relative)
def test_lock_names_no_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text)
    assert not re.search(r"(^|\s)(/|file:)", text)


@pytest.mark.parametrize(
    ("path", "extras"), [(LOCKS[0], ()), (LOCKS[1], ("test", "lint", "redis", "kafka"))], ids=["run", "dev"]
)
def test_everything_required_is_locked(path: Path, extras: tuple[str, ...]) -> None:
    missing = (read_requirements(*extras) | {"editables"}) - set(read_lock(path))
    assert not missing, f"{sorted(missing)} not locked: run scripts/lock"


def test_what_runs_is_what_was_tested() -> None:
    running, testing = map(read_lock, LOCKS)
    assert set(running) < set(testing)
    assert not [name for name in running if running[name] != testing[name]]


def in_environment(commands: str, *arguments: object) -> str:
    """What commands print that know the functions of environment.sh."""
    source = f"set -euo pipefail; source {ROOT}/scripts/environment.sh; {commands}"
    command = ["bash", "-c", source, "test", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG_SECONDS).stdout


def test_no_service_is_started_while_packages_are_installed(tmp_path: Path) -> None:
    """What invoke-rc.d would ask says no, and is gone afterwards, also when installing fails."""
    policy = tmp_path / "policy-rc.d"
    asked = in_environment("service_policy=$1; without_services bash -c \"'$1' nginx start || echo \\$?\"", policy)
    assert asked == "101\n"
    assert not policy.exists()
    failed = in_environment("service_policy=$1; without_services ls /nowhere 2>/dev/null || echo failed", policy)
    assert failed == "failed\n"
    assert not policy.exists()


def test_a_policy_of_the_machine_stands(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("mine", encoding="utf-8")
    assert in_environment("service_policy=$1; without_services cat $1", policy) == "mine"
    assert policy.read_text(encoding="utf-8") == "mine"


def test_servers_are_found_by_users_without_sbin_on_their_path() -> None:
    assert in_environment("PATH=/usr/bin:/bin; has_program ldconfig && echo there") == "there\n"
    assert in_environment("has_program no-such-program || echo missing") == "missing\n"


def test_every_proxy_is_installed_for_the_tests() -> None:
    script = (ROOT / "scripts" / "test").read_text(encoding="utf-8")
    assert set(re.findall(r"^    require_proxy (\w+) ", script, re.MULTILINE)) == {
        *("nginx", "haproxy", "apache2", "caddy", "varnishd")
    }
