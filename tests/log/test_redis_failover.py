"""Another server becomes the primary: by Sentinel, and in a cluster; for both deliveries.

Whatever happens, who listens gets what was acknowledged, in order and once, or is told of a gap.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from log.redis_worlds import Process, Processes, data_of
from services import RedisCluster, RedisSentinel, RedisServer
from serving import pause

from engines.daemon import wait_until
from engines.redis import ADMINISTRATOR
from engines.redis_cluster import ClusterNode
from tricast.errors import LogUnavailable
from tricast.event import Position
from tricast.log.redis_servers import slot_of

#: What a test publishes before and after something happens.
MANY = 30


@pytest.fixture(scope="module")
def watched() -> Iterator[RedisSentinel]:
    with RedisSentinel(down_after_ms=2000) as service:
        yield service


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster(replicas=1, node_timeout_ms=2000) as service:
        yield service


@pytest.fixture(params=["stream", "pubsub"])
def delivery(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A log of the test's own on servers that it shares with others."""
    return request.node.name.replace("[", "-").replace("]", "")[:64]


class Publisher:
    """Publishes numbers to a process, one after the other, and those that are refused not again.

    Attributes:
        acknowledged: where each of them is that was not refused.
    """

    def __init__(self, process: Process) -> None:
        self.acknowledged: dict[int, Position] = {}
        self._process = process
        self._number = 0
        self._progress = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        while True:
            self._number += 1
            try:
                (position,) = await self._process.append("a", data=b"%d" % self._number)
            except LogUnavailable:
                await trio.sleep(0.02)  # as publishers are told to
            else:
                self.acknowledged[self._number] = position
                self._progress.unpark_all()
                await pause()

    async def goes_on(self) -> None:
        """Returns when so many more are acknowledged."""
        enough = len(self.acknowledged) + MANY
        while len(self.acknowledged) < enough:
            await self._progress.park()


class World:
    """Two processes, one of which has a publisher."""

    def __init__(self, one: Process, other: Process) -> None:
        self.one = one
        self.other = other
        self.publisher = Publisher(one)

    async def do(self, happening: Callable[[], object]) -> None:
        """Something happens while events are published, and in the end all is well again."""
        await self.publisher.goes_on()
        await trio.to_thread.run_sync(happening)
        await self.publisher.goes_on()

    async def check(self) -> None:
        acknowledged = self.publisher.acknowledged
        for process in (self.one, self.other):
            await process.is_back()
            await process.came_to(max(acknowledged.values()))
            seen = [event.id for event in process.committed]
            assert seen == sorted(set(seen))
            missed = set(acknowledged.values()) - set(seen)
            assert all(any(position <= skipped for skipped in process.skipped) for position in missed)
            numbers = data_of(process.committed)
            assert numbers == sorted(set(numbers))
        await self.check_reading(self.other, self.one.committed[0].id)

    async def check_reading(self, process: Process, after: Position) -> None:
        """Who comes back from somewhere gets all, or a gap up to where it does not."""
        resumed_at = position = after
        found = []
        while True:
            part = await process.read("a", after=position)
            if part.gap is not None:
                resumed_at = part.gap.resumed_at
            found += [event.id for event in part.events]
            position = part.upto
            if part.complete:
                break
        wanted = [each for each in self.publisher.acknowledged.values() if each > resumed_at]
        assert [each for each in found if each > resumed_at and each in set(wanted)] == wanted


#: Opens a world on the servers at a URL.
Begin = Callable[[str], AbstractAsyncContextManager[World]]


@pytest.fixture
async def begin(processes: Processes, delivery: str, namespace: str) -> Begin:
    @asynccontextmanager
    async def begun(url: str) -> AsyncIterator[World]:
        settings = {"delivery": delivery, "namespace": namespace, "timeout": "3s"}
        world = World(await processes.begin(url, **settings), await processes.begin(url, **settings))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.publisher.run)
            yield world
            nursery.cancel_scope.cancel()
        await world.check()
        for process in (world.one, world.other):
            assert "the log is not available" in process.said()
            assert process.said()[-1] == "the log is available again"

    return begun


# Sentinel


async def test_sentinel_fails_over_in_order(watched: RedisSentinel, begin: Begin) -> None:
    async with begin(watched.url) as world:
        await world.do(watched.fail_over)


async def test_the_primary_is_killed(watched: RedisSentinel, begin: Begin) -> None:
    async with begin(watched.url) as world:
        await world.do(lambda: fall(watched, RedisServer.kill))
    rise(watched, RedisServer.start)


async def test_the_primary_stands_still_and_comes_back(watched: RedisSentinel, begin: Begin) -> None:
    async with begin(watched.url) as world:
        await world.do(lambda: fall(watched, RedisServer.pause))
        await world.do(lambda: rise(watched, RedisServer.resume))


def fall(service: RedisSentinel, happening: Callable[[RedisServer], None]) -> None:
    primary, replica = service.primary, service.replica
    happening(primary)
    service.wait_primary(replica)


def rise(service: RedisSentinel, happening: Callable[[RedisServer], None]) -> None:
    happening(service.replica)
    service.wait_whole()


# Cluster


async def test_a_replica_is_promoted_in_order(
    cluster: RedisCluster, begin: Begin, delivery: str, namespace: str
) -> None:
    async with begin(cluster.url) as world:
        owner = owner_of(cluster, namespace)
        (replica,) = cluster.replicas_of(owner)
        await world.do(lambda: cluster.promote(replica))
    assert owner_of(cluster, namespace) is replica


async def test_the_owner_of_the_shard_is_killed(cluster: RedisCluster, begin: Begin, namespace: str) -> None:
    async with begin(cluster.url) as world:
        owner = owner_of(cluster, namespace)
        await world.do(lambda: lose(cluster, owner, ClusterNode.kill))
        await world.do(lambda: regain(cluster, owner, ClusterNode.start))


async def test_the_owner_of_the_shard_stands_still(cluster: RedisCluster, begin: Begin, namespace: str) -> None:
    async with begin(cluster.url) as world:
        owner = owner_of(cluster, namespace)
        await world.do(lambda: lose(cluster, owner, ClusterNode.pause))
        await world.do(lambda: regain(cluster, owner, ClusterNode.resume))


async def test_the_shard_moves_to_another_server(cluster: RedisCluster, begin: Begin, namespace: str) -> None:
    async with begin(cluster.url) as world:
        old = owner_of(cluster, namespace)
        new = next(node for node in cluster.masters if node is not old)
        await world.do(lambda: move(cluster, old, new, namespace))
    assert keys_in(new, namespace)
    assert not keys_in(old, namespace)


def owner_of(cluster: RedisCluster, namespace: str) -> ClusterNode:
    (owner,) = (node for node in cluster.masters if keys_in(node, namespace))
    return owner


def keys_in(node: ClusterNode, namespace: str) -> list[bytes]:
    found: list[bytes] = node.execute("KEYS", f"{namespace}:{{*")
    return found


def lose(cluster: RedisCluster, owner: ClusterNode, happening: Callable[[ClusterNode], None]) -> None:
    (replica,) = cluster.replicas_of(owner)
    happening(owner)
    wait_until(lambda: replica.role == "master", "an election")
    cluster.wait_whole()


def regain(cluster: RedisCluster, lost: ClusterNode, happening: Callable[[ClusterNode], None]) -> None:
    """It comes back as a replica, and becomes what it was."""
    happening(lost)
    cluster.wait_whole()
    cluster.promote(lost)


def move(cluster: RedisCluster, old: ClusterNode, new: ClusterNode, namespace: str) -> None:
    """Gives the slot to another server, as redis-cli --cluster reshard does, key by key."""
    keys = keys_in(old, namespace)
    (slot,) = {slot_of(key) for key in keys}
    new.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", old.id)
    old.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", new.id)
    while keys := keys_in(old, namespace):
        old.execute("MIGRATE", "127.0.0.1", new.port, keys[0], 0, 60_000, "AUTH2", *ADMINISTRATOR)
    for node in (new, old, *cluster.masters):
        node.execute("CLUSTER", "SETSLOT", slot, "NODE", new.id)
    cluster.wait_whole()
