"""What the service manager is told: messages that sd_notify(3) knows; and without a manager, nothing."""

import time
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from managing import Manager
from serving import capturing_logger
from structlog.testing import LogCapture

from tricast.service_manager import ServiceManager

LOGGER = capturing_logger(LogCapture())


@pytest.mark.parametrize("kind", ["file", "abstract"])
async def test_every_message_in_its_turn(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "file" else f"@{tmp_path}"
    with Manager.at(address) as manager, ServiceManager.take(manager.environment(), 1, LOGGER) as told:
        told.ready("listening on http://127.0.0.1:8080")
        assert await manager.next() == {"READY": "1", "STATUS": "listening on http://127.0.0.1:8080"}
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        told.reloading()
        message = await manager.next()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert message["RELOADING"] == "1"
        assert before <= int(message["MONOTONIC_USEC"]) <= after
        told.stopping(8.5)
        message = await manager.next()
        assert message["STOPPING"] == "1"
        assert int(message["EXTEND_TIMEOUT_USEC"]) > 8_500_000
        assert manager.waiting() == []


def test_it_is_not_for_what_this_starts() -> None:
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7", "PATH": "/bin"}
    with ServiceManager.take(environment, 7, LOGGER) as told:
        assert told.watchdog == 2.0
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "2000000"},
        {"NOTIFY_SOCKET": "/nowhere"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "8"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "2000000"},
    ],
)
async def test_a_watchdog_that_is_none(environment: dict[str, str]) -> None:
    with ServiceManager.take(environment, 7, LOGGER) as told:
        assert told.watchdog == 0
        await told.keep_watched(str)


@pytest.mark.parametrize("address", ["", None])
def test_without_a_manager_nobody_is_told_and_nothing_logged(address: str | None) -> None:
    records = LogCapture()
    environment = {} if address is None else {"NOTIFY_SOCKET": address}
    with ServiceManager.take(environment, 1, capturing_logger(records)) as told:
        told.ready("")
        told.reloading()
        told.stopping(1.0)
    assert records.entries == []


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative/path"])
def test_an_address_of_another_kind_is_told_of_once(address: str) -> None:
    records = LogCapture()
    with ServiceManager.take({"NOTIFY_SOCKET": address}, 1, capturing_logger(records)) as told:
        told.ready("")
    (entry,) = records.entries
    assert entry["address"] == address


def test_a_manager_that_is_gone_ends_nobody(tmp_path: Path) -> None:
    records = LogCapture()
    with ServiceManager.take({"NOTIFY_SOCKET": f"{tmp_path}/gone"}, 1, capturing_logger(records)) as told:
        told.ready("")
    (entry,) = records.entries
    assert (entry["message"], entry["problem"]) == ("READY=1", "No such file or directory")


async def test_the_watchdog_hears_of_it_only_while_all_is_well(tmp_path: Path, autojump_clock: object) -> None:
    records, ailment = LogCapture(), ""
    environment = {"NOTIFY_SOCKET": f"{tmp_path}/notify", "WATCHDOG_USEC": "30000000"}
    with (
        Manager.at(f"{tmp_path}/notify") as manager,
        ServiceManager.take(environment, 1, capturing_logger(records)) as told,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(told.keep_watched, lambda: ailment)
            for _ in range(10):
                await trio.sleep(29)
                messages = manager.waiting()
                assert messages == [b"WATCHDOG=1"] * len(messages)
                assert len(messages) >= 2
            ailment = "worker 1 hangs"
            await trio.sleep(300)
            assert manager.waiting() == []
            ailment = ""
            await trio.sleep(60)
            assert manager.waiting()
            nursery.cancel_scope.cancel()
    (entry,) = records.entries  # said once
    assert entry["problem"] == "worker 1 hangs"


async def test_a_manager_that_does_not_listen_holds_up_nobody(tmp_path: Path) -> None:
    address = f"{tmp_path}/notify"
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}
    with Manager.at(address), ServiceManager.take(environment, 1, LOGGER) as told:
        told._socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                told._socket.sendto(b"WATCHDOG=1", address)
        with trio.move_on_after(0):
            await told.keep_watched(str)
