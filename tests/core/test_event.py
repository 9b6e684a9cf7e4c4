"""Names, patterns, ids and data: what each of them may be."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tricast.errors import LimitExceeded, RemoteProtocolError
from tricast.event import (
    BEGINNING,
    Event,
    EventId,
    Position,
    ShardedId,
    TopicSet,
    check_pattern,
    check_topic,
    check_type,
    covers,
    data_as_json,
    is_pattern,
    is_token,
    is_valid_pattern,
    join,
    parse_position,
    seen_in,
    shorten,
    whole,
)

# Ids


def test_ids_are_ordered_and_written_as_they_are_read() -> None:
    ids = [BEGINNING, EventId(9, 10), EventId(10, 2), EventId(10, 10), EventId(10**18, 0)]
    assert sorted(ids) == ids
    assert [EventId.parse(str(known)) for known in ids] == ids
    assert str(EventId(1795360951079, 3)) == "1795360951079-3"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1-",
        "-1",
        "1-2-3",
        " 1-2",
        "1-2 ",
        "1-2\n",
        "+1-2",
        "-1-2",
        "1.0-2",
        "0x1-2",
        "1_0-2",
        "\u0661-\u0662",
        "1" * 20 + "-0",
        "0-" + "1" * 20,
        "$",
        "\ud800-0",
    ],
)
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="last_id must be") as caught:
        EventId.parse(text)
    assert (caught.value.code, caught.value.status) == ("bad-last-id", 400)
    assert caught.value.detail.isascii()


# Positions in shards


def at(**parts: int) -> ShardedId:
    """As in ``_2=5``: in shard 2, at 1-5."""
    return ShardedId({int(name[1:]): EventId(1, counter) for name, counter in parts.items()})


@pytest.mark.parametrize("text", ["0.1-2", "0.1795360951079-0_7.0-0", "255.1-1", "3.5-0_1000.9-9"])
def test_positions_in_shards_are_written_as_they_are_read(text: str) -> None:
    position = parse_position(text)
    assert isinstance(position, ShardedId)
    assert str(position) == text
    assert repr(position) == f"ShardedId({text})"
    assert parse_position(str(position)) == position


def test_a_position_is_one_in_shards_or_one() -> None:
    assert parse_position("5-7") == EventId(5, 7)
    assert parse_position("2.5-7") == ShardedId({2: EventId(5, 7)})
    assert parse_position("9.1-1_2.1-1") == at(_2=1, _9=1)


@pytest.mark.parametrize(
    "text",
    [
        ".",
        "0.",
        "0.1",
        ".1-2",
        "0.1-2_",
        "_0.1-2",
        "0.1-2__1.1-2",
        "0.1-2_1-2",
        "0.1-2 1.1-2",
        "0.1-2\n",
        "-1.1-2",
        "0.1-2,1.1-2",
        "1234567890.1-2",
        "0." + "1" * 20 + "-0",
        "\u0661.1-2",
        "0.0.1-2",
    ],
)
def test_what_is_no_position(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="last_id must be") as caught:
        parse_position(text)
    assert (caught.value.code, caught.value.status) == ("bad-last-id", 400)
    assert caught.value.detail.isascii()


@pytest.mark.parametrize(
    ("one", "other", "is_behind", "is_before"),
    [
        (at(_0=1), at(_0=1), True, True),
        (at(_0=2), at(_0=1), True, False),
        (at(_0=1, _1=1), at(_0=1), True, False),
        (at(_0=2, _1=1), at(_0=1, _1=1), True, False),
        (at(_0=2, _1=1), at(_0=1, _1=2), False, False),
        (at(_0=2), at(_1=1), False, False),
        (at(_0=2), at(_0=1, _1=1), False, False),
        (at(_0=1), BEGINNING, True, False),
        (at(_0=0), BEGINNING, True, False),
        (at(_0=1), EventId(0, 1), False, False),
    ],
)
def test_one_position_is_at_or_behind_another_in_every_shard_or_it_is_not(
    one: Position, other: Position, is_behind: bool, is_before: bool
) -> None:
    is_equal = is_behind and is_before
    assert ((one >= other), (one <= other), (one == other)) == (is_behind, is_before, is_equal)
    assert ((other <= one), (other >= one), (other == one)) == (is_behind, is_before, is_equal)
    assert ((one > other), (one < other), (one != other)) == (is_behind and not is_equal, False, not is_equal)
    assert ((other < one), (other > one)) == (is_behind and not is_equal, False)


def test_what_is_shown_of_a_position_does_not_make_it_another() -> None:
    position = at(_0=1, _1=2)
    shown = seen_in(position, (1,))
    assert str(shown) == "1.1-2"
    assert shown == position
    assert len({shown, position}) == 1
    assert str(whole(shown)) == "0.1-1_1.1-2"


def test_a_position_that_does_not_tell_of_all_that_matters_is_shown_whole() -> None:
    assert str(seen_in(at(_0=1, _1=2), (1, 2))) == "0.1-1_1.1-2"
    assert seen_in(EventId(1, 2), (1, 2)) == whole(EventId(1, 2)) == EventId(1, 2)


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (EventId(1, 0), EventId(2, 0), EventId(2, 0)),
        (at(_0=1, _1=5), at(_0=2, _1=4), at(_0=2, _1=5)),
        (at(_0=1), at(_1=1), at(_0=1, _1=1)),
        (at(_0=1), BEGINNING, at(_0=1)),
    ],
)
def test_joined_positions(one: Position, other: Position, joined: Position) -> None:
    assert join(one, other) == join(other, one) == joined


_positions = st.dictionaries(st.integers(0, 2), st.integers(0, 3), min_size=1).map(
    lambda parts: ShardedId({number: EventId(1, counter) for number, counter in parts.items()})
)


@settings(deadline=None, max_examples=300)
@given(one=_positions, other=_positions, third=_positions)
def test_positions_are_in_an_order_though_not_in_a_row(one: ShardedId, other: ShardedId, third: ShardedId) -> None:
    assert (one >= other and other >= one) == (one == other)
    assert not (one >= other and other >= third) or one >= third
    joined = join(one, other)
    assert joined >= one
    assert joined >= other
    assert not (third >= one and third >= other) or third >= joined


# Topics and patterns


@pytest.mark.parametrize("topic", ["a", "a.b", "news.eu.Zürich", "日本", "a-b_c:d/e,f", "$SYS", "🙂", "a" * 20])
def test_topics(topic: str) -> None:
    assert check_topic(topic, max_bytes=20) == topic
    assert check_pattern(topic, max_bytes=20) == topic
    assert not is_pattern(topic)


@pytest.mark.parametrize("pattern", ["*", ">", "a.*", "*.a", "a.*.b", "a.>", "*.>", "*.*", "a.*.>"])
def test_patterns(pattern: str) -> None:
    assert check_pattern(pattern, max_bytes=20) == pattern
    assert is_pattern(pattern)
    with pytest.raises(RemoteProtocolError, match="without"):
        check_topic(pattern, max_bytes=20)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        ".a",
        "a.",
        "a..b",
        "a b",
        " a",
        "a\n",
        "a\r",
        "a\tb",
        "a\u00a0b",
        "a\u2028b",
        "a\0b",
        "a\x7fb",
        "a\x85b",
        "a*",
        "*a",
        "a.b*",
        "a>",
        ">.a",
        "a.>.b",
        ">>",
        "**",
        "a.**",
        "\ud800",
    ],
)
def test_what_is_neither_a_topic_nor_a_pattern(name: str) -> None:
    for check in (check_topic, check_pattern):
        with pytest.raises(RemoteProtocolError, match="dot-separated words") as caught:
            check(name, max_bytes=20)
        assert caught.value.code == "bad-topic"
        assert caught.value.detail.isascii()


@pytest.mark.parametrize(("name", "size"), [("a" * 21, 21), ("ü" * 11, 22), ("a" * 10**6, 10**6)])
def test_long_names(name: str, size: int) -> None:
    for check in (check_topic, check_pattern):
        with pytest.raises(LimitExceeded, match=rf"limits\.topic_size allows 20, found {size}") as caught:
            check(name, max_bytes=20)
        assert caught.value.status == 400


@pytest.mark.parametrize("name", ["message", "a b", "tricast", "Größe", "x" * 255, "a*>.", "message\u00a0"])
def test_types(name: str) -> None:
    assert check_type(name) == name


@pytest.mark.parametrize("name", ["", "a\nb", "a\rb", "a\0", "\x1f", "\x7f", "\x85", "\u2028", "\u2029", "\udfff"])
def test_types_with_what_ends_a_line(name: str) -> None:
    with pytest.raises(RemoteProtocolError, match="one line of printable text") as caught:
        check_type(name)
    assert caught.value.code == "bad-type"


def test_types_that_are_reserved() -> None:
    with pytest.raises(RemoteProtocolError, match="reserved"):
        check_type("tricast.gap")


def test_long_types() -> None:
    with pytest.raises(LimitExceeded, match="type allows 255, found 256"):
        check_type("ü" * 128)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*", ["a", "b"], ["a.b"]),
        (">", ["a", "a.b", "a.b.c"], []),
        ("a.*", ["a.b", "a.c"], ["a", "a.b.c", "b.b", "xa.b"]),
        ("*.b", ["a.b", "b.b"], ["b", "a.b.c", "a.bc"]),
        ("a.*.c", ["a.b.c"], ["a.c", "a.b.b.c"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a", "ab.c"]),
        ("*.>", ["a.b", "a.b.c"], ["a"]),
        ("a+b.*", ["a+b.c"], ["aab.c", "ab.c"]),
        ("a", ["a"], ["b", "a.b"]),
    ],
)
def test_what_belongs_to_a_set(pattern: str, matching: list[str], others: list[str]) -> None:
    topics = TopicSet([pattern])
    assert [topic for topic in matching + others if topic in topics] == matching
    assert topics.has_patterns == is_pattern(pattern)
    assert topics.exact == (frozenset() if is_pattern(pattern) else {pattern})


def test_sets_with_the_same_names_are_the_same() -> None:
    one, same, other = TopicSet(["a", "b.*"]), TopicSet(["b.*", "a", "a"]), TopicSet(["a"])
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != {"a", "b.*"}
    assert {one: 1}[same] == 1
    assert bool(one)
    assert not TopicSet([])
    assert repr(one) == "TopicSet(['a', 'b.*'])"
    assert "b.c" in one
    assert "a" in one
    assert "c" not in one


tokens = st.sampled_from(["a", "b", "*"])


@settings(deadline=None, max_examples=200)
@given(
    pattern=st.lists(tokens, min_size=1, max_size=4),
    rest=st.booleans(),
    topic=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5),
)
def test_wildcards_match_token_by_token(pattern: list[str], rest: bool, topic: list[str]) -> None:
    size_fits = len(topic) > len(pattern) if rest else len(topic) == len(pattern)
    expected = size_fits and all(wanted in ("*", token) for wanted, token in zip(pattern, topic, strict=False))
    name = ".".join([*pattern, ">"] if rest else pattern)
    assert check_pattern(name, max_bytes=20) == name
    assert (".".join(topic) in TopicSet([name])) == expected


# Patterns that cover others


@pytest.mark.parametrize(
    ("grant", "covered", "others"),
    [
        ("news", ["news"], ["new", "newsy", "news.a", "*", ">", "news.*", "news.>"]),
        ("news.*", ["news.a", "news.*"], ["news", "news.a.b", "news.>", "*.a", "*.*", "*", ">"]),
        ("news.>", ["news.a", "news.a.b", "news.*", "news.*.b", "news.>", "news.a.>"], ["news", "*", ">", "*.>"]),
        ("*", ["a", "*"], ["a.b", "*.*", ">", "a.>"]),
        ("*.>", ["a.b", "a.b.c", "*.*", "a.>", "*.>", "*.*.>"], ["a", "*", ">"]),
        ("*.b", ["a.b", "*.b"], ["a.c", "a.*", "*.*", "b", "a.b.c", "a.>"]),
        ("a.*.c", ["a.b.c", "a.*.c"], ["a.b.d", "a.b", "a.*.*", "a.>", "a.*.>"]),
        ("a.*.>", ["a.b.c", "a.*.c", "a.b.>", "a.*.>", "a.b.c.d"], ["a.b", "a.*", "a.>", "b.c.d", ">"]),
        (">", ["a", "a.b", "*", "*.*", "a.>", ">"], []),
    ],
)
def test_what_a_pattern_covers(grant: str, covered: list[str], others: list[str]) -> None:
    assert [name for name in covered if not covers(grant, name)] == []
    assert [name for name in others if covers(grant, name)] == []


_names = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]) or ">",
    st.lists(st.sampled_from(["a", "b", "*"]), max_size=3),
    st.sampled_from([[], [">"]]),
)


@settings(deadline=None, max_examples=500)
@given(grant=_names, wanted=_names)
def test_what_is_covered_is_all_that_is_wanted_and_nothing_less(grant: str, wanted: str) -> None:
    """A pattern covers another if, and only if, it matches a topic of every kind that the other matches."""
    assert is_valid_pattern(grant)
    granted = TopicSet([grant])
    # Tokens that no pattern here has stand for any; two lengths stand for the rest.
    some = wanted.replace("*", "other")
    kinds = [some.replace(">", "other"), some.replace(">", "other.other"), some.replace(">", "other.other.other.other")]
    assert covers(grant, wanted) is all(topic in granted for topic in kinds)


@pytest.mark.parametrize("text", ["a", "a-b", "user:7", "\u00fc", "{sub}", "a/b"])
def test_one_token(text: str) -> None:
    assert is_token(text)


@pytest.mark.parametrize("text", ["", "a.b", "*", ">", "a*", "a>", "a b", "a\n", ".", "\x00", "\ud800", "a\u2028"])
def test_what_is_no_token(text: str) -> None:
    assert not is_token(text)


# Data


@pytest.mark.parametrize(
    "body",
    [
        b"1",
        b"-1.50e3",
        b"null",
        b"true",
        b'""',
        b'"\\u0000\\ud83d\\ude42"',
        b' {"a" : [1 ,2]}\r\n',
        b'{"a":1,"a":2}',
        b"[" * 100 + b"]" * 100,
        '"ü\u2028"'.encode(),
    ],
)
def test_json_is_verbatim(body: bytes) -> None:
    assert data_as_json(body) == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"hello",
        b"{",
        b"1 2",
        b"01",
        b"NaN",
        b"Infinity",
        b"{'a':1}",
        b"[1,]",
        b'"a\nb"',
        b"line\r\nline",
        b"\0",
        b"\xef\xbb\xbf1",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_everything_else_is_a_json_string(body: bytes) -> None:
    found = data_as_json(body)
    assert json.loads(found) == body.decode()
    assert Event(EventId(1, 0), "a", "message", found).decode() == body.decode()


@pytest.mark.parametrize(
    ("body", "where"), [(b"\xff", 0), (b'"a\xc3"', 2), (b"ab\xed\xa0\x80", 2), (b"\xc0\x80", 0), (b"a\x80", 1)]
)
def test_data_must_be_utf_8(body: bytes, where: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"data must be UTF-8: .* at byte {where}") as caught:
        data_as_json(body)
    assert caught.value.code == "bad-data"


@settings(deadline=None, max_examples=200)
@given(body=st.text() | st.text(alphabet='{}[]:,"\\ \n\r1aeu'))
def test_data_is_always_json(body: str) -> None:
    found = json.loads(data_as_json(body.encode()))
    assert found == body or found == json.loads(body)


# Events


def test_events_are_equal_by_what_they_are() -> None:
    one = Event(EventId(1, 0), "a", "message", b"[1]")
    same = Event(EventId(1, 0), "a", "message", b"[1]")
    same.encoded["json"] = b"whatever"
    assert one == same
    assert hash(one) == hash(same)
    assert one != Event(EventId(2, 0), "a", "message", b"[1]")
    assert one != Event(EventId(1, 0), "a", "message", b"[ 1]")
    assert one != (EventId(1, 0), "a", "message", b"[1]")
    assert one.decode() == [1]
    assert repr(one) == "Event(1-0, 'a', 'message', b'[1]')"


def test_shortened_text() -> None:
    assert shorten("a'\n\x1b\u2028") == '"a\'\\n\\x1b\\u2028"'
    assert shorten("x" * 60) == repr("x" * 60)
    assert shorten("x" * 61) == "'" + "x" * 60 + "\\u2026'"
