"""A shard's keys in Redis, and what is asked of them over a connection. Keeps no state."""

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any, NamedTuple

from coredis import Redis

from tricast.errors import RemoteProtocolError
from tricast.event import BEGINNING, DEFAULT_TYPE, Draft, Event, EventId, TopicSet
from tricast.log.base import IdempotencyKey, key_reused
from tricast.log.redis_scripts import APPEND, BEGIN, LOOK, MAX_NEWER, READ, READ_STEP, TRIM, score_of
from tricast.log.redis_servers import SLOTS, slot_of

#: About how much is asked for at a time. It is handed over in one turn, in which nobody else has one: small events keep
#: those who take it busy for a few milliseconds.
REPLY_BYTES = 64 * 2**10


class Keys(NamedTuple):
    """See ``tricast.log.redis_scripts``."""

    log: bytes
    meta: bytes
    topics: bytes
    keys: bytes
    keyed: bytes


def keys_of(namespace: str, number: int, shards: int) -> Keys:
    """The keys of one shard of so many: in one slot of a cluster, and each shard's in another part of the slots."""
    prefix = f"{namespace}:{{{tag_of(number, shards)}}}:"
    return Keys(*(f"{prefix}{name}".encode() for name in Keys._fields))


def tag_of(number: int, shards: int) -> str:
    """What goes between the braces in the names of a shard's keys. Another number of shards makes it another log."""
    slots = range(number * SLOTS // shards, (number + 1) * SLOTS // shards)
    tags = (f"{shards}.{number}.{suffix}" for suffix in count())
    return next(tag for tag in tags if slot_of(tag.encode()) in slots)


class Entry(NamedTuple):
    """What is in the stream.

    Attributes:
        id: its id there.
        number: of all entries, in order; 0 for one that somebody else has put there.
        event: what was published; None for a mark.
        log: for a mark, the id of the log, else empty.
        fork: for a mark, up to where those who come from what was lost have what is here.
    """

    id: EventId
    number: int
    event: Event | None
    log: bytes = b""
    fork: EventId = BEGINNING


#: Entries, and whether there are no more.
Reply = tuple[list[Entry], bool]


class Known(NamedTuple):
    """A newest entry that somebody knows.

    Attributes:
        id: its id.
        number: its number.
    """

    id: EventId
    number: int


class State(NamedTuple):
    """How the stream was when it was looked at.

    Attributes:
        log: the id of the log; empty where there is none any more.
        start: of what was before, events may be missing.
        last: the newest entry that there ever was.
    """

    log: bytes
    start: EventId
    last: Known


class Look(NamedTuple):
    """What a look finds.

    Attributes:
        state: see there.
        first: the oldest entry that is kept; None where there is none.
        is_newer: whether there may have been an event of the topics behind the position.
    """

    state: State
    first: EventId | None
    is_newer: bool


class Batch(NamedTuple):
    """What is appended together.

    Attributes:
        parts: for each shard that it is for, at least one draft.
        key: what makes it the same as another one.
    """

    parts: Sequence[Sequence[Draft]]
    key: IdempotencyKey | None


#: The ids of a batch in each of its shards, new ones or those of the first time; or why it was refused.
Answer = list[list[EventId]] | RemoteProtocolError


class Appended(NamedTuple):
    """What became of an append.

    Attributes:
        heads: the newest entry behind it, of each shard.
        answers: one for each batch.
    """

    heads: list[Known]
    answers: list[Answer]


async def begin(
    redis: Redis[bytes],
    keys: Keys,
    fresh: bytes,
    known: State,
    landmarks: Iterable[EventId],
    *,
    may_return: bool,
    is_replicated: bool,
) -> tuple[State, bool]:
    """Opens the log, and begins one where there is none.

    Args:
        redis: the connection.
        keys: the shard's.
        fresh: the id of a log that begins.
        known: the one that was open before, with the newest entry that is known of it.
        landmarks: others of its entries, the newest first.
        may_return: whether a server may have been replaced for a while that was no replica meanwhile.
        is_replicated: whether replicas have all that is acknowledged.

    Returns:
        How it is, and whether everything behind what was known can be read on from there.
    """
    arguments: list[bytes | str | int] = [fresh, known.log, str(known.last.id), known.last.number]
    run, has_taken_over = await _server(redis)
    arguments += [
        run,
        int((has_taken_over or may_return) and not is_replicated),
        *map(str, landmarks),
        str(known.start),
    ]
    log, start, number, last, is_known = await BEGIN.run(redis, keys, arguments)
    return State(log, _id_of(start), Known(_id_of(last), int(number))), bool(is_known)


async def _server(redis: Redis[bytes]) -> tuple[bytes, bool]:
    """The id of the server's run, and whether it was a replica before it was what it is."""
    text: bytes = await redis.create_request(b"INFO", b"server", b"replication", callback=_as_it_is)
    found = dict(line.partition(b":")[::2] for line in text.splitlines())
    # Not every server tells: what stands in for Redis may leave them out.
    return found.get(b"run_id", b""), bool(found.get(b"master_replid2", b"").strip(b"0"))


async def append(
    redis: Redis[bytes], shards: Sequence[tuple[Keys, bytes]], length: int, batches: Sequence[Batch]
) -> Appended | None:
    """Appends batches; None where a log is another one by now, and nothing was appended.

    Args:
        redis: the connection.
        shards: keys, and the id of the log, of each shard that the batches are for.
        length: how many entries a shard keeps, about.
        batches: each is refused or taken by itself.
    """
    arguments: list[bytes | str | int] = [length, *(log for _, log in shards)]
    for batch in batches:
        _add_batch(arguments, batch)
    reply = await APPEND.run(redis, [key for keys, _ in shards for key in keys], arguments)
    if not reply:
        return None
    heads, firsts = reply
    first_of = iter(firsts)
    answers = [_answer([next(first_of) for _ in batch.parts], batch) for batch in batches]
    pairs = zip(heads[::2], heads[1::2], strict=True)
    return Appended([Known(_id_of(last), number) for number, last in pairs], answers)


async def look(redis: Redis[bytes], keys: Keys, topics: TopicSet, after: EventId) -> Look:
    """Looks at the stream, and whether there may have been events of topics behind a position."""
    names = [] if topics.has_patterns else topics.exact
    reply = await LOOK.run(redis, keys, [f"{score_of(after):.17g}", *names])
    log, start, number, last, first, forgotten, newer = reply
    is_newer = float(forgotten) > score_of(after) or len(newer) == MAX_NEWER
    is_newer = is_newer or any(_decoded(name) in topics for name in newer)
    state = State(log, _id_of(start), Known(_id_of(last), number))
    return Look(state, _id_of(first) if first else None, is_newer)


async def wait_for_entries(redis: Redis[bytes], keys: Keys, after: EventId, *, block: float) -> Reply:
    """Entries behind a position, as soon as there are any, and whether those are all.

    Args:
        redis: the connection.
        keys: the shard's.
        after: the position.
        block: seconds after which it is none, when there were none.
    """
    arguments = (b"COUNT", READ_STEP, b"BLOCK", int(block * 1000), b"STREAMS", keys.log, str(after))
    reply = await redis.create_request(b"XREAD", *arguments, callback=_as_it_is)
    entries = _entries_of(reply[keys.log]) if reply else []
    return entries, len(entries) < READ_STEP


async def entries_behind(redis: Redis[bytes], keys: Keys, after: EventId, upto: EventId | None = None) -> Reply:
    """The first entries behind a position, about ``REPLY_BYTES`` of them, and whether those are all."""
    return await _read(redis, keys, f"({after}", "+" if upto is None else str(upto), is_backward=False)


async def entries_before(redis: Redis[bytes], keys: Keys, before: EventId | None, upto: EventId) -> Reply:
    """The last entries up to a position, the newest first, about ``REPLY_BYTES`` of them, and whether those are all.

    Args:
        redis: the connection.
        keys: the shard's.
        before: those at this position and behind it are left out.
        upto: where to begin where there is no such position.
    """
    return await _read(redis, keys, str(upto) if before is None else f"({before}", "-", is_backward=True)


async def _read(redis: Redis[bytes], keys: Keys, begin: str, end: str, *, is_backward: bool) -> Reply:
    reply, is_all = await READ.run(redis, keys, [begin, end, REPLY_BYTES, int(is_backward)])
    return _entries_of(reply), bool(is_all)


async def state_of(redis: Redis[bytes], keys: Keys) -> State:
    """How the stream is."""
    fields = (keys.meta, b"id", b"start", b"n", b"last")
    log, start, number, last = await redis.create_request(b"HMGET", *fields, callback=_as_it_is)
    return State(log or b"", _id_of(start or b"0-0"), Known(_id_of(last or b"0-0"), int(number or 0)))


async def wait_for_replicas(redis: Redis[bytes], replicas: int, *, patience: float) -> int:
    """How many replicas have what was written over this connection, when that is as many as are wanted, or in time."""
    found: int = await redis.create_request(b"WAIT", replicas, int(patience * 1000), callback=_as_it_is)
    return found


async def is_entry(redis: Redis[bytes], keys: Keys, position: EventId) -> bool:
    """Whether there is an entry at a position, or may have been one before it was trimmed."""
    arguments = (keys.log, str(position), str(position))
    if await redis.create_request(b"XRANGE", *arguments, callback=_as_it_is):
        return True
    oldest = await first(redis, keys)
    return oldest is None or oldest > position


async def first(redis: Redis[bytes], keys: Keys) -> EventId | None:
    """The oldest entry; None where there is none."""
    entries = await redis.create_request(b"XRANGE", keys.log, b"-", b"+", b"COUNT", 1, callback=_as_it_is)
    return _id_of(entries[0][0]) if entries else None


async def trim(redis: Redis[bytes], keys: Keys, age: float) -> None:
    """Drops what is older than so many seconds."""
    await TRIM.run(redis, keys, [int(age * 1000)])


async def probe(redis: Redis[bytes], keys: Keys) -> None:
    """Finds out whether something can be written."""
    await redis.hset(keys.meta, {b"probe": b""})


#: What is known of a log that was never opened.
NOTHING = Known(BEGINNING, 0)


def _add_batch(arguments: list[bytes | str | int], batch: Batch) -> None:
    key = batch.key
    if key is None:
        arguments += (b"", b"", 0, 0)
    else:
        arguments += (key.name, key.fingerprint.hex(), int(key.window * 1000), key.max_keys)
    for part in batch.parts:
        arguments.append(len(part))
        for draft in part:
            arguments += (draft.topic, "" if draft.type == DEFAULT_TYPE else draft.type, draft.data)


def _answer(firsts: Sequence[bytes], batch: Batch) -> Answer:
    if not firsts[0]:
        return key_reused()
    return [_ids(_id_of(first), len(part)) for first, part in zip(firsts, batch.parts, strict=True)]


def _entries_of(reply: Sequence[Any]) -> list[Entry]:
    return [_entry_of(*each) for each in reply]


def _entry_of(name: bytes, fields: Sequence[bytes]) -> Entry:
    event_id = _id_of(name)
    found = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        number = int(found[b"n"])
        if b"m" in found:
            return Entry(event_id, number, None, found[b"m"], _id_of(found[b"f"]))
        kind = found[b"y"].decode() if b"y" in found else DEFAULT_TYPE
        return Entry(event_id, number, Event(event_id, found[b"t"].decode(), kind, found[b"d"]))
    except (KeyError, ValueError):
        return Entry(event_id, 0, None)


def _id_of(text: bytes) -> EventId:
    ms, _, counter = text.partition(b"-")
    return EventId(int(ms), int(counter))


def _ids(first: EventId, count: int) -> list[EventId]:
    return [EventId(first.ms, first.counter + index) for index in range(count)]


def _decoded(name: bytes) -> str:
    return name.decode(errors="replace")


def _as_it_is(reply: Any, **_: object) -> Any:
    return reply
