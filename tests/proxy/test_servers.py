"""What is believed of a server, from what is asked, what checks tell and how exchanges go."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast_proxy.config import HealthSection, ProxyConfig, ServerEntry
from tricast_proxy.servers import Health, Server, servers_of

UP, DOWN, DRAINING = Health.UP, Health.DOWN, Health.DRAINING


class World:
    """A server, a clock, and what was told of changes."""

    def __init__(self, *, is_alone: bool = False, weight: int = 1, **rules: Any) -> None:
        self.now = 1000.0
        self.told: list[tuple[Health, str]] = []
        entry = ServerEntry(address="127.0.0.1:8081", name="a", weight=weight)
        self.server = Server(
            entry,
            HealthSection(**rules),
            is_alone=is_alone,
            changed=lambda server, health, reason: self.told.append((health, reason)),
        )

    @property
    def health(self) -> Health:
        return self.server.health(self.now)

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.server.failed(self.now)

    def check(self, results: str) -> str:
        """Says of each check how it went, + or -; returns what is believed after each."""
        believed = ""
        for result in results:
            self.server.checked(self.now, is_well=result == "+", detail="checked")
            believed += "+" if self.health is UP else "-"
        return believed


def test_the_address_of_a_server() -> None:
    server = Server(ServerEntry(address="[::1]:8081"))
    assert (server.host, server.port, server.address, server.label) == ("::1", 8081, "[::1]:8081", "[::1]:8081")


def test_what_is_asked_holds() -> None:
    world = World()
    for wanted in (DRAINING, DOWN, UP, UP):
        world.server.ask(wanted, world.now)
        assert world.health is wanted
        world.check("+++")
        world.server.succeeded(world.now)
        assert world.health is wanted
    assert world.told == [(DRAINING, "asked for"), (DOWN, "asked for"), (UP, "asked for")]


# Exchanges


def test_some_failures_in_some_time_take_it_down_for_as_long() -> None:
    world = World(max_fails=3, fail_timeout=10.0)
    world.fail(2)
    assert world.health is UP
    world.now += 10.0
    world.fail()
    assert world.health is DOWN
    world.now += 9.9
    assert world.health is DOWN
    world.now += 0.1
    assert world.health is UP
    assert world.told == [(DOWN, "exchanges fail")]


def test_failures_far_from_each_other_do_not() -> None:
    world = World(max_fails=3, fail_timeout=10.0)
    for _ in range(20):
        world.fail()
        assert world.health is UP
        world.now += 5.1


def test_the_first_failure_after_that_takes_it_down_again() -> None:
    world = World(max_fails=3, fail_timeout=10.0)
    world.fail(3)
    for _ in range(3):
        world.now += 10.0
        assert world.health is UP
        world.fail()
        assert world.health is DOWN
    assert world.told == [(DOWN, "exchanges fail")], "once, for it was not seen up in between"


def test_a_success_after_that_is_the_end_of_it() -> None:
    world = World(max_fails=3, fail_timeout=10.0)
    world.fail(3)
    world.now += 10.0
    world.server.succeeded(world.now)
    world.fail(2)
    assert world.health is UP
    world.fail()
    assert world.health is DOWN
    assert world.told == [(DOWN, "exchanges fail"), (UP, "exchanges succeed"), (DOWN, "exchanges fail")]


def test_what_was_under_way_when_it_went_down_changes_nothing() -> None:
    world = World(max_fails=1, fail_timeout=10.0)
    world.fail()
    world.now += 5.0
    world.fail(3)
    world.server.succeeded(world.now)
    assert world.health is DOWN
    world.now += 5.0
    assert world.health is UP
    assert world.told == [(DOWN, "exchanges fail")]


@pytest.mark.parametrize("rules", [{"max_fails": 0}, {"fail_timeout": 0.0}, {"is_alone": True}])
def test_failures_that_are_no_reason(rules: dict[str, Any]) -> None:
    world = World(**rules)
    world.fail(10)
    assert world.health is UP
    assert world.server.counts["failed"] == 10
    assert not world.told


def test_the_only_server_is_alone() -> None:
    entries = (ServerEntry(address="127.0.0.1:1"), ServerEntry(address="127.0.0.1:2"))
    for server in servers_of(ProxyConfig(server=entries[:1])):
        server.failed(1000.0)
        assert server.health(1000.0) is UP
    for server in servers_of(ProxyConfig(server=entries)):
        server.failed(1000.0)
        assert server.health(1000.0) is DOWN


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 4)), max_size=40), st.integers(1, 4))
def test_it_is_down_as_long_as_was_said_and_no_longer(steps: list[tuple[bool, float]], max_fails: int) -> None:
    world = World(max_fails=max_fails, fail_timeout=5.0)
    since: float | None = None
    recent: list[float] = []
    for fails, seconds in steps:
        is_down = since is not None and world.now < since + 5.0
        assert (world.health is DOWN) == is_down
        if not fails:
            world.server.succeeded(world.now)
        else:
            world.fail()
            if not is_down:
                recent = [at for at in recent if world.now - at <= 5.0] + [world.now]
                if world.health is DOWN:
                    since = world.now
                    recent = []
                else:
                    assert len(recent) < max_fails
        world.now += seconds


# Checks


@pytest.mark.parametrize(
    ("results", "believed"),
    [
        ("+--+---+", "++++++--"),
        ("+--+-+-+--+", "+++++++++++"),
        ("+---+-++", "+++----+"),
        ("+---+-+-+-", "+++-------"),
        ("-++-", "--++"),
        ("-+-+-+", "------"),
    ],
)
def test_some_in_a_row_make_the_difference_but_the_first_alone_does(results: str, believed: str) -> None:
    world = World(rise=2, fall=3)
    assert world.check(results) == believed
    before = "+" + believed[:-1]
    assert len(world.told) == sum(was != now for was, now in zip(before, believed, strict=True))


def test_a_check_that_is_well_does_not_end_a_drain() -> None:
    world = World(rise=1, fall=1)
    world.server.ask(DRAINING, world.now)
    world.check("-")
    assert world.health is DOWN
    world.check("+")
    assert world.health is DRAINING
    assert world.told[1:] == [(DOWN, "checked"), (DRAINING, "checked")]


def test_checks_bring_it_back_before_its_time() -> None:
    world = World(rise=2, fall=3, max_fails=1, fail_timeout=10.0)
    world.check("+++")
    world.fail()
    assert world.check("-+") == "--"
    assert world.check("+") == "+"
    assert world.told == [(DOWN, "exchanges fail"), (UP, "checked")]
    world.fail()
    assert world.health is DOWN


def test_failed_exchanges_do_not_hide_failed_checks() -> None:
    world = World(rise=2, fall=3, max_fails=1, fail_timeout=10.0)
    world.check("+")
    world.fail()
    world.check("---")
    world.now += 10.0
    assert world.health is DOWN
    assert world.told == [(DOWN, "exchanges fail"), (DOWN, "checked")]


# Starting slowly


def test_it_has_its_whole_weight_from_the_beginning() -> None:
    assert World(weight=4, slow_start=10.0).server.weight(0.0) == 4


@pytest.mark.parametrize("how", ["asked", "checked", "spared"])
def test_after_it_was_down_it_starts_slowly(how: str) -> None:
    world = World(weight=4, slow_start=10.0, rise=1, fall=1, max_fails=1, fail_timeout=5.0)
    if how == "asked":
        world.server.ask(DOWN, world.now)
        world.now += 5.0
        world.server.ask(UP, world.now)
    elif how == "checked":
        world.check("-")
        world.now += 5.0
        world.check("+")
    else:
        world.fail()
        world.now += 5.0
    assert world.health is UP
    weights = []
    for _ in range(6):
        weights.append(world.server.weight(world.now))
        world.now += 2.5
    assert weights == [0.04, 1.0, 2.0, 3.0, 4.0, 4.0]


def test_after_a_drain_it_does_not_start_slowly() -> None:
    world = World(weight=4, slow_start=10.0)
    world.server.ask(DRAINING, world.now)
    world.server.ask(UP, world.now)
    assert world.server.weight(world.now) == 4
