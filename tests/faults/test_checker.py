"""The checker: that it has nothing to say of a good history, and finds what is wrong with a bad one."""

from typing import Any

import pytest
from faults.checker import check
from faults.history import BEGINNING, Follower, Gap, Id, Journal, Violation, matches, place_of
from faults.plan import Fault
from faults.report import tell

EVENTS = 6


class World:
    """A log with six events of one topic, of which the last is the end.

    Args:
        shard: of the topic.
    """

    def __init__(self, shard: int | None = None) -> None:
        self.journal = Journal()
        self.followers: list[Follower] = []
        self._prefix = "" if shard is None else f"{shard}."
        for number in range(EVENTS):
            self.publish("news", number)
        self.ends: dict[str, tuple[int, Id]] = {}
        self.end(EVENTS - 1)

    def id(self, number: int) -> str:
        return f"{self._prefix}{10 + number}-0"

    def end(self, number: int) -> None:
        self.ends["news"] = self.journal.shards["news"], (10 + number, 0)

    def publish(self, topic: str, number: int, *, is_acknowledged: bool = True) -> int:
        (publication,) = self.journal.sent([topic], float(number))
        if is_acknowledged:
            self.journal.acknowledged([publication], [self.id(number)], number + 0.5)
        return publication.name

    def follow(
        self, *given: int | Gap, begin: str | None = None, at: float = 0.0, topics: tuple[str, ...] = ("news",)
    ) -> Follower:
        """A subscriber that was given these, events by their number."""
        follower = Follower(self.journal, f"subscriber {len(self.followers)}", topics)
        self.followers.append(follower)
        follower.told(self.id(0) if begin is None else begin, at)
        for item in given:
            if isinstance(item, Gap):
                follower.gap(item, 1.0)
            else:
                follower.event(self.id(item), item, None)
        return follower

    def gap(self, after: int, resumed_at: int) -> Gap:
        return Gap("restarted", self.id(after), self.id(resumed_at))

    def found(self, **options: Any) -> list[Violation]:
        return check(self.journal, self.followers, self.ends, **options)

    def rules(self, **options: Any) -> list[str]:
        return [violation.rule for violation in self.found(**options)]


@pytest.fixture(params=[None, 3])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_whole_and_in_order(world: World) -> None:
    world.follow(1, 2, 3, 4, 5)
    world.follow(0, 1, 2, 3, 4, 5, begin=BEGINNING)
    world.follow(5, begin=world.id(4))
    assert world.rules() == []


@pytest.mark.parametrize("missing", range(1, EVENTS))
def test_a_lost_event(world: World, missing: int) -> None:
    given = [number for number in range(1, EVENTS) if number != missing]
    follower = world.follow(*given)
    if missing == EVENTS - 1:
        assert world.rules() == ["end"]
        return
    (found,) = world.found()
    assert (found.rule, found.follower) == ("missing", follower)
    assert found.item is not None
    assert follower.items[found.item] == missing + 1


def test_an_event_that_nobody_got_though_it_was_acknowledged(world: World) -> None:
    for _ in range(3):
        world.follow(1, 2, 4, 5)
    assert world.rules() == ["missing"] * 3


def test_what_was_acknowledged_is_in_the_log_where_it_has_to_be(world: World) -> None:
    world.publish("news", EVENTS, is_acknowledged=False)
    for lost in range(EVENTS - 1):
        before, behind = range(lost), range(lost + 1, EVENTS)
        reader = world.follow(*before, world.gap(-1, lost), *behind, begin=world.id(-1))
        assert world.rules(loses_at=0.0) == []
        assert world.rules(loses_at=0.0, readers=[reader]) == ["kept"]
    reader = world.follow(*range(EVENTS), begin=BEGINNING)
    assert world.rules(loses_at=0.0, readers=[reader]) == []


def test_an_event_that_was_not_acknowledged_may_come_or_not_but_for_all_alike(world: World) -> None:
    name = world.publish("news", EVENTS, is_acknowledged=False)
    world.publish("news", EVENTS + 1)
    world.end(EVENTS + 1)
    for _ in range(2):
        follower = world.follow(1, 2, 3, 4, 5)
        follower.event(world.id(EVENTS + 1), EVENTS + 1, None)
    assert world.rules() == []
    follower = world.follow(1, 2, 3, 4, 5)
    follower.event(world.id(EVENTS), name, None)
    follower.event(world.id(EVENTS + 1), EVENTS + 1, None)
    assert world.rules() == ["missing", "missing"]


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        ((1, 2, 2, 3, 4, 5), ["twice", "twice"]),  # seen as it came, and in the whole
        ((1, 2, 3, 4, 5, 2), ["twice", "order", "twice"]),
        ((1, 3, 2, 4, 5), ["order", "order"]),  # the event, and the position that goes back
        ((2, 1, 3, 4, 5), ["order", "order"]),
    ],
)
def test_a_duplicate_and_another_order(world: World, given: tuple[int, ...], rules: list[str]) -> None:
    world.follow(*given)
    assert world.rules() == rules


def test_a_gap_that_was_announced(world: World) -> None:
    world.follow(1, world.gap(1, 3), 4, 5)
    assert world.rules(loses_at=0.0) == []


@pytest.mark.parametrize(("after", "resumed_at"), [(1, 2), (2, 3)])
def test_a_gap_that_is_too_short(world: World, after: int, resumed_at: int) -> None:
    world.follow(1, world.gap(after, resumed_at), 4, 5)
    assert world.rules(loses_at=0.0) == ["missing"]


def test_a_loss_without_a_gap(world: World) -> None:
    world.follow(1, 4, 5)
    assert world.rules(loses_at=0.0) == ["missing", "missing"]


def test_a_gap_without_a_loss(world: World) -> None:
    world.follow(1, 2, world.gap(2, 3), 3 + 1, 5)
    assert world.rules() == ["gap"]
    assert world.rules(loses_at=2.0) == ["gap"], "it came before the loss"


def test_a_gap_that_goes_back(world: World) -> None:
    world.follow(1, 2, 3, world.gap(3, 1), 4, 5)
    assert world.rules(loses_at=0.0) == ["order"]


def test_all_that_is_kept_need_not_be_all_where_the_log_loses_events(world: World) -> None:
    world.follow(1, 3, 4, 5, begin=BEGINNING, at=2.5)
    assert world.rules(loses_at=0.0) == []
    assert world.rules() == ["missing"] * 2
    world.follow(1, 3, 5, begin=BEGINNING, at=2.5)
    assert world.rules(loses_at=0.0) == ["missing"], "it was published only then"


def test_a_position_without_an_event_tells_that_everything_before_it_was_given(world: World) -> None:
    follower = world.follow(1, 2)
    follower.told(world.id(4), 1.0)
    follower.event(world.id(5), 5, None)
    assert world.rules() == ["missing", "missing"]


def test_what_was_never_published_or_is_of_another_topic(world: World) -> None:
    world.publish("other", 100)
    world.follow(1, 2, 3, 4, 5).event(world.id(99), 99, None)
    assert world.rules() == ["published"]
    world.follow(1, 2, 3, 4, 5).event(world.id(100), EVENTS, None)
    world.follow(1, 2, 3, 4, 5).event(world.id(5), 5, "other")
    assert world.rules() == ["published", "topic", "topic"]


def test_two_events_at_one_place(world: World) -> None:
    world.follow(1, 2, 3, 4, 5)
    follower = world.follow(1, 2, 3)
    follower.event(world.id(4), 5, None)
    follower.event(world.id(5), 4, None)
    assert world.rules() == ["one order", "one order"]


def test_a_publication_that_is_in_the_log_twice(world: World) -> None:
    world.journal.acknowledged([world.journal.publications[1]], [world.id(EVENTS)], 9.0)
    world.end(EVENTS)
    follower = world.follow(1, 2, 3, 4, 5)
    follower.event(world.id(EVENTS), 1, None)
    assert world.rules() == ["once", "twice"]
    assert world.rules(loses_at=0.0) == ["twice"], "the log may have forgotten it, but then there was a gap"


def test_all_that_is_kept_may_hold_what_was_forgotten_and_published_again(world: World) -> None:
    world.journal.acknowledged([world.journal.publications[1]], [world.id(EVENTS)], 9.0)
    world.end(EVENTS)
    for begins_at in (0.5, 9.5):
        follower = world.follow(1, 2, 3, 4, 5, begin=BEGINNING, at=begins_at)
        follower.event(world.id(EVENTS), 1, None)
    assert [found.follower for found in world.found(loses_at=0.0)] == [world.followers[0]]


def test_an_acknowledged_event_that_is_before_an_older_one(world: World) -> None:
    (publication,) = world.journal.sent(["news"], 20.0)
    world.journal.acknowledged([publication], [world.id(2).replace("-0", "-1")], 21.0)
    world.end(2)
    assert world.rules() == ["real time"]


def test_a_batch_of_which_a_part_is_missing(world: World) -> None:
    batch = world.journal.sent(["news", "news"], 20.0)
    follower = world.follow(1, 2, 3, 4, 5)
    follower.event(world.id(20), batch[0].name, None)
    assert world.rules() == ["batch"]
    follower.event(world.id(21), batch[1].name, None)
    assert world.rules() == []


def test_a_batch_in_another_order(world: World) -> None:
    batch = world.journal.sent(["news", "news"], 20.0)
    world.journal.acknowledged(batch, [world.id(21), world.id(20)], 21.0)
    assert world.rules() == ["batch"]


def test_an_answer_with_too_few_ids(world: World) -> None:
    batch = world.journal.sent(["news", "news"], 20.0)
    world.journal.acknowledged(batch, [world.id(21)], 21.0)
    assert world.rules() == ["acknowledged"]


def test_who_has_left_need_not_come_to_the_end(world: World) -> None:
    world.follow(1, 2).is_retired = True
    assert world.rules() == []
    world.follow(1, 2)
    assert world.rules() == ["end"]


def test_shards_are_independent() -> None:
    world = World(shard=0)
    (other,) = world.journal.sent(["other"], 1.0)
    world.journal.acknowledged([other], ["1.3-0"], 1.5)
    world.ends["other"] = (1, (3, 0))
    follower = world.follow(begin="0.10-0_1.2-0", topics=("news", "other"))
    for number in (1, 2, 3):
        follower.event(f"{world.id(number)}_1.2-0", number, "news")
    follower.event("0.13-0_1.3-0", other.name, "other")
    for number in (4, 5):
        follower.event(f"{world.id(number)}_1.3-0", number, "news")
    assert world.rules() == []
    follower.event("0.16-0", other.name, "other")
    assert world.rules() == ["id"]


@pytest.mark.parametrize(("topics", "rules"), [(("news", "other"), ["order"]), (("news",), [])])
def test_a_position_that_goes_back_in_another_shard(topics: tuple[str, ...], rules: list[str]) -> None:
    world = World(shard=0)
    world.journal.acknowledged(world.journal.sent(["other"], 1.0), ["1.2-0"], 1.5)
    follower = world.follow(begin="0.10-0_1.2-0", topics=topics)
    follower.event("0.11-0_1.1-0", 1, "news")
    follower.is_retired = True
    assert world.rules() == rules, "it matters where there may be something for it"


def test_what_is_told(world: World) -> None:
    world.follow(1, 2, 4, 5)
    told = tell(world.found(), [Fault(1.0, 2.0, "kill", "server", (1,))], seed=7)
    assert "1 violations with seed 7: {'missing': 1}" in told
    assert "1.00 s for  2.00 s: kill server 1" in told
    assert (
        "MISSING: 13-0 was not given, and is within no gap: #3 of news, sent at 3.00 s, acknowledged at 3.50 s" in told
    )
    (line,) = [line for line in told.splitlines() if "->" in line]
    assert "#4 of news" in line


def test_what_is_told_of_the_end(world: World) -> None:
    world.follow(*[1], world.gap(1, 2), 3)
    told = tell(world.found(loses_at=0.0), [], seed=7)
    assert "END: it did not come to the end" in told
    assert "GAP restarted" in told
    assert told.endswith("-> and no more")


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a.b", "a.b", True), ("a.b", "a.c", False), ("a.*", "a.c", True), ("a.*", "a", False), ("a.>", "a.b.c", True),
        ("a.>", "a", False), (">", "a", True), ("*", "a.b", False), ("*.b", "a.b", True),
    ],
)  # fmt: skip
def test_patterns(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected


def test_positions() -> None:
    assert place_of("0-0") == {}
    assert place_of("5-1") == {0: (5, 1)}
    assert place_of("0.5-1_3.7-2") == {0: (5, 1), 3: (7, 2)}
