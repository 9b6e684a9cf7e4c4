"""One event to many: at a steady rate, over TLS, and with more and more events until it is too much."""

from figures import summarize_latencies
from peers.base import Capability
from publisher import PublishError
from scenarios.base import STREAMS, Column, MeasureError, Scenario, Session, Stage, as_us
from scenarios.certificate import make_certificate

_LATENCY_LIMIT_MS = 100
#: After so many rates in a row that were not held, the server is taken to be saturated.
_FAILED_RATES = 2
_DELIVERED = (Column("p50_ms", "p50 ms"), Column("p99_ms", "p99 ms"), Column("lost", "lost", 0))


def fan_out(session: Session, subscribers: int, events: int, rate: float, *, publishers: int = 1) -> dict[str, float]:
    """Returns what so many events at a rate come to, of which each goes to all subscribers."""
    session.open(subscribers)
    with session.publisher(publishers) as publisher:
        before = session.warm_up(publisher, subscribers)
        wanted = events * subscribers
        cpu = session.read_cpu_ns()
        session.begin_receiving(events / rate + 20, until_marks=before + wanted)
        publisher.run(lambda number, sent: session.write(number + 1, sent), events, rate, events / rate + 20)
        received = session.end_receiving()
        used = session.read_cpu_ns() - cpu
    delivered = received.marks - before
    return {
        "cpu_us": as_us(used, delivered),
        "lost": wanted - delivered,
        "closed": received.closed,
        **summarize_latencies(received.latencies),
    }


def _measure_fan_out(stage: Stage) -> dict[str, float]:
    with stage.session() as session:
        return fan_out(session, stage.size("subscribers"), stage.size("events"), stage.size("rate"))


def _measure_tls(stage: Stage) -> dict[str, float]:
    sizes = stage.size("subscribers"), stage.size("events"), stage.size("rate")
    certificate, key = make_certificate(stage.folder)
    with stage.session() as session:
        plain = fan_out(session, *sizes)
    paths = {"TRICAST_TLS__CERTIFICATE": str(certificate), "TRICAST_TLS__KEY": str(key)}
    with stage.session(tls=True, **paths) as session:
        encrypted = fan_out(session, *sizes)
    return {
        "ratio": round(encrypted["cpu_us"] / plain["cpu_us"], 3),
        "tls_cpu_us": encrypted["cpu_us"],
        "plain_cpu_us": plain["cpu_us"],
        "lost": encrypted["lost"] + plain["lost"],
    }


def _measure_saturation(stage: Stage) -> dict[str, float]:
    subscribers = stage.size("subscribers")
    best: dict[str, float] = {}
    with stage.session() as session:
        session.open(subscribers)
        with session.publisher(stage.size("publishers")) as publisher:
            session.warm_up(publisher, subscribers)
        rate = stage.size("first_rate")
        failed = 0
        while rate <= stage.size("last_rate") and failed < _FAILED_RATES:
            # On a machine with others a step may fail for no fault of the server's: there is a second try, and a next
            # rate that is tried all the same.
            step = _saturation_step(session, subscribers, rate, stage) or _saturation_step(
                session, subscribers, rate, stage
            )
            best, failed = (step, 0) if step else (best, failed + 1)
            rate = round(rate * stage.size("factor_percent") / 100)
    if not best:
        raise MeasureError(f"p99 is above {_LATENCY_LIMIT_MS} ms at {stage.size('first_rate')} events/s and above")
    return best


def _saturation_step(session: Session, subscribers: int, rate: int, stage: Stage) -> dict[str, float] | None:
    """Publishes at a rate for a while; returns the figures if that was held, otherwise None."""
    events = rate * stage.size("step_seconds")
    before = session.receive_rest()
    wanted = events * subscribers
    cpu = session.read_cpu_ns()
    session.begin_receiving(stage.size("step_seconds") + 5, until_marks=before + wanted)
    refusal = None
    with session.publisher(stage.size("publishers")) as publisher:
        try:
            publisher.run(
                lambda number, sent: session.write(number + 1, sent), events, rate, stage.size("step_seconds") + 2
            )
        except PublishError as error:
            refusal = error
    received = session.end_receiving()
    used = session.read_cpu_ns() - cpu
    latencies = summarize_latencies(received.latencies)
    if refusal or received.marks - before != wanted or latencies.get("p99_ms", _LATENCY_LIMIT_MS) > _LATENCY_LIMIT_MS:
        return None
    return {
        "per_cpu_second": round(wanted / (used / 1e9)),
        "events_per_second": rate,
        "deliveries_per_second": rate * subscribers,
        **latencies,
    }


FAN_OUT = Scenario(
    name="fan-out",
    title="Fan-out",
    about=(
        "{rate:.0f} events/s of 230 bytes to {subscribers:,.0f} subscribers of one topic, {events:.0f} events. CPU "
        "of the server per delivery, publishing included; latency from the intended time of publishing."
    ),
    transports=STREAMS,
    columns=(Column("cpu_us", "CPU µs per delivery", 2), *_DELIVERED),
    sizes={"subscribers": 10000, "rate": 5, "events": 50},
    quick={"subscribers": 2000, "events": 20},
    measure=_measure_fan_out,
)

TLS = Scenario(
    name="tls",
    title="TLS",
    about=(
        "{rate:.0f} events/s to {subscribers:,.0f} subscribers, {events:.0f} events, plain and over TLS one after "
        "the other: CPU of the server per delivery. Of Tricast alone."
    ),
    transports=(Capability.SSE,),
    columns=(
        Column("ratio", "TLS / plain", 2),
        Column("tls_cpu_us", "CPU µs per delivery, TLS", 2),
        Column("plain_cpu_us", "CPU µs per delivery, plain", 2),
        Column("lost", "lost", 0),
    ),
    sizes={"subscribers": 2000, "rate": 5, "events": 50},
    quick={"subscribers": 500, "events": 20},
    measure=_measure_tls,
    only="Tricast",
)

SATURATION = Scenario(
    name="saturation",
    title="Saturation",
    about=(
        "{subscribers:,.0f} subscribers; the rate of events is raised, in steps of {step_seconds:.0f} s, until two "
        "rates in a row lose something or have a p99 above 100 ms; each has a second try. The figures of the last "
        "rate that was held, up to {last_rate:,.0f} events/s. Clients share the machine with the server."
    ),
    transports=STREAMS,
    columns=(
        Column("per_cpu_second", "deliveries per CPU second", 0, "high"),
        Column("deliveries_per_second", "deliveries/s held", 0, "high"),
        Column("events_per_second", "events/s held", 0, "high"),
        Column("p99_ms", "p99 ms"),
    ),
    sizes={
        "subscribers": 1000,
        "publishers": 64,
        "first_rate": 20,
        "last_rate": 6000,
        "factor_percent": 150,
        "step_seconds": 3,
    },
    quick={"factor_percent": 200, "step_seconds": 2},
    measure=_measure_saturation,
    limit_seconds=300,
)
