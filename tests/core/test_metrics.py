"""The metrics as text: names, kinds and labels as Prometheus reads them."""

import os
import random
from collections.abc import Iterator

import pytest
import structlog
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from tricast import metrics
from tricast.access.access import Access
from tricast.config import AuthSection, Config
from tricast.hub import Hub
from tricast.log.memory import MemoryLog
from tricast.runtime import Runtime
from tricast.sweep import Wheel


@pytest.fixture
def runtime() -> Runtime:
    log = MemoryLog(history=10, history_age=10.0, history_size=10**6, clock=lambda: 1000.0)
    return Runtime(
        Config(),
        Hub(log, max_topic_bytes=100, max_event_bytes=100, wake=lambda: None),
        wheel=Wheel(tick=1.0),
        randomness=random.Random(1),
        clock=lambda: 1000.0,
        logger=structlog.wrap_logger(None, processors=[]),
        handlers={},
        access=Access(AuthSection(), clock=lambda: 1000.0, logger=structlog.wrap_logger(None, processors=[])),
    )


@pytest.fixture
def boards() -> Iterator[list[metrics.Board]]:
    """The boards of two workers."""
    fds = [metrics.Board.create(number) for number in range(2)]
    yield [metrics.Board(fd) for fd in fds]
    for fd in fds:
        os.close(fd)


def text_of(runtime: Runtime) -> str:
    return metrics.expose(metrics.registry_of(runtime)).decode()


def samples_of(text: str) -> dict[tuple[str, ...], float]:
    """By name and the values of labels, that of the worker first."""
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels, reverse=True))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_family_has_a_kind_and_an_explanation(runtime: Runtime) -> None:
    families = [family for family in text_string_to_metric_families(text_of(runtime)) if "tricast" in family.name]
    assert len(families) > 15
    for family in families:
        assert family.documentation.endswith(".") or family.name == "tricast_draining"
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


def test_what_is_counted_is_what_is_told(runtime: Runtime) -> None:
    counters = runtime.counters
    counters.accepted, counters.refused, counters.failed = 7, 5, 3
    counters.streams.update({"sse": 2, "poll": 1})
    counters.lost.update({"left": 4})
    counters.requests.update({("/events", 200): 6, ("/publish", 413): 1})
    runtime.is_leaving = True
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text_of(runtime))
        for sample in family.samples
    }
    expected = {
        ("tricast_connections_accepted_total",): 7,
        ("tricast_connections_refused_total",): 5,
        ("tricast_connections_failed_total",): 3,
        ("tricast_connections_lost_total", "left"): 4,
        ("tricast_streams_total", "sse"): 2,
        ("tricast_streams_total", "poll"): 1,
        ("tricast_http_requests_total", "/events", "200"): 6,
        ("tricast_http_requests_total", "/publish", "413"): 1,
        ("tricast_draining",): 1,
    }
    assert {key: found[key] for key in expected} == expected


def about_a_log(runtime: Runtime) -> None:
    """Its log has taken three appends and one read, was away once, and is behind in one of two shards."""
    statistics = runtime.hub.log_statistics
    for seconds in (0.0004, 0.02, 60.0):
        statistics.appends.observe(seconds)
    statistics.reads.observe(0.01)
    statistics.reconnects = 1
    statistics.lags.update({1: 7, 0: 0})


ABOUT_A_LOG = {
    ("tricast_log_append_seconds_bucket", "0.0005"): 1,
    ("tricast_log_append_seconds_bucket", "0.01"): 1,
    ("tricast_log_append_seconds_bucket", "0.025"): 2,
    ("tricast_log_append_seconds_bucket", "5.0"): 2,
    ("tricast_log_append_seconds_bucket", "+Inf"): 3,
    ("tricast_log_append_seconds_count",): 3,
    ("tricast_log_append_seconds_sum",): 60.0204,
    ("tricast_log_read_seconds_bucket", "0.005"): 0,
    ("tricast_log_read_seconds_bucket", "0.01"): 1,
    ("tricast_log_read_seconds_count",): 1,
    ("tricast_log_reconnects_total",): 1,
    ("tricast_log_lag_events", "0"): 0,
    ("tricast_log_lag_events", "1"): 7,
    ("tricast_log_available",): 1,
}


def test_of_the_log_it_is_told_how_long_it_takes_and_how_far_behind_it_is(runtime: Runtime) -> None:
    about_a_log(runtime)
    found = samples_of(text_of(runtime))
    assert {key: found[key] for key in ABOUT_A_LOG} == pytest.approx(ABOUT_A_LOG)


async def test_of_the_log_other_processes_tell_the_same(runtime: Runtime, boards: list[metrics.Board]) -> None:
    about_a_log(runtime)
    boards[1].post(metrics.Noticeboards(1, 0, boards)._notice(runtime))
    found = samples_of((await metrics.Noticeboards(0, 0, boards).exposing(runtime)()).decode())
    told = {(name, "1", *rest): value for (name, *rest), value in ABOUT_A_LOG.items()}
    assert {key: found[key] for key in told} == pytest.approx(told)


def test_a_log_that_is_away_is_told(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryLog, "problem", "the disk is full")
    assert samples_of(text_of(runtime))["tricast_log_available",] == 0


def test_the_process_is_told_of_as_well(runtime: Runtime) -> None:
    names = {family.name for family in text_string_to_metric_families(text_of(runtime))}
    assert {"process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds"} <= names


def test_two_servers_in_one_process_have_metrics_of_their_own(runtime: Runtime) -> None:
    before = text_of(runtime)
    metrics.registry_of(runtime)
    runtime.counters.accepted += 1
    assert "tricast_connections_accepted_total 0.0\n" in before
    assert "tricast_connections_accepted_total 1.0\n" in text_of(runtime)


# Several processes


def notice(worker: int = 0, text: str = "") -> metrics.Notice:
    """A notice without numbers; the text makes it long."""
    return metrics.Notice(worker, os.getpid(), 0.0, [metrics._Family("tricast_x", text, "gauge", [])])


def test_a_board_has_the_last_notice(boards: list[metrics.Board]) -> None:
    board = boards[0]
    assert board.read() is None
    for text in ("short", "long" * 1000, "short again"):
        board.post(notice(text=text))
        assert board.read() == notice(text=text)
    board.wipe()
    assert board.read() is None


def test_a_notice_that_is_not_whole_is_none(boards: list[metrics.Board]) -> None:
    board = boards[0]
    board.post(notice(text="a" * 1000))
    os.pwrite(board._fd, b"b", 500)
    assert board.read() is None


async def test_whoever_is_asked_tells_of_all(runtime: Runtime, boards: list[metrics.Board]) -> None:
    first, second = (metrics.Noticeboards(number, 3 * number, boards) for number in range(2))
    runtime.counters.accepted = 5
    runtime.counters.streams.update({"sse": 2})
    boards[1].post(second._notice(runtime))
    runtime.counters.accepted = 7  # the asked one tells of itself what is true now
    found = {
        (sample.name, *sample.labels.items()): sample.value
        for family in text_string_to_metric_families((await first.exposing(runtime)()).decode())
        for sample in family.samples
    }
    expected = {
        ("tricast_connections_accepted_total", ("worker", "0")): 7,
        ("tricast_connections_accepted_total", ("worker", "1")): 5,
        ("tricast_streams_total", ("transport", "sse"), ("worker", "1")): 2,
        ("tricast_worker_restarts_total", ("worker", "0")): 0,
        ("tricast_worker_restarts_total", ("worker", "1")): 3,
    }
    assert {key: found[key] for key in expected} == expected
    for worker in "01":
        assert found["process_resident_memory_bytes", ("worker", worker)] > 0
        assert 0 <= found["tricast_worker_silence_seconds", ("worker", worker)] < 60


async def test_of_a_process_that_is_gone_the_numbers_stay_until_they_are_wiped(
    runtime: Runtime, boards: list[metrics.Board]
) -> None:
    expose = metrics.Noticeboards(0, 0, boards).exposing(runtime)
    gone = metrics.Noticeboards(1, 0, boards)._notice(runtime)
    gone.pid = 2**30
    boards[1].post(gone)
    text = (await expose()).decode()
    assert 'tricast_connections{worker="1"} 0.0' in text
    assert 'process_open_fds{worker="1"}' not in text
    boards[1].wipe()
    assert 'worker="1"' not in (await expose()).decode()


async def test_who_was_replaced_tells_of_its_successor_and_not_of_itself(
    runtime: Runtime, boards: list[metrics.Board]
) -> None:
    replaced, successor = (metrics.Noticeboards(0, restarts, boards) for restarts in (0, 1))
    expose = replaced.exposing(runtime)
    assert 'tricast_worker_restarts_total{worker="0"} 0.0' in (await expose()).decode()
    replaced.withdraw()
    boards[0].post(successor._notice(runtime))
    assert 'tricast_worker_restarts_total{worker="0"} 1.0' in (await expose()).decode()


async def test_numbers_are_renewed_until_another_process_has_the_number(
    runtime: Runtime, boards: list[metrics.Board], autojump_clock: object
) -> None:
    noticeboards = metrics.Noticeboards(0, 0, boards)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(noticeboards.post_forever, runtime)
        await trio.testing.wait_all_tasks_blocked()
        boards[0].wipe()
        await trio.sleep(1.5)
        assert boards[0].read() is not None
        boards[0].wipe()
        noticeboards.withdraw()
    assert boards[0].read() is None
