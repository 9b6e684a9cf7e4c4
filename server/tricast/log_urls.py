"""URLs of logs: which kind of log, and where it is."""

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

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
    path = text.removeprefix(SQLITE_URL)
    if path != text and path.strip("/") and path != ":memory:":
        return path
    try:
        return _parse_servers(text)
    except ValueError:
        raise ValueError(_EXPECTED) from None


def _parse_servers(text: str) -> RedisUrl | KafkaUrl:
    url = urlsplit(text)
    if url.query or url.fragment or not re.fullmatch(r"[!-~]+", text):
        raise ValueError(text)
    credentials, _, nodes = url.netloc.rpartition("@")
    path = url.path.removeprefix("/").rstrip("/")
    if url.scheme == "kafka":
        if credentials or _KAFKA_TOPIC.fullmatch(path) is None or path in (".", ".."):
            raise ValueError(text)
        return KafkaUrl(_nodes_of(nodes, _DEFAULT_PORTS["kafka"]), path)
    scheme = _REDIS.fullmatch(url.scheme)
    if scheme is None:
        raise ValueError(text)
    topology = scheme[2] or ""
    found = _nodes_of(nodes, _DEFAULT_PORTS.get(topology, _DEFAULT_PORTS["redis"]))
    name, database = _name_and_database(topology, path)
    username, _, password = credentials.partition(":")
    if len(found) > 1 and not topology:
        raise ValueError(text)
    return RedisUrl(found, topology, bool(scheme[1]), unquote(username), unquote(password), name, database)


def _name_and_database(topology: str, path: str) -> tuple[str, int]:
    name = ""
    if topology == SENTINEL:
        name, _, path = path.partition("/")
        if not name:
            raise ValueError(path)
    if path and (topology == CLUSTER or re.fullmatch(r"[0-9]{1,5}", path) is None):
        raise ValueError(path)
    return unquote(name), int(path or 0)


def _nodes_of(text: str, default_port: int) -> tuple[Node, ...]:
    nodes = [urlsplit(f"//{each}") for each in text.split(",")]
    if not all(node.hostname for node in nodes):
        raise ValueError(text)
    return tuple(Node(node.hostname or "", default_port if node.port is None else node.port) for node in nodes)
