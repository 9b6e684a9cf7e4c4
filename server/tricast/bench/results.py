"""From counts to what a user is told: rates, percentiles, costs, warnings, and the words to choose a transport by.

Knows neither processes nor terminals.
"""

from collections.abc import Iterable, Sequence

import msgspec

from tricast.bench.messages import Published, Usage
from tricast.bench.schedule import Feed
from tricast.bench.tally import Tally, add_up

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
#: A process that runs more than this part of the time has no room for more, and measures itself.
_BUSY = 0.9
#: A process that waited for a core this part of the time has measured that as well.
_STARVED = 0.25
#: What a process waited in less than this says little about the machine.
_TELLING_SECONDS = 3.0
#: The feed is said to have fallen short when its rate was lower by more than this part.
_SHORT = 0.05


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked to do.

    Attributes:
        url: the server.
        transport: ``sse``, ``ws``, ``poll`` or ``mix``.
        subscribers: how many, in all.
        rate: events a second.
        size: bytes of data per event.
        duration: seconds that are measured.
        warm_up: seconds of feed before.
        topic: the topic, or what the names of several begin with.
        topics: how many there are.
        publishers: how many publish.
        processes: among how many processes the subscribers are shared; 0 for as many as they need.
        token: what every request shows, or nothing.
        api_key: the same.
        certificates: for TLS; see ``tricast.client.endpoint.Certificates``.
    """

    url: str
    transport: str
    subscribers: int
    rate: float
    size: int
    duration: float
    warm_up: float
    topic: str
    topics: int
    publishers: int
    processes: int
    token: str = ""
    api_key: str = ""
    certificates: dict[str, str] = {}


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """From the moment an event was due to the moment it was read, in milliseconds; None when none was."""

    p50: float | None
    p90: float | None
    p99: float | None
    p99_9: float | None
    max: float | None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What the generator itself used.

    Attributes:
        processes: how many there were, that of the publishers included.
        busiest_cpu: the part of a core that the busiest of them used.
        longest_wait: the part of the time in which one of them was ready to run and had no core.
    """

    processes: int
    busiest_cpu: float
    longest_wait: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has found, as ``--json`` prints it.

    What was due in the warm-up is in none of it, but for ``gaps``, ``reconnects``, ``errors``, ``events_per_publish``
    and ``publish_late_ms``, which begin with the run. What nothing was measured for is None.

    Attributes:
        transport: ``sse``, ``ws``, ``poll`` or ``mix``.
        subscribers: how many were asked for.
        opened: how many were subscribed when the feed began.
        opened_per_second: at what rate.
        planned: events that were to be published.
        published: events that the server took.
        rate: events a second that were asked for.
        published_per_second: events a second that were published.
        events_per_publish: events in one request of a publisher, on average.
        publish_late_ms: how long after it was due an event was sent at most.
        deliveries: events that came to subscribers.
        deliveries_per_second: until the last one came.
        lost: events that a subscriber did not get, without a word.
        missed: events that a subscriber did not get, and was told so.
        duplicates: events that a subscriber got again.
        out_of_order: events that came to a subscriber behind later ones.
        gaps: announced gaps, by reason.
        latency_ms: of the deliveries.
        bytes_per_event: bytes received over events that came, framing, heads and keepalives included.
        requests_per_event: HTTP requests over events that came.
        reconnects: connections made again.
        errors: what went wrong, by kind.
        generator: what the generator used.
        failures: why the run has failed where no count tells it: who had no server at the end.
        warnings: what a reader of the figures should know.
        by_transport: for ``mix``, the same for each.
        was_interrupted: whether it ended before its time.
    """

    transport: str
    subscribers: int
    opened: int
    opened_per_second: float
    planned: int
    published: int
    rate: float
    published_per_second: float
    events_per_publish: float | None
    publish_late_ms: float | None
    deliveries: int
    deliveries_per_second: float
    lost: int
    missed: int
    duplicates: int
    out_of_order: int
    gaps: dict[str, int]
    latency_ms: Latency
    bytes_per_event: float | None
    requests_per_event: float | None
    reconnects: int
    errors: dict[str, int]
    generator: Load
    failures: list[str]
    warnings: list[str]
    by_transport: "dict[str, Result]"
    was_interrupted: bool

    @property
    def is_faultless(self) -> bool:
        """Whether every subscriber got every event once and in order, or was told what it did not get."""
        has_any = self.deliveries > 0 or self.was_interrupted
        return has_any and not (self.lost or self.duplicates or self.out_of_order or self.failures)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run has counted.

    Attributes:
        settings: what was asked for.
        feed: what was to be published.
        tallies: for each transport, what its subscribers have counted.
        published: the publishers' report.
        usages: what each process has used, the publishers' last.
        measured_from: when measuring began, in nanoseconds of the monotonic clock.
        was_interrupted: whether it ended before its time.
    """

    settings: Settings
    feed: Feed
    tallies: dict[str, Tally]
    published: Published
    usages: list[Usage]
    measured_from: int
    was_interrupted: bool


def result_of(measured: Measured) -> Result:
    """What a run has found."""
    whole = Tally.of(tally.counts() for tally in measured.tallies.values())
    add_up(whole.errors, measured.published.errors)
    is_mix = measured.settings.transport == "mix"
    parts = {name: _result(measured, name, tally, {}) for name, tally in measured.tallies.items()} if is_mix else {}
    result = _result(measured, measured.settings.transport, whole, parts)
    failures = list(_failures(measured, whole))
    return msgspec.structs.replace(result, failures=failures, warnings=list(_warnings(measured, result)))


def _result(measured: Measured, transport: str, tally: Tally, parts: dict[str, Result]) -> Result:
    settings, published = measured.settings, measured.published
    seconds = max(0.0, published.seconds - settings.warm_up)
    if not measured.was_interrupted:
        seconds = max(seconds, settings.duration)
    until_last = (tally.last_delivery - measured.measured_from) / 1e9
    counted = _behind_warm_up(measured, published.published)
    return Result(
        transport=transport,
        subscribers=tally.subscribers,
        opened=tally.opened,
        opened_per_second=_ratio(tally.opened, tally.opening_seconds),
        planned=_behind_warm_up(measured, map(measured.feed.events_of, range(settings.publishers))),
        published=counted,
        rate=settings.rate,
        published_per_second=_ratio(counted, seconds),
        events_per_publish=_ratio(sum(published.published), published.requests) if published.requests else None,
        publish_late_ms=_in_ms(published.late_ns) if published.requests else None,
        deliveries=tally.deliveries,
        deliveries_per_second=_ratio(tally.deliveries, max(seconds, until_last)),
        lost=tally.lost,
        missed=tally.missed,
        duplicates=tally.duplicates,
        out_of_order=tally.out_of_order,
        gaps=tally.gaps,
        latency_ms=_latency(tally),
        bytes_per_event=_ratio(tally.received_bytes, tally.events) if tally.deliveries else None,
        requests_per_event=_ratio(tally.requests, tally.events, digits=4) if tally.deliveries else None,
        reconnects=tally.reconnects,
        errors=tally.errors,
        generator=_load(measured.usages),
        failures=[],
        warnings=[],
        by_transport=parts,
        was_interrupted=measured.was_interrupted,
    )


def _behind_warm_up(measured: Measured, counts: Iterable[int]) -> int:
    """How many of each publisher's first so many events are measured."""
    warm_up = round(measured.settings.warm_up * 1e9)
    return sum(max(0, count - measured.feed.warm_up_of(publisher, warm_up)) for publisher, count in enumerate(counts))


def _latency(tally: Tally) -> Latency:
    if not tally.histogram.count:
        return Latency(p50=None, p90=None, p99=None, p99_9=None, max=None)
    p50, p90, p99, p99_9 = map(_in_ms, tally.histogram.percentiles(*PERCENTILES))
    return Latency(p50=p50, p90=p90, p99=p99, p99_9=p99_9, max=_in_ms(tally.histogram.largest))


def _load(usages: Sequence[Usage]) -> Load:
    return Load(
        processes=len(usages),
        busiest_cpu=max(_ratio(usage.cpu, usage.wall) for usage in usages),
        longest_wait=max(_ratio(usage.waited, usage.wall) for usage in usages),
    )


def _failures(measured: Measured, whole: Tally) -> Iterable[str]:
    if whole.away:
        away = sum(whole.away.values())
        yield f"{away} of {whole.opened} subscribers were not connected at the end: {_reasons(whole.away)}"
    if given_up := measured.published.given_up:
        count, planned = sum(given_up.values()), measured.feed.events
        yield f"{count} of {planned} planned events found no server to take them: {_reasons(given_up)}"


def _reasons(counts: dict[str, int]) -> str:
    most_first = sorted(counts, key=lambda reason: (-counts[reason], reason))
    return ", ".join(most_first if len(counts) == 1 else [f"{reason} ({counts[reason]})" for reason in most_first])


def _warnings(measured: Measured, result: Result) -> Iterable[str]:
    if result.opened < result.subscribers:
        yield f"only {result.opened} of {result.subscribers} subscribers could be opened"
    # What no server was there for is told as a failure.
    fell_short = result.published_per_second < result.rate * (1 - _SHORT) and not measured.published.given_up
    if fell_short and not result.was_interrupted:
        yield (
            f"published {result.published_per_second:.6g} events/s instead of {result.rate:g}: "
            + ("the server did not always take events" if measured.published.errors else "publishing could not keep up")
        )
    load = result.generator
    if load.busiest_cpu > _BUSY:
        yield (
            f"the generator was the bottleneck: one of its processes used {load.busiest_cpu:.0%} of a core; "
            "use more --processes or another machine, and take the figures as what it could do"
        )
    if load.longest_wait > _STARVED and max(usage.wall for usage in measured.usages) >= _TELLING_SECONDS:
        yield (
            f"the generator waited for a core {load.longest_wait:.0%} of the time: "
            "this machine is too busy, and the latencies contain that"
        )


def advice(results: Sequence[Result]) -> list[str]:
    """A few words that help to choose, from runs of the same feed over each transport."""
    names = {"poll": "long polling", "sse": "SSE", "ws": "WebSocket"}

    def least(what: str, values: Iterable[float | None]) -> Iterable[str]:
        pairs = [(value, result) for value, result in zip(values, results, strict=True) if value is not None]
        if pairs:
            best = min(value for value, _ in pairs)
            # What differs by less than a twentieth does not decide.
            found = " and ".join(names[result.transport] for value, result in pairs if value <= best * 1.05)
            yield f"{what}: {found}"

    lines = [
        *least("lowest p99 latency", [result.latency_ms.p99 for result in results]),
        *least("fewest bytes per event", [result.bytes_per_event for result in results]),
        "long polling passes wherever HTTP does, and costs a request per answer: for few events, or as the last resort",
        "SSE is one request; browsers reconnect and resume by themselves; for events that go one way",
        "WebSocket goes both ways; every proxy has to forward Upgrade, and the client has to reconnect by itself",
    ]
    if any(not result.is_faultless for result in results):
        lines.insert(0, "not everything came in order and once: look at that before you choose")
    return lines


def _ratio(part: float, whole: float, *, digits: int = 3) -> float:
    return round(part / whole, digits) if whole > 0 else 0.0


def _in_ms(ns: int) -> float:
    return round(ns / 1e6, 3)
