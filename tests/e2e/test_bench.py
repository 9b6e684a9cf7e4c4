"""``tricast bench`` against the server, and against one that loses, repeats and swaps events."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme
from bench.crooked import CrookedServer, Reordering, announcing, dropping, duplicating, honest
from cli.running import run, running, serving_command
from clients import subscribe
from clocks import HANG_SECONDS
from serving import ended, serving, until

from tricast.bench.coordinator import GeneratorProcess
from tricast.bench.messages import Await, Begin, Opened, Plan, Report, Stop
from tricast.bench.schedule import Feed

TRANSPORTS = ["poll", "sse", "ws"]
#: Short, and measured from the first event on.
SHORT = ("--duration", "0.5", "--rate", "40", "--warm-up", "0")
ENDLESS = ("--duration", "600")
FAULTS = ("lost", "duplicates", "out_of_order", "missed")
KEYS = {
    "transport", "subscribers", "opened", "opened_per_second", "planned", "published", "rate", "published_per_second",
    "events_per_publish", "publish_late_ms", "deliveries", "deliveries_per_second", "lost", "missed", "duplicates",
    "out_of_order", "gaps", "latency_ms", "bytes_per_event", "requests_per_event", "reconnects", "errors", "generator",
    "failures", "warnings", "by_transport", "was_interrupted",
}  # fmt: skip


async def bench(url: str, *args: str, code: int = 0) -> dict:
    """Runs it, and returns what it prints as JSON."""
    status, out, said = await run("bench", "--url", url, "--json", *SHORT, *args)
    assert status == code, said
    return json.loads(out)


def faults(result: dict) -> dict[str, int]:
    return {name: result[name] for name in FAULTS if result[name]}


# The server


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_hundreds_of_subscribers(transport):
    async with serving() as server:
        result = await bench(server.url, "--transport", transport, "--subscribers", "300")
    assert set(result) == KEYS
    assert faults(result) == {}
    assert result["errors"] == {}
    assert (result["subscribers"], result["opened"]) == (300, 300)
    assert 0 < result["published"] <= result["planned"] == 20
    # With a slow machine less is published, but that comes.
    assert result["deliveries"] == result["published"] * 300
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99_9"] <= result["latency_ms"]["max"]
    assert result["bytes_per_event"] > 160
    assert (result["requests_per_event"] > 0) is (transport == "poll")
    assert result["generator"]["processes"] == 2


async def test_a_mix_over_topics_publishers_and_processes():
    async with serving() as server:
        args = ("--transport", "mix", "--topics", "3", "--publishers", "2", "--processes", "2", "--rate", "2000")
        result = await bench(server.url, *args, "--subscribers", "18")
    assert faults(result) == {}
    parts = result["by_transport"]
    assert {name: part["opened"] for name, part in parts.items()} == dict.fromkeys(TRANSPORTS, 6)
    assert sum(part["deliveries"] for part in parts.values()) == result["deliveries"] > 0
    assert result["generator"]["processes"] == 3
    assert result["events_per_publish"] > 1


async def test_only_what_was_due_behind_the_warm_up_is_measured():
    async with serving() as server:
        result = await bench(server.url, "--subscribers", "1", "--warm-up", "0.5")
    assert result["planned"] == 20
    assert result["deliveries"] == result["published"]


async def test_side_by_side():
    async with serving() as server:
        code, out, said = await run("bench", "--compare", "--url", server.url, "--subscribers", "10", *SHORT)
    assert code == 0, said
    assert out.splitlines()[0].split() == ["long", "polling", "SSE", "WebSocket"]
    table = [re.split("  +", line) for line in out.splitlines()]
    rows = {label: values for label, *values in table if values}
    assert rows["lost"] == ["0", "0", "0"]
    assert rows["subscribers opened"] == ["10", "10", "10"]
    assert "- lowest p99 latency: " in out


async def test_side_by_side_as_json():
    async with serving() as server:
        result = await bench(server.url, "--compare", "--subscribers", "5")
    assert list(result) == TRANSPORTS
    assert all(set(part) == KEYS for part in result.values())


async def test_interrupted_it_tells_what_it_has_so_far():
    async with (
        serving() as server,
        running("bench", "--url", server.url, *ENDLESS, "--warm-up", "0") as command,
    ):
        await _begun(server.url)
        command.process.send_signal(signal.SIGINT)
        code, out, said = await command.end()
    assert code == 0, said
    assert "interrupted: these are the results so far" in out


async def test_interrupted_before_anything_is_measured():
    args = ("bench", "--json", *ENDLESS, "--warm-up", "600", "--url")
    async with serving() as server, running(*args, server.url) as command:
        line = await command.err.until("warming up: ")
        command.process.send_signal(signal.SIGINT)
        code, out, said = await command.end()
    # Lines count as the results do, though dozens have come by now.
    assert line == "SSE, warming up: 100 of 100 subscribers, 0 of 6,000 events published, 0 delivered, 0 errors"
    assert code == 130, said
    result = json.loads(out)
    assert (result["published"], result["deliveries"], result["failures"]) == (0, 0, [])
    assert set(result["latency_ms"].values()) == {None}
    assert (result["bytes_per_event"], result["requests_per_event"]) == (None, None)
    assert "-0.0" not in out


async def _begun(url: str) -> None:
    """Waits for the second event: the first may have been there only to see whether it is taken."""
    with await subscribe("sse", url, "bench") as witness:
        await witness.event()
        await witness.event()


async def test_interrupted_before_there_is_anything_to_tell():
    server = CrookedServer(refusals=10**6)
    async with server.on_sockets(), running("bench", "--url", server.url, "--subscribers", "1") as command:
        await until(lambda: server.refusals < 10**6)
        command.process.send_signal(signal.SIGINT)
        code, out, _ = await command.end()
    assert (code, out) == (130, "")


async def test_publishers_whose_turn_comes_late_lose_their_connection_meanwhile():
    async with serving(limits={"head_timeout": "50ms"}) as server:
        result = await bench(server.url, "--subscribers", "2", "--publishers", "10", "--rate", "12")
    assert faults(result) == {}
    assert result["deliveries"] == result["published"] * 2


async def test_what_fits_no_batch_is_told_in_the_words_of_the_problem():
    async with serving(publish={"max_batch": 3}) as server:
        code, out, said = await run("bench", "--url", server.url, *SHORT, "--rate", "2000")
    assert (code, out) == (1, "")
    assert "error: the server answered 413 to a publish: publish.max_batch allows 3, found" in said


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--topic", ""), "400 Bad Request: a topic is dot-separated words"),
        (("--topic", "a.*"), "400 Bad Request: a topic is dot-separated words without"),
        (("--size", "100000"), "413 Request Entity Too Large: publish.max_event allows 65536, found"),
        (("--size", "9000000"), "413 Request Entity Too Large: publish.max_body allows 1048576, found"),
    ],
)
async def test_what_the_server_never_takes_is_told_before_anything_starts(args, why):
    async with serving() as server:
        code, out, said = await run("bench", "--url", server.url, *args)
    assert (code, out) == (1, "")
    (line,) = said.splitlines()
    assert line.startswith(f"error: the server answered {why}")


async def test_a_server_without_room():
    async with serving(limits={"connections": 30}) as server:
        code, out, _ = await run("bench", "--url", server.url, "--subscribers", "40", *SHORT)
    assert "warning: only " in out
    assert "of 40 subscribers could be opened" in out
    assert "error: status 503: " in out
    assert code in (0, 1)  # whether there was a connection left to publish on


# Without it


async def test_nobody_serves():
    code, out, said = await run("bench", "--url", "http://127.0.0.1:1")
    assert (code, out) == (1, "")
    assert said == "error: cannot connect to http://127.0.0.1:1: connection refused\n"


async def test_somebody_else_serves():
    async def answer(peer):
        await peer.read_request()
        await peer.respond(200, "hello")

    server = CrookedServer()
    server.handle = lambda stream: _play(answer, stream)
    async with server.on_sockets():
        code, out, said = await run("bench", "--url", server.url)
    assert (code, out) == (1, "")
    assert said == f"error: there is no Tricast server at {server.url}\n"


async def _play(scene, stream):
    from client.scripted import Peer

    await scene(Peer(stream))
    await trio.aclose_forcefully(stream)


async def test_more_subscribers_than_descriptors():
    code, out, said = await run("bench", "--processes", "1", "--subscribers", "9999999")
    assert (code, out) == (1, "")
    assert said.startswith("error: a process may have ")


@pytest.mark.parametrize(
    ("processes", "said"), [("0", "found '0'"), ("many", "expected auto or a number from 1 to 256, found 'many'")]
)
async def test_wrong_usage(processes, said):
    code, _, found = await run("bench", "--processes", processes)
    assert code == 2
    assert said in found


async def test_all_transports_and_one_of_them_is_wrong_usage():
    code, out, said = await run("bench", "--compare", "--transport", "ws", "--url", "http://127.0.0.1:1")
    assert (code, out) == (2, "")
    assert "--compare runs all transports" in said


# Faults


@pytest.mark.parametrize(
    ("crook", "found"),
    [
        (lambda: honest, {}),
        (lambda: dropping, {"lost": 1}),
        (lambda: duplicating, {"duplicates": 1}),
        (Reordering, {"out_of_order": 1}),
        (lambda: announcing, {"missed": 1}),
    ],
    ids=["honest", "drops", "duplicates", "swaps", "announces"],
)
async def test_faults_are_found_on_every_transport(crook, found):
    server = CrookedServer(crook())
    async with server.on_sockets():
        code = 1 if found and "missed" not in found else 0
        result = await bench(server.url, "--transport", "mix", "--subscribers", "3", code=code)
    assert [faults(part) for part in result["by_transport"].values()] == [found] * 3
    assert result["gaps"] == ({"evicted": 3} if "missed" in found else {})
    assert server.pongs == [b"there?"]


async def test_refused_and_cut_off_they_come_back_and_miss_nothing():
    server = CrookedServer(refusals=3, cuts=(3, 1, 2, 1))
    async with server.on_sockets():
        result = await bench(server.url, "--transport", "mix", "--subscribers", "3")
    assert faults(result) == {}
    assert result["errors"]["status 503"] == 3
    assert result["reconnects"] >= 4
    assert result["deliveries"] == server.published * 3


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_is_asked_to_come_back_later_has_met_no_error(transport):
    server = CrookedServer(cuts=(3, 2), says_goodbye=True)
    async with server.on_sockets():
        result = await bench(server.url, "--transport", transport, "--subscribers", "1")
    assert faults(result) == {}
    assert (result["errors"], result["reconnects"], result["failures"]) == ({}, 2, [])
    assert result["deliveries"] == server.published


async def test_who_is_away_for_a_moment_at_the_end_is_waited_for():
    server = CrookedServer(cuts=(20,))
    async with server.on_sockets():
        result = await bench(server.url, "--subscribers", "1")
    assert (faults(result), result["failures"]) == ({}, [])


@pytest.mark.parametrize("status", [503, 409])
async def test_a_server_that_takes_no_events_for_now(status):
    server = CrookedServer(publish_status=status)
    async with server.on_sockets():
        result = await bench(server.url, "--subscribers", "1", code=1)
    assert (result["published"], result["deliveries"]) == (0, 0)
    assert set(result["errors"]) == {f"publishing: status {status}"}
    assert result["failures"] == [f"20 of 20 planned events found no server to take them: status {status}"]
    assert result["warnings"] == []


async def test_a_secure_server(tmp_path, monkeypatch):
    authority = trustme.CA()
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    server = CrookedServer()
    async with server.on_sockets(context):
        code, _, said = await run("bench", "--url", server.url)
        assert code == 1
        assert "its certificate is not trusted" in said
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        result = await bench(server.url, "--transport", "mix", "--subscribers", "30")
    assert faults(result) == {}
    assert result["errors"] == {}
    assert result["deliveries"] == server.published * 30


async def test_subscriptions_are_refused():
    server = CrookedServer(refusals=10**6)
    async with server.on_sockets():
        code, out, said = await run("bench", "--url", server.url, "--subscribers", "1", *SHORT)
    assert (code, out) == (1, "")
    assert said.splitlines()[-1].startswith("error: no subscriber could be opened: status 503 (")


async def test_the_server_goes_away_and_does_not_come_back():
    with trio.fail_after(HANG_SECONDS):
        async with serving_command() as (server, url):
            args = ("bench", "--url", url, "--transport", "mix", "--subscribers", "6", "--duration", "2", "--json")
            async with running(*args) as command:
                await _begun(url)
                server.process.kill()
                code, out, _ = await command.end()
    result = json.loads(out)
    assert result["published"] < result["planned"]
    assert result["errors"]["connection refused"] > 0
    subscribers, events = result["failures"]
    assert subscribers == "6 of 6 subscribers were not connected at the end: connection refused"
    assert events.endswith(" planned events found no server to take them: connection refused")
    assert not any("could not keep up" in warning for warning in result["warnings"])
    assert code == 1


# Its processes


def _children(pid: int) -> list[int]:
    # A child is listed with the thread that has started it.
    return sorted(
        int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
    )


async def test_a_process_of_its_own_that_dies_ends_it():
    async with serving() as server, running("bench", "--url", server.url, *ENDLESS) as command:
        await _begun(server.url)
        os.kill(_children(command.process.pid)[0], signal.SIGKILL)
        code, out, said = await command.end()
    assert (code, out) == (1, "")
    assert said.endswith("error: a process of the load generator ended before its time\n")


async def test_nothing_is_left_when_it_is_killed():
    async with serving() as server, running("bench", "--url", server.url, *ENDLESS) as command:
        await _begun(server.url)
        children = _children(command.process.pid)
        assert len(children) == 2
        command.process.kill()
        await until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


@asynccontextmanager
async def generator(server: CrookedServer):
    """A process with one subscriber, as the coordinator runs it."""
    _, _, port = server.url.rpartition(":")
    feed = Feed(run="cafe0123", topic="bench", topics=1, publishers=1, rate=10.0, size=160, seconds=1.0)
    plan = Plan(
        url=server.url, family=socket.AF_INET, address=("127.0.0.1", int(port)), feed=feed, subscribers=[(0, "sse")]
    )
    command = [sys.executable, "-m", "tricast.bench.generator"]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    async with ended(process), trio.open_nursery() as nursery:
        running = GeneratorProcess(process)
        nursery.start_soon(running.listen)
        await running.tell(plan)
        yield running
        await process.wait()


@pytest.mark.parametrize(("is_stopped", "lost"), [(True, 0), (False, 3)])
async def test_what_is_not_waited_for_is_not_lost(is_stopped, lost):
    server = CrookedServer()
    with trio.fail_after(HANG_SECONDS):
        async with server.on_sockets(), generator(server) as running:
            assert (await running.hear(Opened)).opened == 1
            await running.tell(Begin(0, 0))
            await running.tell(Await([3]))
            if is_stopped:
                await running.tell(Stop())
            report = await running.hear(Report)
    assert report.counts["sse"].lost == lost
