"""The servers that ``scripts/services`` and the tests start: that they work, do as told, and end."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import coredis
import pytest
import trio
from clocks import HANG_SECONDS
from confluent_kafka import KafkaException, Producer
from coredis.connection import TCPLocation
from encryption import authority_file, certificate_file
from services import (
    KafkaServer,
    NotStarted,
    RedisCluster,
    RedisSentinel,
    RedisServer,
    ReplyError,
    SharedKafka,
    shared_kafka,
)

from engines.arguments import PROGRAMS
from engines.daemon import wait_until
from engines.left import Left, end

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_was_acknowledged_is_kept(program: str) -> None:
    with RedisServer(program=program) as redis:
        redis.execute("XADD", "stream", "*", "name", b"\r\n\xff")
        redis.kill()
        assert not redis.is_running
        with pytest.raises(OSError, match="refused"):
            redis.execute("PING")
        port = redis.port
        redis.start()
        assert redis.execute("XRANGE", "stream", "-", "+")[0][1] == [b"name", b"\r\n\xff"]
        redis.restart(keep_data=False)
        assert redis.execute("XLEN", "stream") == 0
        assert redis.port == port


def test_it_says_why_it_did_not_start() -> None:
    server = RedisServer(config=["maxmemory lots"])
    with pytest.raises(NotStarted, match="ended with status 1") as raised, server:
        raise AssertionError
    assert "argument must be a memory value" in str(raised.value)
    assert not server.folder.exists()


async def test_a_redis_can_have_users_and_certificates() -> None:
    users = ["default off", "app on >secret ~tricast:* +xadd"]
    with RedisServer(users=users, certificate=certificate_file(), authority=authority_file()) as redis:
        assert redis.url == f"rediss://127.0.0.1:{redis.port}"
        client = coredis.Redis(
            *("127.0.0.1", redis.port), ssl=True, ssl_ca_certs=authority_file(), username="app", password="secret"
        )
        async with client:
            await client.xadd("tricast:stream", {"name": "value"})
            with pytest.raises(coredis.exceptions.AuthorizationError):
                await client.xadd("stream", {"name": "value"})
        assert redis.execute("XLEN", "tricast:stream") == 1


def test_what_it_refuses_is_an_error(redis: RedisServer) -> None:
    with pytest.raises(ReplyError, match="ERR unknown command"):
        redis.execute("NONSENSE")


def test_a_cluster_shares_its_slots_and_fails_over() -> None:
    # Long enough that on a busy machine none is taken to be gone that is there.
    with RedisCluster(replicas=1, node_timeout_ms=4000) as cluster:
        assert len(cluster.masters) == 3
        master = cluster.master_of("stream")
        master.execute("XADD", "stream", "*", "name", "value")
        with pytest.raises(ReplyError, match=f"MOVED .* 127.0.0.1:{master.port}"):
            next(other for other in cluster.masters if other is not master).execute("XLEN", "stream")
        [replica] = cluster.replicas_of(master)
        cluster.promote(replica)
        assert cluster.master_of("stream") is replica
        assert cluster.replicas_of(replica) == [master]
        replica.kill()
        wait_until(lambda: master.role == "master", "another election")
        cluster.wait_whole()
        assert master.execute("XLEN", "stream") == 1


def test_a_cluster_comes_back_with_its_data() -> None:
    with RedisCluster() as cluster:
        cluster.master_of("stream").execute("XADD", "stream", "*", "name", "value")
        cluster.stop()
        cluster.start()
        assert cluster.master_of("stream").execute("XLEN", "stream") == 1


def test_sentinels_elect_another_primary() -> None:
    # Long enough that on a busy machine none is taken to be gone that is there.
    with RedisSentinel(down_after_ms=4000) as redis:
        first, second = redis.primary, redis.replica
        first.execute("XADD", "stream", "*", "name", "value")
        wait_until(lambda: second.execute("XLEN", "stream") == 1, "the replica to have it")
        first.kill()
        redis.wait_primary(second)
        assert redis.primary is second
        assert second.role == "master"
        first.start()
        redis.wait_whole()
        assert redis.replica is first
        redis.fail_over()
        assert redis.primary is first
        assert first.execute("XLEN", "stream") == 1


def produce(address: str, topic: str, **settings: str) -> int:
    """Offset of a record that all brokers in sync have."""
    delivered: list[int] = []
    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "log_level": 0, **settings})
    producer.produce(topic, b"value", on_delivery=lambda error, message: delivered.append(message.offset()))
    producer.flush(HANG_SECONDS)
    return delivered[0]


def test_kafka_is_one_for_the_whole_run(kafka: SharedKafka) -> None:
    topic = f"test-{uuid.uuid4()}"
    kafka.create_topic(topic, 2, {"max.message.bytes": "2097152"})
    assert kafka.leader_id(topic, 1) == 0
    assert produce(kafka.address, topic) == 0
    with pytest.raises(KafkaException, match="TOPIC_ALREADY_EXISTS"):
        kafka.create_topic(topic)
    kafka.delete_topic(topic)


def test_processes_share_a_kafka_until_the_last_has_left_it(tmp_path: Path) -> None:
    with shared_kafka(tmp_path) as first:
        with shared_kafka(tmp_path) as second:
            assert second.address == first.address
        first.create_topic("topic")
        assert produce(first.address, "topic") == 0
    state = json.loads((tmp_path / "kafka.json").read_text(encoding="utf-8"))
    assert not Left(*state["left"]).is_running
    assert not Path(state["folder"]).exists()


def test_kafka_keeps_what_it_acknowledged() -> None:
    settings = {"security.protocol": "SASL_SSL", "ssl.ca.location": authority_file(), "sasl.mechanism": "PLAIN"}
    settings |= {"sasl.username": "app", "sasl.password": "secret"}
    with KafkaServer(certificate=certificate_file(), users={"app": "secret"}) as kafka:
        kafka.create_topic("topic")
        assert produce(kafka.address, "topic", **settings) == 0
        kafka.kill()
        kafka.start()
        assert produce(kafka.address, "topic", **settings) == 1
        kafka.restart(keep_data=False)
        with kafka.admin() as admin:
            assert "topic" not in admin.list_topics(timeout=HANG_SECONDS).topics


def test_another_broker_leads_when_one_is_gone() -> None:
    with KafkaServer(brokers=3) as kafka:
        kafka.create_topic("topic")
        assert produce(kafka.address, "topic") == 0
        leader = kafka.leader_of("topic")
        leader.kill()
        wait_until(lambda: kafka.leader_id("topic") not in (leader.id, -1), "another leader")
        assert produce(kafka.address, "topic") == 1
        leader.start()
        kafka.wait_whole()
        wait_until(lambda: kafka.in_sync("topic") == {0, 1, 2}, "all to have it")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        # The first one on a machine is formatted with Kafka's tool, which sees it sooner.
        ("num.io.threads=many", "could not format its storage|ended with status 1"),
        ("metric.reporters=nobody", "ended with status 1"),
    ],
)
def test_kafka_says_why_it_did_not_start(line: str, why: str) -> None:
    with pytest.raises(NotStarted, match=why) as raised, KafkaServer(config=[line]):
        raise AssertionError
    assert line.partition("=")[2] in str(raised.value)


def test_a_killed_process_leaves_nothing_running() -> None:
    program = (
        "import sys; from engines.redis import RedisServer; server = RedisServer(); server.start();"
        "print(server.pid, server.folder, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        server = os.pidfd_open(int(pid))
        process.kill()
    assert select.select([server], [], [], HANG_SECONDS)[0]
    os.close(server)
    shutil.rmtree(folder)


# ---- the script


def services(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(part) for part in (ROOT / "scripts" / "services", *arguments)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )


def programs_of(folder: Path) -> list[Left]:
    entries = json.loads((folder / "services.json").read_text(encoding="utf-8"))
    return [Left(*program) for entry in entries.values() for program in entry["programs"]]


async def test_all_services_come_up_and_go(tmp_path: Path) -> None:
    folder = tmp_path / "services"
    done = services("up", "all", "--folder", folder)
    try:
        assert done.returncode == 0, done.stderr
        single, cluster, sentinel, topic = done.stdout.splitlines()
        await talk(coredis.Redis.from_url(single, decode_responses=True))
        host, port = cluster.removeprefix("redis+cluster://").split(",")[0].split(":")
        await talk(coredis.RedisCluster(host, int(port), decode_responses=True))
        addresses, name = sentinel.removeprefix("redis+sentinel://").split("/")
        hosts = [TCPLocation(host, int(port)) for host, port in (one.split(":") for one in addresses.split(","))]
        async with coredis.Sentinel(hosts, decode_responses=True) as watching:
            await talk(watching.primary_for(name))
        address, topic = topic.removeprefix("kafka://").split("/")
        assert await trio.to_thread.run_sync(produce, address, topic) == 0
        programs = programs_of(folder)
        assert len(programs) == 1 + 3 + 5 + 1
        assert services("status", "--folder", folder).returncode == 0
        again = services("up", "all", "--folder", folder)
        assert again.stdout == done.stdout
        assert programs_of(folder) == programs
        assert services("down", "kafka", "--folder", folder).returncode == 0
        assert [one.is_running for one in programs] == [True] * 9 + [False]
        assert services("status", "kafka", "--folder", folder).returncode == 3
    finally:
        down = services("down", "--folder", folder)
    assert (down.returncode, down.stdout, down.stderr) == (0, "", "")
    assert not any(one.is_running for one in programs)
    assert not folder.exists()


async def talk(client: coredis.Redis[str] | coredis.RedisCluster[str]) -> None:
    async with client:
        await client.xadd("stream", {"name": "value"})
        assert await client.xlen("stream") == 1


def test_folders_do_not_know_of_each_other(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    try:
        urls = [services("up", "redis", "--folder", folder).stdout for folder in folders]
        assert len(set(urls)) == 2
        assert services("down", "--folder", folders[0]).returncode == 0
        assert services("status", "--folder", folders[1]).stdout == f"redis          running {urls[1]}"
    finally:
        for folder in folders:
            services("down", "--folder", folder)
    assert list(tmp_path.iterdir()) == []


def test_what_has_ended_is_started_anew(tmp_path: Path) -> None:
    folder = tmp_path / "services"
    try:
        services("up", "redis", "--folder", folder)
        end(programs_of(folder))
        broken = services("status", "--folder", folder)
        assert broken.returncode == 3
        assert broken.stdout.split()[:2] == ["redis", "broken"]
        again = services("up", "redis", "--folder", folder)
        assert "redis has ended, and is started anew" in again.stderr
        assert services("status", "--folder", folder).returncode == 0
    finally:
        services("down", "--folder", folder)


async def test_what_is_restarted_is_where_it_was_with_what_it_held(tmp_path: Path) -> None:
    folder = tmp_path / "services"
    try:
        url = services("up", "redis", "--folder", folder).stdout
        async with coredis.Redis.from_url(url.strip(), decode_responses=True) as client:
            await client.set("key", "value")
        before = programs_of(folder)
        again = services("restart", "--folder", folder)
        assert (again.returncode, again.stdout) == (0, url)
        assert not any(one.is_running for one in before)
        async with coredis.Redis.from_url(url.strip(), decode_responses=True) as client:
            assert await client.get("key") == "value"
        os.killpg(programs_of(folder)[0].pid, signal.SIGKILL)
        assert services("restart", "redis", "--folder", folder).returncode == 0
        assert services("status", "--folder", folder).returncode == 0
        other = services("restart", "kafka", "--folder", folder)
        assert (other.returncode, other.stderr) == (
            1,
            "services: kafka is not there: scripts/services up kafka starts it\n",
        )
    finally:
        services("down", "--folder", folder)
    nothing = services("restart", "--folder", folder)
    assert (nothing.returncode, nothing.stderr) == (1, "services: nothing is there: scripts/services up starts it\n")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--help",), 0, "restart"),
        (("up", "--help"), 0, "--program"),
        ((), 2, "required: COMMAND"),
        (("start", "redis"), 2, "choose from 'up', 'down', 'restart', 'status', 'set-up'"),
        (("up",), 2, "required: NAME"),
        (("up", "mysql"), 2, "mysql is none of redis, redis-cluster, redis-sentinel, kafka and all"),
        (("up", "redis-cluster", "--replicas", "-1"), 2, "expected a number from 0 to 9, found -1"),
    ],
)
def test_help_and_wrong_usage_need_nothing_that_is_installed(
    tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    scripts = shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    done = subprocess.run(
        [scripts / "services", *arguments], capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "install" not in done.stderr
    assert list(tmp_path.iterdir()) == [scripts]


def test_when_one_cannot_be_started_the_server_itself_says_why(tmp_path: Path) -> None:
    program, folder = tmp_path / "redis-server", tmp_path / "services"
    program.write_text("#!/bin/sh\necho no luck today\nexit 7\n", encoding="utf-8")
    program.chmod(0o755)
    failed = services("up", "redis", "--folder", folder, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert re.search(r"redis-server on port \d+ ended with status 7; its last lines:\nno luck today\n", failed.stderr)
    assert not folder.exists()


def test_what_is_not_the_services_own_stays(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    refused = services("up", "redis", "--folder", tmp_path)
    assert refused.returncode == 1
    assert "is there already, and not a service's" in refused.stderr
    assert services("down", "--folder", tmp_path).returncode == 0
    assert (tmp_path / "redis").is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_interrupted_nothing_is_left_running(tmp_path: Path, number: signal.Signals) -> None:
    folder, program = tmp_path / "services", tmp_path / "redis-server"
    # One of them never gets ready, so that the others are there and it is not done.
    program.write_text(
        f'#!/bin/sh\ncase $PWD in */node-2) exec sleep 600;; esac\nexec {shutil.which("redis-server")} "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [ROOT / "scripts" / "services", "up", "redis-cluster", "--folder", folder]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        log = folder / "redis-cluster" / "node-0" / "log"
        wait_until(lambda: log.exists() and "Ready to accept" in log.read_text(encoding="utf-8"), "a server to run")
        assert running_in(folder)
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode in (-number, 128 + number)
    assert out == ""
    assert "Traceback" not in err
    wait_until(lambda: not running_in(folder), "all to end")
    assert number == signal.SIGKILL or not folder.exists()


def running_in(folder: Path) -> list[str]:
    """The ids of the processes that work in the folder or below, or did before it was removed."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and (process / "cwd").readlink().is_relative_to(folder):
                found.append(process.name)
    return found
