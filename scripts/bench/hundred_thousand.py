"""Holds very many connections, a third on each transport, and publishes to all of them now and then.

Servers and clients are as many processes as the limit on descriptors needs. Says how much memory and CPU the server's
processes take, how long an event is on its way to everybody, and whether anything was lost.
"""

import argparse
import math
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from load import Again, Load, Opened, Received, Target
from machine import describe_machine, read_kernel_bytes
from peers.base import Running
from peers.tricast import Tricast
from processes import read_cpu_ns, read_memory
from publisher import Publisher, write_event
from scenarios.base import EVENT_BYTES, TOPIC, MeasureError
from standalone import run

HERE = Path(__file__).resolve().parent
NAME = "hundred-thousand"
TRANSPORTS = ("sse", "websocket", "poll")
#: Of the descriptors of a process: the kernel spreads connections over workers by chance, and all need a few more.
_USABLE = 0.85
_GRACE_SECONDS = 30


def main() -> int:
    """Reads the command line and holds the connections; returns the exit status."""
    return run(NAME, parse(sys.argv[1:]), measure, render, lambda found: found["lost"] == found["dropped"] == 0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(
        prog=f"scripts/bench/{NAME}", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=100_000, help="in all, a third on each transport")
    parser.add_argument("--seconds", type=float, default=300, help="how long to hold them")
    parser.add_argument("--idle", type=float, default=60, help="how much of that is before the first event")
    parser.add_argument("--every", type=float, default=10, help="seconds from one event to the next")
    parser.add_argument("--workers", type=int, help="processes of the server (default: as the descriptor limit needs)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results")
    options = parser.parse_args(arguments)
    if options.connections < len(TRANSPORTS):
        parser.error(f"--connections has to be at least {len(TRANSPORTS)}")
    if not 0 < options.idle < options.seconds or options.every <= 0:
        parser.error("--idle has to be more than 0 and less than --seconds, --every more than 0")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Starts everything, holds the connections, and returns the figures."""
    processes = math.ceil(options.connections / (_USABLE * resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    workers = options.workers or processes
    settings = {"TRICAST_SERVER__WORKERS": str(workers)} if workers > 1 else {}
    say(f"server: {workers}, clients: {processes} (processes)")
    with Tricast().run(folder, options=settings) as running, loads(processes) as crowd:
        publish(running, 0, 0)  # it tells long pollers their first position
        empty, kernel = read_memory(running.pids()), read_kernel_bytes()
        cpu, began = read_cpu_ns(running.pids()), time.monotonic()
        for transport in TRANSPORTS:
            open_transport(running, crowd, transport, options.connections)
        opened_seconds, opened_cpu = time.monotonic() - began, read_cpu_ns(running.pids()) - cpu
        say(f"all are open after {opened_seconds:.0f} s")
        figures = hold(options, running, crowd)
        still_open = sum(one.call("count_open") for one in crowd)
    kernel_bytes = figures.pop("kernel")
    return {
        "connections": options.connections,
        "seconds": options.seconds,
        "workers": workers,
        "opened_seconds": round(opened_seconds, 1),
        "accept_cpu_us": round(opened_cpu / options.connections / 1000, 1),
        "dropped": options.connections - still_open,
        "rss_bytes_before": empty.rss,
        "pss_bytes_before": empty.pss,
        # Both ends are on this machine: half of it is the server's.
        "kernel_bytes": None if None in (kernel, kernel_bytes) else (kernel_bytes - kernel) // 2,
        **figures,
        "machine": describe_machine(),
    }


def split(total: int, parts: int) -> list[int]:
    """Returns a total in so many parts, as equal as can be."""
    return [total * (number + 1) // parts - total * number // parts for number in range(parts)]


def count_clients(connections: int, processes: int, transport: str) -> list[int]:
    """Returns how many clients of a transport each of the load generators has."""
    thirds = (split(one, len(TRANSPORTS)) for one in split(connections, processes))
    return [dict(zip(TRANSPORTS, third, strict=True))[transport] for third in thirds]


@contextmanager
def loads(count: int) -> Iterator[list[Load]]:
    """So many load generators."""
    crowd = [Load() for _ in range(count)]
    try:
        yield crowd
    finally:
        for one in crowd:
            one.end()


def open_transport(running: Running, crowd: Sequence[Load], transport: str, connections: int) -> None:
    """Has every load generator open its third on this transport.

    Raises:
        MeasureError: some could not be opened.
    """
    is_poll = transport == "poll"
    opening = running.subscribe(transport, TOPIC, last_id=running.beginning if is_poll else None)
    counts = count_clients(connections, len(crowd), transport)
    for number, (one, count) in enumerate(zip(crowd, counts, strict=True)):
        one.begin(
            "open",
            Target(running.host, running.port, first_source=number + 1),
            [opening._replace(begun=b"") if is_poll else opening] * count,
            is_websocket=transport == "websocket",
            again=Again(running, TOPIC) if is_poll else None,
            window=32,
        )
    results: list[Opened] = [one.result() for one in crowd]
    opened = sum(result.clients for result in results)
    if opened < sum(counts):
        reasons = [reason for result in results for reason in result.failures]
        raise MeasureError(f"{opened:,} of {sum(counts):,} over {transport} could be opened: {'; '.join(reasons[:3])}")
    say(f"{opened:,} over {transport}")


def publish(running: Running, number: int, sent_ns: int) -> None:
    """Publishes one event, on a connection of its own: between two of them a server may end one that asks nothing."""
    publisher = Publisher(running)
    try:
        publisher.publish(TOPIC, write_event(number, sent_ns, EVENT_BYTES))
    finally:
        publisher.close()


def hold(options: argparse.Namespace, running: Running, crowd: Sequence[Load]) -> dict[str, Any]:
    """Holds the connections for the time, publishes now and then, and returns what that came to."""
    settle(options, crowd)
    pids = running.pids()
    began = time.monotonic()
    events = math.ceil((options.seconds - options.idle) / options.every)
    # Nobody stops before the time is over; whoever has received everything then need not wait for late events.
    for one, count in zip(crowd, split(options.connections, len(crowd)), strict=True):
        one.call("track_events")
        one.begin("hold", options.seconds, _GRACE_SECONDS, count * events)
    cpu = read_cpu_ns(pids)
    time.sleep(options.idle)
    idle_cpu = read_cpu_ns(pids) - cpu
    idle = read_memory(pids)
    say(f"idle: {idle_cpu / 1e7 / options.idle:.1f} % of a core, {idle.rss / 1e6:,.0f} MB resident")
    sent: dict[int, int] = {}
    peak, kernel = idle, read_kernel_bytes()
    for number in range(1, events + 1):
        time.sleep(max(0.0, began + options.idle + (number - 1) * options.every - time.monotonic()))
        sent[number] = time.monotonic_ns()
        publish(running, number, sent[number])
        peak = max(peak, read_memory(pids))
    received: list[Received] = [one.result() for one in crowd]
    return {
        "rss_bytes": peak.rss,
        "pss_bytes": peak.pss,
        "kernel": kernel,
        "idle_cpu_percent": round(idle_cpu / 1e7 / options.idle, 2),
        "cpu_percent": round((read_cpu_ns(pids) - cpu) / 1e7 / (time.monotonic() - began), 2),
        **count_events(sent, received, options.connections),
    }


def settle(options: argparse.Namespace, crowd: Sequence[Load]) -> None:
    """Waits until every long poller has its first answer, and has asked again.

    Raises:
        MeasureError: some got none.
    """
    counts = count_clients(options.connections, len(crowd), "poll")
    for one, count in zip(crowd, counts, strict=True):
        one.begin("receive", 60, until_answers=count)
    answers = sum(one.result().answers for one in crowd)
    if answers < sum(counts):
        raise MeasureError(f"{answers:,} of {sum(counts):,} long polls were answered")
    for one in crowd:
        one.begin("receive", 2)
    for one in crowd:
        one.result()
    say(f"{answers:,} long polls were answered")


def count_events(sent: dict[int, int], received: Sequence[Received], connections: int) -> dict[str, Any]:
    """Returns how many events were published, how long each was on its way to everybody, and what is missing."""
    lost = duplicated = 0
    reached: list[float] = []
    for number, sent_ns in sent.items():
        arrivals = [one.per_event[number] for one in received if number in one.per_event]
        count = sum(arrived for arrived, _ in arrivals)
        lost += max(0, connections - count)
        duplicated += max(0, count - connections)
        if count == connections:
            reached.append((max(last for _, last in arrivals) - sent_ns) / 1e9)
    return {
        "events": len(sent),
        "lost": lost,
        "duplicated": duplicated,
        "reached_seconds": round(statistics.median(reached), 2) if reached else None,
        "reached_seconds_worst": round(max(reached), 2) if reached else None,
    }


def render(figures: dict[str, Any]) -> str:
    """Returns the figures as a Markdown table."""
    kernel = figures["kernel_bytes"]
    reached = figures["reached_seconds"]
    rows = [
        ("connections", f"{figures['connections']:,}, a third each of SSE, WebSocket and long polling"),
        ("held for", f"{figures['seconds']:.0f} s, {figures['events']} events"),
        ("processes of the server", f"{figures['workers']}"),
        ("opened within", f"{figures['opened_seconds']:.0f} s, {figures['accept_cpu_us']:.0f} µs of CPU each"),
        (
            "memory of all processes",
            f"{_megabytes(figures['rss_bytes'])} resident, {_megabytes(figures['pss_bytes'])} PSS",
        ),
        ("memory of the kernel's sockets", "not readable here" if kernel is None else _megabytes(kernel)),
        ("CPU while idle", f"{figures['idle_cpu_percent']:.1f} % of a core"),
        ("CPU over all", f"{figures['cpu_percent']:.1f} % of a core"),
        (
            "an event reaches everybody within",
            "never" if reached is None else f"{reached:.1f} s, {figures['reached_seconds_worst']:.1f} s at worst",
        ),
        ("lost, duplicated", f"{figures['lost']:,}, {figures['duplicated']:,} deliveries"),
        ("dropped", f"{figures['dropped']:,} connections"),
    ]
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def say(message: str) -> None:
    """Tells the user one line."""
    print(f"{NAME}: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
