"""What the program says and in which form, and what becomes of it when nobody listens."""

import io
import json
import logging
from datetime import datetime

import pytest

from tricast.config import LoggingSection
from tricast.logs import Logger, escaped, library_logger, program_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """Cannot be written to, nor flushed, for this reason.

    Attributes:
        writes: how often it was tried.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        raise self._error

    def flush(self) -> None:
        raise self._error


def raise_error(message: str) -> None:
    raise ValueError(message)


def fail(logger: Logger, message: str = "wrong ü\nand more") -> None:
    """Logs an exception, with something among the local variables that is nobody's business."""
    password = "open" + str(len("sesame"))  # noqa: F841
    try:
        raise_error(message)
    except ValueError:
        logger.exception("connection failed", peer="192.0.2.1")


# The program's


def test_json_is_an_object_a_line() -> None:
    stream = io.StringIO()
    logger = program_logger(LoggingSection(format="json"), stream)
    logger.info("listening", url="http://127.0.0.1:1", number=7, other=object)
    logger.warning("line\nend \x1b[2J")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert datetime.fromisoformat(first.pop("timestamp")).tzinfo is not None
    assert first == {
        "event": "listening",
        "level": "info",
        "url": "http://127.0.0.1:1",
        "number": 7,
        "other": "<class 'object'>",
    }
    assert (second["event"], second["level"]) == ("line\nend \x1b[2J", "warning")


def test_an_exception_in_json_is_in_its_line_and_names_no_variables() -> None:
    stream = io.StringIO()
    fail(program_logger(LoggingSection(format="json"), stream))
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"], entry["peer"]) == ("connection failed", "error", "192.0.2.1")
    (exception,) = entry["exception"]
    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "wrong ü\nand more")
    assert exception["frames"][-1]["name"] == "raise_error"
    assert "open6" not in line


@pytest.mark.parametrize("logging_format", ["console", "auto"])
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_text_is_coloured_on_a_terminal_only_and_only_if_that_is_to_be_found_out(
    logging_format: str, kind: type[io.StringIO]
) -> None:
    stream = kind()
    program_logger(LoggingSection.model_validate({"format": logging_format}), stream).info("listening", port=8080)
    text = stream.getvalue()
    assert text.count("\n") == 1
    is_coloured = "\x1b[" in text
    assert is_coloured == (logging_format == "auto" and kind is Terminal)
    if not is_coloured:
        assert "info" in text
        assert text.endswith("listening port=8080\n")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_an_exception_in_text_is_a_traceback_that_names_no_variables(kind: type[io.StringIO]) -> None:
    stream = kind()
    fail(program_logger(LoggingSection(), stream))
    text = stream.getvalue()
    assert "connection failed" in text
    assert "192.0.2.1" in text
    assert "Traceback (most recent call last)" in text
    assert "ValueError: wrong ü\n  and more" in text
    assert "open6" not in text


LEVELS = ("debug", "info", "warning", "error")


@pytest.mark.parametrize("level", LEVELS)
def test_less_than_the_level_is_not_said(level: str) -> None:
    stream = io.StringIO()
    logger = program_logger(LoggingSection.model_validate({"level": level, "format": "json"}), stream)
    for name in LEVELS:
        getattr(logger, name)("words")
    fail(logger)
    said = [json.loads(line)["level"] for line in stream.getvalue().splitlines()]
    assert said == [*LEVELS[LEVELS.index(level) :], "error"]


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")])
@pytest.mark.parametrize("logging_format", ["console", "json"])
def test_nobody_reads_it_any_more(error: Exception, logging_format: str) -> None:
    stream = Broken(error)
    logger = program_logger(LoggingSection.model_validate({"format": logging_format}), stream)
    logger.info("words")
    fail(logger)
    assert stream.writes >= 2


def test_it_is_closed() -> None:
    stream = io.StringIO()
    logger = program_logger(LoggingSection(), stream)
    logger.info("words")
    stream.close()
    logger.info("more words")
    fail(logger)
    assert stream.closed


def test_characters_that_the_stream_cannot_write_do_not_raise() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    logger = program_logger(LoggingSection(), stream)
    logger.info("größe")
    logger.info("plain")
    assert b"plain" in raw.getvalue()


# What others have a hand in

#: Begins a line, clears the screen, overwrites the line, turns the text around, ends a line in other ways.
ODD = "a\nb\r\n2026-01-01 [info] forged\x1b[2J\x00\x07\x08\x7f\x85\x9b1m\u2028\u2029\u202e\u2066\ufeffz"


def is_harmless(line: str) -> bool:
    return line.isprintable() and "\n" not in line


@pytest.mark.parametrize("logging_format", ["console", "json"])
def test_a_value_cannot_be_more_than_a_value(logging_format: str) -> None:
    stream = io.StringIO()
    logger = program_logger(LoggingSection.model_validate({"format": logging_format}), stream)
    logger.info("request", target=ODD, items=[ODD], error=ValueError(ODD))
    logger.warning(f"cannot be had: {ODD}", target="plain")
    lines = stream.getvalue().split("\n")
    assert lines.pop() == ""
    assert len(lines) == 2
    assert all(map(is_harmless, lines))
    assert all("forged" in line for line in lines)
    if logging_format == "json":
        assert json.loads(lines[0])["target"] == ODD


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_an_exception_cannot_begin_a_line_of_its_own(kind: type[io.StringIO]) -> None:
    stream = kind()
    fail(program_logger(LoggingSection(), stream), ODD)
    first, *others, last = stream.getvalue().split("\n")
    assert "connection failed" in first
    assert last == ""
    assert all(is_harmless(line) and line.startswith("  ") for line in others)
    assert any("forged" in line for line in others)


def test_what_is_printable_stays_as_it_is() -> None:
    assert escaped("größe 日本 \\n") == "größe 日本 \\n"
    assert escaped("a\tb") == "a\\tb"


def test_the_librarys_values_cannot_be_more_than_values_either(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tricast")
    library_logger().info(ODD, target=ODD, status=200)
    (record,) = caplog.records
    assert is_harmless(record.getMessage())
    assert is_harmless(record.__dict__["target"])
    assert record.__dict__["status"] == 200


# The library's


def test_the_librarys_is_the_standard_librarys(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tricast")
    logger = library_logger()
    logger.debug("not said")
    logger.info("request", peer="192.0.2.1", status=200)
    (record,) = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("tricast", logging.INFO, "request")
    assert (record.__dict__["peer"], record.__dict__["status"]) == ("192.0.2.1", 200)


def test_its_exceptions_come_with_what_was_raised(caplog: pytest.LogCaptureFixture) -> None:
    fail(library_logger())
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("tricast", "ERROR", "connection failed")
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError
    assert "ValueError: wrong ü" in caplog.text
