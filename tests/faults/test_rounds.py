"""Short rounds of random faults on each log; longer ones are for scripts/faults."""

import pytest
from faults.logs import SERVER_KINDS, log_named
from faults.round import Effort, play

#: Of each log, seeds of rounds in which everything happens, in no more time than it takes.
ROUNDS = [
    ("sqlite", 1, 3),
    ("redis", 1, 1011),
    ("redis", 3, 1011),
    ("redis-pubsub", 1, 1011),
    ("redis-cluster", 3, 12),
    ("redis-sentinel", 1, 13),
    ("kafka", 3, 1603),
]


def effort_of(seed: int, **more: int) -> Effort:
    return Effort(seed=seed, seconds=10, subscribers=60, rate=40, period=0.5, **more)


@pytest.mark.parametrize(("name", "shards", "seed"), ROUNDS)
async def test_everybody_gets_what_was_acknowledged_or_is_told_of_a_gap(name: str, shards: int, seed: int) -> None:
    with log_named(name, loses=True, more={"shards": shards}) as log:
        outcome = await play(log, effort_of(seed))
    print(outcome.summary)
    assert not outcome.violations, outcome.text


async def test_a_log_that_keeps_little_announces_gaps() -> None:
    with log_named("sqlite", loses=False, more={}) as log:
        outcome = await play(log, effort_of(3, history=2))
    print(outcome.summary)
    assert not outcome.violations, outcome.text
    assert outcome.gaps


@pytest.mark.parametrize(("name", "seed"), dict.fromkeys((name, seed) for name, _, seed in ROUNDS))
def test_everything_happens_in_a_short_round(name: str, seed: int) -> None:
    with log_named(name, loses=True, more={}) as log:
        planned = {(fault.lane, fault.what) for fault in effort_of(seed).plan(log)}
        assert planned == {(kind.lane, kind.what) for kind in (*SERVER_KINDS, *log.kinds)}
