"""A clock for tests of the proxy whose timers run out when the test says so."""

import pytest
from trio.testing import MockClock


@pytest.fixture
def running_clock() -> MockClock:
    """The test's clock: it goes as any other, and can be put forward with ``forwarding.jump``."""
    return MockClock(rate=1)
