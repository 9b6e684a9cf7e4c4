"""Has Autobahn's fuzzing client try the server's WebSockets, and judges the report.

The server is a process of its own, with permessage-deflate, and with room for the longest messages that are tried, and
for those of the most fragments.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

#: Sections of cases, as the suite numbers them, with what they are about.
SECTIONS = {
    "1": "Framing",
    "2": "Pings and pongs",
    "3": "Reserved bits",
    "4": "Opcodes",
    "5": "Fragmentation",
    "6": "UTF-8",
    "7": "Closing",
    "9": "Limits and performance: up to 16 MiB",
    "10": "Automatic fragmentation",
    "12": "Compression, messages of many kinds",
    "13": "Compression, parameters of many kinds",
}
#: Without those that take minutes.
QUICK = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*", "12.1.1", "13.1.1", "13.3.1", "13.5.1")
#: What no case may end with.
WRONG = frozenset(("FAILED", "WRONG CODE", "UNCLEAN", "FAILED BY CLIENT"))
CONFIGURATION = """
[server]
port = 0
page = false
[websocket]
max_message = "16MiB"
max_fragments = 65600
permessage_deflate = true
[[websocket.handler]]
path = "/echo"
handler = "tricast.handlers:echo"
"""
_START_SECONDS = 30.0
_STOP_SECONDS = 30.0


class Failed(Exception):
    """What was to be tried could not be tried."""


class Report(NamedTuple):
    """What came of all cases.

    Attributes:
        cases: the number of a case to what the suite says of it.
        seconds: how long it took.
    """

    cases: Mapping[str, Mapping[str, Any]]
    seconds: float

    @property
    def wrong(self) -> dict[str, str]:
        """The cases that must not end as they did, and how they did."""
        return {
            number: f"{case['behavior']}, closing {case['behaviorClose']}"
            for number, case in sorted(self.cases.items())
            if {case["behavior"], case["behaviorClose"]} & WRONG
        }

    def table(self) -> str:
        """How many cases of each section ended in which way, as Markdown."""
        ways = sorted({case["behavior"] for case in self.cases.values()})
        counts = collections.Counter(
            (number.partition(".")[0], case["behavior"]) for number, case in self.cases.items()
        )
        rows = [["", "cases", *ways], ["---", *["---:"] * (len(ways) + 1)]]
        for section, title in SECTIONS.items():
            of_section = [counts[section, way] for way in ways]
            if any(of_section):
                rows.append([f"{section}. {title}", str(sum(of_section)), *map(str, of_section)])
        totals = [sum(case["behavior"] == way for case in self.cases.values()) for way in ways]
        rows.append(["**all**", str(len(self.cases)), *map(str, totals)])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/conformance",
        description=__doc__,
        epilog="Exit status: 0 when every case ended well, 1 when one did not, 2 for wrong usage, 3 for a failure.",
    )
    parser.add_argument("cases", metavar="CASE", nargs="*", help="such as 12.* or 7.1.1; all 517 by default (10 min)")
    parser.add_argument("--quick", action="store_true", help=f"these: {' '.join(QUICK)} (10 s)")
    parser.add_argument("--url", help="of another server's echo, instead of a server of our own")
    parser.add_argument("--output", type=Path, help="a folder for the suite's own report, in HTML; none by default")
    parser.add_argument("--set-up", action="store_true", help="only see to it that the suite is there")
    parser.add_argument("--suite", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick and options.cases:
        parser.error("either --quick or cases")
    if options.set_up:
        return 0
    cases = QUICK if options.quick else options.cases or ["*"]
    with tempfile.TemporaryDirectory() as folder:
        output = options.output or Path(folder)
        output.mkdir(parents=True, exist_ok=True)
        try:
            if options.url:
                report = run(options.suite, options.url, cases, output)
            else:
                with serving(Path(folder)) as url:
                    report = run(options.suite, url, cases, output)
        except Failed as error:
            print(f"conformance: {error}", file=sys.stderr)
            return 3
    print(f"{report.table()}\n\n{report.seconds:.0f} s")
    for number, how in report.wrong.items():
        print(f"case {number}: {how}")
    return 1 if report.wrong else 0


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of the echo of a server, which ends with the block; fails where the server then does not end well."""
    (folder / "server.toml").write_text(CONFIGURATION, encoding="utf-8")
    command = [sys.executable, "-m", "tricast", "serve", "--config", str(folder / "server.toml")]
    log = folder / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stderr=stream)
    try:
        yield _wait_for_url(server, log)
    finally:
        server.terminate()
        try:
            server.wait(_STOP_SECONDS)
        finally:
            server.kill()
    said = log.read_text(encoding="utf-8")
    if server.returncode != 0 or "[error" in said:
        raise Failed(f"the server failed:\n{said}")


def _wait_for_url(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while (found := re.search(r"listening on http://(\S+)", log.read_text(encoding="utf-8"))) is None:
        if server.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"the server does not begin:\n{log.read_text(encoding='utf-8')}")
        time.sleep(0.05)
    return f"ws://{found[1]}/echo"


def run(suite: Path, url: str, cases: Sequence[str], output: Path) -> Report:
    """Runs the cases.

    Args:
        suite: where it is set up.
        url: of the echo.
        cases: numbers and patterns.
        output: for the suite's own report.

    Raises:
        Failed: there is no report.
    """
    server = {"agent": "tricast", "url": url, "options": {"version": 18}}
    specification: dict[str, Any] = {"outdir": str(output.resolve()), "servers": [server], "cases": [*cases]}
    specification |= {"exclude-cases": [], "exclude-agent-cases": {}}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "specification.json")
        file.write_text(json.dumps(specification), encoding="utf-8")
        program = "from autobahntestsuite.wstest import run; run()"
        command = [str(suite / "env/bin/python"), "-W", "ignore", "-c", program, "-m", "fuzzingclient", "-s", str(file)]
        environment = os.environ | {"LD_LIBRARY_PATH": str(suite / "usr/lib/x86_64-linux-gnu")}
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    index = output / "index.json"
    if done.returncode != 0 or not index.exists():
        raise Failed(f"the suite failed:\n{done.stdout.decode(errors='replace')[-5000:]}")
    (found,) = json.loads(index.read_text(encoding="utf-8")).values()
    if not found:
        raise Failed("the suite has no such case")
    return Report(found, time.monotonic() - begun)


if __name__ == "__main__":
    sys.exit(main())
