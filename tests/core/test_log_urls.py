"""URLs of logs: what each of them means, and that what is none is not repeated."""

import pytest

from tricast.log_urls import CLUSTER, SENTINEL, KafkaUrl, LogUrl, Node, RedisUrl, parse_log_url


def redis(*nodes: tuple[str, int], topology: str = "", **fields: object) -> RedisUrl:
    url = RedisUrl(
        nodes=tuple(Node(*node) for node in nodes),
        topology=topology,
        has_tls=False,
        username="",
        password="",
        name="",
        database=0,
    )
    return url._replace(**fields)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("memory:", "memory:"),
        ("sqlite:///a.db", "a.db"),
        ("sqlite:////var/lib/a.db", "/var/lib/a.db"),
        ("redis://host", redis(("host", 6379))),
        ("redis://host/", redis(("host", 6379))),
        ("redis://HOST:1/15", redis(("host", 1), database=15)),
        ("redis://[::1]:7000", redis(("::1", 7000))),
        ("rediss://host", redis(("host", 6379), has_tls=True)),
        ("redis://:p%40ss%2F@host", redis(("host", 6379), password="p@ss/")),
        ("redis://us%3Aer:a:b@host", redis(("host", 6379), username="us:er", password="a:b")),
        ("redis://user@host", redis(("host", 6379), username="user")),
        ("redis+cluster://a,b:7,[::2]", redis(("a", 6379), ("b", 7), ("::2", 6379), topology=CLUSTER)),
        ("rediss+cluster://u:p@a", redis(("a", 6379), topology=CLUSTER, has_tls=True, username="u", password="p")),
        ("redis+sentinel://a,b:1/name", redis(("a", 26379), ("b", 1), topology=SENTINEL, name="name")),
        (
            "rediss+sentinel://a/na%20me/3",
            redis(("a", 26379), topology=SENTINEL, has_tls=True, name="na me", database=3),
        ),
        ("kafka://a/events", KafkaUrl((Node("a", 9092),), "events")),
        ("kafka://a:1,[::1]:2/my.events_1-x", KafkaUrl((Node("a", 1), Node("::1", 2)), "my.events_1-x")),
    ],
)
def test_urls(text: str, url: LogUrl) -> None:
    assert parse_log_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "memory",
        "memory:x",
        "sqlite:",
        "sqlite:///",
        "sqlite:////",
        "sqlite:///:memory:",
        "sqlite://path",
        "file:///secret",
        "redis:secret",
        "redis://",
        "redis:///0",
        "redis://secret:secret@",
        "redis://a,b",  # which of them?
        "redis://host:secret",
        "redis://host:70000",
        "redis://[::1",
        "redis://host/secret",
        "redis://host/1/2",
        "redis://host/-1",
        "redis://host/100000",
        "redis://host?secret=1",
        "redis://host#secret",
        "redis://secret@ho st",
        "redis://h\u00f6st",
        "redis://host\n",
        "redis+cluster://a/1",
        "redis+cluster://a,",
        "redis+sentinel://a",
        "redis+sentinel://a//1",
        "redis+sentinel://a/name/secret",
        "redis+other://a",
        "redisss://a",
        "kafka://a",
        "kafka://a/",
        "kafka:///secret",
        "kafka://user:secret@a/events",
        "kafka://a/..",
        "kafka://a/b/c",
        "kafka://a/b%20c",
        "kafka://a/" + "x" * 250,
        "https://secret@host",
    ],
)
def test_what_is_no_url_of_a_log(text: str) -> None:
    with pytest.raises(ValueError, match="Input should be") as caught:
        parse_log_url(text)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("redis://user:hidden@HOST", "redis://host:6379/0"),
        ("rediss://:hidden@[::1]:1/3", "rediss://[::1]:1/3"),
        ("rediss+cluster://user:hidden@a,b:7", "rediss+cluster://a:6379,b:7"),
        ("redis+sentinel://:hidden@a,b:1/na%20me/3", "redis+sentinel://a:26379,b:1/na%20me/3"),
        ("kafka://a,[::1]:2/my.events", "kafka://a:9092,[::1]:2/my.events"),
    ],
)
def test_a_url_is_shown_without_user_and_password(text: str, written: str) -> None:
    url = parse_log_url(text)
    assert str(url) == written
    assert str(parse_log_url(written)) == written


def test_nodes_are_written_as_in_urls() -> None:
    assert [str(Node("host", 1)), str(Node("::1", 2))] == ["host:1", "[::1]:2"]
