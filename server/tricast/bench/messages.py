"""What the coordinator and its processes tell each other: one JSON object a line, over stdin and stdout."""

from typing import Literal

import msgspec

from tricast.bench.schedule import Feed
from tricast.bench.tally import Counts


class Plan(msgspec.Struct, tag="plan", frozen=True, kw_only=True):
    """What a process is to do; the first thing it is told.

    Attributes:
        url: the server.
        family: of its address.
        address: as ``socket.connect`` takes it.
        feed: what is published.
        headers: what every request shows to say who asks.
        certificates: for TLS; see ``tricast.client.endpoint.Certificates``.
        subscribers: which ones are this process's: their numbers in the whole run, and their transports. None are
            the publishers'.
    """

    url: str
    family: int
    address: tuple[str | int, ...]
    feed: Feed
    headers: list[tuple[str, str]] = msgspec.field(default_factory=list)
    certificates: dict[str, str] = {}
    subscribers: list[tuple[int, Literal["sse", "ws", "poll"]]]


class Begin(msgspec.Struct, tag="begin", frozen=True):
    """The feed begins.

    Attributes:
        at: when, in nanoseconds of the monotonic clock, which all processes of a machine share.
        measured_from: when measuring begins.
    """

    at: int
    measured_from: int


class Await(msgspec.Struct, tag="await", frozen=True):
    """The feed has ended: wait for what is on its way, and report.

    Attributes:
        published: how many events each publisher has published.
    """

    published: list[int]


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Publish no more; or, where publishing is over already, wait no more for what is on its way."""


class Progress(msgspec.Struct, tag="progress", frozen=True, kw_only=True):
    """How far a process is.

    Attributes:
        opened: subscribers that were ever subscribed.
        events: measured events that came so far.
        published: measured events that the server has taken so far.
        errors: how many things went wrong.
        p99_ns: the 99th percentile of the latency so far.
    """

    opened: int = 0
    events: int = 0
    published: int = 0
    errors: int = 0
    p99_ns: int = 0


class Opened(msgspec.Struct, tag="opened", frozen=True):
    """All subscribers are subscribed that will be; or the publishers are connected.

    Attributes:
        opened: how many.
        errors: what went wrong, by kind.
    """

    opened: int
    errors: dict[str, int]


class Published(msgspec.Struct, tag="published", frozen=True, kw_only=True):
    """The publishers' report: nothing more will be published.

    Attributes:
        published: how many events each has published.
        given_up: events that there was no server for, by what had ended the last connection to it.
        seconds: from the beginning of the feed to the last answer.
        requests: how many requests that took.
        late_ns: how long after it was due an event was sent at most.
        errors: what went wrong, by kind.
        refusal: why the server will not take the events at all, or nothing.
        usage: what the process has used.
    """

    published: list[int]
    given_up: dict[str, int]
    seconds: float
    requests: int
    late_ns: int
    errors: dict[str, int]
    refusal: str
    usage: "Usage"


class Usage(msgspec.Struct, frozen=True):
    """What a process used of the processors while it measured, in seconds.

    Attributes:
        wall: how long that was.
        cpu: how long it ran.
        waited: how long it could have run, and another process did.
    """

    wall: float
    cpu: float
    waited: float


class Report(msgspec.Struct, tag="report", frozen=True):
    """The subscribers' report.

    Attributes:
        counts: what those of each transport have counted.
        usage: what the process has used.
    """

    counts: dict[str, Counts]
    usage: Usage


Order = Plan | Begin | Await | Stop
Word = Progress | Opened | Published | Report

_order_decoder: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
_word_decoder: msgspec.json.Decoder[Word] = msgspec.json.Decoder(Word)


def encode(message: Order | Word) -> bytes:
    """The message as a line."""
    return msgspec.json.encode(message) + b"\n"


def decode_order(line: bytes) -> Order:
    """What the coordinator says."""
    return _order_decoder.decode(line)


def decode_word(line: bytes) -> Word:
    """What a process says."""
    return _word_decoder.decode(line)
