"""Measures what Tricast's proxy costs: CPU, latency and memory, beside nginx and beside no proxy at all.

Behind them is Tricast's server, whose CPU time is not counted. They take turns, so that a busy machine is as busy for
one as for the others; ratios are taken within a repetition.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from answers import measure_answer
from figures import divide, spread, summarize_latencies
from large_bodies import body_origin, give_body, take_body
from load import Load, LoadError, Target
from machine import describe_machine
from measure import raise_descriptor_limit
from peers.base import (
    HOST,
    Capability,
    Opening,
    PeerError,
    Running,
    free_port,
    http_request,
    launched,
    this_python,
    websocket_frame,
    websocket_request,
)
from peers.tricast import RunningTricast, Tricast
from processes import adopt_orphans, end_descendants
from publisher import PublishError, write_event
from scenarios.base import EVENT_BYTES, MeasureError, Session, as_us
from scenarios.fan_out import fan_out
from verdicts import Verdict, count_shortfalls

DIRECT, NGINX, PROXY = "no proxy", "nginx", "Tricast's proxy"
_WARM_UP = 100
_PATIENCE_SECONDS = 30.0
_NGINX_CONFIG = """\
daemon off;
pid nginx.pid;
error_log stderr crit;
worker_processes 1;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    map $http_upgrade $wanted {{
        default upgrade;
        "" "";
    }}
    upstream origin {{
        server {host}:{origin};
        keepalive 32;
    }}
    server {{
        listen {host}:{port} backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $wanted;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


class Figure(NamedTuple):
    """One row of the table.

    Attributes:
        key: its name in the results.
        label: what it is, with the unit.
        digits: how many after the point.
        in_direct: whether it is measured without a proxy as well.
    """

    key: str
    label: str
    digits: int = 1
    in_direct: bool = False


FIGURES = (
    Figure("event_cpu_us", "CPU µs per event, {streams} streams, 10 events/s each"),
    Figure("event_p50_ms", "the same: from publishing to the client, p50 ms", 2, in_direct=True),
    Figure("event_p99_ms", "the same, p99 ms", 2, in_direct=True),
    Figure("stream_cpu_us", "CPU µs per event, 1 stream, {rate} events/s"),
    Figure("stream_p50_ms", "the same: from publishing to the client, p50 ms", 3, in_direct=True),
    Figure("stream_p99_ms", "the same, p99 ms", 3, in_direct=True),
    Figure("get_cpu_us", "CPU µs per GET, connection kept"),
    Figure("get_p50_ms", "the same, p50 ms", 3, in_direct=True),
    Figure("get_p99_ms", "the same, p99 ms", 3, in_direct=True),
    Figure("echo_cpu_us", "CPU µs per WebSocket echo"),
    Figure("echo_p50_ms", "the same, p50 ms", 3, in_direct=True),
    Figure("echo_p99_ms", "the same, p99 ms", 3, in_direct=True),
    Figure("tunnel_bytes", "resident bytes per idle tunnel, {tunnels} of them", 0),
    Figure("tunnel_cpu_us", "CPU µs to open one"),
    Figure("down_seconds", "s for {mebibytes} MiB down, to a client that pauses", 2),
    Figure("down_growth_mib", "the same: resident MiB more at the peak"),
    Figure("up_seconds", "s for {mebibytes} MiB up, to a server that pauses", 2),
    Figure("up_growth_mib", "the same: resident MiB more at the peak"),
)
#: What is added to the median latency, CPU beside nginx's, a tunnel, a body: at most so much.
_MAX_ADDED_MS = 1.0
_MAX_RATIO = 3.0
_MAX_TUNNEL_BYTES = 20_000
_MAX_GROWTH_MIB = 16.0
#: Fewer tunnels, or a smaller body, say nothing about the limits.
_TUNNELS, _MEBIBYTES = 5000, 1024

#: Figure to repetition to value, for each that is measured.
Results = dict[str, dict[str, dict[int, float]]]


def main() -> int:
    """Reads the command line and measures; returns the exit status."""
    options = parse(sys.argv[1:])
    adopt_orphans()
    raise_descriptor_limit()
    os.nice(options.nice)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            results = measure(options, Path(folder))
    except (MeasureError, PeerError, LoadError, PublishError, OSError) as error:
        print(f"proxy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("proxy: interrupted", file=sys.stderr)
        return 130
    finally:
        end_descendants()
    print(render(results, options), end="")
    if options.json is not None:
        written = {"machine": describe_machine(), "results": results}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    if not options.check:
        return 0
    verdicts = judge(results, options)
    print("", *verdicts, sep="\n")
    return 1 if count_shortfalls(verdicts) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/proxy", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--streams", type=int, default=500, help="event streams at the same time")
    parser.add_argument("--seconds", type=float, default=5, help="how long events are published, each time")
    parser.add_argument("--rate", type=int, default=200, help="events per second where there is one stream")
    parser.add_argument("--requests", type=int, default=2000, help="requests and WebSocket messages one after another")
    parser.add_argument("--tunnels", type=int, default=_TUNNELS, help="idle tunnels at the same time")
    parser.add_argument("--mebibytes", type=int, default=_MEBIBYTES, help="how large a large body is")
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", choices=tuple(_MEASURES), help=f"of {', '.join(_MEASURES)}"
    )
    parser.add_argument("--nice", type=int, default=0, help="of all processes; less than 0 as root")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a limit is exceeded")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, folder: Path) -> Results:
    """Measures everything, in turns, and returns the figures."""
    names = [DIRECT, *([NGINX] if shutil.which("nginx") else []), PROXY]
    results: Results = {name: {} for name in names}
    for repetition in range(1, options.repetitions + 1):
        for what in options.only or _MEASURES:
            for name in names:
                inside = folder / f"{repetition}-{what}-{name.replace(' ', '-')}"
                inside.mkdir()
                for key, value in _MEASURES[what](name, options, inside).items():
                    results[name].setdefault(key, {})[repetition] = value
            print(f"proxy: {what} #{repetition}", file=sys.stderr, flush=True)
    return results


# ---- what is measured


class _Through(RunningTricast):
    """A server of Tricast behind a proxy, whose processes count; events are published past it."""

    def __init__(self, pid: int, port: int, server: Running) -> None:
        super().__init__(pid, port, publish_port=server.port)


@contextmanager
def _proxy(name: str, origin: int, folder: Path) -> Iterator[tuple[int, int]]:
    """A proxy before an origin: its process id and its port."""
    if name == NGINX:
        port = free_port()
        (folder / "nginx.conf").write_text(_NGINX_CONFIG.format(host=HOST, port=port, origin=origin), encoding="utf-8")
        command: list[str | Path] = [shutil.which("nginx") or NGINX, "-p", folder, "-c", "nginx.conf", "-e", "stderr"]
        with launched(command, folder, port=port) as (pid, _):
            yield pid, port
    else:
        command = [this_python(), "-m", "tricast", "proxy", "--listen", f"{HOST}:0", "--upstream", f"{HOST}:{origin}"]
        # As nginx has it here: no limit.
        for key in ("limits.body=0B", "proxy.max_connections=0", "client.keepalive_requests=0"):
            command += ["--set", key]
        with launched(command, folder) as (pid, ports):
            yield pid, ports[0]


@contextmanager
def _session(name: str, folder: Path, transport: str) -> Iterator[Session]:
    """A server, what is before it, and a load generator."""
    inside = folder / "server"
    with Tricast().run(inside, options={}) as server:
        load = Load()
        try:
            if name == DIRECT:
                yield Session(server, load, transport)
            else:
                with _proxy(name, server.port, folder) as (pid, port):
                    yield Session(_Through(pid, port, server), load, transport)
        finally:
            load.end()


def _of_fan_out(prefix: str, figures: Mapping[str, float]) -> dict[str, float]:
    if figures["lost"] or figures["closed"]:
        raise MeasureError(f"{figures['lost']:.0f} events were lost, {figures['closed']:.0f} streams ended")
    return {f"{prefix}_{key}": figures[key] for key in ("cpu_us", "p50_ms", "p99_ms")}


def _measure_events(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    with _session(name, folder, Capability.SSE) as session:
        return _of_fan_out("event", fan_out(session, options.streams, round(10 * options.seconds), 10))


def _measure_stream(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    with _session(name, folder, Capability.SSE) as session:
        return _of_fan_out("stream", fan_out(session, 1, round(options.rate * options.seconds), options.rate))


def _measure_get(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    with _session(name, folder, "") as session:
        running = session.running
        with socket.create_connection((HOST, running.port), _PATIENCE_SECONDS) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = http_request("GET", "/healthz")
            for _ in range(_WARM_UP):
                _ask(sock, request)
            cpu = session.read_cpu_ns()
            trips = [_ask(sock, request) for _ in range(options.requests)]
            used = session.read_cpu_ns() - cpu
    return _of_trips("get", used, trips)


def _ask(sock: socket.socket, request: bytes) -> int:
    """Sends a request; returns how many ns its answer took."""
    began = time.monotonic_ns()
    sock.sendall(request)
    answer = b""
    while not measure_answer(answer):
        data = sock.recv(65536)
        if not data:
            raise MeasureError("the connection was not kept")
        answer += data
    return time.monotonic_ns() - began


def _measure_echo(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    with _session(name, folder, Capability.WEBSOCKET) as session:
        opening = Opening(websocket_request(session.running.echo().decode()), b"\r\n\r\n")
        target = Target(HOST, session.running.port)
        opened = session.load.call("open", target, [opening], is_websocket=True)
        if opened.clients < 1:
            raise MeasureError(f"no WebSocket: {'; '.join(opened.failures)}")
        message = websocket_frame(write_event(0, 0, EVENT_BYTES))
        session.load.call("echo", message, _WARM_UP, _PATIENCE_SECONDS)
        cpu = session.read_cpu_ns()
        _, trips = session.load.call("echo", message, options.requests, _PATIENCE_SECONDS)
        used = session.read_cpu_ns() - cpu
    return _of_trips("echo", used, trips)


def _of_trips(prefix: str, used: int, trips: Sequence[int]) -> dict[str, float]:
    latencies = summarize_latencies(trips)
    return {
        f"{prefix}_cpu_us": as_us(used, len(trips)),
        f"{prefix}_p50_ms": latencies["p50_ms"],
        f"{prefix}_p99_ms": latencies["p99_ms"],
    }


def _measure_tunnels(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    if name == DIRECT:
        return {}
    with _session(name, folder, Capability.WEBSOCKET) as session:
        session.open(_WARM_UP)  # they pay for what is made once
        session.receive(min(options.seconds, 1.0))
        before, cpu = session.read_memory(), session.read_cpu_ns()
        session.open(options.tunnels)
        used = session.read_cpu_ns() - cpu
        session.receive(min(options.seconds, 2.0))
        grown = session.read_memory().rss - before.rss
    return {"tunnel_bytes": round(grown / options.tunnels), "tunnel_cpu_us": as_us(used, options.tunnels)}


def _measure_bodies(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    if name == DIRECT:
        return {}
    length = options.mebibytes * 2**20
    pause = min(options.seconds, 1.0)
    with body_origin(pause) as origin, _proxy(name, origin, folder) as (pid, port):
        pids = _Through(pid, port, Running(pid, origin)).pids()
        worker = pids[-1]  # of nginx, the one that is not there for the others
        down = take_body(port, worker, length, pause)
        up = give_body(port, worker, length, pause)
    return {
        "down_seconds": down.seconds,
        "down_growth_mib": down.growth / 2**20,
        "up_seconds": up.seconds,
        "up_growth_mib": up.growth / 2**20,
    }


_MEASURES = {
    "events": _measure_events,
    "stream": _measure_stream,
    "get": _measure_get,
    "echo": _measure_echo,
    "tunnels": _measure_tunnels,
    "bodies": _measure_bodies,
}


# ---- what it comes to


def render(results: Results, options: argparse.Namespace) -> str:
    """Returns the medians as a Markdown table, with the ratio to nginx where that is measured."""
    names = list(results)
    has_ratio = NGINX in results
    lines = [
        "| | " + " | ".join([*names, *(["beside nginx"] if has_ratio else [])]) + " |",
        "| --- |" + " ---: |" * (len(names) + has_ratio),
    ]
    for figure in FIGURES:
        if figure.key not in results[PROXY]:
            continue
        shown = [
            _median(results[name].get(figure.key), figure.digits) if name != DIRECT or figure.in_direct else "—"
            for name in names
        ]
        if has_ratio:
            ratio = divide(results[PROXY][figure.key], results[NGINX].get(figure.key, {}))
            shown.append(
                "—" if ratio is None or not figure.key.endswith(("_cpu_us", "_bytes")) else f"{ratio[0]:.2f} x"
            )
        lines.append("| " + " | ".join([figure.label.format(**vars(options)), *shown]) + " |")
    return "\n".join(lines) + "\n"


def _median(values: Mapping[int, float] | None, digits: int) -> str:
    found = None if values is None else spread(values.values())
    return "—" if found is None else f"{found.median:,.{digits}f}"


def judge(results: Results, options: argparse.Namespace) -> list[Verdict]:
    """Returns whether the proxy keeps to its limits."""
    mine, direct, nginx = results[PROXY], results[DIRECT], results.get(NGINX, {})
    verdicts = []
    for key, what in (("stream", "of an event"), ("get", "of a GET"), ("echo", "of an echo")):
        both = mine.get(f"{key}_p50_ms", {}), direct.get(f"{key}_p50_ms", {})
        added = spread(both[0][number] - both[1][number] for number in both[0].keys() & both[1].keys())
        verdicts.append(_at_most(f"p50 {what}", _MAX_ADDED_MS, added and added.median, "ms more than without"))
    for key, what in (("event", "many streams"), ("stream", "one stream")):
        ratio = divide(mine.get(f"{key}_cpu_us", {}), nginx.get(f"{key}_cpu_us", {}))
        verdicts.append(_at_most(f"CPU per event, {what}", _MAX_RATIO, ratio and ratio.median, "x nginx"))
    resident = spread(mine.get("tunnel_bytes", {}).values()) if options.tunnels >= _TUNNELS else None
    verdicts.append(_at_most("an idle tunnel", _MAX_TUNNEL_BYTES, resident and resident.median, "bytes"))
    for key, what in (("down", "down"), ("up", "up")):
        growth = spread(mine.get(f"{key}_growth_mib", {}).values()) if options.mebibytes >= _MEBIBYTES else None
        verdicts.append(_at_most(f"a large body {what}", _MAX_GROWTH_MIB, growth and growth.high, "MiB of memory"))
    return verdicts


def _at_most(what: str, limit: float, found: float | None, unit: str) -> Verdict:
    shown = "nothing" if found is None else f"{found:,.2f}"
    return Verdict(what, f"at most {limit:,.0f} {unit}", shown, None if found is None else found <= limit)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
