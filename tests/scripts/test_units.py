"""The unit files for systemd: it finds nothing wrong with them itself, and the sandbox is a tight one."""

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from clocks import HANG_SECONDS

CONFIG = Path(__file__).parents[2] / "config"
#: Of 100, as systemd-analyze(1) counts it; a service without a sandbox has 96.
EXPOSURE = 15


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The folder of both, in which the command is one that is there."""
    text = (CONFIG / "tricast.service").read_text()
    assert text.count("/usr/local/bin/tricast serve") == 1
    (tmp_path / "tricast.service").write_text(text.replace("/usr/local/bin/tricast", sys.executable))
    shutil.copy(CONFIG / "tricast.socket", tmp_path)
    return tmp_path


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--man=no", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)


def test_systemd_knows_every_line(units: Path) -> None:
    done = analyze("verify", units / "tricast.service", units / "tricast.socket")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_line_that_systemd_does_not_know_would_be_found(units: Path) -> None:
    file = units / "tricast.service"
    file.write_text(file.read_text().replace("PrivateTmp=", "PrivateTemp="))
    done = analyze("verify", file)
    assert "PrivateTemp" in done.stdout + done.stderr


def test_the_sandbox_is_tight(units: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", units / "tricast.service")
    assert done.returncode == 0, done.stdout[-500:]


def test_what_the_server_relies_on() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((CONFIG / "tricast.service").read_text())
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert "WatchdogSec" in service
    # Another way would cut the drain short, which says itself how long it takes; and the supervisor tells its workers.
    assert "TimeoutStopSec" not in service
    assert service["KillMode"] == "mixed"
