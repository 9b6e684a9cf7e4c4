"""Nothing lost, duplicated or out of order goes unseen, and nothing is blamed on a server that has announced a gap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.bench.blocks import Announced, Block, Numbers
from tricast.bench.ledger import Ledger
from tricast.bench.tally import Tally

GAP = Announced("slow")


def blocks_of(items) -> list[Block]:
    return [Block([Announced("slow") if item is GAP else Numbers(item[0], item[1], item[1] + 1)], []) for item in items]


def entered(*parts, published) -> Tally:
    """What is counted when these parts come, each in a block of its own."""
    return _finished([Block([part], []) for part in parts], published)


def _finished(blocks, published) -> Tally:
    tally, ledger = Tally(), Ledger(len(published))
    for block in blocks:
        ledger.enter(block, tally)
    ledger.close(published, tally)
    return tally


def faults(tally: Tally) -> dict[str, int]:
    names = ("lost", "missed", "duplicates", "out_of_order")
    return {name: getattr(tally, name) for name in names if getattr(tally, name)}


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([], {"lost": 4}),
        ([Numbers(0, 0, 2), Numbers(0, 5, 10)], {}),
        ([Numbers(0, 0, 2), Numbers(0, 8, 10)], {"lost": 2}),
        ([Numbers(0, 0, 10), Numbers(0, 4, 7)], {"duplicates": 1}),
        ([Numbers(0, 8, 10), Numbers(0, 0, 8)], {"out_of_order": 2}),
        ([GAP, Numbers(0, 7, 10)], {"missed": 1}),
        ([GAP], {"missed": 4}),
    ],
)
def test_what_was_due_in_the_warm_up_does_not_count(parts, found):
    tally, ledger = Tally(), Ledger(1)
    ledger.measured_from = [6]
    for part in parts:
        ledger.enter(Block([part], []), tally)
    ledger.close([10], tally)
    assert faults(tally) == found


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([Numbers(0, 0, 10)], {}),
        ([Numbers(0, 0, 4), Numbers(0, 4, 10)], {}),
        ([], {"lost": 10}),
        ([Numbers(0, 0, 7)], {"lost": 3}),
        ([Numbers(0, 2, 10)], {"lost": 2}),
        ([Numbers(0, 0, 4), Numbers(0, 5, 10)], {"lost": 1}),
        ([Numbers(0, 0, 4), Numbers(0, 3, 10)], {"duplicates": 1}),
        ([Numbers(0, 0, 10), Numbers(0, 0, 10)], {"duplicates": 10}),
        ([Numbers(0, 0, 10), Numbers(0, 5, 7)], {"duplicates": 2}),
        ([Numbers(0, 0, 4), Numbers(0, 5, 6), Numbers(0, 4, 5), Numbers(0, 6, 10)], {"out_of_order": 1}),
        ([Numbers(0, 5, 10), Numbers(0, 1, 3)], {"lost": 3, "out_of_order": 2}),
        ([Numbers(0, 2, 4), Numbers(0, 6, 8), Numbers(0, 1, 9)], {"lost": 2, "duplicates": 4, "out_of_order": 3}),
        ([Numbers(0, 0, 4), GAP, Numbers(0, 6, 10)], {"missed": 2}),
        ([Numbers(0, 0, 4), GAP, Numbers(0, 4, 6), Numbers(0, 7, 10)], {"lost": 1}),
        ([Numbers(0, 0, 4), GAP, Numbers(0, 5, 6), Numbers(0, 7, 10)], {"missed": 1, "lost": 1}),
        ([Numbers(0, 0, 4), GAP], {"missed": 6}),
        ([Numbers(0, 0, 10), GAP], {}),
    ],
)
def test_one_publisher(parts, found):
    assert faults(entered(*parts, published=[10])) == found


def test_a_gap_excuses_each_publisher_once():
    tally = entered(
        Numbers(0, 0, 2), Numbers(1, 0, 2), GAP, Numbers(0, 3, 5), Numbers(1, 3, 4), Numbers(1, 5, 6), published=[5, 6]
    )
    assert faults(tally) == {"missed": 2, "lost": 1}
    assert tally.gaps == {"slow": 1}


def test_what_was_published_without_an_answer_may_come():
    assert faults(entered(Numbers(0, 0, 12), published=[10])) == {}


@given(st.permutations(range(8)), st.lists(st.integers(0, 7), max_size=4), st.sets(st.integers(0, 7), max_size=4))
def test_each_number_is_judged_by_itself(order, repeated, dropped):
    stream = [number for number in [*order, *repeated] if number not in dropped]
    tally = _finished(blocks_of((0, number) for number in stream), [8])
    seen: set[int] = set()
    late = duplicates = 0
    for number in stream:
        duplicates += number in seen
        late += number not in seen and any(other > number for other in seen)
        seen.add(number)
    assert (tally.lost, tally.duplicates, tally.out_of_order) == (8 - len(seen), duplicates, late)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), max_size=20), st.data())
def test_blocks_or_events_it_is_the_same(stream, data):
    one_by_one = _finished(blocks_of(stream), [10, 10])
    cut = data.draw(st.integers(0, len(stream)))
    parts = [Numbers(publisher, number, number + 1) for publisher, number in stream]
    in_blocks = _finished([Block(parts[:cut], []), Block(parts[cut:], [])], [10, 10])
    assert faults(in_blocks) == faults(one_by_one)
