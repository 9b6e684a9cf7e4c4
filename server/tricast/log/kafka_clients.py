"""librdkafka's clients, as the log needs them, and what they tell of topics. For threads: all of it may take time."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AdminClient

from tricast.config import LogSection
from tricast.errors import LogUnavailable
from tricast.log.kafka_settings import (
    history_settings,
    publisher_settings,
    reader_settings,
    settings,
    transaction_settings,
)
from tricast.log.kafka_threads import Place, Post, error_of, in_words
from tricast.log_urls import KafkaUrl
from tricast.logs import Logger

Client = TypeVar("Client", Consumer, Producer, AdminClient)

#: Kafka's errors that say that nothing can be had from it, wherever they come from.
_AWAY = frozenset(
    (
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001 - librdkafka's own codes begin with an underscore
        KafkaError._AUTHENTICATION,  # noqa: SLF001
        KafkaError._SSL,  # noqa: SLF001
        KafkaError.SASL_AUTHENTICATION_FAILED,
    )
)
#: … and those that say why, but of one broker only.
_REASONS = frozenset((KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._TIMED_OUT))  # noqa: SLF001


class Topic(NamedTuple):
    """A topic of Kafka's.

    Attributes:
        topic_id: what it was given when it was made.
        partitions: how many it has.
    """

    topic_id: str
    partitions: int


class Clients:
    """Makes clients.

    Args:
        url: where Kafka is.
        config: what is configured.
        logger: where to say what librdkafka says.
    """

    def __init__(self, url: KafkaUrl, config: LogSection, logger: Logger) -> None:
        self._url = url
        self._timeout = config.timeout
        self._common = settings(url, config) | {"error_cb": self._hear}
        self._shards = config.shards
        self._library_log: Any = _LibraryLog(logger)
        self._why = ""
        # Who looks in an abandoned thread may do so when everything was closed.
        self._lock = threading.Lock()
        self._is_closed = False
        self._admin: AdminClient | None = None
        #: Is told why Kafka cannot be used; called in any thread.
        self.tell: Callable[[str], None] = _ignore

    def consumer(self) -> Consumer:
        """One that follows partitions.

        Raises:
            LogUnavailable: a setting cannot be used; as with all that follow.
        """
        return self._made(Consumer, reader_settings(self._common))

    def history_consumer(self) -> Consumer:
        """One that reads what is older."""
        return self._made(Consumer, history_settings(self._common))

    def producer(self) -> Producer:
        """One that writes single records."""
        return self._made(Producer, publisher_settings(self._common, self._timeout))

    def transactional_producer(self, name: str) -> Producer:
        """One that writes batches, known to Kafka by this name."""
        return self._made(Producer, transaction_settings(self._common, self._timeout, name))

    def _made(self, client: Callable[..., Client], config: dict[str, Any]) -> Client:
        try:
            return client(config, logger=self._library_log)
        except KafkaException as error:
            raise LogUnavailable(f"log.kafka: {in_words(error)}") from None

    def _hear(self, error: KafkaError) -> None:
        """Takes an error that librdkafka tells of beside all else, in any thread; must not raise."""
        if error.code() in _REASONS:
            self._why = in_words(error)
        elif error.code() in _AWAY or error.fatal():
            is_vague = error.code() == KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001
            if not is_vague:
                self._why = in_words(error)
            self.tell(self._why or in_words(error))

    def describe(self, topics: Sequence[str], timeout: float) -> dict[str, Topic]:
        """What topics there are.

        Args:
            topics: their names.
            timeout: seconds.

        Raises:
            LogUnavailable: one is not there, or a partition of one cannot be used now, or Kafka does not answer.
        """
        # In no variable of its own: the traceback of an error would keep it beyond ``close``.
        futures = self._describer().describe_topics(TopicCollection(list(topics)), request_timeout=timeout)
        found = {}
        for name, future in futures.items():
            try:
                description = future.result()
            except KafkaException as exception:
                raise LogUnavailable(self._without(name, error_of(exception))) from None
            for partition in description.partitions:
                if partition.leader is None:
                    raise LogUnavailable(f"partition {partition.id} of {name} has no leader")
            found[name] = Topic(str(description.topic_id), len(description.partitions))
        return found

    def open(self) -> None:
        """Lets ``describe`` make connections again."""
        self._is_closed = False

    def close(self) -> None:
        """Lets go of the connections for ``describe``, which makes none from now on; may take a moment."""
        with self._lock:
            self._is_closed, self._admin = True, None

    def _describer(self) -> AdminClient:
        with self._lock:
            if self._is_closed:
                raise LogUnavailable("the log is not open")
            if self._admin is None:
                self._admin = self._made(AdminClient, self._common)
            return self._admin

    def _without(self, name: str, error: KafkaError) -> str:
        """Why a topic is not described."""
        if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            is_own = name == self._url.topic
            hint = f": kafka-topics.sh --create --topic {name} --partitions {self._shards}" if is_own else ""
            return f"there is no topic {name}{hint}"
        admin = self._admin
        if admin is not None:
            admin.poll(0)  # it hears the reason then
        nodes = ", ".join(map(str, self._url.nodes))
        return f"{nodes}: {self._why or in_words(error)}"


class _LibraryLog(logging.Logger):
    """Takes librdkafka's log lines. What matters in them comes as errors as well, so they are for who looks closely."""

    def __init__(self, logger: Logger) -> None:
        super().__init__("librdkafka")
        self._logger = logger

    def log(self, level: int, msg: object, *args: object, **_: object) -> None:  # noqa: ARG002
        """Logs a line."""
        self._logger.debug("librdkafka", says=str(msg) % args)


class Seen(NamedTuple):
    """What a look at Kafka found.

    Attributes:
        topics: by name.
        bounds: the offsets of the first record and behind the last one, of the partitions that were asked for.
    """

    topics: dict[str, Topic]
    bounds: dict[Place, tuple[int, int]]


class Watcher:
    """Looks whether Kafka is there when somebody doubts it, until it is. ``run`` is for the thread.

    Args:
        look: looks at these partitions; raises LogUnavailable.
        pauses: seconds between looks, the first and the longest.
        randomness: for pauses that differ from process to process.
        post: calls a function in the other thread, soon, and in order.
        seen: is called with what was seen.
        failed: is called with why nothing was.
    """

    def __init__(
        self,
        look: Callable[[set[Place]], Seen],
        *,
        pauses: tuple[float, float],
        randomness: Random,
        post: Post,
        seen: Callable[[Seen], None],
        failed: Callable[[str], None],
    ) -> None:
        self._look = look
        self._pauses = pauses
        self._randomness = randomness
        self._post = post
        self._seen = seen
        self._failed = failed
        self._asked: deque[Sequence[Place]] = deque()
        self._is_wanted = threading.Event()
        self._stopped = threading.Event()

    def look(self, places: Sequence[Place] = ()) -> None:
        """Has it look, also at these partitions."""
        self._asked.append(places)
        self._is_wanted.set()

    def stop(self) -> None:
        """Has the thread end."""
        self._stopped.set()
        self._is_wanted.set()

    def run(self) -> None:
        """Works until stopped."""
        first, longest = pause, _ = self._pauses
        places: set[Place] = set()
        last_look = -math.inf
        while self._is_wanted.wait() and not self._stopped.is_set():
            self._is_wanted.clear()
            # What is seen does not help against everything: then it is asked again and again.
            if time.monotonic() > last_look + 2 * longest:
                pause = first
            else:
                self._stopped.wait(pause * self._randomness.uniform(0.5, 1.0))
                pause = min(2 * pause, longest)
            last_look = time.monotonic()
            while self._asked:
                places.update(self._asked.popleft())
            try:
                seen = self._look(places)
            except LogUnavailable as error:
                self._post(self._failed, error.why)
                self._is_wanted.set()
            else:
                places = set()
                self._post(self._seen, seen)


def _ignore(_: str) -> None:
    """Takes what is told while nobody listens."""
