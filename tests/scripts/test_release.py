"""Releases: everybody who builds a commit gets the same bytes, and they hold what is committed."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from clocks import HANG_SECONDS

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "scripts" / "release.py"
PARTS = ("server", "proxy", "config", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "scripts/run")


def git(repository: Path, *arguments: str) -> None:
    told = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_COMMITTER_DATE": "1700000000 +0100",
    }
    told |= {f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", "-C", str(repository), *arguments], check=True, env=os.environ | told, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    ignored = shutil.ignore_patterns("__pycache__")
    for part in PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "A release")
    return folder


def release(repository: Path, output: Path, *arguments: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RELEASE), *arguments, "--repository", str(repository), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS, umask=umask)


def test_two_who_build_a_commit_get_the_same_bytes(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "somewhere" / "else"
    git(repository, "clone", "--quiet", str(repository), str(other))
    git(other, "config", "tar.umask", "0077")
    (other / "not committed").touch()
    (other / "server" / "tricast" / "event.py").unlink()
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    first, second = release(repository, mine), release(other, theirs, umask=0o077)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout == second.stdout
    (wheel,) = mine.glob("*.whl")
    (sdist,) = mine.glob("*.tar.gz")
    assert [line.split()[1] for line in first.stdout.splitlines()] == [wheel.name, sdist.name]
    assert (theirs / wheel.name).read_bytes() == wheel.read_bytes()
    assert (theirs / sdist.name).read_bytes() == sdist.read_bytes()
    assert "tricast/event.py" in zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as files:
        modes = {member.name.partition("/")[2]: (member.mode, member.mtime) for member in files}
    assert modes["scripts/run"] == (0o755, 1_700_000_000)
    assert modes["server/tricast/event.py"] == (0o644, 1_700_000_000)


def test_what_is_committed_is_in_it(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    git(repository, "clone", "--quiet", str(repository), str(other))
    (other / "LICENSE").write_text("mine", encoding="utf-8")
    git(other, "commit", "--quiet", "--all", "--message", "Another release")
    done = release(other, tmp_path / "output")
    assert done.returncode == 0
    (sdist,) = (tmp_path / "output").glob("*.tar.gz")
    with tarfile.open(sdist) as files:
        found = files.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/LICENSE")
        assert found is not None
        assert found.read() == b"mine"


@pytest.mark.parametrize("commit", ["no-such-commit", "HEAD~5"])
def test_a_commit_that_is_not_there(repository: Path, tmp_path: Path, commit: str) -> None:
    done = release(repository, tmp_path / "output", commit)
    assert done.returncode == 1
    assert "release: " in done.stderr
    assert not (tmp_path / "output").exists()
