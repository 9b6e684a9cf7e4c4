"""What all peers share: how a server is made ready, started, spoken to, and ended together with all its processes.

A peer is a kind of server, a `Running` one of them under measurement. Both only know bytes: whoever measures opens the
sockets. The default requests are those of Tricast, which the small programs in ``programs/`` speak as well:
``GET /events?topic=T`` (SSE), ``GET /ws?topic=T`` (WebSocket), ``POST /publish?topic=T`` and a WebSocket ``/echo``.
"""

import base64
import fcntl
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from processes import share_nice

HOST = "127.0.0.1"
#: Where the small programs are.
PROGRAMS = Path(__file__).parent / "programs"
_MASK = b"\x37\xfa\x21\x3d"
_WEBSOCKET_KEY = base64.b64encode(b"the bench client").decode()
_START_SECONDS = 30.0
_STOP_SECONDS = 5.0


class Capability(StrEnum):
    """What a peer can do."""

    SSE = "sse"
    WEBSOCKET = "websocket"
    POLL = "poll"
    #: Subscribers of different topics get different events; without it, all get everything.
    TOPICS = "topics"
    #: A subscriber may start at an earlier event: see `Running.beginning`.
    REPLAY = "replay"
    #: Several events in one request.
    BATCH = "batch"
    #: A WebSocket that sends back what it receives.
    ECHO = "echo"
    TLS = "tls"
    DEFLATE = "deflate"


class Opening(NamedTuple):
    """How a raw client opens something."""

    #: The bytes to send first.
    request: bytes
    #: What the answer has in it once the subscriber is sure to get what is published next. A long poll has nothing to
    #: answer before there is an event: this is then the beginning of that answer.
    begun: bytes


class PeerError(Exception):
    """A peer did not start; the message has the end of what it wrote."""


class Missing(Exception):
    """Something a peer needs is not here; the message says what, and what to run."""


def http_request(method: str, target: str, *fields: str, body: bytes | None = None) -> bytes:
    """One HTTP/1.1 request; the connection is kept."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}", *fields]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def websocket_request(target: str, *fields: str) -> bytes:
    """A WebSocket handshake."""
    return http_request(
        "GET",
        target,
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {_WEBSOCKET_KEY}",
        *fields,
    )


def websocket_frame(payload: bytes, *, opcode: int = 1) -> bytes:
    """A whole message as a client sends it, masked; text unless another opcode is given."""
    head = bytes([0x80 | opcode])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    else:
        head += bytes([0x80 | 126]) + len(payload).to_bytes(2, "big")
    repeated = (_MASK * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + _MASK + masked.to_bytes(len(payload), "big")


class Running:
    """A server under measurement, here with the requests that Tricast and the small programs share."""

    #: The ``last_id`` that asks for all that is kept; None where nothing is replayed.
    beginning: str | None = None

    def __init__(self, pid: int, port: int, *, publish_port: int | None = None) -> None:
        """Args: the first of the server's processes, where subscribers connect, and publishers where that differs."""
        self.host = HOST
        self.port = port
        self.publish_port = port if publish_port is None else publish_port
        self._pid = pid

    def pids(self) -> list[int]:
        """All processes of the server now, the first one first."""
        return process_tree(self._pid)

    def subscribe(self, transport: str, topic: str, *, last_id: str | None = None) -> Opening:
        """How to subscribe over ``sse``, ``websocket`` or ``poll``."""
        del last_id
        if transport == Capability.SSE:
            target = f"/events?topic={quote(topic)}"
            return Opening(http_request("GET", target, "Accept: text/event-stream"), b":ok\n")
        if transport == Capability.WEBSOCKET:
            return Opening(websocket_request(f"/ws?topic={quote(topic)}"), b"\x81\x02ok")
        raise ValueError(f"no {transport} here")

    def publish(self, topic: str, data: bytes) -> bytes:
        """A request that publishes one event, for a connection to ``publish_port`` that is kept. A 2xx means done."""
        return http_request("POST", f"/publish?topic={quote(topic)}", "Content-Type: application/json", body=data)

    def publish_batch(self, topic: str, datas: Sequence[bytes]) -> bytes:
        """The same for several at once, where the peer has BATCH."""
        raise NotImplementedError

    def poll_next(self, topic: str, head: bytes) -> bytes:
        """The next long poll, after an answer with this head, where the peer has POLL."""
        raise NotImplementedError

    def echo(self) -> bytes:
        """The path of a WebSocket that sends text and binary back, where the peer has ECHO."""
        return b"/echo"


class Peer(ABC):
    """A kind of server that can be measured."""

    #: As in the tables.
    name: str
    #: One line: what it is, and how it is configured here.
    about: str
    capabilities: frozenset[Capability]

    def prepare(self, build: Path) -> str | None:
        """Installs or builds what is needed into a folder, once; says why that cannot be had here, or None."""
        try:
            self.make_ready(build)
        except Missing as reason:
            return str(reason)
        return None

    @abstractmethod
    def make_ready(self, build: Path) -> None:
        """Does the work of `prepare`.

        Raises:
            Missing: something cannot be had here.
        """

    @abstractmethod
    def version(self) -> str:
        """What is measured; after `prepare`."""

    @abstractmethod
    @contextmanager
    def run(self, folder: Path, *, options: Mapping[str, str]) -> Iterator[Running]:
        """A server for as long as the block runs; after `prepare`.

        Args:
            folder: a folder for its files, empty and its own.
            options: ``transport`` (``sse`` or ``websocket``) for peers that are one server per transport; ``history``,
                how many events per topic are kept, for peers with REPLAY; and what the peer's class adds.

        Raises:
            PeerError: it does not start.
        """

    @property
    def transports(self) -> list[str]:
        """The names of its transports that stream."""
        return [str(one) for one in (Capability.SSE, Capability.WEBSOCKET) if one in self.capabilities]


def process_tree(pid: int) -> list[int]:
    """A process and all its descendants that are there now; a zombie is not."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    tree = [pid] if any(pid in group for group in children.values()) else []
    for member in tree:
        tree += sorted(children.get(member, []))
    return tree


def built(build: Path, name: str, prints: Sequence[bytes | str], make: Callable[[Path], None]) -> Path:
    """A folder that was made once from what the prints say; made again in a new one when they change.

    Args:
        build: the folder of all that was built.
        name: what this is, as the beginning of the folder's name.
        prints: everything the result depends on.
        make: fills the empty folder.
    """
    digest = hashlib.sha256()
    for part in prints:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    folder = build.absolute() / f"{name}-{digest.hexdigest()[:12]}"
    build.mkdir(parents=True, exist_ok=True)
    with (build / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / ".done").touch()
    return folder


def checked(
    command: Sequence[str | Path],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = 600,
) -> str:
    """What a command of a build printed.

    Args:
        command: the program and its arguments.
        folder: its working folder.
        environment: variables beside those of this process.
        seconds: how long it may take.

    Raises:
        Missing: it failed, is not there or takes too long; with the last line it wrote.
    """
    shown = " ".join(map(str, command))
    try:
        result = subprocess.run(
            list(command),
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        raise Missing(f"there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"{shown!r} took longer than {seconds:g} s") from None
    if result.returncode:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["it said nothing"]
        raise Missing(f"{shown!r} failed: {lines[-1].strip()}")
    return result.stdout


def free_port() -> int:
    """A port that nobody listens on now, for servers that cannot choose one themselves."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


@contextmanager
def launched(
    command: Sequence[str | Path],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Starts a server, waits until it can be connected to, and ends all its processes afterwards.

    Args:
        command: the program and its arguments.
        folder: its working folder; what it writes goes to ``server.log`` there.
        environment: variables beside those of this process.
        port: where it listens; None when it says ``listening on …:PORT`` itself.

    Yields:
        The process id, and the ports: the one given, or those it named, in order on one line.

    Raises:
        PeerError: it did not start in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children can be ended with it, and Ctrl-C comes to us alone
        )
    share_nice(process.pid)
    try:
        yield process.pid, _started(process, log, port)
    finally:
        _end(process)


def _started(process: subprocess.Popen[bytes], log: Path, port: int | None) -> list[int]:
    """The ports, as soon as they are open."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if port is None:
            line = re.search(rb"listening on [^\n]*\n", log.read_bytes())
            if line is not None:
                return [int(found) for found in re.findall(rb":(\d+)\b", line[0])]
        else:
            with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                return [port]
        time.sleep(0.02)
    written = log.read_bytes().decode(errors="replace").strip().splitlines()
    raise PeerError(f"{process.args!r} did not start: " + " / ".join(written[-5:]))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and whatever it started, and waits until all of them are gone."""
    tree = process_tree(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            break
    # Children may have outlived it; the group's number is not used again while they do.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    end = time.monotonic() + _STOP_SECONDS
    while any(map(process_tree, tree)) and time.monotonic() < end:
        time.sleep(0.01)


def token(claims: Mapping[str, object], key: bytes) -> str:
    """A JSON Web Token, HS256."""

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    parts = [json.dumps(part, separators=(",", ":")) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = ".".join(encoded(part.encode()) for part in parts)
    return f"{signed}.{encoded(hmac.digest(key, signed.encode(), 'sha256'))}"


def python_packages_version(python: Path, *names: str) -> str:
    """The versions of installed packages, as ``name 1.2.3, …``."""
    code = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    return checked([python, "-c", code, *names]).strip()


def this_python() -> Path:
    """The interpreter of the project's environment, which Tricast and the prototype run on."""
    return Path(sys.executable)
