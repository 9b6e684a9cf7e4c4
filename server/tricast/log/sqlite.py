"""The log in a SQLite file: for several processes on one machine, and still there after a restart.

Every process that opens the file appends to it, and hands over what any of them appended, in one order. The newest
events are kept in memory as well, so that most of those who come back are answered without the file.

The database is used by threads: one that writes (see ``tricast.log.writer``), and a few that read for subscribers.
"""

import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
import trio

from tricast.errors import LogUnavailable, RemoteProtocolError
from tricast.event import BEGINNING, Draft, EventId, Position, TopicSet
from tricast.log.base import Committed, IdempotencyKey, Skipped, Slice, ignore
from tricast.log.database import Batch, Database, Newest, Retention, decode
from tricast.log.sqlite_file import in_words
from tricast.log.statistics import Statistics
from tricast.log.window import Window, unknown_position
from tricast.log.writer import LOOK_SECONDS, Delivery, Failure, Job, Result, Writer

#: Appends that wait for their turn; at a thousand commits a second, the last one waits for a few seconds.
_MAX_WAITING = 10_000
_MAX_WAITING_BYTES = 64 * 2**20
#: Reads of the file at the same time: more would compete for the interpreter, and not for the disk.
_READERS = 2
#: How long to wait for the thread at the end; it waits no longer than this for a lock itself.
_LAST_COMMIT_SECONDS = 15.0
#: Old events are dropped when they are this much older than they may be.
_TRIM_SHARE = 0.05


class SqliteLog:
    """See ``Log``.

    Args:
        path: the file; its folder has to be there.
        history: events kept per topic, at least.
        history_age: seconds after which an event is dropped.
        history_size: bytes in the file for all kept events, about; the oldest go first.
        cache_size: bytes of memory for the newest of them, about.
        synchronous: ``full``, ``normal`` or ``off``, as SQLite means it.
        clock: seconds since the epoch; only moves ids forward, so it may jump.
        logger: where to say that the log is unavailable, and that it is back.
        grace: seconds in which nothing is dropped from the file, so that every process gets to see it.
        patience: seconds to wait while another process holds the lock.
    """

    def __init__(
        self,
        path: Path,
        *,
        history: int,
        history_age: float,
        history_size: int,
        cache_size: int,
        synchronous: str,
        clock: Callable[[], float],
        logger: structlog.typing.FilteringBoundLogger,
        grace: float = 2.0,
        patience: float = 5.0,
    ) -> None:
        self._path = path
        self._retention = Retention(history, history_age, history_size, grace)
        self._cache_size = cache_size
        self._synchronous = synchronous
        self._clock = clock
        self._logger = logger
        self._patience = patience
        self._window = self._empty_window(BEGINNING)
        #: Where the file's log began.
        self._start = BEGINNING
        self._committed: Committed = ignore
        self._skipped: Skipped = ignore
        self._writer: Writer | None = None
        self._opened = trio.Event()
        self._ended = trio.Event()
        #: Around what goes on while the log is open.
        self._scope = trio.CancelScope()
        self._problem: str | None = None
        self._jobs: dict[Job, None] = {}
        self._appends_waiting = 0
        self._waiting_bytes = 0
        self._last_look: _Call | None = None
        self._idle_readers: list[Database] = []
        self._reading = trio.CapacityLimiter(_READERS)
        self._read_problem: str | None = None
        self._statistics = Statistics()

    @property
    def last_id(self) -> EventId:
        """See ``Log.last_id``: the newest position that was handed over in this process."""
        return self._window.last_id

    @property
    def waits(self) -> bool:
        """See ``Log.waits``: for a thread, and for the disk."""
        return True

    @property
    def problem(self) -> str | None:
        """See ``Log.problem``."""
        return self._problem

    @property
    def statistics(self) -> Statistics:
        """See ``Log.statistics``."""
        return self._statistics

    def shards_of(self, topics: TopicSet) -> None:
        """See ``Log.shards_of``: it has none."""

    @asynccontextmanager
    async def open(self, committed: Committed, skipped: Skipped | None = None) -> AsyncIterator[None]:
        """See ``Log.open``. Cancelling it waits for the transaction that is being written.

        Raises:
            LogUnavailable: the file cannot be used; or, what is in the scope being cancelled, the thread has ended.
        """
        self._committed, self._skipped = committed, skipped or ignore
        self._opened, self._ended = trio.Event(), trio.Event()
        scope = self._scope = trio.CancelScope()
        self._problem = None
        self._last_look = None
        token = trio.lowlevel.current_trio_token()

        def post(function: Callable[..., None], *arguments: object) -> None:
            with suppress(trio.RunFinishedError):  # it took longer than anybody waits for it
                token.run_sync_soon(function, *arguments)

        writer = self._writer = Writer(
            self._open_database,
            path=self._path,
            cache_size=self._cache_size,
            patience=self._patience,
            trim_period=self._retention.age * _TRIM_SHARE,
            post=post,
            receiver=self,
        )
        threading.Thread(target=writer.run, name="tricast log", daemon=True).start()
        try:
            await self._opened.wait()
            if self._problem is not None:
                raise LogUnavailable(f"{self._path}: {self._problem}")
            with scope:
                yield
            if scope.cancel_called:
                raise LogUnavailable(f"{self._path}: {self._problem}")
        finally:
            self._writer = None
            self._committed = self._skipped = ignore
            while self._idle_readers:
                self._idle_readers.pop().close()
            writer.stop()
            with trio.move_on_after(_LAST_COMMIT_SECONDS, shield=True):
                await self._ended.wait()
                writer.close()

    def _open_database(self, creates: bool, pause: Callable[[float], None]) -> Database:
        return Database(
            self._path,
            synchronous=self._synchronous,
            patience=self._patience,
            retention=self._retention,
            clock=self._clock,
            creates=creates,
            pause=pause,
        )

    def _empty_window(self, start: EventId) -> Window:
        return Window(start=start, history=self._retention.history, max_size=self._cache_size)

    # Appending

    async def append(self, drafts: Sequence[Draft], key: IdempotencyKey | None = None) -> list[EventId]:
        """See ``Log.append``."""
        if self._appends_waiting >= _MAX_WAITING or self._waiting_bytes >= _MAX_WAITING_BYTES:
            raise LogUnavailable("too many publishes are waiting for the disk")
        with self._statistics.appends.timing():
            call = self._submit(Batch(drafts, key))
            await call.done.wait()
        if isinstance(call.result, LogUnavailable | RemoteProtocolError):
            raise call.result
        assert call.result is not None
        return call.result

    def _submit(self, batch: Batch | None) -> "_Call":
        if self._writer is None:
            raise LogUnavailable("the log is not open")
        call = _Call(batch)
        self._jobs[call.job] = None
        self._appends_waiting += batch is not None
        self._waiting_bytes += call.job.size
        self._writer.submit(call.job)
        return call

    async def _look(self) -> None:
        """Returns when everything is handed over that was committed so far, by whomever."""
        call = self._last_look
        # However many wait for one, they need no more than one that has not looked yet.
        if call is None or call.job.is_begun or call.done.is_set():
            call = self._last_look = self._submit(None)
        await call.done.wait()
        if isinstance(call.result, LogUnavailable):
            raise LogUnavailable(call.result.why)

    # Reading

    async def read(self, topics: TopicSet, after: Position, *, max_bytes: int) -> Slice:
        """See ``Log.read``. Waits only where memory does not reach back so far."""
        if not isinstance(after, EventId):
            return unknown_position(after, self.last_id)
        if after > self.last_id:
            # Another process may have told it to a client before it came to be known here.
            await self._look()
            if after > self.last_id:
                return unknown_position(after, self.last_id)
        self._window.trim(self._oldest())
        # All that is kept is all since the log began, unless some of it is only in the file.
        since = self._start if after == BEGINNING else after
        if since >= self._window.start:
            found = self._window.read(topics, since, max_bytes=max_bytes)
            if found.gap is None:
                return found
        return await self._read_file(topics, after, max_bytes)

    async def _read_file(self, topics: TopicSet, after: EventId, max_bytes: int) -> Slice:
        end = self.last_id
        try:
            with self._statistics.reads.timing():
                found = await trio.to_thread.run_sync(
                    self._read_in_thread, topics, after, end, max_bytes, limiter=self._reading
                )
        except Failure as error:
            problem = in_words(error)
            if self._read_problem is None:
                # Its traceback would tell no more than these words.
                self._logger.error("the log cannot be read", path=str(self._path), why=problem)  # noqa: TRY400
            self._read_problem = problem
            raise LogUnavailable(problem) from None
        if self._read_problem is not None:
            self._read_problem = None
            self._logger.info("the log can be read again", path=str(self._path))
            self._committed(())
        return found

    def _read_in_thread(self, topics: TopicSet, after: EventId, end: EventId, max_bytes: int) -> Slice:
        try:
            reader = self._idle_readers.pop()
        except IndexError:
            reader = self._open_database(False, time.sleep)
        try:
            found = reader.read(topics, after, end, max_bytes=max_bytes)
        except BaseException:
            reader.close()
            raise
        self._idle_readers.append(reader)
        return found

    def _oldest(self) -> EventId:
        # Rounded as in the database, or the two would differ by a millisecond.
        return EventId(int(self._clock() * 1000) - int(self._retention.age * 1000), 0)

    # What the writer has to say; see ``Receiver``

    def opened(self, newest: Newest, wake_failure: str | None) -> None:
        """See ``Receiver.opened``."""
        self._start = decode(newest.start)
        self._window = self._empty_window(decode(newest.behind))
        self._window.keep(newest.events, oldest=self._oldest())
        self._window.last_id = decode(newest.last)
        if wake_failure is not None:
            self._logger.warning(
                "other processes cannot wake this one", path=str(self._path), why=wake_failure, looks_every=LOOK_SECONDS
            )
        self._opened.set()

    def deliver(self, delivery: Delivery) -> None:
        """See ``Receiver.deliver``."""
        if delivery.skipped is not None:
            position = decode(delivery.skipped)
            self._window = self._empty_window(position)
            self._skipped(position)
        if delivery.events:
            self._window.keep(delivery.events, oldest=self._oldest())
            self._committed(delivery.events)
        self._window.last_id = decode(delivery.upto)
        if delivery.has_more and self._writer is not None:
            self._writer.look_again()
        for job, result in delivery.answers:
            self._finish(job, result)

    def changed(self, problem: str | None) -> None:
        """See ``Receiver.changed``."""
        if problem is None:
            self._logger.info("the log is available again", path=str(self._path))
        elif self._problem is None:
            self._logger.error("the log is not available", path=str(self._path), why=problem)
        self._problem = problem
        if problem is None:
            self._committed(())

    def ended(self, failure: str | None) -> None:
        """See ``Receiver.ended``. Nothing brings the thread back, so unasked it ends whatever needs the log as well."""
        if self._writer is not None and self._opened.is_set():
            self._logger.error("the log has ended", path=str(self._path), why=failure)
            self._scope.cancel()
        self._problem = failure
        self._writer = None
        for job in list(self._jobs):
            self._finish(job, LogUnavailable(failure or "the log is not open"))
        self._opened.set()
        self._ended.set()

    def _finish(self, job: Job, result: Result) -> None:
        del self._jobs[job]
        self._appends_waiting -= job.batch is not None
        self._waiting_bytes -= job.size
        job.resolve(result)


class _Call:
    """A job whose result tasks wait for."""

    __slots__ = ("done", "job", "result")

    def __init__(self, batch: Batch | None) -> None:
        self.job = Job(batch, self._resolve)
        self.done = trio.Event()
        self.result: Result = None

    def _resolve(self, result: Result) -> None:
        self.result = result
        self.done.set()
