"""Measures what a log that several servers share can take, and what it costs Redis and each of the servers.

Every server reads every event. So there is what an event costs Redis by itself and for each server that reads it, what
it costs a server to read one, how soon an event that is published on one server is received from another one, and
whether a delivery costs more than with the log in memory. Figures are CPU time for each event or delivery, so that a
busy machine disturbs little; what is compared takes turns.
"""

import argparse
import http.client
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from engines.redis import RedisServer
from engines.redis_cluster import RedisCluster
from figures import divide, spread, summarize_latencies
from load import Load
from machine import describe_machine
from peers.base import Capability, Running
from peers.tricast import Tricast
from processes import read_cpu_ns, share_nice
from publisher import Publisher, PublishError, write_event
from scenarios.base import EVENT_BYTES, TOPIC, MeasureError, Session, as_us
from scenarios.fan_out import fan_out
from standalone import run

HERE = Path(__file__).resolve().parent
NAME = "log-capacity"
MEMORY, REDIS = "memory", "redis"
#: What is promised: milliseconds at 1,000 events/s, and CPU per delivery beside the log in memory.
MAX_P99_MS = 10.0
MAX_RATIO = 1.05
_CATCH_UP_SECONDS = 30.0
_TOPICS = 64
#: By the batch, about as many events a second as it takes.
_MANY = {1: 2000, 100: 20_000}
_CONNECTIONS = 32


class Case(NamedTuple):
    """Servers that share a log, and what is published on the first of them.

    Attributes:
        nodes: how many servers.
        batch: events in a request.
        rate: events a second; 0 for as many as it takes.
        shards: of the log.
        masters: Redis servers; more than one are a cluster.
    """

    nodes: int
    batch: int
    rate: int
    shards: int = 1
    masters: int = 1

    def __str__(self) -> str:
        rate = f"{self.rate} events/s" if self.rate else "all it takes"
        return f"{self.nodes} nodes, batches of {self.batch}, {rate}, {self.shards} shards, {self.masters} Redis"


CASES = (
    *(Case(nodes, 1, 1000) for nodes in (1, 2, 4)),
    *(Case(nodes, 100, 4000) for nodes in (1, 2, 4)),
    Case(2, 100, 4000, shards=4),
    Case(2, 100, 4000, shards=3, masters=3),
    Case(1, 1, 0),
    Case(1, 100, 0),
)

#: Part to name of a figure to repetition to value.
Figures = dict[str, dict[str, dict[int, float]]]


def main() -> int:
    """Reads the command line and measures; returns the exit status."""
    options = parse(sys.argv[1:])
    os.nice(options.nice)
    share_nice(os.getpid())
    return run(NAME, options, measure, render, is_fine)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(
        prog=f"scripts/bench/{NAME}", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=5, help="how long events are published, each time")
    parser.add_argument("--subscribers", type=int, default=10_000, help="where deliveries are compared")
    parser.add_argument("--events", type=int, default=30, help="that each of them gets")
    parser.add_argument("--rate", type=float, default=2, help="of these events; each has to be over before the next")
    parser.add_argument("--program", choices=("redis", "valkey"), default="redis", help="which server it is")
    parser.add_argument("--only", metavar="PART", nargs="+", choices=tuple(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--nice", type=int, default=0, help="of all processes; less than 0 as root")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures everything in turns, and returns the figures."""
    results: Figures = {}
    failures = []
    for repetition in range(1, options.repetitions + 1):
        for part in options.only or PARTS:
            for number, (name, take) in enumerate(PARTS[part](options)):
                inside = folder / f"{repetition}-{part}-{number}"
                inside.mkdir()
                try:
                    figures = take(inside)
                except (MeasureError, PublishError) as error:
                    figures = {}
                    failures.append(f"#{repetition} {name}: {error}")
                for key, value in figures.items():
                    results.setdefault(name, {}).setdefault(key, {})[repetition] = value
                say(f"#{repetition} {name}" if figures else failures[-1])
    return {
        "program": options.program,
        "subscribers": options.subscribers,
        "results": results,
        "failures": failures,
        "machine": describe_machine(),
    }


# ---- what is measured

Take = Callable[[Path], Mapping[str, float]]


class Engine(NamedTuple):
    """Redis servers that hold a log."""

    url: str
    servers: Sequence[RedisServer]

    def read_cpu_ns(self) -> list[int]:
        """Returns the CPU time of each."""
        return [read_cpu_ns([server.pid]) for server in self.servers]

    def told(self, section: str, name: str) -> int:
        """Returns what all of them count, of what INFO tells."""
        return sum(int(server.describe(section)[name]) for server in self.servers)


@contextmanager
def engine(masters: int, program: str, folder: Path) -> Iterator[Engine]:
    """Redis, or a cluster, as long as the block runs. What is written goes to its file, once a second to the disk."""
    config = ["appendfsync everysec"]
    if masters == 1:
        with RedisServer(folder, program=program, config=config) as server:
            share_nice(server.pid)
            yield Engine(server.url, [server])
    else:
        with RedisCluster(folder, masters=masters, program=program, config=config) as cluster:
            for server in cluster.masters:
                share_nice(server.pid)
            yield Engine(cluster.url, cluster.masters)


@contextmanager
def servers(count: int, log: Engine, shards: int, folder: Path) -> Iterator[list[Running]]:
    """So many servers on one log."""
    settings = {"TRICAST_LOG__URL": log.url, "TRICAST_LOG__SHARDS": str(shards)}
    with ExitStack() as stack:
        yield [
            stack.enter_context(Tricast().run(folder / f"server-{number}", options=settings)) for number in range(count)
        ]


def read_metrics(node: Running) -> dict[str, float]:
    """Returns what a server tells of itself, without what has labels."""
    connection = http.client.HTTPConnection(node.host, node.port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return {name: float(value) for name, value in re.findall(r"(?m)^(tricast_\w+) (\S+)$", text)}


def _await_read(nodes: Sequence[Running], events: int) -> None:
    """Returns when every server has read so many events.

    Raises:
        MeasureError: one does not come there.
    """
    end = time.monotonic() + _CATCH_UP_SECONDS
    while any(read_metrics(node)["tricast_events_committed_total"] < events for node in nodes):
        if time.monotonic() > end:
            raise MeasureError(f"not every server has read {events:,} events")
        time.sleep(0.1)


def take_case(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Returns what an event costs Redis and the servers."""
    with (
        engine(case.masters, options.program, folder / "engine") as log,
        servers(case.nodes, log, case.shards, folder) as nodes,
    ):
        publisher = Publisher(nodes[0], _CONNECTIONS)
        try:
            publish(publisher, nodes[0], case, 200)  # what is done once
            _await_read(nodes, 200)
            time.sleep(0.5)
            written, before = log.told("stats", "total_net_output_bytes"), log.told("memory", "used_memory")
            redis, each = log.read_cpu_ns(), [read_cpu_ns(node.pids()) for node in nodes]
            events = round((case.rate or _MANY[case.batch]) * options.seconds / case.batch) * case.batch
            seconds = publish(publisher, nodes[0], case, events)
            time.sleep(0.5)
            redis = [now - then for now, then in zip(log.read_cpu_ns(), redis, strict=True)]
            each = [read_cpu_ns(node.pids()) - then for node, then in zip(nodes, each, strict=True)]
            written = log.told("stats", "total_net_output_bytes") - written
            kept = log.told("memory", "used_memory") - before
            _await_read(nodes, 200 + events)
        finally:
            publisher.close()
        told = read_metrics(nodes[0])
    return {
        "redis_us": as_us(sum(redis), events),
        "busiest_redis_us": as_us(max(redis), events),
        "publisher_us": as_us(each[0], events),
        **({"reader_us": as_us(sum(each[1:]) / (case.nodes - 1), events)} if case.nodes > 1 else {}),
        "per_second": events / seconds,
        "append_ms": 1000 * told["tricast_log_append_seconds_sum"] / told["tricast_log_append_seconds_count"],
        "bytes_out": written / events,
        "bytes_kept": kept / events,
    }


def publish(publisher: Publisher, node: Running, case: Case, events: int) -> float:
    """Publishes so many events at the rate, over several topics; returns how many seconds that took."""
    batch = min(case.batch, events)

    def write(number: int, intended: int) -> bytes:
        topic = f"{TOPIC}.{number % _TOPICS}"
        datas = [write_event(number * batch + index, intended, EVENT_BYTES) for index in range(batch)]
        return node.publish(topic, datas[0]) if batch == 1 else node.publish_batch(topic, datas)

    requests = events // batch
    return publisher.run(write, requests, case.rate / batch, 60 + (events / case.rate if case.rate else 0)).seconds


def take_latency(nodes: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Returns how soon events are received: published on the first server, received from the last one."""
    rate, subscribers = 1000, 5
    events = round(rate * options.seconds)
    with (
        engine(1, options.program, folder / "engine") as log,
        servers(nodes, log, 1, folder) as running,
        _load() as load,
    ):
        session = Session(running[-1], load, Capability.SSE)
        session.open(subscribers)
        publisher = Publisher(running[0], _CONNECTIONS)
        try:
            before = session.warm_up(publisher, subscribers)
            session.begin_receiving(options.seconds + 20, until_marks=before + events * subscribers)
            publisher.run(lambda number, sent: session.write(number + 1, sent), events, rate, options.seconds + 20)
            received = session.end_receiving()
        finally:
            publisher.close()
    if received.marks - before != events * subscribers:
        raise MeasureError(f"{received.marks - before:,} of {events * subscribers:,} deliveries came")
    return summarize_latencies(received.latencies)


def take_fan_out(log: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Returns what a delivery costs, with the log in memory or in Redis."""
    with ExitStack() as stack:
        settings = {}
        if log == REDIS:
            settings = {"TRICAST_LOG__URL": stack.enter_context(engine(1, options.program, folder / "engine")).url}
        running = stack.enter_context(Tricast().run(folder / "server", options=settings))
        session = Session(running, stack.enter_context(_load()), Capability.SSE)
        found = fan_out(session, options.subscribers, options.events, options.rate)
    if found["lost"] or found["closed"]:
        raise MeasureError(f"{found['lost']:.0f} events were lost, {found['closed']:.0f} streams ended")
    return found


@contextmanager
def _load() -> Iterator[Load]:
    load = Load()
    try:
        yield load
    finally:
        load.end()


def _events(options: argparse.Namespace) -> list[tuple[str, Take]]:
    return [(str(case), partial(take_case, case, options)) for case in CASES]


def _latency(options: argparse.Namespace) -> list[tuple[str, Take]]:
    return [(_latency_over(nodes), partial(take_latency, nodes, options)) for nodes in (1, 2)]


def _deliveries(options: argparse.Namespace) -> list[tuple[str, Take]]:
    return [(log, partial(take_fan_out, log, options)) for log in (MEMORY, REDIS)]


PARTS: dict[str, Callable[[argparse.Namespace], list[tuple[str, Take]]]] = {
    "events": _events,
    "latency": _latency,
    "deliveries": _deliveries,
}


def _latency_over(nodes: int) -> str:
    return f"latency over {nodes} nodes"


# ---- what it comes to


def render(found: dict[str, Any]) -> str:
    """Returns the medians as Markdown tables, with the lowest and the highest where that matters."""
    results: Figures = found["results"]
    lines = _render_events(results)
    for nodes, where in ((1, "on the same server"), (2, "on another server")):
        figures = results.get(_latency_over(nodes), {})
        if figures:
            shown = ", ".join(
                f"{name[:-3]} {_median(figures.get(name), 2)} ms" for name in ("p50_ms", "p99_ms", "max_ms")
            )
            lines += [f"Published at 1,000 events/s and received {where}: {shown}.", ""]
    if MEMORY in results and REDIS in results:
        both = {log: _median(results[log]["cpu_us"], 2) for log in (MEMORY, REDIS)}
        ratio = divide(results[REDIS]["cpu_us"], results[MEMORY]["cpu_us"])
        assert ratio is not None
        words = (
            f"CPU of the server for each delivery to {found['subscribers']:,} subscribers, publishing included: "
            f"{both[MEMORY]} µs with the log in memory, {both[REDIS]} µs with Redis; {ratio.median:.3f} times as much "
            f"({ratio.low:.3f} to {ratio.high:.3f} in {ratio.repetitions} repetitions)."
        )
        lines += [words, ""]
    lines += [f"Failed: {failure}" for failure in found["failures"]]
    return "\n".join(lines)


_COLUMNS = (
    ("redis_us", "Redis, CPU µs per event", 1),
    ("busiest_redis_us", "of these the busiest", 1),
    ("publisher_us", "publishing node, CPU µs", 1),
    ("reader_us", "each other node, CPU µs", 1),
    ("append_ms", "append, mean ms", 2),
    ("bytes_out", "bytes from Redis", 0),
    ("bytes_kept", "bytes in Redis", 0),
    ("per_second", "events/s", 0),
)


def _render_events(results: Figures) -> list[str]:
    heads = ["nodes", "events a request", "asked for", "shards", "Redis", *(label for _, label, _ in _COLUMNS)]
    rows = []
    for case in CASES:
        if figures := results.get(str(case)):
            asked = f"{case.rate:,}/s" if case.rate else "all it takes"
            about = [str(case.nodes), str(case.batch), asked, str(case.shards), str(case.masters)]
            rows.append([*about, *(_median(figures.get(key), digits) for key, _, digits in _COLUMNS)])
    if not rows:
        return []
    table = [heads, ["---:"] * len(heads), *rows]
    return [*(f"| {' | '.join(row)} |" for row in table), ""]


def _median(values: Mapping[int, float] | None, digits: int) -> str:
    found = None if values is None else spread(values.values())
    return "—" if found is None else f"{found.median:,.{digits}f}"


def is_fine(found: dict[str, Any]) -> bool:
    """Returns whether everything could be measured that was to be, and what is promised holds there."""
    results: Figures = found["results"]
    latency = spread(results.get(_latency_over(2), {}).get("p99_ms", {}).values())
    ratio = divide(results.get(REDIS, {}).get("cpu_us", {}), results.get(MEMORY, {}).get("cpu_us", {}))
    return (
        not found["failures"]
        and (latency is None or latency.median <= MAX_P99_MS)
        and (ratio is None or ratio.median <= MAX_RATIO)
    )


def say(message: str) -> None:
    """Tells the user one line."""
    print(f"{NAME}: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
