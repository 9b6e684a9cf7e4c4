"""What an event is: its id, its topic, its type and its data, and what each of them may be.

Owns the rules for names. Knows nothing of transports, logs or subscribers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Self

import msgspec

from tricast.errors import LimitExceeded, RemoteProtocolError

DEFAULT_TYPE = "message"
#: Event types of this prefix are the server's own (``tricast.gap``), so publishers may not use them.
RESERVED_TYPE_PREFIX = "tricast."
MAX_TYPE_BYTES = 255
#: What the id, the names of the fields and the framing take of an event's wire form.
_FRAMING_BYTES = 100

#: In a pattern that a token grants: whose token it is.
SUBJECT = "{sub}"

_ID = re.compile(r"([0-9]{1,19})-([0-9]{1,19})", re.ASCII)
_SHARDED_ID = re.compile(r"[0-9]{1,9}\.[0-9]{1,19}-[0-9]{1,19}(?:_[0-9]{1,9}\.[0-9]{1,19}-[0-9]{1,19})*", re.ASCII)
#: A token is anything printable but white space, the separator and the two wildcards. Control characters would let a
#: topic break out of the lines of an SSE stream or of a log file.
_TOKEN = r"[^\s.*>\x00-\x1f\x7f-\x9f\ud800-\udfff]+"  # noqa: S105
_TOKEN_ALONE = re.compile(_TOKEN)
_TOPIC = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*")
_PATTERN = re.compile(rf"(?:{_TOKEN}|\*)(?:\.(?:{_TOKEN}|\*))*(?:\.>)?|>")
_TYPE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class EventId(NamedTuple):
    """The place of an event in the order of all events, written ``<unix ms>-<counter>`` as a Redis stream does.

    Ids compare as tuples, over all topics and across restarts. To clients they are opaque.
    """

    ms: int
    counter: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.counter}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads an id back from its written form.

        Raises:
            RemoteProtocolError: the text is not an id; ids come back from clients, so it is theirs to mend.
        """
        match = _ID.fullmatch(text)
        if match is None:
            raise _bad_last_id(text)
        return cls(int(match[1]), int(match[2]))


#: Before every event: "all that is kept".
BEGINNING = EventId(0, 0)


class ShardedId:
    """The place of an event, or of a subscriber, in a log of several shards: a position in each of them.

    It is written as ``<shard>.<id>``, joined by ``_``, for the shards that matter to whom it is told. A place is at or
    before another one if it is that in every shard; so of two places neither may be before the other, but for those
    that one process comes to, one after the other.

    Args:
        parts: the position in each shard, by its number; where one is missing, nothing is known.
        shown: the shards that the written form tells of, each of which has a part; None for all.
    """

    __slots__ = ("parts", "shown")

    def __init__(self, parts: Mapping[int, EventId], shown: Sequence[int] | None = None) -> None:
        self.parts = parts
        self.shown = shown

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads it back from its written form.

        Raises:
            RemoteProtocolError: the text is something else.
        """
        if _SHARDED_ID.fullmatch(text) is None:
            raise _bad_last_id(text)
        pairs = (part.split(".") for part in text.split("_"))
        return cls({int(number): EventId.parse(part) for number, part in pairs})

    def __str__(self) -> str:
        shown = sorted(self.parts) if self.shown is None else self.shown
        return "_".join(f"{number}.{self.parts[number]}" for number in shown)

    def __repr__(self) -> str:
        return f"ShardedId({self})"

    def __ge__(self, other: object) -> bool:
        if isinstance(other, ShardedId):
            # A loop: this is done for each delivery.
            for number, part in other.parts.items():
                mine = self.parts.get(number)
                if mine is None or mine < part:
                    return False
            return True
        return other == BEGINNING

    def __le__(self, other: object) -> bool:
        return isinstance(other, ShardedId) and other >= self

    def __gt__(self, other: object) -> bool:
        return self >= other and self != other

    def __lt__(self, other: object) -> bool:
        return self <= other and self != other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardedId) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(frozenset(self.parts.items()))


#: A place in a log, of one shard or of several.
Position = EventId | ShardedId


def parse_position(text: str) -> Position:
    """Reads a position back from its written form.

    Raises:
        RemoteProtocolError: the text is none.
    """
    return ShardedId.parse(text) if "." in text else EventId.parse(text)


def join(one: Position, other: Position) -> Position:
    """The first position that is at or behind both, of one log."""
    if isinstance(one, ShardedId) and isinstance(other, ShardedId):
        parts = {**one.parts, **other.parts}
        for number, part in one.parts.items():
            parts[number] = max(part, parts[number])
        return ShardedId(parts)
    return max(one, other)


def whole(position: Position) -> Position:
    """The position, written with all that it tells, so that it is one for other topics as well."""
    return seen_in(position, None)


def seen_in(position: Position, shards: Sequence[int] | None) -> Position:
    """The position as those are told it who follow these shards, if it tells of all of them; see ``Log.shards_of``."""
    if not isinstance(position, ShardedId):
        return position
    tells = shards is not None and all(number in position.parts for number in shards)
    return ShardedId(position.parts, shards if tells else None)


def _bad_last_id(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"last_id must be an event id such as 1795360951079-0, or 0-0 for all that is kept; found {shorten(text)}",
        code="bad-last-id",
    )


class Draft(NamedTuple):
    """An event as its publisher hands it over, before the log gives it an id.

    Attributes:
        topic: dot-separated tokens, no wildcards.
        type: the name of the event's kind.
        data: one JSON text in UTF-8.
    """

    topic: str
    type: str
    data: bytes


class Event:
    """An event that has its place in the log.

    Attributes:
        id: its position in the order of all events.
        topic: dot-separated tokens.
        type: the name of the event's kind.
        data: one JSON text in UTF-8, byte for byte what the publisher sent.
        encoded: what the wire forms made of it, so that no form encodes it twice; theirs alone.
    """

    __slots__ = ("data", "encoded", "id", "topic", "type")

    def __init__(self, id: Position, topic: str, type: str, data: bytes) -> None:  # noqa: A002
        self.id = id
        self.topic = topic
        self.type = type
        self.data = data
        self.encoded: dict[str, bytes] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and (self.id, self.topic, self.type, self.data) == (
            other.id,
            other.topic,
            other.type,
            other.data,
        )

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Event({self.id}, {self.topic!r}, {self.type!r}, {self.data!r})"

    def seen_in(self, shards: Sequence[int] | None) -> "Event":  # noqa: ARG002
        """The event for those who follow these shards; see ``Log.shards_of``."""
        return self

    @property
    def size(self) -> int:
        """About how many bytes it takes on the wire, in the form that takes most."""
        # In an event stream each line of the data has a field name of its own.
        lines = self.data.count(b"\n") + self.data.count(b"\r")
        return _FRAMING_BYTES + len(self.topic) + len(self.type) + len(self.data) + 6 * lines

    def decode(self) -> object:
        """The data as Python objects."""
        return msgspec.json.decode(self.data)


class ShardedEvent(Event):
    """An event of a log of several shards: its id tells of as many of them as matter to whom it is told.

    Attributes:
        views: the same event for those who follow other shards. It is not among them itself: what refers to itself
            waits for the garbage collector.
    """

    __slots__ = ("views",)
    id: ShardedId

    def __init__(self, id: ShardedId, topic: str, type: str, data: bytes) -> None:  # noqa: A002
        super().__init__(id, topic, type, data)
        self.views: dict[Sequence[int] | None, ShardedEvent] = {}

    def seen_in(self, shards: Sequence[int] | None) -> "ShardedEvent":
        """See ``Event.seen_in``."""
        if shards == self.id.shown:
            return self
        view = self.views.get(shards)
        if view is None:
            position = ShardedId(self.id.parts, shards)
            view = self.views[shards] = ShardedEvent(position, self.topic, self.type, self.data)
        return view


def own_id(event: Event) -> EventId:
    """The id of an event of a log, or of a shard, that is not in shards itself."""
    assert isinstance(event.id, EventId)
    return event.id


class GapReason(StrEnum):
    """Why a client cannot have everything after the position it asked for."""

    EVICTED = "evicted"  # the log keeps only so much
    RESTARTED = "restarted"  # the log began anew since
    SLOW = "slow"  # it was connected, but fell behind further than the log reaches
    UNKNOWN_ID = "unknown_id"  # this log never came that far


class Gap(NamedTuple):
    """The announcement that events may be missing from a stream.

    Attributes:
        reason: why.
        after: the position that was asked for; everything up to it had been received.
        resumed_at: from this position on nothing is missing.
    """

    reason: GapReason
    after: Position
    resumed_at: Position


#: Patterns by their tokens, so that testing a topic costs its length, and not their number.
_Tree = dict[str, "_Tree"]
#: Where a pattern ends; no token is empty.
_END = ""


class TopicSet:
    """A distinct set of topic names and patterns, hashable, with the test whether a topic belongs to it.

    ``*`` matches one token and a final ``>`` one or more, as in NATS.
    """

    __slots__ = ("_patterns", "exact", "names")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        patterns = {name for name in self.names if is_pattern(name)}
        self.exact = self.names - patterns
        self._patterns: _Tree = {}
        for name in patterns:
            node = self._patterns
            for token in name.split("."):
                node = node.setdefault(token, {})
            node[_END] = {}

    @property
    def has_patterns(self) -> bool:
        """Whether topics that are not named here may belong to the set."""
        return bool(self._patterns)

    def __contains__(self, topic: str) -> bool:
        return topic in self.exact or (bool(self._patterns) and _matches(self._patterns, topic.split("."), 0))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopicSet) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __bool__(self) -> bool:
        return bool(self.names)

    def __repr__(self) -> str:
        return f"TopicSet({sorted(self.names)})"


def is_pattern(name: str) -> bool:
    """Whether a subscription names more than one topic. Wildcards are whole tokens, so looking for them is enough."""
    return "*" in name or ">" in name


def is_valid_pattern(name: str) -> bool:
    """Whether the name is a topic, or a pattern with ``*`` and a final ``>``, of whatever length."""
    return _PATTERN.fullmatch(name) is not None


def is_token(text: str) -> bool:
    """Whether the text can be one of the dot-separated parts of a topic."""
    return _TOKEN_ALONE.fullmatch(text) is not None


def covers(grant: str, wanted: str) -> bool:
    """Whether every topic that ``wanted`` names is one that ``grant`` names, too.

    Args:
        grant: a topic or a pattern.
        wanted: the same.
    """
    if grant in (wanted, ">"):
        return True
    granted, tokens = grant.split("."), wanted.split(".")
    has_rest = granted[-1] == ">"
    if has_rest:
        granted.pop()
    # What > stands for is at least one token, so that "a.>" does not cover "a", but covers "a.*" and "a.>".
    if len(tokens) <= len(granted) if has_rest else len(tokens) != len(granted):
        return False
    return all(mine == theirs or (mine == "*" and theirs != ">") for mine, theirs in zip(granted, tokens, strict=False))


def check_topic(topic: str, *, max_bytes: int) -> str:
    """Returns the topic unchanged when an event may be published to it.

    Raises:
        RemoteProtocolError: empty, empty tokens, white space, control characters or wildcards.
        LimitExceeded: longer than ``max_bytes`` in UTF-8.
    """
    return _check_name(topic, _TOPIC, max_bytes, "bad-topic", "a topic is dot-separated words without * or >")


def check_pattern(name: str, *, max_bytes: int) -> str:
    """Returns the name unchanged when one may subscribe to it: a topic, or a pattern with ``*`` and a final ``>``.

    Raises:
        RemoteProtocolError: empty, empty tokens, white space, control characters, or misplaced wildcards.
        LimitExceeded: longer than ``max_bytes`` in UTF-8.
    """
    return _check_name(
        name,
        _PATTERN,
        max_bytes,
        "bad-topic",
        "a topic is dot-separated words, where * stands for one word and a final > for the rest",
    )


def check_type(name: str) -> str:
    """Returns the event type unchanged when a publisher may use it.

    Raises:
        RemoteProtocolError: empty, reserved, or with characters that end a line.
        LimitExceeded: longer than 255 bytes in UTF-8.
    """
    _check_name(name, _TYPE, MAX_TYPE_BYTES, "bad-type", "a type is one line of printable text")
    if name.startswith(RESERVED_TYPE_PREFIX):
        raise RemoteProtocolError(f"types that begin with {RESERVED_TYPE_PREFIX} are reserved", code="bad-type")
    return name


def data_as_json(body: bytes) -> bytes:
    """What was published, as one JSON text: verbatim when it is JSON, else as a JSON string.

    Args:
        body: what the publisher sent.

    Raises:
        RemoteProtocolError: it is not UTF-8, so it can be neither.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(
            f"data must be UTF-8: {error.reason} at byte {error.start}", code="bad-data"
        ) from None
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return msgspec.json.encode(text)
    return body


def shorten(text: str, *, limit: int = 60) -> str:
    """The text quoted for a message: control characters escaped, no longer than about ``limit``."""
    return ascii(text if len(text) <= limit else text[:limit] + "…")


def _check_name(name: str, rule: re.Pattern[str], max_bytes: int, code: str, expected: str) -> str:
    # The length in characters first: a megabyte is not worth a regular expression.
    size = len(name) if len(name) > max_bytes else len(name.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise LimitExceeded("limits.topic_size" if code == "bad-topic" else "type", max_bytes, size, status=400)
    if rule.fullmatch(name) is None:
        raise RemoteProtocolError(f"{expected}; found {shorten(name)}", code=code)
    return name


def _matches(node: _Tree, tokens: Sequence[str], index: int) -> bool:
    """Whether the tokens from the index on match any pattern below the node."""
    if index == len(tokens):
        return _END in node
    if ">" in node:  # the rest, which is at least this token
        return True
    return any(_matches(node[token], tokens, index + 1) for token in (tokens[index], "*") if token in node)
