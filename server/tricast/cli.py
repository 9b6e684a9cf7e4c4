"""The ``tricast`` command.

Events go to stdout, words to stderr. Exit codes: 0 done, 1 it did not work, 2 wrong usage, 130 interrupted,
141 nobody reads stdout any more.
"""
# ruff: noqa: PLC0415 - everything heavy is imported by the command that needs it, so that --help is quick.

import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from tricast import __version__
from tricast.access.command import token
from tricast.command_line import INTERRUPTED as _INTERRUPTED
from tricast.command_line import Failure, certificate_options, check_last_id, unwritable
from tricast.command_line import in_words as _in_words
from tricast.command_line import or_fail as _or_fail
from tricast.command_line import run as _run
from tricast.command_line import say as _say
from tricast.command_line import write_line as _print
from tricast.log_command import log
from tricast.probe.command import probe

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from tricast.client import Item
    from tricast.config import Config
    from tricast.event import Event

DEFAULT_URL = "http://127.0.0.1:8080"

#: The entry points by which a package adds commands.
_COMMANDS = "tricast.commands"
_READ_BYTES = 64 * 2**10
#: Lines published at a time, all or none; well under what a server takes in one batch unless told otherwise.
_LINES_PER_BATCH = 500
#: What a benchmark's events carry beside their text, and how many processes may be asked for.
_SMALLEST_DATA = 100
_MOST_PROCESSES = 256
_TRANSPORT_NAMES = {"ws": "WebSocket", "sse": "Server-Sent Events", "poll": "long polling"}
_GAP_REASONS = {
    "evicted": "the server does not keep them any more",
    "restarted": "the server was restarted and began anew",
    "slow": "this client was too slow",
    "unknown_id": "the server does not know that position",
}


class _Commands(click.Group):
    """The commands of this module, and those that other packages bring along."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted((*super().list_commands(ctx), *self._brought_along().names))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, which is loaded only then."""
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in self._brought_along().names:
            command = self._brought_along()[cmd_name].load()
        return command

    def _brought_along(self) -> "EntryPoints":
        from importlib.metadata import entry_points

        return entry_points(group=_COMMANDS)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="tricast", message="%(prog)s %(version)s")
def cli() -> None:
    """One ordered stream of events over long polling, Server-Sent Events and WebSocket."""


cli.add_command(log)
cli.add_command(probe)
cli.add_command(token)


def _check_url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from tricast.client import ClientError
    from tricast.client.endpoint import Endpoint

    try:
        Endpoint.parse(value)
    except ClientError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    return value


def _check_processes(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """The number, or 0 for ``auto``."""
    if value == "auto":
        return 0
    if not value.isdecimal() or not 1 <= int(value) <= _MOST_PROCESSES:
        words = f"expected auto or a number from 1 to {_MOST_PROCESSES}, found {value!r}"
        raise click.BadParameter(words, context, parameter)
    return int(value)


_url_option = click.option(
    "--url", default=DEFAULT_URL, metavar="URL", callback=_check_url, help="The server to talk to."
)


def _check_secret(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    """The token or key; one that begins with @ names a file, which is read when it is needed."""
    if value is not None and not value.startswith("@") and not (value.isascii() and value.isprintable()):
        raise click.BadParameter("expected visible ASCII characters", context, parameter)
    return value or ""


def _secret_options(command: "Callable[..., None]") -> "Callable[..., None]":
    """The options by which a command says who it is."""
    token = click.option(
        "--token",
        metavar="T",
        envvar="TRICAST_TOKEN",
        show_envvar=True,
        show_default="none",
        callback=_check_secret,
        help="Say who you are with this token; @FILE reads it from a file, again whenever it is shown.",
    )
    api_key = click.option(
        "--api-key",
        metavar="K",
        envvar="TRICAST_API_KEY",
        show_envvar=True,
        show_default="none",
        callback=_check_secret,
        help="Say who you are with this API key; @FILE reads it from a file.",
    )
    return token(api_key(command))


def _secret_in(value: str) -> str:
    """What the option stands for.

    Raises:
        Failure: the file cannot be read.
    """
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="ascii").strip()
    except OSError as error:
        raise Failure(f"cannot read {value[1:]}: {_in_words(error)}") from None
    except UnicodeDecodeError:
        raise Failure(f"{value[1:]} holds no token: expected visible ASCII characters") from None


def _client_options(token: str, api_key: str, certificates: dict[str, str]) -> dict[str, Any]:
    """What these options stand for, as the client takes it.

    Raises:
        Failure: a file cannot be used.
    """
    from tricast.client import ClientError
    from tricast.client.endpoint import settings_with

    async def read() -> str:
        return _secret_in(token)

    is_file = _secret_in(token) != token
    try:
        settings = settings_with(certificates)
    except ClientError as error:
        raise Failure(str(error)) from None
    return {"token": read if is_file else token, "api_key": _secret_in(api_key), "settings": settings}


@cli.command()
@click.option("--config", "file", metavar="FILE", show_default="none", help="Read this TOML file.")
@click.option("--host", metavar="H", show_default="server.host, else 127.0.0.1", help="Listen on this address.")
@click.option(
    "--port",
    metavar="P",
    type=click.IntRange(0, 65535),
    show_default="server.port, else 8080",
    help="Listen on this port; 0 picks a free one.",
)
@click.option(
    "--workers",
    metavar="N",
    show_default="server.workers, else 1",
    help="Serve with N processes; auto is one for each CPU.",
)
@click.option(
    "--log-url",
    metavar="URL",
    show_default="log.url, else memory:",
    help="Where the events are kept: sqlite:///path, redis://host:port, kafka://host:port/topic.",
)
def serve(file: str | None, host: str | None, port: int | None, workers: str | None, log_url: str | None) -> None:
    """Run the server.

    Settings come from the defaults, then the file, then TRICAST_SECTION__KEY variables, then these options.
    """
    from tricast.config import load_config
    from tricast.workers.program import run

    given: dict[str, dict[str, object]] = {
        "server": {"host": host, "port": port, "workers": workers},
        "log": {"url": log_url},
    }
    overrides = {
        section: {key: value for key, value in keys.items() if value is not None} for section, keys in given.items()
    }
    _find_modules_here()
    config = _load(file, overrides)
    _run(_serve, partial(run, config, reload=partial(load_config, file, overrides=overrides)), config)


def _find_modules_here() -> None:
    """Lets handlers be imported from the current folder, as ``python -m`` would."""
    sys.path.insert(0, str(Path.cwd()))


async def _serve(run: "Callable[[], Awaitable[None]]", config: "Config") -> None:
    from tricast.errors import leaves

    anywhere = f"{config.server.host}:{config.server.port}"
    if config.admin.enabled:
        anywhere += f" or {config.admin.host}:{config.admin.port}"
    refused: list[str] = []
    try:
        await run()
    except* OSError as group:
        refused = [f"cannot listen on {error.filename or anywhere}: {_in_words(error)}" for error in leaves(group)]
    if refused:
        raise Failure(*refused)


@cli.command()
@click.argument("file")
@click.option(
    "--host-name",
    "hosts",
    metavar="NAME",
    multiple=True,
    show_default="server.host, where that is a name with a dot",
    help="What clients call the server: the certificate has to be for it. May be repeated.",
)
def check(file: str, hosts: tuple[str, ...]) -> None:
    """Check the configuration in FILE.

    Prints everything that is wrong with it, and what it leaves open to other machines. TRICAST_SECTION__KEY variables
    are checked as well. A certificate is checked to be one that clients take now, and for these names. Of a log on
    servers it is checked that what it needs is installed; nothing is connected to.
    """
    from tricast.access.keys import load_keys
    from tricast.errors import ConfigError
    from tricast.exposure import exposures, is_host_for_others
    from tricast.logs import library_logger
    from tricast.server import load_handlers
    from tricast.stores import log_of

    _find_modules_here()
    config = _load(file, {})
    problems = []
    remark = ""

    def check_certificate() -> None:
        nonlocal remark
        remark = _remark_on_certificate(config, hosts)

    check_one: Callable[[], object]
    for check_one in (
        lambda: load_handlers(config),
        lambda: load_keys(config.auth),
        check_certificate,
        lambda: log_of(config, library_logger()),
    ):
        try:
            check_one()
        except ConfigError as error:
            problems += [str(problem._replace(source=file)) for problem in error.problems]
    if problems:
        raise Failure(*problems)
    if is_host_for_others(config.server.host):
        for exposure in exposures(config):
            _say(exposure, label="warning: ", colour="yellow")
    click.echo(f"{file}: ok{remark}")


def _remark_on_certificate(config: "Config", hosts: tuple[str, ...]) -> str:
    """What is to be told of a certificate that is good; nothing of none.

    Raises:
        ConfigError: it is not.
    """
    import time

    from tricast.certificates import check_certificate, in_words

    name = config.server.host
    if not hosts and "." in name and not name.replace(".", "").isdigit() and "/" not in name:
        hosts = (name,)
    certificate = check_certificate(config.tls, hosts, now := time.time())
    if certificate is None:
        return ""
    if now >= certificate.nearing_at(config.tls.expiry_warning):
        _say("the certificate expires soon", label="warning: ", colour="yellow")
    return f", with a certificate for {', '.join(certificate.names)} until {in_words(certificate.expires_at)}"


@cli.command()
@click.argument("topic", required=False)
@click.argument("data", required=False)
@click.option("--type", "kind", metavar="T", show_default="message", help="The name of the event's kind.")
@click.option("--ndjson", is_flag=True, help='Publish lines {"topic":…,"type":…,"data":…} from stdin, without TOPIC.')
@_url_option
@_secret_options
@certificate_options
def publish(*, topic: str | None, data: str | None, kind: str | None, ndjson: bool, url: str, **client: Any) -> None:
    """Publish DATA to TOPIC and print the event's id.

    DATA is JSON, or any other text. Without DATA, or with -, it is read from stdin (less a final line end).
    With --ndjson, lines are published as they come, those that come together all or none, and an id is printed
    for each.
    """
    if ndjson:
        if topic is not None or kind is not None:
            raise click.UsageError("with --ndjson, topic and type are in the lines, not on the command line")
        _run(_publish_lines, url, _client_options(**client))
    elif topic is None:
        raise click.UsageError("Missing argument 'TOPIC'.")
    else:
        _run(_publish_one, url, topic, kind, data, _client_options(**client))


async def _publish_one(url: str, topic: str, kind: str | None, data: str | None, options: dict[str, Any]) -> None:
    from tricast.client import publish
    from tricast.event import DEFAULT_TYPE

    body = await _read_all() if data is None or data == "-" else os.fsencode(data)
    _print(await publish(url, topic, body, type=kind or DEFAULT_TYPE, **options))


async def _read_all() -> bytes:
    if os.isatty(0):
        _say("reading from the terminal; end with Ctrl-D")
    body = bytearray()
    while chunk := await _read_stdin():
        body += chunk
    return bytes(body).removesuffix(b"\n").removesuffix(b"\r")


async def _publish_lines(url: str, options: dict[str, Any]) -> None:
    from tricast.client import Lost, publish_ndjson

    rest, published = b"", 0
    while True:
        chunk = await _read_stdin()
        *lines, rest = (rest + chunk).split(b"\n") if chunk else (rest, b"")
        lines = [line for line in lines if line.strip()]
        for begin in range(0, len(lines), _LINES_PER_BATCH):
            batch = lines[begin : begin + _LINES_PER_BATCH]
            try:
                ids = await publish_ndjson(url, batch, **options)
            except Exception as error:
                unsure = ", or it is not known" if isinstance(error, Lost) else ""
                _say(f"{published} lines were published, and nothing from line {published + 1} on{unsure}")
                raise
            published += len(ids)
            _print("\n".join(ids))
        if not chunk:
            return


async def _read_stdin() -> bytes:
    """The next bytes of stdin, as soon as there are any. Cancelling it abandons a thread that waits for them."""
    import trio

    # Not sys.stdin.buffer: a thread left waiting within it would hold its lock when the interpreter ends.
    try:
        return await trio.to_thread.run_sync(os.read, 0, _READ_BYTES, abandon_on_cancel=True)
    except OSError as error:
        raise Failure(f"cannot read from stdin: {_in_words(error)}") from None


@cli.command()
@click.argument("topics", metavar="TOPIC...", nargs=-1, required=True)
@click.option(
    "--transport",
    type=click.Choice(["auto", "sse", "ws", "poll"]),
    default="auto",
    help="auto tries WebSocket, then Server-Sent Events, then long polling.",
)
@click.option(
    "--last-id",
    metavar="ID",
    callback=check_last_id,
    show_default="from now on",
    help="Resume after this id; 0-0 for all that is kept.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "data"]),
    default="json",
    help="Print the whole event as JSON, or only its data.",
)
@_url_option
@_secret_options
@certificate_options
def subscribe(
    *,
    topics: tuple[str, ...],
    transport: Literal["auto", "sse", "ws", "poll"],
    last_id: str | None,
    form: str,
    url: str,
    **client: Any,
) -> None:
    """Print the events of every TOPIC, one a line.

    In a TOPIC, * stands for one word and a final > for the rest. When the connection breaks it is made again,
    and goes on where it was; that, and whether events were missed, is told on stderr.
    """
    from tricast.client import items

    to_line = items.event_as_line if form == "json" else items.data_as_line
    wished = {"transport": transport, "last_id": last_id, **_client_options(**client)}
    _run(_subscribe, url, topics, wished, to_line)


async def _subscribe(
    url: str,
    topics: tuple[str, ...],
    wished: dict[str, Any],
    to_line: "Callable[[Event], bytes]",
) -> None:
    from tricast.client import subscribe
    from tricast.event import Event

    async with subscribe(url, topics, **wished) as subscription:
        async for item in subscription:
            if isinstance(item, Event):
                _print(to_line(item).decode())
            else:
                _notify(item)


def _notify(item: "Item") -> None:
    from tricast.client import Connected, Disconnected
    from tricast.event import Gap

    if isinstance(item, Connected):
        events = "new events" if item.position is None else f"events after {item.position}"
        _say(f"connected by {_TRANSPORT_NAMES[item.transport]}; waiting for {events}", colour="green")
    elif isinstance(item, Disconnected):
        following = f"trying again in {item.delay:.1f} s" if item.delay else "trying another transport"
        _say(f"{item.why}; {following}", colour="yellow")
    elif isinstance(item, Gap):
        missing = f"events after {item.after} and up to {item.resumed_at} may be missing"
        _say(f"{missing}: {_GAP_REASONS[item.reason]}", label="gap: ", colour="yellow")


@cli.command()
@_url_option
@click.option(
    "--transport",
    type=click.Choice(["sse", "ws", "poll", "mix"]),
    default="sse",
    help="How subscribers subscribe; mix is a third of them each way.",
)
@click.option("--subscribers", metavar="N", type=click.IntRange(1), default=100, help="How many subscribe.")
@click.option(
    "--rate",
    metavar="R",
    type=click.FloatRange(0, 1_000_000, min_open=True),
    default=10.0,
    help="Events a second that are published, of all publishers together.",
)
@click.option(
    "--size", metavar="BYTES", type=click.IntRange(_SMALLEST_DATA), default=160, help="The data of each event."
)
@click.option(
    "--duration", metavar="S", type=click.FloatRange(0, min_open=True), default=10.0, help="Seconds that are measured."
)
@click.option("--warm-up", metavar="S", type=click.FloatRange(0), default=1.0, help="Seconds of the same before.")
@click.option("--topic", metavar="T", default="bench", help="The topic, or what the names of several begin with.")
@click.option(
    "--topics",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    help="How many topics: each subscriber has one of them, and the events go to them in turn.",
)
@click.option(
    "--publishers",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=1,
    help="How many publish, each over a connection.",
)
@click.option(
    "--processes",
    metavar="N|auto",
    callback=_check_processes,
    default="auto",
    help="Processes that the subscribers are shared among; auto is as few as the descriptor limit allows.",
)
@click.option("--compare", is_flag=True, help="Run the same feed over long polling, SSE and WebSocket, side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")
@_secret_options
@certificate_options
def bench(*, compare: bool, as_json: bool, **options: Any) -> None:
    """Load a server with subscribers and a feed, and measure.

    Tells whether every subscriber got every event, once and in order, and how soon after it was due. Publishes to the
    topic, so choose one that nobody else uses. Ctrl-C ends it with the results so far. The exit code is 1 when
    anything was lost, duplicated or out of order without an announced gap, when subscribers or publishers had no
    server at the end, and when nothing came; 130 when it was interrupted before anything was measured.
    """
    source = click.get_current_context().get_parameter_source("transport")
    if compare and source is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--compare runs all transports, one after the other; leave --transport out")
    options |= {name: _secret_in(options[name]) for name in ("token", "api_key")}
    _run(_bench, options, compare, as_json)


async def _bench(options: dict[str, Any], compare: bool, as_json: bool) -> None:
    from tricast.bench.coordinator import TRANSPORTS, Bench
    from tricast.bench.display import print_json, print_table, shown
    from tricast.bench.results import Result, Settings

    results: list[Result] = []
    for transport in TRANSPORTS if compare else (options["transport"],):
        with shown(sys.stderr) as show:
            results.append(await Bench(Settings(**options | {"transport": transport}), show).run())
        if results[-1].was_interrupted:
            break
    (print_json if as_json else print_table)(results, sys.stdout, compared=compare)
    if not all(result.is_faultless for result in results):
        raise click.exceptions.Exit(1)
    if results[-1].was_interrupted and not any(result.deliveries for result in results):
        raise click.exceptions.Exit(_INTERRUPTED)


def _load(file: str | None, overrides: dict[str, dict[str, object]]) -> "Config":
    from tricast.config import load_config

    return _or_fail(partial(load_config, file, overrides=overrides))


def main() -> NoReturn:
    """Runs the command that the arguments name, and exits."""
    status = _main()
    try:
        sys.stdout.flush()
    except OSError:
        # What is still buffered cannot be written, so that the interpreter must not try it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(status)


def _main() -> int:
    try:
        return int(cli.main(prog_name="tricast", standalone_mode=False) or 0)
    except click.ClickException as error:
        failure = error
    except click.Abort:
        return _INTERRUPTED
    except OSError as error:  # click writes help and version itself
        failure = unwritable(error)
    with suppress(OSError):  # where stderr is closed as well, the exit code has to do
        failure.show()
    return failure.exit_code
