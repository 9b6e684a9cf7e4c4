"""When each event is due, and what it is: the feed as both publishers and subscribers know it.

**Coordinated omission.** A generator that waits for a slow server before it sends the next event omits just those
measurements that would have been bad ones (Gil Tene, "How NOT to Measure Latency"). So the feed is an open loop: the
moment at which an event is due follows from its number alone, it is this moment that the event carries and that
latency is counted from, and an event that could not be sent in time brings its delay along.

Knows no sockets and no clock.
"""

from typing import NamedTuple

#: Below this many events a second each event is a request of its own, and above it one request takes several.
_MOST_SINGLE_REQUESTS = 200
#: How many requests a second a publisher makes then.
_BATCHES_PER_SECOND = 100
#: What a server takes in one batch unless told otherwise is 1000 events in 1 MiB.
MOST_IN_REQUEST = 500
_MOST_REQUEST_BYTES = 2**19
#: What a line of a batch has beside topic and data.
_LINE_FRAMING = 50
#: The data without its text, with numbers as long as they may get.
SMALLEST_DATA = 100


class Feed(NamedTuple):
    """Everything that is to be published in a run.

    The events of one publisher go to the topics in turn, and each topic has the publisher's events numbered without a
    hole: a subscriber to one topic can check the order of each publisher's events by their numbers alone.

    Attributes:
        run: names the run, so that nobody else's events are taken for this run's.
        topic: the topic; or, where there are several, what their names begin with.
        topics: how many there are.
        publishers: how many publish, each over a connection of its own.
        rate: events a second, of all publishers together.
        size: bytes of data per event.
        seconds: how long it lasts.
    """

    run: str
    topic: str
    topics: int
    publishers: int
    rate: float
    size: int
    seconds: float

    @property
    def events(self) -> int:
        """How many events there are."""
        return max(1, round(self.rate * self.seconds))

    def events_of(self, publisher: int) -> int:
        """How many of them are this publisher's."""
        return (self.events - publisher + self.publishers - 1) // self.publishers

    def topic_name(self, index: int) -> str:
        """The name of a topic."""
        return self.topic if self.topics == 1 else f"{self.topic}.{index + 1}"

    def topic_of(self, publisher: int, number: int) -> int:
        """The topic that a publisher's event goes to."""
        return (number + publisher) % self.topics

    def number_in_topic(self, number: int) -> int:
        """The number that a publisher's event has among those to the same topic."""
        return number // self.topics

    def events_in_topic(self, publisher: int, published: int, topic: int) -> int:
        """How many of a publisher's first so many events went to the topic."""
        first = (topic - publisher) % self.topics
        return (published - first + self.topics - 1) // self.topics

    @property
    def most_in_request(self) -> int:
        """How many events one request may take."""
        fitting = _MOST_REQUEST_BYTES // (self.size + len(self.topic) + _LINE_FRAMING)
        return max(1, min(MOST_IN_REQUEST, fitting))

    @property
    def batch(self) -> int:
        """How many events become due together, for one request."""
        rate = self.rate / self.publishers
        if rate <= _MOST_SINGLE_REQUESTS:
            return 1
        return min(self.most_in_request, round(rate / _BATCHES_PER_SECOND))

    def due_at(self, publisher: int, number: int) -> int:
        """Nanoseconds after the beginning at which a publisher's event is due. The publishers take turns."""
        batch = self.batch
        turn = (number // batch) * self.publishers + publisher
        return round(turn * batch / self.rate * 1e9)

    def due_until(self, publisher: int, elapsed: int) -> int:
        """How many of a publisher's events are due so many nanoseconds after the beginning."""
        batch = self.batch
        # One less than the division says, so that its rounding makes no event due before its time.
        turns = int(elapsed * self.rate / (batch * 1e9)) - 1
        batches = max(0, (turns - publisher) // self.publishers)
        while self.due_at(publisher, batches * batch) <= elapsed:
            batches += 1
        return min(batches * batch, self.events_of(publisher))

    def warm_up_of(self, publisher: int, elapsed: int) -> int:
        """How many of a publisher's events are due in the first so many nanoseconds, which are not measured."""
        return self.due_until(publisher, elapsed - 1)

    def data(self, publisher: int, number: int, at: int) -> bytes:
        """The data of a publisher's event, as JSON.

        Args:
            publisher: whose event.
            number: its number among those of the publisher.
            at: when it is due, in nanoseconds of the monotonic clock.
        """
        head = b'{"bench":"%b-%d","n":%d,"at":%d,"text":"' % (
            self.run.encode(),
            publisher,
            self.number_in_topic(number),
            at,
        )
        return b'%b%b"}' % (head, b"x" * (self.size - len(head) - 2))
