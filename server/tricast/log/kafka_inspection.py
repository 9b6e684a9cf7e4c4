"""The log in a topic of Kafka's, seen from outside; see ``tricast.log.inspection``.

What Kafka has is told, of which servers read back no more than ``log.length`` and ``events.history_age``. Topics that
other programs write are told of as well, and nothing is dropped from them.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import trio
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from tricast.config import Config
from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import EventId, TopicSet, own_id
from tricast.log.inspection import Cut, Holding, Inspected, Kept
from tricast.log.kafka_clients import Clients
from tricast.log.kafka_records import OwnRecords, Record, entry_of, incarnation_of, position
from tricast.log.kafka_settings import check_settings, settings
from tricast.log.kafka_sources import SourceRecords, shard_of_source
from tricast.log.kafka_threads import History, Place, Translator, in_words
from tricast.log_urls import KafkaUrl
from tricast.logs import Logger

#: Records that are looked at first for the newest events; then twice as many, and so on up to so many at a time.
_FIRST_COUNT = 100
_MAX_COUNT = 20_000

Result = TypeVar("Result")


@asynccontextmanager
async def inspecting(config: Config, url: KafkaUrl, *, logger: Logger) -> AsyncIterator[Inspected]:
    """See ``tricast.stores.inspecting``.

    Raises:
        ConfigError: a setting for librdkafka cannot be used.
        LogUnavailable: there is no such topic, or Kafka does not answer.
    """
    check_settings(url, config.log)
    clients = Clients(url, config.log, logger)
    history = History(clients.history_consumer, config.log.timeout)
    try:
        admin = AdminClient(settings(url, config.log))
        yield Inspected(await _in_thread(_partitions, config, url, clients, history, admin), is_sharded=True)
    finally:
        clients.close()
        history.close()


def _partitions(
    config: Config, url: KafkaUrl, clients: Clients, history: History, admin: AdminClient
) -> "dict[int, KafkaInspection]":
    count = config.log.shards
    sources = config.log.source
    topics = clients.describe([url.topic, *(entry.kafka_topic for entry in sources)], config.log.timeout)
    if topics[url.topic].partitions < count:
        raise LogUnavailable(f"{url.topic} has {topics[url.topic].partitions} partitions, and log.shards is {count}")
    own = incarnation_of(topics[url.topic].topic_id, str(count))
    records = OwnRecords(config.limits.topic_size, config.log.shards)
    found = {number: KafkaInspection(Place(url.topic, number), own, records, history, admin) for number in range(count)}
    for source, entry in enumerate(sources):
        topic = topics[entry.kafka_topic]
        incarnation = incarnation_of(topic.topic_id, "source")
        translator = SourceRecords(entry, config.limits.topic_size, config.publish.max_event)
        for number in range(topic.partitions):
            place = Place(entry.kafka_topic, number)
            found[shard_of_source(source, number)] = KafkaInspection(place, incarnation, translator, history)
    return found


class KafkaInspection:
    """See ``Inspection``. A partition.

    Args:
        place: which one.
        incarnation: what the ids of its events begin with.
        translator: reads its records.
        history: reads the partition.
        admin: drops records; None where none may be dropped.
    """

    def __init__(
        self,
        place: Place,
        incarnation: int,
        translator: Translator,
        history: History,
        admin: AdminClient | None = None,
    ) -> None:
        self._place = place
        self._incarnation = incarnation
        self._translator = translator
        self._history = history
        self._admin = admin

    async def holding(self) -> Holding:
        """See ``Inspection.holding``. Not all offsets are events; who counts those has to read all of them."""
        return await _in_thread(self._holding)

    def _holding(self) -> Holding:
        low, high = self._bounds()
        oldest = self._history.read(self._place, low, high, lambda _, records: next(records, None))
        last = position(self._incarnation, high)
        if oldest is None:
            return Holding(None, last, 0, None, None, None, is_counted=False)
        first = position(self._incarnation, oldest.offset + 1)
        return Holding(first, last, high - oldest.offset, None, None, oldest.ms / 1000, is_counted=False)

    async def newest(self, topics: TopicSet, count: int) -> list[Kept]:
        """See ``Inspection.newest``. What was published twice with one key may be there twice."""
        return await _in_thread(self._newest, topics, count)

    def _newest(self, topics: TopicSet, count: int) -> list[Kept]:
        def of_topics(_: int, records: Iterator[Record]) -> list[Kept]:
            return [each for each in self._kept(records) if each.event.topic in topics]

        return self._look_back(count, *self._bounds(), of_topics)

    def _look_back(
        self, count: int, low: int, high: int, use: Callable[[int, Iterator[Record]], list[Result]]
    ) -> list[Result]:
        """So many of what is made of the newest records, or fewer where there are no more, in order."""
        found: list[Result] = []
        begin, looked_at = high, _FIRST_COUNT
        while len(found) < count and begin > low:
            end, begin = begin, max(low, begin - looked_at)
            found = self._history.read(self._place, begin, end, use) + found
            looked_at = min(2 * looked_at, _MAX_COUNT)
        return found[max(0, len(found) - count) :]

    def _kept(self, records: Iterator[Record]) -> Iterator[Kept]:
        for record in records:
            with suppress(RemoteProtocolError):  # it holds no event
                draft = self._translator.read(record)
                yield Kept(record.ms / 1000, entry_of(record, draft, self._incarnation).event)

    async def drop(self, cut: Cut) -> int:
        """See ``Inspection.drop``. From a topic of other programs nothing is dropped."""
        return 0 if self._admin is None else await _in_thread(self._drop, self._admin, cut)

    def _drop(self, admin: AdminClient, cut: Cut) -> int:
        low, high = self._bounds()
        before = min(self._first_kept(cut, low, high), high)
        if before <= low:
            return 0
        (future,) = admin.delete_records([TopicPartition(*self._place, before)]).values()
        try:
            return int(future.result().low_watermark) - low
        except KafkaException as error:
            raise LogUnavailable(in_words(error)) from None

    def _first_kept(self, cut: Cut, low: int, high: int) -> int:
        if cut.keep is not None:
            kept = self._look_back(cut.keep, low, high, self._offsets)
            return kept[0] if len(kept) == cut.keep else low
        if cut.older_than is not None:
            return self._bounds(cut.older_than)[0]
        assert cut.before is not None
        # An event's id is the position behind its record.
        return _offset_of(cut.before, self._incarnation) - 1

    def _offsets(self, _: int, records: Iterator[Record]) -> list[int]:
        return [own_id(each.event).counter - 1 for each in self._kept(records)]

    def _bounds(self, since: float = 0.0) -> tuple[int, int]:
        return self._history.bounds([self._place], max(int(since * 1000), 0))[self._place]


def _offset_of(at: EventId, incarnation: int) -> int:
    if at.ms != incarnation:
        raise RemoteProtocolError(f"{at} is no position in this log", code="bad-last-id")
    return at.counter


async def _in_thread(function: Callable[..., Result], *arguments: object) -> Result:
    return await trio.to_thread.run_sync(function, *arguments)
