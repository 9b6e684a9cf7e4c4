"""The line of the access log: what is in it, and what cannot be."""

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.config import LoggingSection
from tricast.logs import program_logger
from tricast_proxy.overview import Access, Counters, escaped, log_access

ACCESS = Access("192.0.2.1", b"GET", b"/events?topic=news", 200, 1234, 1.23456, "one", "complete")


def line_of(access: Access, form: str) -> str:
    stream = io.StringIO()
    log_access(program_logger(LoggingSection.model_validate({"format": form}), stream), access)
    return stream.getvalue()


def test_as_json() -> None:
    told = json.loads(line_of(ACCESS, "json"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", told.pop("timestamp"))
    assert told == {
        "event": "request",
        "level": "info",
        "peer": "192.0.2.1",
        "method": "GET",
        "target": "/events?topic=news",
        "status": 200,
        "bytes": 1234,
        "seconds": 1.235,
        "server": "one",
        "why": "complete",
    }


def test_as_text() -> None:
    line = line_of(ACCESS, "console")
    assert "request" in line
    for part in ("peer=192.0.2.1", "method=GET", "status=200", "bytes=1234", "seconds=1.235", "server=one"):
        assert part in line
    assert "/events?topic=news" in line
    assert "why=complete" in line


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"/plain%20~", "/plain%20~"),
        (b"/\r\nGET", r"/\x0d\x0aGET"),
        (b"/\x1b[31m\x00\x7f\t", r"/\x1b[31m\x00\x7f\x09"),
        ("/é".encode(), r"/\xc3\xa9"),
        (b"/\\x41", r"/\x5cx41"),
    ],
)
def test_what_is_escaped(data: bytes, text: str) -> None:
    assert escaped(data) == text


@given(st.binary())
def test_what_is_escaped_can_be_read_back(data: bytes) -> None:
    text = escaped(data)
    assert text.isascii()
    assert text.isprintable()
    assert re.sub(rb"\\x(..)", lambda match: bytes.fromhex(match[1].decode()), text.encode()) == data


@given(st.binary(), st.binary(), st.sampled_from(["json", "console"]))
def test_it_is_one_line_whatever_was_sent(method: bytes, target: bytes, form: str) -> None:
    line = line_of(ACCESS._replace(method=method, target=target), form)
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_answers_are_counted_by_class() -> None:
    counters = Counters()
    for status in (101, 200, 204, 404, 502, 599):
        counters.answered(status)
    assert counters.requests == {"1xx": 1, "2xx": 2, "4xx": 1, "5xx": 2}
