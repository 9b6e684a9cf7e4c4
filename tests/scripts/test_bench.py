"""The bench: its arithmetic, what it reads off the wire, its report and verdicts, and that it measures and ends.

No timing is judged here: figures are made up, or only have to be there.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from clocks import HANG_SECONDS

from answers import AnswerError, measure_answer
from attackers import SILENT, SLOW, Kind, Mob, Speech, Standing
from figures import divide, percentile, spread, summarize_latencies
from frames import find_pings
from hostile import holds
from hostile import render as render_hostile
from hundred_thousand import count_clients, count_events, split
from hundred_thousand import render as render_held
from load import Again, Crowd, Load, LoadError, Received, Target
from log_capacity import CASES, MEMORY, REDIS, Case, is_fine, take_case
from log_capacity import parse as parse_capacity
from log_capacity import render as render_capacity
from machine import describe_machine
from peers import PEERS
from peers.base import HOST, Opening, Running, websocket_frame
from processes import list_descendants, read_cpu_ns, read_memory
from proxy_cost import DIRECT, NGINX, PROXY
from proxy_cost import FIGURES as COST
from proxy_cost import judge as judge_cost
from proxy_cost import parse as parse_cost
from proxy_cost import render as render_cost
from publisher import Publisher, PublishError, write_event
from report import README_BEGIN, README_END, render, render_readme, render_summary, update_readme
from results import FLOOR, PROTOTYPE, Measurement, PeerFacts, Results, read_results
from runner import parse, plan, shorten
from scenarios import SCENARIOS
from verdicts import NCHAN, count_shortfalls, judge

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts" / "bench"
OTHER = "Go"


# ---- arithmetic


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 100
    assert percentile([7.0], 0.01) == 7


def test_latencies_are_reported_in_milliseconds() -> None:
    summary = summarize_latencies([3_000_000, 1_000_000, 2_000_000])
    assert summary == {"p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 3.0, "max_ms": 3.0}
    assert summarize_latencies([]) == {}


def test_ratios_are_taken_within_each_repetition() -> None:
    # The machine was twice as slow in the second repetition, for both.
    found = divide({1: 10.0, 2: 20.0, 3: 99.0}, {1: 5.0, 2: 10.0, 4: 1.0})
    assert found is not None
    assert (found.median, found.low, found.high, found.repetitions) == (2.0, 2.0, 2.0, 2)
    assert divide({1: 1.0}, {2: 1.0}) is None
    assert divide({1: 1.0}, {1: 0.0}) is None
    assert spread([]) is None


# ---- what comes over the wire

ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n11\r\nseventeen charact\r\n0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nLast-Event-ID: 1-0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_ends_where_it_ends(answer: bytes) -> None:
    assert all(measure_answer(answer[:end]) == 0 for end in range(len(answer)))
    assert measure_answer(answer) == len(answer)
    assert measure_answer(answer + b"HTTP/1.1 200") == len(answer)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_what_has_no_end_is_refused(answer: bytes) -> None:
    with pytest.raises(AnswerError):
        measure_answer(answer)


def test_pings_are_found_between_other_frames() -> None:
    text = b"\x81\x7e\x00\xc8" + b"\x89" * 200
    huge = b"\x81\x7f" + (70_000).to_bytes(8, "big") + b"x" * 70_000
    assert find_pings(text + b"\x89\x02hi" + huge + b"\x89\x00") == [b"hi", b""]
    assert find_pings(b"\x89\x05cut") == []
    assert find_pings(b"") == []


def test_an_event_is_as_large_as_it_should_be() -> None:
    data = write_event(7, 123, 160)
    assert len(data) == 160
    assert json.loads(data) | {"text": ""} == {"mark": 7, "sent": 123, "text": ""}


# ---- the load generator, with a server of the test's own

Script = Callable[[socket.socket], None]
READ = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture
def serve() -> Iterator[Callable[[Script], Target]]:
    """Starts a server that treats each connection as told."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def accept(listener: socket.socket, script: Script) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(HANG_SECONDS)
                script(sock)

    def start(script: Script) -> Target:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threads.append(threading.Thread(target=accept, args=(listener, script)))
        threads[-1].start()
        return Target("127.0.0.1", listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(HANG_SECONDS)


def read_request(sock: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += sock.recv(65536)
    return received


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd()
    yield crowd
    crowd.close()


def test_events_are_counted_however_they_are_cut(serve: Callable[[Script], Target], crowd: Crowd) -> None:
    step = threading.Semaphore(0)

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b'begun mark "ma')
        for part in (b"rk mark m", b"a", b"r", b"k marmark"):
            step.acquire(timeout=HANG_SECONDS)
            sock.sendall(part)

    opened = crowd.open(serve(script), [Opening(READ, b"begun")])
    assert (opened.clients, opened.failures) == (1, [])
    for marks in (3, 3, 3, 5):
        step.release()
        received = crowd.receive(HANG_SECONDS, until_marks=marks)
    assert crowd.receive(HANG_SECONDS, until_marks=6).marks == 5  # it ends with the connection at the latest
    assert received.marks == 5


def test_latency_counts_from_the_time_in_the_event(serve: Callable[[Script], Target], crowd: Crowd) -> None:
    second_ago = time.monotonic_ns() - 10**9

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"begun ")
        for number in range(40):
            payload = b'{"mark":%d,"sent":%d}' % (number, second_ago)
            sock.sendall(b"\x81" + bytes([len(payload)]) + payload + b"\x89\x00")
            sock.recv(6, socket.MSG_WAITALL)  # the pong: one event at a time

    crowd.track_events()
    crowd.open(serve(script), [Opening(READ, b"begun ")], is_websocket=True)
    received = crowd.receive(HANG_SECONDS, until_marks=40)
    assert received.marks == 40
    assert len(received.latencies) == 10
    assert all(10**9 <= latency < 60 * 10**9 for latency in received.latencies)
    assert sorted(received.per_event) == list(range(40))
    assert {arrived for arrived, _ in received.per_event.values()} == {1}


class Polled(Running):
    """A server that is polled with the number of the last answer."""

    def poll_next(self, topic: str, head: bytes) -> bytes:
        found = re.search(rb"X-Number: (\d+)", head)
        assert found is not None
        return b"GET /%s?after=%s HTTP/1.1\r\n\r\n" % (topic.encode(), found[1])


def test_a_long_poll_goes_on_from_each_answer(serve: Callable[[Script], Target], crowd: Crowd) -> None:
    asked: list[bytes] = []

    def script(sock: socket.socket) -> None:
        for number in range(3):
            asked.append(read_request(sock).split(b" ")[1])
            body = b"mark" * number
            sock.sendall(b"HTTP/1.1 200 OK\r\nX-Number: %d\r\nContent-Length: %d\r\n\r\n" % (number, len(body)))
            sock.sendall(body)
        asked.append(read_request(sock).split(b" ")[1])
        sock.sendall(b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n")

    target = serve(script)
    crowd.open(target, [Opening(b"GET /first HTTP/1.1\r\n\r\n", b"")], again=Again(Polled(1, target.port), "t"))
    received = crowd.receive(HANG_SECONDS, until_answers=4)
    assert (received.marks, received.answers) == (3, 4)
    assert asked == [b"/first", b"/t?after=0", b"/t?after=1", b"/t?after=2"]
    assert received.closed == 1


def test_who_is_refused_is_a_failure(serve: Callable[[Script], Target], crowd: Crowd) -> None:
    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 503 Full\r\n\r\n")

    opened = crowd.open(serve(script), [Opening(READ, b"begun")] * 3)
    assert opened.clients == 0
    assert len(opened.failures) == 1  # three times the same
    assert "503 Full" in opened.failures[0]
    assert crowd.count_open() == 0


def test_what_was_meant_for_paused_clients_comes_later(serve: Callable[[Script], Target], crowd: Crowd) -> None:
    step = threading.Event()

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"begun ")
        step.wait(HANG_SECONDS)
        sock.sendall(b"mark")

    crowd.open(serve(script), [Opening(READ, b"begun ")])
    crowd.pause(1)
    step.set()
    assert crowd.receive(0.05, until_marks=1).marks == 0
    crowd.resume()
    assert crowd.receive(HANG_SECONDS, until_marks=1).marks == 1


def test_echoes_are_counted_round_by_round(serve: Callable[[Script], Target], crowd: Crowd) -> None:
    message = websocket_frame(b"mark")

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"begun ")
        for _ in range(3):
            assert sock.recv(len(message), socket.MSG_WAITALL) == message
            sock.sendall(b"\x81\x04mark")

    crowd.open(serve(script), [Opening(READ, b"begun ")], is_websocket=True)
    count, trips = crowd.echo(message, 3, HANG_SECONDS)
    assert count == len(trips) == 3


def test_a_load_generator_says_what_went_wrong() -> None:
    load = Load()
    try:
        assert load.call("count_open") == 0
        with pytest.raises(LoadError, match="no attribute 'fly'"):
            load.call("fly")
        assert load.call("receive", 0).marks == 0
    finally:
        load.end()


def test_a_refused_event_is_no_figure(serve: Callable[[Script], Target]) -> None:
    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n")

    publisher = Publisher(Running(1, serve(script).port))
    try:
        with pytest.raises(PublishError, match="503 Full"):
            publisher.publish("topic", b"{}")
    finally:
        publisher.close()


def test_the_intended_times_do_not_wait_for_answers(serve: Callable[[Script], Target]) -> None:
    """Answers that take longer than a millionth of a second make requests late, not the times they were meant for."""
    intended: list[int] = []

    def script(sock: socket.socket) -> None:
        for _ in range(5):
            read_request(sock)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def write(number: int, sent_ns: int) -> bytes:
        intended.append(sent_ns)
        return READ

    publisher = Publisher(Running(1, serve(script).port))
    try:
        published = publisher.run(write, 5, 1_000_000, HANG_SECONDS)
    finally:
        publisher.close()
    assert published.answered == 5
    assert [one - intended[0] for one in intended] == [0, 1000, 2000, 3000, 4000]
    assert published.latest_ms > 0


# ---- processes


def test_cpu_time_of_ended_threads_counts() -> None:
    code = (
        "import threading, time\n"
        "def work():\n"
        "    while time.thread_time() < 0.2: pass\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "print('worked', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = read_cpu_ns([process.pid])
        memory = read_memory([process.pid])
        process.communicate(b"\n")
    assert used > 0.2e9
    assert memory.rss > 0
    assert memory.pss > 0
    assert read_cpu_ns([process.pid]) == 0
    assert read_memory([process.pid]) == (0, 0)


def test_what_a_measurement_leaves_behind_is_ended() -> None:
    """A measurement that hangs, with a grandchild in a session of its own: both end with it."""
    hanging = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(child.pid, file=sys.stderr, flush=True); print(flush=True); time.sleep(600)"
    )
    # Its time begins when the grandchild is there.
    code = (
        "import os, subprocess, sys; from processes import adopt_orphans, list_descendants; from runner import _ask\n"
        "class Begun(subprocess.Popen):\n"
        "    def communicate(self, timeout): self.stdout.readline(); return super().communicate(timeout=timeout)\n"
        "subprocess.Popen = Begun\n"
        "adopt_orphans()\n"
        f"answer = _ask([sys.executable, '-c', {hanging!r}], sys.stderr, 0.1)\n"
        "print(answer, list_descendants(os.getpid()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    )
    assert done.stdout == "None []\n"
    assert not Path(f"/proc/{int(done.stderr)}").exists()
    assert list_descendants(2**22 + 1) == []


def test_the_machine_is_described_but_not_named() -> None:
    facts = describe_machine()
    assert facts["cores"]
    assert facts["kernel"]
    assert socket.gethostname() not in [str(value) for value in facts.values()]


# ---- made-up results


def make_results(**figures: float) -> Results:
    """Two repetitions in which Tricast reaches everything, unless a figure is given by name."""
    ours = {
        "fan_out": 11.0,
        "saturation": 900_000.0,
        "rss": 5_000.0,
        "accept": 150.0,
        "idle": 7.0,
        "tls": 1.5,
        **figures,
    }
    peers = [PeerFacts(name, f"what {name} is", "1.0") for name in ("Tricast", FLOOR, PROTOTYPE, NCHAN, OTHER)]
    peers.append(PeerFacts("Mercure", "a hub", missing="there is no go here"))
    results = Results("2026-01-02T03:04:05+00:00", is_quick=False, machine=describe_machine(), sizes={})
    results.sizes = {one.name: one.sizes_for(is_quick=False) for one in SCENARIOS}
    results.peers = peers
    for repetition, noise in ((1, 1.0), (2, 3.0)):
        for transport in ("sse", "websocket"):
            for scenario, key, values in (
                ("fan-out", "cpu_us", {"Tricast": ours["fan_out"], FLOOR: 10.0, NCHAN: 12.0}),
                ("saturation", "per_cpu_second", {"Tricast": ours["saturation"], FLOOR: 1e9, OTHER: 100_000.0}),
                ("connections", "accept_cpu_us", {"Tricast": ours["accept"], PROTOTYPE: 120.0}),
            ):
                results.measurements += [
                    Measurement(scenario, transport, name, repetition, {key: value * noise})
                    for name, value in values.items()
                ]
            for name, size in {"Tricast": ours["rss"], FLOOR: 1.0, OTHER: 20_000.0}.items():
                results.measurements.append(
                    Measurement("connections", transport, name, repetition, {"rss_bytes": size})
                )
            idle = {"cpu_percent": ours["idle"]}
            results.measurements.append(Measurement("idle-cpu", transport, "Tricast", repetition, idle))
        results.measurements.append(Measurement("tls", "sse", "Tricast", repetition, {"ratio": ours["tls"]}))
    results.measurements.append(Measurement("fan-out", "sse", OTHER, 1, failed="it fell | over"))
    return results


HELD = {"connections": 100_000, "seconds": 300, "lost": 0, "dropped": 0, "rss_bytes": 1.1e9}


def test_results_survive_being_written(tmp_path: Path) -> None:
    results = make_results()
    results.save(tmp_path / "new")
    assert read_results(tmp_path / "new" / "results.json") == results


def find_rows(report: str, title: str) -> dict[str, list[str]]:
    section = report.split(title, 1)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table[0].splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_a_table_names_everybody(tmp_path: Path) -> None:
    report = render(make_results())
    rows = find_rows(report, "## Fan-out")
    assert rows["Tricast"] == ["22.00 (11.00–33.00)", "1.10"]
    assert rows[FLOOR] == ["20.00 (10.00–30.00)", "1.00"]
    assert rows[OTHER] == ["failed", "—"]
    assert rows[PROTOTYPE] == ["—", "—"]
    assert "- Go failed: it fell \\| over" in report
    assert "| Mercure | a hub | not measured: there is no go here |" in report
    assert set(find_rows(report, "## TLS")) == {"", "---", "Tricast"}
    assert "quick" not in report


def test_the_summary_has_a_column_for_each_main_figure() -> None:
    results = make_results()
    rows = find_rows(f"Summary\n{render_summary(results)}\n", "Summary")
    assert rows["Tricast"] == ["22.0", "22.0", "1,800,000", "1,800,000", "5,000", "5,000", "300", "300"]
    assert rows[OTHER] == ["failed", "—", "200,000", "200,000", "20,000", "20,000", "—", "—"]
    assert "Mercure" not in rows


def test_the_readme_keeps_what_is_around_the_summary(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{README_BEGIN}\nold\n{README_END}\n\nafter\n", encoding="utf-8")
    results = make_results()
    update_readme(readme, results, "results")
    once = readme.read_text(encoding="utf-8")
    assert once == f"before\n\n{render_readme(results, 'results')}\n\nafter\n"
    update_readme(readme, results, "results")
    assert readme.read_text(encoding="utf-8") == once


def test_the_readme_shows_the_results_that_are_kept() -> None:
    shown = render_readme(read_results(BENCH / "results" / "results.json"), "scripts/bench/results")
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"scripts/bench/results/[\w.-]+", shown):
        assert (ROOT / name).is_file()


def test_all_that_is_reached_is_said_to_be() -> None:
    verdicts = judge(make_results(), HELD)
    assert [str(one) for one in verdicts if not one.is_reached] == []
    assert len(verdicts) == 16


@pytest.mark.parametrize(
    ("figures", "shortfalls"),
    [
        ({"fan_out": 12.4}, ["not above Nchan"]),
        ({"fan_out": 12.6}, ["1.25 x the C floor", "not above Nchan", "1.25 x the C floor"]),
        ({"saturation": 499_000.0}, ["5 x the best peer (Go)"] * 2),
        ({"rss": 6_145.0}, ["6 KiB"]),
        ({"rss": 20_001.0}, ["6 KiB", "below every peer (Go has the least)", "8 KiB", "below every peer"]),
        ({"accept": 160.0}, ["1.30 x the Trio prototype"]),
        ({"accept": 175.0}, ["1.45 x the Trio prototype", "1.30 x the Trio prototype"]),
        ({"idle": 8.1}, ["8 % of a core"] * 2),
        ({"tls": 2.1}, ["2 x plain"]),
    ],
)
def test_each_shortfall_is_named(figures: dict[str, float], shortfalls: list[str]) -> None:
    verdicts = judge(make_results(**figures), HELD)
    short = [one.target for one in verdicts if one.is_reached is False]
    assert len(short) == len(shortfalls) == count_shortfalls(verdicts)
    assert all(expected in found for expected, found in zip(shortfalls, short, strict=True))


@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        ({"lost": 1}, [False, True]),
        ({"dropped": 1}, [False, True]),
        ({"rss_bytes": 1.3e9}, [True, False]),
        ({"connections": 3000}, [None, None]),
        ({"connections": 3000, "lost": 1}, [False, None]),
        ({"seconds": 60}, [None, None]),
    ],
)
def test_holding_fewer_or_for_less_proves_nothing(change: dict[str, float], verdicts: list[bool | None]) -> None:
    assert [one.is_reached for one in judge(make_results(), HELD | change)[-2:]] == verdicts


def test_what_was_not_measured_is_neither_reached_nor_short() -> None:
    results = make_results()
    results.measurements = []
    verdicts = judge(results)
    assert {one.is_reached for one in verdicts} == {None}
    assert count_shortfalls(verdicts) == 0


def test_fewer_idle_connections_may_cost_less() -> None:
    results = make_results(idle=7.0)
    results.sizes["idle-cpu"]["connections"] = 3000
    short = [str(one) for one in judge(results) if one.is_reached is False]
    assert len(short) == 2
    assert "the limit is for 15,000" in short[0]


@pytest.mark.parametrize(("tls", "status"), [(1.5, 0), (2.5, 1)])
def test_check_prints_verdicts_and_says_so_with_its_status(tmp_path: Path, tls: float, status: int) -> None:
    make_results(tls=tls).save(tmp_path)
    (tmp_path / "hundred-thousand.json").write_text(json.dumps(HELD), encoding="utf-8")
    command = [sys.executable, BENCH / "check", tmp_path / "results.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.count("REACHED ") == 16 - status
    assert done.stdout.count("FALLS SHORT") == status


def test_check_says_what_makes_results(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "check", tmp_path / "results.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 2
    assert "scripts/bench/run makes it" in done.stderr


# ---- what is measured, in which order


def test_servers_take_turns_and_what_is_done_is_not_done_again() -> None:
    results = Results("", is_quick=True, machine={}, sizes={}, peers=[PeerFacts(one.name, one.about) for one in PEERS])
    jobs = plan(parse(["--repetitions", "2"]), results)
    assert [job.repetition for job in jobs] == sorted(job.repetition for job in jobs)
    first = [job for job in jobs if job.repetition == 1]
    kinds = [job.identity[:2] for job in first]
    assert kinds == [kind for kind in dict.fromkeys(kinds) for _ in range(kinds.count(kind))]
    results.measurements = [Measurement(*job.identity) for job in jobs[1:]]
    assert plan(parse(["--repetitions", "2"]), results) == jobs[:1]
    results.peers[0].missing = "not here"
    assert PEERS[0].name not in {job.peer.name for job in plan(parse([]), results)}


def test_only_what_a_server_can_do_is_measured() -> None:
    tricast = PEERS[0]
    for scenario in SCENARIOS:
        for transport in scenario.transports:
            assert scenario.can_be_measured(tricast, transport), (scenario.name, transport)
    for peer in PEERS[1:]:
        for scenario in SCENARIOS:
            missing = scenario.needs - peer.capabilities
            assert not (missing and any(scenario.can_be_measured(peer, one) for one in scenario.transports))


def test_every_scenario_describes_its_sizes() -> None:
    for scenario in SCENARIOS:
        sizes = scenario.sizes_for(is_quick=True)
        assert set(scenario.quick) <= set(scenario.sizes)
        assert "{" not in scenario.about.format(**sizes)


def test_messages_do_not_say_where_the_project_is() -> None:
    assert shorten(f"{ROOT}/.venv/bin/python did not start") == ".venv/bin/python did not start"


# ---- a hundred thousand, by arithmetic


def test_connections_are_shared_out_completely() -> None:
    assert split(10, 3) == [3, 3, 4]
    counts = [count_clients(100_001, 7, transport) for transport in ("sse", "websocket", "poll")]
    assert [sum(column) for column in zip(*counts, strict=True)] == split(100_001, 7)


def test_lost_and_repeated_events_are_counted_one_by_one() -> None:
    def received(**per_event: tuple[int, int]) -> Received:
        return Received(0, 0, [], 0, {int(number[1:]): arrived for number, arrived in per_event.items()})

    crowd = [received(n1=(5, 2 * 10**9), n2=(5, 9), n3=(6, 9)), received(n1=(5, 4 * 10**9), n2=(3, 9), n3=(5, 9))]
    figures = count_events({1: 10**9, 2: 0, 3: 0, 4: 0}, crowd, 10)
    assert figures == {
        "events": 4,
        "lost": 2 + 10,
        "duplicated": 1,
        "reached_seconds": 3.0,
        "reached_seconds_worst": 3.0,
    }


# ---- those who mean no good


@pytest.fixture
def victim() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(HANG_SECONDS)
        yield listener


def attack_until(mob: Mob, is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not is_done():
        assert time.monotonic() < end
        mob.go_on(0.01)


Gather = Callable[..., Mob]


@pytest.fixture
def gather(victim: socket.socket) -> Iterator[Gather]:
    with ExitStack() as mobs:

        def gather(*kinds: Kind) -> Mob:
            mob = Mob(victim.getsockname(), dict.fromkeys(Kind, Speech(b"now", b"ab")), kinds, every=0.01)
            return mobs.enter_context(closing(mob))

        yield gather


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_one_sends_byte_by_byte(victim: socket.socket, gather: Gather, kind: Kind) -> None:
    mob = gather(kind)
    mob.go_on(0)
    peer, _ = victim.accept()
    with peer:
        peer.setblocking(False)
        received: list[bytes] = []

        def read() -> bool:
            try:
                received.append(peer.recv(100))
            except BlockingIOError:
                return False
            return len(b"".join(received)) >= 8

        attack_until(mob, read)
    assert b"".join(received) == b"nowababa"
    assert len(received) > 2


@pytest.mark.parametrize("kind", SILENT)
def test_a_silent_one_reads_nothing(victim: socket.socket, gather: Gather, kind: Kind) -> None:
    mob = gather(kind)
    mob.go_on(0)
    peer, _ = victim.accept()
    with peer:
        attack_until(mob, lambda: bool(mob.standing().connected))
        assert peer.recv(100) == b"now"
        peer.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while sent < 2**30:
                sent += peer.send(b"x" * 65536)
                mob.go_on(0)
        assert sent < 2**30
        with pytest.raises(BlockingIOError):
            peer.recv(100)


@pytest.mark.parametrize("kind", Kind)
def test_who_is_thrown_out_comes_back(victim: socket.socket, gather: Gather, kind: Kind) -> None:
    mob = gather(kind)
    for times in range(1, 4):
        attack_until(mob, lambda: bool(mob.standing().connected))
        victim.accept()[0].close()
        attack_until(mob, lambda times=times: mob.standing().thrown_out == {str(kind): times})


@pytest.mark.parametrize(
    ("ratio", "lost", "is_fine"), [(1.9, 0, True), (2.0, 0, False), (1.0, 1, False), (None, 0, False)]
)
def test_what_others_may_suffer(ratio: float | None, lost: int, is_fine: bool) -> None:
    figures = {
        "p99_ratio": None if ratio is None else {"median": ratio},
        "runs": {"without": [{"lost": 0}], "with": [{"lost": 0}, {"lost": lost}]},
    }
    assert holds(figures) is is_fine


def test_how_an_attack_goes(gather: Gather) -> None:
    mob = gather(Kind.HEAD, Kind.HEAD, Kind.SILENT_SSE)
    assert mob.standing() == Standing({}, {})
    attack_until(mob, lambda: mob.standing() == Standing({"head": 2, "silent sse": 1}, {}))


# ---- tiny real runs


def test_a_run_measures_and_reports(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "runner.py", "--quick", "--repetitions", "1", "--peer", "Tricast"]
    command += ["--scenario", "publish", "--no-plots", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    assert re.match(r"\[1/1\] publish #1 Tricast: CPU µs per event \S+, events/s \S+\n$", done.stdout)
    results = read_results(tmp_path / "results.json")
    assert [one.failed for one in results.measurements] == [""]
    assert results.pick("publish", "", "Tricast", "cpu_us")[1] > 0
    assert "quick run" in (tmp_path / "results.md").read_text(encoding="utf-8")
    mixed = subprocess.run(
        [*command, "--resume", "--nice", "5"], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert mixed.returncode == 1
    assert "another --nice" in mixed.stderr
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    assert again.stdout == ""


def test_connections_are_held_and_nothing_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "hundred_thousand.py", "--connections", "31", "--seconds", "2", "--idle", "0.5"]
    command += ["--every", "0.5", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "hundred-thousand.json").read_text(encoding="utf-8"))
    wanted = {"connections": 31, "events": 3, "lost": 0, "duplicated": 0, "dropped": 0}
    assert figures | wanted == figures
    assert figures["reached_seconds"] is not None
    assert (tmp_path / "hundred-thousand.md").read_text(encoding="utf-8") == render_held(figures) == done.stdout


CAPACITY = {
    "subscribers": 10_000,
    "failures": [],
    "results": {
        str(CASES[1]): {"redis_us": {1: 50.0, 2: 40.0, 3: 45.0}, "reader_us": {1: 90.0}, "per_second": {1: 1000.4}},
        "latency over 2 nodes": {"p50_ms": {1: 2.0}, "p99_ms": {1: 9.0, 2: 30.0, 3: 8.0}, "max_ms": {1: 20.0}},
        MEMORY: {"cpu_us": {1: 10.0, 2: 20.0, 3: 10.0}},
        REDIS: {"cpu_us": {1: 10.3, 2: 20.8, 3: 11.0}},
    },
}


def test_what_a_log_takes_is_told_in_medians() -> None:
    told = render_capacity(CAPACITY)
    assert "| 2 | 1 | 1,000/s | 1 | 1 | 45.0 | — | — | 90.0 | — | — | — | 1,000 |" in told.splitlines()
    assert "received on another server: p50 2.00 ms, p99 9.00 ms, max 20.00 ms." in told
    assert "on the same server" not in told
    assert "1.040 times as much (1.030 to 1.100 in 3 repetitions)" in told
    assert render_capacity({"results": {}, "failures": []}) == ""
    assert "Failed: #1 redis: it broke" in render_capacity(CAPACITY | {"failures": ["#1 redis: it broke"]})


def test_what_is_promised_of_a_log_is_judged() -> None:
    assert is_fine(CAPACITY)
    assert is_fine({"results": {}, "failures": []})
    assert not is_fine({"results": {}, "failures": ["it broke"]})
    late = {"latency over 2 nodes": {"p99_ms": {1: 9.0, 2: 30.0, 3: 11.0}}}
    dear = {MEMORY: {"cpu_us": {1: 10.0}}, REDIS: {"cpu_us": {1: 10.6}}}
    assert not is_fine({"results": late, "failures": []})
    assert not is_fine({"results": dear, "failures": []})


def test_every_server_reads_every_event(tmp_path: Path) -> None:
    options = parse_capacity(["--seconds", "0.2"])
    found = take_case(Case(nodes=2, batch=10, rate=500, shards=2), options, tmp_path)
    assert found.pop("bytes_kept") is not None  # of so few events Redis may need less than it has given back meanwhile
    assert min(found.values()) > 0
    assert found.keys() >= {"redis_us", "publisher_us", "reader_us", "append_ms", "bytes_out"}


def test_what_a_log_takes_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "log_capacity.py", "--repetitions", "1", "--seconds", "0.2", "--out", tmp_path]
    command += ["--subscribers", "20", "--events", "3", "--only", "latency", "deliveries"]
    environment = {**os.environ, "PYTHONPATH": str(BENCH.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False, env=environment)
    figures = json.loads((tmp_path / "log-capacity.json").read_text(encoding="utf-8"))
    assert (tmp_path / "log-capacity.md").read_text(encoding="utf-8") == done.stdout
    assert set(figures["results"]) == {"latency over 1 nodes", "latency over 2 nodes", MEMORY, REDIS}
    assert "on another server" in done.stdout
    assert "with the log in memory" in done.stdout


def test_who_means_no_good_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "hostile.py", "--slow", "6", "--silent", "4", "--subscribers", "5"]
    command += ["--seconds", "0.5", "--settle", "0", "--repetitions", "1", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "hostile.json").read_text(encoding="utf-8"))
    without, attacked = (figures["runs"][name][0] for name in ("without", "with"))
    assert (without["attackers"], attacked["attackers"]) == (0, 10)
    assert without["lost"] == attacked["lost"] == without["thrown_out"] == 0
    assert figures["p99_ratio"]["repetitions"] == 1
    assert (tmp_path / "hostile.md").read_text(encoding="utf-8") == render_hostile(figures) == done.stdout


def test_what_a_proxy_costs_is_measured_and_judged(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "proxy_cost.py", "--repetitions", "1", "--seconds", "0.3", "--streams", "3"]
    command += ["--requests", "5", "--tunnels", "7", "--mebibytes", "2", "--check"]
    command += ["--only", "events", "tunnels", "bodies"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "cost.json"], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    results = json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))["results"]
    kinds = ("event_", "tunnel_", "down_", "up_")
    assert {figure.key for figure in COST if figure.key.startswith(kinds)} == set(results[PROXY])
    assert {"event_p50_ms", "event_p99_ms"} <= set(results[DIRECT])
    options = parse_cost(["--tunnels", "7", "--mebibytes", "2"])
    assert done.stdout.startswith(render_cost(results, options).splitlines()[0])
    # So few tunnels and so little of a body say nothing; what the rest says depends on who else is there.
    assert done.stdout.count("NOT MEASURED") >= 3
    assert done.returncode == ("FALLS SHORT" in done.stdout), done.stderr


COSTS = {
    "stream_p50_ms": (1.0, None, 1.5),
    "get_p50_ms": (0.2, None, 1.0),
    "echo_p50_ms": (0.1, None, 0.2),
    "event_cpu_us": (None, 10.0, 25.0),
    "stream_cpu_us": (None, 10.0, 25.0),
    "tunnel_bytes": (None, 18_000.0, 15_000.0),
    "down_growth_mib": (None, 1.0, 1.0),
    "up_growth_mib": (None, 1.0, 1.0),
}


@pytest.mark.parametrize(
    ("worse", "short"),
    [
        ({}, ""),
        ({"get_p50_ms": 1.3}, "p50 of a GET"),
        ({"event_cpu_us": 31.0}, "CPU per event, many streams"),
        ({"tunnel_bytes": 20_001.0}, "an idle tunnel"),
        ({"up_growth_mib": 17.0}, "a large body up"),
    ],
)
def test_each_limit_of_the_proxy_is_judged(worse: dict[str, float], short: str) -> None:
    results: dict[str, dict[str, dict[int, float]]] = {DIRECT: {}, NGINX: {}, PROXY: {}}
    for key, values in COSTS.items():
        for name, value in zip((DIRECT, NGINX, PROXY), values, strict=True):
            if value is not None:
                results[name][key] = {1: worse.get(key, value) if name == PROXY else value}
    verdicts = judge_cost(results, parse_cost([]))
    assert [one.what for one in verdicts if not one.is_reached] == ([short] if short else [])
    table = render_cost(results, parse_cost([]))
    assert "| CPU µs per event, 1 stream, 200 events/s | — | 10.0 | 25.0 | 2.50 x |" in table
