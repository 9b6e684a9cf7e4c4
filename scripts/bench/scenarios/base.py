"""What a scenario is, and what it works with: servers to start, clients to open, and what both cost."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from load import Again, Load, Opened, Received, Target
from peers.base import Capability, Peer, Running
from processes import Memory, read_cpu_ns, read_memory
from publisher import Publisher, write_event

TOPIC = "bench"
#: The data of an event: with the fields of SSE around it about 230 bytes.
EVENT_BYTES = 160
STREAMS = (Capability.SSE, Capability.WEBSOCKET)


class MeasureError(Exception):
    """The server did not do what is measured."""


class Column(NamedTuple):
    """One figure of a scenario.

    Attributes:
        key: its name in the results.
        label: the head of its column, with the unit.
        digits: how many after the point.
        better: "low" or "high".
    """

    key: str
    label: str
    digits: int = 1
    better: str = "low"


@dataclass(frozen=True)
class Scenario:
    """One thing that is measured.

    Attributes:
        name: as on the command line.
        title: as in the report.
        about: what is done and what the unit is; ``{key}`` is the size with that name.
        transports: over which it is measured; "" where it is about none.
        columns: its figures; the first one is the one that is compared and plotted.
        sizes: how much of everything.
        quick: what is smaller in a quick run.
        measure: does it.
        needs: what a peer has to be able to do, beside the transport.
        limit_seconds: it is given up after this long.
        only: the one peer that it is about; "" for all.
    """

    name: str
    title: str
    about: str
    transports: tuple[str, ...]
    columns: tuple[Column, ...]
    sizes: Mapping[str, float]
    quick: Mapping[str, float]
    measure: Callable[["Stage"], dict[str, float]]
    needs: frozenset[Capability] = field(default_factory=frozenset)
    limit_seconds: float = 120
    only: str = ""

    def can_be_measured(self, peer: Peer, transport: str) -> bool:
        """Returns whether the peer can do this at all."""
        wanted = {*self.needs, *([Capability(transport)] if transport else [])}
        return wanted <= peer.capabilities and self.only in ("", peer.name)

    def sizes_for(self, *, is_quick: bool) -> dict[str, float]:
        """Returns how much of everything there is."""
        return {**self.sizes, **(self.quick if is_quick else {})}


class Session:
    """A server that runs, and a load generator for it."""

    def __init__(self, running: Running, load: Load, transport: str, *, tls: bool = False) -> None:
        self.running = running
        self.load = load
        self._transport = transport
        self._tls = tls

    def open(
        self, count: int, *, topics: int = 1, last_id: str | None = None, receive_buffer: int = 0, first_source: int = 1
    ) -> Opened:
        """Opens so many subscribers, over so many topics one after the other.

        Raises:
            MeasureError: not all of them could be opened.
        """
        names = name_topics(topics)
        by_topic = [self.running.subscribe(self._transport, name, last_id=last_id) for name in names]
        is_poll = self._transport == Capability.POLL
        # A long poll has no answer before there is an event.
        openings = [one._replace(begun=b"") if is_poll else one for one in by_topic]
        opened: Opened = self.load.call(
            "open",
            Target(self.running.host, self.running.port, self._tls, first_source, receive_buffer),
            [openings[number % topics] for number in range(count)],
            is_websocket=self._transport == Capability.WEBSOCKET,
            again=Again(self.running, TOPIC) if is_poll else None,
        )
        if opened.clients < count:
            raise MeasureError(f"{opened.clients:,} of {count:,} could subscribe: {'; '.join(opened.failures)}")
        return opened

    @contextmanager
    def publisher(self, connections: int = 1) -> Iterator[Publisher]:
        """Someone who publishes."""
        publisher = Publisher(self.running, connections, tls=self._tls)
        try:
            yield publisher
        finally:
            publisher.close()

    def write(self, mark: int, sent_ns: int, *, topic: str = TOPIC, size: int = EVENT_BYTES) -> bytes:
        """Returns the request that publishes an event."""
        return self.running.publish(topic, write_event(mark, sent_ns, size))

    def warm_up(self, publisher: Publisher, subscribers: int) -> int:
        """Publishes a first event, which meets cold caches, and waits for it; returns how many events have come."""
        before = self.receive(0).marks
        publisher.publish(TOPIC, write_event(0, time.monotonic_ns(), EVENT_BYTES))
        received = self.receive(10, until_marks=before + subscribers)
        if received.marks < before + subscribers:
            raise MeasureError(f"a first event came to {received.marks - before:,} of {subscribers:,}")
        return received.marks

    def receive(self, seconds: float, **until: int) -> Received:
        """Lets the clients read for this long, or until so many ``until_marks`` or ``until_answers`` have come."""
        received: Received = self.load.call("receive", seconds, **until)
        return received

    def receive_rest(self) -> int:
        """Lets the clients read until nothing comes any more, or for a while; returns how many events have come."""
        marks = -1
        for _ in range(20):
            before, marks = marks, self.receive(0.5).marks
            if marks == before:
                break
        return marks

    def begin_receiving(self, seconds: float, **until: int) -> None:
        """As receive, beside what is done until end_receiving."""
        self.load.begin("receive", seconds, **until)

    def end_receiving(self) -> Received:
        """Waits until the clients have received what begin_receiving asked for."""
        received: Received = self.load.result()
        return received

    def read_cpu_ns(self) -> int:
        """Returns the CPU time of the server's processes."""
        return read_cpu_ns(self.running.pids())

    def read_memory(self) -> Memory:
        """Returns the memory of the server's processes."""
        return read_memory(self.running.pids())


class Stage:
    """Where one measurement happens."""

    def __init__(self, peer: Peer, transport: str, sizes: Mapping[str, float], folder: Path) -> None:
        self.peer = peer
        self.transport = transport
        self.folder = folder
        self._sizes = sizes
        self._sessions = 0

    def size(self, name: str) -> int:
        """Returns how many of something."""
        return int(self._sizes[name])

    @contextmanager
    def session(self, *, tls: bool = False, **options: str) -> Iterator[Session]:
        """Starts the peer with these options, and a load generator, for as long as the block runs."""
        self._sessions += 1
        folder = self.folder / f"server-{self._sessions}"
        folder.mkdir()
        streams = self.peer.transports
        transport = self.transport if self.transport in streams else (streams or [""])[-1]
        with self.peer.run(folder, options={"transport": transport, **options}) as running:
            load = Load()
            try:
                yield Session(running, load, self.transport, tls=tls)
            finally:
                load.end()


def name_topics(count: int) -> list[str]:
    """Returns the names of so many topics."""
    return [TOPIC] if count == 1 else [f"{TOPIC}.{number}" for number in range(count)]


def as_us(nanoseconds: float, count: float) -> float:
    """Returns microseconds for each of so many.

    Raises:
        MeasureError: there is none.
    """
    if count <= 0:
        raise MeasureError("nothing arrived")
    return round(nanoseconds / count / 1000, 3)
