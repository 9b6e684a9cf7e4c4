"""Profiles: what proxies that people really deploy do, as values for the configuration.

A profile is a TOML file in this folder. Each key carries a mark that says how its value is known, see ``MARKS``.
"""

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from tricast.errors import ConfigError, ConfigProblem

DEFAULT_PROFILE = "plain"
#: What the marks mean.
MARKS: Mapping[str, str] = {
    "O": "observed with the real program",
    "D": "documented by its vendor",
    "S": "read in its source",
    "I": "told by others: issues, forums, articles",
    "?": "a guess",
}
_SUFFIX = ".toml"


class Known(NamedTuple):
    """One value of a profile.

    Attributes:
        value: as TOML has it.
        mark: how it is known, see ``MARKS``.
        profile: the profile that says it, which may be one that the profile builds on.
    """

    value: Any
    mark: str
    profile: str


class Profile(NamedTuple):
    """A profile, with what it builds on.

    Attributes:
        name: of its file.
        description: which product in which configuration it is, in a line.
        keys: dotted key (``tunnel.upgrade``) to what is known of it.
    """

    name: str
    description: str
    keys: Mapping[str, Known]

    def values(self) -> dict[str, dict[str, Any]]:
        """Section to key to value."""
        sections: dict[str, dict[str, Any]] = {}
        for dotted, known in self.keys.items():
            section, _, key = dotted.partition(".")
            sections.setdefault(section, {})[key] = known.value
        return sections


@cache
def profile_names() -> tuple[str, ...]:
    """The names of all profiles, in alphabetical order."""
    entries = files(__name__).iterdir()
    return tuple(sorted(entry.name.removesuffix(_SUFFIX) for entry in entries if entry.name.endswith(_SUFFIX)))


def unknown_profile(name: str) -> str:
    """What to say of the name of no profile: which are meant, perhaps."""
    family = [known for known in profile_names() if name and known.startswith(f"{name}-")]
    near = family or difflib.get_close_matches(name, profile_names(), n=1, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(profile_names())}"
    return f"unknown profile {name!r}; {hint}"


@cache
def load_profile(name: str) -> Profile:
    """Reads a profile and what it builds on.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in profile_names():
        raise ConfigError([ConfigProblem("profile", "proxy.profile", unknown_profile(name))])
    written = tomllib.loads((files(__name__) / f"{name}{_SUFFIX}").read_text(encoding="utf-8"))
    beneath = load_profile(written["extends"]).keys if "extends" in written else {}
    own = {key: Known(value, mark, name) for key, (value, mark) in written.get("keys", {}).items()}
    return Profile(name, written["description"], {**beneath, **own})


def profile_values(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What lies beneath a configuration, by the profile that it names.

    Raises:
        ConfigError: it names one that there is not.
    """
    section = given.get("proxy")
    name = section.get("profile", DEFAULT_PROFILE) if isinstance(section, Mapping) else DEFAULT_PROFILE
    return load_profile(name).values() if isinstance(name, str) else {}
