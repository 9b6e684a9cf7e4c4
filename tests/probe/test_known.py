"""Which known timer a measurement can be."""

import pytest

from tricast.probe.known import CONSTANTS, snap


@pytest.mark.parametrize(
    ("seconds", "transport", "constant", "owner"),
    [
        (60.0, "ws", 60, "nginx"),
        (60.06, "sse", 60, "Apache"),
        (61.4, "poll", 60, "ALB"),
        (49.9, "ws", 50, "HAProxy"),
        (303.0, "ws", 300, "Envoy"),
        (75.2, "keepalive", 75, "nginx keepalive_timeout"),
        (5.1, "keepalive", 5, "Apache KeepAliveTimeout"),
        (15.01, "sse", 15, "Envoy route timeout"),
        (3590.0, "ws", 3600, "HAProxy timeout tunnel"),
    ],
)
def test_what_is_near_a_constant_is_taken_for_it(seconds: float, transport: str, constant: float, owner: str) -> None:
    found = snap(seconds, transport)
    assert found is not None
    assert found[0] == constant
    assert owner in found[1]


@pytest.mark.parametrize(
    ("seconds", "transport"),
    [(57.0, "ws"), (62.0, "ws"), (5.0, "ws"), (80.0, "keepalive"), (306.0, "ws"), (0.1, "sse")],
)
def test_what_is_near_none_stays_as_it_was_measured(seconds: float, transport: str) -> None:
    assert snap(seconds, transport) is None


def test_a_bracket_is_taken_for_the_constant_within_it() -> None:
    found = snap(65.0, "ws", low=57.0)
    assert found is not None
    assert found[0] == 60
    found = snap(241.0, "ws", low=238.0)
    assert found is not None
    assert found[0] == 240
    assert snap(58.0, "ws", low=57.0) is None


def test_there_is_one_place_for_each_constant() -> None:
    for constant in CONSTANTS:
        for transport in constant.transports:
            found = snap(constant.seconds, transport)
            assert found is not None
            assert found[0] == constant.seconds
            assert constant.owners in found[1]
