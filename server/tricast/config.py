"""The configuration: typed sections with their defaults, read from TOML with environment overrides.

Owns every default in the program. Knows nothing of who uses a value. The keys, their meaning and the danger of
changing them are told in ``config/server.toml``, which a test compares with the defaults here.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource

from tricast.errors import ConfigError, ConfigProblem

#: What the URL of a log in a file begins with; the rest is the path, as SQLAlchemy has it.
SQLITE_URL = "sqlite:///"
MEMORY_URL = "memory:"
ENV_PREFIX = "TRICAST_"
ENV_DELIMITER = "__"

_MAX_WORKERS = 1024
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _parse_quantity(value: object, units: Mapping[str, float], example: str) -> float:
    expected = f"{example} (a number and one of {', '.join(units)})"
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", value, re.ASCII) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise PydanticCustomError("quantity", "Input should be {expected}", {"expected": expected})
    return float(match[1]) * units[match[2]]


def _parse_duration(value: object) -> float:
    return value if isinstance(value, float) else _parse_quantity(value, _DURATION_UNITS, 'a duration such as "30s"')


def _parse_size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return int(_parse_quantity(value, _SIZE_UNITS, 'a size such as "1MiB"'))


def _format_quantity(value: float, units: Mapping[str, float]) -> str:
    unit, factor = next((u, f) for u, f in sorted(units.items(), key=lambda item: -item[1]) if value % f == 0 or f <= 1)
    return f"{value / factor:g}{unit}"


def _check_log_url(value: str) -> str:
    # The value is not repeated: a URL may hold a password.
    path = value.removeprefix(SQLITE_URL)
    if value != MEMORY_URL and (path == value or not path.strip("/") or path == ":memory:"):
        raise PydanticCustomError(
            "order", 'Input should be "memory:" or "sqlite:///path" (four slashes: from the root)'
        )
    return value


def _parse_workers(value: object) -> object:
    count = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    is_count = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= _MAX_WORKERS
    if not is_count and count != "auto":
        expected = f'a number from 1 to {_MAX_WORKERS}, or "auto"'
        raise PydanticCustomError("workers", "Input should be {expected}", {"expected": expected})
    return count


def _check_origin(value: str) -> str:
    if value != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", value) is None:
        expected = 'an origin such as "https://app.example", or "*"'
        raise PydanticCustomError("origin", "Input should be {expected}", {"expected": expected})
    return value


#: Seconds as a float; a string with a unit in TOML, a float when set from Python.
Duration = Annotated[
    float,
    BeforeValidator(_parse_duration),
    Field(ge=0, allow_inf_nan=False),
    PlainSerializer(lambda value: _format_quantity(value, _DURATION_UNITS), when_used="json"),
]
#: Bytes as an int; a string with a unit in TOML, an int or a string when set from Python.
Size = Annotated[
    int,
    BeforeValidator(_parse_size),
    PlainSerializer(lambda value: _format_quantity(value, _SIZE_UNITS), when_used="json"),
]
PositiveDuration = Annotated[Duration, Field(gt=0)]
PositiveSize = Annotated[Size, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSection(Section):
    """Where to listen, and what to serve beside the events."""

    host: str = "127.0.0.1"
    port: Port = 8080
    workers: Annotated[int | Literal["auto"], BeforeValidator(_parse_workers)] = 1
    backlog: Annotated[int, Field(ge=1, le=65535)] = 4096
    page: bool = True
    cors_origins: tuple[Annotated[str, AfterValidator(_check_origin)], ...] = ()


class EventsSection(Section):
    """How much history is kept for those who come back."""

    history: Annotated[int, Field(ge=1)] = 1000
    history_age: PositiveDuration = 86400.0
    history_size: PositiveSize = 256 * 2**20


class LogSection(Section):
    """Where the events are kept."""

    url: Annotated[str, AfterValidator(_check_log_url)] = MEMORY_URL
    synchronous: Literal["full", "normal", "off"] = "full"
    cache_size: PositiveSize = 64 * 2**20


class PollSection(Section):
    """Long polling."""

    timeout: PositiveDuration = 25.0
    max_bytes: PositiveSize = 256 * 2**10


class SseSection(Section):
    """Server-Sent Events."""

    keepalive: PositiveDuration = 15.0
    retry: PositiveDuration = 2.0


class HandlerEntry(Section):
    """One application WebSocket handler: its path and where its coroutine function is."""

    path: Annotated[str, Field(pattern=r"^/[!-~]*$")]
    handler: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class WebSocketSection(Section):
    """WebSocket connections."""

    ping_interval: PositiveDuration = 20.0
    ping_timeout: PositiveDuration = 60.0
    close_timeout: PositiveDuration = 5.0
    max_message: PositiveSize = 64 * 2**10
    permessage_deflate: bool = False
    handler: tuple[HandlerEntry, ...] = ()

    @model_validator(mode="after")
    def _timeout_is_longer(self) -> Self:
        if self.ping_timeout <= self.ping_interval:
            raise PydanticCustomError("order", "Input should be a ping_timeout longer than ping_interval")
        return self


class PublishSection(Section):
    """What publishers may send."""

    max_event: PositiveSize = 64 * 2**10
    max_body: PositiveSize = 2**20
    max_batch: Annotated[int, Field(ge=1)] = 1000
    idempotency_window: PositiveDuration = 600.0
    idempotency_keys: Annotated[int, Field(ge=1)] = 10_000

    @model_validator(mode="after")
    def _an_event_fits_into_a_body(self) -> Self:
        if self.max_body < self.max_event:
            raise PydanticCustomError("order", "Input should be a max_body of at least max_event")
        return self


class LimitsSection(Section):
    """How much anybody may ask of the server."""

    connections: Annotated[int, Field(ge=0)] = 0
    reserved_descriptors: Annotated[int, Field(ge=8)] = 64
    retry_after: PositiveDuration = 5.0
    head_size: PositiveSize = 16 * 2**10
    head_fields: Annotated[int, Field(ge=1)] = 100
    target_size: PositiveSize = 8 * 2**10
    head_timeout: PositiveDuration = 10.0
    body_timeout: PositiveDuration = 30.0
    idle_timeout: PositiveDuration = 75.0
    write_timeout: PositiveDuration = 30.0
    send_buffer: Annotated[Size, Field(le=2**30)] = 0
    topics: Annotated[int, Field(ge=1)] = 100
    topic_size: PositiveSize = 255


class TlsSection(Section):
    """The certificate with which the server shows who it is."""

    certificate: str = ""
    key: str = ""

    @model_validator(mode="after")
    def _a_key_has_a_certificate(self) -> Self:
        if self.key and not self.certificate:
            raise PydanticCustomError("order", "Input should be a certificate as well, where there is a key")
        return self


class DrainSection(Section):
    """How the server goes down."""

    period: Duration = 3.0
    grace: Duration = 5.0
    retry_after: PositiveDuration = 2.0


class AdminSection(Section):
    """A listener of its own for health and metrics."""

    enabled: bool = False
    host: str = "127.0.0.1"
    port: Port = 9090


def _check_probe_token(value: object) -> object:
    # It is repeated in no message.
    if not isinstance(value, str) or (value and re.fullmatch(r"[!-~]{16,200}", value) is None):
        raise PydanticCustomError("order", "Input should be empty, or 16 to 200 visible ASCII characters")
    return value


class ProbeSection(Section):
    """What ``tricast probe`` may ask."""

    token: Annotated[str, BeforeValidator(_check_probe_token), Field(repr=False)] = ""


class LoggingSection(Section):
    """What the server says, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    access: bool = False


class Config(Section):
    """The whole configuration of a server. ``Config()`` is all defaults; sections may be given as dicts."""

    server: ServerSection = ServerSection()
    events: EventsSection = EventsSection()
    log: LogSection = LogSection()
    poll: PollSection = PollSection()
    sse: SseSection = SseSection()
    websocket: WebSocketSection = WebSocketSection()
    publish: PublishSection = PublishSection()
    limits: LimitsSection = LimitsSection()
    tls: TlsSection = TlsSection()
    drain: DrainSection = DrainSection()
    admin: AdminSection = AdminSection()
    probe: ProbeSection = ProbeSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="after")
    def _listeners_differ(self) -> Self:
        same = self.admin.host == self.server.host and self.admin.port == self.server.port != 0
        if self.admin.enabled and same:
            raise PydanticCustomError("order", "Input should be an admin.port other than server.port")
        return self


_SECTIONS = {field.annotation for field in Config.model_fields.values()}


def load_config(
    path: Path | str | None = None, *, overrides: Mapping[str, Mapping[str, object]] | None = None
) -> Config:
    """Reads the configuration: defaults, then the file, then ``TRICAST_SECTION__KEY``, then the overrides.

    Args:
        path: a TOML file, or None for none.
        overrides: section to key to value, as the command line gives them.

    Raises:
        ConfigError: everything that is wrong with file and environment, not only the first problem.
    """
    name = str(path) if path is not None else "configuration"
    from_file = _read_toml(Path(path)) if path is not None else {}
    from_env, env_problems = _read_environment()
    merged = _merge(_merge(from_file, from_env), overrides or {})
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(
            [
                *(_describe(details, name, from_env, overrides or {}) for details in error.errors()),
                *env_problems,
            ]
        ) from None
    if env_problems:
        raise ConfigError(env_problems)
    return config


def workers_of(config: Config) -> int:
    """How many processes the configuration asks for; "auto" is one for each CPU that this process may use."""
    workers = config.server.workers
    return len(os.sched_getaffinity(0)) if workers == "auto" else workers


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([ConfigProblem(str(path), "", error.strerror or str(error))]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([ConfigProblem(str(path), "", f"not TOML: {error}")]) from None


class _Environment(Config, BaseSettings):  # type: ignore[misc]  # both set model_config; ours wins
    """The configuration as pydantic-settings sees it, to read variables into nested sections."""


def _read_environment() -> tuple[dict[str, Any], list[ConfigProblem]]:
    source = EnvSettingsSource(
        _Environment, case_sensitive=False, env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER
    )
    problems = []
    for variable in sorted(os.environ):
        section, delimiter, _ = variable.removeprefix(ENV_PREFIX).lower().partition(ENV_DELIMITER)
        if variable.startswith(ENV_PREFIX) and delimiter and section not in Config.model_fields:
            problems.append(ConfigProblem("environment", variable, _unknown(section, Config)))
    # What is not JSON where it must be is left out, or reading would stop there and tell nothing of the others.
    texts = {name: value for name, value in source.env_vars.items() if _should_be_json(name) and not _is_json(value)}
    source.env_vars = {name: value for name, value in source.env_vars.items() if name not in texts}
    problems += [
        ConfigProblem("environment", name.upper(), f"expected JSON, found {texts[name]!r}") for name in sorted(texts)
    ]
    return source(), problems


def _should_be_json(variable: str) -> bool:
    """Whether this variable, in lower case, is a section or a list."""
    prefix = ENV_PREFIX.lower()
    *path, key = variable.removeprefix(prefix).split(ENV_DELIMITER)
    field = _model_at(tuple(path)).model_fields.get(key) if variable.startswith(prefix) else None
    return field is not None and (get_origin(field.annotation) is tuple or field.annotation in _SECTIONS)


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "")
    except (ValueError, RecursionError):
        return False
    return True


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


#: What pydantic says, in the words of somebody who writes TOML.
_WORDING = (
    (r"^Input should be", "expected"),
    (r"^String should match", "expected to match"),
    (r"a valid tuple", "a list"),
    (r"a valid dictionary or instance of \w+", "a table"),
)


def _describe(
    details: ErrorDetails, file: str, from_env: Mapping[str, Any], overrides: Mapping[str, Any]
) -> ConfigProblem:
    loc = details["loc"]
    key = ".".join(str(part) for part in loc)
    source = file
    if loc and _holds(overrides, loc):
        source = "command line"
    elif loc and _holds(from_env, loc):
        source, key = "environment", ENV_PREFIX + ENV_DELIMITER.join(str(part) for part in loc).upper()
    if details["type"] == "extra_forbidden":
        return ConfigProblem(source, key, _unknown(str(loc[-1]), _model_at(loc[:-1])))
    message = details["msg"]
    for theirs, ours in _WORDING:
        message = re.sub(theirs, ours, message)
    if details["type"] in ("order", "missing"):
        return ConfigProblem(source, key, message)
    return ConfigProblem(source, key, f"{message}, found {details['input']!r}")


def _holds(tree: object, loc: tuple[int | str, ...]) -> bool:
    for part in loc:
        if not isinstance(tree, Mapping):
            return True  # a list, which is replaced as a whole
        if part not in tree:
            return False
        tree = tree[part]
    return True


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    model: type[BaseModel] = Config
    for part in loc:
        if part == "handler":
            model = HandlerEntry
        elif isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else model
    return model


def _unknown(found: str, model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    near = difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {found!r}; {hint}"
