"""Centrifugo, and the library that it is built of, which can be had where the server itself cannot."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from peers.base import (
    HOST,
    Capability,
    Missing,
    Opening,
    Peer,
    Running,
    built,
    checked,
    free_port,
    http_request,
    launched,
    websocket_request,
)
from peers.own import GoProgram

_MODULE = "github.com/centrifugal/centrifugo/v6"
_VERSION = "v6.3.0"
_KEY = "a key that only this bench uses"
_CONFIG = {
    "http_api": {"key": _KEY},
    "client": {"allow_anonymous_connect_without_token": True, "allowed_origins": ["*"]},
    "channel": {
        "without_namespace": {"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True},
    },
    "uni_sse": {"enabled": True},
    "uni_websocket": {"enabled": True},
    "usage_stats": {"disabled": True},
    "log": {"level": "error"},
}


class RunningCentrifuge(Running):
    """The program around the library."""

    def subscribe(self, transport: str, topic: str, *, last_id: str | None = None) -> Opening:
        """How to subscribe: what to send is in the URL."""
        del last_id
        data = {"topic": topic}
        if transport == Capability.WEBSOCKET:
            return Opening(websocket_request(f"/websocket?connect={quote(json.dumps(data))}"), b'"connect":')
        command = json.dumps({"id": 1, "connect": {"data": data}})
        return Opening(
            http_request("GET", f"/sse?cf_connect={quote(command)}", "Accept: text/event-stream"), b'"connect":'
        )


class Centrifuge(GoProgram):
    """Centrifugo's library, with its SSE and a WebSocket as Centrifugo adds it."""

    def __init__(self) -> None:
        """As in the tables."""
        super().__init__(
            "Centrifuge",
            "the library of Centrifugo, its SSE and a unidirectional WebSocket, JSON protocol, all cores, nothing kept",
            "centrifuge",
            "github.com/centrifugal/centrifuge",
            Capability.SSE,
            Capability.WEBSOCKET,
            Capability.TOPICS,
        )

    def _running(self, pid: int, ports: list[int]) -> Running:
        return RunningCentrifuge(pid, ports[0])


class RunningCentrifugo(Running):
    """A Centrifugo."""

    def subscribe(self, transport: str, topic: str, *, last_id: str | None = None) -> Opening:
        """How to subscribe: its unidirectional transports, which are told what to send by the URL."""
        del last_id
        command = quote(json.dumps({"subs": {topic: {}}}))
        if transport == Capability.WEBSOCKET:
            return Opening(websocket_request(f"/connection/uni_websocket?cf_connect={command}"), b'"connect":')
        target = f"/connection/uni_sse?cf_connect={command}"
        return Opening(http_request("GET", target, "Accept: text/event-stream"), b'"connect":')

    def publish(self, topic: str, data: bytes) -> bytes:
        """Its HTTP API."""
        body = b'{"channel":%b,"data":%b}' % (json.dumps(topic).encode(), data)
        return http_request("POST", "/api/publish", "Content-Type: application/json", f"X-API-Key: {_KEY}", body=body)


class Centrifugo(Peer):
    """The server itself: the one on the PATH, or built where the Go modules it needs are served."""

    name = "Centrifugo"
    about = "centrifugo, one process on all cores, memory engine, nothing kept, JSON protocol, errors logged only"
    capabilities = frozenset({Capability.SSE, Capability.WEBSOCKET, Capability.TOPICS})

    def __init__(self) -> None:
        """Nothing is known before `prepare`."""
        self._program = Path("centrifugo")

    def make_ready(self, build: Path) -> None:
        """Finds it, or builds it."""
        found = shutil.which("centrifugo")
        if found is not None:
            self._program = Path(found)
            return
        if shutil.which("go") is None:
            raise Missing("neither centrifugo nor Go is here")

        def make(folder: Path) -> None:
            checked(["go", "install", f"{_MODULE}@{_VERSION}"], environment={"GOBIN": str(folder)})

        self._program = built(build, "centrifugo", [checked(["go", "version"]), _VERSION], make) / "centrifugo"

    def version(self) -> str:
        """What it says itself."""
        return checked([self._program, "version"]).strip()

    @contextmanager
    def run(self, folder: Path, *, options: Mapping[str, str]) -> Iterator[Running]:
        """A server; it has no options here."""
        del options
        port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        config = {"http_server": {"address": HOST, "port": port}, **_CONFIG}
        (folder / "config.json").write_text(json.dumps(config))
        with launched([self._program, "--config", "config.json"], folder, port=port) as (pid, _):
            yield RunningCentrifugo(pid, port)
