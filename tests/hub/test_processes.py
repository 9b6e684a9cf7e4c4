"""What Tricast promises where several processes share a log in shards.

Each process has the real hub over the real log of shards, and sees what the shards hold in an order of its own. Clients
go from one process to another with the last id they were told, at any moment: what they get is, topic by topic, in
order and contiguous, or a gap was announced; nothing comes twice; and on one connection ids never go back.
"""

from collections.abc import Iterator, Mapping
from random import Random

import pytest
from hub.fakes import FORMS, STATES, FakeSubscriber, Got, Item, Switched, at_once
from hub.shards import Content, Shard
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import tricast.hub
from tricast.event import (
    BEGINNING,
    Draft,
    EventId,
    Gap,
    GapReason,
    Position,
    ShardedId,
    TopicSet,
    own_id,
    parse_position,
)
from tricast.hub import Hub
from tricast.log.sharded import ShardedLog

#: Where each topic is. Numbers need not be in a row.
SHARD_OF = {"a.1": 0, "a.2": 1, "b": 1, "c": 7}
SHARDS = (0, 1, 7)
#: Within one shard, over several, and over all.
TOPIC_SETS = tuple(map(TopicSet, (["a.1"], ["a.2", "b"], ["a.1", "b"], ["a.*", "c"], [">"])))
HISTORY = 3
#: Two or three events.
BLOCK_BYTES = 300
PROCESSES = 2
CLIENTS = 3

Parts = dict[int, EventId]
#: An event by where it is.
Place = tuple[int, EventId]

processes = st.integers(0, PROCESSES - 1)
clients = st.integers(0, CLIENTS - 1)
topic_sets = st.sampled_from(TOPIC_SETS)


def parts_of(position: Position) -> Parts:
    """Where a position is in each shard of which it tells."""
    if position == BEGINNING:
        return dict.fromkeys(SHARDS, BEGINNING)
    assert isinstance(position, ShardedId)
    return dict(position.parts)


def shards_of(topics: TopicSet) -> set[int]:
    """The shards that matter to whom follows these topics."""
    return set(SHARDS) if topics.has_patterns else {SHARD_OF[topic] for topic in topics.exact}


class Process:
    """A process, with its own view of the shards."""

    def __init__(self, contents: Mapping[int, Content]) -> None:
        self.shards = {number: Shard(content) for number, content in contents.items()}
        self.log = ShardedLog(self.shards, shard_of=SHARD_OF.__getitem__)
        self.hub = Hub(self.log, max_topic_bytes=255, max_event_bytes=65536, wake=lambda: None)
        self.flushing: Iterator[None] | None = None
        self.scope = self.hub.open()
        at_once(self.scope.__aenter__())

    def flush(self, steps: int) -> None:
        if self.flushing is None:
            self.flushing = self.hub.flush()
        for _ in range(steps):
            try:
                next(self.flushing)
            except StopIteration:
                self.flushing = None
                break

    @property
    def is_flushed(self) -> bool:
        return self.flushing is None and not self.hub._dirty


class Client:
    """One client over all its connections, and what it may expect. Its *leg* is what it follows without a break."""

    def __init__(self, index: int, process: Process) -> None:
        self.form = FORMS[index // 2]
        self.process = process
        self.subscriber = FakeSubscriber(form=self.form)
        self.is_online = False
        self.begin(BEGINNING, TOPIC_SETS[0])

    def begin(self, start: Position, topics: TopicSet) -> None:
        """Begins a new leg."""
        self.topics = topics
        self.start = parts_of(start)
        #: The last id that the client was told, as it was written: what it comes back with.
        self.resume = start
        self.received: set[Place] = set()
        self.excused: set[Place] = set()
        self.on_connection: Parts = {}

    def connect(self, process: Process, topics: TopicSet, position: Position, *, is_given: bool) -> None:
        """Opens another connection."""
        self.disconnect()
        self.process = process
        self.on_connection = {}
        self.subscriber = FakeSubscriber(form=self.form)
        self.subscriber.follow(process.hub, topics, position, is_given=is_given)
        self.is_online = True

    def disconnect(self) -> None:
        """Loses the connection, with what has not arrived."""
        self.process.hub.leave(self.subscriber)
        self.subscriber.cut()
        self.is_online = False

    def take(self, world: "Processes") -> None:
        """Looks at what has arrived, any of which may be the last that does on this connection."""
        items, self.subscriber.items = self.subscriber.items, []
        for item in items:
            self._take(item, world)
            self.check(parts_of(self.resume), world)

    def _take(self, item: Item, world: "Processes") -> None:
        if isinstance(item, Switched):
            position = parts_of(item.position)
            self.check(position, world)
            excused = {place for place in self.excused if position.get(place[0]) == BEGINNING}
            self.begin(item.position, item.topics)
            self.excused = excused
        elif isinstance(item, Gap):
            self._take_gap(item, world)
        else:
            self._take_event(item)

    def _take_event(self, item: Got) -> None:
        assert item.topic in self.topics
        number = SHARD_OF[item.topic]
        parts = parts_of(item.id)
        place = (number, parts[number])
        assert parts.keys() == shards_of(self.topics), "more, or less, than it needs to come back"
        assert place[1] > self.start[number], "from before the beginning"
        assert place not in self.received, "twice"
        assert all(place[1] > other for shard, other in self.received if shard == number), "out of order"
        back = {shard for shard, told in self.on_connection.items() if shard in parts and parts[shard] < told}
        assert not back, f"ids go back in {back}"
        assert parts[number] > self.on_connection.get(number, BEGINNING), "ids do not go on"
        self.received.add(place)
        self._told(item.id, parts)

    def _take_gap(self, gap: Gap, world: "Processes") -> None:
        after, resumed = parts_of(gap.after), parts_of(gap.resumed_at)
        told = parts_of(self.resume)
        lost: set[Place] = set()
        for shard, end in resumed.items():
            begin = after.get(shard)
            if begin is None or end < begin:
                assert begin == told.get(shard), "the position that never was is another one"
                self.start[shard] = end
                self.on_connection.pop(shard, None)
            elif end > begin:
                assert world.contents[shard].has_lost(self.topics, begin), "a gap where there is none"
                lost |= {(shard, EventId(begin.ms, each)) for each in range(begin.counter + 1, end.counter + 1)}
        assert lost or gap.reason is GapReason.UNKNOWN_ID
        self.excused |= lost
        self.resume = gap.resumed_at  # but what there is still within it comes behind it

    def _told(self, position: Position, parts: Parts) -> None:
        self.resume = position
        self.on_connection |= parts

    def excuse_what_is_not_kept(self, world: "Processes") -> None:
        """Where it asked for all that is kept, and knows of nothing yet."""
        told = parts_of(self.resume)
        for number, content in world.contents.items():
            if told.get(number) == BEGINNING:
                kept = {own_id(event) for event in content.kept}
                self.excused |= {place for place in world.places(number) if place[1] not in kept}

    def check(self, upto: Parts, world: "Processes") -> None:
        """Everything up to a position has arrived, or is in a gap that has."""
        missing = {
            (number, event_id)
            for number, topic, event_id in world.published
            if topic in self.topics and number in upto and self.start[number] < event_id <= upto[number]
        }
        missing -= self.received | self.excused
        assert not missing, f"lost in silence: {sorted(missing)}"


class Processes(RuleBasedStateMachine):
    """Everything that can happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        # The same milliseconds in all shards, so that one's ids could pass for another's.
        self.contents = {number: Content(EventId(1000, 5 * number), history=HISTORY) for number in SHARDS}
        self.processes = [Process(self.contents) for _ in range(PROCESSES)]
        self.published: list[tuple[int, str, EventId]] = []
        self.told: list[Position] = []
        self.clients = [Client(index, self.processes[0]) for index in range(CLIENTS)]

    def places(self, number: int) -> set[Place]:
        """Where all events of a shard are, or were."""
        return {(shard, event_id) for shard, _, event_id in self.published if shard == number}

    def teardown(self) -> None:
        for client in self.clients:
            client.subscriber.unblock()
        for process in self.processes:
            for shard in process.shards.values():
                shard.hand_over(shard.waiting)
        for _ in range(3):  # what falls behind in a flush needs one more
            self.catch_up_all()
            for index in range(PROCESSES):
                self.flush(index, 1000)
        self.catch_up_all()
        for client in self.clients:
            assert client.subscriber.is_live == client.is_online
        self.everything_arrived()
        for client in self.clients:
            client.disconnect()
        for process in self.processes:
            assert not process.hub._feeds
            at_once(process.scope.__aexit__(None, None, None))

    def catch_up_all(self) -> None:
        for index, client in enumerate(self.clients):
            while client.subscriber.is_catching_up:
                self.catch_up(index, 1, 1)

    @initialize(topics=topic_sets)
    def everybody_connects(self, topics: TopicSet) -> None:
        for index, client in enumerate(self.clients):
            process = self.processes[index % PROCESSES]
            client.begin(process.hub.last_id, topics)
            client.connect(process, topics, process.hub.last_id, is_given=False)

    # What publishers and the shards do

    @rule(topics=st.lists(st.sampled_from(sorted(SHARD_OF)), min_size=1, max_size=5), index=processes)
    def publish(self, topics: list[str], index: int) -> None:
        hub = self.processes[index].hub
        for topic in topics:
            (position,) = at_once(hub.append([Draft(topic, "message", b"1")]))
            (place,) = parts_of(position).items()
            assert place[0] == SHARD_OF[topic]
            self.published.append((place[0], topic, place[1]))

    @rule(index=processes, number=st.sampled_from(SHARDS), count=st.sampled_from([1, 1, 2, 100]))
    def hand_over(self, index: int, number: int, count: int) -> None:
        self.processes[index].shards[number].hand_over(count)

    @rule(
        what=st.sampled_from(["skip", "drop", "evict", "lose", "restart", "hurry"]),
        index=processes,
        topic=st.sampled_from(sorted(SHARD_OF)),
    )
    def disturb(self, what: str, index: int, topic: str) -> None:
        number = SHARD_OF[topic]
        process = self.processes[index]
        if what == "skip":
            process.shards[number].skip()
        elif what == "drop":
            self.contents[number].trim(topic, 0)
        elif what == "evict":
            self.publish([topic] * (HISTORY + 1), index)
        elif what == "lose":
            self.contents[number].lose()
        elif what == "restart":
            self.restart(index)
        else:
            process.shards[number].waits ^= True

    def restart(self, index: int) -> None:
        for client in self.clients:
            if client.process is self.processes[index]:
                client.disconnect()
        self.processes[index] = Process(self.contents)

    # What the servers do

    @rule(index=processes, steps=st.sampled_from([1, 1, 1, 2, 3, 1000]))
    def flush(self, index: int, steps: int) -> None:
        self.processes[index].flush(steps)
        self.look()

    @rule(index=clients, steps=st.sampled_from([1, 1, 2, 3, 20]), max_bytes=st.sampled_from([1, 1, BLOCK_BYTES]))
    def catch_up(self, index: int, steps: int, max_bytes: int) -> None:
        client = self.clients[index]
        for _ in range(steps):
            client.subscriber.catch_up(client.process.hub, max_bytes=max_bytes)
            client.excuse_what_is_not_kept(self)
        self.look()

    # What clients do

    @rule(index=clients, to=processes)
    def move(self, index: int, to: int) -> None:
        """Goes on at a process with the last id it was told."""
        client = self.clients[index]
        client.connect(self.processes[to], client.topics, self.written(client.resume), is_given=True)

    @rule(index=clients, to=processes)
    def poll(self, index: int, to: int) -> None:
        """Is told where it is, as a long poll that ends without events, and goes on at a process from there."""
        client = self.clients[index]
        subscriber = client.subscriber
        if subscriber.is_live and not subscriber.tail:
            position = self.written(client.process.hub.settled(subscriber))
            client.check(parts_of(position), self)
            client.resume = position
            self.move(index, to)

    @rule(
        index=clients,
        to=processes,
        topics=topic_sets,
        start=st.sampled_from(["now", "resume", "told", "told", "any", "beginning", "future"]),
        seed=st.integers(0, 2**16),
    )
    def connect_anew(self, index: int, to: int, topics: TopicSet, start: str, seed: int) -> None:
        """Begins at a process from wherever it wants to."""
        client, process, random = self.clients[index], self.processes[to], Random(seed)
        position: Position = process.hub.last_id
        if start == "resume":
            position = client.resume
        elif start == "told" and self.told:
            position = self.told[-random.randint(1, min(len(self.told), 12))]
        elif start == "any":
            position = ShardedId({number: self.any_of(content, random) for number, content in self.contents.items()})
        elif start == "beginning":
            position = BEGINNING
        elif start == "future":
            number = random.choice(SHARDS)
            last = self.contents[number].last_id
            position = ShardedId({**parts_of(position), number: EventId(last.ms, last.counter + 50)})
        position = self.written(position)
        client.begin(position, topics)
        client.connect(process, topics, position, is_given=start != "now")

    @rule(index=clients, topics=topic_sets)
    def change_topics(self, index: int, topics: TopicSet) -> None:
        client = self.clients[index]
        if client.is_online:
            client.subscriber.switch(client.process.hub, topics)
        self.look()

    @rule(index=clients, room=st.none() | st.integers(0, 120))
    def block(self, index: int, room: int | None) -> None:
        subscriber = self.clients[index].subscriber
        if room is None:
            subscriber.unblock()
        else:
            subscriber.block(room)
        self.look()

    @staticmethod
    def any_of(content: Content, random: Random) -> EventId:
        entries = [entry.id for entry in content.entries[-8:]]
        chosen = random.choice([content.start, *entries])
        assert isinstance(chosen, EventId)
        return chosen

    @staticmethod
    def written(position: Position) -> Position:
        """As a client brings it back."""
        return parse_position(str(position))

    # What must hold

    def look(self) -> None:
        for client in self.clients:
            client.take(self)
            if isinstance(client.resume, ShardedId):
                self.told.append(client.resume)

    @invariant()
    def nothing_is_lost_in_silence(self) -> None:
        for client in self.clients:
            subscriber = client.subscriber
            if subscriber.is_live and not subscriber.tail:
                client.check(parts_of(client.process.hub.settled(subscriber)), self)

    @invariant()
    def everything_arrived(self) -> None:
        for client in self.clients:
            if client.process.is_flushed and client.subscriber.is_live and not client.subscriber.tail:
                client.check(parts_of(client.process.log.last_id), self)

    @invariant()
    def a_process_comes_to_one_position_after_another(self) -> None:
        for process in self.processes:
            assert process.hub.last_id == process.log.last_id == self.written(process.hub.last_id)
            for subscriber in (client.subscriber for client in self.clients if client.process is process):
                assert not subscriber.is_live or process.flushing or subscriber.position >= subscriber.feed.flushed


def test_contiguous_or_a_gap_was_announced_whichever_process_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tricast.hub, "SENDS_PER_TURN", 1)
    monkeypatch.setattr(tricast.hub, "CATCH_UP_BYTES", BLOCK_BYTES)
    run_state_machine_as_test(Processes, settings=STATES)
