"""Timers as they are found through relays that have them, and at a server that has none. All on real sockets."""

import ssl
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import msgspec
import trio
from encryption import tls_section
from probe.again import WITHIN, until_right
from probe.outcomes import alive
from probe.probing import probed, target_of
from probe.relays import Fault, relay
from serving import until
from trio.testing import MockClock

from tricast.client.settings import ClientSettings
from tricast.probe.blame import Culprit
from tricast.probe.cells import TRANSPORTS, Mode, State, of, plan_of
from tricast.probe.checks.holding import Paths
from tricast.probe.checks.timers import Timers
from tricast.probe.findings import Finding, Verdict
from tricast.probe.target import Target
from tricast.probe.verdicts.timers import Timing, timers, timing
from tricast.wire.probe import Record

#: A timer of four seconds is one of a minute at this speed: long enough that a busy machine does not matter.
SPEED = 15
SECONDS = 4.0
UP, DOWN = frozenset({"up"}), frozenset({"down"})


class Expected(NamedTuple):
    """What is to be found of one transport."""

    culprit: Culprit
    how: str = "fin"
    counts: str = "either"
    is_total: bool = False
    pinged: bool = True


class Scenario(NamedTuple):
    """A relay, and what is to be found through it."""

    fault: Fault
    expected: dict[str, Expected]


PATH = Expected(Culprit.PATH)
SCENARIOS = {
    "FIN to both": Scenario(Fault(idle=SECONDS), {"ws": PATH, "sse": PATH}),
    "RST to both": Scenario(Fault(idle=SECONDS, how="rst"), {"ws": PATH._replace(how="rst")}),
    "FIN here, RST there": Scenario(Fault(idle=SECONDS, how="mixed"), {"sse": PATH}),
    "only the server counts": Scenario(Fault(idle=SECONDS, counts=DOWN), {"ws": PATH._replace(counts="server")}),
    "only the client counts": Scenario(Fault(idle=SECONDS, counts=UP), {"ws": PATH._replace(counts="client")}),
    "a total clock": Scenario(
        Fault(total=SECONDS),
        {name: Expected(Culprit.PATH, counts="none", is_total=True, pinged=False) for name in ("ws", "sse")},
    ),
    "near the client": Scenario(Fault(idle=SECONDS, how="client"), {"ws": Expected(Culprit.CLIENT_SIDE)}),
    "near the server": Scenario(Fault(idle=SECONDS, how="server"), {"ws": Expected(Culprit.SERVER_SIDE, how="")}),
    "in silence": Scenario(
        Fault(idle=SECONDS, how="silent"),
        {name: Expected(Culprit.SILENT, how="") for name in ("ws", "sse")},
    ),
    "as if it were whole": Scenario(Fault(idle=SECONDS, has_last_chunk=True), {"sse": PATH._replace(how="complete")}),
}


async def measured(
    target: Target, transports: Iterable[str], horizon: float = 130, *, has_rungs: bool = True, slower: float = 1.0
) -> Timers:
    plan = plan_of(horizon, speed=SPEED / slower, transports=tuple(transports), copies=2)
    if not has_rungs:  # for all that is not silent they are only a load
        plan = msgspec.structs.replace(plan, ladder=(), poll_ladder=())
    run = Timers(target, plan)
    await run.run()
    return run


def slowed(fault: Fault, slower: float) -> Fault:
    """The same, with timers that are longer."""
    return replace(fault, idle=fault.idle * slower, total=fault.total * slower)


def check_seconds(found: Timing, *, is_total: bool = False) -> None:
    """The timer of the relays. What measures shares a thread with what is measured, so it may seem longer."""
    limit = found.total if is_total else found.idle
    assert limit is not None
    assert limit.high is not None
    assert limit.low <= SECONDS * SPEED * 2
    assert limit.high >= SECONDS * SPEED * 0.97
    assert limit.high - limit.low <= 2.5  # the rungs of the second round are less than two seconds apart


async def test_a_server_that_ends_nothing_is_accused_of_nothing() -> None:
    found: dict[str, list[Finding]] = {}

    async def measure(name: str, slower: float) -> None:
        run = await measured(target, TRANSPORTS, horizon=60, slower=slower)
        found[name] = list(timers(run.outcomes, run.plan))

    def check(name: str) -> None:
        assert {finding.check for finding in found[name]} == {"P12", "P13", "P14", "P17"}
        assert {finding.verdict for finding in found[name]} == {Verdict.OK, Verdict.INFO}, found
        assert all(finding.advice is None for finding in found[name])

    async with probed(within=WITHIN) as (_, target):
        await until_right(["direct"], measure, check)


async def test_timers_of_all_kinds_are_found_with_who_has_them() -> None:
    runs: dict[str, Timers] = {}

    # All at once they would hold up one another.
    limiter = trio.CapacityLimiter(4)

    async def measure(name: str, slower: float) -> None:
        fault, expected = SCENARIOS[name]
        async with limiter, relay(server.port, slowed(fault, slower)) as url:
            has_rungs = fault.how == "silent"
            runs[name] = await measured(target_of(url), expected, has_rungs=has_rungs, slower=slower)

    def check(name: str) -> None:
        for transport, expected in SCENARIOS[name].expected.items():
            found = timing(runs[name].outcomes, transport, runs[name].plan)
            check_seconds(found, is_total=expected.is_total)
            assert (found.culprit, found.how, found.counts) == (expected.culprit, expected.how, expected.counts), found
            assert (found.total is not None, found.pinged) == (expected.is_total, expected.pinged), found

    async with probed(within=WITHIN) as (server, _):
        await until_right(SCENARIOS, measure, check)


async def test_the_longest_poll_and_an_idle_connection() -> None:
    fault = Fault(idle=SECONDS, status=504, tries=2)
    runs: dict[str, Timers] = {}

    async def measure(name: str, slower: float) -> None:
        async with relay(server.port, slowed(fault, slower)) as url:
            runs[name] = await measured(target_of(url), ("poll", "keepalive"), has_rungs=False, slower=slower)

    def check(name: str) -> None:
        run = runs[name]
        poll = timing(run.outcomes, "poll", run.plan)
        check_seconds(poll)
        assert (poll.culprit, poll.how, poll.page, poll.calls) == (Culprit.PATH, "status", "server: relay", 2)
        kept = timing(run.outcomes, "keepalive", run.plan)
        check_seconds(kept)
        assert kept.culprit == Culprit.UNKNOWN

    async with probed(within=WITHIN) as (server, _):
        await until_right(["relay"], measure, check)


async def test_it_ends_early_when_all_is_known_and_tells_so_far() -> None:
    async with probed() as (server, _), relay(server.port, Fault(idle=0.5)) as url:
        run = Timers(target_of(url), plan_of(3600, speed=SPEED, transports=("ws",), copies=2))
        assert run.elapsed() == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.run)
            await until(lambda: any(bound.seconds for bound in run.bounds()))
            (bound,) = run.bounds()
            assert (bound.transport, bound.is_done) == ("ws", False)
            assert bound.open > 0
        (bound,) = run.bounds()
        assert bound.is_done
        assert bound.seconds is not None
        assert bound.seconds >= 0.5 * SPEED
        assert run.elapsed() < 3600


async def test_without_a_websocket_there_is_nothing_to_measure() -> None:
    async with probed() as (server, _):
        run = await measured(target_of(f"{server.url}/elsewhere"), ("ws", "sse", "poll"))
        found = list(timers(run.outcomes, run.plan))
        assert {finding.verdict for finding in found} == {Verdict.UNKNOWN}
        assert "status 404" in found[0].summary


async def test_a_server_that_ends_idle_connections_before_the_proxy_does() -> None:
    """A proxy that keeps its connection to the server is known by what the server sees of it: no client is there."""

    async def keep(stream: trio.SocketStream) -> None:
        """Forwards one request, and keeps the connection on which it did."""
        upstream = await trio.open_tcp_stream("127.0.0.1", server.port)
        kept.append(upstream)
        async with stream:
            await upstream.send_all(await stream.receive_some(65536))
            await stream.send_all(await upstream.receive_some(65536))

    kept: list[trio.SocketStream] = []
    async with probed(limits={"idle_timeout": "500ms"}) as (server, _), trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, keep, listeners)
        target = target_of(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        run = await measured(target, (), horizon=90)
        (found,) = timers(run.outcomes, run.plan)
        assert (found.check, found.verdict, found.advice) == ("P17", Verdict.ADVICE, "server-keepalive"), found
        assert found.detail["kept_by_server"] >= 0.5
        for upstream in kept:
            await upstream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_server_without_companion_endpoints() -> None:
    """What any server has to hold: a WebSocket, an event stream, a connection after an answer."""
    transports = ("ws", "sse", "keepalive")
    paths = Paths(ws="/ws", sse="/events?topic=news", keepalive="/healthz")
    runs: dict[str, Timers] = {}

    def run_of(at: Target, held: Paths, slower: float = 1.0) -> Timers:
        return Timers(at, plan_of(90, speed=SPEED / slower, transports=transports, is_foreign=True, copies=2), held)

    async def measure(name: str, slower: float) -> None:
        async with relay(server.port, slowed(Fault(idle=2.0), slower)) as url:
            runs[name] = run_of(target_of(url, ""), paths, slower)
            await runs[name].run()

    def check(name: str) -> None:
        for transport in transports:
            found = timing(runs[name].outcomes, transport, runs[name].plan)
            assert found.idle is not None, found
            assert found.idle.high is not None, found
            assert 2 * SPEED * 0.9 <= found.idle.low <= 2 * SPEED * 2, found
            assert found.culprit == Culprit.UNKNOWN, found
            assert found.pinged is (True if transport == "ws" else None), found

    async with probed(probe={"token": ""}, within=WITHIN) as (server, target):
        await until_right(["relay"], measure, check)
        run = run_of(target, Paths(keepalive=None))
        await run.run()
        assert {timing(run.outcomes, each, run.plan).refused for each in transports} == {"no path to hold is known"}


async def test_a_report_that_cannot_be_had_any_more_ends_no_run() -> None:
    """As when the certificate expires: what is held goes on, but no connection can be made."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plan = plan_of(30, speed=SPEED, transports=("sse",), copies=1)
    async with probed(tls=tls_section()) as (_, target), trio.open_nursery() as nursery:
        run = Timers(replace(target, settings=ClientSettings(ssl_context=context)), plan)

        async def distrust() -> None:
            await until(lambda: bool(run.outcomes) and all(each.received_bytes for each in of(run.outcomes, "sse")))
            context.verify_mode = ssl.CERT_REQUIRED

        nursery.start_soon(distrust)
        await run.run()
    assert [each.state for each in of(run.outcomes, "sse", Mode.IDLE)] == [State.OPEN]


async def test_a_request_that_is_asked_again_elsewhere_is_not_over_at_the_server(autojump_clock: MockClock) -> None:
    timers = Timers(target_of("http://127.0.0.1:1"), plan_of(60.0))
    await trio.sleep(100.0)
    record = Record(nonce="n", kind="poll", conn=1, number=1, peer="p", end="fin", ended=60.0)
    for calls, state in ((2, State.OPEN), (1, State.HALF)):
        held = alive("poll", (Mode.IDLE,), 100.0)[0]
        held.calls = calls
        timers._scopes[id(held)] = trio.CancelScope()
        timers._notice_half(held, record, 1.0)
        assert held.state is state
