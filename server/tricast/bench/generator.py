"""A process of the load generator: a share of the subscribers, or the publishers.

Started by the coordinator, told what to do over stdin and answering over stdout; it ends when stdin does.
"""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from tricast.bench import messages
from tricast.bench.blocks import BlockReader
from tricast.bench.engine import READABLE, Engine
from tricast.bench.link import Target
from tricast.bench.messages import Await, Begin, Order, Plan, Progress, Stop, Usage
from tricast.bench.publishers import Course, Publisher
from tricast.bench.subscribers import Group, Surroundings
from tricast.bench.tally import add_up
from tricast.client.endpoint import Certificates, Endpoint
from tricast.descriptors import raise_soft_limit

_STDIN, _STDOUT = 0, 1
_READ_BYTES = 64 * 2**10
_PROGRESS_SECONDS = 0.25
#: Opening has ended when none was subscribed for so long.
_STALLED_SECONDS = 5.0
#: When the feed has ended: how long to wait for what is on its way, at most; and after the last that came, when all are
#: subscribed, and when some are still to come back.
_MOST_AWAITED_SECONDS = 120.0
_QUIET_SECONDS = 3.0
_LONGEST_AWAY_SECONDS = 15.0


class Generator(ABC):
    """What both kinds of process have in common: the orders, and the clock of their own use.

    Args:
        engine: the loop.
        plan: what to do.
    """

    def __init__(self, engine: Engine, plan: Plan) -> None:
        endpoint = Endpoint.parse(plan.url)
        context = Certificates(**plan.certificates).context() if endpoint.is_secure else None
        self._engine = engine
        self._plan = plan
        self._feed = plan.feed
        self._endpoint = endpoint
        self._headers = tuple(f"{name}: {value}" for name, value in plan.headers)
        self._target = Target(plan.family, plan.address, endpoint.host, context)
        self._stopwatch = Stopwatch()

    def start(self) -> None:
        """Begins."""
        self._engine.call_in(_PROGRESS_SECONDS, self._tell_progress)

    @abstractmethod
    def obey(self, order: Order) -> None:
        """Does what the coordinator says."""

    @abstractmethod
    def progress(self) -> Progress:
        """How far it is."""

    def _tell_progress(self) -> None:
        say(self.progress())
        self._engine.call_in(_PROGRESS_SECONDS, self._tell_progress)


class Subscribing(Generator):
    """A share of the subscribers."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        super().__init__(engine, plan)
        self._reader = BlockReader(plan.feed.run, plan.feed.publishers)
        around = Surroundings(engine, self._target, self._endpoint, self._headers, self._reader, plan.feed.publishers)
        transports = sorted({transport for _, transport in plan.subscribers})
        self._groups = {transport: Group(around, transport) for transport in transports}
        for index, transport in plan.subscribers:
            topic = index % plan.feed.topics
            self._groups[transport].add(index, plan.feed.topic_name(topic), topic)
        self._published: list[list[int]] = []
        self._await_until = 0
        self._quiet_since = 0
        self._seen = (0, 0)

    def start(self) -> None:
        """See ``Generator.start``."""
        super().start()
        for group in self._groups.values():
            group.open_some()
        self._look_whether_open()

    def obey(self, order: Order) -> None:
        """See ``Generator.obey``."""
        match order:
            case Begin(at, measured_from):
                self._reader.measured_from = measured_from
                self._measure_from(measured_from - at)
                self._engine.call_at(measured_from, self._begin_measuring)
            case Await(published):
                self._published = self._in_topics(published)
                self._await_until = time.monotonic_ns() + round(_MOST_AWAITED_SECONDS * 1e9)
                self._quiet_since = time.monotonic_ns()
                self._look_whether_complete()
            case Stop():
                self._finish(was_awaited=False)

    def progress(self) -> Progress:
        """See ``Generator.progress``."""
        tallies = [group.tally for group in self._groups.values()]
        return Progress(
            opened=sum(group.begun for group in self._groups.values()),
            events=sum(tally.deliveries for tally in tallies),
            errors=sum(sum(tally.errors.values()) for tally in tallies),
            p99_ns=max(tally.histogram.percentiles(99)[0] for tally in tallies),
        )

    def _in_topics(self, counts: Sequence[int]) -> list[list[int]]:
        """How many of each publisher's first so many events went to each topic."""
        feed = self._feed
        return [
            [feed.events_in_topic(publisher, count, topic) for publisher, count in enumerate(counts)]
            for topic in range(feed.topics)
        ]

    def _measure_from(self, elapsed: int) -> None:
        feed = self._feed
        first = self._in_topics([feed.warm_up_of(publisher, elapsed) for publisher in range(feed.publishers)])
        for group in self._groups.values():
            for member in group.members:
                member.ledger.measured_from = first[member.topic_index]

    def _begin_measuring(self) -> None:
        for group in self._groups.values():
            group.tally.begin_measuring()
        self._stopwatch.start()

    def _look_whether_open(self) -> None:
        groups = self._groups.values()
        stalled = max(group.last_opened for group in groups) + round(_STALLED_SECONDS * 1e9) < time.monotonic_ns()
        if not stalled and not all(group.are_all_live for group in groups):
            self._engine.call_in(0.02, self._look_whether_open)
            return
        errors: dict[str, int] = {}
        for group in groups:
            group.end_opening()
            add_up(errors, group.tally.errors)
        say(messages.Opened(sum(group.tally.opened for group in groups), errors))

    def _look_whether_complete(self) -> None:
        now = time.monotonic_ns()
        groups = self._groups.values()
        seen = sum(group.tally.events for group in groups), sum(group.live for group in groups)
        if seen != self._seen:
            self._seen, self._quiet_since = seen, now
        are_all_here = all(group.are_all_live for group in groups)
        quiet = _QUIET_SECONDS if are_all_here else _LONGEST_AWAY_SECONDS
        is_over = now > min(self._await_until, self._quiet_since + round(quiet * 1e9))
        if is_over or (are_all_here and self._is_complete()):
            self._finish()
        else:
            self._engine.call_in(0.05, self._look_whether_complete)

    def _is_complete(self) -> bool:
        return not any(
            member.ledger.missing(self._published[member.topic_index])
            for group in self._groups.values()
            for member in group.members
        )

    def _finish(self, *, was_awaited: bool = True) -> None:
        """Reports. What was not waited for is not lost."""
        usage = self._stopwatch.read()
        for group in self._groups.values():
            for member in group.members:
                published = self._published[member.topic_index] if was_awaited else member.ledger.awaited
                member.ledger.close(published, group.tally)
            group.close()
        say(messages.Report({transport: group.tally.counts() for transport, group in self._groups.items()}, usage))
        self._engine.stop()


class Publishing(Generator):
    """The publishers."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        super().__init__(engine, plan)
        self._publishers: list[Publisher] = []
        self._warm_up: list[int] = []
        self._begin = 0

    def start(self) -> None:
        """See ``Generator.start``."""
        super().start()
        say(messages.Opened(0, {}))

    def obey(self, order: Order) -> None:
        """See ``Generator.obey``."""
        match order:
            case Begin(at, measured_from):
                self._begin = at
                self._engine.call_at(measured_from, self._stopwatch.start)
                course = Course(self._engine, self._target, self._endpoint, self._headers, self._feed, at)
                indexes = range(self._feed.publishers)
                self._warm_up = [self._feed.warm_up_of(index, measured_from - at) for index in indexes]
                self._publishers = [Publisher(course, index, self._ended) for index in indexes]
                for publisher in self._publishers:
                    publisher.open()
            case Stop():
                for publisher in self._publishers:
                    publisher.stop()

    def progress(self) -> Progress:
        """See ``Generator.progress``."""
        return Progress(
            published=sum(
                max(0, publisher.published - warm_up)
                for publisher, warm_up in zip(self._publishers, self._warm_up, strict=True)
            ),
            errors=sum(sum(publisher.errors.values()) for publisher in self._publishers),
        )

    def _ended(self) -> None:
        if not all(publisher.has_ended for publisher in self._publishers):
            return
        errors: dict[str, int] = {}
        given_up: dict[str, int] = {}
        for publisher in self._publishers:
            add_up(errors, publisher.errors)
            add_up(given_up, publisher.given_up)
        report = messages.Published(
            published=[publisher.published for publisher in self._publishers],
            given_up=given_up,
            seconds=max(0.0, (time.monotonic_ns() - self._begin) / 1e9),
            requests=sum(publisher.requests for publisher in self._publishers),
            late_ns=max(publisher.late_ns for publisher in self._publishers),
            errors=errors,
            refusal=next((publisher.refusal for publisher in self._publishers if publisher.refusal), ""),
            usage=self._stopwatch.read(),
        )
        say(report)
        self._engine.stop()


class Stopwatch:
    """What this process uses of the processors from ``start`` on."""

    def __init__(self) -> None:
        self._began = _used_so_far()

    def start(self) -> None:
        """Begins anew."""
        self._began = _used_so_far()

    def read(self) -> Usage:
        """What it used since."""
        now = _used_so_far()
        return Usage(*(end - begin for end, begin in zip(now, self._began, strict=True)))


def _used_so_far() -> Sequence[float]:
    times = os.times()
    return time.monotonic(), times.user + times.system, _waited_so_far()


def _waited_so_far() -> float:
    """Seconds in which this process was ready to run and did not (Documentation/scheduler/sched-stats)."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class Orders:
    """Stdin, line by line.

    Args:
        engine: the loop, which ends with stdin: then the coordinator is gone.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rest = b""
        self._generator: Generator | None = None

    def ready(self, mask: int) -> None:  # noqa: ARG002 - whatever it is, reading tells
        """See ``Party.ready``."""
        data = os.read(_STDIN, _READ_BYTES)
        if not data:
            self._engine.stop()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._obey(messages.decode_order(line))

    def _obey(self, order: Order) -> None:
        if isinstance(order, Plan):
            has_subscribers = bool(order.subscribers)
            self._generator = (Subscribing if has_subscribers else Publishing)(self._engine, order)
            self._generator.start()
        elif self._generator is not None:
            self._generator.obey(order)


def say(word: messages.Word) -> None:
    """Tells the coordinator. What it does not read holds up this process, so it always does."""
    rest = memoryview(messages.encode(word))
    while rest:
        rest = rest[os.write(_STDOUT, rest) :]


def main() -> None:
    """Runs the process."""
    raise_soft_limit()
    engine = Engine()
    engine.watch(_STDIN, Orders(engine), READABLE)
    try:
        engine.run()
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
