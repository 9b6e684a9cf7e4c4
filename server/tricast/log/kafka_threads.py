"""The threads that use librdkafka: one follows all partitions, one is there for each way to write, some look back.

What they find goes to the thread of Trio through ``post``, bounded; nothing here knows of Trio. Errors of Kafka's are
put into words here.
"""

import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import Draft, EventId
from tricast.log.base import IdempotencyKey
from tricast.log.kafka_records import Entry, Mark, Record, entry_of, headers_of, marks_of, position

T = TypeVar("T")
Post = Callable[..., None]

#: How long to wait for something to come, at most; whoever is to stop does so this much later.
_POLL_SECONDS = 0.1
#: What is handed over in one turn, in which nobody else has one: 5 ms for so many.
_MAX_RECORDS = 500
_MAX_BYTES = 256 * 2**10
#: Records that are taken from librdkafka at a time.
_CHUNK = 64
#: What was handed over and not yet taken; then the thread waits.
_MAX_UNTAKEN = 2
#: What goes into one transaction.
_MAX_GROUP_DRAFTS = 500
_MAX_GROUP_BYTES = 2**20
#: How long to wait before another producer is made in the place of one that does not work any more.
_RENEWAL_SECONDS = 1.0
#: How long a transaction that nobody waits for any more is still tried to be ended.
_LAST_COMMIT_SECONDS = 10.0

_AT_END = KafkaError._PARTITION_EOF  # noqa: SLF001
#: A consumer has to name a group, and asks who coordinates it, though nobody joins: it need not be allowed to.
_NO_GROUP = KafkaError.GROUP_AUTHORIZATION_FAILED
#: What comes next was dropped, or there never was so much, or not in a topic that was made anew.
_NOT_THERE = frozenset(
    (
        KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001
        KafkaError._LOG_TRUNCATION,  # noqa: SLF001
        KafkaError.OFFSET_OUT_OF_RANGE,
        KafkaError.UNKNOWN_TOPIC_ID,
    )
)
#: While a partition gets another leader, or its first one, its brokers do not agree at once.
_PASSING = frozenset((KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE))
_TOO_LARGE = frozenset((KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE))


class Place(NamedTuple):
    """A partition.

    Attributes:
        topic: Kafka's.
        partition: its number.
    """

    topic: str
    partition: int


class Translator(Protocol):
    """Reads the records of a topic."""

    def read(self, record: Record) -> Draft:
        """What a record holds.

        Raises:
            RemoteProtocolError: no event.
        """


class Found:
    """What was read from a partition, one after the other.

    Attributes:
        entries: the events.
        incarnation: what their ids begin with.
        first: the offset of the first record.
        next_offset: behind the last one.
        is_at_end: whether there was nothing more then.
        lag: records that are known to come behind it.
        left_out: records that hold no event.
        why: why the last of those does not.
    """

    __slots__ = ("entries", "first", "incarnation", "is_at_end", "lag", "left_out", "next_offset", "size", "why")

    def __init__(self, incarnation: int, next_offset: int) -> None:
        self.entries: list[Entry] = []
        self.incarnation = incarnation
        self.first = self.next_offset = next_offset
        self.is_at_end = False
        self.lag = 0
        self.left_out = 0
        self.why = ""

    def take(self, record: Record, translator: Translator) -> None:
        """Takes the next record."""
        self.next_offset = record.offset + 1
        try:
            draft = translator.read(record)
        except RemoteProtocolError as error:
            self.left_out += 1
            self.why = error.detail
            return
        self.entries.append(entry_of(record, draft, self.incarnation))


class Receiver(Protocol):
    """Who takes what the threads have to say. Everything is called through ``post``, in order."""

    def deliver(self, found: Mapping[Place, Found]) -> None:
        """Something was read; ``Reader.taken`` has to be called for it."""

    def lost(self, place: Place, why: str) -> None:
        """A partition cannot be read any further; why, unless what comes next is just not there."""

    def doubted(self, why: str) -> None:
        """Kafka may not be there."""

    def ended(self, failure: str) -> None:
        """The thread of the reader ends unasked."""


def record_of(message: Message) -> Record:
    """A record as librdkafka has it."""
    offset, partition, headers = message.offset(), message.partition(), message.headers()
    assert offset is not None
    assert partition is not None
    named: Any = dict(headers) if headers else {}
    return Record(offset, message.timestamp()[1], message.key(), message.value(), named, partition)


def in_words(error: KafkaException | KafkaError | None) -> str:
    """What went wrong, in a few words."""
    found = error_of(error) if isinstance(error, KafkaException) else error
    return (found.str() if found is not None else "") or "unknown error"


def error_of(exception: KafkaException) -> KafkaError:
    """What an exception of librdkafka's carries."""
    error = exception.args[0]
    assert isinstance(error, KafkaError)
    return error


class Reader:
    """Follows partitions. ``run`` is for the thread; everything else for the one that takes what it hands over.

    Args:
        consumer: librdkafka's, which is closed at the end.
        translators: by the topic.
        post: calls a function in the receiver's thread, soon, and in order.
        receiver: takes what there is.
    """

    def __init__(
        self, consumer: Consumer, translators: Mapping[str, Translator], post: Post, receiver: Receiver
    ) -> None:
        self._consumer = consumer
        self._translators = translators
        self._post = post
        self._receiver = receiver
        self._moves: deque[Mapping[Place, EventId]] = deque()
        self._room = threading.Semaphore(_MAX_UNTAKEN)
        self._is_stopped = False
        # The thread's own: where to read on in each partition, and those where that is not possible now.
        self._next: dict[Place, EventId] = {}
        self._lost: set[Place] = set()
        #: Those of which is still to be told that they are, and why.
        self._to_tell: list[tuple[Place, str]] = []

    def move(self, positions: Mapping[Place, EventId]) -> None:
        """Has it read these partitions from these positions on."""
        self._moves.append(positions)

    def taken(self) -> None:
        """What it has handed over was taken."""
        self._room.release()

    def stop(self) -> None:
        """Has the thread end."""
        self._is_stopped = True
        self._room.release()

    def run(self) -> None:
        """Works until stopped."""
        failure = "its thread has failed"
        try:
            while not self._is_stopped:
                self._turn()
            failure = ""
        except KafkaException as error:
            failure = in_words(error)
        finally:
            self._consumer.close()
            self._post(self._receiver.ended, failure)

    def _turn(self) -> None:
        while self._moves:
            self._assign(self._moves.popleft())
        message = self._consumer.poll(_POLL_SECONDS)
        if message is not None:
            found = self._sort(message)
            if found:
                self._room.acquire()
                self._post(self._receiver.deliver, found)
            # Behind what was read: where to go on is told by that.
            while self._to_tell:
                self._post(self._receiver.lost, *self._to_tell.pop(0))

    def _assign(self, positions: Mapping[Place, EventId]) -> None:
        self._next.update(positions)
        self._lost.difference_update(positions)
        # All of them anew: those that are not moved go on where they were, and what was read ahead is read again.
        self._consumer.assign([TopicPartition(*place, each.counter) for place, each in self._next.items()])

    def _sort(self, message: Message) -> dict[Place, Found]:
        """What has come, by partition."""
        found: dict[Place, Found] = {}
        records = size = 0
        messages = [message]
        while messages:
            for each in messages:
                self._take(each, found)
                size += len(each)
            records += len(messages)
            if records >= _MAX_RECORDS or size >= _MAX_BYTES:
                break
            messages = self._consumer.consume(_CHUNK, 0)
        for place, each_found in found.items():
            self._next[place] = position(each_found.incarnation, each_found.next_offset)
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            each_found.lag = 0 if each_found.is_at_end else max(high - each_found.next_offset, 0)
        return found

    def _take(self, message: Message, found: dict[Place, Found]) -> None:
        error = message.error()
        topic, partition = message.topic(), message.partition()
        if topic is None or partition is None:
            if error is None or error.code() != _NO_GROUP:
                self._post(self._receiver.doubted, in_words(error))
            return
        place = Place(topic, partition)
        if place in self._lost:
            # Where to read on is for the other thread to say, even where librdkafka goes on by itself.
            return
        if error is None or error.code() == _AT_END:
            each = found.get(place)
            if each is None:
                each = found[place] = Found(*self._next[place])
            each.is_at_end = error is not None
            if error is None:
                each.take(record_of(message), self._translators[topic])
            else:
                each.next_offset = max(each.next_offset, message.offset() or 0)
        else:
            self._lost.add(place)
            self._to_tell.append((place, "" if error.code() in _NOT_THERE else in_words(error)))


class Output(NamedTuple):
    """A record to be written.

    Attributes:
        place: where.
        draft: the event.
        mark: with which the record is marked, if it is.
    """

    place: Place
    draft: Draft
    mark: Mark | None

    def produce(self, producer: Producer, on_delivery: Callable[[KafkaError | None, Message], None]) -> None:
        """Has it written; whether it was is told later."""
        producer.produce(
            self.place.topic,
            self.draft.data,
            self.draft.topic.encode(),
            self.place.partition,
            on_delivery=on_delivery,
            headers=list(headers_of(self.draft, self.mark)),
        )


def outputs_of(drafts: Mapping[Place, Sequence[Draft]], key: IdempotencyKey | None) -> list[Output]:
    """What is written for drafts, partition by partition."""
    attempt = secrets.token_bytes(8)
    outputs = []
    for place, each in drafts.items():
        marks: Sequence[Mark | None] = [None] * len(each)
        if key is not None:
            marks = marks_of(key.name, key.fingerprint, attempt, len(each))
        outputs += [Output(place, draft, mark) for draft, mark in zip(each, marks, strict=True)]
    return outputs


#: The offsets of records that were written, or why they were not.
Outcome = Sequence[int] | LogUnavailable | RemoteProtocolError


class Job:
    """Records to be written, all or none.

    Args:
        outputs: at least one.
        resolve: takes the outcome; called through ``post``.

    Attributes:
        size: bytes of memory that it takes while it waits, about.
        is_given_up: whether nobody waits for it any more.
    """

    __slots__ = ("is_given_up", "outputs", "resolve", "size")

    def __init__(self, outputs: Sequence[Output], resolve: Callable[[Outcome], None]) -> None:
        self.outputs = outputs
        self.resolve = resolve
        self.is_given_up = False
        self.size = sum(200 + len(each.draft.topic) + len(each.draft.data) for each in outputs)


def failure_of(error: KafkaError | None) -> LogUnavailable | RemoteProtocolError:
    """What a publisher is told of a record that was not written."""
    if error is not None and error.code() in _TOO_LARGE:
        return RemoteProtocolError(
            "the event is larger than Kafka takes it: see max.message.bytes of its topic", code="too-large", status=413
        )
    return LogUnavailable(in_words(error))


class Publisher:
    """Writes single records. ``run`` is for the thread; everything else for the one that is told of the outcomes.

    Args:
        new_producer: makes one of librdkafka's.
        post: calls a function in the other thread, soon, and in order.
    """

    def __init__(self, new_producer: Callable[[], Producer], post: Post) -> None:
        self._new_producer = new_producer
        self._producer = new_producer()
        self._post = post
        self._stopped = threading.Event()
        #: Why there is no producer that could be used.
        self._failure = ""
        # The thread's own: what became of jobs, for after the call that tells of it.
        self._done: list[tuple[Job, Outcome]] = []

    def submit(self, job: Job) -> None:
        """Has a job of one record done."""
        (output,) = job.outputs
        if self._failure:
            job.resolve(LogUnavailable(self._failure))
            return
        try:
            output.produce(self._producer, partial(self._delivered, job))
        except KafkaException as exception:
            job.resolve(failure_of(error_of(exception)))
        except BufferError:
            job.resolve(LogUnavailable("too many publishes are waiting for Kafka"))

    def stop(self) -> None:
        """Has the thread end."""
        self._stopped.set()

    def run(self) -> None:
        """Works until stopped."""
        while not self._stopped.is_set():
            self._turn()
        self._clear()
        self._tell()

    def _turn(self) -> None:
        if self._failure:
            self._renew()
        try:
            self._producer.poll(_POLL_SECONDS)
        except KafkaException as error:
            # What it raises here is fatal: this producer never writes again.
            self._failure = in_words(error)
            self._clear()
        self._tell()

    def _renew(self) -> None:
        self._stopped.wait(_RENEWAL_SECONDS)
        with suppress(LogUnavailable):
            self._producer = self._new_producer()
            self._failure = ""

    def _clear(self) -> None:
        """Gives up what was not written yet."""
        self._producer.purge()
        with suppress(KafkaException):
            self._producer.poll(0)

    def _delivered(self, job: Job, error: KafkaError | None, message: Message) -> None:
        offset = message.offset()
        if error is None and offset is not None:
            self._done.append((job, [offset]))
        else:
            self._done.append((job, LogUnavailable(self._failure) if self._failure else failure_of(error)))

    def _tell(self) -> None:
        if self._done:
            done, self._done = self._done, []
            self._post(resolve, done)


def resolve(done: Sequence[tuple[Job, Outcome]]) -> None:
    """Tells jobs of their outcomes."""
    for job, outcome in done:
        job.resolve(outcome)


class Transactions:
    """Writes batches of records, each all or none, several in one transaction. As with ``Publisher``.

    The producer is made when it is first needed: most servers never publish batches.

    Args:
        new_producer: makes one of librdkafka's.
        timeout: seconds for an answer of Kafka's.
        post: calls a function in the other thread, soon, and in order.
    """

    def __init__(self, new_producer: Callable[[], Producer], timeout: float, post: Post) -> None:
        self._new_producer = new_producer
        self._timeout = timeout
        self._post = post
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._is_stopped = False
        # The thread's own:
        self._producer: Producer | None = None

    def submit(self, job: Job) -> None:
        """Has a job done."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Has the thread end, when what it is just doing is done."""
        self._is_stopped = True
        self._jobs.put(None)

    def run(self) -> None:
        """Works until stopped."""
        while True:
            group, is_stopped = self._take_group()
            if group:
                self._write(group)
            if is_stopped:
                return

    def _take_group(self) -> tuple[list[Job], bool]:
        job = self._jobs.get()
        group: list[Job] = []
        drafts = size = 0
        while job is not None:
            if not job.is_given_up:  # else its publisher was told that it failed, before anything was done
                group.append(job)
                drafts += len(job.outputs)
                size += job.size
            if drafts >= _MAX_GROUP_DRAFTS or size >= _MAX_GROUP_BYTES:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _write(self, group: Sequence[Job]) -> None:
        """Writes batches together; where one of them cannot be, each by itself, so that the others are."""
        sent = _Sent(group)
        try:
            producer = self._begin()
            sent.produce(producer)
            producer.commit_transaction(self._timeout)
        except LogUnavailable as error:
            self._post(resolve, [(job, error) for job in group])
        except (KafkaException, BufferError) as exception:
            failure = sent.failure(exception)
            if len(group) > 1 and isinstance(failure, RemoteProtocolError):
                self._end(exception)
                for job in group:
                    self._write([job])
            else:
                self._post(resolve, [(job, failure) for job in group])
                self._end(exception)
        else:
            self._post(resolve, list(zip(group, sent.offsets, strict=True)))

    def _begin(self) -> Producer:
        if self._producer is None:
            producer = self._new_producer()
            producer.init_transactions(self._timeout)
            self._producer = producer
        self._producer.begin_transaction()
        return self._producer

    def _end(self, exception: KafkaException | BufferError) -> None:
        """Ends a transaction that failed, whose publishers have been told, so that nobody waits for its deadline."""
        producer = self._producer
        if producer is None:
            return
        # After some errors librdkafka confuses the numbers of what the next transaction sends, so it begins anew.
        self._producer = None
        deadline = time.monotonic() + _LAST_COMMIT_SECONDS
        try:
            while is_retriable(exception) and time.monotonic() < deadline and not self._is_stopped:
                # Whether it is committed is not known, and it cannot be taken back before that is.
                try:
                    producer.commit_transaction(_POLL_SECONDS)
                except KafkaException as error:
                    exception = error
                else:
                    self._producer = producer
                    return
            producer.abort_transaction(self._timeout)
        except KafkaException:
            # Kafka does it itself when the transaction takes too long.
            producer.purge()


class _Sent:
    """What becomes of the records of a transaction."""

    def __init__(self, group: Sequence[Job]) -> None:
        self._group = group
        self._error: KafkaError | None = None
        self.offsets = [[0] * len(job.outputs) for job in group]

    def produce(self, producer: Producer) -> None:
        for job, offsets in zip(self._group, self.offsets, strict=True):
            for index, output in enumerate(job.outputs):
                output.produce(producer, partial(self._delivered, offsets, index))

    def _delivered(self, offsets: list[int], index: int, error: KafkaError | None, message: Message) -> None:
        offset = message.offset()
        if error is None and offset is not None:
            offsets[index] = offset
        # When one of them is refused, what is sent with it fails as well, and for no reason of its own.
        if error is not None and (self._error is None or error.code() in _TOO_LARGE):
            self._error = error

    def failure(self, exception: KafkaException | BufferError) -> LogUnavailable | RemoteProtocolError:
        if self._error is not None:
            return failure_of(self._error)
        if isinstance(exception, KafkaException):
            return failure_of(error_of(exception))
        return LogUnavailable("too many publishes are waiting for Kafka")


def is_retriable(exception: KafkaException | BufferError) -> bool:
    """Whether what failed can be tried again as it is."""
    return isinstance(exception, KafkaException) and error_of(exception).retriable()


class History:
    """Reads what is older. ``read`` is for threads, as many at a time as are wanted.

    Args:
        new_consumer: makes one of librdkafka's.
        timeout: seconds for an answer of Kafka's.
    """

    def __init__(self, new_consumer: Callable[[], Consumer], timeout: float) -> None:
        self._new_consumer = new_consumer
        self._timeout = timeout
        self._idle: list[Consumer] = []
        self._is_closed = False

    def read(self, place: Place, begin: int, end: int, use: Callable[[int, Iterator[Record]], T]) -> T:
        """Reads the records between two offsets.

        Args:
            place: the partition.
            begin: the offset of the first one, if it is still there.
            end: the offset behind the last one.
            use: is given the offset of the first one there is, and the records, of which it takes what it wants.

        Raises:
            LogUnavailable: Kafka did not give them in time.
        """
        with self._consumer() as consumer:
            low, _ = self._ends(consumer, place)
        first = max(low, begin)
        if first >= end:
            return use(first, iter(()))
        # One of its own: what an earlier read left behind, such as that a partition is at its end, might be taken for
        # an answer to this one.
        try:
            with closing(self._new_consumer()) as consumer:
                consumer.assign([TopicPartition(*place, first)])
                return use(first, self._records(consumer, first, end))
        except KafkaException as error:
            raise LogUnavailable(in_words(error)) from None

    def end(self, place: Place) -> int:
        """The offset behind the last record of a partition.

        Raises:
            LogUnavailable: Kafka did not tell in time.
        """
        with self._consumer() as consumer:
            return self._ends(consumer, place)[1]

    def bounds(self, places: Collection[Place], since_ms: int) -> dict[Place, tuple[int, int]]:
        """Where partitions begin and end.

        Args:
            places: the partitions.
            since_ms: records that are older do not count.

        Returns:
            The offsets of the first record and behind the last one.

        Raises:
            LogUnavailable: Kafka did not tell in time.
        """
        if not places:
            return {}
        with self._consumer() as consumer:
            found = {place: self._ends(consumer, place) for place in places}
            asked = [TopicPartition(*place, since_ms) for place in places]
            for each in consumer.offsets_for_times(asked, self._timeout):
                if each.error is not None:
                    raise KafkaException(each.error)
                place = Place(each.topic, each.partition)
                low, high = found[place]
                # Where there is nothing so young, it is the end, which is no offset.
                found[place] = (max(low, each.offset) if each.offset >= 0 else high, high)
            return found

    def _ends(self, consumer: Consumer, place: Place) -> tuple[int, int]:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return consumer.get_watermark_offsets(TopicPartition(*place), self._timeout)
            except KafkaException as error:
                if error_of(error).code() not in _PASSING or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)

    @contextmanager
    def _consumer(self) -> Iterator[Consumer]:
        try:
            consumer = self._idle.pop()
        except IndexError:
            consumer = self._new_consumer()
        try:
            yield consumer
        except KafkaException as error:
            consumer.close()
            raise LogUnavailable(in_words(error)) from None
        except BaseException:
            consumer.close()
            raise
        self._idle.append(consumer)
        if self._is_closed:
            self.close()

    def _records(self, consumer: Consumer, begin: int, end: int) -> Iterator[Record]:
        deadline = time.monotonic() + self._timeout
        upto = begin
        while upto < end:
            message = consumer.poll(max(deadline - time.monotonic(), 0))
            if message is None:
                raise LogUnavailable("Kafka does not answer")
            for each in (message, *consumer.consume(_CHUNK, 0)):
                error = each.error()
                if error is not None and error.code() == _NO_GROUP:
                    continue
                if error is not None and error.code() != _AT_END:
                    raise KafkaException(error)
                upto = each.offset() or 0
                if error is None and upto < end:
                    yield record_of(each)
                upto += error is None

    def close(self) -> None:
        """Closes those that are not in use; the others are closed when they are done."""
        self._is_closed = True
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()
