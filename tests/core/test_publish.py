"""Bodies to drafts, and the memory of idempotency keys."""

import json

import pytest

from tricast.errors import LimitExceeded, RemoteProtocolError
from tricast.event import Draft, check_topic, check_type
from tricast.publish import Idempotency, batch_drafts
from tricast.wire.http1 import Response


def check(draft: Draft) -> Draft:
    check_topic(draft.topic, max_bytes=20)
    check_type(draft.type)
    if len(draft.data) > 100:
        raise LimitExceeded("publish.max_event", 100, len(draft.data))
    return draft


def batch(body: bytes, *, max_events: int = 100) -> list[Draft]:
    return batch_drafts(body, max_events=max_events, check=check)


# Batches


def test_a_line_is_an_event() -> None:
    body = (
        b'{"topic":"a","type":"t","data":{ "n":1.50 }}\n'
        b'\r\n \n{"data":"x", "topic":"b.c"}\r\n'
        b'  {"topic":"d","data":null}  '
    )
    assert batch(body) == [
        Draft("a", "t", b'{ "n":1.50 }'),
        Draft("b.c", "message", b'"x"'),
        Draft("d", "message", b"null"),
    ]


@pytest.mark.parametrize("body", [b"", b"\n", b" \r\n\t\n"])
def test_a_batch_of_nothing(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="no lines") as caught:
        batch(body)
    assert caught.value.code == "bad-data"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"x", "bad-data"),
        (b"[]", "bad-data"),
        (b"null", "bad-data"),
        (b"{}", "bad-data"),
        (b'{"topic":"a"}', "bad-data"),
        (b'{"data":1}', "bad-data"),
        (b'{"topic":1,"data":1}', "bad-data"),
        (b'{"topic":"a","type":null,"data":1}', "bad-data"),
        (b'{"topic":"a","data":1,"id":"1-0"}', "bad-data"),
        (b'{"topic":"a","data":1} {"topic":"a","data":1}', "bad-data"),
        (b'{"topic":"a","data":1', "bad-data"),
        (b'{"topic":"a","data":hello}', "bad-data"),
        (b'{"topic":"a","data":[1,}', "bad-data"),
        (b'{"topic":"a","data":[1,]}', "bad-data"),
        (b'{"topic":"a","data":{"b":01}}', "bad-data"),
        (b'{"topic":"a","data":{1:2}}', "bad-data"),
        (b'{"topic":"a","data":NaN}', "bad-data"),
        (b'{"topic":"a","data":"\\ud800"}', "bad-data"),
        (b'{"topic":"a","data":["\\x"]}', "bad-data"),
        (b'{"topic":"a","data":"a\tb"}', "bad-data"),
        (b'{"topic":"a","data":"a\rb"}', "bad-data"),
        (b'{"topic":"a","data":["\xff"]}', "bad-data"),
        (b'{"topic":"\xff","data":1}', "bad-data"),
        (b'{"topic":"a","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bad-data"),
        (b'{"topic":"a.*","data":1}', "bad-topic"),
        (b'{"topic":"","data":1}', "bad-topic"),
        (b'{"topic":"a","type":"a\\nb","data":1}', "bad-type"),
        (b'{"topic":"a","type":"tricast.gap","data":1}', "bad-type"),
        (b'{"topic":"aaaaaaaaaaaaaaaaaaaaa","data":1}', "limit-exceeded"),
        (b'{"topic":"a","data":"' + b"x" * 99 + b'"}', "limit-exceeded"),
    ],
)
def test_one_bad_line_and_its_number(line: bytes, code: str) -> None:
    good = b'{"topic":"a","data":1}'
    with pytest.raises(RemoteProtocolError, match=r"^line 4: ") as caught:
        batch(b"\n".join([good, b"", good, line, good]))
    assert caught.value.code == code
    assert caught.value.status == (413 if line.count(b"x") == 99 else 400)
    assert len(caught.value.detail) < 300


def test_a_batch_of_too_many() -> None:
    line = b'{"topic":"a","data":1}'
    assert len(batch(b"\n\n".join([line] * 3), max_events=3)) == 3
    with pytest.raises(LimitExceeded, match=r"publish\.max_batch allows 3, found 4") as caught:
        batch(b"\n\n".join([line] * 4), max_events=3)
    assert caught.value.status == 413


# Idempotency keys

FIRST = Response(200, (), b'{"id":"1-0"}')
SECOND = Response(200, (), b'{"id":"2-0"}')
CONTENT = (b"news", b"message", b"1")


class World:
    """A memory of keys, with a clock."""

    def __init__(self, *, max_keys: int = 3) -> None:
        self.now = 1000.0
        self.keys = Idempotency(window=60, max_keys=max_keys, clock=lambda: self.now)

    def answered(self, key: bytes, answer: Response = FIRST) -> None:
        assert self.keys.begin(key, CONTENT) is None
        self.keys.end(key, answer)


def test_the_first_answer_is_given_again() -> None:
    world = World()
    world.answered(b"k", FIRST)
    assert world.keys.begin(b"k", CONTENT) is FIRST
    assert world.keys.begin(b"k", CONTENT) is FIRST
    world.answered(b"other", SECOND)
    assert world.keys.begin(b"k", CONTENT) is FIRST


def test_a_key_is_forgotten_after_its_window() -> None:
    world = World()
    world.answered(b"k")
    world.now += 60
    assert world.keys.begin(b"k", CONTENT) is FIRST
    world.now += 0.1
    assert world.keys.begin(b"k", CONTENT) is None


def test_the_window_begins_with_the_answer() -> None:
    world = World()
    world.keys.begin(b"k", CONTENT)
    world.now += 50
    world.keys.end(b"k", FIRST)
    world.now += 50
    assert world.keys.begin(b"k", CONTENT) is FIRST


def test_a_key_in_use() -> None:
    world = World()
    world.keys.begin(b"k", CONTENT)
    with pytest.raises(RemoteProtocolError, match="not answered yet") as caught:
        world.keys.begin(b"k", CONTENT)
    assert (caught.value.status, caught.value.code) == (409, "idempotency-key-in-use")
    assert dict(caught.value.headers) == {b"retry-after": b"1"}
    world.keys.end(b"k", FIRST)
    assert world.keys.begin(b"k", CONTENT) is FIRST


def test_a_key_without_an_answer_may_be_used_again() -> None:
    world = World()
    world.keys.begin(b"k", CONTENT)
    world.keys.end(b"k", None)
    world.answered(b"k", SECOND)
    assert world.keys.begin(b"k", CONTENT) is SECOND


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_key_that_was_used_for_something_else(is_answered: bool) -> None:
    world = World()
    world.keys.begin(b"k", CONTENT)
    if is_answered:
        world.keys.end(b"k", FIRST)
    for content in [(b"news", b"message", b"2"), (b"newsmessage", b"", b"1"), (b"news", b"message1")]:
        with pytest.raises(RemoteProtocolError, match="another request") as caught:
            world.keys.begin(b"k", content)
        assert (caught.value.status, caught.value.code) == (422, "idempotency-key-reused")


@pytest.mark.parametrize("key", [b"", b"x" * 256])
def test_keys_that_are_none(key: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="1 to 255 bytes") as caught:
        World().keys.begin(key, CONTENT)
    assert caught.value.code == "bad-idempotency-key"


def test_the_longest_key() -> None:
    World().answered(b"x" * 255)


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    world = World(max_keys=3)
    for key in (b"a", b"b", b"c"):
        world.answered(key)
    # Asking for one that is known needs no room, so it forgets none.
    for key in (b"a", b"b", b"c"):
        assert world.keys.begin(key, CONTENT) is FIRST
    world.answered(b"d")
    assert world.keys.begin(b"b", CONTENT) is FIRST
    assert world.keys.begin(b"a", CONTENT) is None


def test_an_answer_to_a_key_that_was_forgotten() -> None:
    world = World(max_keys=1)
    world.keys.begin(b"a", CONTENT)
    world.keys.begin(b"b", CONTENT)
    world.keys.end(b"a", FIRST)
    world.keys.end(b"b", SECOND)
    assert world.keys.begin(b"b", CONTENT) is SECOND


def test_answers_are_json_that_can_be_sent_again() -> None:
    world = World()
    world.answered(b"k")
    again = world.keys.begin(b"k", CONTENT)
    assert again is not None
    assert json.loads(again.body) == {"id": "1-0"}


def large(kilobytes: int) -> Response:
    """The answer to a large batch."""
    return Response(200, (), b"x" * (1024 * kilobytes))


def remembers(world: World, key: bytes) -> bool:
    """Whether the answer to this key is known. Asking for one that is not takes room, so it is given back."""
    if world.keys.begin(key, CONTENT) is not None:
        return True
    world.keys.end(key, None)
    return False


def test_a_large_answer_counts_as_several() -> None:
    world = World(max_keys=10)
    for n in range(6):
        world.answered(b"small-%d" % n)
    world.answered(b"large", large(3))
    # Six and four are ten: nothing had to go.
    assert world.keys.begin(b"small-0", CONTENT) is FIRST
    assert world.keys.begin(b"large", CONTENT) == large(3)
    world.answered(b"larger", large(4))
    # Now five had to.
    assert [world.keys.begin(b"small-5", CONTENT), world.keys.begin(b"large", CONTENT)] == [FIRST, large(3)]
    assert not remembers(world, b"small-4")


def test_an_answer_below_a_kilobyte_counts_as_one() -> None:
    world = World(max_keys=3)
    answer = Response(200, (), b"x" * 1023)
    for key in (b"a", b"b", b"c"):
        world.answered(key, answer)
    assert all(remembers(world, key) for key in (b"a", b"b", b"c"))


def test_room_is_given_back_when_an_answer_is_forgotten() -> None:
    world = World(max_keys=10)
    for _ in range(20):
        world.answered(b"large", large(8))
        world.now += 61
    for n in range(10):
        world.answered(b"small-%d" % n)
    assert all(remembers(world, b"small-%d" % n) for n in range(10))


def test_an_answer_that_is_larger_than_all_room_is_remembered_alone() -> None:
    world = World(max_keys=3)
    world.answered(b"a")
    world.answered(b"huge", large(100))
    assert world.keys.begin(b"huge", CONTENT) == large(100)
    world.answered(b"b")
    assert world.keys.begin(b"b", CONTENT) is FIRST
    assert not remembers(world, b"huge")
