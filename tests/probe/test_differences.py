"""A request as it was sent beside what the server got."""

import pytest

from tricast.probe.differences import Difference, Kind, differences, habits

SENT = [("Host", "a"), ("X-Custom", "1"), ("x-Twice", "a"), ("x-Twice", "b"), ("x_under", "c"), ("Connection", "X-Foo")]


def test_nothing():
    assert differences(SENT, SENT) == []
    assert habits(SENT, SENT, "1.1") == {"kept connection"}


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        ([("Host", "a")], Difference(Kind.REMOVED, "X-Custom", "1")),
        ([("Host", "b"), ("X-Custom", "1")], Difference(Kind.CHANGED, "Host", "a", "b")),
        ([("host", "a"), ("X-Custom", "1")], Difference(Kind.CASE, "Host", "Host", "host")),
        ([("Host", "a"), ("X-Custom", "1"), ("Via", "p")], Difference(Kind.ADDED, "Via", "", "p")),
        ([("X-Custom", "1"), ("Host", "a")], None),
    ],
)
def test_what_became_of_it(received, expected):
    assert differences(SENT[:2], received) == ([expected] if expected else [])


@pytest.mark.parametrize("value", ["a, b", "a,b"])
def test_fields_that_were_joined(value):
    twice = SENT[2:4]
    assert differences(twice, [("x-Twice", value)]) == [Difference(Kind.JOINED, "x-Twice", "a, b", value)]
    assert habits(twice, [("x-Twice", value)], "1.1") == {"joined"}


def test_one_of_two_that_was_lost():
    assert differences(SENT[2:4], [("x-Twice", "a")]) == [Difference(Kind.CHANGED, "x-Twice", "a, b", "a")]


def test_the_habits():
    received = [(name.lower(), value) for name, value in SENT if "_" not in name]
    assert habits(SENT, received, "1.0") == {"lower case", "http/1.0", "underscores", "kept connection"}
    assert habits(SENT[:2], [*SENT[:2], ("X-Forwarded-Server", "b")], "1.1") == {"x-forwarded-server"}
