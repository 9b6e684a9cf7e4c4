"""The threads of the log in Kafka, with clients that do what a real Kafka does too rarely."""

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from log.worlds import Clock

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import Draft
from tricast.log import kafka_threads
from tricast.log.kafka_records import OwnRecords, position
from tricast.log.kafka_threads import (
    History,
    Job,
    Outcome,
    Output,
    Place,
    Publisher,
    Reader,
    Transactions,
    failure_of,
    in_words,
)

PLACE = Place("events", 0)
_MESSAGE = Message("events", 0, 7)
AUTHENTICATION, FATAL, TIMED_OUT = KafkaError._AUTHENTICATION, KafkaError._FATAL, KafkaError._TIMED_OUT


def failure(code: int, **facts: bool) -> KafkaException:
    return KafkaException(KafkaError(code, "words", **facts))


def record(offset: int) -> Message:
    return Message("events", 0, offset, b"a", b"1", timestamp=(1, 1000))


def problem(code: int, topic: str | None = "events") -> Message:
    return Message(topic, 0, 0, error=KafkaError(code, "words"))


class FakeConsumer:
    """Gives what it was made with, one poll at a time, and then nothing."""

    def __init__(self, *polls: Sequence[Message]) -> None:
        self._polls = list(polls)
        self._rest: list[Message] = []
        self.assigned: list[TopicPartition] = []
        #: What asking for offsets fails with, the first one first.
        self.failures: list[KafkaException] = []
        self.is_closed = False

    def poll(self, timeout: float) -> Message | None:
        if not self._polls:
            return None
        first, *self._rest = self._polls.pop(0)
        return first

    def consume(self, count: int, timeout: float) -> list[Message]:
        given, self._rest = self._rest[:count], self._rest[count:]
        return given

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = partitions

    def unassign(self) -> None:
        self.assigned = []

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = 1.0, cached: bool = False
    ) -> tuple[int, int]:
        if self.failures:
            raise self.failures.pop(0)
        return 0, 100

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[Any]:
        error = KafkaError(KafkaError.REQUEST_TIMED_OUT, "words")
        return [SimpleNamespace(topic=each.topic, partition=each.partition, error=error) for each in partitions]

    def close(self) -> None:
        self.is_closed = True


class Heard:
    """Takes what a reader says, in the thread that says it."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def deliver(self, found: Any) -> None:
        self.said.append({place: (len(each.entries), each.next_offset, each.lag) for place, each in found.items()})

    def lost(self, place: Place, why: str) -> None:
        self.said.append((place, why))

    def doubted(self, why: str) -> None:
        self.said.append(why)

    def ended(self, failure: str) -> None:
        self.said.append(f"ended: {failure}")


def post(function: Callable[..., None], *arguments: object) -> None:
    function(*arguments)


def test_a_fake_consumer_gives_what_it_was_made_with() -> None:
    consumer = FakeConsumer([record(0), record(1), record(2)])
    first = consumer.poll(1)
    assert first is not None
    assert first.offset() == 0
    assert [each.offset() for each in consumer.consume(1, 0)] == [1]
    assert [each.offset() for each in consumer.consume(9, 0)] == [2]
    assert consumer.poll(1) is None


# The reader


def read(*polls: Sequence[Message]) -> list[Any]:
    """What a reader says of these polls, a turn for each."""
    heard = Heard()
    reader = Reader(FakeConsumer(*polls), {"events": OwnRecords(50)}, post, heard)  # type: ignore[arg-type]
    reader.move({PLACE: position(5, 0)})
    for _ in polls:
        reader._turn()
        reader.taken()
    return heard.said


def test_what_comes_is_handed_over_by_partition() -> None:
    assert read([record(0), record(2)], [record(3)]) == [{PLACE: (2, 3, 97)}, {PLACE: (1, 4, 96)}]


def test_a_turn_is_not_longer_than_others_should_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_threads, "_MAX_RECORDS", 3)
    monkeypatch.setattr(kafka_threads, "_CHUNK", 2)
    assert read([record(0), record(1), record(2), record(3)]) == [{PLACE: (3, 3, 97)}]
    monkeypatch.setattr(kafka_threads, "_MAX_BYTES", 1)
    assert read([record(0), record(1), record(2), record(3)]) == [{PLACE: (1, 1, 99)}]


def test_errors_that_name_no_partition() -> None:
    assert read([problem(KafkaError._TRANSPORT, None)]) == ["words"]
    assert read([problem(KafkaError.GROUP_AUTHORIZATION_FAILED, None)]) == []


def test_a_partition_that_cannot_be_read_is_told_of_once_until_it_is_moved() -> None:
    assert read([problem(KafkaError._AUTO_OFFSET_RESET)], [problem(KafkaError._AUTO_OFFSET_RESET)]) == [(PLACE, "")]
    assert read([problem(KafkaError.TOPIC_AUTHORIZATION_FAILED)]) == [(PLACE, "words")]


def test_nothing_comes_from_a_partition_that_was_told_of_before_it_is_moved() -> None:
    passing = problem(KafkaError.UNKNOWN_TOPIC_OR_PART)
    assert read([record(0), passing, record(1)], [record(2)]) == [{PLACE: (1, 1, 99)}, (PLACE, "words")]


def test_a_reader_that_fails_says_so() -> None:
    heard = Heard()
    consumer = FakeConsumer()
    reader = Reader(consumer, {}, post, heard)  # type: ignore[arg-type]

    def fail(timeout: float) -> None:
        raise failure(FATAL)

    consumer.poll = fail  # type: ignore[assignment, method-assign]
    reader.run()
    assert heard.said == ["ended: words"]
    assert consumer.is_closed


# The publishers


class FakeProducer:
    """Fails with what it was made with, each call by its name, the first one first; else it does everything at once."""

    def __init__(self, delivers: KafkaError | None = None, **failures: list[Exception]) -> None:
        self._delivers = delivers
        self._failures = failures
        self._undelivered: list[Callable[[KafkaError | None, Message], None]] = []
        self.called: list[str] = []
        #: Is set when somebody polls for nothing.
        self.is_idle = threading.Event()

    def _call(self, name: str) -> None:
        self.called.append(name)
        failures = self._failures.get(name)
        if failures:
            raise failures.pop(0)

    def produce(self, *_: object, on_delivery: Callable[[KafkaError | None, Message], None], headers: object) -> None:
        self._call("produce")
        self._undelivered.append(on_delivery)

    def _deliver(self, error: KafkaError | None) -> None:
        undelivered, self._undelivered = self._undelivered, []
        for each in undelivered:
            each(error, _MESSAGE)

    def poll(self, timeout: float) -> int:
        if not self._undelivered:
            self.is_idle.set()
        self._call("poll")
        self._deliver(self._delivers)
        return 0

    def purge(self) -> None:
        self._call("purge")
        self._delivers = KafkaError(KafkaError._PURGE_QUEUE, "purged")

    def init_transactions(self, timeout: float) -> None:
        self._call("init_transactions")

    def begin_transaction(self) -> None:
        self._call("begin_transaction")

    def commit_transaction(self, timeout: float) -> None:
        self._deliver(self._delivers)
        self._call("commit_transaction")

    def abort_transaction(self, timeout: float) -> None:
        self._call("abort_transaction")


class Outcomes:
    """Jobs, and what became of them."""

    def __init__(self) -> None:
        self.found: list[Outcome] = []

    def job(self, count: int = 1) -> Job:
        return Job([Output(PLACE, Draft("a", "message", b"1"), None)] * count, self.found.append)

    @property
    def in_words(self) -> list[str]:
        return [str(each) if isinstance(each, Exception) else "written" for each in self.found]


def test_a_fake_producer_fails_as_it_was_told() -> None:
    producer = FakeProducer(poll=[failure(FATAL)])
    with pytest.raises(KafkaException):
        producer.poll(0)
    assert producer.poll(0) == 0
    assert producer.called == ["poll", "poll"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (failure(KafkaError._STATE), "words"),
        (failure(KafkaError.MSG_SIZE_TOO_LARGE), "larger"),
        (BufferError("full"), "too many publishes are waiting"),
    ],
)
def test_a_record_that_is_not_taken(raised: Exception, expected: str) -> None:
    outcomes = Outcomes()
    producer = FakeProducer(produce=[raised])
    Publisher(lambda: producer, post).submit(outcomes.job())  # type: ignore[arg-type, return-value]
    assert expected in outcomes.in_words[0]


def test_a_producer_that_does_not_work_any_more_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_threads, "_RENEWAL_SECONDS", 0)
    outcomes = Outcomes()
    broken = FakeProducer(poll=[failure(FATAL, fatal=True)])
    new: list[Any] = [broken, LogUnavailable("no certificate"), FakeProducer()]

    def new_producer() -> Any:
        made = new.pop(0)
        if isinstance(made, Exception):
            raise made
        return made

    publisher = Publisher(new_producer, post)
    publisher.submit(outcomes.job())
    publisher._turn()
    publisher.submit(outcomes.job())
    assert outcomes.in_words == ["the log is not available: words"] * 2
    publisher._turn()  # there is no other one yet
    publisher.submit(outcomes.job())
    publisher._turn()
    publisher.submit(outcomes.job())
    publisher._turn()
    assert outcomes.in_words[2:] == ["the log is not available: words", "written"]


def test_what_is_not_written_when_the_publisher_ends_is_told() -> None:
    outcomes = Outcomes()
    publisher = Publisher(FakeProducer, post)  # type: ignore[arg-type, return-value]
    publisher.submit(outcomes.job())
    publisher.stop()
    publisher.run()
    assert outcomes.in_words == ["the log is not available: purged"]


def write(*producers: Any, jobs: int = 1) -> tuple[list[str], list[str]]:
    """What becomes of jobs in a transaction, and what the producers are asked for, one after the other."""
    outcomes = Outcomes()
    unused = list(producers)

    def new_producer() -> Any:
        made = unused.pop(0)
        if isinstance(made, Exception):
            raise made
        return made

    transactions = Transactions(new_producer, 1.0, post)
    for _ in range(jobs):
        transactions.submit(outcomes.job(2))
    transactions.stop()
    transactions.run()
    called = [name for each in producers if isinstance(each, FakeProducer) for name in each.called]
    return outcomes.in_words, called


def test_batches_that_wait_are_one_transaction() -> None:
    words, called = write(FakeProducer(), jobs=2)
    assert words == ["written", "written"]
    assert called == ["init_transactions", "begin_transaction", *["produce"] * 4, "commit_transaction"]


def test_a_transaction_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_threads, "_MAX_GROUP_DRAFTS", 4)
    words, called = write(FakeProducer(), jobs=3)
    assert words == ["written"] * 3
    assert called.count("commit_transaction") == 2


@pytest.mark.parametrize("first", [LogUnavailable("words"), FakeProducer(init_transactions=[failure(TIMED_OUT)])])
def test_a_producer_of_batches_cannot_be_had(first: Any) -> None:
    words, _ = write(first)
    assert words == ["the log is not available: words"]


def test_a_batch_that_fails_is_taken_back() -> None:
    words, called = write(FakeProducer(produce=[failure(KafkaError._STATE)]))
    assert words == ["the log is not available: words"]
    assert called[-1] == "abort_transaction"
    words, called = write(FakeProducer(produce=[BufferError("full")]))
    assert words == ["the log is not available: too many publishes are waiting for Kafka"]


def test_a_batch_that_nobody_waits_for_is_not_written() -> None:
    outcomes = Outcomes()
    producer = FakeProducer()
    transactions = Transactions(lambda: producer, 1.0, post)  # type: ignore[arg-type, return-value]
    jobs = [outcomes.job(2) for _ in range(3)]
    jobs[1].is_given_up = True
    for job in jobs:
        transactions.submit(job)
    transactions.stop()
    transactions.run()
    assert outcomes.in_words == ["written", "written"]
    assert producer.called.count("produce") == 4


def test_a_batch_that_is_too_large_fails_alone() -> None:
    large = FakeProducer(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), commit_transaction=[failure(KafkaError._FAIL)])
    again = FakeProducer(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), commit_transaction=[failure(KafkaError._FAIL)])
    words, _ = write(large, again, FakeProducer(), jobs=2)
    assert "larger" in words[0]
    assert words[1] == "written"


def test_a_commit_that_takes_too_long_is_tried_until_it_is_known() -> None:
    late = failure(TIMED_OUT, retriable=True)
    producer = FakeProducer(commit_transaction=[late, late])
    outcomes = Outcomes()
    transactions = Transactions(lambda: producer, 1.0, post)  # type: ignore[arg-type, return-value]
    transactions._write([outcomes.job()])
    transactions._write([outcomes.job()])
    assert outcomes.in_words == ["the log is not available: words", "written"]
    assert producer.called.count("commit_transaction") == 4
    assert producer.called.count("init_transactions") == 1


def test_a_commit_that_fails_in_the_end() -> None:
    late, final = failure(TIMED_OUT, retriable=True), failure(KafkaError._FENCED)
    producer = FakeProducer(commit_transaction=[late, final], abort_transaction=[failure(KafkaError._STATE)])
    words, called = write(producer)
    assert words == ["the log is not available: words"]
    assert called[-2:] == ["abort_transaction", "purge"]


def test_what_failed_in_words() -> None:
    assert in_words(None) == "unknown error"
    assert isinstance(failure_of(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)), RemoteProtocolError)
    assert isinstance(failure_of(None), LogUnavailable)


# History


def history(*polls: Sequence[Message]) -> tuple[History, FakeConsumer]:
    consumer = FakeConsumer(*polls)
    return History(lambda: consumer, 0.1), consumer  # type: ignore[arg-type, return-value]


def test_a_history_passes_over_what_it_need_not_know() -> None:
    reader, consumer = history(
        [problem(KafkaError.GROUP_AUTHORIZATION_FAILED, None)], [record(0), record(1), record(2)]
    )
    found = reader.read(PLACE, 0, 2, lambda first, records: (first, [each.offset for each in records]))
    assert found == (0, [0, 1])
    assert consumer.is_closed


def test_what_one_read_leaves_behind_is_not_for_the_next_one() -> None:
    made: list[FakeConsumer] = []

    def new_consumer() -> Any:
        made.append(FakeConsumer([record(0), record(1)]))
        return made[-1]

    reader = History(new_consumer, 0.1)
    for _ in range(2):
        reader.read(PLACE, 0, 2, lambda _, records: next(records))
    looking, *reading = made
    assert [(len(each.assigned), each.is_closed) for each in reading] == [(1, True)] * 2
    assert not looking.is_closed


@pytest.mark.parametrize(
    ("polls", "expected"), [([], "does not answer"), ([[problem(KafkaError._TRANSPORT)]], "words")]
)
def test_a_history_that_cannot_be_read(polls: list[list[Message]], expected: str) -> None:
    reader, consumer = history(*polls)
    with pytest.raises(LogUnavailable, match=expected):
        reader.read(PLACE, 0, 2, lambda first, records: list(records))
    assert consumer.is_closed


def test_a_time_that_cannot_be_looked_up() -> None:
    reader, _ = history()
    with pytest.raises(LogUnavailable, match="words"):
        reader.bounds([PLACE], 0)


def test_a_partition_that_is_getting_a_leader_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def pass_by(seconds: float) -> None:
        clock.seconds += seconds

    monkeypatch.setattr(kafka_threads, "time", SimpleNamespace(monotonic=clock, sleep=pass_by))
    passing = failure(KafkaError.NOT_LEADER_FOR_PARTITION)
    reader, consumer = history()
    consumer.failures = [passing]
    assert reader.end(PLACE) == 100
    consumer.failures = [passing] * 10  # for longer than it may take
    with pytest.raises(LogUnavailable, match="words"):
        reader.end(PLACE)
    reader, consumer = history()
    consumer.failures = [failure(KafkaError._TRANSPORT)]
    with pytest.raises(LogUnavailable, match="words"):
        reader.end(PLACE)
    assert consumer.failures == []


def test_who_is_looking_when_it_is_closed_is_closed_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, consumer = history()
    look = consumer.get_watermark_offsets

    def close_and_look(*arguments: Any) -> tuple[int, int]:
        reader.close()
        return look(*arguments)

    monkeypatch.setattr(consumer, "get_watermark_offsets", close_and_look)
    assert reader.end(PLACE) == 100
    assert consumer.is_closed
