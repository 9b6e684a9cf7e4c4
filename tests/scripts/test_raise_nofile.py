"""scripts/raise-nofile as people call it: a program of its own, below limits that every machine allows."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from clocks import HANG_SECONDS

from tricast.config import Config

SCRIPT = Path(__file__).parents[2] / "scripts" / "raise-nofile"
PAM_LIMITS = Path("etc/security/limits.d/tricast.conf")
SYSTEMD_DROP_IN = Path("etc/systemd/system/tricast.service.d/limits.conf")

PYTHON = (sys.executable, "-I", "-S")
PRINT_LIMITS = (*PYTHON, "-c", "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))")
# Becomes a command below the limits given, and, where root started it, without the right to raise them
# (CAP_SYS_RESOURCE is 24, PR_CAPBSET_DROP too; what is not in the bounding set is gone after exec).
CONFINE = """
import ctypes, os, resource, sys
soft, hard, may_raise = map(int, sys.argv[1:4])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
if not may_raise:
    ctypes.CDLL(None).prctl(24, 24, 0, 0, 0)
os.execv(sys.argv[4], sys.argv[4:])
"""
# Rights are given up after a rehearsal, which imports whatever the script will need: the interpreter may
# lie where only root can read.
RUN_AS_NOBODY = """
import contextlib, io, os, pathlib, sys
script = compile(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"), "raise-nofile", "exec")
arguments = sys.argv[2:]
sys.argv[1:] = ["--persist", "--dry-run"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    exec(script)
if os.geteuid() == 0:
    os.setuid(65534)
sys.argv[1:] = arguments
exec(script)
"""


def call(command: Sequence[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return call([*PYTHON, SCRIPT, *arguments])


def run_below(soft: int, hard: int, *arguments: object, may_raise: bool = False) -> subprocess.CompletedProcess[str]:
    return call([*PYTHON, "-c", CONFINE, soft, hard, int(may_raise), *PYTHON, SCRIPT, *arguments])


def read_nr_open() -> int:
    return int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii"))


# -- the command after -- ------------------------------------------------------------------------------------


def test_soft_limit_is_raised_for_the_command() -> None:
    result = run_below(128, 512, "--limit", 300, "--", *PRINT_LIMITS)
    assert (result.returncode, result.stdout, result.stderr) == (0, "300 512\n", "")


def test_limits_are_never_lowered() -> None:
    result = run_below(400, 512, "--limit", 200, "--", *PRINT_LIMITS)
    assert (result.returncode, result.stdout, result.stderr) == (0, "400 512\n", "")


def test_hard_limit_that_may_not_be_raised_is_told_in_one_line() -> None:
    result = run_below(128, 256, "--limit", 4096, "--", *PRINT_LIMITS)
    assert (result.returncode, result.stdout) == (0, "256 256\n")
    assert result.stderr == (
        "raise-nofile: the hard limit may not be raised here; going on with 256 instead of 4,096\n"
    )


def test_hard_limit_is_raised_where_the_kernel_allows_it() -> None:
    attempt = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))"
    allowed = call([*PYTHON, "-c", CONFINE, 128, 256, 1, *PYTHON, "-c", attempt]).returncode == 0
    result = run_below(128, 256, "--limit", 512, "--", *PRINT_LIMITS, may_raise=True)
    assert result.stdout == ("512 512\n" if allowed else "256 256\n")
    assert ("may not be raised" in result.stderr) is not allowed


def test_default_asks_for_as_much_as_the_kernel_grants() -> None:
    result = run_below(128, 256, "--", *PRINT_LIMITS)
    assert result.stdout == "256 256\n"
    assert f"instead of {min(1_048_576, read_nr_open()):,}\n" in result.stderr


def test_more_than_the_kernel_grants_is_capped_and_told() -> None:
    nr_open = read_nr_open()
    result = run_below(128, 256, "--limit", nr_open + 1, "--", *PRINT_LIMITS)
    assert result.returncode == 0
    assert f"raise-nofile: fs.nr_open allows no more than {nr_open:,} " in result.stderr


def test_script_becomes_the_command() -> None:
    command = [*PYTHON, str(SCRIPT), "--", *PYTHON, "-c", "import os; print(os.getpid())"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        printed, _ = process.communicate(timeout=HANG_SECONDS)
    assert printed == f"{process.pid}\n"


def test_arguments_and_exit_status_are_the_commands_own() -> None:
    body = "import sys; print(sys.argv[1:]); sys.exit(7)"
    result = run("--", *PYTHON, "-c", body, "a b", "--", "--check", "")
    assert (result.returncode, result.stdout) == (7, "['a b', '--', '--check', '']\n")


def test_command_does_not_inherit_the_signals_that_python_ignores() -> None:
    status = run("--", "cat", "/proc/self/status").stdout
    ignored = int(re.search(r"^SigIgn:\s*([0-9a-f]+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    assert not ignored & (1 << signal.SIGPIPE - 1)
    assert not ignored & (1 << signal.SIGXFSZ - 1)


@pytest.mark.parametrize("name", ["no-such-command-anywhere", "./no-such-file", "/etc/passwd/below-a-file"])
def test_missing_command_is_127(name: str) -> None:
    result = run("--limit", 1, "--", name)
    assert (result.returncode, result.stdout) == (127, "")
    assert result.stderr == f"raise-nofile: {name}: command not found\n"


def test_file_that_is_no_program_is_126(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("data", encoding="ascii")
    result = run("--limit", 1, "--", path)
    assert result.returncode == 126
    assert result.stderr == f"raise-nofile: {path}: cannot be executed: Permission denied\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--",),
        ("true",),
        ("--check", "--", "true"),
        ("--check", "--persist"),
        ("--persist", "--", "true"),
        ("--dry-run", "--", "true"),
        ("--check", "--dry-run"),
        ("--check", "--root", "/nowhere"),
        ("--limit", "--check"),
        ("--limit", "0", "--check"),
        ("--limit", "-1", "--check"),
        ("--limit", "many", "--check"),
        ("--limi", "5", "--check"),
        ("--unknown", "--check"),
    ],
)
def test_wrong_usage_is_2_and_shows_the_usage(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: raise-nofile ")
    assert "Traceback" not in result.stderr


def test_help_lists_every_option() -> None:
    options = set(re.findall(r'"(--[a-z-]+)"', SCRIPT.read_text(encoding="utf-8")))
    result = run("--help")
    assert result.returncode == 0
    assert options >= {"--limit", "--check", "--persist", "--dry-run", "--root"}
    assert not [option for option in options if option not in result.stdout]


# -- --check -------------------------------------------------------------------------------------------------


def test_check_says_what_is_set_and_what_it_allows() -> None:
    result = run_below(128, 1000, "--check")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^soft limit +128  ", result.stdout, re.MULTILINE)
    assert re.search(r"^hard limit +1,000  ", result.stdout, re.MULTILINE)
    assert re.search(rf"^fs\.nr_open +{read_nr_open():,}  ", result.stdout, re.MULTILINE)
    assert re.search(r"^fs\.file-max +[0-9,]+  ", result.stdout, re.MULTILINE)
    # 64 in reserve and 16 of the server's own.
    assert "\n48 connections fit into the soft limit, 920 into the hard one:\n" in result.stdout


def test_check_counts_the_reserve_that_the_server_keeps() -> None:
    reserve = Config().limits.reserved_descriptors
    assert f"\n{reserve} descriptors stay in reserve " in run_below(128, 256, "--check").stdout


def test_check_never_counts_below_zero() -> None:
    assert "\n0 connections fit into the soft limit, 0 " in run_below(64, 70, "--check").stdout


def test_check_says_what_to_do_when_the_limit_is_low() -> None:
    low = run_below(128, 256, "--limit", "2,000", "--check").stdout
    assert "scripts/raise-nofile --limit 2000 --persist\n" in low
    assert "scripts/raise-nofile -- COMMAND\n" in low
    assert "sysctl" not in low
    assert "is enough" not in low


def test_check_says_when_the_kernel_itself_is_the_limit() -> None:
    wanted = read_nr_open() + 1
    assert f"sysctl -w fs.nr_open={wanted}\n" in run_below(128, 256, "--limit", wanted, "--check").stdout


def test_check_says_when_nothing_has_to_be_done() -> None:
    enough = run_below(256, 256, "--limit", 256, "--check").stdout
    assert enough.endswith("\nThe hard limit is enough for 256 descriptors.\n")
    assert "--persist" not in enough
    assert "COMMAND" not in enough


# -- --persist -----------------------------------------------------------------------------------------------


def test_persist_writes_files_that_pam_and_systemd_read(tmp_path: Path) -> None:
    result = run("--limit", 5000, "--persist", "--root", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    pam, systemd = tmp_path / PAM_LIMITS, tmp_path / SYSTEMD_DROP_IN
    assert f"wrote {pam}\nwrote {systemd}\n" in result.stdout
    assert read_settings(pam) == ["* hard nofile 5000", "root hard nofile 5000"]
    assert read_settings(systemd) == ["[Service]", "LimitNOFILE=5000"]
    assert [path.stat().st_mode & 0o777 for path in (pam, systemd)] == [0o644, 0o644]


def test_persist_replaces_what_it_wrote_before(tmp_path: Path) -> None:
    run("--limit", 5000, "--persist", "--root", tmp_path)
    assert run("--limit", 6000, "--persist", "--root", tmp_path).returncode == 0
    assert read_settings(tmp_path / SYSTEMD_DROP_IN) == ["[Service]", "LimitNOFILE=6000"]


def test_persist_never_writes_more_than_the_kernel_grants(tmp_path: Path) -> None:
    nr_open = read_nr_open()
    result = run("--limit", nr_open + 1, "--persist", "--root", tmp_path)
    assert f"fs.nr_open allows no more than {nr_open:,} " in result.stderr
    assert read_settings(tmp_path / SYSTEMD_DROP_IN) == ["[Service]", f"LimitNOFILE={nr_open}"]


def test_dry_run_prints_the_files_and_writes_none(tmp_path: Path) -> None:
    printed = run("--limit", 5000, "--persist", "--dry-run", "--root", tmp_path).stdout
    assert list(tmp_path.iterdir()) == []
    run("--limit", 5000, "--persist", "--root", tmp_path)
    paths = [tmp_path / PAM_LIMITS, tmp_path / SYSTEMD_DROP_IN]
    assert printed == "\n".join(f"# {path}\n{path.read_text(encoding='utf-8')}" for path in paths)


def test_dry_run_names_the_real_paths_by_default() -> None:
    printed = run("--persist", "--dry-run").stdout
    assert f"# /{PAM_LIMITS}\n" in printed
    assert f"# /{SYSTEMD_DROP_IN}\n" in printed


def test_persist_without_root_says_what_to_do() -> None:
    result = call([*PYTHON, "-c", RUN_AS_NOBODY, SCRIPT, "--limit", 1, "--persist"])
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "raise-nofile: --persist needs root: use sudo, or --dry-run to see what it would write\n"


def test_persist_names_the_file_that_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file where the folder should be", encoding="ascii")
    result = run("--limit", 1, "--persist", "--root", tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(rf"raise-nofile: {re.escape(str(tmp_path))}/etc\S*: cannot be written: .+\n", result.stderr)


def read_settings(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [" ".join(line.split()) for line in lines if not line.startswith("#")]
