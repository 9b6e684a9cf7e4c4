"""Whether what subscribers were given is what was acknowledged: the rules that can be judged only at the end. Pure.

The log is all that somebody was told of it: what was acknowledged, and what anybody was given. So an event that was not
acknowledged may be in it or not, but if one subscriber got it, the others get it as well.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from faults.history import ZERO, Follower, Gap, Id, Journal, Publication, Violation, place_of, written

#: The last event of each topic: its shard, and the id in it.
Ends = Mapping[str, tuple[int, Id]]


def check(
    journal: Journal,
    followers: Sequence[Follower],
    ends: Ends,
    *,
    loses_at: float = math.inf,
    readers: Sequence[Follower] = (),
) -> list[Violation]:
    """The rules that were broken.

    Args:
        journal: of the round.
        followers: of the round.
        ends: where each topic ends; nobody has to have what is behind it.
        loses_at: when the log began to lose events, by a fault or because it keeps only so many. Before that there is
            no reason for a gap.
        readers: those who have read all that is kept, where all that was acknowledged has to be among it.
    """
    may_lose = loses_at < math.inf
    found = list(journal.violations)
    found += _publications(journal, may_lose=may_lose)
    found += _batches(journal, may_lose=may_lose)
    found += _real_time(journal)
    for reader in readers:
        found += _kept(journal, reader)
    log = _Log(journal, ends)
    for follower in followers:
        found += _gaps(follower, loses_at)
        found += _repeats(follower, may_lose=may_lose)
        found += log.missing(follower, may_lose=may_lose)
        if not follower.is_retired and not follower.has_come_to(dict(ends)):
            found.append(Violation("end", "it did not come to the end", follower, len(follower.items)))
    return found


def told_of(publication: Publication) -> str:
    """A publication for a reader."""
    acknowledged = publication.acknowledged_at
    outcome = "never acknowledged" if acknowledged is None else f"acknowledged at {acknowledged:.2f} s"
    ids = " and ".join(map(written, publication.ids))
    return f"#{publication.name} of {publication.topic}, sent at {publication.sent_at:.2f} s, {outcome} {ids}".rstrip()


def _publications(journal: Journal, *, may_lose: bool) -> Iterator[Violation]:
    """What was published once is in the log once. A log that lost its data has forgotten the key as well."""
    places: dict[int, list[Id]] = defaultdict(list)
    for entry in journal.entries:
        places[entry.name].append(entry.id)
    for name, ids in places.items():
        if len(ids) > 1 and not may_lose:
            where = ", ".join(map(written, ids))
            yield Violation("once", f"{told_of(journal.publications[name])} is in the log at {where}")


def _batches(journal: Journal, *, may_lose: bool) -> Iterator[Violation]:
    """A batch is in the log as a whole or not at all, and in the order in which it was written."""
    known = {entry.name: entry for entry in journal.entries}
    batches: dict[int, list[Publication]] = defaultdict(list)
    for publication in journal.publications.values():
        batches[publication.request].append(publication)
    for batch in batches.values():
        entries = [known[each.name] for each in batch if each.name in known]
        if entries and len(entries) < len(batch) and not may_lose:
            missing = [told_of(each) for each in batch if each.name not in known]
            yield Violation("batch", f"of a batch of {len(batch)} nobody was given {missing}")
        for one, other in pairwise(entries):
            if one.shard == other.shard and one.id >= other.id:
                yield Violation("batch", f"#{other.name} is before #{one.name}, behind which it was in its batch")


def _real_time(journal: Journal) -> Iterator[Violation]:
    """What was sent after something was acknowledged is behind it."""
    by_shard: dict[int, list[tuple[float, int, Id, int]]] = defaultdict(list)
    for entry in journal.entries:
        publication = journal.publications[entry.name]
        # Of what is acknowledged and sent at the same time, neither comes first.
        by_shard[entry.shard].append((publication.sent_at, 0, entry.id, entry.name))
        if publication.acknowledged_at is not None and entry.id == publication.ids[0]:
            by_shard[entry.shard].append((publication.acknowledged_at, 1, entry.id, entry.name))
    for moments in by_shard.values():
        newest, its_name = ZERO, -1
        for _, is_acknowledged, event_id, name in sorted(moments):
            if is_acknowledged:
                newest, its_name = max((newest, its_name), (event_id, name))
            elif event_id < newest and name != its_name:
                one, other = journal.publications[name], journal.publications[its_name]
                yield Violation("real time", f"{told_of(one)} is at {written(event_id)}, before {told_of(other)}")


def _kept(journal: Journal, reader: Follower) -> Iterator[Violation]:
    """What was acknowledged is in the log for ever."""
    given = {journal.entries[item].name for item in reader.items if item >= 0}
    for publication in journal.publications.values():
        if publication.acknowledged_at is not None and publication.name not in given:
            yield Violation("kept", f"{told_of(publication)} is not in the log any more", reader)


def _gaps(follower: Follower, loses_at: float) -> Iterator[Violation]:
    for index, item in enumerate(follower.items):
        if item < 0 and (note := follower.notes[-1 - item]).gap is not None and note.at < loses_at:
            yield Violation("gap", f"{note.gap} was announced, and nothing was lost", follower, index)


def _repeats(follower: Follower, *, may_lose: bool) -> Iterator[Violation]:
    """The same publication may come twice, with another id, only where the log lost its data in between."""
    seen: dict[int, int] = {}
    gaps = 0
    for index, item in enumerate(follower.items):
        if item < 0:
            gaps += follower.notes[-1 - item].gap is not None
            continue
        entry = follower.journal.entries[item]
        publication = follower.journal.publications[entry.name]
        if seen.get(entry.name) == gaps and not (
            may_lose and publication.sent_at < _answerable_since(follower, entry.shard)
        ):
            text = f"{told_of(publication)} was given twice, without a gap in between"
            yield Violation("twice", text, follower, index)
        seen[entry.name] = gaps


def _answerable_since(follower: Follower, shard: int) -> float:
    """When what was published to a shard has to be there once, or be within a gap, where the log loses events; seconds.

    All that is kept is whatever is left, without a gap for what was lost before it was read: that is on the connection
    with the first event of the shard.
    """
    if follower.start != {}:
        return -math.inf
    at = -math.inf
    for item in follower.items:
        if item < 0:
            at = follower.notes[-1 - item].at
        elif follower.journal.entries[item].shard == shard:
            return at
    return math.inf


class _Log:
    """The entries that somebody was told of, by topic and in order."""

    def __init__(self, journal: Journal, ends: Ends) -> None:
        self._journal = journal
        self._topics: dict[str, list[tuple[Id, int]]] = defaultdict(list)
        for number, entry in enumerate(journal.entries):
            if entry.topic in ends and entry.id <= ends[entry.topic][1]:
                self._topics[entry.topic].append((entry.id, number))
        for entries in self._topics.values():
            entries.sort()

    def missing(self, follower: Follower, *, may_lose: bool) -> Iterator[Violation]:
        """What is between the follower's first and last position, and was neither given nor within a gap."""
        if follower.start is None:
            return
        given = {item for item in follower.items if item >= 0}
        gaps = [note.gap for note in follower.notes if note.gap is not None]
        for topic, entries in self._topics.items():
            if not follower.wants(topic):
                continue
            shard = self._journal.shards[topic]
            begin = bisect_right(entries, (follower.start.get(shard, ZERO), len(self._journal.entries)))
            for event_id, number in entries[begin:]:
                if event_id > follower.position.get(shard, ZERO):
                    break
                if number in given or any(_covers(gap, shard, event_id) for gap in gaps):
                    continue
                if not may_lose or self._sent_at(number) >= _answerable_since(follower, shard):
                    yield self._violation(follower, number)

    def _sent_at(self, number: int) -> float:
        return self._journal.publications[self._journal.entries[number].name].sent_at

    def _violation(self, follower: Follower, number: int) -> Violation:
        entry = self._journal.entries[number]
        entries = self._journal.entries
        behind = (
            index
            for index, item in enumerate(follower.items)
            if item >= 0 and entries[item].shard == entry.shard and entries[item].id > entry.id
        )
        told = told_of(self._journal.publications[entry.name])
        text = f"{written(entry.id)} was not given, and is within no gap: {told}"
        return Violation("missing", text, follower, next(behind, len(follower.items)))


def _covers(gap: Gap, shard: int, event_id: Id) -> bool:
    after, resumed_at = place_of(gap.after), place_of(gap.resumed_at)
    return after.get(shard, ZERO) < event_id <= resumed_at.get(shard, ZERO)
