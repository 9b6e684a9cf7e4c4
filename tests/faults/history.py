"""What happened in a round: what was published, and what each subscriber was given. Without I/O.

What breaks a rule by itself is noted as it comes; what can only be seen at the end is the business of ``checker``.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

Id = tuple[int, int]
#: A position: an id in each shard that it tells of. A log that is not in shards is the shard 0.
Place = dict[int, Id]
BEGINNING = "0-0"
ZERO: Id = (0, 0)


@lru_cache(100_000)
def place_of(text: str) -> Place:
    """A position from its written form, not to be changed. "All that is kept" tells of no shard."""
    if text == BEGINNING:
        return {}
    if "." not in text:
        return {0: _id_of(text)}
    parts = (part.split(".") for part in text.split("_"))
    return {int(number): _id_of(part) for number, part in parts}


def _id_of(text: str) -> Id:
    ms, counter = text.split("-")
    return int(ms), int(counter)


def written(event_id: Id) -> str:
    """An id in one shard, as it is written."""
    return f"{event_id[0]}-{event_id[1]}"


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic is one of those that a subscription names."""
    wanted, tokens = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(one in ("*", other) for one, other in zip(wanted, tokens, strict=True))


class Entry(NamedTuple):
    """An event's place in the log, as somebody was told it.

    Attributes:
        topic: the event's.
        shard: of the topic.
        id: in the shard.
        name: of the publication.
    """

    topic: str
    shard: int
    id: Id
    name: int


@dataclass(slots=True)
class Publication:
    """One event that was to be published.

    Attributes:
        name: its number, which is in its data; no two have the same.
        topic: its topic.
        request: the number of the request; those with the same one are a batch.
        sent_at: when that was first sent, in seconds.
        acknowledged_at: when it was first acknowledged; None if it never was.
        ids: what the acknowledgements said, each once.
    """

    name: int
    topic: str
    request: int
    sent_at: float
    acknowledged_at: float | None = None
    ids: list[Id] = field(default_factory=list)


class Violation(NamedTuple):
    """A rule that was broken.

    Attributes:
        rule: which, in a word or two.
        text: what happened.
        follower: whom it happened to, if to one.
        item: where among the items of that one.
    """

    rule: str
    text: str
    follower: "Follower | None" = None
    item: int | None = None


class Journal:
    """What all have in common: the publications, and the log as it is known.

    Attributes:
        publications: by name.
        entries: of the log, in the order in which they came to be known.
        shards: those of topics of which something was acknowledged.
        violations: what was noted so far.
    """

    def __init__(self) -> None:
        self.publications: dict[int, Publication] = {}
        self.entries: list[Entry] = []
        self.shards: dict[str, int] = {}
        self.violations: list[Violation] = []
        self._numbers: dict[tuple[int, Id], int] = {}

    def sent(self, topics: Sequence[str], at: float) -> list[Publication]:
        """Notes a request that is about to be sent, with an event for each of these topics."""
        first = len(self.publications)
        made = [Publication(first + index, topic, first, at) for index, topic in enumerate(topics)]
        self.publications.update((each.name, each) for each in made)
        return made

    def acknowledged(self, publications: Sequence[Publication], ids: Sequence[str], at: float) -> None:
        """Notes what the answer to a request said."""
        if len(ids) != len(publications):
            names = [each.name for each in publications]
            self.violations.append(Violation("acknowledged", f"the request of {names} was answered with {list(ids)}"))
            return
        for publication, text in zip(publications, ids, strict=True):
            ((shard, event_id),) = place_of(text).items()
            self.shards.setdefault(publication.topic, shard)
            if publication.acknowledged_at is None:
                publication.acknowledged_at = at
            if event_id not in publication.ids:
                publication.ids.append(event_id)
            self.note(Entry(publication.topic, shard, event_id, publication.name))

    def note(self, entry: Entry) -> int:
        """The number of an entry, new or known; another event at its place is a violation."""
        key = entry.shard, entry.id
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.entries)
            self.entries.append(entry)
        elif self.entries[number] != entry:
            text = f"{written(entry.id)} in shard {entry.shard} is {self.entries[number]}, and {entry}"
            self.violations.append(Violation("one order", text))
        return number


class Gap(NamedTuple):
    """The announcement of a gap, with the positions as they were written."""

    reason: str
    after: str
    resumed_at: str


class Note(NamedTuple):
    """Something among a follower's events that is none.

    Attributes:
        at: when, in seconds.
        text: what, for a reader.
        gap: if it was one.
    """

    at: float
    text: str
    gap: Gap | None = None


class Follower:
    """What one subscriber was given, over all of its connections.

    Args:
        journal: of the round.
        name: for a reader.
        topics: names and patterns.

    Attributes:
        items: numbers of entries; ``-1 - n`` is the note n.
        notes: what else there was.
        position: the last that it was told, in each shard.
        floor: what is behind it comes; of what is within a gap, some may be there still, and comes after the gap.
        start: where it began; None before it was told.
        is_retired: whether it has left before the end.
    """

    def __init__(self, journal: Journal, name: str, topics: Sequence[str]) -> None:
        self.journal = journal
        self.name = name
        self.topics = topics
        self.items = array("q")
        self.notes: list[Note] = []
        self.position: Place = {}
        self.floor: Place = {}
        self.start: Place | None = None
        self.is_retired = False
        self._wanted: dict[str, bool] = {}

    def wants(self, topic: str) -> bool:
        """Whether it subscribes to a topic."""
        wanted = self._wanted.get(topic)
        if wanted is None:
            wanted = self._wanted[topic] = any(matches(pattern, topic) for pattern in self.topics)
        return wanted

    def note(self, at: float, text: str, gap: Gap | None = None) -> None:
        """Notes something that is no event."""
        self.notes.append(Note(at, text, gap))
        self.items.append(-len(self.notes))

    def told(self, text: str, at: float) -> None:
        """Notes a position that came without an event: everything up to it was given."""
        found = place_of(text)
        if self.start is None:
            self.start = dict(found)
            self.note(at, f"begins at {text}")
        self._move(found, f"the position {text}")

    def event(self, text: str, name: int, topic: str | None) -> None:
        """Notes an event.

        Args:
            text: its id.
            name: of the publication, as the data tells it.
            topic: where the transport tells it.
        """
        publication = self.journal.publications.get(name)
        if publication is None:
            self._violate("published", f"the event {text} with the number {name} was never published")
            return
        if topic not in (None, publication.topic) or not self.wants(publication.topic):
            self._violate("topic", f"{text} of {publication.topic} was given as one of {topic}")
            return
        found = place_of(text)
        shard = self.journal.shards.get(publication.topic, 0)
        if shard not in found:
            self._violate("id", f"{text} tells nothing of shard {shard}, in which {publication.topic} is")
            return
        number = self.journal.note(Entry(publication.topic, shard, found[shard], name))
        if found[shard] <= self.floor.get(shard, ZERO):
            rule = "twice" if number in self.items else "order"
            self._violate(rule, f"{text} came behind {written(self.floor[shard])} of shard {shard}")
        self.items.append(number)
        self._move(found, f"the id {text}")

    def gap(self, gap: Gap, at: float) -> None:
        """Notes a gap."""
        self.note(at, f"GAP {gap.reason}, after {gap.after}, resumed at {gap.resumed_at}", gap)
        if self.start is None:
            self.start = dict(place_of(gap.after))
        floor = dict(self.floor)
        self._move(place_of(gap.resumed_at), f"the gap's end {gap.resumed_at}")
        self.floor = floor

    def _move(self, place: Place, what: str) -> None:
        # What is told of shards in which nothing is for it may go back: another server has come less far there.
        shards = {shard for topic, shard in self.journal.shards.items() if self.wants(topic)}
        for shard in place.keys() & shards:
            event_id, before = place[shard], self.floor.get(shard, ZERO)
            if event_id < before:
                self._violate("order", f"{what} is before {written(before)} in shard {shard}")
            else:
                self.floor[shard] = event_id
                self.position[shard] = max(event_id, self.position.get(shard, ZERO))

    def _violate(self, rule: str, text: str) -> None:
        self.journal.violations.append(Violation(rule, text, self, len(self.items)))

    def has_come_to(self, ends: dict[str, tuple[int, Id]]) -> bool:
        """Whether it was given everything up to the last events of its topics, as far as it was told.

        Args:
            ends: topic to its shard and the id in it.
        """
        return all(
            self.position.get(shard, ZERO) >= event_id for topic, (shard, event_id) in ends.items() if self.wants(topic)
        )
