"""The servers that ``scripts/services`` and the tests start: that they work, do as told, and end."""

import json
import os
import select
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer
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

from engines.daemon import wait_until
from engines.left import Left
from engines.redis import PROGRAMS

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


def test_what_it_refuses_is_an_error(redis: RedisServer) -> None:
    with pytest.raises(ReplyError, match="ERR unknown command"):
        redis.execute("NONSENSE")


def test_a_cluster_shares_its_slots_and_fails_over() -> None:
    with RedisCluster(replicas=1, node_timeout_ms=1000) as cluster:
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
    with RedisSentinel() as redis:
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
    producer.flush(20)
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
        assert "topic" not in kafka.admin.list_topics(timeout=10).topics


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
    [("num.io.threads=many", "could not format its storage"), ("metric.reporters=nobody", "ended with status 1")],
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
    assert select.select([server], [], [], 20)[0]
    os.close(server)
    shutil.rmtree(folder)
