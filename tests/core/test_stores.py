"""Which log the configuration asks for, and that nothing is imported for what it does not ask for."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from clocks import HANG_SECONDS
from serving import capturing_logger
from structlog.testing import LogCapture

import tricast
from tricast.errors import ConfigError
from tricast.log.base import Log
from tricast.log.memory import MemoryLog
from tricast.log.sqlite import SqliteLog
from tricast.stores import announce_log, log_of

LIBRARIES = ("coredis", "confluent_kafka")


def made(url: str) -> Log:
    config = tricast.Config.model_validate({"log": {"url": url}})
    return log_of(config, capturing_logger(LogCapture()))


def test_logs_without_servers(tmp_path: Path) -> None:
    assert isinstance(made("memory:"), MemoryLog)
    assert isinstance(made(f"sqlite:///{tmp_path}/log.db"), SqliteLog)
    assert not list(tmp_path.iterdir())  # it is not opened yet


@pytest.mark.parametrize("url", ["redis://localhost", "redis+cluster://localhost", "kafka://localhost/events"])
def test_logs_on_servers_that_need_not_be_there_yet(url: str) -> None:
    assert made(url).statistics.reconnects == 0


@pytest.mark.parametrize(
    ("url", "extra", "library"),
    [
        ("redis://user:hidden@host", "redis", "coredis"),
        ("redis+sentinel://host/name", "redis", "coredis"),
        ("kafka://host/hidden", "kafka", "confluent_kafka"),
    ],
)
def test_an_extra_that_is_missing_is_named(url: str, extra: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError) as caught:
        made(url)
    expected = f"this log needs {library}, which is not installed: pip install 'tricast[{extra}]'"
    assert str(caught.value) == f"configuration: log.url: {expected}"


def test_an_extra_that_is_broken_is_not_taken_for_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
            if name == "coredis":
                raise ModuleNotFoundError("No module named 'anyio'", name="anyio")

    for name in [name for name in sys.modules if name.partition(".")[0] == "coredis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="anyio"):
        made("redis://host")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ({}, {"event": "the log is memory:"}),
        ({"url": "sqlite:////var/lib/log.db"}, {"event": "the log is sqlite:////var/lib/log.db"}),
        (
            {"url": "redis://user:hidden@host", "shards": 4},
            {"event": "the log is redis://host:6379/0", "namespace": "tricast", "shards": 4, "delivery": "stream"},
        ),
        ({"url": "kafka://a:1,b/events"}, {"event": "the log is kafka://a:1,b:9092/events", "shards": 1}),
    ],
)
def test_the_log_is_named_without_a_password(log: dict[str, object], said: dict[str, object]) -> None:
    records = LogCapture()
    announce_log(tricast.Config.model_validate({"log": log}), capturing_logger(records))
    assert records.entries == [{"log_level": "info", **said}]


SERVE = """
import sys, trio, tricast
from functools import partial

async def main():
    async with trio.open_nursery() as nursery:
        config = tricast.Config.model_validate({"server": {"port": 0}, "log": {"url": "memory:"}})
        await nursery.start(partial(tricast.serve, config))
        nursery.cancel_scope.cancel()

trio.run(main)
"""
HELP = """
import sys
from tricast.cli import main
sys.argv = ["tricast", "--help"]
try:
    main()
except SystemExit as exit:
    assert not exit.code
"""


@pytest.mark.parametrize("program", ["import sys, tricast", SERVE, HELP], ids=["import", "serve", "help"])
def test_what_is_not_used_is_not_imported(program: str) -> None:
    # Neither what a log needs nor what it takes to check tokens, 9 MB of a process.
    needed = (*LIBRARIES, "jwt", "cryptography")
    program += f"\nprint('imported:', [name for name in {needed} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported: []"
