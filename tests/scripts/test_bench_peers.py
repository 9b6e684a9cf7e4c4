"""The servers that Tricast is measured beside: the interface, and those of them that need no installation."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h11
import pytest
from clocks import HANG_SECONDS
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import BytesMessage, Request, TextMessage

from peers import PEERS
from peers.base import (
    Capability,
    Missing,
    Peer,
    PeerError,
    Running,
    built,
    checked,
    http_request,
    launched,
    process_tree,
    token,
    websocket_frame,
    websocket_request,
)
from peers.own import Prototype
from peers.selfcheck import CheckFailedError, Visit, check, check_running, check_stream, event, marks
from peers.tricast import RunningTricast, Tricast

#: A server that says where it listens, and a child of its that does not end when asked to.
STUBBORN = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"],
    stdout=subprocess.PIPE)
child.stdout.readline()
print("2026-11-23 listening on http://127.0.0.1:4711 and http://127.0.0.1:4712", flush=True)
time.sleep(60)
"""


def prototype() -> Prototype:
    return next(peer for peer in PEERS if isinstance(peer, Prototype))


@pytest.mark.parametrize("peer", [Tricast(), prototype()], ids=lambda peer: peer.name)
def test_does_what_it_says(peer: Peer, tmp_path: Path) -> None:
    assert peer.prepare(tmp_path / "build") is None
    assert "trio " in peer.version()
    done = check(peer, tmp_path / "files")
    assert done[:2] == ["sse 200", "websocket 200"]
    assert len(done) == (8 if peer.name == "Tricast" else 2)


def test_holds_a_crowd(tmp_path: Path) -> None:
    peer = prototype()
    assert peer.prepare(tmp_path / "build") is None
    done = check(peer, tmp_path / "files", subscribers=100)
    assert [line.partition(":")[0] for line in done] == ["sse 100", "websocket 100"]


class Forgetful(RunningTricast):
    """Publishes something else than it was told."""

    def publish(self, topic: str, data: bytes) -> bytes:
        return super().publish(topic, data.replace(b'"mark":7', b'"mark":8'))


def test_runs_as_a_program(tmp_path: Path) -> None:
    program = Path(__file__).parents[2] / "scripts" / "bench" / "peers" / "selfcheck.py"
    printed = checked([sys.executable, program, "PROTOTYPE", "--build", tmp_path], seconds=HANG_SECONDS)
    assert printed.startswith("Trio prototype (")
    assert printed.endswith("): sse 200; websocket 200\n")


def test_check_sees_a_wrong_event(tmp_path: Path) -> None:
    with Tricast().run(tmp_path, options={}) as running:
        forgetful = Forgetful(running.pids()[0], running.port)
        with Visit(forgetful) as visit, pytest.raises(CheckFailedError, match=r"6, 8, 8, 9\] instead of"):
            check_stream(visit, "websocket", subscribers=2)
        with pytest.raises(CheckFailedError, match="sse: "):
            check_running(Tricast(), forgetful)


class Abandoning(Tricast):
    """Names a process that goes on."""

    @contextmanager
    def run(self, folder: Path, *, options: Mapping[str, str]) -> Iterator[Running]:
        with super().run(folder, options=options) as running:
            running.pids = lambda: [os.getpid()]  # type: ignore[method-assign]
            yield running


def test_check_sees_what_is_left(tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match=rf"\[{os.getpid()}\] are left"):
        check(Abandoning(), tmp_path, subscribers=1)


def test_settings_of_tricast(tmp_path: Path) -> None:
    with (
        Tricast().run(tmp_path, options={"history": "3", "TRICAST_SSE__RETRY": "77s"}) as running,
        Visit(running) as visit,
    ):
        publisher = visit.publisher()
        for mark in range(5):
            publisher.answer(running.publish("news", event(mark)))
        client = visit.subscribe("sse", "news", last_id="0-0")
        client.read_until(lambda received: len(marks(received)) == 3, "history")
        assert marks(client.received) == [2, 3, 4]
        retry = int(client.received.partition(b"retry: ")[2].split()[0])
        assert retry >= 77_000


def test_head_without_a_position() -> None:
    running = RunningTricast(os.getpid(), 1)
    assert b"Last-Event-ID: 5-1\r\n" in running.poll_next("news", b"Date: now\r\nlast-event-id:  5-1")
    with pytest.raises(ValueError, match="no position"):
        running.poll_next("news", b"Date: now")


def test_peers_are_described() -> None:
    assert PEERS[0].name == "Tricast"
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert peer.transports
        assert peer.about
        assert "\n" not in peer.about
        assert Capability.WEBSOCKET in peer.capabilities or Capability.ECHO not in peer.capabilities


def test_missing_is_named(tmp_path: Path) -> None:
    class Nowhere(Tricast):
        def make_ready(self, build: Path) -> None:
            checked([build / "not-there"])

    assert Nowhere().prepare(tmp_path) == f"there is no {tmp_path}/not-there here"


def test_failure_of_a_build_is_named() -> None:
    code = "import sys; print('nothing of note'); sys.exit('no such module')"
    with pytest.raises(Missing, match=r"failed: no such module$"):
        checked([sys.executable, "-c", code])
    with pytest.raises(Missing, match=r"longer than 0\.01 s"):
        checked([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.01)
    assert checked([sys.executable, "-c", "import os; print(os.environ['A'])"], environment={"A": "b"}) == "b\n"


def test_built_once(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "server").touch()

    first = built(tmp_path, "thing", ["a", b"b"], make)
    assert built(tmp_path, "thing", ["a", b"b"], make) == first == made[0]
    assert made == [first]
    assert built(tmp_path, "thing", ["ab", b""], make) != first
    assert len(made) == 2


def test_build_that_failed_is_made_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise Missing("no network")

    def make(folder: Path) -> None:
        assert not list(folder.iterdir())

    with pytest.raises(Missing):
        built(tmp_path, "thing", ["a"], fail)
    assert (built(tmp_path, "thing", ["a"], make) / ".done").exists()


def test_all_processes_end(tmp_path: Path) -> None:
    with launched([sys.executable, "-c", STUBBORN], tmp_path) as (pid, ports):
        tree = process_tree(pid)
        assert ports == [4711, 4712]
    assert tree[0] == pid
    assert len(tree) == 2
    assert not any(map(process_tree, tree))


def test_server_that_does_not_start(tmp_path: Path) -> None:
    code = "import sys; sys.exit('the port is taken')"
    with pytest.raises(PeerError, match="the port is taken"), launched([sys.executable, "-c", code], tmp_path):
        pass


def test_zombie_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_tree(process.pid) == []
    assert process_tree(os.getpid())[0] == os.getpid()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535])
def test_frame_as_a_client_sends_it(size: int) -> None:
    server = Connection(ConnectionType.SERVER)
    server.receive_data(websocket_frame(b"x" * size) + websocket_frame(b"\0" * size, opcode=2))
    text, binary = server.events()
    assert isinstance(text, TextMessage)
    assert isinstance(binary, BytesMessage)
    assert (text.data, bytes(binary.data)) == ("x" * size, b"\0" * size)


def test_handshake_as_a_client_sends_it() -> None:
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(websocket_request("/ws?topic=a", "Sec-WebSocket-Protocol: tricast.v1"))
    (request,) = server.events()
    assert isinstance(request, Request)
    assert (request.target, request.subprotocols) == ("/ws?topic=a", ["tricast.v1"])


def test_requests_follow_each_other() -> None:
    http = h11.Connection(h11.SERVER)
    http.receive_data(http_request("POST", "/publish", body=b"") + http_request("GET", "/events", "Accept: x"))
    first = http.next_event()
    assert isinstance(first, h11.Request)
    assert (first.method, dict(first.headers)[b"content-length"]) == (b"POST", b"0")
    assert isinstance(http.next_event(), h11.EndOfMessage)
    http.send(h11.Response(status_code=204, headers=[]))
    http.send(h11.EndOfMessage())
    http.start_next_cycle()
    second = http.next_event()
    assert isinstance(second, h11.Request)
    assert dict(second.headers)[b"accept"] == b"x"


def test_token_is_the_one_of_the_standard() -> None:
    """Made once with PyJWT from the same claims and key."""
    signed = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJtZXJjdXJlIjp7InB1Ymxpc2giOlsiKiJdfX0"
    made = token({"mercure": {"publish": ["*"]}}, b"a key that only this test uses, 32 bytes")
    assert made == f"{signed}.pfTOtmCmWRMxNPPzlBOXy1g6D0RZ2Io-NmPnXRBUBWc"


def test_marks_in_json_and_in_strings() -> None:
    assert marks(event(3) + json.dumps(event(4).decode()).encode()) == [3, 4]
