"""What the real programs do, and what the profiles do, played once for all tests that ask."""

import pytest
import trio
from proxies.matrix import Outcomes, play_again, play_programs, real
from proxies.observed import unexpected
from proxies.parity import Played, play_both


@pytest.fixture(scope="session")
def real_outcomes() -> Outcomes:
    """Of all scenarios with all real programs."""
    outcomes = trio.run(play_programs, real)
    if doubtful := unexpected(outcomes):
        play_again(outcomes, real, doubtful)
    return outcomes


@pytest.fixture(scope="session")
def played(real_outcomes: Outcomes) -> Played:
    """All scenarios with all real programs and with their profiles."""
    return play_both(real_outcomes)
