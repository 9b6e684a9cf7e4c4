"""The configuration in force as TOML that can be read again, with a comment on where each value comes from.

Owns the words and the looks of ``--print-config``; the values and where they are given are somebody else's.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from tricast.schema import Layer
from tricast_proxy.config import ProxyConfig
from tricast_proxy.profiles import MARKS, Profile, load_profile

#: What is not shown, so that a configuration can be shown around.
_SECRET = frozenset(("balance.cookie_secret",))
#: Comments stand here, or behind what is longer.
_COMMENT_COLUMN = 40
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def config_as_toml(config: ProxyConfig, layers: Sequence[Layer] = ()) -> str:
    """The whole configuration; read by ``load_proxy_config``, it is the same, but for secrets.

    Args:
        config: as loaded, its timers not sped up.
        layers: where it was given, what counts more later.
    """
    profile = load_profile(config.proxy.profile)
    return "\n".join((*_legend(config, profile), *_sections(config, profile, layers))) + "\n"


def _legend(config: ProxyConfig, profile: Profile) -> Iterator[str]:
    yield f"# The configuration in force, with the profile {profile.name}:"
    yield f"# {profile.description}"
    yield "#"
    yield "# Behind each value stands where it comes from: default, a file, environment, command line; or the profile"
    yield "# that says so, with a mark for how that is known:"
    for mark, meaning in MARKS.items():
        yield f"#   {mark}  {meaning}"
    if config.proxy.speed != 1:
        yield "#"
        yield f"# Timers are written as they are; by proxy.speed they pass {config.proxy.speed:g} times as fast."
    if config.proxy.chain:
        yield "#"
        yield f"# By proxy.chain there are several proxies, with values of their own: {', '.join(config.proxy.chain)}."


def _sections(config: ProxyConfig, profile: Profile, layers: Sequence[Layer]) -> Iterator[str]:
    for section, values in config.model_dump(mode="json").items():
        is_list = isinstance(values, list)
        for index, table in enumerate(values if is_list else [values]):
            yield ""
            yield f"[[{section}]]" if is_list else f"[{section}]"
            for key, value in table.items():
                layer = _layer_of_entry(section, index, key, layers) if is_list else _layer_of(section, key, layers)
                yield _line(f"{section}.{key}", value, layer or _beneath(f"{section}.{key}", profile))


def _line(dotted: str, value: object, origin: str) -> str:
    key = dotted.rpartition(".")[2]
    if dotted in _SECRET and value:
        return f"# {key} is a secret, and not shown; {origin}"
    return f"{f'{key} = {toml_value(value)}':<{_COMMENT_COLUMN}}  # {origin}"


def _layer_of(section: str, key: str, layers: Sequence[Layer]) -> str | None:
    return next((layer.name for layer in reversed(layers) if key in layer.values.get(section, ())), None)


def _layer_of_entry(section: str, index: int, key: str, layers: Sequence[Layer]) -> str | None:
    # A list replaces the one beneath it as a whole.
    layer = next((layer for layer in reversed(layers) if section in layer.values), None)
    return layer.name if layer is not None and key in layer.values[section][index] else None


def _beneath(dotted: str, profile: Profile) -> str:
    known = profile.keys.get(dotted)
    return "default" if known is None else f"profile {known.profile}, {known.mark}"


def toml_value(value: object) -> str:
    """A value as JSON has it, in one line of TOML 1.0."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    # The only character that has to be escaped in TOML and not in JSON.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else toml_value(key)
