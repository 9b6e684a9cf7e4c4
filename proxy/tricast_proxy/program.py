"""The proxy as a program: one, or a chain of them, from what the command line says."""

import tomllib
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from tricast.command_line import Failure, in_words, run
from tricast.errors import ConfigError, leaves
from tricast.logs import program_logger
from tricast_proxy import chain, proxy
from tricast_proxy.config import ProxyConfig, given_to_proxy, load_proxy_config
from tricast_proxy.printing import config_as_toml
from tricast_proxy.profiles import load_profile, profile_names

Overrides = dict[str, dict[str, object]]


def main(
    *,
    file: str | None,
    listen: str | None,
    upstreams: Sequence[str],
    profile: str | None,
    chain: str | None,
    speed: float | None,
    settings: Sequence[str],
    list_profiles: bool,
    print_config: bool,
    check: bool,
) -> None:
    """Does what ``tricast proxy`` is for. The arguments are its options.

    Raises:
        Failure: it did not work.
    """
    if list_profiles:
        _list_profiles()
        return
    overrides = overrides_of(
        listen=listen, upstreams=upstreams, profile=profile, chain=chain, speed=speed, settings=settings
    )
    stages = load_stages(file, overrides)
    if check:
        click.echo(f"{file or 'configuration'}: ok")
    elif print_config:
        for config, own in zip(stages, overrides_of_stages(file, overrides), strict=True):
            click.echo(config_as_toml(config, given_to_proxy(file, overrides=own)))
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
) -> Overrides:
    """What options of the command line say, as sections of the configuration.

    Raises:
        click.UsageError: one of them is not what it should be.
    """
    overrides: Overrides = {}
    for setting in settings:
        dotted, equals, value = setting.partition("=")
        section, dot, key = dotted.strip().partition(".")
        if not (equals and dot and key):
            raise click.UsageError(f"--set takes SECTION.KEY=VALUE, found {setting!r}")
        overrides.setdefault(section, {})[key] = _value_of(value.strip())
    section_of_proxy = overrides.setdefault("proxy", {})
    if listen is not None:
        host, colon, port = listen.rpartition(":")
        if not colon or not port.isascii() or not port.isdecimal():
            raise click.UsageError(f"--listen takes HOST:PORT, found {listen!r}")
        section_of_proxy |= {"host": host.strip("[]"), "port": int(port)}
    section_of_proxy |= {key: value for key, value in (("profile", profile), ("speed", speed)) if value is not None}
    if chain is not None:
        section_of_proxy["chain"] = [name.strip() for name in chain.split(",")]
    if upstreams:
        overrides["server"] = [{"address": address} for address in upstreams]  # type: ignore[assignment]
    return overrides


def _value_of(text: str) -> Any:
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
    if not names:
        return [overrides]
    return [_of_stage(overrides, name, is_first=number == 0) for number, name in enumerate(names)]


def _of_stage(overrides: Overrides, name: str, *, is_first: bool) -> Overrides:
    own: dict[str, object] = {"profile": name, "chain": []}
    changed = {**overrides, "proxy": {**overrides.get("proxy", {}), **own}}
    if not is_first:
        changed["proxy"] |= {"host": "127.0.0.1", "port": 0}
        changed["admin"] = {**overrides.get("admin", {}), "enabled": False}
        changed["tls"] = {"certificate": "", "key": ""}
    return changed


async def _serve(stages: Sequence[ProxyConfig]) -> None:
    logger = program_logger(stages[0].logging)
    refused: list[str] = []
    try:
        await proxy.run_program(partial(chain.serve, stages, logger=logger), logger)
    except* OSError as group:
        refused = [f"cannot listen on {error.filename}: {in_words(error)}" for error in leaves(group)]
    if refused:
        raise Failure(*refused)


def _list_profiles() -> None:
    width = max(map(len, profile_names()))
    for name in profile_names():
        click.echo(f"{name:{width}}  {load_profile(name).description}")
