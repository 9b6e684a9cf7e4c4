"""Finding the Redis server that has a key, being connected to it, and what is told when that cannot be."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from socket import gaierror
from typing import Any

import encryption
import pytest
import trio
from clocks import HANG_SECONDS
from coredis import exceptions
from coredis.exceptions import RedisError, ResponseError
from services import PATIENT_MS, RedisCluster, RedisSentinel, RedisServer

from engines.daemon import wait_until
from tricast.config import LogSection
from tricast.errors import ConfigError, LogUnavailable
from tricast.log.redis_servers import Servers, connection_of, slot_of, unavailable
from tricast.log_urls import RedisUrl, parse_log_url

KEY = b"tricast:{a}:log"
#: What nobody listens at.
NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def in_time() -> AsyncIterator[None]:
    with trio.fail_after(HANG_SECONDS):
        yield


pytestmark = pytest.mark.usefixtures("in_time")


def servers_at(url: str, **settings: Any) -> Servers:
    found = parse_log_url(url)
    assert isinstance(found, RedisUrl)
    return Servers(found, LogSection(url=url, **settings))


async def write(servers: Servers, key: bytes = KEY) -> None:
    async with servers.connect(key) as redis:
        await redis.xadd(key, {b"d": b"1"})


async def why_not(servers: Servers, key: bytes = KEY) -> str:
    """Why nothing can be written."""
    with pytest.raises(LogUnavailable) as info:
        await write(servers, key)
    return info.value.why


def has(server: RedisServer, key: bytes = KEY) -> bool:
    return server.execute("EXISTS", key) == 1


# One server


async def test_commands_of_many_tasks_share_the_one_connection(redis: RedisServer) -> None:
    ids = set()
    async with servers_at(redis.url).connect(KEY) as connected, trio.open_nursery() as nursery:

        async def ask() -> None:
            ids.add(await connected.client_id())

        for _ in range(20):
            nursery.start_soon(ask)
    assert len(ids) == 1


async def test_a_database(redis: RedisServer) -> None:
    await write(servers_at(f"{redis.url}/3"))
    assert redis.execute("INFO", "keyspace").split() == [b"#", b"Keyspace", b"db3:keys=1,expires=0,avg_ttl=0"]
    assert await why_not(servers_at(f"{redis.url}/99")) == f"{redis.address}: Redis answered: DB index is out of range"


async def test_no_other_connection_is_made_for_a_lost_one(redis: RedisServer) -> None:
    servers = servers_at(redis.url)

    async def use_a_lost_one() -> None:
        async with servers.connect(KEY) as connected:
            redis.execute("CLIENT", "KILL", "ID", await connected.client_id())
            with suppress(RedisError):
                await connected.ping()
            await connected.ping()

    with pytest.raises(LogUnavailable) as info:
        await use_a_lost_one()
    assert info.value.why == f"{redis.address}: the connection to Redis was lost"
    await write(servers)


async def test_what_is_raised_in_the_scope_and_is_none_of_the_librarys(redis: RedisServer) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with servers_at(redis.url).connect(KEY):
            raise KeyError("mine")


async def test_a_group_of_errors(redis: RedisServer) -> None:
    servers = servers_at(redis.url)

    async def fail(connected: Any) -> None:
        await connected.incr(KEY)

    redis.execute("SET", KEY, "word")
    with pytest.raises(LogUnavailable, match="not an integer"):
        async with servers.connect(KEY) as connected, trio.open_nursery() as nursery:
            nursery.start_soon(fail, connected)
    with pytest.raises(ExceptionGroup) as info:
        async with servers.connect(KEY):
            raise ExceptionGroup("", [ResponseError("theirs"), KeyError("mine")])
    assert info.group_contains(KeyError)


async def test_a_server_that_stands_still(redis: RedisServer) -> None:
    servers = servers_at(redis.url, timeout="60s")

    async def use() -> None:
        async with servers.connect(KEY) as connected:
            (await connection_of(connected))._stream_timeout = 0.3
            redis.pause()
            await connected.ping()

    with pytest.raises(LogUnavailable) as info:
        await use()
    assert info.value.why == f"{redis.address}: Redis does not answer"
    hasty = servers_at(redis.url, timeout="0.3s")
    assert await why_not(hasty) == f"{redis.address}: no connection to Redis within 0.3 s"
    redis.resume()
    await write(servers)


async def test_a_command_that_waits_has_so_much_more_time(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = servers_at(redis.url, timeout="0.2s")
    monkeypatch.setattr(servers, "_in_time", nullcontext)  # connecting may take longer
    async with servers.connect(KEY, block=60) as connected:
        assert await connected.xread({KEY: b"0-0"}, block=400) is None


async def test_being_cancelled_while_it_connects(redis: RedisServer) -> None:
    redis.pause()
    with trio.move_on_after(0.1) as scope:
        await write(servers_at(redis.url, timeout="60s"))
    assert scope.cancelled_caught


async def test_being_cancelled_while_it_is_connected(redis: RedisServer) -> None:
    async with servers_at(redis.url).connect(KEY) as connected:
        with trio.move_on_after(0):
            await connected.echo(b"first")
        assert await connected.echo(b"second") == b"second"


async def test_who_is_refused_is_told_why() -> None:
    users = ["default off", "app on >secret ~tricast:* +ping"]
    with RedisServer(users=users) as redis:
        wants = f"{redis.address}: Redis wants a user name and a password in log.url"
        assert await why_not(servers_at(redis.url)) == wants
        wrong = servers_at(f"redis://app:wrong@{redis.address}")
        refused = f"{redis.address}: Redis refused the user name or the password in log.url"
        assert await why_not(wrong) == refused
        right = servers_at(f"redis://app:secret@{redis.address}")
        assert await why_not(right) == (
            f"{redis.address}: the user in log.url lacks a right in Redis: "
            "this user has no permissions to run the 'xadd' command"
        )


async def test_a_replica(redis: RedisServer) -> None:
    redis.execute("REPLICAOF", "127.0.0.1", 1)
    assert await why_not(servers_at(redis.url)) == f"{redis.address}: the Redis server is a replica"


async def test_a_server_without_memory(redis: RedisServer) -> None:
    redis.execute("CONFIG", "SET", "maxmemory", 1)
    assert "maxmemory" in await why_not(servers_at(redis.url))


async def test_no_server() -> None:
    assert (
        await why_not(servers_at(f"redis://:hidden@{NOWHERE}"))
        == f"{NOWHERE}: no connection to Redis: Connection refused"
    )


async def test_none_under_any_of_the_addresses() -> None:
    assert await why_not(servers_at("redis://localhost:1")) == "localhost:1: no connection to Redis: Connection refused"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            exceptions.UnknownCommandError(
                "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'a' 'secret'"
            ),
            "Redis answered: unknown command 'HELLO'",
        ),
        (gaierror(-2, "Name or service not known"), "the name of the Redis server cannot be found"),
        (
            exceptions.ConnectionError("max number of clients reached"),
            "no connection to Redis: max number of clients reached",
        ),
        (OSError("All connection attempts failed"), "the connection to Redis was lost"),
        (KeyError("mine"), None),
    ],
)
async def test_errors_in_words(error: Exception, why: str | None) -> None:
    found = unavailable(error)
    assert (found and found.why) == why


# TLS


@pytest.fixture
def own_certificate(tmp_path: Path) -> Path:
    path = tmp_path / "own.pem"
    encryption.write_certificate(path)
    return path


async def test_tls(own_certificate: Path) -> None:
    files = {"certificate": encryption.certificate_file(), "authority": encryption.authority_file()}
    trusting = {"tls_ca": encryption.authority_file()}
    with RedisServer(**files, asks_certificates=True) as redis:
        assert "not trusted" in await why_not(servers_at(redis.url))
        assert await why_not(servers_at(redis.url, **trusting)) != ""
        await write(servers_at(redis.url, **trusting, tls_certificate=str(own_certificate)))
        assert has(redis)


async def test_tls_with_a_server_that_has_none(redis: RedisServer) -> None:
    assert await why_not(servers_at(f"rediss://{redis.address}", timeout="0.3s")) != ""


@pytest.mark.parametrize("key", ["tls_ca", "tls_certificate", "tls_key"])
@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_files_that_cannot_be_used(tmp_path: Path, own_certificate: Path, key: str, content: str | None) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    files = {"tls_certificate": str(own_certificate), key: str(file)}
    with pytest.raises(ConfigError, match=r"log\.tls_") as info:
        servers_at("rediss://127.0.0.1", **files)
    assert "file.pem" in str(info.value)


# Sentinel


@pytest.fixture(scope="module")
def watched() -> Any:
    with RedisSentinel(down_after_ms=PATIENT_MS) as service:
        yield service


async def test_the_primary_that_sentinel_names(watched: RedisSentinel) -> None:
    servers = servers_at(watched.url)
    await write(servers)
    old = watched.primary
    assert has(old)
    await trio.to_thread.run_sync(watched.fail_over)
    assert watched.primary is not old
    await write(servers)
    assert watched.primary.execute("XLEN", KEY) == 2


async def test_sentinels_that_are_gone(watched: RedisSentinel) -> None:
    last = watched.sentinels[-1].address
    await write(servers_at(f"redis+sentinel://{NOWHERE},{NOWHERE},{last}/mymaster"))
    gone = servers_at(f"redis+sentinel://{NOWHERE},{NOWHERE},{NOWHERE},{last}/mymaster")
    assert await why_not(gone) == (
        f"none of the sentinels tells where the primary is: {NOWHERE}: no connection to Redis: Connection refused"
    )
    await write(gone)  # others are asked than the last time


async def test_a_name_that_sentinel_does_not_know(watched: RedisSentinel) -> None:
    wrong = watched.url.replace("mymaster", "other")
    assert await why_not(servers_at(wrong)) == (
        "none of the sentinels tells where the primary is: Sentinel knows nothing of other"
    )


class FakeSentinel:
    """Names what it is told to; and may want a password.

    Attributes:
        primary: the port of what it says is the primary.
        asked: the commands that came.
    """

    def __init__(self, primary: int, *, password: bytes = b"") -> None:
        self.primary = primary
        self.asked: list[list[bytes]] = []
        self._password = password

    async def serve(self, stream: trio.SocketStream) -> None:
        received = b""
        async with stream:
            async for data in stream:
                received += data
                # A command is an array of bulk strings: every other line tells a length.
                lines = received.split(b"\r\n")
                if len(lines) > 1 and len(lines) == 2 * int(lines[0][1:]) + 2:
                    received = b""
                    self.asked.append(lines[2::2])
                    await stream.send_all(self._answer(lines[2::2]))

    def _answer(self, command: Sequence[bytes]) -> bytes:
        if command[0] == b"SENTINEL":
            port = str(self.primary).encode()
            return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)
        if self._password and self._password not in command:
            return b"-NOAUTH HELLO must be called with the client already authenticated\r\n"
        return b"%3\r\n+proto\r\n:3\r\n+version\r\n+7.0.0\r\n+id\r\n:1\r\n"


@asynccontextmanager
async def listening(*sentinels: FakeSentinel) -> AsyncIterator[str]:
    """The URL of these."""
    async with trio.open_nursery() as nursery:
        ports = []
        for sentinel in sentinels:
            (listener,) = await nursery.start(partial(trio.serve_tcp, sentinel.serve, 0, host="127.0.0.1"))
            ports.append(listener.socket.getsockname()[1])
        yield f"redis+sentinel://:word@{','.join(f'127.0.0.1:{port}' for port in ports)}/mymaster"
        nursery.cancel_scope.cancel()


async def test_sentinels_that_want_a_password_are_told_it_and_others_are_not() -> None:
    with RedisServer(config=["requirepass word"]) as redis:
        strict, open_to_all = FakeSentinel(redis.port, password=b"word"), FakeSentinel(redis.port)
        async with listening(strict) as url:
            await write(servers_at(url))
        async with listening(open_to_all) as url:
            await write(servers_at(url))
    assert has_word(strict)
    assert not has_word(open_to_all)


def has_word(sentinel: FakeSentinel) -> bool:
    return any(b"word" in command for command in sentinel.asked)


async def test_a_sentinel_that_is_not_up_to_date(redis: RedisServer) -> None:
    with RedisServer(config=[f"replicaof 127.0.0.1 {redis.port}"]) as replica:
        behind, current = FakeSentinel(replica.port), FakeSentinel(redis.port)
        async with listening(behind, current) as url:
            servers = servers_at(url)
            assert await why_not(servers) == f"{replica.address}: what Sentinel names as the primary is a replica"
            await write(servers)
            behind.primary, current.primary = redis.port, 1
            assert await why_not(servers) == f"{NOWHERE}: no connection to Redis: Connection refused"
            await write(servers)


# Cluster


@pytest.fixture(scope="module")
def cluster() -> Any:
    with RedisCluster(replicas=1, node_timeout_ms=1000) as service:
        yield service


KEYS = [b"tricast:{%d}:log" % number for number in range(8)]


async def test_each_key_leads_to_its_owner(cluster: RedisCluster) -> None:
    servers = servers_at(f"redis+cluster://{cluster.nodes[0].address}")
    for key in KEYS:
        await write(servers, key)
        assert has(cluster.master_of(key), key)
    assert len({cluster.master_of(key).port for key in KEYS}) > 1


@pytest.mark.parametrize("key", [*KEYS, b"no tag", b"{}empty", b"open{brace", b"a{b}{c}", b"}{x}"])
async def test_slots(cluster: RedisCluster, key: bytes) -> None:
    assert slot_of(key) == cluster.nodes[0].execute("CLUSTER", "KEYSLOT", key)


async def test_a_slot_that_moves(cluster: RedisCluster) -> None:
    key = KEYS[0]
    servers = servers_at(cluster.url)
    await write(servers, key)
    old = cluster.master_of(key)
    new = next(node for node in cluster.masters if node is not old)
    slot = slot_of(key)
    async with servers.connect(key) as connected:
        new.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", old.id)
        old.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", new.id)
        moved = f"{old.address}: the shard has moved to another server of the cluster"
        assert await why_not(servers, b"another {0}") == moved
        old.execute("MIGRATE", "127.0.0.1", new.port, key, 0, 60_000, "AUTH2", "administrator", "any")
        for node in (new, old, *cluster.masters):
            node.execute("CLUSTER", "SETSLOT", slot, "NODE", new.id)
        with pytest.raises(RedisError):
            await connected.xlen(key)
    await trio.to_thread.run_sync(cluster.wait_whole)
    await write(servers, key)
    assert new.execute("XLEN", key) > 1


async def test_a_cluster_that_loses_a_primary(cluster: RedisCluster) -> None:
    key = KEYS[1]
    old = cluster.master_of(key)
    (replica,) = cluster.replicas_of(old)
    servers = servers_at(f"redis+cluster://{old.address}")
    await write(servers, key)
    old.kill()
    assert "Connection refused" in await why_not(servers, key)
    await trio.to_thread.run_sync(wait_until, lambda: replica.role == "master", "an election")
    await trio.to_thread.run_sync(cluster.wait_whole)
    await write(servers, key)  # the other nodes were remembered
    assert has(replica, key)
    old.start()
    await trio.to_thread.run_sync(cluster.wait_whole)


async def test_a_slot_that_nobody_has(cluster: RedisCluster) -> None:
    key = KEYS[2]
    owner = cluster.master_of(key)
    servers = servers_at(f"redis+cluster://{owner.address}")
    owner.execute("CLUSTER", "DELSLOTS", slot_of(key))
    assert await why_not(servers, key) == (
        "none of the cluster tells where the primary is: no server of the cluster has the shard"
    )
    beside = next(b"{%d}" % number for number in range(1000) if cluster.master_of(b"{%d}" % number) is owner)
    assert await why_not(servers, beside) == f"{owner.address}: Redis answered: The cluster is down"
    owner.execute("CLUSTER", "ADDSLOTS", slot_of(key))
    await trio.to_thread.run_sync(cluster.wait_whole)


class FakeNode(FakeSentinel):
    """A node that is cut off from the others: it says that all slots are where they were."""

    def _answer(self, command: Sequence[bytes]) -> bytes:
        if command[0] == b"CLUSTER":
            return b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\nid\r\n" % self.primary
        return super()._answer(command)


async def test_a_node_that_is_cut_off_from_the_others(cluster: RedisCluster) -> None:
    key = KEYS[4]
    owner = cluster.master_of(key)
    other = next(node for node in cluster.masters if node is not owner)
    async with listening(FakeNode(other.port)) as url:
        behind = url.partition("@")[2].partition("/")[0]
        servers = servers_at(f"redis+cluster://{behind},{owner.address}")

        async def use() -> None:
            # Three connections at a time, as a log has.
            async with servers.connect(key), servers.connect(key), servers.connect(key) as connected:
                await connected.xadd(key, {b"d": b"1"})

        with pytest.raises(LogUnavailable, match="moved"):
            await use()
        await use()
    assert has(owner, key)


async def test_nodes_that_do_not_know_where_they_are() -> None:
    with RedisCluster(masters=1, config=["cluster-preferred-endpoint-type unknown-endpoint"]) as service:
        await write(servers_at(service.url))
        assert has(service.nodes[0])
