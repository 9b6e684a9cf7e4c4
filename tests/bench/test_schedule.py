"""The feed: when its events are due, where they go, and how they are numbered."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.bench.schedule import SMALLEST_DATA, Feed

FEEDS = st.builds(
    Feed,
    run=st.just("cafe0123"),
    topic=st.just("bench"),
    topics=st.integers(1, 5),
    publishers=st.integers(1, 5),
    rate=st.floats(0.5, 5000),
    size=st.integers(SMALLEST_DATA, 300),
    seconds=st.floats(0.01, 0.5),
)


def feed(**changes) -> Feed:
    usual = {"run": "r", "topic": "t", "topics": 1, "publishers": 1, "rate": 10.0, "size": 160, "seconds": 2.0}
    return Feed(**usual | changes)


@given(FEEDS)
def test_every_event_has_one_publisher(feed):
    assert sum(map(feed.events_of, range(feed.publishers))) == feed.events


@given(FEEDS)
def test_the_numbers_in_a_topic_have_no_hole(feed):
    for publisher in range(feed.publishers):
        count = feed.events_of(publisher)
        for topic in range(feed.topics):
            numbers = [feed.number_in_topic(n) for n in range(count) if feed.topic_of(publisher, n) == topic]
            assert numbers == list(range(feed.events_in_topic(publisher, count, topic)))


@given(FEEDS, st.floats(0, 1))
def test_what_is_due_is_what_has_its_time_behind_it(feed, part):
    for publisher in range(feed.publishers):
        times = [feed.due_at(publisher, number) for number in range(feed.events_of(publisher))]
        assert times == sorted(times)
        elapsed = round(part * feed.seconds * 1e9)
        assert feed.due_until(publisher, elapsed) == sum(due <= elapsed for due in times)
        assert feed.warm_up_of(publisher, elapsed) == sum(due < elapsed for due in times)
        if times:
            assert feed.due_until(publisher, times[-1]) == len(times)


@given(FEEDS)
def test_the_feed_has_the_rate_that_was_asked_for(feed):
    counts = [(publisher, feed.events_of(publisher)) for publisher in range(feed.publishers)]
    last = max(feed.due_at(publisher, count - 1) for publisher, count in counts if count)
    a_round = feed.publishers * feed.batch
    assert (feed.events - 2 * a_round) / feed.rate * 1e9 <= last <= (feed.events + a_round) / feed.rate * 1e9


@given(FEEDS, st.integers(0, 10**6), st.integers(0, 2**62))
def test_data_is_json_of_the_size_that_was_asked_for(feed, number, at):
    data = feed.data(feed.publishers - 1, number, at)
    assert len(data) == feed.size
    decoded = json.loads(data)
    assert decoded.pop("text").strip("x") == ""
    expected = {"bench": f"cafe0123-{feed.publishers - 1}", "n": feed.number_in_topic(number), "at": at}
    assert decoded == expected


def test_topics_have_names():
    assert feed().topic_name(0) == "t"
    assert [feed(topics=2).topic_name(index) for index in range(2)] == ["t.1", "t.2"]


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({"rate": 10.0}, 1),
        ({"rate": 200.0}, 1),
        ({"rate": 2000.0}, 20),
        ({"rate": 2000.0, "publishers": 10}, 1),
        ({"rate": 1e6}, 500),
        ({"rate": 1e6, "size": 200_000}, 2),
        ({"rate": 1e6, "size": 600_000}, 1),
    ],
)
def test_batches_keep_requests_few_and_small(changes, batch):
    assert feed(**changes).batch == batch


def test_a_batch_is_due_together():
    quick = feed(rate=2000.0)
    assert {quick.due_at(0, number) for number in range(20)} == {0}
    assert quick.due_at(0, 20) == 10_000_000
