"""What a connection costs: to accept it, and to hold it while nothing happens."""

from machine import read_kernel_bytes
from scenarios.base import STREAMS, Column, MeasureError, Scenario, Stage, as_us

_WARM_UP = 100


def _measure_connections(stage: Stage) -> dict[str, float]:
    count = stage.size("connections")
    with stage.session() as session:
        session.open(_WARM_UP)  # they pay for what is made once
        session.receive(stage.size("settle_seconds"))
        memory, kernel, cpu = session.read_memory(), read_kernel_bytes(), session.read_cpu_ns()
        opened = session.open(count)
        used = session.read_cpu_ns() - cpu
        session.receive(stage.size("settle_seconds"))
        after, kernel_after = session.read_memory(), read_kernel_bytes()
    values = {
        "rss_bytes": round((after.rss - memory.rss) / count),
        "pss_bytes": round((after.pss - memory.pss) / count),
        "accept_cpu_us": as_us(used, count),
        "accepts_per_second": round(count / opened.seconds),
    }
    # It is that of the whole machine: where others close their sockets meanwhile it says nothing.
    if kernel is not None and kernel_after is not None and kernel_after > kernel:
        values["kernel_bytes"] = round((kernel_after - kernel) / count / 2)  # both ends are on this machine
    return values


def _measure_idle_cpu(stage: Stage) -> dict[str, float]:
    count, seconds = stage.size("connections"), stage.size("seconds")
    with stage.session() as session:
        session.open(count)
        session.receive(stage.size("settle_seconds"))
        cpu = session.read_cpu_ns()
        received = session.receive(seconds)
        used = session.read_cpu_ns() - cpu
    if received.closed:
        raise MeasureError(f"{received.closed:,} of {count:,} idle connections were ended")
    return {"cpu_percent": round(used / 1e7 / seconds, 2)}


CONNECTIONS = Scenario(
    name="connections",
    title="Idle memory and accepting",
    about=(
        "{connections:,.0f} subscribers connect, 64 at a time, and stay. Memory is the growth of the server's "
        "processes for each; the kernel's is half of the growth of its sockets, since both ends are on this machine. "
        "CPU and rate include the handshake."
    ),
    transports=STREAMS,
    columns=(
        Column("rss_bytes", "resident bytes", 0),
        Column("pss_bytes", "PSS bytes", 0),
        Column("kernel_bytes", "kernel socket bytes", 0),
        Column("accept_cpu_us", "CPU µs to accept"),
        Column("accepts_per_second", "accepted/s", 0, "high"),
    ),
    sizes={"connections": 5000, "settle_seconds": 2},
    quick={"connections": 1000, "settle_seconds": 1},
    measure=_measure_connections,
)

IDLE_CPU = Scenario(
    name="idle-cpu",
    title="Idle CPU",
    about=(
        "{connections:,.0f} subscribers with the server's default keepalives, nothing published, over {seconds:.0f} "
        "s. In per cent of one core."
    ),
    transports=STREAMS,
    columns=(Column("cpu_percent", "% of a core", 2),),
    sizes={"connections": 15000, "settle_seconds": 5, "seconds": 30},
    quick={"connections": 2000, "settle_seconds": 2, "seconds": 20},
    measure=_measure_idle_cpu,
    limit_seconds=240,
)
