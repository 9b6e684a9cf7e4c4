"""The rights in Redis that docs/logs.md says are enough: with them everything goes, and none of them is without use."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from clocks import HANG_SECONDS
from log.redis_worlds import Process, Processes
from services import PATIENT_MS, RedisCluster, RedisSentinel, RedisServer
from serving import pause, until

from tricast.errors import LogUnavailable
from tricast.log.base import IdempotencyKey

_PAGE = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()
RULES = {
    delivery: rule.split()
    for delivery, rule in zip(
        ("stream", "pubsub"), re.findall(r"^user tricast (on >password .*)$", _PAGE, re.MULTILINE), strict=True
    )
}
#: Needed with more topics than a test can publish to.
RARE = {"zpopmin"}


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(program=request.param) as found:
        yield found


@pytest.fixture(params=RULES)
def delivery(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def admit(redis: RedisServer, *rules: str) -> None:
    redis.execute("ACL", "SETUSER", "tricast", "reset", *rules)


def as_user(url: str) -> str:
    return url.replace("//", "//tricast:password@")


async def do_everything(processes: Processes, url: str, delivery: str, **section: object) -> None:
    """Publishes, with idempotency keys of which some are forgotten, and reads what is in memory, and what is not."""
    # Streams are read from Redis where memory holds nothing.
    settings = {"delivery": delivery, "shards": 2} | ({"cache_size": 1} if delivery == "stream" else {}) | section
    one, other = await processes.begin(url, **settings), await processes.begin(url, **settings)
    start = other.log.last_id
    keys = [IdempotencyKey(name, b"1", 60, 1) for name in (b"1", b"2", b"2")]
    ids = [await one.append("a", key=key) for key in keys]
    assert ids[1] == ids[2]
    await other.append("b", "b")
    for process in (one, other):
        await has_got(process, 4)
        for names in (("a", "b"), (">",)):
            found = await process.read(*names, after=start)
            assert (len(found.events), found.gap) == (4, None)
        assert process.log.problem is None


async def has_got(process: Process, count: int) -> None:
    await until(lambda: len(process.committed) == count)


def calls_in(redis: RedisServer) -> set[str]:
    """The commands that were carried out, by whomever, also in scripts."""
    text: bytes = redis.execute("INFO", "commandstats")
    return set(re.findall(r"^cmdstat_(.+?):calls=[1-9]", text.decode(), re.MULTILINE))


async def test_the_rights_are_enough_and_all_are_needed(
    server: RedisServer, processes: Processes, delivery: str
) -> None:
    admit(server, *RULES[delivery], *introduction(server))
    await do_everything(processes, as_user(server.url), delivery)
    granted = {rule[1:] for rule in RULES[delivery] if rule.startswith("+")}
    assert granted - calls_in(server) <= RARE
    assert denied(server) == []


def introduction(server: RedisServer) -> list[str]:
    """What newer servers are told by the way."""
    return documented("+client|setinfo") if server.name.startswith("valkey") else []


def denied(redis: RedisServer) -> list[bytes]:
    """The commands, keys and channels that were refused, the last one first."""
    rows: list[list[bytes]] = redis.execute("ACL", "LOG")
    return [row[row.index(b"object") + 1] for row in rows]


async def test_in_another_database_and_with_replicas(redis: RedisServer, processes: Processes) -> None:
    with RedisServer(config=[f"replicaof 127.0.0.1 {redis.port}"]):
        admit(redis, *RULES["stream"], *documented("+select", "+wait"))
        await do_everything(processes, as_user(f"{redis.url}/2"), "stream", replicas=1)


async def test_with_sentinel(processes: Processes, delivery: str) -> None:
    with RedisSentinel(down_after_ms=PATIENT_MS) as service:
        for server in service.servers:
            admit(server, *RULES[delivery], *documented("+role"))
        await do_everything(processes, as_user(service.url), delivery)


async def test_in_a_cluster(processes: Processes, delivery: str) -> None:
    with RedisCluster(node_timeout_ms=PATIENT_MS) as service:
        rules = [rule for rule in RULES[delivery] if rule not in ("+subscribe", "+publish")]
        more = documented("+ssubscribe", "+spublish") if delivery == "pubsub" else []
        for node in service.nodes:
            admit(node, *rules, *documented("+cluster|slots"), *more)
        await do_everything(processes, as_user(service.url), delivery)


def documented(*rights: str) -> list[str]:
    assert all(right in _PAGE.replace("\\|", "|") for right in rights)
    return list(rights)


@pytest.mark.parametrize("right", ["xread", "xadd", "evalsha", "info", "time"])
async def test_a_right_that_is_missing_is_named(server: RedisServer, right: str) -> None:
    admit(server, *RULES["stream"], *introduction(server), f"-{right}")
    await is_refused(server, "stream", right)


@pytest.mark.parametrize("right", ["subscribe", "publish", "set"])
async def test_a_right_to_pub_sub_that_is_missing_is_named(server: RedisServer, right: str) -> None:
    admit(server, *RULES["pubsub"], *introduction(server), f"-{right}")
    await is_refused(server, "pubsub", right)


async def test_the_keys_of_another_namespace(server: RedisServer, delivery: str) -> None:
    admit(server, *RULES[delivery], *introduction(server), "resetchannels", "&other:*")
    await is_refused(server, delivery, "access", namespace="other")


async def test_the_channel_of_another_namespace(server: RedisServer) -> None:
    admit(server, *RULES["pubsub"], *introduction(server), "~other:*")
    await is_refused(server, "pubsub", "access", namespace="other")


async def is_refused(server: RedisServer, delivery: str, right: str, **section: str) -> None:
    """Nothing can be published, and it is told which right there is not, or where to find that."""
    process = Process(as_user(server.url), delivery=delivery, **section)
    with trio.fail_after(HANG_SECONDS), pytest.raises(LogUnavailable, match="lacks a right") as info:
        async with process.open():
            await _append_for_ever(process)
    why = info.value.why
    assert right in why or ("ACL LOG" in why and right.encode() == denied(server)[0])
    assert "password" not in why


async def test_a_right_that_is_taken_away(redis: RedisServer, processes: Processes, delivery: str) -> None:
    admit(redis, *RULES[delivery])
    process = await processes.begin(as_user(redis.url), delivery=delivery)
    await process.append("a")
    redis.execute("ACL", "SETUSER", "tricast", "-evalsha")
    with pytest.raises(LogUnavailable, match="evalsha"):
        await process.append("a")
    await process.is_away()
    redis.execute("ACL", "SETUSER", "tricast", "+evalsha")
    await process.is_back()
    await process.append("a")


async def test_what_was_refused_can_be_published_again(redis: RedisServer, processes: Processes, delivery: str) -> None:
    admit(redis, *RULES[delivery])
    process = await processes.begin(as_user(redis.url), delivery=delivery)
    right = "xadd" if delivery == "stream" else "publish"
    redis.execute("ACL", "SETUSER", "tricast", f"-{right}")
    key = IdempotencyKey(b"k", b"1", 60, 10)
    with pytest.raises(LogUnavailable):
        await process.append("a", key=key)
    redis.execute("ACL", "SETUSER", "tricast", f"+{right}")
    await process.is_back()
    await process.append("a", key=key)
    await has_got(process, 1)


async def _append_for_ever(process: Process) -> None:
    """Until that is refused: what there is no right to may be wanted only after the first time."""
    while True:
        await process.append("a")
        await pause()
