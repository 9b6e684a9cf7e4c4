"""Many topics with one subscriber each."""

from figures import summarize_latencies
from peers.base import Capability
from scenarios.base import STREAMS, Column, MeasureError, Scenario, Stage, as_us, name_topics


def _measure_one_to_one(stage: Stage) -> dict[str, float]:
    topics, events, rate = stage.size("topics"), stage.size("events"), stage.size("rate")
    names = name_topics(topics)
    with stage.session() as session:
        session.open(topics, topics=topics)
        with session.publisher(stage.size("publishers")) as publisher:
            before = session.receive(1).marks
            cpu = session.read_cpu_ns()
            session.begin_receiving(events / rate + 20, until_marks=before + events)
            # 7,919 is prime: the topics come in no order that a server could have laid them out in.
            published = publisher.run(
                lambda number, sent: session.write(number, sent, topic=names[number * 7919 % topics]),
                events,
                rate,
                events / rate + 20,
            )
            received = session.end_receiving()
            used = session.read_cpu_ns() - cpu
    delivered = received.marks - before
    if delivered > events:
        raise MeasureError(f"{events:,} events came {delivered:,} times: it does not tell topics apart")
    return {
        "cpu_us": as_us(used, delivered),
        "events_per_second": round(published.answered / published.seconds),
        "lost": events - delivered,
        **summarize_latencies(received.latencies),
    }


ONE_TO_ONE = Scenario(
    name="one-to-one",
    title="One to one",
    about=(
        "{topics:,.0f} topics with one subscriber each, {rate:,.0f} events/s over all of them, {events:,.0f} events. "
        "CPU of the server per event: published over HTTP, and delivered once."
    ),
    transports=STREAMS,
    columns=(
        Column("cpu_us", "CPU µs per event", 1),
        Column("events_per_second", "events/s", 0, "high"),
        Column("p50_ms", "p50 ms"),
        Column("p99_ms", "p99 ms"),
        Column("lost", "lost", 0),
    ),
    sizes={"topics": 10000, "rate": 500, "events": 5000, "publishers": 16},
    quick={"topics": 2000, "events": 1500},
    measure=_measure_one_to_one,
    needs=frozenset({Capability.TOPICS}),
)
