"""What all tests share: how hypothesis looks for examples, and the fixtures that are real servers."""

import os

import pytest
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

pytest_plugins = ["browser", "services"]

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in every run, so that a change is judged by itself.
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture
def running_clock() -> MockClock:
    """The test's clock: it goes as any other, and can be put forward with ``clocks.jump``."""
    return MockClock(rate=1)
