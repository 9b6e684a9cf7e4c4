"""Looking for a limit."""

import pytest

from tricast.probe.limits import Limit, attributed, search


def looked_for(limit, ladder=(2000, 4000, 8000, 16000, 32000), resolution=lambda size: size // 64):
    steps, asked = search(ladder, resolution), []
    try:
        size = next(steps)
        while True:
            asked.append(size)
            size = steps.send(limit is None or size <= limit)
    except StopIteration as stop:
        return stop.value, asked


@pytest.mark.parametrize("limit", [1, 1999, 2000, 2001, 8190, 8192, 15999, 31999])
def test_a_limit(limit):
    found, asked = looked_for(limit)
    assert found.passes <= limit < found.fails
    assert found.fails - found.passes <= found.fails // 64 + 1
    assert len(asked) <= 5 + 12


def test_none():
    assert looked_for(None) == (Limit(32000, None), [2000, 4000, 8000, 16000, 32000])


@pytest.mark.parametrize(
    ("path", "direct", "is_attributed"),
    [
        (Limit(8000, 8100), None, True),
        (Limit(8000, 8100), Limit(16000, 16100), True),
        (Limit(8000, 8100), Limit(32000, None), True),
        (Limit(16000, 16100), Limit(16000, 16100), False),
        (Limit(16000, 16100), Limit(15990, 16090), False),
        (Limit(32000, None), Limit(16000, 16100), False),
    ],
)
def test_whose_limit_it_is(path, direct, is_attributed):
    assert attributed(path, direct) is is_attributed
