"""What commands have in common: how they run, what they say, and the exit codes that they end with.

Knows no command. Nothing heavy is imported here before a command runs.
"""
# ruff: noqa: PLC0415 - see above

import errno
import functools
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import IO, Any, TypeVar

import click

#: As a shell reports a command that a signal ended.
INTERRUPTED = 128 + signal.SIGINT
NO_READER = 128 + signal.SIGPIPE

Loaded = TypeVar("Loaded")


class Failure(click.ClickException):
    """The command did not work; each line says why, for the person who gave it."""

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002 - click's signature
        """Writes the lines to stderr."""
        for line in self.lines:
            say(line, label="error: ", colour="red")


def check_last_id(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Returns the value of an option that is a position, as the server writes it."""
    from tricast.errors import RemoteProtocolError
    from tricast.event import parse_position

    try:
        return None if value is None else str(parse_position(value))
    except RemoteProtocolError as error:
        raise click.BadParameter(error.detail, context, parameter) from None


def certificate_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that may speak TLS, which get to it as one, ``certificates``: keys and files.

    They are those of ``tricast.client.endpoint.Certificates``.
    """

    @functools.wraps(command)
    def with_certificates(*, cert: str, key: str, cacert: str, **others: object) -> None:
        if key and not cert:
            raise click.UsageError("--key is for the certificate of --cert")
        command(**others, certificates={"cert": cert, "key": key, "cacert": cacert})

    for name, words in (
        ("cacert", "Trust these authorities, rather than those of the system, to vouch for the server."),
        ("key", "The key of --cert, where it is not in the same file."),
        ("cert", "Show this certificate to the server."),
    ):
        option = click.option(
            f"--{name}", metavar="FILE", default="", show_default="none", help=f"{words} In PEM format."
        )
        with_certificates = option(with_certificates)
    return with_certificates


def or_fail(load: Callable[[], Loaded], *, source: str | None = None) -> Loaded:
    """What is loaded from a configuration; all that is wrong with it is said, each problem in a line of its own.

    Args:
        load: loads it.
        source: the file's name, where what loads it does not know that.
    """
    from tricast.errors import ConfigError

    try:
        return load()
    except ConfigError as error:
        problems = error.problems
        if source is not None:
            problems = tuple(problem._replace(source=source) for problem in problems)
        raise Failure(*map(str, problems)) from None


def run(function: Callable[..., Awaitable[None]], *args: object) -> None:
    """Runs a command that talks to the network, and turns what it raises into exit codes and lines."""
    import trio

    from tricast.errors import TricastError, leaves

    lines: list[str] = []
    status = 0
    kind = Failure
    try:
        trio.run(function, *args)
    except* KeyboardInterrupt:
        status = INTERRUPTED
    except* BrokenPipeError:
        status = NO_READER
    except* Failure as failures:
        lines += [line for failure in leaves(failures) for line in str(failure).splitlines()]
        kind = max((type(failure) for failure in leaves(failures)), key=lambda failed: failed.exit_code)
    except* TricastError as errors:
        lines += [line for error in leaves(errors) for line in str(error).splitlines()]
    if lines:
        raise kind(*lines)
    if status:
        raise click.exceptions.Exit(status)


def in_words(error: OSError) -> str:
    """Why the system refused, in words."""
    words = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    is_port = ":" in str(error.filename or ":")  # and not a Unix socket's path
    has_hint = error.errno == errno.EACCES and is_port
    return f"{words.lower()} (ports below 1024 need a privilege)" if has_hint else words.lower()


def say(text: str, *, label: str = "", colour: str | None = None) -> None:
    """Writes one line to stderr, in colour on a terminal. What a server says cannot control that terminal."""
    harmless = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    line = click.style(label, fg=colour, bold=True) + harmless if label else click.style(harmless, fg=colour)
    click.echo(line, err=True, color=False if "NO_COLOR" in os.environ else None)


def write_line(line: str) -> None:
    """Writes one line to stdout.

    Raises:
        BrokenPipeError: nobody reads it any more.
        Failure: it cannot be written for another reason.
    """
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(error) from None


def unwritable(error: OSError) -> Failure:
    """What to say when stdout takes nothing."""
    return Failure(f"cannot write to stdout: {in_words(error)}")
