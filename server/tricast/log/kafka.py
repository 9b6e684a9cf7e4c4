"""The log in a topic of Kafka's: for servers on many machines, and beside what other programs keep there.

The topic's first partitions are the shards (see ``ShardedLog``). Every process reads all of them from where it is,
without a consumer group, and hands over what comes, its own events like all others. Topics that other programs write
can be further shards, which are only read.

librdkafka is used by threads: see ``tricast.log.kafka_threads``. Here is what they report to.
"""

import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from typing import Protocol

import trio

from tricast.config import Config, LogSection
from tricast.errors import LogUnavailable
from tricast.event import Draft, EventId, Position, ShardedId, TopicSet
from tricast.log.base import Committed, IdempotencyKey, Skipped, Slice, ignore, key_reused
from tricast.log.kafka_clients import Clients, Seen, Topic, Watcher
from tricast.log.kafka_keys import Used
from tricast.log.kafka_records import OwnRecords, incarnation_of, position
from tricast.log.kafka_settings import check_settings
from tricast.log.kafka_shard import Keeping, Reading, Shard
from tricast.log.kafka_sources import SHARDS_PER_SOURCE, SourceRecords, shard_of_source, source_of_shard
from tricast.log.kafka_threads import (
    Found,
    History,
    Job,
    Outcome,
    Output,
    Place,
    Post,
    Publisher,
    Reader,
    Transactions,
    Translator,
    outputs_of,
)
from tricast.log.sharded import ShardedLog, shard_of
from tricast.log.statistics import Statistics
from tricast.log_urls import KafkaUrl
from tricast.logs import Logger

#: Appends that wait for Kafka.
_MAX_WAITING = 10_000
_MAX_WAITING_BYTES = 64 * 2**20
#: Reads of what is older at the same time: more would compete for the interpreter.
_READERS = 2
#: How long to wait for the threads at the end.
_LAST_SECONDS = 10.0
#: Publishers wait for so many times ``log.timeout``: librdkafka gives up after one, but there may be batches before.
_PATIENCE = 2.0
#: What a look at Kafka may take, at most: a publisher who waits meanwhile is told so much later.
_LOOK_SECONDS = 2.0


def kafka_log(config: Config, url: KafkaUrl, *, logger: Logger) -> "KafkaLog":
    """A log in a topic of Kafka's; nothing is opened yet.

    Raises:
        ConfigError: a setting for librdkafka is one that cannot be set.
    """
    check_settings(url, config.log)
    return KafkaLog(config, url, logger=logger)


class KafkaLog:
    """See ``Log``.

    Args:
        config: the configuration.
        url: where Kafka is.
        logger: where to say that the log is unavailable, and that it is back.
        clock: seconds since the epoch.
    """

    def __init__(
        self, config: Config, url: KafkaUrl, *, logger: Logger, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config.log
        self._url = url
        self._logger = logger
        self._clock = clock
        self._clients = Clients(url, config.log, logger)
        self._statistics = Statistics()
        self._keeping = Keeping(
            config.log.length,
            config.events.history_age,
            config.log.cache_size // config.log.shards,
            config.publish.idempotency_window,
            config.publish.idempotency_keys,
        )
        self.translators: dict[str, Translator] = {url.topic: OwnRecords(config.limits.topic_size, config.log.shards)}
        self._sources = [
            SourceRecords(entry, config.limits.topic_size, config.publish.max_event) for entry in config.log.source
        ]
        self.translators |= {
            entry.kafka_topic: source for entry, source in zip(config.log.source, self._sources, strict=True)
        }
        self._own = {number: self._new_shard(number, Place(url.topic, number)) for number in range(config.log.shards)}
        #: All shards, by number, and their numbers by place.
        self._shards: dict[int, Shard] = self._own
        self._numbers: dict[Place, int] = {}
        self._sharded = self._new_sharded()
        self._threads: _Threads | None = None
        self._history: History
        self._scope = trio.CancelScope()
        self._changed = trio.lowlevel.ParkingLot()
        self._problem: str | None = None
        self._committed: Committed = ignore
        self._jobs: dict[_Call, None] = {}
        self._waiting_bytes = 0
        self._warned: set[str] = set()
        #: Partitions that are not read now.
        self._lost: set[Place] = set()
        #: How often reading began anew somewhere.
        self._restarts = 0
        #: How often Kafka was found to be there.
        self._looks = 0

    def _new_shard(self, number: int, place: Place) -> Shard:
        return Shard(place, self.translators[place.topic], self._keeping, partial(self._append_to, number))

    def _new_sharded(self) -> ShardedLog:
        return ShardedLog(
            self._shards,
            shard_of=partial(shard_of, shards=len(self._own)),
            shards_of=self.shards_of,
            append_all=self._append,
            statistics=self._statistics,
        )

    @property
    def last_id(self) -> ShardedId:
        """See ``Log.last_id``."""
        return self._sharded.last_id

    @property
    def waits(self) -> bool:
        """See ``Log.waits``: for the brokers."""
        return True

    @property
    def problem(self) -> str | None:
        """See ``Log.problem``."""
        return self._problem

    @property
    def statistics(self) -> Statistics:
        """See ``Log.statistics``."""
        return self._statistics

    def shards_of(self, topics: TopicSet) -> tuple[int, ...]:
        """See ``Log.shards_of``."""
        count = len(self._own)
        own = set(self._own) if topics.has_patterns else {shard_of(name, count) for name in topics.exact}
        may_be = [source.may_have(topics) for source in self._sources]
        others = (number for number in self._shards if number not in self._own)
        return tuple(sorted(own.union(number for number in others if may_be[source_of_shard(number)])))

    @asynccontextmanager
    async def open(self, committed: Committed, skipped: Skipped | None = None) -> AsyncIterator[None]:
        """See ``Log.open``. All that is kept is read at first. Cancelling it waits for the threads, not for ever.

        Raises:
            LogUnavailable: Kafka does not answer, or has no such topic, or a setting cannot be used. Or, what is in the
                scope being cancelled, the thread that reads has ended.
        """
        token = trio.lowlevel.current_trio_token()

        def post(function: Callable[..., None], *arguments: object) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(function, *arguments)

        scope = self._scope = trio.CancelScope()
        self._problem, self._committed = None, committed
        self._lost.clear()
        begun = trio.current_time()
        history = self._history = History(self._clients.history_consumer, self._config.timeout)
        threads = None
        self._clients.open()
        try:
            seen = await trio.to_thread.run_sync(self._look_at_all, abandon_on_cancel=True)
            positions = self._begin(seen)
            threads = self._threads = await trio.to_thread.run_sync(_Threads, self, self._clients, self._config, post)
            self._clients.tell = lambda why: post(self.doubted, why)
            threads.start()
            threads.reader.move(positions)
            await self._come_to_end()
            read = sum(shard.next_offset - positions[shard.place].counter for shard in self._shards.values())
            self._logger.info("what Kafka keeps was read", records=read, seconds=round(trio.current_time() - begun, 3))
            async with self._sharded.open(committed, skipped):
                with scope:
                    yield
            if scope.cancel_called:
                raise LogUnavailable(f"{self._url.topic}: {self._problem}")
        finally:
            self._threads, self._committed = None, ignore
            if threads is not None:
                threads.stop()
            for call in list(self._jobs):
                call.resolve(LogUnavailable("the log is not open"))
            history.close()
            with trio.move_on_after(_LAST_SECONDS, shield=True):
                await trio.to_thread.run_sync(self._leave, threads, abandon_on_cancel=True)

    # In threads

    def _leave(self, threads: "_Threads | None") -> None:
        try:
            if threads is not None:
                threads.join()
        finally:
            # Its clients and this log refer to each other, and would wait for the garbage collector.
            self._clients.close()

    def look(self, places: Collection[Place]) -> Seen:
        """Looks at the topics, and at these partitions, in whatever thread.

        Raises:
            LogUnavailable: the log's own is not there, or Kafka does not answer.
        """
        seen = Seen({}, {})
        for name in self.translators:
            try:
                topics = self._clients.describe([name], min(self._config.timeout, _LOOK_SECONDS))
                bounds = self._history.bounds([place for place in places if place.topic == name], 0)
            except LogUnavailable:
                # That another program's topic is gone is no reason to take nothing for the own one, which is the first.
                if name == self._url.topic:
                    raise
            else:
                seen.topics.update(topics)
                seen.bounds.update(bounds)
        return seen

    def _look_at_all(self) -> Seen:
        topics = self._clients.describe([*self.translators], self._config.timeout)
        found = topics[self._url.topic].partitions
        if found < len(self._own):
            raise LogUnavailable(
                f"{self._url.topic} has {found} partitions, and log.shards is {len(self._own)}: "
                f"kafka-topics.sh --alter --topic {self._url.topic} --partitions {len(self._own)}"
            )
        for name, topic in topics.items():
            if len(self._partitions(name, topic)) > SHARDS_PER_SOURCE:
                raise LogUnavailable(f"{name} has {topic.partitions} partitions, and {SHARDS_PER_SOURCE} can be read")
        places = [Place(name, number) for name, topic in topics.items() for number in self._partitions(name, topic)]
        ages = max(self._keeping.age, self._keeping.key_window)
        return Seen(topics, self._history.bounds(places, int((self._clock() - ages) * 1000)))

    def _partitions(self, name: str, topic: Topic) -> range:
        return range(len(self._own) if name == self._url.topic else topic.partitions)

    def _begin(self, seen: Seen) -> dict[Place, EventId]:
        """Has the shards begin where what is kept begins; returns the positions."""
        if seen.topics[self._url.topic].partitions > len(self._own):
            self._logger.warning(
                "of Kafka's topic only some partitions are used",
                topic=self._url.topic,
                partitions=seen.topics[self._url.topic].partitions,
                shards=len(self._own),
            )
        places = {number: Place(self._url.topic, number) for number in self._own}
        for source, entry in enumerate(self._config.source):
            for number in self._partitions(entry.kafka_topic, seen.topics[entry.kafka_topic]):
                places[shard_of_source(source, number)] = Place(entry.kafka_topic, number)
        self._keeping = self._keeping._replace(cache_size=self._config.cache_size // len(places))
        shards = {number: self._new_shard(number, place) for number, place in places.items()}
        self._own = {number: shards[number] for number in self._own}
        self._shards = shards
        self._numbers = {shard.place: number for number, shard in shards.items()}
        self._sharded = self._new_sharded()
        reading = Reading(
            self._history, trio.CapacityLimiter(_READERS), self._config.timeout, self._clock, self._statistics
        )
        positions = {}
        for shard in shards.values():
            first, end = seen.bounds[shard.place]
            shard.topic_id = seen.topics[shard.place.topic].topic_id
            incarnation = self._incarnation(shard.place, seen)
            positions[shard.place] = shard.begin(reading, incarnation, max(first, end - self._keeping.length), end)
        return positions

    def _incarnation(self, place: Place, seen: Seen) -> int:
        # With another number of shards, topics are elsewhere.
        salt = str(len(self._own)) if place.topic == self._url.topic else "source"
        return incarnation_of(seen.topics[place.topic].topic_id, salt)

    async def _come_to_end(self) -> None:
        """Returns when everything was read that is kept."""
        while self._problem is None and not all(shard.has_come_to_end for shard in self._shards.values()):
            await self._changed.park()
        if self._problem is not None:
            raise LogUnavailable(self._problem)

    # Appending

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[ShardedId]:
        """See ``Log.append``."""
        return await self._sharded.append(drafts, key)

    async def _append_to(self, number: int, drafts: Sequence[Draft], key: IdempotencyKey | None) -> list[EventId]:
        return (await self._append({number: drafts}, key))[number]

    async def _append(
        self, drafts: Mapping[int, Sequence[Draft]], key: IdempotencyKey | None
    ) -> dict[int, list[EventId]]:
        if self._threads is None:
            raise LogUnavailable("the log is not open")
        known = self._known(drafts, key) if key is not None else None
        if known is not None:
            return known
        if self._problem is not None:
            raise LogUnavailable(self._problem)
        if len(self._jobs) >= _MAX_WAITING or self._waiting_bytes >= _MAX_WAITING_BYTES:
            raise LogUnavailable("too many publishes are waiting for Kafka")
        with self._statistics.appends.timing():
            ids = await self._write(self._threads, drafts, key)
            if key is None:
                return ids
            # Whose records were first with this key is known when they have been read.
            for number, each in ids.items():
                await self._shards[number].reach(each[-1].counter)
            counted = {number: self._shards[number].counted(key) for number in drafts}
            return _ids_of_first(counted, drafts, key) or ids

    def _known(self, drafts: Mapping[int, Sequence[Draft]], key: IdempotencyKey) -> dict[int, list[EventId]] | None:
        """The ids of the first time that a key was used; None where that is now.

        Raises:
            RemoteProtocolError: it was used for something else.
        """
        used = {number: shard.used(key) for number, shard in self._own.items()}
        return _ids_of_first(used, drafts, key)

    async def _write(
        self, threads: "_Threads", drafts: Mapping[int, Sequence[Draft]], key: IdempotencyKey | None
    ) -> dict[int, list[EventId]]:
        incarnations = {number: self._shards[number].incarnation for number in drafts}
        call = _Call(outputs_of({self._shards[number].place: each for number, each in drafts.items()}, key))
        self._jobs[call] = None
        self._waiting_bytes += call.job.size
        looks = self._looks
        try:
            (threads.publisher if len(call.job.outputs) == 1 else threads.transactions).submit(call.job)
            with trio.move_on_after(_PATIENCE * self._config.timeout):
                await call.done.wait()
            call.resolve(LogUnavailable("Kafka does not answer"))
        finally:
            # Where the publisher does not wait any longer, it still takes its place in what librdkafka holds; but for
            # no longer than it may take.
            del self._jobs[call]
            self._waiting_bytes -= call.job.size
            call.job.is_given_up = True
        if isinstance(call.outcome, Exception):
            # What was begun before Kafka was found to be there again tells nothing of how it is now.
            if isinstance(call.outcome, LogUnavailable) and self._threads is not None and looks == self._looks:
                self.failed(call.outcome.why)
                threads.watcher.look()
            raise call.outcome
        offsets = iter(call.outcome)
        return {
            number: [position(incarnations[number], next(offsets) + 1) for _ in each] for number, each in drafts.items()
        }

    # Reading

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """See ``Log.read``."""
        restarts = self._restarts
        found = await self._sharded.read(topics, after, max_bytes=max_bytes)
        # Positions from before one are not always before those behind it: nobody is at the end with what he has now.
        return found if restarts == self._restarts else found._replace(complete=False)

    # What the threads have to say; see ``Receiver``

    def deliver(self, found: Mapping[Place, Found]) -> None:
        """See ``Receiver.deliver``."""
        if self._threads is not None:
            self._threads.reader.taken()
            for place, each in found.items():
                number = self._numbers[place]
                self._statistics.lags[number] = each.lag
                self._shards[number].deliver(each)
                self._statistics.left_out += each.left_out
                if each.left_out and place.topic not in self._warned:
                    self._warned.add(place.topic)
                    self._logger.warning("records of Kafka's are left out", topic=place.topic, why=each.why)
            self._changed.unpark_all()

    def lost(self, place: Place, why: str) -> None:
        """See ``Receiver.lost``."""
        if self._threads is not None:
            self._lost.add(place)
            if place.topic != self._url.topic:
                self._logger.warning("a topic of other programs cannot be read", topic=place.topic, why=why)
            elif why:
                self.failed(why)
            self._threads.watcher.look([place])

    def ended(self, failure: str, error: Exception | None = None) -> None:
        """See ``Receiver.ended``. Nothing brings the thread back, so it ends whatever needs the log as well."""
        if self._threads is not None:
            self._logger.error("the log has ended", topic=self._url.topic, why=failure, exc_info=error)
            self._problem = failure
            self._scope.cancel()
            self._changed.unpark_all()

    def doubted(self, why: str) -> None:  # noqa: ARG002 - whoever looks finds out
        """Kafka may not be there."""
        if self._threads is not None:
            self._threads.watcher.look()

    def failed(self, why: str) -> None:
        """Kafka cannot be used, or not all of it."""
        if self._problem is None:
            self._logger.error("the log is not available", url=str(self._url), why=why)
        self._problem = why
        self._changed.unpark_all()

    def seen(self, seen: Seen) -> None:
        """Kafka can be used. Where what came next was lost, reading goes on behind that."""
        if self._threads is None:
            return
        self._looks += 1
        others = [shard.place for shard in self._shards.values() if self._is_other(shard, seen)]
        if seen.bounds.keys() >= set(others):
            # Others may have come further since it was looked.
            places = self._lost.union(others) & seen.bounds.keys()
            self._lost -= places
            if places:
                self._threads.reader.move({place: self._go_on(place, seen) for place in places})
            if self._lost:
                self._threads.watcher.look([*self._lost])
        else:
            self._threads.watcher.look([*others, *seen.bounds])
        if self._problem is not None:
            self._problem = None
            self._statistics.reconnects += 1
            self._logger.info("the log is available again", url=str(self._url))
            self._committed(())
            self._changed.unpark_all()

    def _is_other(self, shard: Shard, seen: Seen) -> bool:
        """Whether the topic was made anew since a shard began."""
        topic = seen.topics.get(shard.place.topic)
        return topic is not None and topic.topic_id != shard.topic_id

    def _go_on(self, place: Place, seen: Seen) -> EventId:
        """Where to go on in a partition: there where it is, or behind what is lost, which is told of."""
        shard = self._shards[self._numbers[place]]
        first, end = seen.bounds[place]
        if not self._is_other(shard, seen):
            if first <= shard.next_offset <= end:
                return shard.last_id
            if shard.next_offset < first:
                self._logger.error("Kafka dropped what was not read yet", topic=place.topic, partition=place.partition)
                return shard.restart(shard.incarnation, first)
            self._logger.error("Kafka has lost what it had", topic=place.topic, partition=place.partition)
            return self._restart(shard, incarnation_of(secrets.token_hex(8)), end)
        self._logger.error("Kafka's topic was made anew", topic=place.topic, partition=place.partition)
        shard.topic_id = seen.topics[place.topic].topic_id
        return self._restart(shard, self._incarnation(place, seen), first)

    def _restart(self, shard: Shard, incarnation: int, offset: int) -> EventId:
        self._restarts += 1
        return shard.restart(incarnation, offset)


def _ids_of_first(
    used: Mapping[int, Used | None], drafts: Mapping[int, Sequence[Draft]], key: IdempotencyKey
) -> dict[int, list[EventId]] | None:
    """The ids of the append that used a key, in the shards of the drafts, if all are known."""
    found = {}
    for number, each in used.items():
        if each is not None:
            if each.fingerprint != key.fingerprint:
                raise key_reused()
            if each.ids is not None:
                found[number] = each.ids
    return found if found.keys() == drafts.keys() else None


class _Call:
    """A job whose outcome a task waits for."""

    __slots__ = ("done", "job", "outcome")

    def __init__(self, outputs: Sequence[Output]) -> None:
        self.job = Job(outputs, self.resolve)
        self.done = trio.Event()
        self.outcome: Outcome = ()

    def resolve(self, outcome: Outcome) -> None:
        if not self.done.is_set():
            self.outcome = outcome
            self.done.set()


class _Part(Protocol):
    """What one thread does."""

    def run(self) -> None:
        """Works until stopped."""

    def stop(self) -> None:
        """Has it end."""


class _Threads:
    """The threads of a log that is open.

    Args:
        log: takes what they find.
        clients: makes librdkafka's clients.
        config: what is configured.
        post: calls a function in Trio's thread, soon, and in order.

    Raises:
        LogUnavailable: a setting cannot be used.
    """

    def __init__(self, log: KafkaLog, clients: Clients, config: LogSection, post: Post) -> None:
        # Known to Kafka by another name each time: what a process that is gone has begun, only its deadline ends.
        name = f"tricast-{secrets.token_hex(8)}"
        self.publisher = Publisher(clients.producer, post)
        self.transactions = Transactions(partial(clients.transactional_producer, name), config.timeout, post)
        self.reader = Reader(clients.consumer(), log.translators, post, log)
        self.watcher = Watcher(
            log.look,
            pauses=(config.reconnect, config.reconnect_max),
            randomness=Random(),  # noqa: S311 - jitter
            post=post,
            seen=log.seen,
            failed=log.failed,
        )
        self._parts: tuple[_Part, ...] = (self.publisher, self.transactions, self.reader, self.watcher)
        self._threads = [
            threading.Thread(
                target=self._run, args=(part,), name=f"tricast kafka {type(part).__name__.lower()}", daemon=True
            )
            for part in self._parts
        ]
        self._fail = partial(post, log.ended, "one of its threads has failed")

    def _run(self, part: _Part) -> None:
        try:
            part.run()
        except Exception as error:  # noqa: BLE001 - publishers would be told for ever that the log is away
            self._fail(error)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        for part in self._parts:
            part.stop()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(_LAST_SECONDS)
