"""Bodies to drafts, and headers to idempotency keys."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.errors import LimitExceeded, RemoteProtocolError
from tricast.event import Draft, check_topic, check_type
from tricast.log.base import IdempotencyKey
from tricast.publish import _numbered_lines, batch_drafts, idempotency_key


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
    # A limit is counted by its key, also where it is a line that exceeds it.
    assert (caught.value.reason == code) == (code != "limit-exceeded")


def test_a_batch_of_too_many() -> None:
    line = b'{"topic":"a","data":1}'
    assert len(batch(b"\n\n".join([line] * 3), max_events=3)) == 3
    with pytest.raises(LimitExceeded, match=r"publish\.max_batch allows 3, found more") as caught:
        batch(b"\n\n".join([line] * 4), max_events=3)
    assert caught.value.status == 413


@pytest.mark.parametrize("body", [b"\n" * 10**6, b" \r\n" * 300_000, b"x\n" * 500_000], ids=["empty", "blank", "short"])
def test_lines_that_are_nothing_are_not_made(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            batch(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000  # a list of them would be megabytes, and holding up everybody meanwhile


@given(st.lists(st.sampled_from([b"\n", b"\r", b" ", b"\t", b"\x0b", b"x", b"y"])).map(b"".join))
def test_lines_are_numbered_as_they_were_sent(body: bytes) -> None:
    expected = [(number, line) for number, line in enumerate(body.split(b"\n"), start=1) if line.strip()]
    assert list(_numbered_lines(body)) == expected


# Idempotency keys

CONTENT = (b"news", b"message", b"1")


def key(name: bytes, content: tuple[bytes, ...] = CONTENT, account: str = "") -> IdempotencyKey:
    return idempotency_key(name, content, account=account, window=60.0, max_keys=5)


def test_a_key_is_what_the_log_needs() -> None:
    found = key(b"k")
    assert (found.name, found.window, found.max_keys) == (b"k", 60.0, 5)
    assert found == key(b"k")


def test_other_content_has_another_fingerprint() -> None:
    contents = [CONTENT, (b"news", b"message", b"2"), (b"newsmessage", b"", b"1"), (b"news", b"message1")]
    assert len({key(b"k", content).fingerprint for content in contents}) == len(contents)


@pytest.mark.parametrize("name", [b"", b"x" * 256])
def test_keys_that_are_none(name: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="1 to 255 bytes") as caught:
        key(name)
    assert caught.value.code == "bad-idempotency-key"


def test_accounts_have_keys_of_their_own() -> None:
    names = {key(b"k", account=account).name for account in ("", "sub:a", "sub:b", "key:a")}
    names |= {key(b"bk", account="sub:a").name, key(b"k", account="sub:ab").name}
    assert len(names) == 6
    assert key(b"k", account="sub:a") == key(b"k", account="sub:a")
    # No request can name one of these outright.
    assert all(b"\0" in name for name in names - {b"k"})


def test_the_longest_key() -> None:
    assert key(b"x" * 255).name == b"x" * 255
