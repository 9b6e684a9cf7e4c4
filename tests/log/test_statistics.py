"""What a log counts."""

import pytest

from tricast.log.statistics import BOUNDS, Statistics, Timings


def test_each_time_is_in_one_bucket() -> None:
    timings = Timings()
    for seconds in (0.0, 0.0005, 0.0006, 0.001, 5.0, 5.1, 100.0):
        timings.observe(seconds)
    assert timings.counts == [2, 2, *[0] * (len(BOUNDS) - 3), 1, 2]
    assert timings.sum == pytest.approx(110.1021)


def test_what_is_done_is_timed_unless_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0, 20.0])
    monkeypatch.setattr("tricast.log.statistics.perf_counter", lambda: next(times))
    timings = Timings()
    with timings.timing():
        pass
    with pytest.raises(ValueError, match="no"), timings.timing():
        raise ValueError("no")
    assert (sum(timings.counts), timings.counts[BOUNDS.index(2.5)], timings.sum) == (1, 1, 2.0)


def test_nothing_has_happened_yet() -> None:
    statistics = Statistics()
    assert (statistics.reconnects, statistics.lags) == (0, {})
    assert statistics.appends.sum == statistics.reads.sum == 0
