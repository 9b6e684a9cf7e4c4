"""What the real programs do, and what the profiles do, played once for all tests that ask."""

import pytest
import trio
from proxies.matrix import Outcomes, play_programs, profile, real


@pytest.fixture(scope="session")
def real_outcomes() -> Outcomes:
    """Of all scenarios with all real programs."""
    return trio.run(play_programs, real)


@pytest.fixture(scope="session")
def profile_outcomes() -> Outcomes:
    """Of all scenarios with all profiles."""
    return trio.run(play_programs, profile)
