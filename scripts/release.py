"""Builds the wheel and the source distribution of a commit, twice, and compares.

What is built is what is committed, with the time of the commit (SOURCE_DATE_EPOCH), file modes that do not depend on
who builds, and the build backend of requirements-dev.lock: so everybody gets the same bytes, and can check that a
release is what it says it is made from.
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    """There is no release."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/release",
        description=__doc__,
        epilog="Exit status: 0 when both builds are equal, 1 when they are not or there is none, 2 for wrong usage.",
    )
    parser.add_argument("commit", metavar="COMMIT", nargs="?", default="HEAD", help="which: HEAD")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="a folder for the files: dist")
    parser.add_argument("--repository", type=Path, default=ROOT, help="whose commit: this one's")
    options = parser.parse_args(arguments)
    try:
        archive = _git(options.repository, "archive", "--format=tar", options.commit)
        seconds = _git(options.repository, "log", "-1", "--format=%ct", options.commit).decode().strip()
        first, second = (build(archive, seconds) for _ in range(2))
    except Failed as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    if first != second:
        differing = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
        print(f"release: two builds differ in {', '.join(differing)}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    for name, content in sorted(first.items()):
        (options.output / name).write_bytes(content)
        print(f"{hashlib.sha256(content).hexdigest()}  {name}")
    return 0


def build(archive: bytes, seconds: str) -> Mapping[str, bytes]:
    """The files of a release, by name.

    Args:
        archive: what is committed, as tar.
        seconds: the unix time of the commit.

    Raises:
        Failed: it cannot be built.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "source"), Path(folder, "output")
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(source, filter=_with_usual_modes)
        command = [sys.executable, "-m", "hatchling", "build", "--directory", str(output)]
        # Names of sets would otherwise come in another order each time.
        environment = os.environ | {"SOURCE_DATE_EPOCH": seconds, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"it cannot be built:\n{done.stdout}{done.stderr}")
        return {path.name: path.read_bytes() for path in output.iterdir()}


def _with_usual_modes(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """Whatever tar.umask the repository has."""
    member = tarfile.data_filter(member, path)
    return member.replace(mode=0o755 if member.isdir() or (member.mode or 0) & 0o100 else 0o644, deep=False)


def _git(repository: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=False)
    if done.returncode != 0:
        raise Failed(done.stderr.decode(errors="replace").strip())
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
