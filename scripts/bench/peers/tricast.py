"""Tricast itself, as ``tricast serve`` runs it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from peers.base import (
    Capability,
    Opening,
    Peer,
    Running,
    http_request,
    launched,
    python_packages_version,
    this_python,
    websocket_request,
)

_ECHO = [{"path": "/echo", "handler": "tricast.handlers:echo"}]


class RunningTricast(Running):
    """One server of Tricast."""

    beginning = "0-0"

    def subscribe(self, transport: str, topic: str, *, last_id: str | None = None) -> Opening:
        """How to subscribe; streams say their position first, which they only have once they are in their feed."""
        fields = [] if last_id is None else [f"Last-Event-ID: {last_id}"]
        target = f"/events?topic={quote(topic)}"
        if transport == Capability.SSE:
            return Opening(http_request("GET", target, "Accept: text/event-stream", *fields), b"\nid: ")
        if transport == Capability.WEBSOCKET:
            request = websocket_request(target, "Sec-WebSocket-Protocol: tricast.v1", *fields)
            return Opening(request, b'"ok":"subscribe"')
        return Opening(http_request("GET", target, *fields), b"HTTP/1.1 200")

    def publish_batch(self, topic: str, datas: Sequence[bytes]) -> bytes:
        """One event a line."""
        head = b'{"topic":' + json.dumps(topic).encode() + b',"data":'
        lines = b"".join(head + data + b"}\n" for data in datas)
        return http_request("POST", "/publish", "Content-Type: application/x-ndjson", body=lines)

    def poll_next(self, topic: str, head: bytes) -> bytes:
        """The answer's head says the position."""
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"last-event-id":
                return self.subscribe("poll", topic, last_id=value.strip().decode()).request
        raise ValueError(f"no position in {head!r}")


class Tricast(Peer):
    """``tricast serve`` with its defaults.

    Options: ``history``, and every ``TRICAST_SECTION__KEY``, which goes to the server's environment: that is how TLS,
    compression and workers are asked for.
    """

    name = "Tricast"
    about = "tricast serve, one process, default settings, events kept in memory"
    capabilities = frozenset(
        {
            Capability.SSE,
            Capability.WEBSOCKET,
            Capability.POLL,
            Capability.TOPICS,
            Capability.REPLAY,
            Capability.BATCH,
            Capability.ECHO,
        }
    )

    def make_ready(self, build: Path) -> None:
        """It is what the project's environment holds."""
        del build

    def version(self) -> str:
        """Tricast's, and those of what it stands on."""
        return python_packages_version(this_python(), "tricast", "trio", "h11", "wsproto")

    @contextmanager
    def run(self, folder: Path, *, options: Mapping[str, str]) -> Iterator[Running]:
        """A server on a free port."""
        environment = {name: value for name, value in options.items() if name.startswith("TRICAST_")}
        environment["TRICAST_WEBSOCKET__HANDLER"] = json.dumps(_ECHO)
        if "history" in options:
            environment["TRICAST_EVENTS__HISTORY"] = options["history"]
        command: list[str | Path] = [this_python(), "-m", "tricast", "serve", "--port", "0"]
        with launched(command, folder, environment=environment) as (pid, ports):
            yield RunningTricast(pid, ports[0])
