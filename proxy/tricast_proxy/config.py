"""The proxy's configuration: every key with its default, read as the server's is, on top of a profile.

Policy is data: what a proxy does is said here, and the modules that do it look nothing up by a product's name. The
keys, their meaning and the danger of changing them are told in ``config/proxy.toml``, which a test compares with the
defaults here. The defaults are those of a proxy that stands in nobody's way.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator
from pydantic_core import PydanticCustomError

from tricast.config import PROXY_ENV_PREFIX, AdminSection, Config, LoggingSection, TlsSection
from tricast.schema import (
    Duration,
    Layer,
    Other,
    Overrides,
    Port,
    PositiveDuration,
    PositiveSize,
    Section,
    Size,
    Source,
    format_duration,
    format_size,
    given,
    load,
    parse_duration,
    parse_size,
)
from tricast_proxy.profiles import profile_values

#: A timer that never ends. Kept as a number so that a deadline is always the beginning plus the timer.
OFF = math.inf
SectionType = TypeVar("SectionType", bound=Section)
#: What may be sent twice without harm (RFC 9110 9.2.2).
IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE")


class _IsTimer:
    """Marks the durations that ``proxy.speed`` divides."""


IS_TIMER = _IsTimer()


def _parse_timer(value: object) -> float:
    if value in ("off", OFF):
        return OFF
    try:
        seconds = parse_duration(value)
    except PydanticCustomError:
        seconds = math.nan
    if not seconds > 0:
        raise PydanticCustomError("quantity", 'Input should be a duration above zero such as "30s", or "off"')
    return seconds


def _format_timer(value: float) -> str:
    return "off" if value == OFF else format_duration(value)


#: Seconds, or infinity for ``"off"``; divided by ``proxy.speed``.
Timer = Annotated[float, BeforeValidator(_parse_timer), PlainSerializer(_format_timer, when_used="json"), IS_TIMER]
#: Seconds, where zero is of use; divided by ``proxy.speed``.
Delay = Annotated[Duration, IS_TIMER]


@dataclass(frozen=True)
class After:
    """When something happens to a connection: after so much, or so long; infinity for never.

    Attributes:
        size: bytes of the answer.
        seconds: since the request came.
    """

    size: float = math.inf
    seconds: float = math.inf

    def __truediv__(self, speed: float) -> Self:
        # Bytes take their time by themselves.
        return replace(self, seconds=self.seconds / speed)


NEVER = After()


def _parse_after(value: object) -> After:
    if isinstance(value, After):
        return value
    if value == "off":
        return NEVER
    with suppress(PydanticCustomError):
        return After(seconds=parse_duration(value))
    with suppress(PydanticCustomError):
        return After(size=parse_size(value))
    raise PydanticCustomError("quantity", 'Input should be a size such as "64KiB", a duration such as "3s", or "off"')


def _format_after(value: After) -> str:
    if value.size < math.inf:
        return format_size(int(value.size))
    return _format_timer(value.seconds)


#: ``"64KiB"``, ``"3s"`` or ``"off"``; a duration is divided by ``proxy.speed``.
Moment = Annotated[After, BeforeValidator(_parse_after), PlainSerializer(_format_after, when_used="json"), IS_TIMER]
Status = Annotated[int, Field(ge=400, le=599)]
Count = Annotated[int, Field(ge=0)]
#: Bytes, or 0 for no limit.
Limit = Size


def _check_address(value: str) -> str:
    """``host:port``, where an IPv6 address stands in brackets."""
    host, _, port = value.rpartition(":")
    is_bare_v6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not _is_name(host) or is_bare_v6 or not port.isascii() or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise PydanticCustomError("address", 'Input should be an address such as "127.0.0.1:8080"')
    return value


def _is_name(host: str) -> bool:
    try:
        return bool(host.strip("[]").encode("idna"))
    except UnicodeError:  # a label that is empty, or too long (RFC 1035 2.3.4)
        return False


Address = Annotated[str, AfterValidator(_check_address)]

#: RFC 9110 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: These say where messages end and which way they go: another one of them is how requests are smuggled.
_NOT_TO_ADD = frozenset(
    ("connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade")
)


def _check_field_name(value: str) -> str:
    if _TOKEN.fullmatch(value) is None or value.lower() in _NOT_TO_ADD:
        raise PydanticCustomError(
            "field", "Input should be a name such as X-Name, and none that messages are framed by"
        )
    return value


def _check_network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise PydanticCustomError("network", 'Input should be a network such as "10.0.0.0/8"') from None
    return value


FieldName = Annotated[str, AfterValidator(_check_field_name)]
#: The same, or empty for no field at all.
OptionalFieldName = Annotated[str, AfterValidator(lambda value: value and _check_field_name(value))]
#: RFC 9110 5.5: with no control characters, the ends of lines among them.
FieldValue = Annotated[str, Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$")]
#: RFC 9110 7.6.3: a token, or a host with a port.
Pseudonym = Annotated[str, Field(pattern=r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+(:[0-9]+)?)?$")]
Network = Annotated[str, AfterValidator(_check_network)]


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    """Checks texts, and says what is expected in words rather than as a pattern."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value, re.ASCII) is None:
            raise PydanticCustomError("pattern", "Input should be {expected}", {"expected": expected})
        return value

    return check


_check_path = _matching(r"(/[!-~]*)?", "a path, which must begin with /, or nothing")
_check_statuses = _matching(r"[1-5]\d\d(-[1-5]\d\d)?", 'a status such as "200", or a range of them such as "200-399"')
_check_cookie = _matching(r"[A-Za-z0-9_.-]+", "a name of letters, digits, _, . and -")
_check_hash_key = _matching(
    r"address|path|(header|query|cookie):[^\s:;,=]+",
    '"address", "path", or "header:NAME", "query:NAME" or "cookie:NAME"',
)
UrlPath = Annotated[str, AfterValidator(_check_path)]


class ProxySection(Section):
    """Where to listen, and which proxy to be."""

    host: str = "127.0.0.1"
    port: Port = 8000
    profile: str = "plain"
    chain: tuple[str, ...] = ()
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    mode: Literal["http", "tcp"] = "http"
    strict: Literal["strict", "rfc", "lenient"] = "strict"
    backlog: Annotated[int, Field(ge=1, le=65535)] = 1024
    max_connections: Count = 10_000


class ServerEntry(Section):
    """One server to forward to."""

    address: Address
    name: str = ""
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    max_connections: Count = 0
    backup: bool = False

    @property
    def label(self) -> str:
        """The name, or the address where it has none."""
        return self.name or self.address


#: What happens when a client leaves before its answer has ended.
Leaves = Literal["abort", "on-write", "never"]


class ClientSection(Section):
    """What the proxy expects of clients, and grants them."""

    header_timeout: Timer = 60.0
    header_timeout_reply: Literal["408", "408-if-begun", "close"] = "408"
    request_timeout: Timer = OFF
    body_timeout: Timer = 60.0
    send_timeout: Timer = 60.0
    keepalive_timeout: Timer = 75.0
    keepalive_requests: Count = 1000
    max_age: Timer = OFF
    leaves: Leaves = "abort"
    http_1_0: bool = True


class LimitsSection(Section):
    """How large the parts of messages may be."""

    request_line: PositiveSize = 8 * 2**10
    header_line: PositiveSize = 8 * 2**10
    header_total: PositiveSize = 32 * 2**10
    header_count: Annotated[int, Field(ge=1)] = 100
    body: Limit = 0
    chunk_extensions: PositiveSize = 2**10
    response_header_line: PositiveSize = 64 * 2**10
    response_header_total: PositiveSize = 64 * 2**10
    response_header_count: Annotated[int, Field(ge=1)] = 100
    informational: Annotated[int, Field(ge=0)] = 32


class RequestSection(Section):
    """How requests go up."""

    buffering: Literal["off", "full"] = "off"
    expect: Literal["forward", "answer", "reject"] = "forward"


class UpstreamSection(Section):
    """How the proxy deals with servers."""

    http_version: Literal["1.1", "1.0"] = "1.1"
    connect_timeout: Timer = 5.0
    send_timeout: Timer = 60.0
    response_header_timeout: Timer = OFF
    read_timeout: Timer = OFF
    response_timeout: Timer = OFF
    stream_idle_timeout: Timer = OFF
    max_stream_duration: Timer = OFF
    keepalive: Count = 32
    keepalive_timeout: Timer = 60.0
    keepalive_requests: Count = 1000
    abort: Literal["fin", "rst"] = "fin"


class RetrySection(Section):
    """When a request is sent once more."""

    on: tuple[Literal["connect", "empty", "timeout", "invalid", "502", "503", "504"], ...] = ("connect",)
    tries: Annotated[int, Field(ge=1, le=100)] = 2
    methods: tuple[str, ...] = IDEMPOTENT
    non_idempotent: bool = False
    timeout: Timer = OFF


class ResponseSection(Section):
    """How answers come down."""

    buffering: Literal["off", "nginx", "full", "fixed"] = "off"
    buffer_size: PositiveSize = 4 * 2**10
    buffers: Annotated[int, Field(ge=1)] = 8
    spool: Size = 2**30
    flush_interval: Timer = OFF
    cork: Delay = 0.0
    x_accel_buffering: Literal["honour", "ignore"] = "ignore"
    incremental: Literal["honour", "ignore", "refuse"] = "ignore"
    event_stream: Literal["as-is", "unbuffered"] = "as-is"
    gzip: bool = False
    gzip_types: tuple[str, ...] = ("text/event-stream", "text/plain", "text/html", "application/json")
    gzip_flush: bool = True
    informational: Literal["forward", "drop", "as-final", "refuse"] = "forward"
    trailers: Literal["forward", "drop", "refuse"] = "forward"
    open_ended: Literal["chunk", "close"] = "chunk"
    on_cut: Literal["truncate", "clean", "rst"] = "truncate"
    cache: Literal["off", "coalesce"] = "off"
    cache_ttl: Timer = 120.0


class TunnelSection(Section):
    """What becomes of Upgrade, and of the connection behind it."""

    upgrade: Literal["strip", "websocket", "any", "deny"] = "any"
    deny_status: Status = 403
    check_101: bool = True
    idle_timeout: Timer = OFF
    idle_reset: Literal["either", "upstream", "client", "never"] = "either"
    max_lifetime: Timer = OFF
    max_lifetime_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    on_idle: Literal["fin", "rst", "silent", "silent-then-rst", "close-frame"] = "fin"
    close_code: Annotated[int, Field(ge=1000, le=4999)] = 1001
    half_close: Literal["close-both", "forward", "forward-client"] = "forward"


class HeadersSection(Section):
    """What becomes of header fields."""

    host: Literal["preserve", "upstream"] = "preserve"
    case: Literal["preserve", "lower", "canonical"] = "preserve"
    join: bool = False
    strip_nominated: bool = True
    underscores: Literal["keep", "drop", "reject"] = "keep"
    x_forwarded_for: Literal["append", "replace", "keep", "remove"] = "append"
    x_forwarded_for_port: bool = False
    x_forwarded_proto: Literal["set", "keep", "remove"] = "set"
    x_forwarded_host: Literal["set", "append", "keep", "remove"] = "set"
    x_forwarded_port: Literal["set", "keep", "remove"] = "keep"
    trusted: tuple[Network, ...] = ("127.0.0.0/8", "::1/128")
    forwarded: bool = False
    via: Pseudonym = "tricast"
    via_response: bool = False
    request_id: OptionalFieldName = ""
    request_start: OptionalFieldName = ""
    server: FieldValue = ""
    proxy_status: bool = True
    accept_encoding: FieldValue = ""
    request_add: Mapping[FieldName, FieldValue] = {}
    request_remove: tuple[str, ...] = ()
    response_add: Mapping[FieldName, FieldValue] = {}
    response_remove: tuple[str, ...] = ()


class BalanceSection(Section):
    """Which server gets a request."""

    method: Literal["round_robin", "least_connections", "random", "first", "hash"] = "round_robin"
    hash_key: Annotated[str, AfterValidator(_check_hash_key)] = "address"
    sticky: bool = False
    sticky_failover: Literal["rebalance", "fail"] = "rebalance"
    cookie: Annotated[str, AfterValidator(_check_cookie)] = "tricast_server"
    cookie_secret: str = ""
    cookie_strip: bool = True
    cookie_ttl: Duration = 0.0


class HealthSection(Section):
    """How the proxy learns that a server is not well."""

    path: UrlPath = ""
    interval: PositiveDuration = 2.0
    timeout: PositiveDuration = 1.0
    rise: Annotated[int, Field(ge=1)] = 2
    fall: Annotated[int, Field(ge=1)] = 3
    expect: Annotated[str, AfterValidator(_check_statuses)] = "200-399"
    max_fails: Count = 1
    fail_timeout: Duration = 10.0
    slow_start: Duration = 0.0


class DrainSection(Section):
    """How the proxy goes down."""

    grace: Delay = 30.0
    cut: Literal["fin", "close-frame"] = "close-frame"


class ErrorsSection(Section):
    """Which status says what."""

    request_line: Status = 414
    header: Status = 431
    header_count: Status = 431
    body: Status = 413
    connect: Status = 502
    connect_timeout: Status = 504
    header_timeout: Status = 504
    response_timeout: Status = 504
    bad_response: Status = 502
    empty_response: Status = 502
    no_server: Status = 503
    retry_after: PositiveDuration = 5.0
    text: Literal["problem", "html", "empty"] = "problem"


def _check_fault_status(value: int) -> int:
    if value != 0 and not 200 <= value <= 599:
        raise PydanticCustomError("status", "Input should be a status from 200 to 599, or 0")
    return value


FaultStatus = Annotated[int, AfterValidator(_check_fault_status)]


class FaultEntry(Section):
    """Something that goes wrong on purpose, for the share of exchanges that match."""

    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    path: UrlPath = ""
    transport: Literal["any", "http", "sse", "websocket"] = "any"
    delay_up: Delay = 0.0
    delay_down: Delay = 0.0
    jitter: Delay = 0.0
    rate_up: Size = 0
    rate_down: Size = 0
    segment: Size = 0
    reset_after: Moment = NEVER
    close_after: Moment = NEVER
    blackhole_after: Moment = NEVER
    status: FaultStatus = 0
    close_before_response: bool = False
    inject_1xx: tuple[Annotated[int, Field(ge=100, le=199)], ...] = ()
    drop_request_header: tuple[str, ...] = ()
    drop_response_header: tuple[str, ...] = ()
    stale_keepalive: bool = False
    duplicate_request: bool = False


class FaultsSection(Section):
    """What all faults share."""

    seed: int = 0


class ProxyAdminSection(AdminSection):
    """A listener of its own for whoever runs the proxy."""

    port: Port = 9091


class ProxyConfig(Section):
    """The whole configuration of a proxy. ``ProxyConfig()`` is all defaults; sections may be given as dicts."""

    proxy: ProxySection = ProxySection()
    server: tuple[ServerEntry, ...] = (ServerEntry(address="127.0.0.1:8080"),)
    client: ClientSection = ClientSection()
    limits: LimitsSection = LimitsSection()
    request: RequestSection = RequestSection()
    upstream: UpstreamSection = UpstreamSection()
    retry: RetrySection = RetrySection()
    response: ResponseSection = ResponseSection()
    tunnel: TunnelSection = TunnelSection()
    headers: HeadersSection = HeadersSection()
    balance: BalanceSection = BalanceSection()
    health: HealthSection = HealthSection()
    drain: DrainSection = DrainSection()
    errors: ErrorsSection = ErrorsSection()
    faults: FaultsSection = FaultsSection()
    fault: tuple[FaultEntry, ...] = ()
    tls: TlsSection = TlsSection()
    admin: ProxyAdminSection = ProxyAdminSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="after")
    def _servers_can_be_told_apart(self) -> Self:
        labels = [server.label for server in self.server]
        expected = "Input should be at least one [[server]], each with a name of its own"
        if not labels:
            raise PydanticCustomError("order", expected)
        if twice := next((label for label in labels if labels.count(label) > 1), ""):
            raise PydanticCustomError("order", f"{expected}: {{label}} is there twice", {"label": twice})
        return self


_SOURCE = Source(
    PROXY_ENV_PREFIX,
    base=profile_values,
    other=Other(
        frozenset(Config.model_fields) - frozenset(ProxyConfig.model_fields),
        frozenset(Config.model_fields) & frozenset(ProxyConfig.model_fields),
        "the server: tricast check {}",
    ),
)


def load_proxy_config(path: Path | str | None = None, *, overrides: Overrides | None = None) -> ProxyConfig:
    """Reads the configuration: defaults, then the profile, the file, ``TRICAST_PROXY_SECTION__KEY``, the overrides.

    Args:
        path: a TOML file, or None for none.
        overrides: section to key to value, as the command line gives them.

    Raises:
        ConfigError: everything that is wrong with file and environment, not only the first problem.
    """
    return load(ProxyConfig, _SOURCE, path, overrides=overrides)


def given_to_proxy(path: Path | str | None = None, *, overrides: Overrides | None = None) -> tuple[Layer, ...]:
    """Where what ``load_proxy_config`` reads is given; what counts more comes later.

    Raises:
        ConfigError: the file cannot be read.
    """
    return given(ProxyConfig, _SOURCE, path, overrides=overrides)


def sped_up(config: ProxyConfig) -> ProxyConfig:
    """The same with every timer divided by ``proxy.speed``, as the modules that keep the time want it."""
    return divided(config, config.proxy.speed)


def divided(section: SectionType, speed: float) -> SectionType:
    """A section with every timer in it divided."""
    changed: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if IS_TIMER in field.metadata:
            changed[name] = value / speed
        elif isinstance(value, Section):
            changed[name] = divided(value, speed)
        elif isinstance(value, tuple):
            changed[name] = tuple(divided(item, speed) if isinstance(item, Section) else item for item in value)
    return section.model_copy(update=changed)
