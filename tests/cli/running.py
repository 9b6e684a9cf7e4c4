"""Running the real command, and reading what it says line by line."""

import re
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial

import trio
from click.testing import CliRunner
from clocks import HANG_SECONDS

from tricast.cli import cli

COMMAND = [sys.executable, "-m", "tricast"]


class Lines:
    """The lines of a pipe."""

    def __init__(self, pipe: trio.abc.ReceiveStream) -> None:
        self._pipe = pipe
        self._rest = b""

    async def next(self) -> str:
        """The next line without its end; what is left at the end of the file."""
        while b"\n" not in self._rest:
            if not (data := await self._pipe.receive_some(65536)):
                break
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def until(self, text: str) -> str:
        """Passes over lines, up to the one that holds the text."""
        while text not in (line := await self.next()):
            assert line, f"it ended without {text!r}"
        return line

    async def rest(self) -> str:
        """Everything to the end of the file."""
        data, self._rest = self._rest, b""
        async for chunk in self._pipe:
            data += chunk
        return data.decode()


class Running:
    """A command that runs."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.stdin = process.stdin
        self.out = process.stdout and Lines(process.stdout)
        self.err = process.stderr and Lines(process.stderr)

    async def end(self) -> tuple[int, str, str]:
        """Waits for its end; returns the exit code and the rest of stdout and stderr."""
        rest = {}

        async def drain(name: str, lines: Lines) -> None:
            rest[name] = await lines.rest()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, "out", self.out)
            nursery.start_soon(drain, "err", self.err)
        return await self.process.wait(), rest["out"], rest["err"]


@asynccontextmanager
async def running(*args: str, **options: object):
    """The command with these arguments, gone at the end of the block."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    process = await trio.lowlevel.open_process([*COMMAND, *args], **streams)
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            await trio.aclose_forcefully(pipe)


async def run(*args: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Runs the command to its end; returns its exit code, stdout and stderr."""
    with trio.fail_after(HANG_SECONDS):
        done = await trio.run_process(
            [*COMMAND, *args], stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def run_here(*args: str) -> tuple[int, str, str]:
    """The same in a thread of this process, where no signal and no pipe matters: a start costs most of a second."""
    done = await trio.to_thread.run_sync(partial(CliRunner().invoke, cli, args))
    return done.exit_code, done.stdout, done.stderr


@asynccontextmanager
async def serving_command(*args: str, port: int = 0):
    """``tricast serve`` on a free port; yields it and its URL."""
    async with running("serve", "--port", str(port), *args) as server:
        line = await server.err.next()
        assert re.search("listening on https?://127.0.0.1:", line)
        yield server, line.partition("listening on ")[2].strip()
