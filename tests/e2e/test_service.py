"""The server as a service: the manager that started it hears when it is ready, reloads, hangs and goes down."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cli.running import COMMAND
from clients import ask
from managing import Manager
from serving import ServerProcess, serving_as


@asynccontextmanager
async def service(manager: Manager, workers: int, watchdog: float = 0.3, **drain: str) -> AsyncIterator[ServerProcess]:
    """``tricast serve`` as the manager starts it."""
    settings = {f"TRICAST_DRAIN__{key.upper()}": value for key, value in ({"period": "0s"} | drain).items()}
    environment = os.environ | manager.environment(watchdog) | settings
    options = {"env": environment, "start_new_session": True}
    command = (*COMMAND, "serve", "--port", "0", "--workers", str(workers))
    async with serving_as(*command, **options) as server:
        yield server


@pytest.mark.parametrize("workers", [1, 2])
async def test_all_of_it_gives_notice_and_may_be_hurried(tmp_path: Path, workers: int) -> None:
    with Manager.at(f"{tmp_path}/notify") as manager:
        async with service(manager, workers, notice="1h") as server:
            assert (await manager.next())["READY"] == "1"
            server.process.terminate()
            assert int((await manager.next_of("STOPPING"))["EXTEND_TIMEOUT_USEC"]) > 3600e6
            await server.wait_said("draining connections=" if workers > 1 else "draining", workers)
            for _ in range(10):  # whichever worker is asked
                assert (await ask(server.url, "GET", "/readyz")).status == 503
                assert (await ask(server.url, "GET", "/events?topic=a&last_id=0-0x")).status == 400
            server.process.terminate()
            assert await server.process.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_from_the_beginning_to_the_end(tmp_path: Path, workers: int) -> None:
    with Manager.at(f"{tmp_path}/notify") as manager:
        async with service(manager, workers) as server:
            message = await manager.next()
            assert message["READY"] == "1"
            assert server.url in message["STATUS"]
            assert (await ask(server.url, "GET", "/readyz")).status == 200
            for _ in range(3):
                assert await manager.next() == {"WATCHDOG": "1"}
            server.process.terminate()
            message = await manager.next_of("STOPPING")
            assert int(message["EXTEND_TIMEOUT_USEC"]) > 5_000_000
            assert await server.process.wait() == 0
        assert b"READY" not in b"".join(manager.waiting())  # the workers told nothing


async def test_a_reload_is_told_of_with_its_end_whatever_comes_of_it(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    with Manager.at(f"{tmp_path}/notify") as manager:
        options = {"env": os.environ | manager.environment(), "start_new_session": True}
        command = (*COMMAND, "serve", "--config", str(file), "--port", "0", "--workers", "2")
        text = '[drain]\nperiod = "0s"\n'
        file.write_text(text)
        async with serving_as(*command, **options) as server:
            assert (await manager.next())["READY"] == "1"
            for changed in (text, "nonsense"):
                file.write_text(changed)
                server.process.send_signal(signal.SIGHUP)
                assert (await manager.next())["RELOADING"] == "1"
                assert (await manager.next())["READY"] == "1"
            await server.wait_said("not reloaded")


async def test_a_worker_that_hangs_keeps_the_watchdog_waiting(tmp_path: Path) -> None:
    with Manager.at(f"{tmp_path}/notify") as manager:
        async with service(manager, 2, watchdog=0.9) as server:
            assert (await manager.next())["READY"] == "1"
            (line,) = await server.wait_said("workers count=")
            pid = int(line.partition("pids=")[2].strip("[]").split(",")[0])
            os.kill(pid, signal.SIGSTOP)
            try:
                (line,) = await server.wait_said("the watchdog is told no more that all is well")
                assert "worker 0 hangs" in line
                manager.waiting()
                with trio.move_on_after(0.9) as silence:  # in which it would be told three times
                    await manager.next()
                assert silence.cancelled_caught
            finally:
                os.kill(pid, signal.SIGCONT)
            assert await manager.next() == {"WATCHDOG": "1"}  # it is well again
