"""One round: servers on one log, publishers, subscribers, faults; then all is mended, read to the end, and checked."""

import math
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from clocks import HANG_SECONDS
from faults.checker import check
from faults.fleet import TricastServer
from faults.history import BEGINNING, Follower, Id, Journal, Violation
from faults.logs import SERVER_KINDS, SERVERS, FaultyLog
from faults.plan import PERIOD, Fault, plan_of
from faults.publishers import FaultyPublisher
from faults.report import tell
from faults.subscribers import TRANSPORTS, FaultySubscriber

_PUBLISHERS = 12
#: Events that are more than any round has.
_UNLIMITED = 1_000_000
TOPICS = (
    *("news", "alerts", "orders.{1}.paid", "orders.{1}.sent", "orders.{2}.paid", "orders.{2}.sent"),
    *("sensors.a.x", "sensors.a.y", "sensors.b.x", "chat", "chat.one", "chat.two"),
)
#: Topics of which one batch may hold several, whatever the shards.
_BATCHES = (("news",), ("orders.{1}.paid", "orders.{1}.sent"), ("orders.{2}.paid", "orders.{2}.sent"))
_PATTERNS = ("orders.>", "orders.*.paid", "sensors.*.x", "sensors.a.*", "chat.>", "*", ">")


@dataclass(frozen=True)
class Effort:
    """How much there is in a round.

    Attributes:
        seed: of all that is drawn.
        seconds: of faults.
        subscribers: at a time.
        rate: requests that are published per second, of all publishers.
        history: events that are kept per topic.
        log: more of the section of that name of the servers' configuration.
        period: seconds from one fault to the next, on average.
    """

    seed: int
    seconds: float
    subscribers: int = 150
    rate: float = 60.0
    history: int = _UNLIMITED
    log: Mapping[str, Any] = field(default_factory=dict)
    period: float = PERIOD

    def plan(self, log: FaultyLog) -> list[Fault]:
        """What goes wrong, and when."""
        return plan_of(self.seed, self.seconds, (*SERVER_KINDS, *log.kinds), period=self.period)


@dataclass(frozen=True)
class Outcome:
    """What came of a round.

    Attributes:
        violations: rules that were broken.
        text: the same for a reader.
        gaps: how many were announced, by reason.
        summary: what happened, in a line.
    """

    violations: Sequence[Violation]
    text: str
    gaps: Mapping[str, int]
    summary: str


async def play(log: FaultyLog, effort: Effort, say: Callable[[str], None] = print) -> Outcome:
    """Plays one round, which ends by itself.

    Args:
        log: what the servers share; it is there already.
        effort: how much.
        say: told of each fault as it happens.
    """
    async with _servers(log, effort) as servers:
        played = _Round(log, servers, effort, say)
        with trio.move_on_after(effort.seconds + 4 * HANG_SECONDS) as scope:
            await played.play()
    if scope.cancelled_caught:
        played.problems.append("the round did not end in time")
    return played.outcome()


@asynccontextmanager
async def _servers(log: FaultyLog, effort: Effort) -> AsyncIterator[list[TricastServer]]:
    numbers = random.Random(effort.seed)
    with tempfile.TemporaryDirectory(prefix="tricast-faults-") as folder, ExitStack() as stack:
        async with log.open(numbers):
            cache_size = numbers.choice(["64MiB", "1MiB", "64KiB"])
            servers = []
            for number in range(SERVERS):
                sections = _sections(effort, log.sections(number), cache_size)
                place = Path(folder, str(number))
                servers.append(TricastServer(number, _made(place), sections))
                stack.callback(servers[-1].close)
            yield servers


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _sections(effort: Effort, log: Mapping[str, Any], cache_size: str) -> dict[str, dict[str, Any]]:
    return {
        "events": {"history": effort.history, "history_size": "1GiB"},
        "log": {"cache_size": cache_size, "length": effort.history * len(TOPICS), **log, **effort.log},
        "poll": {"timeout": "1s"},
        "sse": {"keepalive": "1s"},
        "websocket": {"ping_interval": "1s"},
        "publish": {"idempotency_keys": _UNLIMITED},
    }


class _Round:
    """See ``play``.

    Attributes:
        problems: what servers did that they should not.
    """

    def __init__(
        self, log: FaultyLog, servers: Sequence[TricastServer], effort: Effort, say: Callable[[str], None]
    ) -> None:
        self._log = log
        self._servers = servers
        self._urls = [server.url for server in servers]
        self._effort = effort
        self._say = say
        self._numbers = random.Random(effort.seed)
        self._journal = Journal()
        self.problems: list[str] = []
        self._began: list[Fault] = []
        self._subscribers: list[FaultySubscriber] = []
        self._readers: list[Follower] = []
        self._ends: dict[str, tuple[int, Id]] = {}
        self._unwell: set[tuple[str, int]] = set()
        self._zero = trio.current_time()

    def _clock(self) -> float:
        return trio.current_time() - self._zero

    async def play(self) -> None:
        async with trio.open_nursery() as nursery:
            for server in self._servers:
                server.is_wanted = True
                nursery.start_soon(server.supervise, self.problems)
            await self._wait_well()
            self._say(f"{self._clock():7.2f} s: the servers are ready")
            self._zero = trio.current_time()
            await self._end_topics()  # so that each topic is known, and where it is
            await self._take_part()
            self._say(f"{self._clock():7.2f} s: the subscribers have come to the end")
            await self._read_all()
            self._say(f"{self._clock():7.2f} s: all has been read")
            for server in self._servers:
                self.problems += [f"{server.name} said: {complaint}" for complaint in server.complaints()]
            nursery.cancel_scope.cancel()

    async def _take_part(self) -> None:
        """Publishers and subscribers, from the first fault to the end of all topics."""
        effort = self._effort
        async with trio.open_nursery() as subscribing:
            for _ in range(effort.subscribers):
                subscribing.start_soon(self._subscribe)
            stopped = trio.Event()
            async with trio.open_nursery() as publishing:
                for number in range(_PUBLISHERS):
                    publishing.start_soon(self._publisher(f"{number}").run, _PUBLISHERS / effort.rate, stopped)
                await self._happen()
                stopped.set()
                self._say(f"{self._clock():7.2f} s: all is mended")
            self._say(f"{self._clock():7.2f} s: the publishers have ended")
            await self._wait_well()
            self._ends = await self._end_topics()
            for subscriber in self._subscribers:
                subscriber.finish(self._ends)
            subscribing.cancel_scope.deadline = trio.current_time() + HANG_SECONDS

    def outcome(self) -> Outcome:
        """What came of it."""
        followers = [subscriber.follower for subscriber in self._subscribers]
        violations = [Violation("servers", problem) for problem in self.problems]
        readers = self._readers if self._log.keeps_what_is_acknowledged and self._keeps_all() else ()
        violations += check(self._journal, followers, self._ends, loses_at=self._loses_at(), readers=readers)
        publications = self._journal.publications.values()
        acknowledged = sum(each.acknowledged_at is not None for each in publications)
        gaps = Counter(note.gap.reason for follower in followers for note in follower.notes if note.gap is not None)
        given = sum(item >= 0 for follower in followers for item in follower.items)
        connections = sum(note.text.startswith("asks") for follower in followers for note in follower.notes)
        summary = (
            f"{len(self._began)} faults, {len(publications)} events sent, {acknowledged} acknowledged, "
            f"{len(followers)} subscribers with {connections} connections were given {given}, "
            f"gaps: {dict(gaps) or 'none'}, violations: {len(violations) or 'none'}"
        )
        return Outcome(violations, tell(violations, self._began, seed=self._effort.seed), gaps, summary)

    def _loses_at(self) -> float:
        """When the log began to lose events."""
        if self._log.loses_always or not self._keeps_all():
            return 0.0
        return min((fault.at for fault in self._began if fault.what in self._log.losing), default=math.inf)

    def _keeps_all(self) -> bool:
        return self._effort.history >= _UNLIMITED

    # Who takes part

    def _publisher(self, name: str, patience: float = 15.0) -> FaultyPublisher:
        return FaultyPublisher(
            self._journal,
            self._urls,
            topics=TOPICS,
            batches=_BATCHES,
            prefix=f"{self._effort.seed}-{name}",
            numbers=random.Random(self._numbers.random()),
            clock=self._clock,
            patience=patience,
        )

    async def _subscribe(self) -> None:
        """One subscriber after the other, until one of them comes to the end."""
        await trio.sleep(self._numbers.uniform(0, 3))
        while True:
            begins_at = BEGINNING if self._numbers.random() < 0.03 else None
            subscriber = self._subscriber(self._numbers.choice(TRANSPORTS), self._topics(), begins_at)
            if self._ends:
                subscriber.finish(self._ends)
            await subscriber.run(math.inf if self._log.may_part else self._numbers.expovariate(1 / 60))
            if not subscriber.follower.is_retired:
                return

    def _subscriber(
        self, transport: str, topics: Sequence[str], begins_at: str | None, urls: Sequence[str] = ()
    ) -> FaultySubscriber:
        follower = Follower(self._journal, f"subscriber {len(self._subscribers)} ({transport})", topics)
        subscriber = FaultySubscriber(
            follower,
            transport,
            urls or self._urls,
            numbers=random.Random(self._numbers.random()),
            clock=self._clock,
            begins_at=begins_at,
        )
        self._subscribers.append(subscriber)
        return subscriber

    def _topics(self) -> Sequence[str]:
        kind = self._numbers.random()
        if kind < 0.4:
            return [self._numbers.choice(TOPICS)]
        if kind < 0.75:
            return self._numbers.sample(TOPICS, self._numbers.randint(2, 5))
        return self._numbers.sample(_PATTERNS, self._numbers.choice([1, 1, 2]))

    # What happens

    async def _happen(self) -> None:
        """Has all faults happen, and returns when they are mended and the time is over."""
        ends_at = self._zero + self._effort.seconds
        async with trio.open_nursery() as nursery:
            for fault in self._effort.plan(self._log):
                await trio.sleep_until(self._zero + fault.at)
                # What takes long to start again may not be well yet.
                targets = tuple(target for target in fault.targets if (fault.lane, target) not in self._unwell)
                if not targets:
                    continue
                happening = fault._replace(targets=targets)
                self._say(str(happening))
                self._began.append(happening)
                for target in targets:
                    nursery.start_soon(self._go_wrong, happening, target)
            await trio.sleep_until(ends_at)

    async def _go_wrong(self, fault: Fault, target: int) -> None:
        self._unwell.add((fault.lane, target))
        await self._begin(fault, target)
        await trio.sleep_until(self._zero + fault.at + fault.seconds)
        await self._mend(fault, target)
        self._unwell.discard((fault.lane, target))

    async def _begin(self, fault: Fault, target: int) -> None:
        if fault.lane != "server":
            await self._log.begin(fault.what, fault.lane, target)
        elif fault.what == "stop":
            self._servers[target].pause()
        else:
            self._servers[target].is_wanted = False
            self._servers[target].kill()

    async def _mend(self, fault: Fault, target: int) -> None:
        if fault.lane != "server":
            await self._log.end(fault.what, fault.lane, target)
        elif fault.what == "stop":
            self._servers[target].resume()
        else:
            self._servers[target].is_wanted = True

    # The end

    async def _wait_well(self) -> None:
        with trio.move_on_after(HANG_SECONDS) as scope:
            async with trio.open_nursery() as nursery:
                for server in self._servers:
                    nursery.start_soon(server.wait_well)
        if scope.cancelled_caught:
            logs = "\n".join(server.log[-1500:] for server in self._servers)
            self.problems.append(f"not all servers got ready:\n{logs}")

    async def _end_topics(self) -> dict[str, tuple[int, Id]]:
        """Publishes the last event of each topic there is for now."""
        publisher = self._publisher(f"end-{self._clock()}", HANG_SECONDS)
        ends: dict[str, tuple[int, Id]] = {}

        async def end(topic: str) -> None:
            made = await publisher.publish([topic])
            if made is None:
                self.problems.append(f"nothing could be published to {topic} when all was mended")
            else:
                ends[topic] = self._journal.shards[topic], max(made[0].ids)

        async with trio.open_nursery() as nursery:
            for topic in TOPICS:
                nursery.start_soon(end, topic)
        return ends

    async def _read_all(self) -> None:
        """Reads all that is kept from each server, over one transport each."""
        with trio.move_on_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                for url, transport in zip(self._urls, TRANSPORTS[1:], strict=True):
                    subscriber = self._subscriber(transport, [">"], BEGINNING, [url])
                    subscriber.finish(self._ends)
                    self._readers.append(subscriber.follower)
                    nursery.start_soon(subscriber.run, math.inf)
