"""A server program of somebody else's: how it is started, waited for, disturbed and ended."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
#: Seconds a program may take to get ready, on a machine that has much else to do.
START_SECONDS = 300.0
#: Seconds a program may take to end when told to; then it is killed.
STOP_SECONDS = 10.0
#: Seconds from one look to the next: as soon as may be where it takes milliseconds, and not all the time where seconds.
_SOONEST, _LATEST = 0.005, 0.05
_LAST_LINES = 15
#: Runs the command behind it when a line is read: what does not run before it is guarded cannot be left behind, however
#: soon its starter is killed.
_WHEN_TOLD = ("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh")


class NotStarted(Exception):
    """A program has ended, or was not ready in time; the message has the last that it said."""


def wait_until(is_so: Callable[[], bool], what: str, within: float = START_SECONDS) -> None:
    """Returns when it is so.

    Raises:
        TimeoutError: it was not within so many seconds; the message is what was waited for.
    """
    begin = time.monotonic()
    while not is_so():
        waited = time.monotonic() - begin
        if waited > within:
            raise TimeoutError(f"waited {within:.0f} s for {what}")
        time.sleep(min(max(_SOONEST, waited / 20), _LATEST))


class Port:
    """A port of 127.0.0.1 that the kernel gives to nobody else until it is released, whether a program listens or not.

    A socket that is bound and does not listen keeps the port from being handed out, but does not hinder a program that
    sets SO_REUSEADDR before it binds, as all servers do (socket(7)).
    """

    def __init__(self) -> None:
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind((HOST, 0))
        self.number: int = self._holder.getsockname()[1]

    def release(self) -> None:
        """Anybody may have it."""
        self._holder.close()


class _Guard:
    """The process that kills what this one leaves behind, should this one be killed."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
        self._lock = threading.Lock()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        atexit.register(self._process.communicate)

    def tell(self, sign: str, pid: int) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(f"{sign}{pid}\n")
            self._process.stdin.flush()


@cache
def _guard() -> _Guard:
    return _Guard()


def guard(pid: int) -> None:
    """A process group that is killed should this process be."""
    _guard().tell("+", pid)


def unguard(pid: int) -> None:
    """It has ended, or is let go."""
    _guard().tell("-", pid)


class Service(ABC):
    """What runs in a folder of its own; as a context manager, for as long as the block lasts.

    Everything here blocks: Redis takes milliseconds to start, Kafka seconds.

    Attributes:
        folder: configuration, data and logs.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Makes the folder.

        Args:
            folder: one that stays when the service is closed; otherwise a temporary one.
        """
        self._keeps_folder = folder is not None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="tricast-"))
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    @abstractmethod
    def url(self) -> str:
        """For ``tricast serve --log-url``."""

    @property
    @abstractmethod
    def daemons(self) -> Sequence["Daemon"]:
        """The programs that it consists of."""

    @abstractmethod
    def start(self) -> None:
        """Starts what is not running, and returns when it is ready.

        Raises:
            NotStarted: a program has ended, or was not ready in time and killed.
        """

    def stop(self) -> None:
        """Has it end in order, and returns when it has; a program that takes too long is killed."""
        for daemon in self.daemons:
            daemon.terminate()
        for daemon in self.daemons:
            daemon.stop()

    def kill(self) -> None:
        """Has it end at once, as SIGKILL does, and returns when it has."""
        for daemon in self.daemons:
            daemon.kill()

    def pause(self) -> None:
        """Holds it with SIGSTOP: it keeps its connections, and is silent."""
        for daemon in self.daemons:
            daemon.pause()

    def resume(self) -> None:
        """Lets it go on with SIGCONT."""
        for daemon in self.daemons:
            daemon.resume()

    def wipe(self) -> None:
        """Removes its data while it is not running; the configuration stays."""
        for daemon in self.daemons:
            daemon.wipe()

    def restart(self, *, keep_data: bool = True) -> None:
        """Starts it again at the same ports, after stopping it in order if it is running.

        Args:
            keep_data: otherwise it forgets all that it was told, as with a disk that was lost.
        """
        self.stop()
        if not keep_data:
            self.wipe()
        self.start()

    def leave(self) -> list[int]:
        """Lets it go on when this process has ended; returns the process ids of its programs."""
        return [pid for daemon in self.daemons for pid in daemon.leave()]

    def close(self) -> None:
        """Ends it, in order if its folder stays; a temporary folder is removed."""
        if self._keeps_folder:
            self.stop()
        else:
            self.kill()
        for daemon in self.daemons:
            daemon.free_port()
        if not self._keeps_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Daemon(Service):
    """A program in a process group of its own.

    Attributes:
        port: where it listens, on 127.0.0.1, also after a restart.
        is_paused: it is held until it is resumed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self._port = Port()
        self._process: subprocess.Popen[bytes] | None = None
        self.is_paused = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in messages."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The command that runs it in the foreground, with the folder as the working directory."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it does what it is for."""

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self.port}"

    @property
    def daemons(self) -> Sequence["Daemon"]:
        return [self]

    @property
    def pid(self) -> int:
        """Of the running program."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has said so far."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def launch(self) -> None:
        """Starts it, without waiting for it."""
        assert not self.is_running, f"{self.name} is running"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_WHEN_TOLD, *self.command()],
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        guard(self.pid)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as told:
            told.write(b"\n")

    def wait_ready(self) -> None:
        """Returns when it is ready.

        Raises:
            NotStarted: it has ended, or is not ready in time, and was killed.
        """
        try:
            wait_until(lambda: not self.is_running or self.is_ready(), f"{self.name} to get ready")
        except TimeoutError as error:
            self.kill()
            raise NotStarted(self._tell(str(error))) from error
        except BaseException:
            self.kill()
            raise
        if not self.is_running:
            status = self._end()
            raise NotStarted(self._tell(f"{self.name} ended with status {status}"))

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def terminate(self) -> None:
        """Tells it to end, without waiting until it has."""
        self.resume()
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        if self._process is not None:
            self.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._end()

    def kill(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
        self._end()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        self.is_paused = True

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self.is_paused = False

    @abstractmethod
    def wipe(self) -> None: ...

    def leave(self) -> list[int]:
        pid = self.pid
        assert self._process is not None
        unguard(pid)
        self._process.returncode = 0  # not for us to wait for
        self._process = None
        self.free_port()
        return [pid]

    def free_port(self) -> None:
        """Lets others have its port from now on."""
        self._port.release()

    def _signal(self, number: signal.Signals) -> None:
        if self.is_running:
            os.killpg(self.pid, number)

    def _end(self) -> int | None:
        """The status with which it has ended; None when it was not running."""
        if self._process is None:
            return None
        status = self._process.wait()
        unguard(self._process.pid)
        self._process = None
        self.is_paused = False
        return status

    def _tell(self, what: str) -> str:
        return "\n".join([f"{what}; its last lines:", *self.log.splitlines()[-_LAST_LINES:]])
