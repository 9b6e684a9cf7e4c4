"""The proxy as a program: one, or a chain of them, from what the command line says."""

import re
import tomllib
from collections.abc import Sequence
from functools import partial
from typing import Any, get_origin

import click

from tricast.command_line import Failure, in_words, run
from tricast.errors import ConfigError, ConfigProblem, leaves
from tricast.logs import program_logger
from tricast.schema import Layer, merge, model_of
from tricast_proxy import chain, proxy
from tricast_proxy.config import ProxyConfig, given_to_proxy, load_proxy_config
from tricast_proxy.listing import list_of_profiles
from tricast_proxy.printing import config_as_toml
from tricast_proxy.profiles import profile_names, unknown_profile

Overrides = dict[str, dict[str, object]]
#: What is no table but a list of them, and the option that adds one.
_BY_OPTION = {"server": "--upstream", "fault": "--fault"}
#: A comma that is not within brackets or quotes.
_COMMA = re.compile(r""",(?=(?:[^"\[\]]|"[^"]*"|\[[^\]]*\])*$)""")


def main(
    *,
    file: str | None,
    listen: str | None,
    upstreams: Sequence[str],
    profile: str | None,
    chain: str | None,
    speed: float | None,
    settings: Sequence[str],
    faults: Sequence[str],
    list_profiles: bool,
    print_config: bool,
    check: bool,
) -> None:
    """Does what ``tricast proxy`` is for. The arguments are its options.

    Raises:
        Failure: it did not work.
    """
    if list_profiles:
        click.echo(list_of_profiles())
        return
    overrides = overrides_of(
        listen=listen, upstreams=upstreams, profile=profile, chain=chain, speed=speed, settings=settings, faults=faults
    )
    stages = load_stages(file, overrides)
    if check:
        click.echo(f"{file or 'configuration'}: ok")
    elif print_config:
        _print(file, overrides, stages)
    else:
        run(_serve, stages)


def overrides_of(
    *,
    listen: str | None = None,
    upstreams: Sequence[str] = (),
    profile: str | None = None,
    chain: str | None = None,
    speed: float | None = None,
    settings: Sequence[str] = (),
    faults: Sequence[str] = (),
) -> Overrides:
    """What options of the command line say, as sections of the configuration.

    Raises:
        click.UsageError: one of them is not what it should be.
    """
    overrides: Overrides = {}
    _apply(settings, overrides)
    section_of_proxy = overrides.setdefault("proxy", {})
    if listen is not None:
        host, colon, port = listen.rpartition(":")
        if not colon or not port.isascii() or not port.isdecimal():
            raise click.UsageError(f"--listen takes HOST:PORT, found {listen!r}")
        section_of_proxy |= {"host": host.strip("[]"), "port": int(port)}
    section_of_proxy |= {key: value for key, value in (("profile", profile), ("speed", speed)) if value is not None}
    if chain is not None and profile is not None:
        raise click.UsageError("--chain names the profile of each proxy: give it without --profile")
    if chain is not None:
        section_of_proxy["chain"] = [name.strip() for name in chain.split(",")]
    if faults:
        overrides["fault"] = [_fault_of(fault) for fault in faults]  # type: ignore[assignment]
    if upstreams:
        _check_differ(upstreams)
        overrides["server"] = [{"address": address} for address in upstreams]  # type: ignore[assignment]
    return overrides


def _check_differ(upstreams: Sequence[str]) -> None:
    for address in upstreams:
        if upstreams.count(address) > 1:
            raise click.UsageError(f"--upstream: {address} is there twice")


def _apply(settings: Sequence[str], overrides: Overrides) -> None:
    for setting in settings:
        dotted, equals, value = setting.partition("=")
        section, dot, key = dotted.strip().partition(".")
        if not (equals and dot and key):
            raise click.UsageError(f"--set takes SECTION.KEY=VALUE, found {setting!r}")
        if section in _BY_OPTION:
            raise click.UsageError(f"--set cannot change the tables of {section}: use {_BY_OPTION[section]}, or a file")
        overrides.setdefault(section, {})[key] = _value_of(section, key, value.strip())


def _fault_of(text: str) -> dict[str, Any]:
    fault = {}
    for pair in _COMMA.split(text):
        key, equals, value = pair.partition("=")
        if not (equals and key.strip()):
            raise click.UsageError(f"--fault takes KEY=VALUE[,KEY=VALUE], found {text!r}")
        fault[key.strip()] = _value_of("fault", key.strip(), value.strip())
    return fault


def _value_of(section: str, key: str, text: str) -> Any:
    """A value for a key; one for a list may be ``a,b``."""
    field = ProxyConfig.model_fields.get(section)
    model = model_of(field.annotation) if field is not None else None
    known = model.model_fields.get(key) if model is not None else None
    value = _toml_value_of(text)
    if known is not None and get_origin(known.annotation) is tuple and not isinstance(value, list):
        return [_toml_value_of(item.strip()) for item in text.split(",") if item.strip()]
    return value


def _toml_value_of(text: str) -> Any:
    """A value as TOML has it; what is not one is a string, which then needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def load_stages(file: str | None, overrides: Overrides) -> list[ProxyConfig]:
    """The proxies to run, the one in front first: one, or as many as a chain names.

    In a chain, all have the same settings on top of their profiles, but the first alone listens where that is said,
    and the last alone has the servers.

    Raises:
        Failure: the configuration is wrong.
    """
    try:
        return [load_proxy_config(file, overrides=own) for own in overrides_of_stages(file, overrides)]
    except ConfigError as error:
        raise Failure(*map(str, error.problems)) from None


def overrides_of_stages(file: str | None, overrides: Overrides) -> list[Overrides]:
    """What is given to each of the proxies on top of the file, see ``load_stages``.

    Raises:
        ConfigError: the configuration is wrong.
    """
    names = load_proxy_config(file, overrides=overrides).proxy.chain
    _check_chain(names, "command line" if "chain" in overrides.get("proxy", {}) else file or "environment")
    return [merge(overrides, own) for own in _of_chain(names)] or [overrides]


def _check_chain(names: Sequence[str], source: str) -> None:
    unknown = [name for name in names if name not in profile_names()]
    if unknown:
        raise ConfigError([ConfigProblem(source, "proxy.chain", unknown_profile(name)) for name in unknown])


def _of_chain(names: Sequence[str]) -> list[Overrides]:
    """What a chain says of each of its proxies."""
    stages: list[Overrides] = []
    for name in names:
        own: Overrides = {"proxy": {"profile": name, "chain": []}}
        if stages:
            own["proxy"] |= {"host": "127.0.0.1", "port": 0}
            own |= {"admin": {"enabled": False}, "tls": {"certificate": "", "key": ""}}
        stages.append(own)
    return stages


def _print(file: str | None, overrides: Overrides, stages: Sequence[ProxyConfig]) -> None:
    layers = given_to_proxy(file, overrides=overrides)
    names = load_proxy_config(file, overrides=overrides).proxy.chain
    if not names:
        click.echo(config_as_toml(stages[0], layers))
    for number, (name, own) in enumerate(zip(names, _of_chain(names), strict=True), 1):
        click.echo(f"# ===== Proxy {number} of {len(names)}, {name}{', in front' if number == 1 else ''} =====")
        click.echo(config_as_toml(stages[number - 1], (*layers, Layer("chain", own))))


async def _serve(stages: Sequence[ProxyConfig]) -> None:
    logger = program_logger(stages[0].logging)
    refused: list[str] = []
    try:
        await proxy.run_program(partial(chain.serve, stages, logger=logger), logger)
    except* OSError as group:
        refused = [f"cannot listen on {error.filename}: {in_words(error)}" for error in leaves(group)]
    if refused:
        raise Failure(*refused)
