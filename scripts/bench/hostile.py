"""Measures what clients that mean no good do to all others: latency and memory with them and without, by turns.

Some send a byte every ten seconds, of a request's head, a body or a WebSocket message; some ask for all that is kept
and never read it. Whoever is thrown out comes back at once. Others subscribe meanwhile, and their latency is measured.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attackers import Attack, Standing
from figures import divide, spread
from machine import describe_machine, read_queued_bytes
from measure import raise_descriptor_limit
from peers.base import Capability
from peers.tricast import Tricast
from publisher import write_event
from scenarios.base import TOPIC, MeasureError, Session, Stage
from scenarios.fan_out import fan_out
from standalone import run

HERE = Path(__file__).resolve().parent
NAME = "hostile"
#: What is allowed: the latency of others may grow by less than this.
MAX_RATIO = 2.0
_WITHOUT, _WITH = "without", "with"
#: What there is for those who never read: more than fits into any socket.
_KEPT_EVENTS, _KEPT_BYTES = 100, 60_000
_PATIENCE_SECONDS = 120.0
_PUBLISHERS = 8


def main() -> int:
    """Reads the command line and measures; returns the exit status."""
    options = parse(sys.argv[1:])
    raise_descriptor_limit()
    return run(NAME, options, measure, render, lambda figures: not options.check or holds(figures))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(
        prog=f"scripts/bench/{NAME}", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--slow", type=int, default=10_000, help="how many send a byte every ten seconds")
    parser.add_argument("--silent", type=int, default=2_000, help="how many never read")
    parser.add_argument("--subscribers", type=int, default=500, help="how many others there are")
    parser.add_argument("--rate", type=float, default=20, help="events a second")
    parser.add_argument("--seconds", type=float, default=20, help="how long each measurement takes")
    parser.add_argument("--settle", type=float, default=10, help="seconds from when they are there to the measurement")
    parser.add_argument("--repetitions", type=int, default=3, help="how often both are measured, by turns")
    parser.add_argument("--check", action="store_true", help="exit with 1 where others are held up too much")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results")
    options = parser.parse_args(arguments)
    if min(options.slow, options.silent) < 0 or min(options.subscribers, options.repetitions) < 1:
        parser.error("--slow and --silent may be 0; --subscribers and --repetitions have to be 1 or more")
    if options.rate <= 0 or options.rate * options.seconds < 1:
        parser.error("--rate has to be more than 0, and --seconds long enough for one event")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures without them and with them, by turns, and returns the figures."""
    runs: dict[str, dict[int, dict[str, float]]] = {_WITHOUT: {}, _WITH: {}}
    for repetition in range(options.repetitions):
        for name in (_WITHOUT, _WITH):
            place = folder / f"{repetition}-{name}"
            place.mkdir()
            runs[name][repetition] = run_once(options, place, is_attacked=name == _WITH)
            say(f"{name} them: p99 {runs[name][repetition]['p99_ms']:.1f} ms")
    ratio = divide(_column(runs[_WITH], "p99_ms"), _column(runs[_WITHOUT], "p99_ms"))
    return {
        "slow": options.slow,
        "silent": options.silent,
        "subscribers": options.subscribers,
        "rate": options.rate,
        "seconds": options.seconds,
        "repetitions": options.repetitions,
        "p99_ratio": None if ratio is None else ratio._asdict(),
        "runs": {name: list(found.values()) for name, found in runs.items()},
        "machine": describe_machine(),
    }


def _column(runs: Mapping[int, Mapping[str, float]], key: str) -> dict[int, float]:
    return {repetition: figures[key] for repetition, figures in runs.items()}


def run_once(options: argparse.Namespace, folder: Path, *, is_attacked: bool) -> dict[str, float]:
    """Returns the figures of one measurement, on a server of its own."""
    stage = Stage(Tricast(), Capability.SSE, {}, folder)
    with stage.session() as session, session.publisher() as publisher:
        before = session.read_memory().rss
        kept = write_event(0, 0, _KEPT_BYTES).replace(b"mark", b"kept")
        publisher.send_all([session.running.publish(TOPIC, kept)] * _KEPT_EVENTS, _PATIENCE_SECONDS)
        with attack(session, options, is_attacked=is_attacked) as standing:
            begun = standing()
            cpu, began = session.read_cpu_ns(), time.monotonic()
            events = round(options.rate * options.seconds)
            # Several publishers, so that one that waits for its answer does not hold up the events behind it.
            figures = fan_out(session, options.subscribers, events, options.rate, publishers=_PUBLISHERS)
            seconds = time.monotonic() - began
            ended = standing()
            return {
                **figures,
                "server_cpu_percent": round((session.read_cpu_ns() - cpu) / 1e7 / seconds, 1),
                "rss_bytes": session.read_memory().rss,
                "rss_bytes_before": before,
                "queued_bytes": read_queued_bytes(),
                "attackers": sum(ended.connected.values()),
                "thrown_out": sum(ended.thrown_out.values()) - sum(begun.thrown_out.values()),
            }


@contextmanager
def attack(session: Session, options: argparse.Namespace, *, is_attacked: bool) -> Iterator[Any]:
    """The attack, from when all are there; or none. Yields what tells how it goes."""
    if not is_attacked:
        yield lambda: Standing({}, {})
        return
    attack = Attack(session.running, TOPIC, slow=options.slow, silent=options.silent)
    try:
        wanted = options.slow + options.silent
        end = time.monotonic() + _PATIENCE_SECONDS
        while (found := sum(attack.standing().connected.values())) < 0.95 * wanted:
            if time.monotonic() > end:
                raise MeasureError(f"{found:,} of {wanted:,} attackers came in within {_PATIENCE_SECONDS:g} s")
            time.sleep(0.5)
        time.sleep(options.settle)  # until those who never read have what fits into their sockets
        yield attack.standing
    finally:
        attack.end()


def holds(figures: Mapping[str, Any]) -> bool:
    """Returns whether others are held up less than allowed, and get everything."""
    ratio = figures["p99_ratio"]
    lost = sum(run["lost"] for runs in figures["runs"].values() for run in runs)
    return ratio is not None and ratio["median"] < MAX_RATIO and lost == 0


def render(figures: Mapping[str, Any]) -> str:
    """Returns the figures as a Markdown table, medians."""
    rows = (
        ("p50_ms", "latency of the others, p50 ms", "{:,.1f}", 1),
        ("p99_ms", "p99 ms", "{:,.1f}", 1),
        ("max_ms", "longest, ms", "{:,.1f}", 1),
        ("lost", "lost", "{:,.0f}", 1),
        ("server_cpu_percent", "CPU of the server, % of a core", "{:,.0f}", 1),
        ("rss_bytes", "memory of the server, MB", "{:,.0f}", 1e6),
        ("queued_bytes", "queues of all sockets in the kernel, both ends, MB", "{:,.0f}", 1e6),
        ("attackers", "attackers at the end", "{:,.0f}", 1),
        ("thrown_out", "of them thrown out meanwhile, and back again", "{:,.0f}", 1),
    )
    lines = [f"| | {_WITHOUT} them | {_WITH} them |", "| --- | --- | --- |"]
    for key, label, form, unit in rows:
        cells = [_median([run[key] for run in figures["runs"][name]], form, unit) for name in (_WITHOUT, _WITH)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    ratio = figures["p99_ratio"]
    verdict = "no latency was measured"
    if ratio is not None:
        within = "within" if ratio["median"] < MAX_RATIO else "beyond"
        verdict = (
            f"p99 with them is {ratio['median']:.2f} times that without ({ratio['low']:.2f} to {ratio['high']:.2f} in "
            f"{ratio['repetitions']} repetitions): {within} the {MAX_RATIO:g} that are allowed."
        )
    about = (
        f"{figures['slow']:,} that send a byte every 10 s, {figures['silent']:,} that never read, and "
        f"{figures['subscribers']:,} others who get {figures['rate']:g} events/s for {figures['seconds']:g} s."
    )
    return "\n".join([about, "", *lines, "", verdict]) + "\n"


def _median(values: Sequence[float], form: str, unit: float) -> str:
    found = spread(values)
    return "" if found is None else form.format(found.median / unit)


def say(message: str) -> None:
    """Tells the user one line."""
    print(f"{NAME}: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
