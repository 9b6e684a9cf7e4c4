"""Records to events and back, without a broker: what is written, read, left out, and what counts once."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.config import Config, SourceEntry
from tricast.errors import ConfigError, RemoteProtocolError
from tricast.event import Draft, EventId, TopicSet
from tricast.log import kafka_records
from tricast.log.base import IdempotencyKey
from tricast.log.kafka_history import Bounds
from tricast.log.kafka_keys import Keys
from tricast.log.kafka_records import (
    MARK_HEADER,
    Mark,
    OwnRecords,
    Record,
    entry_of,
    headers_of,
    incarnation_of,
    mark_of,
    marks_of,
)
from tricast.log.kafka_settings import RESERVED, check_settings, settings, transaction_settings
from tricast.log.kafka_sources import SourceRecords, shard_of_source, source_of_shard
from tricast.log.sharded import shard_of
from tricast.log_urls import KafkaUrl, Node

URL = KafkaUrl((Node("one", 9092), Node("::1", 9093)), "events")


def record(key: bytes | None = b"a", value: bytes | None = b"1", **headers: bytes | None) -> Record:
    return Record(7, 1000, key, value, headers)


def source(*, max_event_bytes: int = 1000, **entry: str) -> SourceRecords:
    return SourceRecords(SourceEntry.model_validate({"kafka_topic": "orders", **entry}), 50, max_event_bytes)


# Tricast's own records


@given(
    topic=st.from_regex(r"[a-zä{}]{1,5}(\.[a-z]{1,5}){0,3}", fullmatch=True),
    event_type=st.sampled_from(["message", "order", "ä"]),
    data=st.recursive(st.none() | st.integers(-9, 9) | st.text(), st.lists),
)
def test_an_event_comes_back_as_it_was(topic: str, event_type: str, data: object) -> None:
    draft = Draft(topic, event_type, msgspec.json.encode(data))
    mark = Mark(b"name", b"print", b"attempt", 3, 4)
    written = Record(7, 1000, topic.encode(), draft.data, dict(headers_of(draft, mark)))
    entry = entry_of(written, OwnRecords(255).read(written), 5)
    assert (entry.event.topic, entry.event.type, entry.event.data) == draft
    assert (entry.event.id, entry.ms, entry.mark) == (EventId(5, 8), 1000, mark)


def test_what_is_usual_takes_no_headers() -> None:
    assert headers_of(Draft("a", "message", b"1"), None) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (record(), Draft("a", "message", b"1")),
        (record(value=b"plain text"), Draft("a", "message", b'"plain text"')),
        (record(value=None), Draft("a", "message", b"null")),
        (record(type=b"order"), Draft("a", "order", b"1")),
        (record(type=None), Draft("a", "message", b"1")),
    ],
)
def test_what_other_programs_may_write(given: Record, expected: Draft) -> None:
    assert OwnRecords(255).read(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (record(key=None), "it has no key"),
        (record(key=b"a b"), "dot-separated"),
        (record(key=b"a" * 51), "topic_size"),
        (record(key=b"\xff"), "its key is not UTF-8"),
        (record(value=b"\xff"), "must be UTF-8"),
        (record(type=b"tricast.gap"), "reserved"),
        (record(type=b"\xff"), "its type is not UTF-8"),
    ],
)
def test_what_holds_no_event(given: Record, expected: str) -> None:
    with pytest.raises(RemoteProtocolError, match=expected):
        OwnRecords(50).read(given)


def test_a_record_in_the_partition_of_other_topics_holds_no_event() -> None:
    right = shard_of("a", 3)
    for partition in range(3):
        given = Record(0, 0, b"a", b"1", {}, partition)
        if partition == right:
            assert OwnRecords(50, 3).read(given).topic == "a"
        else:
            with pytest.raises(RemoteProtocolError, match=f"belongs into partition {right}, and it is in {partition}"):
                OwnRecords(50, 3).read(given)


def test_not_more_than_so_many_topics_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_records, "_MAX_TOPICS", 2)
    records = OwnRecords(50)
    for name in (b"a", b"b", b"c", b"a"):
        assert records.read(record(name)).topic == name.decode()
    assert len(records._topics._known) <= 2


@pytest.mark.parametrize("text", [None, b"", b"\xc1", msgspec.msgpack.encode([b"name"])])
def test_what_is_no_mark(text: bytes | None) -> None:
    assert mark_of({MARK_HEADER: text}) is None


def test_incarnations_differ_by_topic_and_by_number_of_shards() -> None:
    found = {incarnation_of(topic_id, salt) for topic_id in ("a", "b") for salt in ("1", "2")}
    assert len(found) == 4
    assert all(1 <= each <= 2**31 for each in found)
    assert incarnation_of("a", "1") in found


# Sources


@pytest.mark.parametrize(
    ("entry", "given", "expected"),
    [
        ({}, record(b"x.y"), Draft("x.y", "message", b"1")),
        ({"topic": "orders-{key}.new"}, record(b"7"), Draft("orders-7.new", "message", b"1")),
        ({"header": "id"}, record(None, id=b"7"), Draft("7", "message", b"1")),
        ({"type": "order"}, record(type=b"ignored"), Draft("a", "order", b"1")),
        ({"type": "order", "type_header": "kind"}, record(kind=b"new"), Draft("a", "new", b"1")),
        ({"type": "order", "type_header": "kind"}, record(), Draft("a", "order", b"1")),
    ],
)
def test_records_of_a_source(entry: dict[str, str], given: Record, expected: Draft) -> None:
    assert source(**entry).read(given) == expected


@pytest.mark.parametrize(
    ("entry", "given", "expected"),
    [
        ({}, record(None), "it has no key"),
        ({"header": "id"}, record(b"a"), "it has no header id"),
        ({"topic": "a.{key}"}, record(b""), "dot-separated"),
    ],
)
def test_records_of_a_source_that_hold_no_event(entry: dict[str, str], given: Record, expected: str) -> None:
    with pytest.raises(RemoteProtocolError, match=expected):
        source(**entry).read(given)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (b"[1, 2, 34]", True),
        (b"[1, 2, 345]", False),
        (b"12 bytes", True),  # as a string in JSON it is longer
        (b"12 bytes?", False),
        (b'""""', True),
        (b'"""""', False),
        (b"\n" * 100, False),
        (None, True),
    ],
)
def test_a_record_of_a_source_may_not_be_longer_than_an_event(value: bytes | None, *, fits: bool) -> None:
    records = source(max_event_bytes=10)
    if fits:
        assert len(records.read(record(value=value)).data) <= 10
    else:
        with pytest.raises(RemoteProtocolError, match=r"longer than publish\.max_event, 10 bytes"):
            records.read(record(value=value))


@pytest.mark.parametrize(
    ("topic", "names", "expected"),
    [
        ("orders.{key}", ["orders.7"], True),
        ("orders.{key}", ["orders.7.paid"], True),
        ("orders.{key}", ["orders"], False),
        ("orders.{key}", ["news", "alerts"], False),
        ("orders.{key}.new", ["orders.7.old"], False),
        ("orders.{key}", ["orders.*"], True),
        ("orders.{key}", ["*.7"], True),
        ("orders.{key}", [">"], True),
        ("orders.{key}", ["orders.>"], True),
        ("orders.{key}", ["news.>", "news.*"], False),
        ("orders.{key}", ["*"], False),
        ("a.b.{key}", ["a.>"], True),
        ("a.b.{key}", ["a.c.>"], False),
        ("x{key}", ["y"], False),
        ("x{key}", ["*"], True),
    ],
)
def test_what_a_source_may_have(topic: str, names: list[str], expected: bool) -> None:
    assert source(topic=topic).may_have(TopicSet(names)) is expected


@given(
    topic=st.sampled_from(["{key}", "a.{key}", "a{key}.b", "a.b.{key}", "{key}.a"]),
    key=st.from_regex(r"[ab]{1,2}(\.[ab]){0,2}", fullmatch=True),
    pattern=st.from_regex(r"([ab]|\*)(\.([ab]|\*)){0,3}(\.>)?|>", fullmatch=True),
)
def test_what_a_source_has_it_may_have(topic: str, key: str, pattern: str) -> None:
    records, topics = source(topic=topic), TopicSet([pattern])
    if records.read(record(key.encode())).topic in topics:
        assert records.may_have(topics)


def test_shards_of_sources() -> None:
    assert shard_of_source(0, 5) == 1005
    assert source_of_shard(1005) == 0
    assert source_of_shard(shard_of_source(2, 999)) == 2


# Keys


def key(name: bytes = b"k") -> IdempotencyKey:
    return IdempotencyKey(name, b"f", 60.0, 2)


def test_records_of_the_first_append_with_a_key_count() -> None:
    keys = Keys(60.0, 10)
    first, second = marks_of(b"k", b"f", b"1", 2), marks_of(b"k", b"f", b"2", 2)
    assert keys.find(key(), 1000) is None
    assert keys.admit(first[0], EventId(1, 1), 1000)
    assert not keys.admit(second[0], EventId(1, 2), 1001)
    used = keys.find(key(), 1000)
    assert used is not None
    assert used.ids is None
    assert keys.admit(first[1], EventId(1, 3), 1000)
    assert not keys.admit(second[1], EventId(1, 4), 1001)
    assert used.ids == [EventId(1, 1), EventId(1, 3)]
    assert (used.fingerprint, used.ms) == (b"f", 1000)


def test_a_record_that_was_sent_twice_counts_once() -> None:
    keys = Keys(60.0, 10)
    first, second = marks_of(b"k", b"f", b"1", 2)
    assert [keys.admit(mark, EventId(1, n), 0) for n, mark in enumerate([first, first, second, first, second], 1)] == [
        True, False, True, False, False,
    ]  # fmt: skip
    used = keys.find(key(), 0)
    assert used is not None
    assert used.ids == [EventId(1, 1), EventId(1, 3)]


def test_a_key_is_forgotten_after_its_window() -> None:
    keys = Keys(60.0, 10)
    (mark,) = marks_of(b"k", b"f", b"1", 1)
    (again,) = marks_of(b"k", b"f", b"2", 1)
    assert keys.admit(mark, EventId(1, 1), 0)
    assert not keys.admit(again, EventId(1, 2), 60_000)
    assert keys.find(key(), 60_000) is not None
    assert keys.find(key(), 60_001) is None
    assert keys.admit(again, EventId(1, 3), 60_001)
    used = keys.find(key(), 60_001)
    assert used is not None
    assert used.ids == [EventId(1, 3)]


def test_the_oldest_keys_are_forgotten() -> None:
    keys = Keys(60.0, 2)
    for name in (b"1", b"2", b"3"):
        assert keys.admit(*marks_of(name, b"f", b"1", 1), EventId(1, 1), 0)
    assert [keys.find(key(name), 0) is not None for name in (b"1", b"2", b"3")] == [False, True, True]


# Bounds


def test_a_history_has_so_many_records() -> None:
    bounds = Bounds(100, length=10, age=60.0)
    assert bounds.start(105, 0) == 100
    assert bounds.start(115, 0) == 105
    assert bounds.start(105, 0) == 105


def test_a_history_is_so_old() -> None:
    bounds = Bounds(0, length=1000, age=60.0)
    for offset in range(10):
        bounds.note(offset, offset * 10_000)
    assert bounds.start(10, 60_000) == 0
    assert bounds.start(10, 71_000) == 2
    assert bounds.start(10, 200_000) == 10
    bounds.note(10, 200_000)
    assert bounds.start(11, 200_000) == 10


@given(steps=st.lists(st.integers(-5, 30), max_size=50), age=st.integers(1, 100), now=st.integers(0, 2000))
def test_nothing_that_is_young_enough_is_left_out_of_a_history(steps: list[int], age: int, now: int) -> None:
    bounds = Bounds(0, length=1000, age=age / 1000)
    times, time = [], 100
    for offset, step in enumerate(steps):
        time += step
        times.append(time)
        bounds.note(offset, time)
    start = bounds.start(len(times), now)
    # A record whose time lies before another one's may stay for as long as that.
    assert all(each < now - age for each in times[:start])


# Settings


def config(**log: Any) -> Config:
    return Config.model_validate({"log": {"url": "kafka://h/events", **log}})


def test_what_clients_are_told() -> None:
    told = settings(URL, config(tls_ca="ca.pem", tls_certificate="own.pem", kafka={"client.id": "x"}).log)
    assert told["bootstrap.servers"] == "one:9092,[::1]:9093"
    assert (told["security.protocol"], told["ssl.ca.location"]) == ("ssl", "ca.pem")
    assert (told["ssl.certificate.location"], told["ssl.key.location"]) == ("own.pem", "own.pem")
    assert told["client.id"] == "x"
    told = settings(URL, config(tls_certificate="own.pem", tls_key="key.pem", reconnect="3s", reconnect_max="1s").log)
    assert (told["security.protocol"], told["ssl.key.location"]) == ("ssl", "key.pem")
    assert "ssl.ca.location" not in told
    assert told["reconnect.backoff.ms"] == told["reconnect.backoff.max.ms"] == 3000
    assert "security.protocol" not in settings(URL, config().log)


def test_a_transaction_may_take_longer_than_a_record() -> None:
    for timeout in (0.1, 5.0, 60.0):
        told = transaction_settings({}, timeout, "name")
        assert told["delivery.timeout.ms"] <= told["transaction.timeout.ms"]


def test_what_cannot_be_set() -> None:
    kafka = dict.fromkeys(RESERVED, "x") | {"error_cb": "x", "linger.ms": "5"}
    wrong = [{"kafka_topic": "events"}, {"kafka_topic": "a"}, {"kafka_topic": "a"}]
    with pytest.raises(ConfigError) as error:
        check_settings(URL, config(kafka=kafka, source=wrong).log)
    keys = {problem.key for problem in error.value.problems}
    assert keys == {f"log.kafka.{name}" for name in [*RESERVED, "error_cb"]} | {
        "log.source.0.kafka_topic",
        "log.source.2.kafka_topic",
    }
    check_settings(URL, config(kafka={"linger.ms": "5"}, source=[{"kafka_topic": "a"}]).log)
