"""URLs of logs: which kind of log, and where it is."""

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

MEMORY_URL = "memory:"
#: What the URL of a log in a file begins with; the rest is the path, as SQLAlchemy has it.
SQLITE_URL = "sqlite:///"

#: What there can be beside one Redis server.
CLUSTER = "cluster"
SENTINEL = "sentinel"

_REDIS = re.compile(r"redis(s?)(?:\+(cluster|sentinel))?")
_DEFAULT_PORTS = {"redis": 6379, SENTINEL: 26379, "kafka": 9092}
_KAFKA_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_EXPECTED = (
    'Input should be "memory:", "sqlite:///path" (four slashes: from the root), "redis://host:port/database", '
    '"redis+cluster://host:port,host:port", "redis+sentinel://host:port,host:port/name/database" '
    '("rediss" in the place of "redis" for TLS), or "kafka://host:port,host:port/topic"'
)
#: What a URL of each kind looks like.
_EXAMPLES = {
    "": "redis://user:password@host:6379/0",
    CLUSTER: "redis+cluster://host:6379,host:6379",
    SENTINEL: "redis+sentinel://host:26379,host:26379/name/0",
    "kafka": "kafka://host:9092,host:9092/topic",
}


class Node(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RedisUrl(NamedTuple):
    """A Redis server or several. As text, its URL without user name and password.

    Attributes:
        nodes: of a cluster some, of Sentinel its own.
        topology: ``cluster``, ``sentinel``, or nothing for one server.
        has_tls: whether to speak TLS, with Sentinel also.
        username: empty for the default user.
        password: empty for none.
        name: what Sentinel calls the servers; else empty.
        database: its number.
    """

    nodes: tuple[Node, ...]
    topology: str
    has_tls: bool
    username: str
    password: str
    name: str
    database: int

    def __str__(self) -> str:
        scheme = "+".join(filter(None, ("rediss" if self.has_tls else "redis", self.topology)))
        path = [_written(self.nodes), quote(self.name, safe=""), "" if self.topology == CLUSTER else str(self.database)]
        return f"{scheme}://{'/'.join(filter(None, path))}"


class KafkaUrl(NamedTuple):
    """A Kafka cluster and a topic of its. As text, its URL.

    Attributes:
        nodes: some of its brokers.
        topic: its name.
    """

    nodes: tuple[Node, ...]
    topic: str

    def __str__(self) -> str:
        return f"kafka://{_written(self.nodes)}/{self.topic}"


def _written(nodes: Iterable[Node]) -> str:
    return ",".join(map(str, nodes))


LogUrl = str | RedisUrl | KafkaUrl


def parse_log_url(text: str) -> LogUrl:
    """Reads the URL of a log: ``memory:``, the path of a file, or where to find servers.

    Raises:
        ValueError: it is none; says what was expected, and repeats nothing, for there may be a password in it.
    """
    if text == MEMORY_URL:
        return text
    scheme = text.partition(":")[0].lower()
    if scheme == "sqlite":
        return _parse_path(text)
    redis = _REDIS.fullmatch(scheme)
    if redis is None and scheme != "kafka":
        raise ValueError(_EXPECTED)
    kind = "kafka" if redis is None else redis[2] or ""
    parts = _parts_of(text, kind)
    nodes = _nodes_of(parts.netloc.rpartition("@")[2], kind)
    path = parts.path.removeprefix("/").rstrip("/")
    if redis is None:
        return _parse_kafka(parts, nodes, path)
    return _parse_redis(parts, nodes, path, kind, has_tls=bool(redis[1]))


def _parse_path(text: str) -> str:
    path = text.removeprefix(SQLITE_URL)
    if path == text:
        raise _unexpected(
            'three slashes before the path, or four for one from the root, as in "sqlite:////var/lib/a.db"'
        )
    if not path.strip("/"):
        raise _unexpected('the path of a file, as in "sqlite:///events.db"')
    if path == ":memory:":
        raise ValueError(f'Input should be "{MEMORY_URL}", for a log in memory')
    return path


def _parts_of(text: str, kind: str) -> SplitResult:
    if re.fullmatch(r"[!-~]+", text) is None:
        raise _unexpected("visible ASCII characters only, others as %20 and the like", kind)
    if not text.partition(":")[2].startswith("//"):
        raise _unexpected('"//" before the host', kind)
    try:
        parts = urlsplit(text)
    except ValueError:
        expected = "brackets around an IPv6 address, as in [::1], and nowhere else: in a password they are %5B and %5D"
        raise _unexpected(expected, kind) from None
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" and "@" not in parts.netloc:
        raise _unexpected("/, ? and # in a password as %2F, %3F and %23", kind)
    if parts.query:
        raise _unexpected('nothing from "?" on: what there is to set is in [log] (log.timeout, log.tls_ca)', kind)
    if parts.fragment:
        raise _unexpected('nothing from "#" on', kind)
    return parts


def _nodes_of(text: str, kind: str) -> tuple[Node, ...]:
    if not text:
        raise _unexpected("a host", kind)
    return tuple(_node_of(each, kind) for each in text.split(","))


def _node_of(text: str, kind: str) -> Node:
    try:
        node = urlsplit(f"//{text}")
        host, port = node.hostname, node.port
    except ValueError:
        raise _unexpected("a port from 1 to 65535 behind each colon, and IPv6 addresses in brackets", kind) from None
    if not host:
        raise _unexpected("a host on each side of a comma, and before each port", kind)
    if port == 0:
        raise _unexpected("a port from 1 to 65535", kind)
    return Node(host, port or _DEFAULT_PORTS.get(kind, _DEFAULT_PORTS["redis"]))


def _parse_kafka(parts: SplitResult, nodes: tuple[Node, ...], path: str) -> KafkaUrl:
    if "@" in parts.netloc:
        raise _unexpected("no user and no password: they are settings in log.kafka, as sasl.username", "kafka")
    if not path:
        raise _unexpected("the name of a topic behind the hosts", "kafka")
    if _KAFKA_TOPIC.fullmatch(path) is None or path in (".", ".."):
        raise _unexpected("the name of one topic, of 1 to 249 letters, digits, dots, underscores and hyphens", "kafka")
    return KafkaUrl(nodes, path)


def _parse_redis(parts: SplitResult, nodes: tuple[Node, ...], path: str, kind: str, *, has_tls: bool) -> RedisUrl:
    if len(nodes) > 1 and not kind:
        raise _unexpected('one host; several are for "redis+cluster" and "redis+sentinel"')
    name = ""
    if kind == SENTINEL:
        name, _, path = path.partition("/")
        if not name:
            raise _unexpected("the name by which the sentinels know the primary", kind)
    if path and kind == CLUSTER:
        raise _unexpected("nothing behind the hosts: a cluster has one database, and no path", kind)
    if path and re.fullmatch(r"[0-9]{1,5}", path) is None:
        raise _unexpected("the number of a database, or nothing, behind the last slash", kind)
    username, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return RedisUrl(nodes, kind, has_tls, unquote(username), unquote(password), unquote(name), int(path or 0))


def _unexpected(expected: str, kind: str | None = None) -> ValueError:
    example = "" if kind is None else f', as in "{_EXAMPLES[kind]}"'
    return ValueError(f"Input should be a URL with {expected}{example}")
