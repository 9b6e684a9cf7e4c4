"""One connection to the SQLite file of a log: how it is opened, locked and checked, and what goes wrong with it.

Everything here blocks, and belongs to one thread at a time.
"""

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from tricast.errors import LogUnavailable

#: What the header of the file says (``PRAGMA application_id``, ``user_version``): a log of Tricast, and its tables.
APPLICATION_ID = 0x54524943
SCHEMA_VERSION = 1
#: The write-ahead log is cut to this size when it was larger.
_MAX_WAL_BYTES = 64 * 2**20
#: Events are for those who may subscribe, and not for everybody who has an account on the machine.
_MODE = 0o600
#: How often it is looked whether a lock is free. Those who know each other tell, so this is for all others.
_RETRY_SECONDS = 0.01

Result = TypeVar("Result")


class SqliteFile:
    """A connection.

    Args:
        path: the file.
        synchronous: ``full``, ``normal`` or ``off``, as SQLite means it.
        patience: seconds to wait for a lock that another process holds.
        tables: the statements that make them, with semicolons between; None where the file has to be a log already.
        pause: returns after these seconds, or earlier when another process may have let go of the lock.

    Attributes:
        patience: see above; may be set.

    Raises:
        LogUnavailable: the file is not a log, or of a version that is not known here.
        sqlite3.Error: it cannot be opened; see ``in_words``.
        OSError: as before.
    """

    def __init__(
        self, path: Path, *, synchronous: str, patience: float, tables: str | None, pause: Callable[[float], None]
    ) -> None:
        self._path = path
        self.patience = patience
        self._pause = pause
        if not path.parent.is_dir():
            raise LogUnavailable("its folder does not exist")
        if tables is not None:
            _make_private(path)
        uri = f"file:{quote(str(path.absolute()))}?mode=rw"
        # SQLite's own way to wait for a lock sleeps up to 100 ms at a time; see _patiently.
        self._connection = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(synchronous, tables)
            self._inode = _inode_of(path)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Closes it. The last of all processes to do so tidies up the file."""
        with suppress(sqlite3.Error):
            self._connection.close()

    def run(self, statement: str, *arguments: object) -> sqlite3.Cursor:
        """Runs one statement."""
        return self._connection.execute(statement, arguments)

    def run_many(self, statement: str, arguments: Iterable[tuple[object, ...]]) -> None:
        """Runs one statement with each of the arguments."""
        self._connection.executemany(statement, arguments)

    @contextmanager
    def transaction(self, begin: str, look: Callable[[], Result]) -> Iterator[Result]:
        """A transaction, undone when the block raises.

        Args:
            begin: the statement.
            look: reads something, so that it is sure that nothing else locks the file; what it returns is yielded.

        Raises:
            LogUnavailable: the file is gone, or another one: what were written here, nobody would find.
        """
        self._check_inode()
        found = self._patiently(lambda: self._begin(begin, look))
        try:
            yield found
            self.run("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _begin(self, begin: str, look: Callable[[], Result]) -> Result:
        self.run(begin)
        try:
            return look()
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):  # of some errors, SQLite has rolled back already
            self.run("ROLLBACK")

    def _patiently(self, act: Callable[[], Result]) -> Result:
        """Does what fails while another process holds the lock, again and again until patience is over."""
        give_up_at = time.monotonic() + self.patience
        while True:
            try:
                return act()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= give_up_at:
                    raise
            self._pause(_RETRY_SECONDS)

    def _check_inode(self) -> None:
        try:
            is_same = _inode_of(self._path) == self._inode
        except OSError:
            is_same = False
        if not is_same:
            raise LogUnavailable("the database file was removed or replaced")

    # Beginning

    def _prepare(self, synchronous: str, tables: str | None) -> None:
        # First of all, and before anything is written: a file of somebody else's stays as it is.
        is_new = self._patiently(self._check_header)
        if is_new and tables is None:
            raise LogUnavailable("the database file is empty")
        self.run("PRAGMA trusted_schema = OFF")
        self.run(f"PRAGMA journal_size_limit = {_MAX_WAL_BYTES}")
        # Where the file system does not allow it, SQLite goes on with a rollback journal: slower, and as safe.
        self._patiently(lambda: self.run("PRAGMA journal_mode = WAL").fetchone())
        self.run(f"PRAGMA synchronous = {synchronous}")
        if is_new and tables is not None:
            self._create(tables)

    def _check_header(self) -> bool:
        """Returns whether there is nothing in the file yet."""
        count = self._value("SELECT count(*) FROM sqlite_master")
        application_id, version = self._value("PRAGMA application_id"), self._value("PRAGMA user_version")
        if not count and not application_id and not version:
            return True
        if application_id != APPLICATION_ID:
            raise LogUnavailable("the file is a SQLite database of another program")
        if version != SCHEMA_VERSION:
            raise LogUnavailable(f"the log has version {version}, and only version {SCHEMA_VERSION} is known here")
        return False

    def _create(self, tables: str) -> None:
        self._patiently(lambda: self.run("BEGIN IMMEDIATE"))
        try:
            if self._check_header():  # nobody was quicker
                for statement in tables.split(";"):
                    self.run(statement)
                self.run(f"PRAGMA application_id = {APPLICATION_ID}")
                self.run(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self.run("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _value(self, statement: str) -> int | str | None:
        value: int | str | None = self.run(statement).fetchone()[0]
        return value


def _make_private(path: Path) -> None:
    """Makes an empty file for its owner alone, unless there is one; what SQLite puts beside it will be the same.

    If that fails, SQLite finds no file, and says so. Nothing is opened here: closing it would take away the locks that
    another connection of this process may have on it already.
    """
    with suppress(OSError):
        os.mknod(os.path.realpath(path), stat.S_IFREG | _MODE)


def _inode_of(path: Path) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 - before each transaction, and half as long as pathlib takes
    return status.st_dev, status.st_ino


# What goes wrong

#: SQLite's primary result codes, in words that anybody may see: they name no path.
_WORDS = {
    sqlite3.SQLITE_BUSY: "the database is locked by another program",
    sqlite3.SQLITE_LOCKED: "the database is locked by another program",
    sqlite3.SQLITE_READONLY: "the database cannot be written, it is read-only",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened, nor made",
    sqlite3.SQLITE_NOTADB: "the file is not a database",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
    sqlite3.SQLITE_PERM: "the database file may not be used",
}
#: Behind these the connection is as good as before.
_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}


def in_words(error: Exception) -> str:
    """What went wrong, for those who publish as well as for those who run the server."""
    if isinstance(error, LogUnavailable):
        return error.why
    if isinstance(error, OSError):
        return f"the database file cannot be used: {os.strerror(error.errno or 0).lower()}"
    return _WORDS.get(_code_of(error), f"the database failed: {error}")


def is_busy(error: Exception) -> bool:
    """Whether it may well be over in a moment, so that trying again at once means waiting again."""
    return _code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_passing(error: Exception) -> bool:
    """Whether the connection can be used again when the cause is gone."""
    return _code_of(error) in _PASSING


def _code_of(error: Exception) -> int:
    # The extended code's lowest byte is the primary one (sqlite.org/rescode.html).
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
