"""The thread that owns a log's connection to its database, and everything in it that must be in one order.

It takes all appends that wait, commits them together, and hands over what is new, its own and what other processes have
committed, in id order and each event once. It is woken by whoever has something for it: its own process or, through
``Wake``, another one; now and then it looks by itself. Nothing here knows of Trio.
"""

import os
import select
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from tricast.errors import LogUnavailable
from tricast.event import Draft, Event
from tricast.log.database import Answer, Batch, Behind, Database, Newest
from tricast.log.sqlite_file import in_words, is_busy, is_passing
from tricast.log.wake import Wake

#: How often it looks by itself: what others wrote whose wake-up cannot reach this process, and whether what was wrong
#: is over.
LOOK_SECONDS = 1.0
#: How often it looks for what is too old, at most and at least.
_TRIM_SECONDS = (1.0, 60.0)
#: What goes into one transaction: while it is written, whoever comes next waits.
#: All that a transaction adds is handed over in one turn, in which nobody else has one: 5 ms for so many. A batch that
#: is larger goes alone.
_MAX_GROUP_DRAFTS = 500
_MAX_GROUP_BYTES = 4 * 2**20
#: What a draft that waits takes beside its text: its objects, and their place in the batch.
_DRAFT_BYTES = 200
#: How long others may hold the lock while the log is unavailable already: those who publish then are told at once.
_SHORT_PATIENCE = 0.1

#: What databases and files fail with.
Failure = (sqlite3.Error, OSError, LogUnavailable)
#: What a job comes to: ids for an append, None for a look, or why not.
Result = Answer | LogUnavailable | None


class Job:
    """Something to do for a task that waits for it; a look around unless it has a batch.

    Args:
        batch: what to append.
        resolve: takes the result; called by whoever takes what the writer hands over, in his thread.

    Attributes:
        size: bytes of memory that it takes while it waits, about.
        is_begun: whether a look may have read already; what was committed before this is set, it will find.
    """

    __slots__ = ("batch", "is_begun", "resolve", "size")

    def __init__(self, batch: Batch | None, resolve: Callable[[Result], None]) -> None:
        self.batch = batch
        self.resolve = resolve
        self.is_begun = False
        self.size = sum(map(_size_of, batch.drafts)) if batch is not None else 0


def _size_of(draft: Draft) -> int:
    return _DRAFT_BYTES + len(draft.topic) + len(draft.type) + len(draft.data)


class Delivery(NamedTuple):
    """What is new.

    Attributes:
        skipped: the position from which on events are handed over, where some before it are not.
        events: in id order.
        upto: the position behind them.
        answers: what became of jobs, for after the events.
        has_more: whether there is more to be read, when whoever takes this has called ``Writer.look_again``.
    """

    skipped: int | None
    events: Sequence[Event]
    upto: int
    answers: Sequence[tuple[Job, Result]]
    has_more: bool = False


class Receiver(Protocol):
    """Who takes what the writer has to say. Everything is called through ``post``, in order."""

    def opened(self, newest: Newest, wake_failure: str | None) -> None:
        """The database is open; and why other processes cannot wake this one, if so."""

    def deliver(self, delivery: Delivery) -> None:
        """Something is new."""

    def changed(self, problem: str | None) -> None:
        """The log is unavailable, or not any more."""

    def ended(self, failure: str | None) -> None:
        """The thread ends: nothing more will come. It was asked to, or could not go on for this reason."""


class Writer:
    """See above. ``run`` is for the thread; everything else for the one that takes what it hands over.

    Args:
        open_database: opens the file; whether it may be made is said, and how to wait for a lock.
        path: the file.
        cache_size: the memory that the newest events may take, which are handed over at the beginning.
        patience: seconds to wait for a lock, while all is well.
        trim_period: seconds.
        post: calls a function in the receiver's thread, soon, and in order.
        receiver: takes what there is.
    """

    def __init__(
        self,
        open_database: Callable[[bool, Callable[[float], None]], Database],
        *,
        path: Path,
        cache_size: int,
        patience: float,
        trim_period: float,
        post: Callable[..., None],
        receiver: Receiver,
    ) -> None:
        self._open_database = open_database
        self._path = path
        self._cache_size = cache_size
        self._patience = patience
        self._trim_period = min(max(trim_period, _TRIM_SECONDS[0]), _TRIM_SECONDS[1])
        self._post = post
        self._receiver = receiver
        self._appends: deque[Job] = deque()
        self._looks: deque[Job] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._is_stopped = False
        # The thread's own:
        self._database: Database | None = None
        self._wake: Wake | None = None
        self._known = 0
        self._problem: str | None = None
        self._look_at = 0.0
        self._trim_at = 0.0

    # For the other thread

    def submit(self, job: Job) -> None:
        """Has a job done."""
        (self._looks if job.batch is None else self._appends).append(job)
        os.eventfd_write(self._bell, 1)

    def look_again(self) -> None:
        """Has the rest of what is new handed over."""
        self._look_at = 0.0
        os.eventfd_write(self._bell, 1)

    def stop(self) -> None:
        """Has the thread end, when what it is just doing is done."""
        self._is_stopped = True
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Gives back what is left when the thread has ended."""
        os.close(self._bell)

    # The thread

    def run(self) -> None:
        """Works until stopped."""
        failure: str | None = "its thread has failed"
        try:
            failure = self._run()
        finally:
            if self._database is not None:
                self._database.close()
            if self._wake is not None:
                self._wake.close()
            self._post(self._receiver.ended, failure)

    def _run(self) -> str | None:
        wake_failure = None
        try:
            database = self._database = self._open_database(True, self._pause)
            newest = database.newest(self._cache_size)
        except Failure as error:
            return in_words(error)
        try:
            self._wake = Wake(self._path.with_name(self._path.name + ".wake"))
            self._poll.register(self._wake.fileno(), select.POLLIN)
        except OSError as error:
            wake_failure = error.strerror
        self._known = newest.last
        self._post(self._receiver.opened, newest, wake_failure)
        while not self._is_stopped:
            self._turn()
            self._wait()
        return None

    def _wait(self) -> None:
        """Returns when there is something to do."""
        seconds = 0.0 if self._appends else max(self._look_at - time.monotonic(), 0.0)
        self._poll.poll(seconds * 1000)
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        if self._wake is not None and self._wake.clear():
            self._look_at = 0.0

    def _pause(self, seconds: float) -> None:
        """Waits for a lock: who holds it may well be one of those that wake this process when they are done."""
        if self._wake is None:
            time.sleep(seconds)
        elif self._wake.wait(seconds):
            self._look_at = 0.0  # or it may be that there is something new

    def _turn(self) -> None:
        """Does what there is to do, though not more than others should have to wait for."""
        group = self._take_group()
        if group:
            self._append(group)
        if self._looks or time.monotonic() >= self._look_at:
            self._look()
        if self._problem is None and time.monotonic() >= self._trim_at:
            self._trim()

    def _take_group(self) -> list[Job]:
        group: list[Job] = []
        drafts = size = 0
        while self._appends and size < _MAX_GROUP_BYTES:
            batch = self._appends[0].batch
            assert batch is not None
            drafts += len(batch.drafts)
            if group and drafts > _MAX_GROUP_DRAFTS:
                break
            group.append(self._appends.popleft())
            size += group[-1].size
        return group

    def _append(self, group: Sequence[Job]) -> None:
        """Appends batches together; where that fails, each by itself, so that none fails for another one's sake."""
        try:
            appended = self._usable().append([job.batch for job in group if job.batch is not None], self._known)
        except Failure as error:
            if len(group) == 1 or is_busy(error) or not isinstance(error, sqlite3.Error):
                self._unavailable(error)
                self._answer(group, error)
                return
        else:
            self._available()
            before = appended.before
            self._known = appended.upto
            answers = list(zip(group, appended.answers, strict=True))
            self._deliver(Delivery(before.skipped, [*before.events, *appended.events], appended.upto, answers))
            if self._wake is not None and appended.events:
                self._wake.wake_others()
            return
        for job in group:
            self._append([job])

    def _look(self) -> None:
        """Hands over what others have committed, and finds out whether what was wrong is over."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        looks = [self._looks.popleft() for _ in range(len(self._looks))]
        for look in looks:
            look.is_begun = True
        try:
            database = self._usable()
            behind: Behind = database.behind(self._known)
            if self._problem is not None:
                database.probe()
        except Failure as error:
            self._unavailable(error)
            self._answer(looks, error)
            return
        self._available()
        self._known = behind.upto
        if not behind.complete:
            self._looks.extend(looks)
            looks = []
        if behind.events or behind.skipped is not None or looks:
            answers: list[tuple[Job, Result]] = [(look, None) for look in looks]
            self._deliver(Delivery(behind.skipped, behind.events, behind.upto, answers, not behind.complete))

    def _trim(self) -> None:
        """Drops what is too old or too much, while there is nothing better to do."""
        try:
            while self._usable().trim():
                if self._appends:
                    return
        except Failure as error:
            self._unavailable(error)
        self._trim_at = time.monotonic() + self._trim_period

    def _usable(self) -> Database:
        """The database, opened again where it had to be closed."""
        if self._database is None:
            self._database = self._open_database(False, self._pause)
            self._database.be_patient(_SHORT_PATIENCE)
        return self._database

    def _available(self) -> None:
        if self._problem is not None:
            assert self._database is not None
            self._database.be_patient(self._patience)
            self._problem = None
            self._post(self._receiver.changed, None)

    def _unavailable(self, error: Exception) -> None:
        if self._database is not None:
            self._database.be_patient(_SHORT_PATIENCE)
            if not is_passing(error):
                self._database.close()
                self._database = None
        problem = in_words(error)
        if problem != self._problem:
            self._problem = problem
            self._post(self._receiver.changed, problem)

    def _answer(self, jobs: Sequence[Job], error: Exception) -> None:
        if jobs:
            self._deliver(Delivery(None, [], self._known, [(job, LogUnavailable(in_words(error))) for job in jobs]))

    def _deliver(self, delivery: Delivery) -> None:
        self._post(self._receiver.deliver, delivery)
