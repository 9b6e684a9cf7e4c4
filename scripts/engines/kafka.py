"""Kafka without ZooKeeper (KRaft): one broker, or several, each of which is a controller as well."""

import base64
import shutil
import subprocess
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from cryptography.hazmat.primitives import serialization

from engines.daemon import HOST, START_SECONDS, Daemon, NotStarted, Port, Service, wait_until
from engines.kafka_jars import jars_folder

_SECONDS = START_SECONDS
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_JAVA = (
    *("-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError"),
    *("-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
    *("-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"),
)
#: What a new cluster begins with, in the folder of each broker.
_CHECKPOINT = "bootstrap.checkpoint"
_CONFIGURATION = """\
process.roles=broker,controller
listener.security.protocol.map=INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,CLIENT:{protocol}
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
log.dirs=data
auto.create.topics.enable=false
auto.leader.rebalance.enable=false
default.replication.factor={copies}
min.insync.replicas={in_sync}
offsets.topic.num.partitions=1
offsets.topic.replication.factor={copies}
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=300
controlled.shutdown.max.retries=1
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=2097152
log.initial.task.delay.ms=1000
log.retention.check.interval.ms=1000
"""


class KafkaTopics(ABC):
    """What the tests do with the topics of a Kafka, wherever it runs, and whoever else may."""

    @property
    @abstractmethod
    def address(self) -> str:
        """Where clients begin: host and port of each broker, with commas."""

    @property
    @abstractmethod
    def internal_address(self) -> str:
        """Without TLS and without users, whatever there is at the address for clients."""

    @contextmanager
    def admin(self) -> Iterator[AdminClient]:
        """A client that may do anything. It opens and closes connections as it likes, until nobody has it any more."""
        yield AdminClient({"bootstrap.servers": self.internal_address, "log_level": 0})

    def topic_url(self, topic: str) -> str:
        """The topic as ``tricast serve --log-url`` takes it."""
        return f"kafka://{self.address}/{topic}"

    def create_topic(self, topic: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Makes a topic, replicated on all brokers, and returns when every partition has a leader.

        Raises:
            KafkaException: Kafka refused it.
        """
        new = NewTopic(topic, num_partitions=partitions, replication_factor=-1, config=dict(config or {}))
        with self.admin() as admin:
            wait_until(lambda: _is_created(admin, new), f"brokers for {topic}")
            wait_until(
                lambda: all(_leader_id(admin, topic, number) >= 0 for number in range(partitions)),
                f"leaders of {topic}",
            )

    def delete_topic(self, topic: str) -> None:
        """Removes a topic with all that is in it."""
        with self.admin() as admin:
            admin.delete_topics([topic])[topic].result()

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Removes what is before an offset, as retention does."""
        part = TopicPartition(topic, partition, before)
        with self.admin() as admin:
            admin.delete_records([part])[part].result()

    def leader_id(self, topic: str, partition: int = 0) -> int:
        """Which broker leads a partition; -1 when none does."""
        with self.admin() as admin:
            return _leader_id(admin, topic, partition)


def _is_created(admin: AdminClient, new: NewTopic) -> bool:
    try:
        admin.create_topics([new])[new.topic].result()
    except KafkaException as error:
        # A broker that came late with a heartbeat does not count until the next.
        if error.args[0].code() != KafkaError.INVALID_REPLICATION_FACTOR:
            raise
        return False
    return True


def _leader_id(admin: AdminClient, topic: str, partition: int) -> int:
    found = admin.list_topics(topic, timeout=_SECONDS).topics[topic].partitions.get(partition)
    return -1 if found is None else found.leader


class KafkaBroker(Daemon):
    """One broker, which writes its log to its folder.

    Attributes:
        id: by which the others know it.
        internal: where brokers and tests reach it.
        controller: where controllers reach each other.
        options: further ones of Java's.
    """

    def __init__(self, folder: Path, number: int, cluster: str) -> None:
        super().__init__(folder)
        self.id = number
        self.internal = Port()
        self.controller = Port()
        self.options: Sequence[str] = ()
        self._cluster = cluster

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    @property
    def name(self) -> str:
        return f"Kafka's broker {self.id} on port {self.port}"

    def configure(self, lines: Sequence[str], voters: str, advertised_port: int | None) -> None:
        """Writes its configuration."""
        listeners = {"INTERNAL": self.internal.number, "CLIENT": self.port}
        advertised = listeners | {"CLIENT": advertised_port or self.port}
        own = [
            f"node.id={self.id}",
            f"controller.quorum.voters={voters}",
            f"listeners={_list(listeners | {'CONTROLLER': self.controller.number})}",
            f"advertised.listeners={_list(advertised)}",
        ]
        (self.folder / "server.properties").write_text("\n".join([*lines, *own, ""]), encoding="utf-8")

    def command(self) -> Sequence[str]:
        java, *options = _java()
        return [java, *self.options, *options, "kafka.Kafka", "server.properties"]

    def launch(self) -> None:
        if not (self.folder / "data" / "meta.properties").exists():
            self._format()
        super().launch()

    def is_ready(self) -> bool:
        """Whether it accepts: it does that last."""
        return self.port in _listening_ports()

    def wipe(self) -> None:
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def free_port(self) -> None:
        super().free_port()
        self.internal.release()
        self.controller.release()

    def _format(self) -> None:
        """Makes the storage that a broker wants to find.

        Kafka's tool for that is a JVM of its own, for two small files. What it writes into one of them depends on the
        version of Kafka alone, and is kept beside the jars.
        """
        kept = jars_folder().with_suffix(".checkpoint")
        data = self.folder / "data"
        if not kept.exists():
            self._format_with_tool()
            with _unfinished(kept) as file:
                shutil.copy(data / _CHECKPOINT, file)
            return
        data.mkdir()
        shutil.copy(kept, data / _CHECKPOINT)
        own = {"version": 1, "cluster.id": self._cluster, "node.id": self.id, "directory.id": _new_id()}
        lines = [f"{name}={value}\n" for name, value in own.items()]
        (data / "meta.properties").write_text("".join(lines), encoding="utf-8")

    def _format_with_tool(self) -> None:
        command = [*_java(), "kafka.tools.StorageTool", "format", "--cluster-id", self._cluster]
        command += ["--config", "server.properties"]
        options = {"cwd": self.folder, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **options)  # type: ignore[call-overload]
        if done.returncode:
            raise NotStarted(f"{self.name} could not format its storage:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


class KafkaServer(Service, KafkaTopics):
    """A Kafka that is ready when all brokers are there.

    Attributes:
        brokers: all of them, by their ids from 0.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        brokers: int = 1,
        users: Mapping[str, str] | None = None,
        certificate: str = "",
        authority: str = "",
        asks_certificates: bool = False,
        advertised_port: int | None = None,
        config: Sequence[str] = (),
    ) -> None:
        """Writes the configurations.

        Args:
            folder: where it stays; a temporary one by default.
            brokers: how many; what is acknowledged by all in sync is on all of three but one that may be away.
            users: with their passwords; with these, clients have to use SASL PLAIN.
            certificate: a file with a certificate and its key; with one, clients have to use TLS.
            authority: a file with who signed the certificates of clients.
            asks_certificates: clients need one.
            advertised_port: where clients are sent, of one broker: that of a relay of the test's own.
            config: further lines of server.properties.
        """
        super().__init__(folder)
        protocol = ("SASL_" if users else "") + ("SSL" if certificate else "") or "PLAINTEXT"
        protocol = "SASL_PLAINTEXT" if protocol == "SASL_" else protocol
        numbers = {"copies": min(brokers, 3), "in_sync": 2 if brokers > 2 else 1}
        lines = [_CONFIGURATION.format(protocol=protocol, **numbers)]
        lines += _accept_users(users) if users else []
        lines += _encrypt(self.folder, certificate, authority, asks_certificates) if certificate else []
        lines += config
        cluster = _new_id()
        self.brokers = [KafkaBroker(self.folder / f"broker-{number}", number, cluster) for number in range(brokers)]
        voters = ",".join(f"{broker.id}@{HOST}:{broker.controller.number}" for broker in self.brokers)
        for broker in self.brokers:
            broker.configure(lines, voters, advertised_port)

    @property
    def address(self) -> str:
        return ",".join(broker.address for broker in self.brokers)

    @property
    def internal_address(self) -> str:
        return ",".join(f"{HOST}:{broker.internal.number}" for broker in self.brokers)

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    @property
    def daemons(self) -> Sequence[KafkaBroker]:
        return self.brokers

    def start(self) -> None:
        stopped = [broker for broker in self.brokers if not broker.is_running]
        for broker in stopped:
            broker.launch()
        for broker in stopped:
            broker.wait_ready()
        self.wait_whole()

    def wait_whole(self, within: float = _SECONDS) -> None:
        """Returns when all brokers that run are in the cluster, and nobody else is.

        Raises:
            NotStarted: they were not within so many seconds.
        """
        try:
            with self.admin() as admin:
                wait_until(lambda: self._is_whole(admin), "the brokers to know each other", within)
        except TimeoutError as error:
            raise NotStarted("\n".join([str(error), *(broker.log[-1000:] for broker in self.brokers)])) from error

    def _is_whole(self, admin: AdminClient) -> bool:
        """Whether a client is told of all brokers that run, and of no other."""
        try:
            known = admin.list_topics(timeout=1).brokers
        except KafkaException:
            return False
        return set(known) == {broker.id for broker in self.brokers if broker.is_running and not broker.is_paused}

    def leader_of(self, topic: str, partition: int = 0) -> KafkaBroker:
        """The broker that leads a partition, once there is one."""
        wait_until(lambda: self.leader_id(topic, partition) >= 0, f"a leader of {topic}")
        return self.brokers[self.leader_id(topic, partition)]

    def in_sync(self, topic: str, partition: int = 0) -> set[int]:
        """The ids of the brokers that have all of a partition."""
        with self.admin() as admin:
            return set(admin.list_topics(topic, timeout=_SECONDS).topics[topic].partitions[partition].isrs)


def _new_id() -> str:
    """One as Kafka makes them; a "-" at the beginning would be none."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")


def _java() -> list[str]:
    java, jars = shutil.which("java"), jars_folder()
    if java is None:
        raise NotStarted("there is no java: apt-get install default-jre-headless")
    if not jars.exists():
        raise NotStarted("there are no jars of Kafka: scripts/services set-up gets them")
    shared = [f"-XX:SharedArchiveFile={_archive()}", "-Xlog:cds*=off"] if _archive().exists() else []
    return [java, *_JAVA, *shared, "-cp", f"{jars}/*"]


def share_classes() -> None:
    """Has a broker write down, as it ends, the classes it has read: with them, others start in half the time.

    Where Java cannot do that, they start as ever.
    """
    if _archive().exists():
        return
    with closing(KafkaServer()) as kafka, _unfinished(_archive()) as file, suppress(NotStarted):
        (broker,) = kafka.brokers
        broker.options = [f"-XX:ArchiveClassesAtExit={file}", "-Xlog:cds*=off"]
        kafka.start()
        broker.terminate()
        wait_until(lambda: not broker.is_running, "Kafka's classes")


def _archive() -> Path:
    return jars_folder().with_suffix(".jsa")


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Another name for a file, which nobody finds until it is whole."""
    unfinished = path.with_name(f"{path.name}-{uuid.uuid4()}")
    try:
        yield unfinished
        if unfinished.exists():
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _list(listeners: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items())


def _listening_ports() -> set[int]:
    """The IPv4 ports on which somebody listens; a connection that says nothing would be logged (proc(5))."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:]
    ]
    return {int(fields[1].rpartition(":")[2], 16) for fields in lines if fields[3] == "0A"}


def _accept_users(users: Mapping[str, str]) -> list[str]:
    entries = " ".join(f'user_{name}="{password}"' for name, password in users.items())
    return [
        "listener.name.client.sasl.enabled.mechanisms=PLAIN",
        f"listener.name.client.plain.sasl.jaas.config={_PLAIN} required {entries};",
    ]


def _encrypt(folder: Path, certificate: str, authority: str, asks: bool) -> list[str]:
    """Kafka reads keys in PKCS #8 only (KIP-651)."""
    pem = Path(certificate).read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    store = folder / "certificate.pem"
    store.write_bytes(encoded + pem[pem.index(b"-----BEGIN CERTIFICATE") :])
    settings = {"keystore.type": "PEM", "keystore.location": store, "client.auth": "required" if asks else "none"}
    if authority:
        settings |= {"truststore.type": "PEM", "truststore.location": authority}
    return [f"listener.name.client.ssl.{name}={value}" for name, value in settings.items()]
