"""The supervisor: starts workers, replaces those that die, reloads, and brings all of them down.

It serves nobody itself. What it holds for as long as it lives are the listening sockets of all workers, so that clients
wait in their queues rather than being turned away when a worker is not there.
"""

import json
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack

import msgspec
import trio

from tricast.access.uses import SharedUses
from tricast.certificates import Encryption, load_encryption, successor_of
from tricast.config import Config, differences
from tricast.descriptors import raise_soft_limit
from tricast.errors import ConfigError, WorkerFailed
from tricast.listeners import url_of
from tricast.listening import announce, listen, listen_in_groups, set_options
from tricast.log_urls import MEMORY_URL, SQLITE_URL
from tricast.logs import Logger, log_problems, program_logger
from tricast.metrics import POST_SECONDS, Board
from tricast.service_manager import ServiceManager
from tricast.stores import announce_log
from tricast.terminal import Terminal
from tricast.workers.control import Begin, Renew
from tricast.workers.process import Worker

#: A worker that lived for so long has not died of what the one before died of.
_STEADY_SECONDS = 30.0
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
#: How long to wait before anything is done about a worker that goes down by itself: when all processes of a service are
#: told to, that is who may be heard of first.
_ALL_TOLD_SECONDS = 0.5
#: A worker that left no numbers for so long does not get around to it, and so to nothing else.
_LONGEST_SILENCE = 5 * POST_SECONDS
_PRIVATE_LOG = "log.db"
#: What a reload cannot change, for the supervisor has it open or all workers must have the same.
_FIXED = (
    ("server", "host"),
    ("server", "port"),
    ("server", "unix_mode"),
    ("server", "workers"),
    ("admin", "enabled"),
    ("admin", "host"),
    ("admin", "port"),
    ("log", "url"),
)


class Backoff:
    """How long to wait before a worker is replaced that died.

    Args:
        randomness: for jitter.
    """

    def __init__(self, randomness: random.Random) -> None:
        self._random = randomness
        self._deaths = 0

    def next_delay(self, lived: float) -> float:
        """The seconds to wait after a worker that lived for so long: none at first, then ever more."""
        self._deaths = 1 if lived >= _STEADY_SECONDS else self._deaths + 1
        if self._deaths == 1:
            return 0.0
        longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._deaths - 2, 10))
        return longest * self._random.uniform(0.5, 1.0)


class Supervisor:
    """Several processes that are one server.

    Args:
        config: the configuration.
        count: how many processes.
        logger: where to log; the default is stderr.
        reload: loads the configuration again.
    """

    def __init__(self, config: Config, count: int, *, logger: Logger | None, reload: Callable[[], Config]) -> None:
        self._config = config
        self._count = count
        self._configs = [config] * count  # by number; the same for all but during a reload, or after one went wrong
        self._own_logger = logger
        self._logger = self._logger_for(config)
        self._reload = reload
        self._reload_asked = trio.Event()
        self._down = trio.Event()
        self._random = random.Random()  # noqa: S311 - jitter
        self._restarts = [0] * count
        self._workers: list[Worker] = []  # by number: the newest that was ready, or is to replace one that died
        self._alive: dict[Worker, None] = {}
        self._folder = ""
        self._ticket_secret = secrets.token_urlsafe(32)

    async def run(self) -> None:
        """Supervises until it is told to go down and all processes have ended. Cancelling kills them.

        Raises:
            WorkerFailed: a worker could not begin.
            OSError: a listener's address cannot be had.
        """
        limits = raise_soft_limit()
        terminal = Terminal()
        signals_of = trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with signals_of as signals, ExitStack() as at_the_end, ExitStack() as doors:
            self._manager = at_the_end.enter_context(ServiceManager.take(os.environ, os.getpid(), self._logger))
            await self._open(at_the_end, doors)
            async with trio.open_nursery() as processes:
                self._processes = processes
                processes.start_soon(self._obey, signals, terminal)
                await self._supervise(limits)
                self._manager.stopping(self._config.drain.seconds)
                doors.close()
                for worker in self._alive:
                    worker.drain()
                while self._alive:
                    await next(iter(self._alive)).ended.wait()
                processes.cancel_scope.cancel()
        self._logger.info("stopped")

    async def _open(self, at_the_end: ExitStack, doors: ExitStack) -> None:
        config = self._config
        server, admin = config.server, config.admin
        self._encryption = load_encryption(config.tls)
        self._listeners = await listen_in_groups(doors, server.host, server.port, config, groups=self._count)
        self._admin_listeners = await listen(doors, admin.host, admin.port, config) if admin.enabled else []
        self._board_fds = [Board.create(number) for number in range(self._count)]
        for fd in self._board_fds:
            at_the_end.callback(os.close, fd)
        self._tickets_fd = SharedUses.create(config.auth.max_tickets)
        at_the_end.callback(os.close, self._tickets_fd)
        at_the_end.callback(self._remove_folder)
        self._make_folder_for(config)

    def _make_folder_for(self, config: Config) -> None:
        """Makes the folder, where there is none yet, that workers with this configuration have to share.

        Raises:
            WorkerFailed: there is no place for it.
        """
        if not self._folder and (config.log.url == MEMORY_URL or config.auth.is_on):
            self._folder = _private_folder()

    def _remove_folder(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _supervise(self, limits: tuple[int, int]) -> None:
        """Has as many workers as there should be, until it is told to go down."""
        async with trio.open_nursery() as policy:
            policy.start_soon(self._begin_all, policy, limits)
            await self._down.wait()
            policy.cancel_scope.cancel()

    async def _begin_all(self, policy: trio.Nursery, limits: tuple[int, int]) -> None:
        self._workers = [self._start(number, self._config) for number in range(self._count)]
        failed = await _first_to_fail(self._workers)
        if failed is not None:
            if failed.exit_code == -signal.SIGTERM:
                await trio.sleep(_ALL_TOLD_SECONDS)
            raise WorkerFailed(failed.lines or [f"worker {failed.number} could not begin: {_end_of(failed)}"])
        announce(self._listeners[0], self._admin_listeners, self._config, self._logger)
        before, after = limits
        raised = {} if before == after else {"raised_from": before}
        self._logger.info("workers", count=self._count, pids=[worker.pid for worker in self._workers])
        self._logger.info("descriptors of each worker", limit=after, **raised)
        if self._config.log.url == MEMORY_URL:
            self._logger.info(
                f"log.url is {MEMORY_URL}, which several workers cannot share: "
                "events are kept in a temporary folder and are gone when the server ends",
                folder=self._folder,
            )
        else:
            announce_log(self._config, self._logger)
        for number in range(self._count):
            policy.start_soon(self._keep, number)
        self._tell_ready()
        self._processes.start_soon(self._manager.keep_watched, self._ailment)
        policy.start_soon(self._reload_when_asked)

    def _start(self, number: int, config: Config) -> Worker:
        # As Python has it: a duration as text would be rounded.
        settings = config.model_dump()
        if config.log.url == MEMORY_URL:
            settings["log"] |= {"url": f"{SQLITE_URL}{self._folder}/{_PRIVATE_LOG}", "synchronous": "off"}
        if config.auth.is_on and not config.auth.ticket_secret:
            settings["auth"] |= {"ticket_secret": self._ticket_secret}
        begin = Begin(
            worker=number,
            restarts=self._restarts[number],
            config=msgspec.Raw(json.dumps(settings).encode()),
            path=sys.path,
            listeners=[[listener.fileno() for listener in group] for group in self._listeners],
            admin_listeners=[listener.fileno() for listener in self._admin_listeners],
            boards=self._board_fds,
            folder=self._folder,
            tickets=self._tickets_fd,
        )
        worker = Worker(begin, config.drain.seconds, self._logger_for(config))
        self._alive[worker] = None
        self._processes.start_soon(self._run, worker)
        return worker

    async def _run(self, worker: Worker) -> None:
        try:
            await worker.run()
        finally:
            del self._alive[worker]

    def _logger_for(self, config: Config) -> Logger:
        return self._own_logger if self._own_logger is not None else program_logger(config.logging)

    # Whoever supervises the supervisor

    def _tell_ready(self) -> None:
        has_tls = self._config.tls.certificate != ""
        urls = [url_of(listener, has_tls=has_tls) for listener in self._listeners[0]]
        self._manager.ready(f"{self._count} workers, listening on {', '.join(urls)}")

    def _ailment(self) -> str:
        """What is wrong with the workers, in words; empty for nothing.

        One that died is being replaced, and the others serve its clients meanwhile. But those of one that hangs wait.
        """
        if self._down.is_set():
            return ""  # to go down takes as long as it may, and no longer
        accepting = [worker for worker in self._workers if worker.is_accepting]
        if not accepting:
            return "no worker accepts connections"
        for worker in accepting:
            silence = self._silence_of(worker)
            if silence > max(_LONGEST_SILENCE, self._manager.watchdog / 2):
                return f"worker {worker.number} hangs: it has not told its numbers for {silence:.0f} s"
        return ""

    def _silence_of(self, worker: Worker) -> float:
        notice = Board(self._board_fds[worker.number]).read()
        if notice is None or notice.pid != worker.pid:
            return worker.lived
        return time.monotonic() - notice.posted

    # Workers that die

    async def _keep(self, number: int) -> None:
        """Replaces the worker of this number whenever it dies or goes down by itself."""
        backoff = Backoff(self._random)
        while True:
            worker = self._workers[number]
            await worker.left.wait()
            if self._workers[number] is not worker:
                continue
            self._share_out()
            await self._wait_until_due(worker, backoff)
            if self._workers[number] is not worker:
                continue
            successor = self._workers[number] = self._start(number, self._configs[number])
            if await successor.wait_ready():
                self._share_out()
                await worker.retire()
                self._logger.info("worker replaced", worker=number, pid=successor.pid)

    async def _wait_until_due(self, worker: Worker, backoff: Backoff) -> None:
        """Returns when it is time to replace the worker, which has left or died."""
        about = {"worker": worker.number, "pid": worker.pid}
        if worker.is_leaving:
            await trio.sleep(_ALL_TOLD_SECONDS)
            if self._workers[worker.number] is worker:
                self._logger.warning("worker goes down, which its supervisor did not ask for", **about)
            return
        delay = backoff.next_delay(worker.lived)
        why = {"problem": "; ".join(worker.lines)} if worker.lines else {}
        self._logger.error(f"worker died: {_end_of(worker)}", **why, **about, again_in=f"{delay:.1f}s")
        Board(self._board_fds[worker.number]).wipe()
        self._restarts[worker.number] += 1
        await trio.sleep(delay)

    def _share_out(self) -> None:
        """Lets those who are there accept also from the listeners of those who are not."""
        accepting = [worker for worker in self._workers if worker.is_accepting]
        if not accepting:
            return
        shares = {worker: [worker.number] for worker in accepting}
        orphans = [worker.number for worker in self._workers if not worker.is_accepting]
        for index, number in enumerate(orphans):
            shares[accepting[index % len(accepting)]].append(number)
        for worker, numbers in shares.items():
            worker.accept_from(numbers)

    # Reloading

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked = trio.Event()
            self._manager.reloading()
            await self._reload_once()
            self._tell_ready()

    async def _reload_once(self) -> None:
        loaded = self._load_again()
        if loaded is None or self._renew_only(*loaded):
            return
        config, encryption = loaded
        self._logger.info("reloading")
        for number in range(self._count):
            problem = await self._replace(number, config)
            if problem:
                changed = [*range(number)]
                about = {"set_back": changed} if changed else {}
                self._logger.error("not reloaded: a worker could not begin", worker=number, problem=problem, **about)
                await self._set_back(changed)
                return
        self._config, self._encryption = config, encryption
        self._logger = self._logger_for(config)
        for listener in (listener for group in (*self._listeners, self._admin_listeners) for listener in group):
            set_options(listener, config)
        self._logger.info("reloaded", pids=[worker.pid for worker in self._workers])

    def _load_again(self) -> tuple[Config, Encryption | None] | None:
        """The configuration as it is to be now, and the certificate; None, and all problems told, when it is wrong."""
        try:
            config = self._with_what_is_fixed(self._reload())
            encryption = successor_of(self._encryption, config.tls, time.time())
            self._make_folder_for(config)
        except ConfigError as error:
            log_problems(self._logger, "not reloaded: the configuration is wrong", error)
        except WorkerFailed as error:
            for line in error.lines:
                self._logger.error("not reloaded", problem=line)  # noqa: TRY400 - it says all
        else:
            return config, encryption
        return None

    def _renew_only(self, config: Config, following: Encryption | None) -> bool:
        """Has the workers show another certificate, where that is all that has changed; returns whether it is."""
        before, changed = self._encryption, differences(self._config, config)
        if before is None or following is None or not all(key.startswith("tls.") for key in changed):
            return False
        if before.fingerprint == following.fingerprint and not changed:
            return False
        self._encryption = following
        self._config = config
        self._configs = [config] * self._count
        renewal = Renew(msgspec.Raw(json.dumps(config.tls.model_dump()).encode()))
        for worker in self._alive:
            worker.renew(renewal)
        self._logger.info("certificate renewed, without replacing the workers")
        return True

    async def _set_back(self, numbers: Sequence[int]) -> None:
        """Gives these workers the configuration that the others have still."""
        for number in numbers:
            problem = await self._replace(number, self._config)
            if problem:
                self._logger.error(
                    "this worker has the new configuration, the others the old one: it could not be set back",
                    worker=number,
                    problem=problem,
                )

    async def _replace(self, number: int, config: Config) -> str:
        """Puts a worker with another configuration in the place of one; returns why that did not work, else ""."""
        worker = self._start(number, config)
        if not await worker.wait_ready():
            return "; ".join(worker.lines) or _end_of(worker)
        before, self._workers[number] = self._workers[number], worker
        self._configs[number] = config
        self._share_out()
        await before.retire()
        return ""

    def _with_what_is_fixed(self, asked: Config) -> Config:
        """The configuration that was asked for, but for what takes a restart."""
        fixed = list(_FIXED)
        if not asked.limits.send_buffer:  # once set it cannot be left to the kernel again
            fixed.append(("limits", "send_buffer"))
        for section, key in fixed:
            now = getattr(getattr(self._config, section), key)
            if getattr(getattr(asked, section), key) != now:
                self._logger.warning("not changed: that takes a restart", key=f"{section}.{key}")
                changed = getattr(asked, section).model_copy(update={key: now})
                asked = asked.model_copy(update={section: changed})
        return asked

    # Going down

    async def _obey(self, signals: AsyncIterator[int], terminal: Terminal) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP and not terminal.is_gone:
                self._reload_asked.set()
            elif not self._down.is_set():
                self._logger.info("draining", signal=name, workers=len(self._alive))
                self._down.set()
            elif number != signal.SIGHUP:  # the kernel and the shell may both tell that the terminal is gone
                self._logger.warning("ending at once", signal=name)
                for worker in self._alive:
                    worker.hurry()


async def _first_to_fail(workers: Sequence[Worker]) -> Worker | None:
    """Returns None once all are ready, or one that cannot be any more: what is wrong is mostly wrong with all."""
    failed: list[Worker] = []

    async def watch(worker: Worker) -> None:
        if not await worker.wait_ready():
            failed.append(worker)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(watch, worker)
    return failed[0] if failed else None


def _private_folder() -> str:
    """A folder for nobody else.

    Raises:
        WorkerFailed: there is no place for it.
    """
    try:
        return tempfile.mkdtemp(prefix="tricast-")
    except OSError as error:
        raise WorkerFailed([f"cannot make a temporary folder: {error.strerror or error}"]) from None


def _end_of(worker: Worker) -> str:
    """How the process ended, in words."""
    code = worker.exit_code
    if code is None:
        return "there was no process"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
