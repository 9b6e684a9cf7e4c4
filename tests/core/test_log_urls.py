"""URLs of logs: what each of them means, and that what is none is not repeated."""

import re

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


ANY = 'Input should be "memory:"'
HOST = "Input should be a URL with a host, "
HOSTS = "Input should be a URL with a host on each side of a comma, and before each port, "
PORT = "Input should be a URL with a port from 1 to 65535"
VISIBLE = "Input should be a URL with visible ASCII characters only"
BRACKETS = "Input should be a URL with brackets around an IPv6 address"
NUMBER = "Input should be a URL with the number of a database, or nothing, behind the last slash, "
NAME = "Input should be a URL with the name by which the sentinels know the primary, "
TOPIC = "Input should be a URL with the name of one topic, "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ANY),
        ("memory", ANY),
        ("memory:x", ANY),
        ("file:///secret", ANY),
        ("https://secret@host", ANY),
        ("redis+other://a", ANY),
        ("redisss://a", ANY),
        ("sqlite:", "Input should be a URL with three slashes before the path"),
        ("sqlite://secret", "Input should be a URL with three slashes before the path"),
        ("sqlite:///", "Input should be a URL with the path of a file"),
        ("sqlite:////", "Input should be a URL with the path of a file"),
        ("sqlite:///:memory:", 'Input should be "memory:", for a log in memory'),
        ("redis:secret", 'Input should be a URL with "//" before the host, '),
        ("redis://", HOST),
        ("redis:///0", HOST),
        ("redis://secret:secret@", HOST),
        ("kafka:///secret", HOST),
        ("redis+cluster://a,", HOSTS),
        ("redis://:6379", HOSTS),
        ("redis://a,b", "Input should be a URL with one host; "),  # which of them?
        ("redis://host:secret", PORT),
        ("redis://host:70000", PORT),
        ("redis://host:0", PORT),
        ("redis://::1", PORT),
        ("redis://[::1", BRACKETS),
        ("redis://:sec[ret@host", BRACKETS),
        ("redis://:sec/ret@host", "Input should be a URL with /, ? and # in a password as %2F, %3F and %23, "),
        ("redis://:sec#ret@host", "Input should be a URL with /, ? and # in a password as %2F, %3F and %23, "),
        ("redis://host/secret", NUMBER),
        ("redis://host/1/2", NUMBER),
        ("redis://host/-1", NUMBER),
        ("redis://host/100000", NUMBER),
        ("redis+sentinel://a/name/secret", NUMBER),
        ("redis://host?secret=1", 'Input should be a URL with nothing from "?" on: '),
        ("redis://host#secret", 'Input should be a URL with nothing from "#" on, '),
        ("redis://secret@ho st", VISIBLE),
        ("redis://h\u00f6st", VISIBLE),
        ("redis://host\n", VISIBLE),
        ("redis+cluster://a/1", "Input should be a URL with nothing behind the hosts: "),
        ("redis+sentinel://a", NAME),
        ("redis+sentinel://a//1", NAME),
        ("kafka://a", "Input should be a URL with the name of a topic behind the hosts, "),
        ("kafka://a/", "Input should be a URL with the name of a topic behind the hosts, "),
        ("kafka://user:secret@a/events", "Input should be a URL with no user and no password: "),
        ("kafka://a/..", TOPIC),
        ("kafka://a/b/c", TOPIC),
        ("kafka://a/b%20c", TOPIC),
        ("kafka://a/" + "x" * 250, TOPIC),
    ],
)
def test_what_is_no_url_of_a_log(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}") as caught:
        parse_log_url(text)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("text", ["redis://", "redis+cluster://", "redis+sentinel://", "kafka://"])
def test_the_example_that_is_given_is_right(text: str) -> None:
    with pytest.raises(ValueError, match="as in") as caught:
        parse_log_url(text)
    example = str(caught.value).partition('as in "')[2].removesuffix('"')
    assert not isinstance(parse_log_url(example), str)


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
