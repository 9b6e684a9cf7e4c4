"""Events as records of Kafka's: what is written into one, and what is made of one. Without I/O.

The key is the event's topic and the value its data, so that other programs can read and write the same. The type is a
header, which is left out where it is the default. A second one is for those who repeat what they publish.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from tricast.errors import RemoteProtocolError
from tricast.event import DEFAULT_TYPE, Draft, Event, EventId, check_topic, check_type, data_as_json
from tricast.log.sharded import shard_of

TYPE_HEADER = "type"
MARK_HEADER = "tricast-idempotency"
#: Topics whose records come again and again are looked at once; forgotten all at once when there are more.
_MAX_TOPICS = 10_000


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What a record is marked with whose publisher named a key: those with the same are to count once.

    Attributes:
        name: the key's.
        fingerprint: of what was to be published.
        attempt: drawn for each append, so that its records are known among those of others with the same key.
        index: the place of the record among those of its append that are in this partition.
        count: how many those are.
    """

    name: bytes
    fingerprint: bytes
    attempt: bytes
    index: int
    count: int


class Record(NamedTuple):
    """A record as Kafka has it.

    Attributes:
        offset: its place in its partition.
        ms: when it was made, in Unix time.
        key: None where there is none, as with all that follows.
        value: its content.
        headers: of several with one name, the last.
        partition: where it is.
    """

    offset: int
    ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes | None]
    partition: int = 0


class Entry(NamedTuple):
    """An event that was read.

    Attributes:
        event: what the record holds.
        ms: when the record was made.
        mark: what it is marked with, if it is.
    """

    event: Event
    ms: int
    mark: Mark | None


_mark_decoder = msgspec.msgpack.Decoder(Mark)


def incarnation_of(topic_id: str, salt: str = "") -> int:
    """What the ids of a partition begin with, so that positions in a topic that was made anew are told from others.

    Args:
        topic_id: what Kafka gave to the topic when it was made.
        salt: whatever else makes it another log.

    Returns:
        A number from 1 to 2^31.
    """
    digest = hashlib.blake2b(f"{topic_id}/{salt}".encode(), digest_size=4).digest()
    return (int.from_bytes(digest) >> 1) + 1


def position(incarnation: int, offset: int) -> EventId:
    """The position before the record with this offset, behind all that come before it."""
    return EventId(incarnation, offset)


def entry_of(record: Record, draft: Draft, incarnation: int) -> Entry:
    """What was read. The id of an event is the position behind its record."""
    event = Event(position(incarnation, record.offset + 1), *draft)
    return Entry(event, record.ms, mark_of(record.headers))


def headers_of(draft: Draft, mark: Mark | None) -> list[tuple[str, bytes]]:
    """What is written with an event beside its topic and its data."""
    headers = [] if draft.type == DEFAULT_TYPE else [(TYPE_HEADER, draft.type.encode())]
    if mark is not None:
        headers.append((MARK_HEADER, msgspec.msgpack.encode(mark)))
    return headers


def mark_of(headers: Mapping[str, bytes | None]) -> Mark | None:
    """What a record is marked with; what is no mark is taken for none."""
    text = headers.get(MARK_HEADER) if headers else None
    if text is None:
        return None
    try:
        return _mark_decoder.decode(text)
    except msgspec.DecodeError:
        return None


def marks_of(name: bytes, fingerprint: bytes, attempt: bytes, count: int) -> Sequence[Mark]:
    """The marks of an append's records in one partition."""
    return [Mark(name, fingerprint, attempt, index, count) for index in range(count)]


class Topics:
    """The topics that are named by bytes, each looked at once.

    Args:
        max_bytes: how long one may be.
        before: what comes before the bytes.
        behind: what follows them.
    """

    def __init__(self, max_bytes: int, before: str = "", behind: str = "") -> None:
        self._max_bytes = max_bytes
        self._before = before
        self._behind = behind
        self._known: dict[bytes, str] = {}

    def find(self, name: bytes) -> str:
        """The topic.

        Raises:
            RemoteProtocolError: it is none.
        """
        topic = self._known.get(name)
        if topic is None:
            text = f"{self._before}{decode(name, 'its key')}{self._behind}"
            topic = check_topic(text, max_bytes=self._max_bytes)
            if len(self._known) >= _MAX_TOPICS:
                self._known.clear()
            self._known[name] = topic
        return topic


class OwnRecords:
    """Reads the records of Tricast's own topic.

    Args:
        max_topic_bytes: how long a topic may be.
        shards: over how many partitions topics are spread.
    """

    def __init__(self, max_topic_bytes: int, shards: int = 1) -> None:
        self._topics = Topics(max_topic_bytes)
        self._shards = shards

    def read(self, record: Record) -> Draft:
        """What the record holds.

        Raises:
            RemoteProtocolError: it holds no event.
        """
        if record.key is None:
            raise unusable("it has no key")
        topic = self._topics.find(record.key)
        # Who follows the topic, and comes back, is given what is in its own partition.
        if (expected := shard_of(topic, self._shards)) != record.partition:
            raise unusable(f"its topic belongs into partition {expected}, and it is in {record.partition}")
        event_type = type_of(record.headers.get(TYPE_HEADER), DEFAULT_TYPE)
        return Draft(topic, event_type, data_of(record.value))


def type_of(text: bytes | None, default: str) -> str:
    """The type that a header names.

    Raises:
        RemoteProtocolError: it names none.
    """
    return default if text is None else check_type(decode(text, "its type"))


def data_of(value: bytes | None) -> bytes:
    """The value as the data of an event; where there is none, the record tells that something was deleted.

    Raises:
        RemoteProtocolError: it is no text.
    """
    return b"null" if value is None else data_as_json(value)


def decode(text: bytes, what: str) -> str:
    """The text of something in a record.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise unusable(f"{what} is not UTF-8") from None


def unusable(why: str) -> RemoteProtocolError:
    """A record cannot be used."""
    return RemoteProtocolError(why, code="bad-record")
