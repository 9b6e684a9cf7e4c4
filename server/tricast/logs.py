"""What the server says, and how: structlog on stderr for the program, the standard library for those who embed it."""

import logging
import sys
from contextlib import suppress
from typing import TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from tricast.config import LoggingSection
from tricast.errors import ConfigError

#: A structlog logger; structlog's own type for it is Any.
Logger = structlog.typing.FilteringBoundLogger


def program_logger(config: LoggingSection, stream: TextIO = sys.stderr) -> Logger:
    """A logger that writes lines to a stream.

    Exceptions come without the local variables that structlog would add: those hold what clients sent.

    Args:
        config: with ``auto``, text is coloured on a terminal and plain elsewhere; ``json`` is one object a line.
        stream: where to.
    """
    if config.format == "json":
        render: list[structlog.typing.Processor] = [
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
    else:
        render = [
            structlog.dev.ConsoleRenderer(
                colors=config.format == "auto" and stream.isatty(),
                pad_event_to=0,
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    logger: Logger = structlog.wrap_logger(
        _Lines(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(config.level),
    )
    return logger


def log_problems(logger: Logger, event: str, error: ConfigError) -> None:
    """Logs an error for each thing that is wrong with a configuration."""
    for problem in error.problems:
        logger.error(event, problem=str(problem))


class _Lines:
    """Writes lines; that nobody reads the log any more must not end a server.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        """Writes one line at once, in one piece: several processes may write to the same place."""
        with suppress(OSError, ValueError):
            self._stream.write(f"{message}\n")
            self._stream.flush()

    debug = info = warning = error = critical = msg


def library_logger() -> Logger:
    """A logger on the standard library's ``tricast``, for programs that have set up logging their own way."""
    logger: Logger = structlog.wrap_logger(
        logging.getLogger("tricast"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger
