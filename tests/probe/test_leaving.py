"""How soon a server learns that its client has left."""

import pytest
from probe.again import WITHIN, until_right
from probe.probing import probed, target_of
from probe.relays import Fault, relay

from tricast.probe.checks.leaving import measure_leaving
from tricast.probe.findings import Verdict
from tricast.probe.verdicts.leaving import Left, leaving


@pytest.mark.parametrize(
    ("left", "verdict", "words"),
    [
        (Left("poll", 0.012, 10), Verdict.OK, "after 12 ms"),
        (Left("poll", None, 10), Verdict.ADVICE, "not learn of it within 10 s"),
        (Left("poll", 4.0, 10), Verdict.ADVICE, "only after 4.0 s"),
        (Left("sse", 1.9, 10, 1.0), Verdict.OK, "when it has said something"),
        (Left("sse", 9.0, 10, 1.0), Verdict.ADVICE, "only after 9.0 s"),
        (Left("sse", None, 10, 1.0), Verdict.ADVICE, "goes on for nobody"),
        (Left("silent sse", 2.5, 10), Verdict.INFO, "only after 2.5 s, unless it says something"),
        (Left("silent sse", None, 10), Verdict.INFO, "unless it says something"),
        (Left("ws", None, 10, why="no WebSocket"), Verdict.UNKNOWN, "no WebSocket"),
    ],
)
def test_verdicts(left: Left, verdict: Verdict, words: str) -> None:
    (found,) = leaving([left])
    assert found.verdict is verdict
    assert words in found.summary
    assert (found.advice == "leavers") == (verdict is Verdict.ADVICE)


def test_what_the_server_does_as_well_is_not_held_against_the_way() -> None:
    (found,) = leaving([Left("poll", None, 10)], [Left("poll", None, 10)])
    assert found.verdict is Verdict.INFO
    (found,) = leaving([Left("poll", None, 10)], [Left("poll", 0.0, 10)])
    assert found.verdict is Verdict.ADVICE


async def test_a_server_knows_at_once() -> None:
    found: dict[str, list[Left]] = {}

    async def measure(name: str, _: float) -> None:
        found[name] = await measure_leaving(target, patience=5)

    def check(name: str) -> None:
        assert [left.kind for left in found[name]] == ["ws", "sse", "silent sse", "poll"]
        assert {finding.verdict for finding in leaving(found[name])} == {Verdict.OK}, found

    async with probed(within=WITHIN) as (_, target):
        await until_right(["direct"], measure, check)


async def test_a_server_that_is_not_told() -> None:
    async with probed() as (server, _), relay(server.port, Fault(idle=0.1, how="keeps")) as url:
        found = await measure_leaving(target_of(url), patience=1.5, says_every=0.2)
        assert [(left.seconds, left.why) for left in found if left.kind in ("ws", "poll")] == [(None, ""), (None, "")]


async def test_what_cannot_be_asked_is_not_known() -> None:
    async with probed() as (server, _):
        found = await measure_leaving(target_of(server.url, "another-token-of-somebody"), patience=0.5)
        assert all(left.why for left in found)
        assert {finding.verdict for finding in leaving(found)} == {Verdict.UNKNOWN}
