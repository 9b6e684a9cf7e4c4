"""The servers behind the proxy, as they are at the moment: who is up, how busy, and who leaves."""

from collections import Counter
from enum import Enum, auto

from tricast_proxy.config import ServerEntry


class Health(Enum):
    """What is known of a server."""

    UP = auto()
    DOWN = auto()
    DRAINING = auto()


class Server:
    """One server.

    Args:
        entry: its configuration.

    Attributes:
        entry: its configuration.
        label: by which people know it.
        host: without brackets.
        port: to connect to.
        health: whether it gets requests; one that is draining keeps those that it has.
        active: exchanges and tunnels that are with it now.
        counts: what happened with it, by name.
    """

    def __init__(self, entry: ServerEntry) -> None:
        self.entry = entry
        self.label = entry.label
        host, _, port = entry.address.rpartition(":")
        self.host = host.strip("[]")
        self.port = int(port)
        self.health = Health.UP
        self.active = 0
        self.counts: Counter[str] = Counter()

    @property
    def address(self) -> str:
        """``host:port``, as the configuration has it."""
        return self.entry.address

    @property
    def is_full(self) -> bool:
        """Whether it has as much to do as it may have."""
        return 0 < self.entry.max_connections <= self.active
