"""Redis Cluster: masters that share the slots, each with its replicas."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from engines.daemon import HOST, START_SECONDS, NotStarted, Port, Service, wait_until
from engines.redis import RedisServer, parse_facts
from engines.resp import ReplyError

_SLOTS = 16384
#: Redis gives up a failover that it was told to make after five seconds.
_FAILOVER_SECONDS = 6.0


class ClusterNode(RedisServer):
    """One server of a cluster. When it loses its data, it stays who it is."""

    def __init__(self, folder: Path, *, program: str, config: Sequence[str]) -> None:
        super().__init__(folder, program=program, config=["cluster-enabled yes", *config])
        self.bus = Port()  # by itself it would be the port + 10,000, which may be no port

    @property
    def id(self) -> str:
        """As the cluster calls it."""
        found: bytes = self.execute("CLUSTER", "MYID")
        return found.decode()

    def command(self) -> Sequence[str]:
        return [*super().command(), "--cluster-port", str(self.bus.number)]

    def free_port(self) -> None:
        super().free_port()
        self.bus.release()

    def facts(self) -> dict[str, str]:
        """What ``CLUSTER INFO`` tells."""
        return parse_facts(self.execute("CLUSTER", "INFO"))

    def ranges(self) -> dict[tuple[int, int], tuple[int, frozenset[int]]]:
        """First and last slot to the port of the master and those of its replicas, as this one sees it."""
        rows = self.execute("CLUSTER", "SLOTS")
        return {(row[0], row[1]): (row[2][1], frozenset(one[1] for one in row[3:])) for row in rows}


class RedisCluster(Service):
    """A cluster.

    It is whole when all servers that run, but for those that are paused, say so, and see the same one.

    Attributes:
        nodes: all servers: the masters that it began with, then the replicas.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        masters: int = 3,
        replicas: int = 0,
        node_timeout_ms: int = 2000,
        program: str = "redis",
        config: Sequence[str] = (),
    ) -> None:
        """Writes the configurations.

        Args:
            folder: where it stays; a temporary one by default.
            masters: how many.
            replicas: of each master.
            node_timeout_ms: after which a server that is silent has failed; a replica is elected after another second.
            program: Redis or Valkey, one of ``engines.arguments.PROGRAMS``.
            config: further lines of redis.conf.
        """
        super().__init__(folder)
        lines = [f"cluster-node-timeout {node_timeout_ms}", "cluster-allow-replica-migration no", *config]
        self._masters = masters
        self.nodes = [
            ClusterNode(self.folder / f"node-{number}", program=program, config=lines)
            for number in range(masters * (1 + replicas))
        ]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}"

    @property
    def daemons(self) -> Sequence[ClusterNode]:
        return self.nodes

    @property
    def masters(self) -> list[ClusterNode]:
        """The running servers that have slots now, by the first of these."""
        ranges = self._living()[0].ranges()
        ports = [master for _, (master, _) in sorted(ranges.items())]
        return [node for port in dict.fromkeys(ports) for node in self.nodes if node.port == port and node.is_running]

    def replicas_of(self, master: ClusterNode) -> list[ClusterNode]:
        """The running servers that follow this one."""
        return [node for node in self._living() if node is not master and node.follows(master)]

    def master_of(self, key: str | bytes) -> ClusterNode:
        """Where a key is kept."""
        node = self._living()[0]
        slot = node.execute("CLUSTER", "KEYSLOT", key)
        port = next(master for (first, last), (master, _) in node.ranges().items() if first <= slot <= last)
        return next(node for node in self.nodes if node.port == port)

    def start(self) -> None:
        begins = not any((node.folder / "nodes.conf").exists() for node in self.nodes)
        stopped = [node for node in self.nodes if not node.is_running]
        for node in stopped:
            node.launch()
        for node in stopped:
            node.wait_ready()
        if begins:
            self._form()
        self.wait_whole()

    def wait_whole(self, within: float = START_SECONDS) -> None:
        """Returns when the cluster is whole for every server that runs, and all replicas that run have all data.

        Raises:
            NotStarted: it was not within so many seconds.
        """
        try:
            wait_until(self.is_whole, "the cluster to be whole", within)
        except TimeoutError as error:
            views = [f"{node.name}: {node.facts()}" for node in self._living()]
            raise NotStarted("\n".join([str(error), *views])) from error

    def is_whole(self) -> bool:
        """Whether every server that runs says that the cluster is in order, and all have the same view of it."""
        living = self._living()
        by_port = {node.port: node for node in living}
        if any(node.facts()["cluster_state"] != "ok" for node in living):
            return False
        views = [node.ranges() for node in living]
        if not views or any(view != views[0] for view in views):
            return False
        pairs = {(replica, master) for master, replicas in views[0].values() for replica in replicas}
        seen = {master for master, _ in views[0].values()} | {replica for replica, _ in pairs}
        return seen >= set(by_port) and all(
            by_port[replica].follows(by_port[master]) for replica, master in pairs if {replica, master} <= set(by_port)
        )

    def promote(self, replica: ClusterNode) -> None:
        """Makes a replica the master, in order and without loss, and returns when all know."""
        wait_until(lambda: _ask_to_be_master(replica) and _becomes_master(replica), f"{replica.name} to be a master")
        self.wait_whole()

    def _living(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.is_running and not node.is_paused]

    def _form(self) -> None:
        first, *others = self.nodes
        masters = self.nodes[: self._masters]
        bounds = [number * _SLOTS // len(masters) for number in range(len(masters) + 1)]
        for epoch, (node, (begin, end)) in enumerate(zip(masters, pairwise(bounds), strict=True), 1):
            node.execute("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
            node.execute("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in others:
            first.execute("CLUSTER", "MEET", HOST, node.port, node.bus.number)
        known = str(len(self.nodes))
        wait_until(
            lambda: all(node.facts()["cluster_known_nodes"] == known for node in self.nodes), "all to know each other"
        )
        for number, node in enumerate(self.nodes[self._masters :]):
            master = masters[number % len(masters)].id
            wait_until(partial(_follow, node, master), f"{node.name} to follow its master")


def _ask_to_be_master(replica: ClusterNode) -> bool:
    """Whether it could be told to: it needs a connection to its master, which is back a moment after a pause."""
    try:
        return bool(replica.execute("CLUSTER", "FAILOVER") == b"OK")
    except ReplyError:
        return replica.role == "master"


def _becomes_master(replica: ClusterNode) -> bool:
    """Whether it does, in the time that Redis gives it; then it has to be told again."""
    try:
        wait_until(lambda: replica.role == "master", "", _FAILOVER_SECONDS)
    except TimeoutError:
        return False
    return True


def _follow(node: ClusterNode, master: str) -> bool:
    """Whether it could be told to: it has to have shaken hands with its master."""
    try:
        return bool(node.execute("CLUSTER", "REPLICATE", master) == b"OK")
    except ReplyError:
        return False
