"""The jars of Kafka, as Maven resolves them from ``scripts/kafka/pom.xml``: kept beside the system, for every checkout.

``python kafka_jars.py`` sees to it that they are there; ``--is-there`` only asks, and answers with the exit status.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_POM = Path(__file__).parents[1] / "kafka" / "pom.xml"


class Unresolved(Exception):
    """Maven could not get them; the message has what it said."""


def jars_folder() -> Path:
    """Where they are, once they have been resolved; another one for another pom.xml."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tricast" / f"kafka-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]}"


def resolve() -> Path:
    """Has Maven put them into their folder if it is not there; one process at a time.

    Raises:
        Unresolved: it could not.
    """
    folder = jars_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _copy(folder)
    return folder


def _copy(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise Unresolved("there is no mvn: apt-get install maven")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="kafka-") as unfinished:
        jars = Path(unfinished) / "jars"
        command = [maven, "--batch-mode", "--quiet", "--strict-checksums", "--file", str(_POM)]
        command += ["dependency:copy-dependencies", f"-DoutputDirectory={jars}", "-DincludeScope=runtime"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unresolved("\n".join(["mvn could not get the jars of Kafka:", *done.stdout.splitlines()[-15:]]))
        jars.rename(folder)


def main() -> int:
    if sys.argv[1:] == ["--is-there"]:
        return 0 if jars_folder().exists() else 1
    try:
        resolve()
    except Unresolved as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
