"""The supervisor in the test's own process, where its patience can be shortened; its workers are processes as ever."""

import os
import random
import signal
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from clocks import HANG_SECONDS
from serving import capturing_logger, until
from structlog.testing import LogCapture

import tricast
from tricast.workers import process, supervisor
from tricast.workers.supervisor import Backoff


def config_of(**sections: Any) -> tricast.Config:
    server = {"port": 0, "workers": 2} | sections.pop("server", {})
    drain = {"period": "0s", "grace": "100ms"}
    return tricast.Config.model_validate({"server": server, "drain": drain} | sections)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where patience is not what is tested, a busy machine has time."""
    monkeypatch.setattr(process, "_START_SECONDS", HANG_SECONDS)
    monkeypatch.setattr(process, "_MARGIN_SECONDS", HANG_SECONDS)


class Log(LogCapture):
    """What is logged, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._more = trio.Event()

    def __call__(self, *args: Any) -> Any:
        self._more.set()
        return super().__call__(*args)

    async def wait_said(self, text: str) -> Any:
        """The first entry that holds the text, once there is one."""
        while True:
            for entry in self.entries:
                if text in entry["event"]:
                    return entry
            self._more = trio.Event()
            await self._more.wait()


async def failure_of(config: tricast.Config) -> tuple[str, ...]:
    """Why it cannot begin."""
    with trio.fail_after(HANG_SECONDS), pytest.RaisesGroup(tricast.WorkerFailed, flatten_subgroups=True) as caught:
        await tricast.run(config, logger=capturing_logger(LogCapture()))
    (error,) = caught.value.exceptions
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, tricast.WorkerFailed)
    return error.lines


async def test_a_worker_that_does_not_end_in_time_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_MARGIN_SECONDS", 0.2)
    log = Log()
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(tricast.run, config_of(), logger=capturing_logger(log)))
            pids = (await log.wait_said("workers"))["pids"]
            os.kill(pids[1], signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGTERM)
    # The other one may be too slow as well.
    said = "worker killed, it did not end in time"
    assert (1, pids[1]) in [(entry["worker"], entry["pid"]) for entry in log.entries if entry["event"] == said]
    assert log.entries[-1]["event"] == "stopped"


async def test_cancelling_kills_all() -> None:
    log = Log()
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(tricast.run, config_of(drain={"grace": "1h"}), logger=capturing_logger(log)))
            pids = (await log.wait_said("workers"))["pids"]
            nursery.cancel_scope.cancel()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_going_down_before_the_workers_are_there() -> None:
    log = Log()
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(tricast.run, config_of(), logger=capturing_logger(log)))
            await until(lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
    assert [entry["event"] for entry in log.entries] == ["draining", "stopped"]


def children() -> list[int]:
    """The processes that this one has started."""
    found: list[int] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended
            found += map(int, file.read_text().split())
    return found


async def test_all_processes_are_told_to_go_down_before_the_workers_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_ALL_TOLD_SECONDS", HANG_SECONDS)
    log, before = Log(), set(children())
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(tricast.run, config_of(), logger=capturing_logger(log)))
            await until(lambda: len(set(children()) - before) >= 2)
            workers = set(children()) - before
            for pid in workers:
                os.kill(pid, signal.SIGTERM)
            for pid in workers:
                with suppress(ProcessLookupError):
                    descriptor = os.pidfd_open(pid)
                    with trio.move_on_after(0.2):  # unless the signal came before the process was one of its own
                        await trio.lowlevel.wait_readable(descriptor)
                    os.close(descriptor)
            await trio.lowlevel.checkpoint()
            os.kill(os.getpid(), signal.SIGTERM)
    assert [entry["event"] for entry in log.entries] == ["draining", "stopped"]


async def test_a_reload_without_a_way_to_load_takes_the_same_again() -> None:
    log = Log()
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(tricast.run, config_of(), logger=capturing_logger(log)))
            before = (await log.wait_said("workers"))["pids"]
            os.kill(os.getpid(), signal.SIGHUP)
            after = (await log.wait_said("reloaded"))["pids"]
            assert len({*before, *after}) == 4
            os.kill(os.getpid(), signal.SIGTERM)


async def test_a_worker_that_is_not_ready_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    hanging.chmod(0o755)
    monkeypatch.setattr(process.sys, "executable", str(hanging))
    monkeypatch.setattr(process, "_START_SECONDS", 0.01)
    assert await failure_of(config_of()) == ("it was not ready within 0.01 s",)


async def test_there_are_no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.sys, "executable", "/nowhere/at/all")
    assert await failure_of(config_of()) == ("cannot start a process: No such file or directory",)


async def test_a_worker_that_ends_before_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    (line,) = await failure_of(config_of())
    assert line in ("worker 0 could not begin: exit code 1", "worker 1 could not begin: exit code 1")


async def test_there_is_no_place_for_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor.tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(tricast.WorkerFailed) as caught:
        await tricast.run(config_of(), logger=capturing_logger(LogCapture()))
    assert caught.value.lines == ("cannot make a temporary folder: No such file or directory",)


async def test_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = config_of(server={"port": taken.getsockname()[1]})
        with pytest.raises(OSError, match="Address already in use"):
            await tricast.run(config, logger=capturing_logger(LogCapture()))


# When a worker is replaced that died


def test_the_first_is_replaced_at_once_and_the_others_ever_later() -> None:
    backoff = Backoff(random.Random(1))
    delays = [backoff.next_delay(lived=1.0) for _ in range(50)]
    assert delays[0] == 0
    for deaths, delay in enumerate(delays[1:]):
        longest = min(30.0, 0.5 * 2**deaths)
        assert longest / 2 <= delay <= longest
    assert len(set(delays)) == 50


def test_one_that_lived_for_long_is_the_first_again() -> None:
    backoff = Backoff(random.Random(1))
    assert [backoff.next_delay(lived) > 0 for lived in (0.0, 1.0, 29.0, 30.0, 1.0)] == [False, True, True, False, True]
