"""What every configuration is made of, and how one is read: TOML with environment overrides, all problems at once.

Owns no setting: those are in ``config.py``, and in whatever else reads a file in the same way. Knows nothing of who
uses a value.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource

from tricast.errors import ConfigError, ConfigProblem

ENV_DELIMITER = "__"
#: Where something is given, beside a file.
ENVIRONMENT = "environment"
COMMAND_LINE = "command line"

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _parse_quantity(value: object, units: Mapping[str, float], example: str) -> float:
    expected = f"{example} (a number and one of {', '.join(units)})"
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", value, re.ASCII) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise PydanticCustomError("quantity", "Input should be {expected}", {"expected": expected})
    return float(match[1]) * units[match[2]]


def parse_duration(value: object) -> float:
    """Seconds, of ``"1.5m"`` and the like.

    Raises:
        PydanticCustomError: it is something else.
    """
    return value if isinstance(value, float) else _parse_quantity(value, _DURATION_UNITS, 'a duration such as "30s"')


def parse_size(value: object) -> int:
    """Bytes, of ``"64KiB"`` and the like.

    Raises:
        PydanticCustomError: it is something else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return int(_parse_quantity(value, _SIZE_UNITS, 'a size such as "1MiB"'))


def _format_quantity(value: float, units: Mapping[str, float]) -> str:
    largest_first = sorted(units.items(), key=lambda item: -item[1])
    unit, factor = next((u, f) for u, f in largest_first if (value and value % f == 0) or f <= 1)
    # Exactly, and without an exponent: what is written has to be read as the same number.
    return f"{Decimal(repr(value / factor)).normalize():f}{unit}"


def format_duration(value: float) -> str:
    """Seconds as a string with a unit, as TOML has them."""
    return _format_quantity(value, _DURATION_UNITS)


def format_size(value: int) -> str:
    """Bytes as a string with a unit, as TOML has them."""
    return _format_quantity(value, _SIZE_UNITS)


#: Seconds as a float; a string with a unit in TOML, a float when set from Python.
Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(ge=0, allow_inf_nan=False),
    PlainSerializer(format_duration, when_used="json"),
]
#: Bytes as an int; a string with a unit in TOML, an int or a string when set from Python.
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, when_used="json"),
]
PositiveDuration = Annotated[Duration, Field(gt=0)]
PositiveSize = Annotated[Size, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values do not change after loading.

    A field that may hold a secret has ``repr=False``: its values are in no representation and in no message.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


Overrides = Mapping[str, Mapping[str, object]]
Root = TypeVar("Root", bound=Section)
#: What is beneath a configuration, seen from what is configured.
Base = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def nothing_beneath(_: Mapping[str, Any]) -> Mapping[str, Any]:
    """A base that is empty."""
    return {}


class Other(NamedTuple):
    """Another configuration, whose file may be taken for one of these by mistake.

    Attributes:
        sections: that it has, and this one has not.
        shared: that both have.
        whose: it is, and what reads it, with ``{}`` for the file.
    """

    sections: frozenset[str]
    shared: frozenset[str]
    whose: str


class Source(NamedTuple):
    """Where a configuration comes from, beside its file.

    Attributes:
        env_prefix: what the variables for it begin with; ``PREFIX_SECTION__KEY`` sets a key.
        other_prefixes: longer ones that begin with the same, and are for something else.
        base: values that the file builds on, where that is chosen in it.
        other: what else a file may be.
    """

    env_prefix: str
    other_prefixes: tuple[str, ...] = ()
    base: Base = nothing_beneath
    other: Other | None = None


def load(
    model: type[Root], source: Source, path: Path | str | None = None, *, overrides: Overrides | None = None
) -> Root:
    """Reads a configuration: defaults, then the base, the file, the environment, and then the overrides.

    Args:
        model: the sections.
        source: what else there is beside the file.
        path: a TOML file, or None for none.
        overrides: section to key to value, as the command line gives them.

    Raises:
        ConfigError: everything that is wrong with file and environment, not only the first problem.
    """
    name = str(path) if path is not None else "configuration"
    from_file = _read_toml(Path(path)) if path is not None else {}
    _check_is_ours(model, source, name, from_file)
    from_env, problems = _read_environment(model, source)
    given = merge(merge(from_file, from_env), overrides or {})
    describe = _Describer(model, name, source.env_prefix, from_env, overrides or {})
    beneath: Mapping[str, Any] = {}
    try:
        beneath = source.base(given)
    except ConfigError as error:
        problems = [*map(describe.place, error.problems), *problems]
    try:
        config = model.model_validate(merge(beneath, given))
    except ValidationError as error:
        raise ConfigError([*map(describe, error.errors()), *problems]) from None
    if problems:
        raise ConfigError(problems)
    return config


def _check_is_ours(model: type[Section], source: Source, name: str, from_file: Mapping[str, Any]) -> None:
    """Says that a file is for something else once, rather than that it knows none of the sections.

    Raises:
        ConfigError: it is.
    """
    other = source.other
    if other is None or not other.sections & set(from_file):
        return
    own = set(from_file) & (set(model.model_fields) - other.shared)
    if not own:
        raise ConfigError([ConfigProblem(name, "", f"this is a configuration of {other.whose.format(name)}")])


class Layer(NamedTuple):
    """What is given in one place.

    Attributes:
        name: of the place: the file, ``environment`` or ``command line``.
        values: section to key to value.
    """

    name: str
    values: Mapping[str, Any]


def given(
    model: type[Section], source: Source, path: Path | str | None = None, *, overrides: Overrides | None = None
) -> tuple[Layer, ...]:
    """Where what ``load`` reads is given, for who wants to tell of it; what counts more comes later.

    Raises:
        ConfigError: the file cannot be read.
    """
    from_file = (Layer(str(path), _read_toml(Path(path))),) if path is not None else ()
    from_env, _ = _read_environment(model, source)
    return *from_file, Layer(ENVIRONMENT, from_env), Layer(COMMAND_LINE, overrides or {})


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, where tables are merged and all else of ``over`` replaces what is beneath."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def model_of(annotation: object) -> type[Section] | None:
    """The section that an annotation holds: itself, or as the items of a list or the values of a table."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_of(part)) is not None), None)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([ConfigProblem(str(path), "", error.strerror or str(error))]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([ConfigProblem(str(path), "", f"not TOML: {error}")]) from None
    except RecursionError:
        raise ConfigError([ConfigProblem(str(path), "", "lists and tables are too deep within one another")]) from None


def _read_environment(model: type[Section], source: Source) -> tuple[dict[str, Any], list[ConfigProblem]]:
    # The configuration as pydantic-settings sees it, to read variables into nested sections.
    settings = type("_Environment", (model, BaseSettings), {"model_config": model.model_config})
    reader = EnvSettingsSource(
        settings, case_sensitive=False, env_prefix=source.env_prefix, env_nested_delimiter=ENV_DELIMITER
    )
    problems = []
    for variable in _variables(source):
        section, delimiter, _ = variable.removeprefix(source.env_prefix).lower().partition(ENV_DELIMITER)
        if delimiter and section not in model.model_fields:
            problems.append(ConfigProblem(ENVIRONMENT, variable, unknown_key(section, model)))
    # What is not JSON where it must be is left out, or reading would stop there and tell nothing of the others.
    texts = {
        name: value
        for name, value in reader.env_vars.items()
        if _should_be_json(model, source.env_prefix.lower(), name) and not _is_json(value)
    }
    reader.env_vars = {name: value for name, value in reader.env_vars.items() if name not in texts}
    problems += [
        ConfigProblem(ENVIRONMENT, name.upper(), f"expected JSON{_found(model, _path_of(source, name), texts[name])}")
        for name in sorted(texts)
    ]
    return reader(), problems


def _variables(source: Source) -> Iterator[str]:
    for variable in sorted(os.environ):
        if variable.startswith(source.env_prefix) and not variable.startswith(source.other_prefixes):
            yield variable


def _should_be_json(model: type[Section], prefix: str, variable: str) -> bool:
    """Whether this variable, in lower case, is a section, a list or a table."""
    *path, key = variable.removeprefix(prefix).split(ENV_DELIMITER)
    field = _model_at(model, tuple(path)).model_fields.get(key) if variable.startswith(prefix) else None
    if field is None:
        return False
    return get_origin(field.annotation) in (tuple, dict) or model_of(field.annotation) is not None


def _path_of(source: Source, variable: str) -> tuple[str, ...]:
    return tuple(variable.lower().removeprefix(source.env_prefix.lower()).split(ENV_DELIMITER))


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "")
    except (ValueError, RecursionError):
        return False
    return True


#: What pydantic says, in the words of somebody who writes TOML.
_WORDING = (
    (r"^Input should be", "expected"),
    (r"^String should match", "expected to match"),
    (r"a valid tuple", "a list"),
    (r"a valid dictionary( or instance of \w+)?", "a table"),
)


class _Describer:
    """Says what is wrong with a configuration, and where it was said.

    Args:
        model: the sections.
        file: the file's name.
        env_prefix: what the names of variables begin with.
        from_env: what was read from the environment.
        overrides: what the command line gave.
    """

    def __init__(
        self, model: type[Section], file: str, env_prefix: str, from_env: Mapping[str, Any], overrides: Overrides
    ) -> None:
        self._model = model
        self._file = file
        self._env_prefix = env_prefix
        self._from_env = from_env
        self._overrides = overrides

    def __call__(self, details: ErrorDetails) -> ConfigProblem:
        loc = details["loc"]
        source, key = self._source_of(loc)
        if details["type"] == "tuple_type" and isinstance(details["input"], Mapping):
            return ConfigProblem(source, key, f"expected a list of tables: write [[{key}]]")
        if details["type"] == "extra_forbidden":
            return ConfigProblem(source, key, unknown_key(str(loc[-1]), _model_at(self._model, loc[:-1])))
        message = details["msg"]
        for theirs, ours in _WORDING:
            message = re.sub(theirs, ours, message)
        if details["type"] in ("order", "missing"):
            return ConfigProblem(source, key, message)
        return ConfigProblem(source, key, message + _found(self._model, loc, details["input"]))

    def place(self, problem: ConfigProblem) -> ConfigProblem:
        """The same problem of a key, where that was said."""
        source, key = self._source_of(tuple(problem.key.split(".")))
        return ConfigProblem(source, key, problem.message)

    def _source_of(self, loc: tuple[int | str, ...]) -> tuple[str, str]:
        """Where a key was given, and what it is called there."""
        if loc and _holds(self._overrides, loc):
            return COMMAND_LINE, ".".join(map(str, loc))
        if loc and _holds(self._from_env, loc):
            return ENVIRONMENT, self._env_prefix + ENV_DELIMITER.join(map(str, loc)).upper()
        return self._file, ".".join(map(str, loc))


def _holds(tree: object, loc: tuple[int | str, ...]) -> bool:
    for part in loc:
        if not isinstance(tree, Mapping):
            return True  # a list, which is replaced as a whole
        if part not in tree:
            return False
        tree = tree[part]
    return True


def _found(model: type[Section], loc: tuple[int | str, ...], value: object) -> str:
    """What to say of the value that was found; nothing where it may hold a secret, which is in no representation."""
    for index, part in enumerate(loc):
        field = _model_at(model, loc[:index]).model_fields.get(part) if isinstance(part, str) else None
        if field is not None and not field.repr:
            return ""
    return f", found {value!r}"


def _model_at(model: type[Section], loc: tuple[int | str, ...]) -> type[Section]:
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            model = model_of(field.annotation) or model
    return model


def unknown_key(found: str, model: type[BaseModel]) -> str:
    """What to say of a key that there is not: which is meant, perhaps."""
    known = list(model.model_fields)
    near = difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {found!r}; {hint}"
