"""The configuration: typed sections with their defaults, read from TOML with environment overrides.

Owns every default in the program; how a file is read is in ``schema.py``. Knows nothing of who uses a value. The keys,
their meaning and the danger of changing them are told in ``config/server.toml``, which a test compares with the
defaults here.
"""

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from tricast.addresses import parse_network
from tricast.errors import RemoteProtocolError
from tricast.event import DEFAULT_TYPE, SUBJECT, check_type, is_pattern, is_valid_pattern
from tricast.log_urls import MEMORY_URL, KafkaUrl, RedisUrl, parse_log_url
from tricast.schema import Duration, Other, Overrides, Port, PositiveDuration, PositiveSize, Section, Size, Source, load

ENV_PREFIX = "TRICAST_"
#: In the topic of a source: what names it in the record.
SOURCE_KEY = "{key}"
#: Begins with the same, but is for the proxy.
PROXY_ENV_PREFIX = "TRICAST_PROXY_"

#: RFC 7518 3.2: a key for HS256 is at least as long as its hash.
MIN_SECRET_BYTES = 32
#: What a host begins with that is a Unix socket, and one that is opened by systemd.
UNIX_HOST = "unix:"
SYSTEMD_HOST = "systemd:"

_MAX_WORKERS = 1024
#: sun_path without the zero at its end (unix(7)).
_MAX_SOCKET_PATH_BYTES = 107

#: How many a second.
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _check_log_url(value: object) -> object:
    # The value is not repeated: a URL may hold a password.
    try:
        parse_log_url(value if isinstance(value, str) else "")
    except ValueError as error:
        raise PydanticCustomError("order", "{expected}", {"expected": str(error)}) from None
    return value


def _check_namespace(value: str) -> str:
    # Redis finds the slot of a key by what is between braces.
    if re.fullmatch(r"[!-z|~]{1,64}", value) is None:
        expected = "1 to 64 visible ASCII characters other than { and }"
        raise PydanticCustomError("namespace", "Input should be {expected}", {"expected": expected})
    return value


def _check_template(value: str) -> str:
    is_topic = is_valid_pattern(value.replace(SOURCE_KEY, "x")) and not is_pattern(value)
    if value.count(SOURCE_KEY) != 1 or not is_topic:
        expected = f'a topic with {SOURCE_KEY} in it such as "orders.{SOURCE_KEY}"'
        raise PydanticCustomError("template", "Input should be {expected}", {"expected": expected})
    return value


def _check_source_type(value: str) -> str:
    try:
        return check_type(value)
    except RemoteProtocolError as error:
        raise PydanticCustomError("type", "{why}", {"why": error.detail}) from None


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


def _check_host(value: str) -> str:
    path = value.removeprefix(UNIX_HOST)
    if path != value and not 0 < len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
        expected = f'a path of 1 to {_MAX_SOCKET_PATH_BYTES} bytes behind "unix:"'
        raise PydanticCustomError("path", "Input should be {expected}", {"expected": expected})
    return value


def _parse_mode(value: object) -> object:
    # As a number it would be taken for one in base 10, which is never what is meant.
    if not isinstance(value, str) or re.fullmatch(r"0?[0-7]{3}", value) is None:
        raise PydanticCustomError("mode", 'Input should be a mode such as "0660"')
    return value


def _check_network(value: str) -> str:
    try:
        parse_network(value)
    except ValueError:
        expected = 'a network such as "10.0.0.0/8", or "unix"'
        raise PydanticCustomError("network", "Input should be {expected}", {"expected": expected}) from None
    return value


Host = Annotated[str, AfterValidator(_check_host)]


def _check_pattern_text(value: str) -> str:
    if not is_valid_pattern(value) or SUBJECT in value:
        expected = f'topic patterns such as "news.>", where only a token\'s own may have {SUBJECT}'
        raise PydanticCustomError("pattern", "Input should be {expected}", {"expected": expected})
    return value


def _check_api_key_hash(value: object) -> object:
    if not isinstance(value, str) or re.fullmatch(r"sha256:[0-9a-f]{64}", value) is None:
        raise PydanticCustomError("order", 'Input should be "sha256:" and 64 hexadecimal digits: tricast token key')
    return value


def _check_ticket_secret(value: object) -> object:
    if not isinstance(value, str) or 0 < len(value.encode(errors="replace")) < MIN_SECRET_BYTES:
        raise PydanticCustomError("order", f"Input should be empty, or {MIN_SECRET_BYTES} bytes or more")
    return value


def _check_cookie_name(value: str) -> str:
    # RFC 6265 4.1.1: a token (RFC 9110 5.6.2).
    if value and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", value) is None:
        raise PydanticCustomError("cookie", 'Input should be the name of a cookie such as "__Host-token", or empty')
    return value


def _check_jwks_url(value: object) -> object:
    # The value is not repeated: a URL may hold a password.
    if value == "":
        return value
    try:
        url = urlsplit(value) if isinstance(value, str) and re.fullmatch(r"[!-~]+", value) else None
        is_right = url is not None and bool(url.hostname) and url.username is None and (url.port or 0) >= 0
    except ValueError:
        url, is_right = None, False
    if url is None or not is_right or not (url.scheme == "https" or (url.scheme == "http" and _is_loopback(url))):
        raise PydanticCustomError(
            "order", "Input should be an https URL without a password; http is for the machine itself (127.0.0.1)"
        )
    return value


def _is_loopback(url: SplitResult) -> bool:
    host = url.hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


#: What is in no representation and no message.
Secret = Annotated[str, Field(repr=False)]
PatternText = Annotated[str, AfterValidator(_check_pattern_text)]


class ServerSection(Section):
    """Where to listen, and what to serve beside the events."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    unix_mode: Annotated[str, BeforeValidator(_parse_mode)] = "0660"
    trusted_proxies: tuple[Annotated[str, AfterValidator(_check_network)], ...] = ()
    forwarded: Literal["x-forwarded", "forwarded"] = "x-forwarded"
    proxy_protocol: bool = False
    workers: Annotated[int | Literal["auto"], BeforeValidator(_parse_workers)] = 1
    backlog: Annotated[int, Field(ge=1, le=65535)] = 4096
    max_connection_age: Duration = 0.0
    page: bool = True
    cors_origins: tuple[Annotated[str, AfterValidator(_check_origin)], ...] = ()

    @model_validator(mode="after")
    def _somebody_may_speak_the_proxy_protocol(self) -> Self:
        if self.proxy_protocol and not self.trusted_proxies:
            raise PydanticCustomError("order", "Input should be trusted_proxies as well, where there is proxy_protocol")
        return self


class EventsSection(Section):
    """How much history is kept for those who come back."""

    history: Annotated[int, Field(ge=1)] = 1000
    history_age: PositiveDuration = 86400.0
    history_size: PositiveSize = 256 * 2**20


class SourceEntry(Section):
    """A topic of Kafka's that other programs write, and what becomes of its records here."""

    kafka_topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    topic: Annotated[str, AfterValidator(_check_template)] = SOURCE_KEY
    header: str = ""
    type: Annotated[str, AfterValidator(_check_source_type)] = DEFAULT_TYPE
    type_header: str = ""


class LogSection(Section):
    """Where the events are kept."""

    url: Annotated[Secret, BeforeValidator(_check_log_url)] = MEMORY_URL
    synchronous: Literal["full", "normal", "off"] = "full"
    cache_size: PositiveSize = 64 * 2**20
    shards: Annotated[int, Field(ge=1, le=256)] = 1
    length: Annotated[int, Field(ge=1)] = 100_000
    delivery: Literal["stream", "pubsub"] = "stream"
    namespace: Annotated[str, AfterValidator(_check_namespace)] = "tricast"
    replicas: Annotated[int, Field(ge=0, le=100)] = 0
    timeout: PositiveDuration = 5.0
    reconnect: PositiveDuration = 0.1
    reconnect_max: PositiveDuration = 5.0
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    kafka: Annotated[dict[str, str], Field(repr=False)] = {}  # noqa: RUF012 - a default of pydantic's is copied
    source: tuple[SourceEntry, ...] = ()

    @model_validator(mode="after")
    def _there_is_a_log_for_it(self) -> Self:
        found = parse_log_url(self.url)
        is_redis, is_kafka = isinstance(found, RedisUrl), isinstance(found, KafkaUrl)
        for key, is_used, is_right, kinds in (
            ("shards", self.shards != 1, is_redis or is_kafka, "redis or kafka"),
            ("delivery", self.delivery != "stream", is_redis, "redis"),
            ("replicas", self.replicas, is_redis, "redis"),
            ("kafka", self.kafka, is_kafka, "kafka"),
            ("source", self.source, is_kafka, "kafka"),
        ):
            if is_used and not is_right:
                expected = f"Input should be a log.url for {kinds}, where there is log.{key}"
                raise PydanticCustomError("order", "{expected}", {"expected": expected})
        if self.tls_key and not self.tls_certificate:
            raise PydanticCustomError("order", "Input should be a tls_certificate as well, where there is a tls_key")
        return self


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
    anonymous: bool = False


class WebSocketSection(Section):
    """WebSocket connections."""

    ping_interval: PositiveDuration = 20.0
    ping_timeout: PositiveDuration = 60.0
    close_timeout: PositiveDuration = 5.0
    max_pings: Annotated[int, Field(ge=1)] = 10
    max_message: PositiveSize = 64 * 2**10
    max_fragments: Annotated[int, Field(ge=1)] = 1024
    message_rate: Rate = 0.0
    message_burst: Annotated[int, Field(ge=1)] = 100
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
    rate: Rate = 0.0
    burst: Annotated[int, Field(ge=1)] = 100
    idempotency_window: PositiveDuration = 600.0
    idempotency_keys: Annotated[int, Field(ge=1)] = 10_000
    require_client_certificate: bool = False

    @model_validator(mode="after")
    def _an_event_fits_into_a_body(self) -> Self:
        if self.max_body < self.max_event:
            raise PydanticCustomError("order", "Input should be a max_body of at least max_event")
        return self


class LimitsSection(Section):
    """How much anybody may ask of the server."""

    connections: Annotated[int, Field(ge=0)] = 0
    connections_per_address: Annotated[int, Field(ge=0)] = 0
    accept_rate: Annotated[int, Field(ge=0)] = 0
    accept_rate_per_address: Annotated[int, Field(ge=0)] = 0
    reserved_descriptors: Annotated[int, Field(ge=8)] = 64
    retry_after: PositiveDuration = 5.0
    head_size: PositiveSize = 16 * 2**10
    head_fields: Annotated[int, Field(ge=1)] = 100
    target_size: PositiveSize = 8 * 2**10
    head_timeout: PositiveDuration = 10.0
    body_timeout: PositiveDuration = 30.0
    receive_rate: PositiveSize = 512
    idle_timeout: PositiveDuration = 75.0
    write_timeout: PositiveDuration = 30.0
    send_ahead: Annotated[PositiveSize, Field(le=2**30)] = 128 * 2**10
    send_buffer: Annotated[Size, Field(le=2**30)] = 0
    write_rate: Size = 256
    unsent: PositiveSize = 2**20
    topics: Annotated[int, Field(ge=1)] = 100
    topic_size: PositiveSize = 255
    subscribers_per_topic: Annotated[int, Field(ge=0)] = 0
    connections_per_subject: Annotated[int, Field(ge=0)] = 0
    memory: Size = 0


class KeyEntry(Section):
    """One key that tokens may be signed with, for one algorithm."""

    algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"]
    id: str = ""
    secret: Secret = ""
    public: str = ""
    file: str = ""

    @model_validator(mode="after")
    def _there_is_one_key(self) -> Self:
        if [bool(self.secret), bool(self.public), bool(self.file)].count(True) != 1:
            raise PydanticCustomError("order", "Input should be one of secret, public and file")
        if self.secret and self.algorithm != "HS256":
            raise PydanticCustomError("order", "Input should be public or file: only HS256 has a secret")
        if self.public and self.algorithm == "HS256":
            raise PydanticCustomError("order", "Input should be secret or file: HS256 has no public key")
        return self


class ApiKeyEntry(Section):
    """One API key, known by its hash, and what it allows."""

    name: Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]
    hash: Annotated[Secret, BeforeValidator(_check_api_key_hash)]
    subscribe: tuple[PatternText, ...] = ()
    publish: tuple[PatternText, ...] = ()


class AuthSection(Section):
    """Who may do what. Without a key, a JWKS URL, an API key and a rule for everybody, everybody may do everything."""

    key: Annotated[tuple[KeyEntry, ...], Field(repr=False)] = ()
    jwks_url: Annotated[str, BeforeValidator(_check_jwks_url)] = ""
    jwks_refresh: PositiveDuration = 3600.0
    jwks_cooldown: PositiveDuration = 30.0
    jwks_timeout: PositiveDuration = 5.0
    jwks_size: PositiveSize = 256 * 2**10
    issuer: tuple[str, ...] = ()
    audience: tuple[str, ...] = ()
    leeway: Duration = 10.0
    require_exp: bool = True
    max_token: PositiveSize = 8 * 2**10
    max_patterns: Annotated[int, Field(ge=1)] = 100
    cached_tokens: Annotated[int, Field(ge=0)] = 10_000
    api_key: Annotated[tuple[ApiKeyEntry, ...], Field(repr=False)] = ()
    anonymous_subscribe: tuple[PatternText, ...] = ()
    anonymous_publish: tuple[PatternText, ...] = ()
    ticket_lifetime: PositiveDuration = 30.0
    ticket_secret: Annotated[Secret, BeforeValidator(_check_ticket_secret)] = ""
    max_tickets: Annotated[int, Field(ge=1)] = 100_000
    max_tickets_per_subject: Annotated[int, Field(ge=0)] = 1000
    cookie: Annotated[str, AfterValidator(_check_cookie_name)] = ""
    token_in_query: bool = False

    @model_validator(mode="after")
    def _what_is_checked_has_a_key(self) -> Self:
        # Otherwise what looks closed would be open to everybody.
        if not self.is_on and any((self.issuer, self.audience, self.ticket_secret, self.cookie, self.token_in_query)):
            raise PydanticCustomError(
                "order",
                "Input should be a key, a jwks_url, an api_key or an anonymous rule as well: without, it is off",
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether anybody is asked who they are."""
        return bool(self.key or self.jwks_url or self.api_key or self.anonymous_subscribe or self.anonymous_publish)


class TlsSection(Section):
    """The certificate with which the server shows who it is."""

    certificate: str = ""
    key: str = ""

    @model_validator(mode="after")
    def _a_key_has_a_certificate(self) -> Self:
        if self.key and not self.certificate:
            raise PydanticCustomError("order", "Input should be a certificate as well, where there is a key")
        return self


class ServerTlsSection(TlsSection):
    """The same, and whose certificates the server takes."""

    client_ca: str = ""
    expiry_warning: PositiveDuration = 14 * 86400.0

    @model_validator(mode="after")
    def _who_asks_shows_one(self) -> Self:
        if self.client_ca and not self.certificate:
            raise PydanticCustomError("order", "Input should be a certificate as well, where there is a client_ca")
        return self


class DrainSection(Section):
    """How the server goes down."""

    notice: Duration = 0.0
    period: Duration = 3.0
    grace: Duration = 5.0
    retry_after: PositiveDuration = 2.0
    reconnects_per_second: Annotated[int, Field(ge=1)] = 5000

    @property
    def seconds(self) -> float:
        """How long going down takes at most."""
        return self.notice + self.period + self.grace


class AdminSection(Section):
    """A listener of its own for health and metrics."""

    enabled: bool = False
    host: Host = "127.0.0.1"
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
    auth: Annotated[AuthSection, Field(repr=False)] = AuthSection()
    tls: ServerTlsSection = ServerTlsSection()
    drain: DrainSection = DrainSection()
    admin: AdminSection = AdminSection()
    probe: Annotated[ProbeSection, Field(repr=False)] = ProbeSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="after")
    def _cookies_are_for_named_origins(self) -> Self:
        if self.auth.cookie and "*" in self.server.cors_origins:
            raise PydanticCustomError(
                "order",
                'Input should be server.cors_origins without "*" where there is an auth.cookie: '
                "every page on the web could act for its visitors",
            )
        return self

    @model_validator(mode="after")
    def _listeners_differ(self) -> Self:
        if not self.admin.enabled:
            return self
        hosts = (self.admin.host, self.server.host)
        if hosts[0] == hosts[1] and hosts[0].startswith((UNIX_HOST, SYSTEMD_HOST)):
            raise PydanticCustomError("order", "Input should be an admin.host other than server.host")
        if SYSTEMD_HOST in hosts and all(host.startswith(SYSTEMD_HOST) for host in hosts):
            # "systemd:" alone is all of them.
            raise PydanticCustomError("order", 'Input should be the names of sockets behind both "systemd:"')
        if hosts[0] == hosts[1] and self.admin.port == self.server.port != 0:
            raise PydanticCustomError("order", "Input should be an admin.port other than server.port")
        return self

    @model_validator(mode="after")
    def _a_certificate_that_is_required_can_be_had(self) -> Self:
        if self.publish.require_client_certificate and not self.tls.client_ca:
            expected = "Input should be a tls.client_ca as well, where publish.require_client_certificate is true"
            raise PydanticCustomError("order", expected)
        return self


#: The sections of the proxy's configuration that are in no server's, and those that are.
PROXY_SECTIONS = frozenset(
    ("proxy", "client", "request", "upstream", "retry", "response", "tunnel", "headers", "balance", "health")
) | {"errors", "faults", "fault"}
SHARED_SECTIONS = frozenset(("server", "limits", "tls", "drain", "admin", "logging"))

_SOURCE = Source(
    ENV_PREFIX,
    other_prefixes=(PROXY_ENV_PREFIX,),
    other=Other(PROXY_SECTIONS, SHARED_SECTIONS, "the proxy: tricast proxy --config {} --check"),
)


def load_config(path: Path | str | None = None, *, overrides: Overrides | None = None) -> Config:
    """Reads the configuration: defaults, then the file, then ``TRICAST_SECTION__KEY``, then the overrides.

    Args:
        path: a TOML file, or None for none.
        overrides: section to key to value, as the command line gives them.

    Raises:
        ConfigError: everything that is wrong with file and environment, not only the first problem.
    """
    return load(Config, _SOURCE, path, overrides=overrides)


def differences(one: Config, other: Config) -> list[str]:
    """The keys in which they differ, with their sections."""
    return [
        f"{section}.{key}"
        for section, keys in one
        for key, value in keys
        if value != getattr(getattr(other, section), key)
    ]


def workers_of(config: Config) -> int:
    """How many processes the configuration asks for; "auto" is one for each CPU that this process may use."""
    workers = config.server.workers
    return len(os.sched_getaffinity(0)) if workers == "auto" else workers
