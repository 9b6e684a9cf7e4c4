"""A worker, in its own process: what it does beside serving is what its supervisor tells it.

Started as ``python -m tricast.workers.worker`` with its end of the pair as stdin.
"""

import fcntl
import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from tricast.access.uses import SharedUses
from tricast.config import Config, ServerTlsSection
from tricast.errors import ConfigError, TricastError, leaves
from tricast.logs import Logger, log_problems, program_logger
from tricast.metrics import Board, Noticeboards
from tricast.server import Server, Share, run_process
from tricast.workers.control import Accept, Begin, Control, Drain, Failed, Leaving, Ready, Renew, Retire

#: A worker that is replaced goes on for a moment after it has closed its doors: who came in last has not asked yet.
_LAST_ARRIVALS_SECONDS = 1.0


class _Worker:
    """This process.

    Args:
        begin: what it was told first.
        control: its end of the pair.
    """

    def __init__(self, begin: Begin, control: Control) -> None:
        self._begin = begin
        self._control = control
        self._config = Config.model_validate(msgspec.json.decode(begin.config))
        self._listeners = [_sockets_of(fds) for fds in begin.listeners]
        self._boards = Noticeboards(begin.worker, begin.restarts, [Board(_private(fd)) for fd in begin.boards])
        self._is_orphaned = False
        self._logger: Logger = program_logger(self._config.logging).bind(worker=begin.worker)

    async def run(self) -> int:
        """Serves until it is told to end; returns the exit code."""
        share = Share(
            self._listeners[self._begin.worker],
            [listener for group in self._listeners for listener in group],
            _sockets_of(self._begin.admin_listeners),
            self._boards,
            Path(self._begin.folder) if self._begin.folder else None,
            SharedUses(_private(self._begin.tickets)),
        )
        folder = _hold(self._begin.folder) if self._begin.folder else None
        lines: list[str] = []
        try:
            await run_process(self._config, self._logger, self._begun, share=share)
        except* (TricastError, OSError) as group:
            lines = [line for error in leaves(group) for line in _in_lines(error)]
        except* Exception:
            self._logger.exception("worker failed")
            lines = ["it failed, as its own log says"]
        if folder is not None and self._is_orphaned:
            _remove_if_last(self._begin.folder, folder)
        if lines:
            self._control.tell(Failed(lines))
        return 1 if lines else 0

    async def _begun(self, server: Server, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._obey, server)
        nursery.start_soon(self._tell_of_drain, server)
        self._control.tell(Ready())

    async def _tell_of_drain(self, server: Server) -> None:
        await server.wait_drain_asked()
        self._control.tell(Leaving())

    async def _obey(self, server: Server) -> None:
        while (message := await self._control.next()) is not None:
            if isinstance(message, Accept):
                server.accept_from([listener for number in message.workers for listener in self._listeners[number]])
            elif isinstance(message, Renew):
                self._renew(server, message)
            elif isinstance(message, Retire):
                await self._retire(server)
            elif isinstance(message, Drain) and not server.is_draining:
                self._logger.info("draining", connections=server.connections)
                server.drain()
        self._is_orphaned = True
        self._logger.warning("draining: the supervisor is gone", connections=server.connections)
        server.drain()

    def _renew(self, server: Server, renewal: Renew) -> None:
        try:
            server.renew_certificate(ServerTlsSection.model_validate(msgspec.json.decode(renewal.tls)))
        except ConfigError as error:  # the supervisor could use it, so the files have changed meanwhile
            log_problems(self._logger, "certificate not renewed, the one before stays", error)

    async def _retire(self, server: Server) -> None:
        self._boards.withdraw()
        server.close_doors()
        await trio.lowlevel.checkpoint()  # those who accept stop at their next one
        self._control.tell(Leaving())
        await trio.sleep(_LAST_ARRIVALS_SECONDS)
        if not server.is_draining:
            self._logger.info("draining: replaced by another", pid=os.getpid(), connections=server.connections)
            server.drain()


def _sockets_of(fds: Sequence[int]) -> list[socket.socket]:
    return [socket.socket(fileno=_private(fd)) for fd in fds]


def _private(fd: int) -> int:
    """The descriptor, which programs that handlers start do not get."""
    os.set_inheritable(fd, False)
    return fd


def _hold(folder: str) -> int:
    """Shows, as long as this process lives, that somebody uses the folder."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


def _remove_if_last(folder: str, held: int) -> None:
    """Removes the folder, unless another worker holds it still; in whatever order they come, the last one does it."""
    with suppress(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def _in_lines(error: Exception) -> list[str]:
    if isinstance(error, OSError):
        return [" ".join(filter(None, (error.strerror or str(error), error.filename)))]
    return str(error).splitlines()


def _take_stdin() -> socket.socket:
    """The socket that stdin is; from then on stdin is empty."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return control


def _disregard(*_: object) -> None:
    """Takes a signal as if it had not come. Unlike SIG_IGN this is not inherited by what handlers start."""


async def _work() -> int:
    control = Control(_take_stdin())
    begin = await control.next()
    if not isinstance(begin, Begin):  # the supervisor is gone already
        return 1
    sys.path[:] = begin.path
    return await _Worker(begin, control).run()


if __name__ == "__main__":
    # SIGINT counts only while there is something to end, and SIGHUP is for the supervisor.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _disregard)
    sys.exit(trio.run(_work))
