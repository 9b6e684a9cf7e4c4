"""The probe behind the bundled proxy in each of its profiles finds what the profile's configuration says, and no more.

What is to be found is worked out from the configuration alone: no profile is looked up by its name.
"""

from typing import NamedTuple

import msgspec
from forwarding import forwarding
from probe.again import WITHIN, until_right
from probe.probing import TOKEN, probed, target_of

from tricast.probe.blame import Culprit
from tricast.probe.cells import plan_of
from tricast.probe.checks.timers import Timers
from tricast.probe.findings import Finding
from tricast.probe.run import Outcome, Plan, examine
from tricast.probe.verdicts.timers import Timing, timers, timing
from tricast_proxy.config import OFF, ProxyConfig, load_proxy_config
from tricast_proxy.profiles import profile_names

CONFIGS = {name: load_proxy_config(overrides={"proxy": {"profile": name}}) for name in profile_names()}

# What has no timers

#: One profile begins after the other: of what comes late, nobody could tell whether it was held back.
FLOWS_STAGGER_SECONDS = 0.4
#: By what becomes of Upgrade, what the probe calls that.
POLICIES = {"any": "forwarded", "websocket": "forwarded", "strip": "stripped", "deny": "denied"}


class Flows(NamedTuple):
    """How event streams come: Tricast's own, and those without the header fields that Tricast sends."""

    ours: str
    plain: str


def policy_of(config: ProxyConfig) -> str:
    return "forwarded" if config.proxy.mode == "tcp" else POLICIES[config.tunnel.upgrade]


def flows_of(config: ProxyConfig) -> Flows:
    response = config.response
    if config.proxy.mode == "tcp":
        return Flows("streaming", "streaming")
    if response.buffering == "full":
        return Flows("held", "held")
    if response.buffering == "nginx":
        # What the server sends in chunks goes on chunk by chunk; asked with HTTP/1.0, it cannot.
        plain = "held" if config.upstream.http_version == "1.0" else "streaming"
        return Flows("streaming" if response.x_accel_buffering == "honour" else plain, plain)
    if response.buffering == "fixed" and response.event_stream == "as-is":
        return Flows("held", "held")
    kind = "coalesced" if response.cork else "streaming"
    return Flows(kind, kind)


def check_flows(found: Outcome, config: ProxyConfig, direct: Outcome) -> None:
    by_title = {finding.title: finding for finding in found.findings}
    is_tcp = config.proxy.mode == "tcp"
    assert by_title["WebSocket"].detail["policy"] == policy_of(config)
    flows, ours = flows_of(config), by_title["SSE"]
    plain = by_title.get("SSE without these fields", ours)
    assert (ours.detail["kind"], plain.detail["kind"]) == flows
    if flows.ours == "coalesced":
        # The next event has to come before the next step can begin; and a busy machine collects some more.
        assert config.response.cork * 0.75 <= ours.detail["period"] <= config.response.cork * 2.5
    is_stored = config.response.buffering in ("nginx", "fixed")
    if is_stored and flows.plain == "held":
        # A buffer is seen to be as large as what was in it, and that is whole pieces.
        assert config.response.buffer_size <= plain.detail["buffer_bytes"] <= config.response.buffer_size * 1.1
    compression = by_title["compression"].detail
    assert compression["encoding"] == ""
    assert compression["plain_encoding"] == ("gzip" if config.response.gzip and not is_tcp else "")
    assert by_title["shared or cached"].detail["is_plain_shared"] is (config.response.cache == "coalesce")
    assert by_title["shared or cached"].detail["is_shared"] is False
    assert by_title["HTTP version"].detail["http_version"] == config.upstream.http_version
    assert ("held back" in by_title["request bodies"].summary) is (config.request.buffering == "full")
    assert by_title["retries"].detail["calls"]["POST"] == 1
    # Each check was made, but for how WebSockets are left where there is none.
    unknown = {finding.title for finding in found.findings if finding.verdict == "unknown"}
    assert unknown == (set() if policy_of(config) == "forwarded" else {"ws leaving"})
    check_limits_that_are_the_servers(found.findings, direct.findings)


def check_limits_that_are_the_servers(findings: list[Finding], direct: list[Finding]) -> None:
    """What is held against the server itself is what it refuses without anybody in front as well."""
    its_own = {finding.title: finding.detail for finding in direct if "refused by the server" in finding.summary}
    for finding in findings:
        if "refused by the server" in finding.summary:
            # The proxy's own fields count as well.
            own = its_own[finding.title]
            assert own["passes"] - 1024 <= finding.detail["passes"] <= own["passes"], finding
            assert own["status"] == finding.detail["status"], finding
        assert "the server itself" not in finding.summary, finding


async def test_upgrade_buffering_and_bodies() -> None:
    found: dict[str, Outcome] = {}

    async def probe(name: str, url: str) -> None:
        found[name] = Outcome(plan=Plan(url=url, token=TOKEN))
        await examine(found[name])

    async def probe_behind(name: str, _: float) -> None:
        async with forwarding(server.url, proxy={"profile": name}) as proxy:
            await probe(name, proxy.url)

    def check(name: str) -> None:
        check_flows(found[name], CONFIGS[name], found[""])

    async with probed(within=WITHIN) as (server, _):
        await probe("", server.url)
        await until_right(CONFIGS, probe_behind, check, stagger=FLOWS_STAGGER_SECONDS)


# Timers


class Limit(NamedTuple):
    """How long a connection may be silent, how long it may last, and how that ends. Infinity where nothing ends it."""

    idle: float = OFF
    total: float = OFF
    how: str = "fin"
    culprit: Culprit = Culprit.PATH
    status: int | None = None
    is_refused: bool = False

    @property
    def first(self) -> float:
        return min(self.idle, self.total)


def limit_of(config: ProxyConfig, transport: str) -> Limit:
    """What the configuration says of one transport."""
    upstream, tunnel = config.upstream, config.tunnel
    total = min(upstream.response_timeout, upstream.max_stream_duration)
    is_stored = config.response.buffering == "full"
    if config.proxy.mode == "tcp" or (transport == "ws" and policy_of(config) == "forwarded"):
        is_silent = tunnel.on_idle in ("silent", "silent-then-rst")
        how, culprit = ("", Culprit.SILENT) if is_silent else (tunnel.on_idle, Culprit.PATH)
        return Limit(tunnel.idle_timeout, tunnel.max_lifetime, how, culprit)
    if transport == "ws":
        return Limit(is_refused=True)
    if transport == "sse":
        idle = min(upstream.read_timeout, upstream.stream_idle_timeout)
        ends = {"truncate": "fin", "clean": "complete", "rst": "rst"}
        return Limit(idle, total, "status" if is_stored else ends[config.response.on_cut])
    if transport == "poll":
        errors = config.errors
        is_total = total < upstream.response_header_timeout
        status = errors.response_timeout if is_total else errors.header_timeout
        return Limit(min(total, upstream.response_header_timeout), how="status", status=status)
    # Between two requests anybody may close: no one is to blame.
    return Limit(config.client.keepalive_timeout, culprit=Culprit.UNKNOWN)


TRANSPORTS = ("ws", "sse", "poll", "keepalive")
#: How long the timers take that are measured, at least: a tenth of it is what a busy machine may be late. With those
#: that are shorter than pings, the pings take longer.
WIRE_SECONDS, SHORT_WIRE_SECONDS = 5.0, 4.0
#: As far as a run of the usual length sees, and where its ladder for longer ones ends.
HORIZON, LONGEST = 130.0, 420.0
#: They are there for what is silent. As many rungs as there are would hold up one another.
LADDERS = ("ladder", "poll_ladder")
#: Timers that are measured in one run are no further apart than this.
APART = 1.6
#: One run begins after the other, so that a thousand connections are not opened at the same moment.
STAGGER_SECONDS = 0.3


class Run(NamedTuple):
    """What of a profile is measured together.

    Attributes:
        profile: its name.
        transports: which.
        speed: of the proxy's timers.
        horizon: how long is waited, at that speed.
    """

    profile: str
    transports: tuple[str, ...]
    speed: float
    horizon: float

    @property
    def is_silent(self) -> bool:
        """Whether connections are dropped without a word."""
        return any(limit_of(CONFIGS[self.profile], each).culprit == Culprit.SILENT for each in self.transports)


def runs_of(name: str) -> list[Run]:
    """All of a profile: what has timers of about the same length together, and what has none to be seen apart."""
    limits = {transport: limit_of(CONFIGS[name], transport).first for transport in TRANSPORTS}
    endless = tuple(transport for transport, first in limits.items() if first > LONGEST)
    found = [Run(name, endless, HORIZON / WIRE_SECONDS, HORIZON)] if endless else []
    rest = sorted((first, transport) for transport, first in limits.items() if first <= LONGEST)
    while rest:
        shortest = rest[0][0]
        together = [each for each in rest if each[0] <= shortest * APART]
        rest = rest[len(together) :]
        horizon = max(HORIZON, together[-1][0] * 1.3)
        speed = shortest / (WIRE_SECONDS if shortest > 15 else SHORT_WIRE_SECONDS)
        found.append(Run(name, tuple(transport for _, transport in together), speed, horizon))
    return found


async def measured(run: Run, server: str) -> list[tuple[Timing, Run, list[Finding]]]:
    """What is found of each transport of a run."""
    plan = plan_of(run.horizon, speed=run.speed, transports=run.transports, copies=2)
    ladders = {
        name: tuple(gap for gap in getattr(plan, name) if run.is_silent and gap > HORIZON / run.speed)
        for name in LADDERS
    }
    plan = msgspec.structs.replace(plan, refined=6, **ladders)
    own = {"profile": run.profile, "speed": run.speed}
    # To connect takes as long as ever, however fast the timers are.
    upstream = {"connect_timeout": 10.0 * run.speed}
    async with forwarding(server, proxy=own, upstream=upstream) as proxy:
        timers_found = Timers(target_of(proxy.url), plan)
        await timers_found.run()
    findings = list(timers(timers_found.outcomes, plan))
    return [(timing(timers_found.outcomes, each, plan), run, findings) for each in run.transports]


def check_timer(found: Timing, run: Run, findings: list[Finding]) -> None:
    config, transport = CONFIGS[run.profile], found.transport
    limit = limit_of(config, transport)
    assert not [each for each in findings if "server itself" in each.summary or "the server ends" in each.summary]
    assert (found.refused != "") is limit.is_refused, found
    if limit.is_refused:
        return
    if limit.first > LONGEST:
        assert found.total is None, found
        assert found.idle is not None, found
        assert found.idle.high is None, found
        assert found.idle.low >= HORIZON * 0.9, found
        return
    assert (found.culprit, found.how) == (limit.culprit, limit.how), found
    estimate = found.idle if limit.idle < limit.total else found.total
    assert estimate is not None, found
    assert estimate.high is not None, found
    assert estimate.low <= limit.first * 1.1, found
    assert estimate.high >= limit.first * 0.95, found
    assert estimate.high - estimate.low <= limit.first * 0.1, found
    if limit.total <= limit.idle:
        assert found.idle is None, found
    elif limit.total == OFF:
        assert found.total is None, found
    if limit.status is not None:
        assert found.form.startswith(f"status {limit.status} "), found
    if transport in ("ws", "sse"):
        # What a server says every 15 s is of use where the timer is longer, and where nothing ends it all.
        assert found.pinged is (limit.total > limit.idle > 15), found
    if transport == "ws" and limit.culprit == Culprit.PATH:
        resets = {"either": "either", "upstream": "server", "client": "client", "never": "none"}
        assert found.counts == ("none" if limit.total <= limit.idle else resets[config.tunnel.idle_reset]), found


async def test_timers_and_who_cuts() -> None:
    # The longest ones first: what is silent takes two rounds.
    runs = sorted((run for name in CONFIGS for run in runs_of(name)), key=lambda run: (not run.is_silent, run.speed))
    transports = {(run.profile, transport) for run in runs for transport in run.transports}
    assert transports == {(name, transport) for name in CONFIGS for transport in TRANSPORTS}
    found: dict[Run, list[tuple[Timing, Run, list[Finding]]]] = {}

    async def measure(run: Run, slower: float) -> None:
        found[run] = await measured(run._replace(speed=run.speed / slower), server.url)

    def check(run: Run) -> None:
        for each in found[run]:
            check_timer(*each)

    async with probed(within=WITHIN) as (server, _):
        await until_right(runs, measure, check, stagger=STAGGER_SECONDS)
