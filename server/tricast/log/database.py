"""The SQLite database of a log that several processes share: its tables, and all that is done to them.

Everything here blocks, and belongs to one thread at a time. Nothing here knows of Trio, of threads, or of those who are
told when something was committed.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from heapq import merge
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import Draft, Event, EventId, TopicSet, own_id
from tricast.log.base import IdempotencyKey, Slice, key_reused
from tricast.log.inspection import Cut, Holding, Kept
from tricast.log.sqlite_file import SqliteFile
from tricast.log.window import MAX_GONE, cost_of, gap_between, take

#: An id in one integer of 63 bits: milliseconds until the year 2248, and a million events in each.
_COUNTER_BITS = 20
_MAX_COUNTER = (1 << _COUNTER_BITS) - 1
_MAX_ID = (1 << 63) - 1
#: How much that others committed is handed over at a time, and how much of it together with an append.
#: All of it is one turn of those who take it: 64 KiB of small events keep it busy for a few milliseconds.
_CATCH_UP_BYTES = 64 * 2**10
_MISSED_BYTES = 2**20
#: Events that are dropped in one transaction, beside as many as were appended to it.
_MAX_DROPS = 500
_MAX_DROPS_WITH_APPEND = 50
#: When ids are so much ahead of the clock, it was set back.
_AHEAD_MS = 1000
#: What an event costs beside its text: two rows' headers, its id twice, and pages that are not full.
_OVERHEAD_BYTES = 50
#: A probe asks for as much room as any one publish may take.
_PROBE_BYTES = 2**20
_TABLES = """
CREATE TABLE log (
    start INTEGER NOT NULL, last INTEGER NOT NULL, dropped INTEGER NOT NULL, forgotten INTEGER NOT NULL,
    kept INTEGER NOT NULL, size INTEGER NOT NULL, gone INTEGER NOT NULL, keys INTEGER NOT NULL
);
CREATE TABLE events (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, type TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX events_of_topic ON events (topic);
CREATE TABLE topics (name TEXT PRIMARY KEY, kept INTEGER NOT NULL, dropped INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX topics_gone ON topics (dropped) WHERE kept = 0;
CREATE TABLE keys (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, name BLOB NOT NULL, fingerprint BLOB NOT NULL);
CREATE UNIQUE INDEX keys_by_name ON keys (name);
CREATE TABLE probe (data BLOB);
INSERT INTO log VALUES ({start}, {start}, 0, 0, 0, 0, 0, 0)"""


def encode(position: EventId) -> int:
    """A position as the database has it. One that no event can have becomes one with the same events behind it."""
    if position.ms > _MAX_ID >> _COUNTER_BITS:
        return _MAX_ID
    return position.ms << _COUNTER_BITS | min(position.counter, _MAX_COUNTER)


def decode(number: int) -> EventId:
    """The other way round."""
    return EventId(number >> _COUNTER_BITS, number & _MAX_COUNTER)


class Retention(NamedTuple):
    """What is kept.

    Attributes:
        history: events per topic; a tenth more before they are dropped.
        age: seconds.
        size: bytes in the file, about.
        grace: seconds in which nothing is dropped, so that every process gets to see it; none while the clock is
            behind the ids.
    """

    history: int
    age: float
    size: int
    grace: float


class Batch(NamedTuple):
    """What is appended together.

    Attributes:
        drafts: at least one.
        key: what makes it the same as another one.
    """

    drafts: Sequence[Draft]
    key: IdempotencyKey | None


#: The ids of a batch, new ones or those of the first time; or why it was refused.
Answer = list[EventId] | RemoteProtocolError


class Behind(NamedTuple):
    """What was committed behind a position.

    Attributes:
        skipped: where to go on, when what was before is gone already or too much.
        events: what is behind that.
        upto: the position behind all of this.
        complete: whether that is the end.
    """

    skipped: int | None
    events: list[Event]
    upto: int
    complete: bool


class Appended(NamedTuple):
    """What became of an append.

    Attributes:
        before: what others had committed before it.
        events: what it added.
        upto: the position behind that.
        answers: one for each batch.
    """

    before: Behind
    events: list[Event]
    upto: int
    answers: list[Answer]


class Newest(NamedTuple):
    """The newest events, without any gap.

    Attributes:
        start: where the log began.
        behind: the position that they are behind.
        events: in id order.
        last: the newest position.
    """

    start: int
    behind: int
    events: list[Event]
    last: int


@dataclass(slots=True)
class _State:
    """The one row that is about everything.

    Attributes:
        start: where the log began.
        last: the newest id that was ever given.
        dropped: the newest event that was ever dropped.
        forgotten: the newest drop of topics that have no row any more.
        kept: events.
        size: bytes they take, about.
        gone: topics of which nothing is left, and which still have a row.
        keys: idempotency keys.
    """

    start: int
    last: int
    dropped: int
    forgotten: int
    kept: int
    size: int
    gone: int
    keys: int


class Database:
    """The tables, over one connection.

    Args:
        path: the file.
        synchronous: ``full``, ``normal`` or ``off``, as SQLite means it.
        patience: seconds to wait for a lock that another process holds.
        retention: what is kept.
        clock: seconds since the epoch.
        creates: whether to make the file, or its tables, where there are none.
        pause: see ``SqliteFile``.

    Raises:
        LogUnavailable: see ``SqliteFile``.
        sqlite3.Error: as before.
        OSError: as before.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str,
        patience: float,
        retention: Retention,
        clock: Callable[[], float],
        creates: bool,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._retention = retention
        self._clock = clock
        #: Topics that have more than they should, and could not be relieved of it yet.
        self._excessive: dict[str, None] = {}
        #: No event is older than this.
        self._oldest = 0
        start = self._now() << _COUNTER_BITS
        tables = _TABLES.format(start=start) if creates else None
        self._file = SqliteFile(path, synchronous=synchronous, patience=patience, tables=tables, pause=pause)
        self._run = self._file.run

    def close(self) -> None:
        """Closes the connection."""
        self._file.close()

    def be_patient(self, seconds: float) -> None:
        """Waits for locks so long from now on."""
        self._file.patience = seconds

    # Appending

    def append(self, batches: Sequence[Batch], known: int) -> Appended:
        """Appends batches, all in one transaction.

        Args:
            batches: each is refused or taken by itself.
            known: the position up to which everything was handed over already.
        """
        with self._writing() as state:
            before = self._behind(state, known, _MISSED_BYTES)
            if not before.complete:
                before = Behind(state.last, [], state.last, complete=True)
            # Where the file was put back to an earlier state, ids must still go on.
            state.last = max(state.last, known)
            new: list[Event] = []
            answers = [self._answer(state, batch, new) for batch in batches]
            self._add(state, new)
            self._drop_oldest(state, len(new) + _MAX_DROPS_WITH_APPEND)
        return Appended(before, new, state.last, answers)

    def _answer(self, state: _State, batch: Batch, new: list[Event]) -> Answer:
        drafts, key = batch
        oldest = 0
        if key is not None:
            oldest = (self._now() - int(key.window * 1000)) << _COUNTER_BITS
            used = self._run("SELECT first, count, fingerprint FROM keys WHERE name = ?", key.name).fetchone()
            if used is not None and used[0] >= oldest:
                return _ids(used[0], used[1]) if used[2] == key.fingerprint else key_reused()
        first = max(state.last + 1, self._now() << _COUNTER_BITS)
        state.last = first + len(drafts) - 1
        ids = _ids(first, len(drafts))
        new.extend(Event(event_id, *draft) for event_id, draft in zip(ids, drafts, strict=True))
        if key is not None:
            self._remember(state, key, first, len(drafts), oldest)
        return ids

    def _remember(self, state: _State, key: IdempotencyKey, first: int, count: int, oldest: int) -> None:
        state.keys -= self._run(_FORGET_KEYS, key.name, oldest).rowcount
        self._run("INSERT INTO keys VALUES (?, ?, ?, ?)", first, count, key.name, key.fingerprint)
        state.keys += 1
        if state.keys > key.max_keys:
            state.keys -= self._run(_FORGET_OLDEST_KEYS, state.keys - key.max_keys).rowcount

    def _add(self, state: _State, new: Sequence[Event]) -> None:
        self._file.run_many(
            "INSERT INTO events VALUES (?, ?, ?, ?)",
            ((encode(own_id(event)), event.topic, event.type, event.data) for event in new),
        )
        state.kept += len(new)
        state.size += sum(_cost(event.topic, len(event.type), len(event.data)) for event in new)
        for name, count in Counter(event.topic for event in new).items():
            row = self._topic(name)
            kept, dropped = row or (0, 0)
            state.gone -= row is not None and not kept
            self._shorten(state, name, kept + count, dropped, budget=count + _MAX_DROPS_WITH_APPEND)

    def probe(self) -> None:
        """Finds out whether there is room for an append, and the right to make one."""
        with self._writing():
            self._run("INSERT INTO probe VALUES (zeroblob(?))", _PROBE_BYTES)
        with self._writing():
            self._run("DELETE FROM probe")

    # Dropping

    def trim(self) -> bool:
        """Drops some of what is too old or too much, if there is such; returns whether it dropped as much as it may."""
        with self._reading() as state:
            oldest = self._run("SELECT min(id) FROM events").fetchone()[0]
            is_old = oldest is not None and oldest < self._oldest_to_keep()
            if not is_old and state.size <= self._retention.size and not self._excessive:
                return False
        with self._writing() as state:
            kept = state.kept
            for name in list(self._excessive)[:_MAX_DROPS_WITH_APPEND]:
                row = self._topic(name)
                del self._excessive[name]
                if row is not None:
                    self._shorten(state, name, *row, budget=_MAX_DROPS)
            self._drop_oldest(state, _MAX_DROPS)
            return kept - state.kept >= _MAX_DROPS

    def _shorten(self, state: _State, name: str, kept: int, dropped: int, *, budget: int) -> None:
        """Writes the topic's row, after dropping what it has too much."""
        history = self._retention.history
        # A tenth more than it should have: so one append in so many has to do it.
        if kept > history + history // 10:
            rows = self._run(
                "SELECT id, length(type), length(data) FROM events WHERE topic = ? AND id <= ? ORDER BY id LIMIT ?",
                name, self._newest_to_drop(state), min(kept - history, budget),
            ).fetchall()  # fmt: skip
            if rows:
                dropped = rows[-1][0]
                self._run("DELETE FROM events WHERE topic = ? AND id <= ?", name, dropped)
                kept -= len(rows)
                state.kept -= len(rows)
                state.size -= sum(_cost(name, *lengths) for _, *lengths in rows)
                state.dropped = max(state.dropped, dropped)
            if kept > history + history // 10:
                self._excessive[name] = None
        self._run("REPLACE INTO topics VALUES (?, ?, ?)", name, kept, dropped)

    def _drop_oldest(self, state: _State, budget: int) -> None:
        """Drops what is too old or, over all topics, too much."""
        if state.size <= self._retention.size and self._oldest >= self._oldest_to_keep():
            return
        newest: dict[str, int] = {}
        counts: Counter[str] = Counter()
        rows = self._run(
            "SELECT id, topic, length(type), length(data) FROM events WHERE id <= ? ORDER BY id LIMIT ?",
            self._newest_to_drop(state), budget,
        ).fetchall()  # fmt: skip
        if len(rows) < budget:
            self._oldest = min(self._newest_to_drop(state), state.last)
        for number, topic, *lengths in rows:
            if number >= self._oldest_to_keep() and state.size <= self._retention.size:
                self._oldest = number
                break
            newest[topic] = number
            counts[topic] += 1
            state.size -= _cost(topic, *lengths)
        if newest:
            self._drop_from_topics(state, counts, newest)

    def _drop_from_topics(self, state: _State, counts: Counter[str], newest: Mapping[str, int]) -> None:
        last = max(newest.values())
        state.dropped = max(state.dropped, last)
        self._run("DELETE FROM events WHERE id <= ?", last)
        for name, count in counts.items():
            kept = self._run("SELECT kept FROM topics WHERE name = ?", name).fetchone()[0] - count
            self._run("UPDATE topics SET kept = ?, dropped = ? WHERE name = ?", kept, newest[name], name)
            state.kept -= count
            state.gone += not kept
        if state.gone > MAX_GONE:
            longest_gone = self._run(
                "SELECT name, dropped FROM topics WHERE kept = 0 ORDER BY dropped LIMIT ?", state.gone - MAX_GONE
            ).fetchall()
            self._file.run_many("DELETE FROM topics WHERE name = ?", ((name,) for name, _ in longest_gone))
            state.gone = MAX_GONE
            state.forgotten = max(state.forgotten, longest_gone[-1][1])

    def _topic(self, name: str) -> tuple[int, int] | None:
        row: tuple[int, int] | None = self._run("SELECT kept, dropped FROM topics WHERE name = ?", name).fetchone()
        return row

    def _oldest_to_keep(self) -> int:
        return (self._now() - int(self._retention.age * 1000)) << _COUNTER_BITS

    def _newest_to_drop(self, state: _State) -> int:
        now = self._now()
        # Ids do not tell how old events are when the clock was ahead once: nothing would be dropped until it is there
        # again. The grace only spares others from reading what they were not in time to be handed.
        if not self._retention.grace or state.last >= (now + _AHEAD_MS) << _COUNTER_BITS:
            return _MAX_ID
        return (now - int(self._retention.grace * 1000)) << _COUNTER_BITS

    # Reading

    def behind(self, known: int) -> Behind:
        """What was committed behind a position; not always all of it."""
        with self._reading() as state:
            return self._behind(state, known, _CATCH_UP_BYTES)

    def _behind(self, state: _State, known: int, max_bytes: int) -> Behind:
        if state.last <= known:
            return Behind(None, [], known, complete=True)
        skipped = None
        if state.dropped > known:
            skipped = known = state.dropped
        events: list[Event] = []
        size = 0
        with self._events("WHERE id > ? ORDER BY id", known) as rows:
            for event in rows:
                if size >= max_bytes:
                    return Behind(skipped, events, encode(own_id(events[-1])), complete=False)
                events.append(event)
                size += event.size
        return Behind(skipped, events, state.last, complete=True)

    def newest(self, max_cost: int) -> Newest:
        """The newest events between which nothing is missing.

        Args:
            max_cost: the memory that they may take; see ``cost_of``.
        """
        with self._reading() as state, self._events("WHERE id > ? ORDER BY id DESC", state.dropped) as rows:
            behind = max(state.start, state.dropped)
            events: list[Event] = []
            cost = 0
            for event in rows:
                cost += cost_of(event)
                if cost > max_cost:
                    behind = encode(own_id(event))
                    break
                events.append(event)
        events.reverse()
        return Newest(state.start, behind, events, state.last)

    def read(self, topics: TopicSet, after: EventId, end: EventId, *, max_bytes: int) -> Slice:
        """See ``Log.read``.

        Args:
            topics: names and patterns.
            after: the position.
            end: what is behind this position is not looked at.
            max_bytes: about how much.
        """
        with self._reading() as state, closing(self._candidates(topics, encode(after), encode(end))) as candidates:
            events, upto = take(
                candidates, after=after, end=end, max_bytes=max_bytes, is_wanted=lambda event: event.topic in topics
            )
            drops = self._drops(topics, encode(after)) if state.dropped > encode(after) else ()
            gap = gap_between(
                after, upto, start=decode(state.start), forgotten=decode(state.forgotten), drops=map(decode, drops)
            )
        return Slice(events, gap, upto, complete=upto == end)

    def _candidates(self, topics: TopicSet, after: int, end: int) -> Generator[Event]:
        if topics.has_patterns:
            with self._events("WHERE id > ? AND id <= ? ORDER BY id", after, end) as rows:
                yield from rows
        else:
            # Merged here: SQLite would read and sort all that the topics have before it returned the first.
            where = "WHERE topic = ? AND id > ? AND id <= ? ORDER BY id"
            cursors = [self._run(_SELECT + where, name, after, end) for name in topics.exact]
            try:
                yield from merge(*(map(_event_of, cursor) for cursor in cursors), key=own_id)
            finally:
                for cursor in cursors:
                    cursor.close()

    def _drops(self, topics: TopicSet, after: int) -> list[int]:
        """The drops behind a position, the newest of each topic in the set."""
        if not topics.has_patterns:
            rows = (self._topic(name) for name in topics.exact)
            return [row[1] for row in rows if row is not None]
        dropped = self._run("SELECT name, dropped FROM topics WHERE dropped > ?", after)
        return [number for name, number in dropped.fetchall() if name in topics]

    # Inspecting

    def holding(self) -> Holding:
        """What there is."""
        with self._reading() as state:
            first = self._run("SELECT min(id) FROM events").fetchone()[0]
            topics = self._run("SELECT count(*) FROM topics WHERE kept > 0").fetchone()[0]
        oldest = None if first is None else decode(first)
        since = None if oldest is None else oldest.ms / 1000
        return Holding(oldest, decode(state.last), state.kept, topics, state.size, since)

    def newest_of(self, topics: TopicSet, count: int) -> list[Kept]:
        """So many of the newest events of topics, in id order."""
        with self._reading(), self._events("ORDER BY id DESC") as rows:
            found = list(islice((event for event in rows if event.topic in topics), count))
        return [Kept(own_id(event).ms / 1000, event) for event in reversed(found)]

    def position_of(self, cut: Cut) -> int:
        """The position before which events are dropped."""
        if cut.before is not None:
            return encode(cut.before)
        if cut.older_than is not None:
            return int(cut.older_than * 1000) << _COUNTER_BITS
        assert cut.keep is not None
        with self._reading():
            row = self._run("SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?", cut.keep - 1).fetchone()
        return 0 if row is None else int(row[0])

    def drop(self, before: int) -> int:
        """Drops some of what is before a position; returns how many events, which is none when all is dropped."""
        newest: dict[str, int] = {}
        counts: Counter[str] = Counter()
        with self._writing() as state:
            rows = self._run(
                "SELECT id, topic, length(type), length(data) FROM events WHERE id < ? ORDER BY id LIMIT ?",
                before, _MAX_DROPS,
            ).fetchall()  # fmt: skip
            for number, topic, *lengths in rows:
                newest[topic] = number
                counts[topic] += 1
                state.size -= _cost(topic, *lengths)
            if newest:
                self._drop_from_topics(state, counts, newest)
        return len(rows)

    # Transactions

    @contextmanager
    def _writing(self) -> Iterator[_State]:
        try:
            with self._file.transaction("BEGIN IMMEDIATE", self._state) as state:
                yield state
                self._run(_UPDATE, *_values_of(state))
        except BaseException:
            self._oldest = 0  # what was found out may have been undone
            raise

    @contextmanager
    def _reading(self) -> Iterator[_State]:
        with self._file.transaction("BEGIN", self._state) as state:
            yield state

    @contextmanager
    def _events(self, where: str, *arguments: int) -> Iterator[Iterator[Event]]:
        with closing(self._run(_SELECT + where, *arguments)) as cursor:
            yield map(_event_of, cursor)

    def _state(self) -> _State:
        row = self._run(_STATE).fetchone()
        if row is None:
            raise LogUnavailable("the database has lost its beginning")
        return _State(*row)

    def _now(self) -> int:
        return int(self._clock() * 1000)


_SELECT = "SELECT id, topic, type, data FROM events "
_COLUMNS = [field.name for field in fields(_State)]
_values_of = attrgetter(*_COLUMNS)
_STATE = f"SELECT {', '.join(_COLUMNS)} FROM log"  # noqa: S608
_UPDATE = f"UPDATE log SET {', '.join(f'{name} = ?' for name in _COLUMNS)}"  # noqa: S608
_FORGET_KEYS = """
DELETE FROM keys WHERE name = ? OR first IN (SELECT first FROM keys WHERE first < ? ORDER BY first LIMIT 100)
"""
_FORGET_OLDEST_KEYS = "DELETE FROM keys WHERE first IN (SELECT first FROM keys ORDER BY first LIMIT ?)"


def _event_of(row: tuple[int, str, str, bytes]) -> Event:
    number, topic, kind, data = row
    return Event(decode(number), topic, kind, data)


def _ids(first: int, count: int) -> list[EventId]:
    return [decode(first + index) for index in range(count)]


def _cost(topic: str, type_length: int, data_length: int) -> int:
    return _OVERHEAD_BYTES + 2 * len(topic) + type_length + data_length
