"""Redis with Sentinel: a primary, its replica, and three sentinels that elect the replica when the primary is gone."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from engines.daemon import START_SECONDS, Daemon, NotStarted, Service, wait_until
from engines.redis import ADMINISTRATOR, RedisProgram, RedisServer
from engines.resp import ReplyError

#: What the sentinels call it.
MASTER_NAME = "mymaster"
_SENTINELS = 3
_QUORUM = 2


class Sentinel(RedisProgram):
    """One of those that watch."""

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.address}/{MASTER_NAME}"

    def command(self) -> Sequence[str]:
        return [*super().command(), "--port", str(self.port), "--sentinel"]

    def wipe(self) -> None:
        """It has no data."""

    def wait_ready(self) -> None:
        super().wait_ready()
        # Otherwise it asks the servers who they are every ten seconds. It waits for four times the period of publishing
        # before it makes a replica of a primary that came back: with a shorter one, it would undo what others decide.
        self.execute("SENTINEL", "DEBUG", "INFO-PERIOD", 500, "PUBLISH-PERIOD", 1000)

    def primary_port(self) -> int:
        """Where the primary is, as this one sees it."""
        _, port = self.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME)
        return int(port)

    def facts(self) -> dict[str, str]:
        """What ``SENTINEL MASTER`` tells."""
        return _pair(self.execute("SENTINEL", "MASTER", MASTER_NAME))

    def replicas(self) -> list[dict[str, str]]:
        """What ``SENTINEL REPLICAS`` tells of each."""
        return [_pair(reply) for reply in self.execute("SENTINEL", "REPLICAS", MASTER_NAME)]

    def sees(self, primary: RedisServer, replica: RedisServer) -> bool:
        """Whether it sees them as such, in order, and knows all other sentinels."""
        facts, replicas = self.facts(), self.replicas()
        wanted = {"flags": "master", "port": str(primary.port), "num-other-sentinels": str(_SENTINELS - 1)}
        following = {"flags": "slave", "port": str(replica.port), "role-reported": "slave", "master-link-status": "ok"}
        return facts.items() >= wanted.items() and len(replicas) == 1 and replicas[0].items() >= following.items()


def _pair(reply: list[bytes]) -> dict[str, str]:
    parts = [part.decode() for part in reply]
    return dict(zip(parts[::2], parts[1::2], strict=True))


class RedisSentinel(Service):
    """A primary and a replica under watch.

    Attributes:
        servers: the primary that it began with, and the replica.
        sentinels: all three.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        down_after_ms: int = 1000,
        program: str = "redis",
        config: Sequence[str] = (),
    ) -> None:
        """Writes the configurations.

        Args:
            folder: where it stays; a temporary one by default.
            down_after_ms: after which a server that is silent is taken to be gone.
            program: Redis or Valkey, one of ``engines.arguments.PROGRAMS``.
            config: further lines of the servers' redis.conf.
        """
        super().__init__(folder)
        primary = RedisServer(self.folder / "server-0", program=program, config=config)
        following = f"replicaof 127.0.0.1 {primary.port}"
        self.servers = [
            primary,
            RedisServer(self.folder / "server-1", program=program, config=[following, *config]),
        ]
        user, password = ADMINISTRATOR
        lines = [
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {primary.port} {_QUORUM}",
            f"sentinel auth-user {MASTER_NAME} {user}",
            f"sentinel auth-pass {MASTER_NAME} {password}",
            f"sentinel down-after-milliseconds {MASTER_NAME} {down_after_ms}",
            f"sentinel failover-timeout {MASTER_NAME} {5 * down_after_ms}",
        ]
        self.sentinels = [Sentinel(self.folder / f"sentinel-{number}", program, lines) for number in range(_SENTINELS)]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(one.address for one in self.sentinels)}/{MASTER_NAME}"

    @property
    def daemons(self) -> Sequence[Daemon]:
        return [*self.sentinels, *self.servers]  # in this order they end, so that nobody is elected meanwhile

    @property
    def primary(self) -> RedisServer:
        """The one that takes what is written, as the sentinels see it."""
        port = self._living()[0].primary_port()
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> RedisServer:
        """The other one."""
        primary = self.primary
        return next(server for server in self.servers if server is not primary)

    def start(self) -> None:
        for daemons in (self.servers, self.sentinels):
            stopped = [daemon for daemon in daemons if not daemon.is_running]
            for daemon in stopped:
                daemon.launch()
            for daemon in stopped:
                daemon.wait_ready()
        self.wait_whole()

    def wait_whole(self, within: float = START_SECONDS) -> None:
        """Returns when the replica has all data and the sentinels could elect it.

        Raises:
            NotStarted: it was not so within so many seconds.
        """
        try:
            wait_until(self.is_whole, "the sentinels to agree", within)
        except TimeoutError as error:
            views = [f"{one.name}: {one.facts()}" for one in self._living()]
            raise NotStarted("\n".join([str(error), *views])) from error

    def is_whole(self) -> bool:
        """Whether the replica follows the primary, and all sentinels know of both and of each other."""
        primary, replica = self.primary, self.replica
        try:
            follows = replica.is_running and not replica.is_paused and replica.follows(primary)
        except ConnectionError:  # a sentinel has it drop all clients when it tells it whom to follow
            return False
        return follows and all(one.sees(primary, replica) for one in self._living())

    def fail_over(self) -> None:
        """Has the sentinels make the replica the primary, and returns when all is whole again."""
        promoted = self.replica
        wait_until(lambda: self._begin(promoted), "a sentinel to fail over")
        self.wait_primary(promoted)
        self.wait_whole()

    def wait_primary(self, server: RedisServer, within: float = START_SECONDS) -> None:
        """Returns when all sentinels that run see the server as the primary.

        Raises:
            TimeoutError: they did not within so many seconds.
        """
        wait_until(
            lambda: {one.primary_port() for one in self._living()} == {server.port}, f"{server.name} to be it", within
        )

    def _begin(self, promoted: RedisServer) -> bool:
        """Whether the first sentinel has failed over; otherwise it is told to, which it refuses while it does."""
        sentinel = self._living()[0]
        if sentinel.primary_port() == promoted.port:
            return True
        with suppress(ReplyError):
            sentinel.execute("SENTINEL", "FAILOVER", MASTER_NAME)
        return False

    def _living(self) -> list[Sentinel]:
        return [one for one in self.sentinels if one.is_running and not one.is_paused]
