"""What comes in: long polls, events, and WebSocket messages."""

from figures import summarize_latencies
from load import Target
from peers.base import Capability, Opening, websocket_frame, websocket_request
from publisher import write_event
from scenarios.base import EVENT_BYTES, TOPIC, Column, MeasureError, Scenario, Stage, as_us


def _measure_long_poll(stage: Stage) -> dict[str, float]:
    pollers, events, rate = stage.size("pollers"), stage.size("events"), stage.size("rate")
    with stage.session() as session, session.publisher() as publisher:
        first = 0
        if session.running.beginning is not None:  # with an event there, the first answer tells everybody a position
            publisher.publish(TOPIC, write_event(0, 0, EVENT_BYTES))
            first = pollers
        session.open(pollers, last_id=session.running.beginning)
        before = session.receive(10 if first else 2, **({"until_marks": first} if first else {}))
        if before.marks < first:
            raise MeasureError(f"{before.marks:,} of {first:,} long polls were answered")
        session.receive(1)  # until all have asked again
        wanted = pollers * events
        cpu = session.read_cpu_ns()
        session.begin_receiving(events / rate + 20, until_marks=before.marks + wanted)
        publisher.run(lambda number, sent: session.write(number + 1, sent), events, rate, events / rate + 20)
        received = session.end_receiving()
        used = session.read_cpu_ns() - cpu
    answers = received.answers - before.answers
    return {
        "cpu_us": as_us(used, answers),
        "answers": answers,
        "lost": wanted - (received.marks - before.marks),
        "closed": received.closed,
        **summarize_latencies(received.latencies),
    }


def _measure_publish(stage: Stage) -> dict[str, float]:
    count = stage.size("events")
    with stage.session() as session, session.publisher(stage.size("publishers")) as publisher:
        publisher.run(session.write, 100, 0, 20)
        cpu = session.read_cpu_ns()
        published = publisher.run(session.write, count, 0, 60)
        used = session.read_cpu_ns() - cpu
    return {"cpu_us": as_us(used, count), "events_per_second": round(count / published.seconds)}


def _measure_batch(stage: Stage) -> dict[str, float]:
    batches, size = stage.size("batches"), stage.size("batch")
    with stage.session() as session, session.publisher(stage.size("publishers")) as publisher:
        datas = [write_event(number, 0, EVENT_BYTES) for number in range(size)]
        request = session.running.publish_batch(TOPIC, datas)
        publisher.send_all([request], 20)
        cpu = session.read_cpu_ns()
        published = publisher.send_all([request] * batches, 60)
        used = session.read_cpu_ns() - cpu
    count = batches * size
    return {"cpu_us": as_us(used, count), "events_per_second": round(count / published.seconds)}


def _measure_echo(stage: Stage) -> dict[str, float]:
    clients, rounds = stage.size("clients"), stage.size("rounds")
    with stage.session() as session:
        request = websocket_request(session.running.echo().decode())
        target = Target(session.running.host, session.running.port)
        opened = session.load.call("open", target, [Opening(request, b"\r\n\r\n")] * clients, is_websocket=True)
        if opened.clients < clients:
            raise MeasureError(f"{opened.clients} of {clients} could connect: {'; '.join(opened.failures)}")
        message = websocket_frame(write_event(0, 0, EVENT_BYTES))
        session.load.call("echo", message, 5, 20)
        cpu = session.read_cpu_ns()
        count, trips = session.load.call("echo", message, rounds, 60)
        used = session.read_cpu_ns() - cpu
    return {"cpu_us": as_us(used, count), "lost": clients * rounds - count, **summarize_latencies(trips)}


_LOST = Column("lost", "lost", 0)
_RATES = (Column("cpu_us", "CPU µs per event", 1), Column("events_per_second", "events/s", 0, "high"))

LONG_POLL = Scenario(
    name="long-poll",
    title="Long polling",
    about=(
        "{pollers:,.0f} clients, {rate:.0f} event/s, {events:.0f} events; each client asks again at once. CPU of the "
        "server per cycle: one request and its answer."
    ),
    transports=(Capability.POLL,),
    columns=(Column("cpu_us", "CPU µs per cycle"), Column("p50_ms", "p50 ms"), Column("p99_ms", "p99 ms"), _LOST),
    sizes={"pollers": 1000, "rate": 1, "events": 20},
    quick={"pollers": 500, "events": 5},
    measure=_measure_long_poll,
)

PUBLISH = Scenario(
    name="publish",
    title="Publishing, one event a request",
    about="{events:,.0f} events from {publishers:.0f} kept connections, to nobody. CPU of the server per event.",
    transports=("",),
    columns=_RATES,
    sizes={"events": 10000, "publishers": 8},
    quick={"events": 2000},
    measure=_measure_publish,
)

BATCH = Scenario(
    name="batch",
    title="Publishing in batches",
    about=(
        "{batches:.0f} batches of {batch:.0f} events from {publishers:.0f} kept connections, to nobody. CPU of the "
        "server per event."
    ),
    transports=("",),
    columns=_RATES,
    sizes={"batches": 200, "batch": 100, "publishers": 4},
    quick={"batches": 50},
    measure=_measure_batch,
    needs=frozenset({Capability.BATCH}),
)

ECHO = Scenario(
    name="echo",
    title="Echo",
    about=(
        "{clients:.0f} WebSocket clients send 160 bytes, wait for the echo, and send again, {rounds:.0f} times. CPU "
        "of the server per message, in and out."
    ),
    transports=("",),
    columns=(Column("cpu_us", "CPU µs per message"), Column("p50_ms", "p50 ms"), Column("p99_ms", "p99 ms"), _LOST),
    sizes={"clients": 100, "rounds": 200},
    quick={"rounds": 50},
    measure=_measure_echo,
    needs=frozenset({Capability.ECHO}),
)
