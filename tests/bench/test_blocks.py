"""What a stretch of a stream holds."""

from tricast.bench.blocks import Announced, Block, BlockReader, Memo, Numbers

READER = BlockReader("cafe", 3)


def data(publisher: int, number: int, at: int = 5, run: str = "cafe") -> bytes:
    return b'{"bench":"%b-%d","n":%d,"at":%d,"text":"xx"}' % (run.encode(), publisher, number, at)


GAP = b'{"reason":"slow","after":"1-0","resumed_at":"2-0"}'


def test_numbers_that_follow_each_other_are_one_part():
    block = READER.read(b"\n".join(data(1, number, at=number) for number in range(7, 10)), b"5-0")
    assert block.parts == (Numbers(1, 7, 10),)
    assert block.only == Numbers(1, 7, 10)
    assert (block.events, block.due, block.last_id) == (3, (7, 8, 9), b"5-0")


def test_publishers_are_kept_apart():
    block = READER.read(data(0, 4) + data(2, 0) + data(0, 5) + data(2, 1))
    assert block.parts == (Numbers(0, 4, 6), Numbers(2, 0, 2))
    assert block.only is None


def test_what_is_odd_stays_in_its_order():
    block = READER.read(data(0, 4) + data(0, 4) + data(0, 6) + data(0, 5))
    assert block.parts == (Numbers(0, 4, 5), Numbers(0, 4, 5), Numbers(0, 6, 7), Numbers(0, 5, 6))
    assert block.events == 4


def test_a_gap_is_between_what_is_before_and_behind_it():
    block = READER.read(data(0, 1) + data(1, 8) + GAP + data(0, 5) + data(0, 6))
    assert block.parts == (Numbers(0, 1, 2), Numbers(1, 8, 9), Announced("slow"), Numbers(0, 5, 7))
    assert READER.read(GAP).only is None


def test_events_of_others_are_nothing():
    block = READER.read(data(0, 1, run="beef") + data(3, 1) + b'{"n":3}')
    assert (block.parts, block.events, block.due, block.only) == ((), 0, (), None)


def test_what_was_due_before_is_not_measured():
    reader = BlockReader("cafe", 1)
    reader.measured_from = 6
    block = reader.read(data(0, 1, at=5) + data(0, 2, at=6))
    assert (block.events, block.due) == (2, (6,))


def test_a_memo_forgets_before_it_is_too_large():
    memo: Memo[Block] = Memo(most_bytes=1000)
    block = READER.read(b"")
    memo.put(b"a" * 100, block)
    assert memo.get(b"a" * 100) is block
    for number in range(100):
        memo.put(b"%d" % number, block)
        assert memo.get(b"%d" % number) is block
        known = [n for n in range(100) if memo.get(b"%d" % n)]
        assert len(known) <= 5
    assert memo.get(b"a" * 100) is None
