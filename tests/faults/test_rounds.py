"""Short rounds of random faults on each log; longer ones are for scripts/faults."""

import pytest
from faults.logs import log_named
from faults.round import Effort, play

SECONDS = 20.0
#: One whose first seconds have something of nearly everything, whatever the log.
SEED = 5


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("sqlite", 1),
        ("redis", 1),
        ("redis", 3),
        ("redis-pubsub", 1),
        ("redis-cluster", 3),
        ("redis-sentinel", 1),
        ("kafka", 3),
    ],
)
async def test_everybody_gets_what_was_acknowledged_or_is_told_of_a_gap(name: str, shards: int) -> None:
    with log_named(name, loses=True, more={"shards": shards}) as log:
        outcome = await play(log, Effort(seed=SEED, seconds=SECONDS, subscribers=60, rate=40))
    print(outcome.summary)
    assert not outcome.violations, outcome.text


async def test_a_log_that_keeps_little_announces_gaps() -> None:
    with log_named("sqlite", loses=False, more={}) as log:
        outcome = await play(log, Effort(seed=SEED, seconds=SECONDS, subscribers=60, rate=40, history=2))
    print(outcome.summary)
    assert not outcome.violations, outcome.text
    assert outcome.gaps
