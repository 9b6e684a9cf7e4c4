"""Runs every scenario with every server in turn, several times, and writes what came of it.

Each measurement is a process of its own with a time limit, and everything that it started ends with it: a server that
hangs or crashes is recorded with the reason, and the next one is measured.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn, TextIO

import report
from machine import describe_machine, read_load
from peers import PEERS
from peers.base import Peer
from processes import adopt_orphans, end_descendants
from results import FILE, Measurement, PeerFacts, Results, read_results
from scenarios import SCENARIOS
from scenarios.base import Scenario

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = HERE / "build"
RESULTS = HERE / "results"
_REASON_CHARACTERS = 400


class Job(NamedTuple):
    """One measurement to be made."""

    scenario: Scenario
    transport: str
    peer: Peer
    repetition: int

    @property
    def identity(self) -> tuple[str, str, str, int]:
        """As in the results."""
        return self.scenario.name, self.transport, self.peer.name, self.repetition


def main() -> int:
    """Reads the command line and does what it asks for; returns the exit status."""
    options = parse(sys.argv[1:])
    out: Path = options.out or (BUILD / "quick" if options.quick else RESULTS)
    is_whole = True
    if options.readme and not out.resolve().is_relative_to(ROOT):
        sys.exit(f"run: --readme shows the plots in {out}: they have to be in the project")
    if options.report_only:
        results = read_results(out / FILE)
    else:
        adopt_orphans()
        signal.signal(signal.SIGTERM, _interrupt)
        results = begin(options, out)
        is_whole = run_jobs(results, plan(options, results), options, out)
        if not is_whole:
            say("interrupted: the report shows what there is")
    write_report(results, out, with_plots=not options.no_plots, with_readme=options.readme)
    say(f"wrote {out / report.FILE}")
    return 0 if is_whole else 130


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options. Exits with 2 where they make no sense."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/run",
        description="Measures Tricast beside other servers: CPU time and memory for each unit of work.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    scenarios, names = [one.name for one in SCENARIOS], [one.name for one in PEERS]
    parser.add_argument("--scenario", action="append", choices=scenarios, help="only this one; may be repeated")
    parser.add_argument("--peer", action="append", choices=names, help="only this server; may be repeated")
    parser.add_argument("--transport", action="append", choices=["sse", "websocket", "poll"], help="only over this one")
    parser.add_argument("--repetitions", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--quick", action="store_true", help="make everything smaller: to see that it works")
    parser.add_argument("--minutes", type=float, help="begin no measurement after so long; --resume goes on later")
    parser.add_argument("--resume", action="store_true", help="keep what is in the folder, measure what is missing")
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="priority for servers and clients: -10, as root, where others use the machine",
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: results, or build/quick, beside it)")
    parser.add_argument("--report-only", action="store_true", help="write the tables and plots of results.json again")
    parser.add_argument("--no-plots", action="store_true", help="leave the plots out")
    parser.add_argument("--readme", action="store_true", help="put the summary into the README")
    options = parser.parse_args(arguments)
    if options.repetitions < 1:
        parser.error("--repetitions has to be at least 1")
    return options


def begin(options: argparse.Namespace, out: Path) -> Results:
    """Returns the results to add to, with what is known about the servers; makes those ready that are measured."""
    results = Results(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        is_quick=options.quick,
        machine=describe_machine(),
        sizes={one.name: one.sizes_for(is_quick=options.quick) for one in SCENARIOS},
        nice=options.nice,
    )
    if options.resume and (out / FILE).exists():
        earlier = read_results(out / FILE)
        if (earlier.is_quick, earlier.sizes, earlier.nice) != (results.is_quick, results.sizes, results.nice):
            sys.exit(f"run: {out / FILE} was measured with other sizes or another --nice: move it away")
        results = earlier
    known = {one.name: one for one in results.peers}
    for peer in PEERS:
        if not options.peer or peer.name in options.peer:
            known[peer.name] = prepare(peer)
    results.peers = [known[peer.name] for peer in PEERS if peer.name in known]
    return results


def prepare(peer: Peer) -> PeerFacts:
    """Makes a server ready; returns what is known about it, or why it is missing."""
    facts = PeerFacts(peer.name, peer.about, capabilities=sorted(peer.capabilities))
    say(f"preparing {peer.name}")
    try:
        facts.missing = peer.prepare(BUILD) or ""
        facts.version = "" if facts.missing else peer.version()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one of them, the others are measured
        facts.missing = f"{type(error).__name__}: {error}"
    facts.missing, facts.version = shorten(facts.missing), shorten(facts.version)
    if facts.missing:
        say(f"{peer.name} is missing: {facts.missing}")
    return facts


def plan(options: argparse.Namespace, results: Results) -> list[Job]:
    """Returns what is to be measured, in order: servers take turns, so that those compared are close in time."""
    present = {one.name for one in results.peers if not one.missing}
    done = {one.identity for one in results.measurements}
    jobs = [
        Job(scenario, transport, peer, repetition)
        for repetition in range(1, options.repetitions + 1)
        for scenario in SCENARIOS
        for transport in scenario.transports
        for peer in PEERS
        if (not options.scenario or scenario.name in options.scenario)
        and (not options.transport or transport in options.transport)
        and (not options.peer or peer.name in options.peer)
        and peer.name in present
        and scenario.can_be_measured(peer, transport)
    ]
    return [job for job in jobs if job.identity not in done]


def run_jobs(results: Results, jobs: Sequence[Job], options: argparse.Namespace, out: Path) -> bool:
    """Measures one after the other and keeps the results; returns whether it was not interrupted."""
    end = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
    try:
        for number, job in enumerate(jobs, 1):
            if time.monotonic() > end:
                say(f"{len(jobs) - number + 1} measurements are left: --resume goes on")
                break
            measurement = run_job(job, is_quick=options.quick, nice=options.nice)
            results.measurements.append(measurement)
            results.save(out)
            print(f"[{number}/{len(jobs)}] {describe(job, measurement)}", flush=True)
    except KeyboardInterrupt:
        return False
    finally:
        end_descendants()
    return True


def run_job(job: Job, *, is_quick: bool, nice: int = 0) -> Measurement:
    """Makes one measurement in a process of its own."""
    measurement = Measurement(*job.identity, load_average=round(read_load(), 2))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        # Servers may give up root, and their folder is below this one.
        Path(folder).chmod(0o755)
        command = [sys.executable, str(HERE / "measure.py"), "--scenario", job.scenario.name, "--peer", job.peer.name]
        command += ["--transport", job.transport, "--folder", folder, "--build", str(BUILD), "--nice", str(nice)]
        command += ["--quick"] if is_quick else []
        with (Path(folder) / "errors").open("w+") as errors:
            answer = _ask(command, errors, job.scenario.limit_seconds)
            errors.seek(0)
            said = errors.read().strip().splitlines()
    if answer is None:
        measurement.failed = f"it took longer than {job.scenario.limit_seconds:g} s"
    elif not answer:
        measurement.failed = f"the measurement broke: {said[-1] if said else 'it said nothing'}"
    else:
        content = json.loads(answer)
        measurement.values = content.get("values", {})
        measurement.failed = content.get("failed", "").replace(folder, "FOLDER")
    measurement.failed = shorten(measurement.failed)
    return measurement


def shorten(text: str) -> str:
    """Returns a message without where this checkout is (results are for everybody), and not too long."""
    return textwrap.shorten(text.replace(f"{ROOT}/", ""), _REASON_CHARACTERS, placeholder=" …")


def _ask(command: Sequence[str], errors: TextIO, seconds: float) -> str | None:
    """Returns the last line a process printed, or None where it had to be killed; nothing that it started stays."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
    )
    try:
        lines = process.communicate(timeout=seconds)[0].strip().splitlines()
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_descendants()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    return lines[-1] if lines else ""


def describe(job: Job, measurement: Measurement) -> str:
    """Returns a measurement in one line."""
    where = " ".join(part for part in (job.scenario.name, job.transport) if part)
    line = f"{where} #{job.repetition} {job.peer.name}: "
    if measurement.failed:
        return line + f"failed: {' '.join(measurement.failed.split())}"
    figures = ((one, measurement.values[one.key]) for one in job.scenario.columns if one.key in measurement.values)
    return line + ", ".join(f"{one.label} {value:,.{one.digits}f}" for one, value in figures)


def write_report(results: Results, out: Path, *, with_plots: bool, with_readme: bool) -> None:
    """Writes the tables, and the plots with the interpreter that has what they need."""
    (out / report.FILE).write_text(report.render(results), encoding="utf-8")
    if with_plots:
        subprocess.run([BUILD / "plots" / "bin" / "python", HERE / "plots.py", out / FILE, out], check=True)
    if with_readme:
        report.update_readme(ROOT / "README.md", results, str(out.resolve().relative_to(ROOT)))


def say(message: str) -> None:
    """Tells the user one line."""
    print(f"run: {message}", file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
