"""What the real programs do, and what the profiles do, played once for all tests that ask."""

import pytest
import trio
from proxies.parity import Played, play_everything


@pytest.fixture(scope="session")
def played() -> Played:
    """All scenarios with all real programs and with their profiles."""
    return trio.run(play_everything)
