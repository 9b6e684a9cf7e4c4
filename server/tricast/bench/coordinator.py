"""Runs the processes of the load generator, in one Trio task tree, and puts together what they report."""

import math
import resource
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from subprocess import PIPE
from typing import Literal, NamedTuple, TypeVar

import trio

from tricast.bench import messages
from tricast.bench.messages import Await, Begin, Opened, Order, Plan, Progress, Published, Report, Stop, Word
from tricast.bench.results import Measured, Result, Settings, result_of
from tricast.bench.schedule import Feed
from tricast.bench.tally import Tally
from tricast.client import ClientError
from tricast.client.badge import Badge
from tricast.client.endpoint import Endpoint, deadline, dial, settings_with
from tricast.client.exchange import Exchange
from tricast.client.failures import Lost
from tricast.errors import TricastError

Told = TypeVar("Told", Opened, Published, Report)

TRANSPORTS: tuple[Literal["poll", "sse", "ws"], ...] = ("poll", "sse", "ws")

_COMMAND = (sys.executable, "-m", "tricast.bench.generator")
_READ_BYTES = 64 * 2**10
#: What a process has open beside its connections.
_OTHER_DESCRIPTORS = 50
#: From the order to begin until the first event is due: time for the publishers to connect. Far from the server it is
#: too short, which is what the warm-up is for.
_LEAD_SECONDS = 0.2
_SHOW_SECONDS = 0.25
_SMALL_BYTES = 64 * 2**10
#: How long a process may take to end once it was told to, or has nothing more to do.
_ENDING_SECONDS = 5.0


class BenchError(TricastError):
    """The bench cannot be run, or broke."""


class State(NamedTuple):
    """How far a run is, for whoever watches.

    Attributes:
        transport: of this run.
        phase: what it does, in a word.
        subscribers: how many are to be opened.
        opened: how many are.
        planned: how many events are to be published behind the warm-up.
        published: how many of them are.
        events: how many of them came to subscribers.
        errors: how many things went wrong.
        p99_ms: the 99th percentile of the latency so far.
        seconds: since the feed began.
    """

    transport: str
    phase: str
    subscribers: int
    opened: int
    planned: int
    published: int
    events: int
    errors: int
    p99_ms: float
    seconds: float


class GeneratorProcess:
    """One process of the load generator, as the coordinator sees it.

    Args:
        process: with pipes for stdin and stdout.

    Attributes:
        progress: what it has said of it last.
    """

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        self._process = process
        self._stdin = process.stdin
        self._words, self._heard = trio.open_memory_channel[Word](2)
        self.progress = Progress()

    async def tell(self, order: Order) -> None:
        """Gives an order. That the process has ended is for ``listen`` to find out."""
        with suppress(trio.BrokenResourceError):
            await self._stdin.send_all(messages.encode(order))

    async def listen(self) -> None:
        """Takes what it says, until it ends.

        Raises:
            BenchError: it has ended without a report.
        """
        assert self._process.stdout is not None
        rest, has_reported = b"", False
        while data := await self._process.stdout.receive_some(_READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            for word in map(messages.decode_word, lines):
                if isinstance(word, Progress):
                    self.progress = word
                else:
                    has_reported = isinstance(word, Report | Published)
                    await self._words.send(word)
        if not has_reported:
            raise BenchError("a process of the load generator ended before its time")

    async def hear(self, kind: type[Told]) -> Told:
        """Waits for its next word, which is of this kind."""
        word = await self._heard.receive()
        assert isinstance(word, kind)
        return word


class Bench:
    """One run.

    Args:
        settings: what to do.
        show: called several times a second with how far it is.

    Raises:
        BenchError: there are more subscribers than descriptors.
    """

    def __init__(self, settings: Settings, show: Callable[[State], None]) -> None:
        self._settings = settings
        self._show = show
        self._processes = _processes_for(settings)
        self._feed = Feed(
            run=secrets.token_hex(4),
            topic=settings.topic,
            topics=settings.topics,
            publishers=settings.publishers,
            rate=settings.rate,
            size=settings.size,
            seconds=settings.warm_up + settings.duration,
        )
        warm_up = round(settings.warm_up * 1e9)
        self._planned = sum(
            self._feed.events_of(publisher) - self._feed.warm_up_of(publisher, warm_up)
            for publisher in range(settings.publishers)
        )
        self._phase = "opening"
        self._began = 0
        self._measured_from = 0
        self._was_interrupted = False
        self._subscribing: list[GeneratorProcess] = []
        self._publishing: GeneratorProcess | None = None

    async def run(self) -> Result:
        """Runs it to its end, or until SIGINT; a second one ends it without a result.

        Raises:
            ConnectionLost, ClientError: there is no server, or it refuses.
            BenchError: no subscriber could be opened, or a process broke.
            KeyboardInterrupt: it was interrupted before there was anything to report, or twice.
        """
        family, address = await look_for_server(self._settings, self._feed)
        result: Result | None = None
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_signals, signals)
                nursery.start_soon(self._keep_showing)
                result = await self._run(family, address)
                nursery.cancel_scope.cancel()
        assert result is not None
        return result

    async def _run(self, family: int, address: tuple[str | int, ...]) -> Result:
        shares = [self._share_of(index) for index in range(self._processes)]
        async with trio.open_nursery() as nursery:
            for share in [*shares, []]:
                # In a session of its own, Ctrl-C on the terminal is for the coordinator alone.
                process = await trio.lowlevel.open_process(_COMMAND, stdin=PIPE, stdout=PIPE, start_new_session=True)
                nursery.start_soon(_see_to_its_end, process)
                generator = GeneratorProcess(process)
                nursery.start_soon(generator.listen)
                self._subscribing.append(generator)
                plan = Plan(
                    url=self._settings.url,
                    family=family,
                    address=address,
                    feed=self._feed,
                    headers=await Badge(self._settings.token, self._settings.api_key).headers(),
                    certificates=self._settings.certificates,
                    subscribers=share,
                )
                await generator.tell(plan)
            self._publishing = self._subscribing.pop()
            result = await self._measure(self._publishing)
            nursery.cancel_scope.cancel()
        return result

    async def _measure(self, publishing: GeneratorProcess) -> Result:
        await publishing.hear(Opened)
        opened = await _of_all(self._subscribing, partial(_hear, kind=Opened))
        if not any(word.opened for word in opened):
            raise BenchError(_none_opened(opened))
        at = time.monotonic_ns() + round(_LEAD_SECONDS * 1e9)
        measured_from = at + round(self._settings.warm_up * 1e9)
        self._phase, self._began, self._measured_from = "publishing", at, measured_from
        await _of_all([*self._subscribing, publishing], partial(_tell, order=Begin(at, measured_from)))
        published = await publishing.hear(Published)
        if published.refusal:
            raise BenchError(published.refusal)
        self._phase = "receiving"
        await _of_all(self._subscribing, partial(_tell, order=Await(published.published)))
        reports = await _of_all(self._subscribing, partial(_hear, kind=Report))
        return result_of(self._measured(reports, published, measured_from))

    def _measured(self, reports: list[Report], published: Published, measured_from: int) -> Measured:
        transports = [transport for transport in TRANSPORTS if any(transport in report.counts for report in reports)]
        return Measured(
            settings=self._settings,
            feed=self._feed,
            tallies={
                transport: Tally.of(report.counts[transport] for report in reports if transport in report.counts)
                for transport in transports
            },
            published=published,
            usages=[*(report.usage for report in reports), published.usage],
            measured_from=measured_from,
            was_interrupted=self._was_interrupted,
        )

    def _share_of(self, process: int) -> list[tuple[int, Literal["sse", "ws", "poll"]]]:
        """The numbers and transports of one process's subscribers. In a mix, each topic gets all transports."""
        return [
            (index, self._transport_of(index // self._settings.topics))
            for index in range(process, self._settings.subscribers, self._processes)
        ]

    def _transport_of(self, number: int) -> Literal["sse", "ws", "poll"]:
        chosen = [transport for transport in TRANSPORTS if self._settings.transport in (transport, "mix")]
        return chosen[number % len(chosen)]

    async def _watch_signals(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            if self._phase == "opening" or self._was_interrupted or self._publishing is None:
                raise KeyboardInterrupt
            self._was_interrupted = True
            await _of_all([self._publishing] if self._phase == "publishing" else self._subscribing, _tell_to_stop)

    async def _keep_showing(self) -> None:
        while True:
            self._show(self._state())
            await trio.sleep(_SHOW_SECONDS)

    def _state(self) -> State:
        said = [generator.progress for generator in self._subscribing]
        publishing = self._publishing.progress if self._publishing is not None else Progress()
        is_warming_up = self._phase == "publishing" and time.monotonic_ns() < self._measured_from
        return State(
            transport=self._settings.transport,
            phase="warming up" if is_warming_up else self._phase,
            subscribers=self._settings.subscribers,
            opened=sum(progress.opened for progress in said),
            planned=self._planned,
            published=publishing.published,
            events=sum(progress.events for progress in said),
            errors=sum(progress.errors for progress in [*said, publishing]),
            p99_ms=max((progress.p99_ns for progress in said), default=0) / 1e6,
            seconds=(time.monotonic_ns() - self._began) / 1e9 if self._began else 0.0,
        )


async def look_for_server(settings: Settings, feed: Feed) -> tuple[int, tuple[str | int, ...]]:
    """The family and the address of the server, which has answered as one of Tricast, and takes such events.

    To find that out, it publishes one event of another run, which nobody waits for.

    Raises:
        Lost: nobody answers, or it cannot now.
        ClientError: it is none, or refuses the topic or the size.
    """
    endpoint = Endpoint.parse(settings.url)
    client = settings_with(settings.certificates)
    stream = await dial(endpoint, client)
    try:
        exchange = Exchange(stream, endpoint, Badge(settings.token, settings.api_key))
        with deadline(client.connect_timeout, Lost(f"no answer from {endpoint}")):
            await _look_for_topic(exchange, endpoint, settings.topic)
            await _publish_one(exchange, endpoint, feed)
        transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        assert isinstance(transport, trio.SocketStream)
        return transport.socket.family, transport.socket.getpeername()
    finally:
        await trio.aclose_forcefully(stream)


async def _look_for_topic(exchange: Exchange, endpoint: Endpoint, topic: str) -> None:
    target = endpoint.target("/events", [("topic", topic)])
    await exchange.ask("HEAD", target, [])
    answer = await exchange.head()
    if answer.status_code >= 400 and await _may_go_on(exchange):
        # What is wrong is in a body, and the answer to a HEAD has none.
        await exchange.ask("GET", target, [("Accept", "application/json")])
        answer = await exchange.head()
    if answer.status_code not in (200, 204):
        raise await exchange.failure(answer)
    if b"last-event-id" not in dict(answer.headers):
        raise ClientError(f"there is no Tricast server at {endpoint}")
    if not await _may_go_on(exchange):
        raise Lost("the server closed the connection")


async def _may_go_on(exchange: Exchange) -> bool:
    """Whether another request may follow the answer, which has no body, or a small one."""
    await exchange.body(_SMALL_BYTES)
    return exchange.is_reusable()


async def _publish_one(exchange: Exchange, endpoint: Endpoint, feed: Feed) -> None:
    # The last topic has the longest name.
    target = endpoint.target("/publish", [("topic", feed.topic_name(feed.topics - 1))])
    body = feed._replace(run=secrets.token_hex(4)).data(0, 0, 0)
    with suppress(Lost):  # a server may refuse what is large without reading it
        await exchange.ask(
            "POST", target, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))], body
        )
    answer = await exchange.head()
    # What stands in the way only for now is for the publishers to get over.
    if 400 <= answer.status_code < 500 and answer.status_code not in (408, 409, 429):
        raise await exchange.failure(answer)


async def _see_to_its_end(process: trio.Process) -> None:
    """Waits until the process ends; cancelling it ends the process."""
    try:
        await process.wait()
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with trio.CancelScope(shield=True):
            # It ends when stdin does, which lets it close thousands of connections in an orderly way.
            await trio.aclose_forcefully(process.stdin)
            with trio.move_on_after(_ENDING_SECONDS):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await trio.aclose_forcefully(process.stdout)


async def _of_all(
    generators: list[GeneratorProcess], function: Callable[[GeneratorProcess], Awaitable[Told | None]]
) -> list[Told]:
    """What the function returns for each, in their order."""
    found: dict[int, Told | None] = {}

    async def one(index: int, generator: GeneratorProcess) -> None:
        found[index] = await function(generator)

    async with trio.open_nursery() as nursery:
        for index, generator in enumerate(generators):
            nursery.start_soon(one, index, generator)
    return [told for _, told in sorted(found.items()) if told is not None]


async def _hear(generator: GeneratorProcess, kind: type[Told]) -> Told:
    return await generator.hear(kind)


async def _tell_to_stop(generator: GeneratorProcess) -> None:
    await generator.tell(Stop())


async def _tell(generator: GeneratorProcess, order: Order) -> None:
    await generator.tell(order)


def _processes_for(settings: Settings) -> int:
    """How many processes the subscribers are shared among.

    Raises:
        BenchError: one of them would need more descriptors than it may have.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = settings.subscribers if limit == resource.RLIM_INFINITY else max(1, limit - _OTHER_DESCRIPTORS)
    needed = math.ceil(settings.subscribers / room)
    chosen = settings.processes or needed
    if chosen < needed:
        raise BenchError(
            f"a process may have {limit} descriptors open, too few for its share of {settings.subscribers} "
            f"subscribers: use {needed} --processes, or raise the limit (ulimit -n)"
        )
    return min(chosen, settings.subscribers)


def _none_opened(opened: list[Opened]) -> str:
    errors: dict[str, int] = {}
    for word in opened:
        for kind, count in word.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    why = ", ".join(f"{kind} ({count} times)" for kind, count in errors.items())
    return f"no subscriber could be opened: {why or 'no reason is known'}"
