"""The command ``tricast token``: makes tokens and API keys, and explains what is wrong with one.

What is made goes to stdout, and nothing else does, so that a script can take it from there.
"""
# ruff: noqa: PLC0415 - everything heavy is imported when it is needed, so that --help is quick.

import math
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from tricast.command_line import Failure, or_fail, run, say

if TYPE_CHECKING:
    from tricast.access.access import Access
    from tricast.access.explain import Explanation
    from tricast.access.keys import PrivateKey
    from tricast.config import AuthSection, Config

#: More than any token that a server takes.
_MAX_READ = 2**20
_COLOURS = {"ok": "green", "FAILED": "red", "-": None}
_config_option = click.option(
    "--config", "file", metavar="FILE", show_default="none", help="The server's configuration, with its [auth]."
)


@click.group()
def token() -> None:
    """Make and explain tokens, and make API keys."""


def _check_patterns(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from tricast.event import is_valid_pattern

    for pattern in value:
        if not is_valid_pattern(pattern):
            raise click.BadParameter(f"expected a topic or a pattern, found {pattern!r}", context, parameter)
    return value


def _check_expires(context: click.Context, parameter: click.Parameter, value: str) -> float | None:
    """Seconds, or None for ``never``."""
    from pydantic_core import PydanticCustomError

    from tricast.schema import parse_duration

    try:
        return None if value == "never" else parse_duration(value)
    except PydanticCustomError:
        raise click.BadParameter(
            f"expected a duration such as 1h, or never; found {value!r}", context, parameter
        ) from None


def _check_claims(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, object]:
    import json

    claims: dict[str, object] = {}
    for given in value:
        name, equals, text = given.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"expected NAME=VALUE, found {given!r}", context, parameter)
        try:
            claims[name] = json.loads(text)
        except (ValueError, RecursionError):
            claims[name] = text
    return claims


_pattern_option = partial(click.option, metavar="T", multiple=True, callback=_check_patterns)
_grants_subscribe = _pattern_option("--subscribe", help="May subscribe to this; repeat.")
_grants_publish = _pattern_option("--publish", help="May publish to this; repeat.")


@token.command()
@_config_option
@click.option(
    "--key", "key_file", metavar="FILE", show_default="none", help="Sign with this private key (PEM) or secret."
)
@click.option(
    "--algorithm",
    type=click.Choice(["HS256", "RS256", "ES256", "EdDSA"]),
    show_default="that of the key in FILE",
    help="What --key is for.",
)
@click.option(
    "--id", "key_id", metavar="KID", show_default="none", help="The key's id; chooses among those of the configuration."
)
@click.option("--sub", metavar="SUB", show_default="none", help="Whose token it is.")
@_grants_subscribe
@_grants_publish
@click.option("--expires", metavar="D", default="1h", callback=_check_expires, help="Good for so long; or never.")
@click.option("--audience", metavar="AUD", show_default="the first of auth.audience", help="For whom it is.")
@click.option("--issuer", metavar="ISS", show_default="the first of auth.issuer", help="Who made it.")
@click.option(
    "--claim",
    "claims",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_check_claims,
    help="Another claim, or one of these as it is given here. JSON, or else text; repeat.",
)
def make(*, file: str | None, key_file: str | None, algorithm: str | None, key_id: str | None, **options: Any) -> None:
    """Make a token and print it.

    It is signed with the first key of the configuration that can sign: a secret, or a file with a private key. For
    tests and scripts; a service that gives tokens to its users has a library for that.
    """
    import time

    import jwt

    config = _load(file)
    if key_file is None:
        if algorithm is not None:
            raise click.UsageError("--algorithm is for --key")
        algorithm, key_id, key = _key_of_config(config.auth, key_id)
    else:
        algorithm, key = _key_of_file(key_file, algorithm)
    now = int(time.time())
    payload = _payload(config.auth, now, **options)
    headers = {"kid": key_id} if key_id else None
    click.echo(jwt.encode(payload, key, algorithm=algorithm, headers=headers))


def _payload(
    auth: "AuthSection",
    now: int,
    *,
    sub: str | None,
    subscribe: tuple[str, ...],
    publish: tuple[str, ...],
    expires: float | None,
    audience: str | None,
    issuer: str | None,
    claims: dict[str, object],
) -> dict[str, object]:
    payload: dict[str, object] = {
        "sub": sub,
        "iss": issuer if issuer is not None else next(iter(auth.issuer), None),
        "aud": audience if audience is not None else next(iter(auth.audience), None),
        "iat": now,
        "exp": None if expires is None else now + math.ceil(expires),
        "subscribe": list(subscribe) or None,
        "publish": list(publish) or None,
    }
    return {name: value for name, value in payload.items() if value is not None} | claims


def _key_of_config(auth: "AuthSection", key_id: str | None) -> "tuple[str, str, bytes | PrivateKey]":
    """The algorithm, the id and the key."""
    from tricast.access.keys import UnusableKey, private_key_of, read_key_file, secret_of

    for entry in auth.key:
        if key_id not in (None, entry.id):
            continue
        try:
            if entry.algorithm == "HS256":
                return entry.algorithm, entry.id, secret_of(entry)
            if entry.file:
                return entry.algorithm, entry.id, private_key_of(read_key_file(entry.file), entry.algorithm)
        except UnusableKey:
            continue
    named = f" with the id {key_id}" if key_id else ""
    raise Failure(f"the configuration has no secret and no private key{named} to sign with; give one with --key")


def _key_of_file(file: str, algorithm: str | None) -> "tuple[str, bytes | PrivateKey]":
    from tricast.access.keys import UnusableKey, algorithm_of, check_secret, private_key_of, read_key_file, secret_from

    try:
        data = read_key_file(file)
        if algorithm == "HS256" or (algorithm is None and b"-----BEGIN" not in data):
            return "HS256", check_secret(secret_from(data))
        algorithm = algorithm or algorithm_of(data)
        return algorithm, private_key_of(data, algorithm)
    except UnusableKey as error:
        raise Failure(f"--key: {error}") from None


@token.command()
@click.argument("text", metavar="[TOKEN]", required=False)
@_config_option
@_pattern_option("--subscribe", help="May it subscribe to this? Repeat.")
@_pattern_option("--publish", help="May it publish to this? Repeat.")
def explain(text: str | None, file: str | None, subscribe: tuple[str, ...], publish: tuple[str, ...]) -> None:
    """Tell which checks of a server TOKEN passes, and which not.

    TOKEN is a token or an API key; without one, or with -, it is read from stdin, where other users of the machine
    cannot see it. Keys are fetched from auth.jwks_url where there is one. The exit code is 1 when a server with this
    configuration refuses it.
    """
    config = _load(file)
    if not config.auth.is_on:
        raise Failure("the configuration has no [auth]: without it, everybody may do everything")
    if text is None or text == "-":
        text = sys.stdin.read(_MAX_READ)
    access = or_fail(partial(_access_of, config), source=file)
    run(_explain, config, access, text.strip(), subscribe, publish)


def _access_of(config: "Config") -> "Access":
    import time

    from tricast.access.access import Access
    from tricast.config import LoggingSection
    from tricast.logs import program_logger

    logger = program_logger(LoggingSection(level="warning"), sys.stderr)
    return Access(config.auth, clock=time.time, logger=logger)


async def _explain(
    config: "Config", access: "Access", text: str, subscribe: tuple[str, ...], publish: tuple[str, ...]
) -> None:
    import time

    from tricast.access.explain import Explanation

    explanation = Explanation(config.auth, access, time.time)
    async with access.open():
        await explanation.explain(text)
    for doing, topics in (("subscribe", subscribe), ("publish", publish)):
        for topic in topics:
            explanation.check_topic(doing, topic)
    _print(explanation)


def _print(explanation: "Explanation") -> None:
    width = max(len(finding.check) for finding in explanation.findings)
    for finding in explanation.findings:
        outcome = click.style(f"{finding.outcome:<6}", fg=_COLOURS[finding.outcome])
        click.echo(f"{outcome}  {finding.check:<{width}}  {finding.says}".rstrip())
    failure = explanation.failure
    if failure is not None:
        say(f"a server refuses this: {failure.code}", colour="red")
        raise click.exceptions.Exit(1)


@token.command()
@click.argument("name")
@_grants_subscribe
@_grants_publish
def key(name: str, subscribe: tuple[str, ...], publish: tuple[str, ...]) -> None:
    """Make an API key called NAME and print it.

    What the configuration has to say of it is printed to stderr: its hash, from which nobody gets the key.
    """
    import json

    from pydantic import ValidationError

    from tricast.access.api_keys import hash_of, make
    from tricast.config import ApiKeyEntry

    made = make()
    try:
        entry = ApiKeyEntry(name=name, hash=hash_of(made), subscribe=subscribe, publish=publish)
    except ValidationError as error:
        raise Failure(*(problem["msg"] for problem in error.errors())) from None
    click.echo(made)
    say("keep the key above; the configuration gets:")
    lines = ["", "[[auth.api_key]]", f"name = {json.dumps(entry.name)}", f'hash = "{entry.hash}"']
    lines += [f"{doing} = {json.dumps(list(getattr(entry, doing)))}" for doing in ("subscribe", "publish")]
    click.echo("\n".join(lines), err=True)


def _load(file: str | None) -> "Config":
    from tricast.config import load_config

    return or_fail(partial(load_config, file))
