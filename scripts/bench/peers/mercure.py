"""Mercure, through the library that its hub is."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

from peers.base import Capability, Opening, Running, http_request, launched, token
from peers.own import GoProgram

_PATH = "/.well-known/mercure"
_KEY = "a key that only this bench uses, long enough for HS256"


class RunningMercure(Running):
    """A hub."""

    beginning = "earliest"

    def __init__(self, pid: int, port: int) -> None:
        """Args: see `Running`."""
        super().__init__(pid, port)
        self._authorization = f"Authorization: Bearer {token({'mercure': {'publish': ['*']}}, _KEY.encode())}"

    def subscribe(self, transport: str, topic: str, *, last_id: str | None = None) -> Opening:
        """How to subscribe; an empty comment comes once the hub has the subscriber."""
        if transport != Capability.SSE:
            raise ValueError(f"no {transport} here")
        fields = [] if last_id is None else [f"Last-Event-ID: {last_id}"]
        request = http_request("GET", f"{_PATH}?topic={quote(topic)}", "Accept: text/event-stream", *fields)
        return Opening(request, b"\r\n:\n")

    def publish(self, topic: str, data: bytes) -> bytes:
        """A form."""
        body = urlencode({"topic": topic, "data": data}).encode()
        fields = ("Content-Type: application/x-www-form-urlencoded", self._authorization)
        return http_request("POST", _PATH, *fields, body=body)


class Mercure(GoProgram):
    """Mercure's hub. Option: ``history``, which makes it keep updates in a Bolt database."""

    def __init__(self) -> None:
        """As in the tables."""
        super().__init__(
            "Mercure",
            "Mercure's hub as a library on net/http, all cores, nothing kept unless history is asked for (then: Bolt)",
            "mercure",
            "github.com/dunglas/mercure",
            Capability.SSE,
            Capability.TOPICS,
            Capability.REPLAY,
        )

    @contextmanager
    def run(self, folder: Path, *, options: Mapping[str, str]) -> Iterator[Running]:
        """A hub on a free port."""
        with launched([*self._command, _KEY, options.get("history", "local")], folder) as (pid, ports):
            yield RunningMercure(pid, ports[0])
