"""One run of the probe: which checks, in which order, and what to do when one of them cannot be made."""

import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import trio

from tricast.client.endpoint import Endpoint, settings_with
from tricast.client.failures import ClientError, Lost
from tricast.errors import TricastError, leaves
from tricast.probe import fingerprint
from tricast.probe.asking import Refused, Unanswered, find_companion
from tricast.probe.cells import plan_of
from tricast.probe.checks import blackbox, connections, requests, streams
from tricast.probe.checks.asked import Way, is_servers, problem_of
from tricast.probe.checks.holding import Paths
from tricast.probe.checks.leaving import measure_leaving
from tricast.probe.checks.timers import Bound, Timers
from tricast.probe.findings import Finding, Verdict
from tricast.probe.link import Cut
from tricast.probe.target import Target, server_of
from tricast.probe.verdicts.connections import fingerprint as who
from tricast.probe.verdicts.leaving import Left, leaving
from tricast.probe.verdicts.timers import timers as timer_findings

TRANSPORTS = ("ws", "sse", "poll")
#: What a proxy answers that gets nothing from a server: RFC 9110 15.6.3 to 15.6.5, and Cloudflare's own.
_GATEWAY_FAILED = frozenset({502, 503, 504, *range(520, 528), 530})
#: How long the very first answer may take.
_FIRST_SECONDS = 10.0


class Unusable(TricastError):
    """There is nothing to probe: why, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to probe.

    Attributes:
        url: of the server, through whatever is in front of it.
        origin: of the server itself, or None.
        token: of the server's ``[probe]`` section, or empty.
        seconds: how long timers are waited for; 0 for not at all.
        transports: which of ``TRANSPORTS``.
        certificates: for TLS; see ``tricast.client.endpoint.Certificates``.
        speed: by how much the timers that are probed are sped up; what is told is at their speed in earnest.
    """

    url: str
    origin: str | None = None
    token: str = field(default="", repr=False)
    seconds: float = 0.0
    transports: tuple[str, ...] = TRANSPORTS
    certificates: dict[str, str] = field(default_factory=dict)
    speed: float = 1.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What is known so far.

    Attributes:
        plan: what was asked for.
        findings: in the order in which they were made.
        proxies: who seems to be in front, the likeliest first, as keys of ``fingerprint.NAMES``.
        notes: what the reader has to know about the run itself.
        is_companion: whether the server helped; without, only part of the checks can be made.
        was_interrupted: whether it was ended before it was done.
        doing: what is being done now, in a few words.
        timers: measures timers, while it does; None before.
    """

    plan: Plan
    findings: list[Finding] = field(default_factory=list)
    proxies: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_companion: bool = False
    was_interrupted: bool = False
    doing: str = "asking who answers"

    timers: Timers | None = None

    def progress(self) -> list[str]:
        """What is known of timers by now, in a line for each transport."""
        return [] if self.timers is None else [_bound_in_words(bound) for bound in self.timers.bounds()]


Step = Callable[[], Awaitable[Finding | Iterable[Finding]]]


async def examine(outcome: Outcome) -> None:
    """Makes all checks, and puts what they find into the outcome. SIGINT ends it early, with what is known by then.

    Raises:
        Unusable: there is nothing that could be probed.
    """
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_signals, signals, outcome, nursery.cancel_scope)
            await _Run(outcome).run()
            nursery.cancel_scope.cancel()


async def _watch_signals(signals: AsyncIterator[int], outcome: Outcome, scope: trio.CancelScope) -> None:
    async for _ in signals:
        outcome.was_interrupted = True
        scope.cancel()


class _Run:
    """The checks of one run.

    Args:
        outcome: takes what is found.
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._plan = outcome.plan
        try:
            self._settings = settings_with(self._plan.certificates)
        except ClientError as error:
            raise Unusable(str(error)) from None

    def _target(self, url: str) -> Target:
        return Target(endpoint=_endpoint(url), token=self._plan.token, settings=self._settings)

    async def run(self) -> None:
        url, origin_url = await self._servers()
        target = self._target(url)
        origin = None if origin_url is None else self._target(origin_url)
        try:
            target = await find_companion(target, seconds=_FIRST_SECONDS)
        except Refused as refused:
            await self._without_help(target, origin, refused)
            return
        except Unanswered as unanswered:
            await self._without_answer(target, origin, unanswered)
            return
        except (Lost, ClientError) as error:
            raise Unusable(str(error)) from None
        self._outcome.is_companion = True
        await self._with_help(Way(target, []), None if origin is None else Way(await _found(origin), []))

    async def _servers(self) -> tuple[str, str | None]:
        """The URLs that are probed: where those given are of paths of a Tricast server, those of the server."""
        url, origin = self._plan.url, self._plan.origin
        server = server_of(url)
        if server is None:
            return url, origin
        if not await self._is_tricast(server):
            bare = re.split("[?#]", url)[0]
            if bare != url:
                self._outcome.notes.append(f"Probing {bare}, without what is behind it.")
            return bare, origin
        self._outcome.notes.append(f"{url} is a path of a Tricast server; probing {server}.")
        return server, origin and (server_of(origin) or origin)

    async def _is_tricast(self, url: str) -> bool:
        try:
            await find_companion(self._target(url), seconds=_FIRST_SECONDS)
        except Refused as refused:
            return is_servers(refused.answer)
        except (Lost, ClientError) as error:
            if isinstance(error, Unanswered):
                return False
            raise Unusable(str(error)) from None
        return True

    async def _with_help(self, way: Way, direct: Way | None) -> None:
        """All checks, with the server's companion endpoints."""
        changes: list[tuple[fingerprint.Fields, set[str]]] = []

        async def check_fields() -> list[Finding]:
            found, received, habits = await requests.check_fields(way, direct)
            changes.append((received, habits))
            return found

        async with trio.open_nursery() as nursery:
            if self._plan.seconds:
                nursery.start_soon(self._wait_for_timers, way, direct)
            await self._do("HTTP", "P1", "HTTP version", partial(connections.check_versions, way, direct))
            if "ws" in self._plan.transports:
                await self._do("WebSocket", "P3", "WebSocket", partial(connections.check_websocket, way, direct))
            await self._do("fields", "P7", "fields", check_fields)
            async with trio.open_nursery() as slow:
                if "sse" in self._plan.transports:
                    slow.start_soon(
                        self._do,
                        "event streams",
                        "P4",
                        "SSE",
                        partial(streams.check_streams, way, direct, speed=self._plan.speed),
                    )
                slow.start_soon(
                    self._do, "event streams and clients that leave", "P9", "leaving", partial(self._leave, way, direct)
                )
                slow.start_soon(
                    self._do, "event streams and bodies", "P10", "request bodies", partial(requests.check_uploads, way)
                )
            # What a proxy may take for a fault of its servers, and then not ask them for a while, comes last.
            await self._do("servers", "P16", "servers", partial(connections.check_stickiness, way))
            await self._do("limits", "P8", "limits", partial(requests.check_limits, way, direct))
            received, habits = changes[0] if changes else ((), set())
            await self._do("the proxy's name", "P2", "in front", partial(self._who, way, received, habits))
            await self._do("retries", "P11", "retries", partial(requests.check_retries, way))
            if self._outcome.timers is not None:
                self._outcome.timers.be_alone()
            self._outcome.doing = "waiting for timers"

    async def _wait_for_timers(self, way: Way, direct: Way | None, paths: Paths | None = None) -> None:
        """P12, P13, P14 and P17; where it is interrupted, by what is known then."""
        plan = plan_of(
            self._plan.seconds,
            speed=self._plan.speed,
            transports=tuple(name for name in (*self._plan.transports, "keepalive") if _can_hold(paths, name)),
            is_foreign=paths is not None,
        )
        outcome = self._outcome
        outcome.timers = Timers(way.target, plan, paths)
        there = None if direct is None else Timers(direct.target, plan, paths)
        try:
            async with trio.open_nursery() as nursery:
                if there is not None:
                    nursery.start_soon(there.run)
                await outcome.timers.run()
                # What the server itself has held for so long, it does not end as early as the way does.
                nursery.cancel_scope.cancel()
        finally:
            found = timer_findings(outcome.timers.outcomes, plan, there.outcomes if there else ())
            # Of what a foreign server does not have, there is nothing to be told.
            outcome.findings += [f for f in found if paths is None or f.verdict is not Verdict.UNKNOWN]

    async def _leave(self, way: Way, direct: Way | None) -> list[Finding]:
        """P9."""
        found: dict[str, list[Left]] = {"way": [], "direct": []}

        async def one(name: str, on: Way) -> None:
            found[name] = await measure_leaving(on.target)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "way", way)
            if direct is not None:
                nursery.start_soon(one, "direct", direct)
        kinds = {kind for transport in self._plan.transports for kind in _LEAVING[transport]}
        return [
            finding
            for finding in leaving(found["way"], found["direct"])
            if finding.title.removesuffix(" leaving") in kinds
        ]

    async def _without_help(self, target: Target, origin: Target | None, refused: Refused) -> None:
        """What can be said of any server."""
        is_tricast = is_servers(refused.answer)
        way, direct = Way(target, []), None if origin is None else Way(origin, [])
        paths = blackbox.Places.at(target, is_tricast=is_tricast)
        if refused.status in _GATEWAY_FAILED and await blackbox.is_gateway_failed(way, paths, _GATEWAY_FAILED):
            raise Unusable(_unreached(refused, is_tricast=is_tricast))
        self._outcome.notes.append(_why_without(refused, self._plan.token, is_tricast=is_tricast))
        async with trio.open_nursery() as nursery:
            if self._plan.seconds:
                nursery.start_soon(self._wait_for_timers, way, direct, paths.to_hold(target))
            if "ws" in self._plan.transports:
                await self._do("WebSocket", "P3", "WebSocket", partial(blackbox.check_websocket, way, direct, paths))
            if "sse" in self._plan.transports:
                await self._do("event stream", "P4", "SSE", partial(blackbox.check_stream, way, direct, paths))
            await self._do("limits", "P8", "limits", partial(blackbox.check_limits, way, direct, paths))
            await self._do("the proxy's name", "P2", "in front", partial(self._who, way, (), set()))
            self._outcome.doing = "waiting for timers"

    async def _without_answer(self, target: Target, origin: Target | None, unanswered: Unanswered) -> None:
        """What can be said where even the head of an answer does not come."""
        self._outcome.notes.append(f"It connects, but there is no answer within {unanswered.seconds:g} s.")
        way, direct = Way(target, []), None if origin is None else Way(origin, [])
        paths = blackbox.Places.at(target, is_tricast=False)
        check = partial(blackbox.check_stream, way, direct, paths, is_answered=False)
        await self._do("event stream", "P4", "SSE", check)
        await self._do("the proxy's name", "P2", "in front", partial(self._who, way, (), set()))

    async def _do(self, doing: str, check: str, title: str, step: Step) -> None:
        """One check; a proxy that makes it impossible is a finding as well."""
        self._outcome.doing = doing
        found: Finding | Iterable[Finding] = ()
        try:
            found = await step()
        except* (Lost, ClientError, Cut) as errors:
            why = str(next(iter(leaves(errors))))
            found = Finding(check=check, title=title, verdict=Verdict.UNKNOWN, summary=f"not known: {why}")
        self._outcome.findings += [found] if isinstance(found, Finding) else found

    async def _who(self, way: Way, received: fingerprint.Fields, habits: set[str]) -> Finding:
        await blackbox.provoke(way)
        suspects = fingerprint.suspects(way.seen, received, habits)
        self._outcome.proxies = [suspect.proxy for suspect in suspects]
        return who(suspects)


def _can_hold(paths: Paths | None, transport: str) -> bool:
    return paths is None or getattr(paths, transport, None) is not None


def _bound_in_words(bound: Bound) -> str:
    name = _IN_WORDS[bound.transport]
    if bound.seconds is None:
        return f"{name}: refused"
    return f"{name} {'' if bound.is_done else '> '}{bound.seconds:.0f} s"


_IN_WORDS = {"ws": "ws idle", "sse": "sse idle", "poll": "poll", "keepalive": "keep-alive"}
#: What is left to see how soon the server knows, by transport.
_LEAVING = {"ws": ("ws",), "sse": ("sse", "silent sse"), "poll": ("poll",)}


def _endpoint(url: str) -> Endpoint:
    try:
        return Endpoint.parse(url)
    except ClientError as error:
        raise Unusable(str(error)) from None


async def _found(origin: Target) -> Target:
    try:
        return await find_companion(origin)
    except (Lost, ClientError) as error:
        raise Unusable(f"the server itself, {origin.endpoint}: {error}") from None


def _unreached(refused: Refused, *, is_tricast: bool) -> str:
    said = problem_of(refused.answer)
    detail = f" ({said})" if said else ""
    if is_tricast:
        return f"the server answers {refused.status}{detail}"
    return f"the proxy answers {refused.status}{detail}: it cannot reach a server"


def _why_without(refused: Refused, token: str, *, is_tricast: bool) -> str:
    if refused.status == 401 and is_tricast:
        if token:
            raise Unusable("the token is not the one in [probe] token of the server's configuration")
        return (
            "The server has probe endpoints, but no --token was given: only what shows from outside is told. "
            "It is [probe] token in the server's configuration."
        )
    if is_tricast:
        return (
            "The server has no probe endpoints: only what shows from outside is told. For the rest, set [probe] token "
            "in its configuration and give it as --token."
        )
    return (
        f"There is no Tricast server at this URL, or nothing of it can be reached (the answer is {refused.status}): "
        "only what shows from outside is told."
    )
