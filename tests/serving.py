"""A server for a test, in the test's own Trio run, with a look at what it logged when it is over."""

import gc
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import structlog
import trio
import trio.testing
from clients import ask, subscribe
from clocks import HANG_SECONDS
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import LogCapture

import tricast
from tricast.log.base import Log
from tricast.logs import Logger

_TURNS_AT_ONCE = 20
_LOOK_AGAIN_SECONDS = 0.002


def capturing_logger(records: LogCapture) -> Logger:
    """A logger that writes to nothing but the list of its records."""
    logger: Logger = structlog.wrap_logger(
        None, processors=[records], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger


def failures(records: LogCapture) -> list[str]:
    """What was logged of connections that ended by a bug of the server's."""
    return [str(entry) for entry in records.entries if entry["log_level"] == "error"]


@asynccontextmanager
async def serving(
    *,
    records: LogCapture | None = None,
    log: Log | dict[str, Any] | None = None,
    within: float = HANG_SECONDS,
    **sections: Any,
) -> AsyncIterator[tricast.Server]:
    """A server on a free port, gone at the end of the block.

    Args:
        records: takes what is logged, and then it is the test's to judge; otherwise any failure fails the test.
        log: keeps the events, instead of the one that the configuration names; or that section of it.
        within: seconds the whole block may take.
        sections: of the configuration, as dicts.
    """
    captured = records if records is not None else LogCapture()
    server = {"port": 0} | sections.pop("server", {})
    if isinstance(log, dict):
        sections, log = sections | {"log": log}, None
    config = tricast.Config.model_validate({"server": server} | sections)
    with trio.fail_after(within):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(partial(tricast.serve, config, log=log, logger=capturing_logger(captured)))
            nursery.cancel_scope.cancel()
    if records is None:
        assert not failures(captured)


@asynccontextmanager
async def serving_at(**sections: Any) -> AsyncIterator[tuple[tricast.Server, str]]:
    """A server with the URL by which clients reach it: its own. What stands in between yields another URL."""
    async with serving(**sections) as server:
        yield server, server.url


@asynccontextmanager
async def harmless(**sections: Any) -> AsyncIterator[tricast.Server]:
    """A server to which anything may be done in the block: another client must not notice, nor may a bug be logged."""
    async with serving(**sections) as server:
        with (
            await subscribe("sse", server.url, "witness") as stream,
            await subscribe("ws", server.url, "witness") as ws,
        ):
            yield server
            await server.hub.publish("witness", "all is well")
            assert (await stream.event()).data == "all is well"
            assert (await ws.event()).data == "all is well"


async def until(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds; the test's deadline ends a vain wait.

    What takes more than a few turns waits for somebody else, who gets the processor meanwhile. A clock that stands
    still is not waited for.
    """
    turns = 0
    clock = trio.lowlevel.current_clock()
    is_timed = not isinstance(clock, trio.testing.MockClock) or clock.rate > 0
    while not condition():
        turns += 1
        if is_timed and turns > _TURNS_AT_ONCE:
            await pause()
        else:
            await trio.lowlevel.checkpoint()


async def pause() -> None:
    """Leaves the processor to others before something is looked at, or asked for, once more."""
    await trio.sleep(_LOOK_AGAIN_SECONDS)


def open_descriptors() -> Counter[str]:
    """How many descriptors of this process lead to sockets, to pipes, and to each file.

    Who looks for something left behind subtracts what there was before, and so does not count what has gone since: a
    test before this one may have left something to the garbage collector. Which sockets they are does not matter: a
    library may connect again in a thread of its own.
    """
    found = Counter[str]()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - what iterdir gives is no better here
        with suppress(FileNotFoundError):  # the one that this list was read from
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - a link that leads to no path
            found[target.partition(":[")[0]] += 1
    return found


def what_is_open() -> Counter[str]:
    """The tasks of this run of Trio, and what the descriptors of this process lead to; to be subtracted likewise."""
    return open_descriptors() + Counter(tasks=trio.lowlevel.current_statistics().tasks_living)


@contextmanager
def no_garbage() -> Iterator[None]:
    """What the server let go of in the block has to be gone by itself, and not to wait for the garbage collector.

    Cycles of whole connections would be: an error that is kept in a variable of a frame that its traceback leads to.
    """
    gc.freeze()  # what was there before does not count, and takes no time
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        package = str(Path(tricast.__file__).parent)
        codes = [found.f_code for found in gc.garbage if isinstance(found, FrameType)]
        kept = [code.co_name for code in codes if code.co_filename.startswith(package)]
        assert not kept, kept
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()


# What it tells of itself

#: A sample's name without ``tricast_``, with its labels' values behind it.
Metrics = dict[tuple[str, ...], float]


async def metrics_of(url: str) -> Metrics:
    """What ``/metrics`` tells of the server itself; of counters the totals."""
    answer = await ask(url, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name.removeprefix("tricast_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        if family.name.startswith("tricast_")
        for sample in family.samples
    }


def about(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The labelled samples of this name."""
    return {labels: value for (found, *rest), value in metrics.items() if found == name and (labels := tuple(rest))}


# A server in a process of its own

_PROGRAM = """
import json, sys, trio, tricast
trio.run(tricast.run, tricast.Config.model_validate(json.loads(sys.argv[1])))
"""


class ServerProcess:
    """A server as a program.

    Attributes:
        process: the process.
        url: where it listens.
        lines: what it has logged so far.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.url = ""
        self.lines: list[str] = []
        self._begun = trio.Event()
        self._more = trio.Event()
        self._is_read = False

    async def read_log(self) -> None:
        """Reads what it logs, to the end."""
        rest = b""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            self.lines += [line.decode() for line in lines]
            self._tell()
            for line in self.lines:
                if not self.url and (match := re.search(r"https?://[\d.]+:\d+", line)):
                    self.url = match[0]
                    self._begun.set()
        self._is_read = True
        self._tell()

    def _tell(self) -> None:
        more, self._more = self._more, trio.Event()
        more.set()

    async def wait_begun(self) -> None:
        """Returns when it listens."""
        await self._begun.wait()

    async def wait_said(self, text: str, times: int = 1) -> list[str]:
        """The lines that hold the text, once there are so many."""
        while len(found := self.said(text)) < times:
            assert not self._is_read, self.lines
            await self._more.wait()
        return found

    def said(self, text: str) -> list[str]:
        """The lines so far that hold the text."""
        return [line for line in self.lines if text in line]


Program = TypeVar("Program", bound=ServerProcess)


@asynccontextmanager
async def serving_process(*, within: float = HANG_SECONDS, **sections: Any) -> AsyncIterator[ServerProcess]:
    """A server as a program, which is ended at the end of the block if it has not ended by then."""
    config = json.dumps({"server": {"port": 0}} | sections)
    async with serving_as(sys.executable, "-c", _PROGRAM, config, within=within) as server:
        yield server


@asynccontextmanager
async def serving_as(
    *command: str, within: float = HANG_SECONDS, kind: type[Program] = ServerProcess, **options: Any
) -> AsyncIterator[Program]:
    """A command that is a server, which is ended at the end of the block if it has not ended by then.

    Args:
        command: with its arguments.
        within: seconds the whole block may take.
        kind: the class of what is yielded.
        options: of ``subprocess.Popen``.
    """
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with trio.fail_after(within):
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(command, **streams, **options)
            async with ended(process):
                server = kind(process)
                nursery.start_soon(server.read_log)
                await server.wait_begun()
                yield server
                if process.returncode is None:
                    process.terminate()
                await process.wait()


@asynccontextmanager
async def ended(process: trio.Process) -> AsyncIterator[trio.Process]:
    """Sees to it that the process has ended at the end of the block, however that ends."""
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):  # a killed process ends
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()
