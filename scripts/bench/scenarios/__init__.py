"""What is measured, in the order of the report."""

from scenarios.base import Scenario
from scenarios.coming_back import REPLAY, SLOW
from scenarios.connections import CONNECTIONS, IDLE_CPU
from scenarios.fan_out import FAN_OUT, SATURATION, TLS
from scenarios.requests import BATCH, ECHO, LONG_POLL, PUBLISH
from scenarios.topics import ONE_TO_ONE

SCENARIOS: tuple[Scenario, ...] = (
    FAN_OUT,
    SATURATION,
    CONNECTIONS,
    IDLE_CPU,
    ONE_TO_ONE,
    REPLAY,
    SLOW,
    LONG_POLL,
    PUBLISH,
    BATCH,
    ECHO,
    TLS,
)
