"""Clients that were away, and clients that cannot keep up."""

import time

from figures import summarize_latencies
from load import Received
from peers.base import Capability
from publisher import Publisher
from scenarios.base import STREAMS, TOPIC, Column, MeasureError, Scenario, Session, Stage, as_us

#: With this the kernel holds 1 to 2 MB for a slow client, as the sender's buffer grows: less than it is sent.
_SLOW_RECEIVE_BUFFER = 4096


def _measure_replay(stage: Stage) -> dict[str, float]:
    subscribers, events = stage.size("subscribers"), stage.size("events")
    wanted = subscribers * events
    with stage.session(history=str(events)) as session:
        if session.running.beginning is None:
            raise MeasureError("it does not say how to ask for everything")
        with session.publisher() as publisher:
            publisher.send_all([session.write(number, 0) for number in range(events)], 60)
        cpu, began = session.read_cpu_ns(), time.monotonic()
        session.open(subscribers, last_id=session.running.beginning)
        received = session.receive(60, until_marks=wanted)
        used, seconds = session.read_cpu_ns() - cpu, time.monotonic() - began
    return {
        "cpu_us": as_us(used, received.marks),
        "seconds": round(seconds, 3),
        "events_per_second": round(received.marks / seconds),
        "lost": wanted - received.marks,
    }


def _measure_slow(stage: Stage) -> dict[str, float]:
    fast, slow = stage.size("fast"), stage.size("slow")
    events = stage.size("events")
    with stage.session(history=str(events + 10)) as session:
        session.open(fast)
        session.open(slow, receive_buffer=_SLOW_RECEIVE_BUFFER)
        with session.publisher(4) as publisher:
            before = session.warm_up(publisher, fast + slow)
            session.load.call("pause", slow)
            memory, cpu = session.read_memory(), session.read_cpu_ns()
            received = _publish_large(session, publisher, stage, before + events * fast)
            used, grown = session.read_cpu_ns() - cpu, session.read_memory().rss - memory.rss
        to_fast = received.marks - before
        session.load.call("resume")
        later = session.receive(stage.size("catch_up_seconds"), until_marks=before + events * (fast + slow))
    return {
        "cpu_us": as_us(used, to_fast),
        "lost": events * fast - to_fast,
        "slow_got_percent": round((later.marks - received.marks) / (events * slow) * 100, 1),
        "slow_closed": later.closed,
        "memory_per_slow": round(grown / slow),
        **summarize_latencies(received.latencies),
    }


def _publish_large(session: Session, publisher: Publisher, stage: Stage, until_marks: int) -> Received:
    events, rate = stage.size("events"), stage.size("rate")
    seconds = events / rate + 20
    session.begin_receiving(seconds, until_marks=until_marks)
    publisher.run(
        lambda number, sent: session.write(number + 1, sent, topic=TOPIC, size=stage.size("event_bytes")),
        events,
        rate,
        seconds,
    )
    return session.end_receiving()


REPLAY = Scenario(
    name="replay",
    title="Replay",
    about=(
        "{events:,.0f} events are kept, and {subscribers:,.0f} subscribers come back for all of them at the same "
        "time. CPU of the server per event replayed, accepting included."
    ),
    transports=STREAMS,
    columns=(
        Column("cpu_us", "CPU µs per event", 3),
        Column("seconds", "seconds until all have all", 2),
        Column("events_per_second", "events/s", 0, "high"),
        Column("lost", "lost", 0),
    ),
    sizes={"subscribers": 1000, "events": 1000},
    quick={"subscribers": 300, "events": 500},
    measure=_measure_replay,
    needs=frozenset({Capability.REPLAY}),
    limit_seconds=180,
)

SLOW = Scenario(
    name="slow",
    title="A slow third",
    about=(
        "{fast:.0f} subscribers read and {slow:.0f} do not, while {events:.0f} events of {event_bytes:,.0f} bytes "
        "are published at {rate:.0f}/s; then the slow ones read on for {catch_up_seconds:.0f} s. CPU per delivery "
        "to the others, their latency, what a slow one costs in memory meanwhile, and what the slow ones get in the "
        "end."
    ),
    transports=STREAMS,
    columns=(
        Column("cpu_us", "CPU µs per delivery", 2),
        Column("p99_ms", "p99 ms"),
        Column("lost", "lost by the others", 0),
        Column("memory_per_slow", "bytes per slow one", 0),
        Column("slow_got_percent", "% got by slow ones", 1, "high"),
        Column("slow_closed", "slow ones cut off", 0),
    ),
    sizes={"fast": 200, "slow": 100, "events": 900, "event_bytes": 4000, "rate": 100, "catch_up_seconds": 15},
    quick={"events": 600, "catch_up_seconds": 10},
    measure=_measure_slow,
)
