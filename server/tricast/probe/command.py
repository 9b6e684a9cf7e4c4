"""The command ``tricast probe``.

Exit codes: 0 all is well, 1 something can be improved, 2 something is broken, cannot be reached, or wrong usage; 130
interrupted before anything was known, or before it was whether what --fail-on names is so.
"""
# ruff: noqa: PLC0415 - everything heavy is imported when it is needed, so that --help is quick.

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tricast.command_line import INTERRUPTED, Failure, certificate_options, run

if TYPE_CHECKING:
    from tricast.probe.conditions import Condition
    from tricast.probe.run import Plan

#: How long timers may be waited for, and how long they are with each of these options.
_HORIZON = click.FloatRange(10, 7000)
_HORIZONS = {"--idle": "130", "--deep": "420", "--full": "3700"}


class Broken(Failure):
    """What was to be probed cannot be reached at all."""

    exit_code = 2


def _check_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from tricast.client import ClientError
    from tricast.client.endpoint import Endpoint
    from tricast.probe.target import server_of

    try:
        if value is not None:
            Endpoint.parse(server_of(value) or value)
    except ClientError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    return value


def _names(context: click.Context, parameter: click.Parameter, value: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
    if wrong := [name for name in names if name not in known] or not names:
        found = repr(wrong[0]) if isinstance(wrong, list) else "nothing"
        raise click.BadParameter(f"expected any of {', '.join(known)}, found {found}", context, parameter)
    return names


def _check_transports(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    written = re.sub(r"\bwebsockets?\b", "ws", value, flags=re.IGNORECASE)
    return _names(context, parameter, written, ("ws", "sse", "poll"))


def _check_advice(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...] | None:
    """The proxies, or None for ``auto``."""
    from tricast.probe.advice import KNOWN

    names = _names(context, parameter, value, ("auto", *KNOWN))
    if "auto" in names and len(names) > 1:
        raise click.BadParameter("auto cannot be combined with names of proxies", context, parameter)
    return None if names == ("auto",) else names


def _check_conditions(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> "list[Condition] | None":
    from tricast.probe.conditions import BadCondition, parse

    try:
        return None if value is None else parse(value)
    except BadCondition as error:
        raise click.BadParameter(str(error), context, parameter) from None


class _WithHorizons(click.Command):
    """A command with options that may be followed by a number of seconds."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts in the number where there is none."""
        filled = []
        for word, follower in zip(args, [*args[1:], ""], strict=False):
            filled.append(word)
            if word in _HORIZONS and re.fullmatch(r"[0-9.]+", follower) is None:
                filled.append(_HORIZONS[word])
        return super().parse_args(ctx, filled)


@click.command(cls=_WithHorizons, short_help="Find out what a proxy in front does.")
@click.argument("url", metavar="URL", callback=_check_url)
@click.option(
    "--token",
    metavar="T",
    envvar="TRICAST_PROBE__TOKEN",
    show_envvar=True,
    show_default="none",
    help="That of the server's [probe] section; without it only what shows from outside is told.",
)
@click.option(
    "--origin",
    metavar="URL",
    callback=_check_url,
    show_default="none",
    help="The server itself, past the proxy: what it does as well is not the proxy's doing.",
)
@click.option("--quick", is_flag=True, help="Wait for no timers; takes about 10 seconds.")
@click.option(
    "--idle",
    metavar="[S]",
    type=_HORIZON,
    show_default="130 s",
    help="Find timers up to a little less than S seconds; takes as long.",
)
@click.option("--deep", metavar="[S]", type=_HORIZON, show_default="420 s", help="The same for longer timers.")
@click.option("--full", metavar="[S]", type=_HORIZON, show_default="3700 s", help="The same for the longest ones.")
@click.option(
    "--speed",
    metavar="N",
    type=click.FloatRange(1, 1000),
    default=1.0,
    help="The timers in front are N times as fast as in earnest, as with tricast proxy --speed.",
)
@click.option(
    "--transport",
    "transports",
    metavar="T,…",
    callback=_check_transports,
    default="ws,sse,poll",
    help="Which to look at.",
)
@click.option(
    "--advice",
    "advised",
    metavar="P,…",
    callback=_check_advice,
    default="auto",
    help="Whose configuration to give advice for: auto is for the proxy that seems to be there.",
)
@click.option(
    "--fail-on",
    "conditions",
    metavar="C,…",
    callback=_check_conditions,
    show_default="anything broken",
    help="Exit with 2 when any of these is so or not known, and else with 0: no-ws, buffered, compressed, shared, "
    "host, retries, total, idle<S, poll<S.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@certificate_options
def probe(
    *,
    url: str,
    token: str | None,
    origin: str | None,
    quick: bool,
    idle: float | None,
    deep: float | None,
    full: float | None,
    speed: float,
    transports: tuple[str, ...],
    advised: tuple[str, ...] | None,
    conditions: "list[Condition] | None",
    as_json: bool,
    certificates: dict[str, str],
) -> None:
    """Find out what stands between here and the server at URL, and what it does.

    Tells whether WebSockets come through, whether event streams are held back, which timers cut what is silent and who
    it is that cuts, and what to write into the configuration of the proxy and of the server. All of it needs the
    server's [probe] token; any other server is looked at from outside. Ctrl-C ends it with what is known so far.

    The exit code is 0 when all is well, 1 when something can be improved, and 2 when something is broken or the server
    cannot be reached, and as ever when the command line is wrong; 130 when it was interrupted before anything was
    known. With --fail-on it is 2 when one of the conditions is so or is not known, and else 0.
    """
    from tricast.probe.run import Plan

    given = [seconds for seconds in (idle, deep, full, 0.0 if quick else None) if seconds is not None]
    if len(given) > 1:
        raise click.UsageError("--quick, --idle, --deep and --full exclude each other")
    wait = given[0] if given else float(_HORIZONS["--idle"])
    if conditions and not wait and (slow := [condition.text for condition in conditions if condition.needs_time]):
        raise click.UsageError(f"{', '.join(slow)} in --fail-on cannot be known with --quick")
    seen = frozenset(transports)
    if blind := [each.text for each in conditions or () if each.transports and not each.transports & seen]:
        raise click.UsageError(
            f"{', '.join(blind)} in --fail-on cannot be known with --transport {','.join(transports)}"
        )
    plan = Plan(
        url=url,
        origin=origin,
        token=token or "",
        seconds=wait,
        transports=transports,
        speed=speed,
        certificates=certificates,
    )
    run(_probe, plan, advised, conditions, as_json)


async def _probe(
    plan: "Plan", advised: tuple[str, ...] | None, conditions: "list[Condition] | None", as_json: bool
) -> None:
    from tricast.errors import leaves
    from tricast.probe.display import shown
    from tricast.probe.findings import exit_code
    from tricast.probe.report import Report, print_json, print_report
    from tricast.probe.run import Outcome, Unusable, examine

    outcome = Outcome(plan=plan)
    try:
        async with shown(outcome, sys.stderr):
            await examine(outcome)
    except* Unusable as errors:
        raise Broken(*(line for error in leaves(errors) for line in str(error).splitlines())) from None
    failed = [condition.text for condition in conditions or () if condition.holds(outcome.findings)]
    unknown = [
        condition.text
        for condition in conditions or ()
        if condition.text not in failed
        # A run that was ended early did not wait for what ends connections in any case.
        and (not condition.is_known(outcome.findings) or (condition.text == "total" and outcome.was_interrupted))
    ]
    code = exit_code(outcome.findings) if conditions is None else 2 if failed or unknown else 0
    if outcome.was_interrupted and not outcome.findings:
        raise click.exceptions.Exit(INTERRUPTED)
    (print_json if as_json else print_report)(Report(outcome, advised, code, failed, unknown), sys.stdout)
    if code:
        raise click.exceptions.Exit(code)
