"""What librdkafka's clients tell of topics and of trouble, without a Kafka."""

from concurrent.futures import Future
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from serving import capturing_logger
from structlog.testing import LogCapture

from tricast.config import Config
from tricast.errors import LogUnavailable
from tricast.log.kafka_clients import Clients, Seen, Topic, Watcher
from tricast.log.kafka_threads import Place
from tricast.log_urls import KafkaUrl, Node

URL = KafkaUrl((Node("one", 9092), Node("two", 9092)), "events")
PLACE = Place("events", 0)


class FakeAdmin:
    """Describes topics with what it was made with."""

    def __init__(self, **topics: Any) -> None:
        self._topics = topics
        self.asked = 0

    def describe_topics(self, topics: Any, request_timeout: float) -> dict[str, Future[Any]]:
        futures: dict[str, Future[Any]] = {}
        for name, found in self._topics.items():
            future = futures[name] = Future()
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)
        return futures

    def poll(self, timeout: float) -> int:
        self.asked += 1
        return 0


def described(*leaders: object) -> Any:
    partitions = [SimpleNamespace(id=number, leader=leader) for number, leader in enumerate(leaders)]
    return SimpleNamespace(topic_id="an id", partitions=partitions)


def clients(admin: FakeAdmin | None = None) -> Clients:
    config = Config.model_validate({"log": {"url": "kafka://one/events", "shards": 3}})
    made = Clients(URL, config.log, capturing_logger(LogCapture()))
    made._admin = admin  # type: ignore[assignment]
    return made


def test_topics_are_described() -> None:
    assert clients(FakeAdmin(events=described(1, 2))).describe(["events"], 1.0) == {"events": Topic("an id", 2)}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (described(1, None), "partition 1 of events has no leader"),
        (KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)), "--create --topic events --partitions 3"),
        (KafkaException(KafkaError(KafkaError._TIMED_OUT, "late")), "one:9092, two:9092: late"),
    ],
)
def test_topics_that_cannot_be_used(found: Any, expected: str) -> None:
    with pytest.raises(LogUnavailable, match=expected):
        clients(FakeAdmin(events=found)).describe(["events"], 1.0)


def test_what_is_told_of_trouble() -> None:
    made = clients(FakeAdmin(events=KafkaException(KafkaError(KafkaError._TIMED_OUT, "late"))))
    told: list[str] = []
    made._hear(KafkaError(KafkaError._AUTHENTICATION, "before somebody listens"))
    made.tell = told.append
    made._why = ""
    made._hear(KafkaError(KafkaError._ALL_BROKERS_DOWN, "all are down"))
    made._hear(KafkaError(KafkaError._TRANSPORT, "refused"))
    made._hear(KafkaError(KafkaError._ALL_BROKERS_DOWN, "all are down"))
    made._hear(KafkaError(KafkaError.UNKNOWN, "does not matter"))
    made._hear(KafkaError(KafkaError.UNKNOWN, "is fatal", fatal=True))
    assert told == ["all are down", "refused", "is fatal"]
    with pytest.raises(LogUnavailable, match="one:9092, two:9092: is fatal"):
        made.describe(["events"], 1.0)


def test_what_librdkafka_says_is_for_who_looks_closely() -> None:
    records = LogCapture()
    config = Config.model_validate({"log": {"url": "kafka://one/events", "kafka": {"debug": "conf"}}})
    made = Clients(KafkaUrl((Node("127.0.0.1", 9),), "events"), config.log, capturing_logger(records))
    producer = made.producer()
    producer.poll(0.1)
    producer.close()
    assert {(entry["log_level"], entry["event"]) for entry in records.entries} == {("debug", "librdkafka")}


def test_a_watcher_looks_until_something_is_seen() -> None:
    looks: list[Seen | LogUnavailable] = [LogUnavailable("no"), LogUnavailable("still no"), Seen({}, {}), Seen({}, {})]
    asked, told = [], []

    def look(places: set[Place]) -> Seen:
        asked.append(set(places))
        found = looks.pop(0)
        if not looks:
            watcher.stop()
        if isinstance(found, LogUnavailable):
            raise found
        watcher.look()
        return found

    def post(function: Any, *arguments: Any) -> None:
        function(*arguments)

    watcher = Watcher(
        look, pauses=(0.001, 0.002), randomness=Random(1), post=post, seen=told.append, failed=told.append
    )
    watcher.look([PLACE])
    watcher.run()
    assert asked == [{PLACE}, {PLACE}, {PLACE}, set()]
    assert told == ["no", "still no", Seen({}, {}), Seen({}, {})]
