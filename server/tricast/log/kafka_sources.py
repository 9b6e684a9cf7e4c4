"""Topics of Kafka's that other programs write: what becomes of their records. Without I/O."""

import re
from collections.abc import Callable

from tricast.config import SOURCE_KEY, SourceEntry
from tricast.event import Draft, TopicSet
from tricast.log.kafka_records import Record, Topics, data_of, type_of, unusable

#: The shards of a source are its partitions, counted from this many times its number, which begins at 1.
SHARDS_PER_SOURCE = 1000


def shard_of_source(source: int, partition: int) -> int:
    """The number of the shard that is a partition of a source."""
    return SHARDS_PER_SOURCE * (source + 1) + partition


def source_of_shard(shard: int) -> int:
    """The number of the source that a shard is a partition of."""
    return shard // SHARDS_PER_SOURCE - 1


class SourceRecords:
    """Reads the records of a source.

    Args:
        entry: what is configured.
        max_topic_bytes: how long a topic may be.
        max_event_bytes: how long the data of an event may be.
    """

    def __init__(self, entry: SourceEntry, max_topic_bytes: int, max_event_bytes: int) -> None:
        self._entry = entry
        self._max_event_bytes = max_event_bytes
        self._before, _, self._behind = entry.topic.partition(SOURCE_KEY)
        self._topics = Topics(max_topic_bytes, self._before, self._behind)

    def read(self, record: Record) -> Draft:
        """What the record holds.

        Raises:
            RemoteProtocolError: it holds no event.
        """
        entry = self._entry
        name = record.headers.get(entry.header) if entry.header else record.key
        if name is None:
            raise unusable(f"it has no header {entry.header}" if entry.header else "it has no key")
        event_type = type_of(record.headers.get(entry.type_header) if entry.type_header else None, entry.type)
        return Draft(self._topics.find(name), event_type, self._data_of(record.value))

    def _data_of(self, value: bytes | None) -> bytes:
        # As data it is never shorter; so what is much too long need not be looked at.
        if value is not None:
            self._check_size(value)
        data = data_of(value)
        self._check_size(data)
        return data

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._max_event_bytes:
            raise unusable(f"its data is longer than publish.max_event, {self._max_event_bytes} bytes")

    def may_have(self, topics: TopicSet) -> bool:
        """Whether an event of the source can belong to topics; where that is hard to tell, it can."""
        is_made = re.compile(re.escape(self._before) + ".*" + re.escape(self._behind), re.DOTALL).fullmatch
        return any(map(is_made, topics.exact)) or any(map(self._may_match(), topics.names - topics.exact))

    def _may_match(self) -> Callable[[str], bool]:
        # The last token before the key may go on with it.
        fixed = self._before.split(".")[:-1]

        def may_match(pattern: str) -> bool:
            tokens = pattern.split(".")
            rest = tokens[-1] == ">"
            if rest:
                tokens.pop()
            is_long_enough = rest or len(tokens) > len(fixed)
            return is_long_enough and all(token in ("*", known) for token, known in zip(tokens, fixed, strict=False))

        return may_match
