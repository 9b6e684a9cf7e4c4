"""One worker as its supervisor sees it: a process that begins, serves, and is seen out."""

import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from tricast.logs import Logger
from tricast.workers.control import Accept, Begin, Control, Drain, Failed, Leaving, Message, Ready, Renew, Retire

#: How long a worker may take until it is ready.
_START_SECONDS = 60.0
#: How much longer than its drain a worker may take to end; for some of that it goes on before it drains.
_MARGIN_SECONDS = 5.0
#: How long it may take to end when it was told to end at once.
_HURRY_SECONDS = 2.0
#: How long it may take to close its doors when another has taken its place.
_CLOSE_SECONDS = 5.0
_REAP_SECONDS = 5.0


class Worker:
    """One process.

    Args:
        begin: what it is told first.
        drain_seconds: how long it may drain.
        logger: where to log.

    Attributes:
        number: its number.
        pid: its process; 0 before that is there.
        left: set when it is not to let in anybody more: it has ended, or was told to.
        closed: set when it lets in nobody more: it has ended, or has said so.
        ended: set when the process has ended.
        exit_code: how: the exit code, or the negative number of the signal.
        lines: why it could not begin, if it said so.
        is_leaving: whether it has said that it goes down.
    """

    def __init__(self, begin: Begin, drain_seconds: float, logger: Logger) -> None:
        self.number = begin.worker
        self.pid = 0
        self.left = trio.Event()
        self.closed = trio.Event()
        self.ended = trio.Event()
        self.exit_code: int | None = None
        self.lines: Sequence[str] = ()
        self.is_leaving = False
        self._begin = begin
        self._drain_seconds = drain_seconds
        self._logger = logger
        self._ready_at: float | None = None
        self._decided = trio.Event()
        self._accepts_from = [begin.worker]
        self._due: dict[type[Message], Message] = {}  # what it is to be told: of each kind the last word counts
        self._is_to_be_told = trio.Event()
        self._life = trio.CancelScope()
        self._seeing_out = trio.CancelScope()
        self._process: trio.Process | None = None
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = Control(ours)

    @property
    def is_accepting(self) -> bool:
        """Whether it lets clients in."""
        return self._ready_at is not None and not self.left.is_set()

    @property
    def lived(self) -> float:
        """Seconds since it was ready; 0 when it never was."""
        return 0.0 if self._ready_at is None else trio.current_time() - self._ready_at

    async def run(self) -> None:
        """Starts the process, and returns when it has ended. Cancelling kills it."""
        try:
            with self._life:
                await self._start()
                if self._process is not None:
                    await self._attend(self._process)
        finally:
            self._signal(signal.SIGKILL)
            # A killed process ends, but for one that the kernel holds up.
            with trio.move_on_after(_REAP_SECONDS, shield=True):
                if self._process is not None:
                    self.exit_code = await self._process.wait()
            self._control.close()
            for event in (self.left, self.closed, self.ended, self._decided):
                event.set()

    async def wait_ready(self) -> bool:
        """Returns whether it is ready, once it is or cannot be any more; kills it when it takes too long."""
        with trio.move_on_after(_START_SECONDS):
            await self._decided.wait()
        if not self._decided.is_set():
            self.lines = [f"it was not ready within {_START_SECONDS:g} s"]
            self._life.cancel()
            await self.ended.wait()
        return self.is_accepting

    def accept_from(self, numbers: list[int]) -> None:
        """Lets it accept from the listeners of these workers."""
        if numbers != self._accepts_from:
            self._accepts_from = numbers
            self._due[Accept] = Accept(numbers)
            self._tell()

    def renew(self, renewal: Renew) -> None:
        """Lets it show another certificate; one that is not ready yet is told when it is."""
        self._due[Renew] = renewal
        if self._ready_at is not None:
            self._tell()

    async def retire(self) -> None:
        """Lets it drain and end, because another is there in its place; it may have ended already.

        Returns when it lets in nobody any more, or is too busy to say so.
        """
        if not self.ended.is_set():
            self._control.tell(Retire())
            self.left.set()
            with trio.move_on_after(_CLOSE_SECONDS):
                await self.closed.wait()

    def drain(self) -> None:
        """Lets it drain and end, unless it does so already."""
        if not self.left.is_set():
            # Before it is ready nobody listens there, and a process without connections may just end.
            if not self.is_accepting or not self._control.tell(Drain()):
                self._signal(signal.SIGTERM)
            self.left.set()

    def hurry(self) -> None:
        """Lets it end at once."""
        # Not SIGTERM: that comes to each process of a service when it is stopped, which says nothing twice.
        self._signal(signal.SIGKILL if self._ready_at is None else signal.SIGINT)
        self.left.set()
        self._seeing_out.deadline = min(self._seeing_out.deadline, trio.current_time() + _HURRY_SECONDS)

    async def _start(self) -> None:
        begin = self._begin
        listeners = [fd for each in begin.listeners for fd in each]
        with self._theirs:
            try:
                self._process = await trio.lowlevel.open_process(
                    [sys.executable, *_safe_path(), "-m", "tricast.workers.worker", str(self.number)],
                    stdin=self._theirs.fileno(),
                    pass_fds=[*listeners, *begin.admin_listeners, *begin.boards, begin.tickets],
                    # So that Ctrl-C in a terminal reaches the supervisor alone, which then decides.
                    start_new_session=True,
                )
                self.pid = self._process.pid
                self._control.tell(begin)
            except OSError as error:
                self.lines = [f"cannot start a process: {error.strerror or error}"]
                self._life.cancel()

    async def _attend(self, process: trio.Process) -> None:
        if self.left.is_set():  # it was told to before there was a process
            self._signal(signal.SIGTERM)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._see_out, process)
            nursery.start_soon(self._tell_later)
            await self._listen()
            # Its end of the pair is closed, so it has ended, or is about to.
            await process.wait()
            nursery.cancel_scope.cancel()

    def _tell(self) -> None:
        if not self._tell_what_is_due():
            self._is_to_be_told.set()

    def _tell_what_is_due(self) -> bool:
        """Returns whether it knows all."""
        for kind, message in [*self._due.items()]:
            if not self._control.tell(message):
                return False
            del self._due[kind]
        return True

    async def _tell_later(self) -> None:
        """Tells what there was no room for as soon as there is some: it may only have been busy, or stopped."""
        while True:
            await self._is_to_be_told.wait()
            self._is_to_be_told = trio.Event()
            while not self._tell_what_is_due():
                await self._control.wait_room()

    async def _listen(self) -> None:
        while (message := await self._control.next()) is not None:
            if isinstance(message, Ready):
                self._ready_at = trio.current_time()
                self._is_to_be_told.set()
                self._decided.set()
            elif isinstance(message, Leaving):
                self.is_leaving = True
                self.left.set()
                self.closed.set()
            elif isinstance(message, Failed):
                self.lines = message.lines

    async def _see_out(self, process: trio.Process) -> None:
        await self.left.wait()
        self._seeing_out.deadline = min(
            self._seeing_out.deadline, trio.current_time() + self._drain_seconds + _MARGIN_SECONDS
        )
        with self._seeing_out:
            await trio.sleep_forever()
        self._logger.warning("worker killed, it did not end in time", worker=self.number, pid=self.pid)
        process.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


def _safe_path() -> list[str]:
    """Keeps modules in the current folder from standing in for Python's, unless Tricast itself is found there."""
    folder_of_package = Path(__file__).parents[2]
    return [] if folder_of_package == Path.cwd() else ["-P"]
