"""Looks for inputs that break an invariant, guided by which code each input reaches: scripts/fuzz.

Every target is a process of its own, as many at a time as there are processors. It begins with the seeds of
``corpus/TARGET`` and with what earlier runs found to reach more, which is kept beside the findings.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TARGETS = {path.stem: path for path in sorted((HERE / "targets").glob("*.py"))}
#: What is no more than this is found soonest; limits of the server that are larger are for its other tests.
_MAX_INPUT_BYTES = 4096
#: For one input. A hundred times what the slowest takes, on a machine that is busy.
_TIMEOUT_SECONDS = 30
_MAX_MEMORY_MB = 2048
_EPILOG = """What is found is a file under build/fuzz/findings, and is told with its traceback. The input goes into
tests/fuzz/corpus/TARGET under a name that says what it is, with the fix. Exit status: 0 when nothing was found, 1 when
something was, 2 for wrong usage."""


class Effort(NamedTuple):
    """How long to look.

    Attributes:
        seconds: 0 is for any time.
        runs: inputs to try; -1 is for any number.
        seed: of the random numbers; 0 is another one each time.
    """

    seconds: int
    runs: int = -1
    seed: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__, epilog=_EPILOG)
    parser.add_argument("seconds", metavar="SECONDS", type=int, help="for each target; 0 is without end")
    parser.add_argument(
        "targets", metavar="TARGET", nargs="*", help=f"of {', '.join(TARGETS)}, or a file that is one; all by default"
    )
    parser.add_argument("--runs", type=int, default=-1, help="stop after so many inputs")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same inputs again, where --runs and the code are the same"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="where findings go: build/fuzz")
    options = parser.parse_intermixed_args(arguments)
    wanted = [TARGETS.get(name, Path(name)) for name in options.targets or TARGETS]
    unknown = {str(path) for path in wanted if not path.is_file()}
    if unknown or options.seconds < 0:
        parser.error(f"no such target: {', '.join(sorted(unknown))}" if unknown else "SECONDS is not negative")
    try:
        importlib.import_module("atheris")
    except ImportError:
        print("scripts/fuzz: atheris has no build for this Python or this machine; see pyproject.toml", file=sys.stderr)
        return 2
    effort = Effort(options.seconds, options.runs, options.seed)
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        clean = list(pool.map(partial(look, effort=effort, folder=options.folder), wanted))
    return 0 if all(clean) else 1


def look(path: Path, *, effort: Effort, folder: Path) -> bool:
    """Looks for what breaks the invariant of a target, and says what came of it; returns whether that is nothing."""
    target, seeds = path.stem, path.parents[1] / "corpus" / path.stem
    found, findings = folder / "corpus" / target, folder / "findings"
    found.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, str(HERE / "one.py"), str(path), str(found), *([str(seeds)] if seeds.exists() else [])),
        *(f"-max_total_time={effort.seconds}", f"-runs={effort.runs}", f"-seed={effort.seed}"),
        *(f"-max_len={_MAX_INPUT_BYTES}", f"-timeout={_TIMEOUT_SECONDS}", f"-rss_limit_mb={_MAX_MEMORY_MB}"),
        *(f"-artifact_prefix={findings}/{target}-", "-print_final_stats=1", "-verbosity=1"),
    ]
    # Counting lines would cost most of the time, and atheris ends the process before they are written.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    summary = re.search(r"^Done (\d+) runs in (\d+) second", done.stderr, re.MULTILINE)
    if done.returncode == 0 and summary is not None:
        print(f"{target}: {int(summary[1]):,} inputs in {summary[2]} s, nothing found", flush=True)
        return True
    print(f"{target}: found something\n{_told(done)}", flush=True)
    return False


def _told(done: Any) -> str:
    """What the fuzzer said last, without its statistics."""
    lines = [line for line in f"{done.stdout}{done.stderr}".splitlines() if not re.match(r"#\d|INFO|stat::", line)]
    return "\n".join(f"  {line}" for line in lines[-60:])


if __name__ == "__main__":
    sys.exit(main())
