"""The command ``tricast log``: what a log holds, the newest of it, and dropping what is old.

Talks to the log itself, beside the servers that use it.
"""
# ruff: noqa: PLC0415 - everything heavy is imported when it is needed, so that --help is quick.

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from tricast.command_line import Failure, check_last_id, or_fail, run, say, write_line

if TYPE_CHECKING:
    from tricast.config import Config
    from tricast.event import Event, Gap, Position, TopicSet
    from tricast.log.base import Log
    from tricast.log.inspection import Cut, Holding, Inspected
    from tricast.logs import Logger

_READ_BYTES = 2**20
#: While the log cannot be read, it is tried again after this time.
_RETRY_SECONDS = 1.0
_NEWEST = 10
_GAP_REASONS = {
    "evicted": "the log does not keep them any more",
    "restarted": "the log began anew",
    "slow": "the log was quicker than this",
    "unknown_id": "the log does not know that position",
}
#: For what the log cannot tell.
_UNKNOWN = "—"
_SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@click.group()
def log() -> None:
    """Look into a log, and drop what is old.

    The log is the URL, or log.url of a configuration; what else there is to know of it (log.shards, log.namespace,
    certificates) comes from the configuration, or from TRICAST_LOG__KEY variables.
    """


def _log_options(command: Callable[..., None]) -> Callable[..., None]:
    """The log, as all of them take it."""
    url = click.argument("url", metavar="[URL]", required=False)
    config = click.option(
        "--config", "file", metavar="FILE", show_default="none", help="The configuration of the servers that use it."
    )
    return url(config(command))


def _load(url: str | None, file: str | None) -> "Config":
    """The configuration with which the log is looked at.

    Raises:
        Failure: it is wrong, or the log is in the memory of its server.
    """
    from tricast.config import load_config
    from tricast.log_urls import MEMORY_URL

    config = or_fail(partial(load_config, file, overrides={"log": {"url": url}} if url else {}))
    if config.log.url == MEMORY_URL:
        raise Failure(
            "memory: is the server's own memory, where nobody else can look: give the URL of another log, "
            "or --config FILE with one; what a server has in memory, tricast subscribe '>' --last-id 0-0 tells"
        )
    return config


def _logger() -> "Logger":
    from tricast.config import LoggingSection
    from tricast.logs import program_logger

    return program_logger(LoggingSection(), sys.stderr)


# info


@log.command()
@_log_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(url: str | None, file: str | None, as_json: bool) -> None:
    """Tell what the log holds.

    Kind and place, the number of events and topics, their size where the log can tell, and how old they are: in all,
    and for each shard.
    """
    run(_info, _load(url, file), as_json)


async def _info(config: "Config", as_json: bool) -> None:
    from tricast.stores import adopted, inspecting

    config = await adopted(config)
    async with inspecting(config, _logger()) as inspected:
        holdings = {number: await shard.holding() for number, shard in inspected.shards.items()}
    if as_json:
        import json

        write_line(json.dumps(_as_json(config, holdings, time.time()), indent=2))
    else:
        for line in _as_lines(config, holdings, time.time(), is_sharded=inspected.is_sharded):
            write_line(line)


def _kind_and_place(config: "Config") -> tuple[str, str]:
    """What kind of log it is, and where, without a password."""
    from tricast.log_urls import KafkaUrl, RedisUrl, parse_log_url

    url = parse_log_url(config.log.url)
    if isinstance(url, str):
        return "sqlite", url
    nodes = ",".join(map(str, url.nodes))
    if isinstance(url, KafkaUrl):
        return "kafka", f"{nodes}/{url.topic}"
    assert isinstance(url, RedisUrl)
    place = "/".join(filter(None, (nodes, url.name, "" if url.topology == "cluster" else str(url.database))))
    kind = f"redis {url.topology}".rstrip() + (", pubsub" if config.log.delivery == "pubsub" else "")
    return kind, f"{place}, {config.log.namespace}:*"


def _total(values: Iterable[int | None]) -> int | None:
    """The sum, or None where one of them cannot be told."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _oldest(holdings: Iterable["Holding"]) -> float | None:
    return min((holding.since for holding in holdings if holding.since is not None), default=None)


def _as_json(config: "Config", holdings: Mapping[int, "Holding"], now: float) -> dict[str, Any]:
    kind, place = _kind_and_place(config)

    def age(since: float | None) -> float | None:
        return None if since is None else round(now - since, 3)

    def part(number: int, holding: "Holding") -> dict[str, Any]:
        return {
            "shard": number,
            "first": None if holding.first is None else str(holding.first),
            "last": str(holding.last),
            "events": holding.events,
            "is_counted": holding.is_counted,
            "topics": holding.topics,
            "bytes": holding.size,
            "oldest_age_seconds": age(holding.since),
        }

    each = holdings.values()
    return {
        "kind": kind,
        "place": place,
        "events": sum(holding.events for holding in each),
        "is_counted": all(holding.is_counted for holding in each),
        "topics": _total(holding.topics for holding in each),
        "bytes": _total(holding.size for holding in each),
        "oldest_age_seconds": age(_oldest(each)),
        "shards": [part(number, holding) for number, holding in holdings.items()],
    }


def _as_lines(config: "Config", holdings: Mapping[int, "Holding"], now: float, *, is_sharded: bool) -> list[str]:
    kind, place = _kind_and_place(config)
    each = holdings.values()
    rows = [
        ("kind", kind),
        ("place", place),
        ("events", _events(each)),
        ("topics", _or_unknown(_total(holding.topics for holding in each), "{:,}".format)),
        ("size", _or_unknown(_total(holding.size for holding in each), _size)),
        ("oldest", _or_unknown(_oldest(each), lambda since: f"{_duration(now - since)} ago")),
    ]
    if not is_sharded:
        (only,) = each
        rows += [("first", str(only.first or _UNKNOWN)), ("last", str(only.last))]
        return _aligned(rows)
    head = ("shard", "events", "topics", "size", "oldest", "first", "last")
    table = [
        (
            str(number),
            _events([holding]),
            _or_unknown(holding.topics, "{:,}".format),
            _or_unknown(holding.size, _size),
            _or_unknown(holding.since, lambda since: f"{_duration(now - since)} ago"),
            str(holding.first or _UNKNOWN),
            str(holding.last),
        )
        for number, holding in holdings.items()
    ]
    return [*_aligned(rows), "", *_aligned([head, *table])]


def _events(holdings: Iterable["Holding"]) -> str:
    """How many events there are, in words."""
    each = list(holdings)
    return _at_most(sum(holding.events for holding in each), is_counted=all(holding.is_counted for holding in each))


def _at_most(count: int, *, is_counted: bool) -> str:
    return f"{count:,}" if is_counted or not count else f"at most {count:,}"


def _or_unknown(value: Any, write: Callable[[Any], str]) -> str:
    return _UNKNOWN if value is None else write(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, in columns that are as wide as they have to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _size(count: int) -> str:
    if count < 2**10:
        return f"{count:,} B"
    unit, length = next(each for each in _SIZES if count >= each[1])
    return f"{count / length:,.1f} {unit}"


def _duration(seconds: float) -> str:
    """In words, in the two largest units; what is in the future by other clocks is now."""
    left = max(0, math.floor(seconds))
    parts: list[str] = []
    for unit, length in _UNITS:
        count, left = divmod(left, length)
        if count or parts or length == 1:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


# tail


def _check_topics(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from tricast.event import is_valid_pattern

    for pattern in value:
        if not is_valid_pattern(pattern):
            raise click.BadParameter(f"expected a topic or a pattern, found {pattern!r}", context, parameter)
    return value


@log.command()
@_log_options
@click.option(
    "--topic",
    "topics",
    metavar="TOPIC",
    multiple=True,
    show_default="all",
    callback=_check_topics,
    help="Only of this topic; * stands for one word and a final > for the rest. Repeat.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option(
    "--last-id",
    metavar="ID",
    callback=check_last_id,
    show_default="the newest",
    help="All that is behind this position; 0-0 for all that is kept.",
)
@click.option(
    "--count",
    "-n",
    metavar="N",
    type=click.IntRange(0),
    show_default=f"{_NEWEST}, with --last-id all",
    help="So many of the newest events; with --last-id, end after so many.",
)
def tail(
    *, url: str | None, file: str | None, topics: tuple[str, ...], follow: bool, last_id: str | None, count: int | None
) -> None:
    """Print the newest events, one a line as JSON.

    What it prints is what subscribers get; gaps are told on stderr.
    """
    from tricast.event import TopicSet, parse_position

    config = _load(url, file)
    position = None if last_id is None else parse_position(last_id)
    run(_tail, config, TopicSet(topics or (">",)), position, count, follow)


async def _tail(
    config: "Config", topics: "TopicSet", after: "Position | None", count: int | None, follows: bool
) -> None:
    from tricast.stores import adopted, inspecting, log_of

    config, logger = await adopted(config), _logger()
    # What is only passed on can be followed, and there is nothing else to see of it.
    if not follows or config.log.delivery != "pubsub":
        async with inspecting(config, logger) as inspected:  # says so if there is no log, before one is made
            if after is None:
                after = await inspected.head()
                # What came since then is read behind it.
                newest = await inspected.newest(topics, _NEWEST if count is None else count)
                _print([event for event in newest if after >= event.id])
                if not follows:
                    return
                count = None
    follower = _Follower(log_of(_keeping_all(config), logger), topics)
    async with follower.log.open(follower.wake, follower.wake):
        position = follower.log.last_id if after is None else after
        await follower.print_behind(position, count, follows=follows)


def _keeping_all(config: "Config") -> "Config":
    """The same, with nothing that is dropped: that is for servers, which know what to keep."""
    ten_years = 10 * 365 * 86400.0
    events = config.events.model_copy(
        update={"history": 2**62, "history_size": 2**62, "history_age": max(ten_years, config.events.history_age)}
    )
    return config.model_copy(update={"events": events})


class _Follower:
    """Reads on from the log whenever there is more.

    Args:
        log: to be opened with ``wake``.
        topics: names and patterns.
    """

    def __init__(self, log: "Log", topics: "TopicSet") -> None:
        import trio

        self.log = log
        self._topics = topics
        self._more = trio.Event()

    def wake(self, _: object) -> None:
        """There is something new, or something has been skipped; both is found by reading."""
        self._more.set()

    async def print_behind(self, position: "Position", count: int | None, *, follows: bool) -> None:
        """Prints what is behind a position, and what comes.

        Args:
            position: where to begin.
            count: the end, after so many events; None for no such end.
            follows: whether to go on at the end of the log.
        """
        import trio

        from tricast.errors import LogUnavailable

        left = math.inf if count is None else count
        while left > 0:
            self._more = trio.Event()
            try:
                found = await self.log.read(self._topics, position, max_bytes=_READ_BYTES)
            except LogUnavailable:
                if not follows:
                    raise
                await trio.sleep(_RETRY_SECONDS)  # the log itself says what is wrong
                continue
            if found.gap is not None:
                _tell(found.gap)
            _print(found.events if left >= len(found.events) else found.events[: int(left)])
            left -= len(found.events)
            position = found.upto
            if found.complete and not follows:
                return
            if found.complete and left > 0:
                await self._more.wait()


def _print(events: "Iterable[Event]") -> None:
    from tricast.client.items import event_as_line

    for event in events:
        write_line(event_as_line(event).decode())


def _tell(gap: "Gap") -> None:
    missing = f"events after {gap.after} and up to {gap.resumed_at} may be missing"
    say(f"{missing}: {_GAP_REASONS[gap.reason]}", label="gap: ", colour="yellow")


# trim


def _check_age(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    from pydantic_core import PydanticCustomError

    from tricast.schema import parse_duration

    try:
        return None if value is None else parse_duration(value)
    except PydanticCustomError:
        raise click.BadParameter(f"expected a duration such as 12h, found {value!r}", context, parameter) from None


@log.command()
@_log_options
@click.option(
    "--older-than",
    "age",
    metavar="D",
    callback=_check_age,
    show_default="none",
    help="Drop what came longer ago than this, such as 12h.",
)
@click.option(
    "--before",
    metavar="ID",
    callback=check_last_id,
    show_default="none",
    help="Drop what is before this position; in a log of several shards, in those that it tells of.",
)
@click.option(
    "--keep", metavar="N", type=click.IntRange(1), show_default="none", help="Drop all but N newest, of each shard."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def trim(
    *, url: str | None, file: str | None, age: float | None, before: str | None, keep: int | None, yes: bool
) -> None:
    """Drop old events.

    Servers may go on meanwhile: they have the newest events in memory, and go on giving out those. Whoever comes back
    for others is told of a gap.
    """
    if sum(value is not None for value in (age, before, keep)) != 1:
        raise click.UsageError("one of --older-than, --before and --keep says what to drop")
    run(_trim, _load(url, file), age, before, keep, yes)


async def _trim(config: "Config", age: float | None, before: str | None, keep: int | None, yes: bool) -> None:
    from tricast.stores import adopted, inspecting

    config = await adopted(config)
    async with inspecting(config, _logger()) as inspected:
        what, cuts = _cuts(inspected, age, before, keep)
        if not yes:
            events = _events([await inspected.shards[number].holding() for number in cuts])
            kind, place = _kind_and_place(config)
            _confirm(f"{kind}, {place}: drop {what}, of {events} events?")
        for number, cut in cuts.items():
            shard = inspected.shards[number]
            dropped = await shard.drop(cut)
            name = f"shard {number}: " if inspected.is_sharded else ""
            left = await shard.holding()
            write_line(f"{name}dropped {_at_most(dropped, is_counted=left.is_counted)} events, {_left(left)}")


def _cuts(
    inspected: "Inspected", age: float | None, before: str | None, keep: int | None
) -> "tuple[str, Mapping[int, Cut]]":
    """What is dropped, in words and by shard."""
    from tricast.event import parse_position
    from tricast.log.inspection import Cut

    if before is not None:
        return f"what is before {before}", inspected.cuts(parse_position(before))
    if age is not None:
        what, cut = f"what came more than {_duration(age)} ago", Cut(older_than=time.time() - age)
    else:
        of_each = " of each shard" if inspected.is_sharded else ""
        what, cut = f"all but the newest {keep:,}{of_each}", Cut(keep=keep)
    return what, dict.fromkeys(inspected.shards, cut)


def _confirm(question: str) -> None:
    """Returns if whoever is at the terminal agrees.

    Raises:
        Failure: they do not.
        KeyboardInterrupt: there is nobody, or they interrupt it.
    """
    try:
        is_agreed = click.confirm(question, err=True)
    except click.Abort:
        say("nothing was dropped; --yes is for where there is nobody to be asked")
        raise KeyboardInterrupt from None
    if not is_agreed:
        raise Failure("nothing was dropped")


def _left(holding: "Holding") -> str:
    if holding.first is None:
        return "none is left"
    return f"{_events([holding])} are left, from {holding.first} on"
