"""The servers that ``scripts/services`` and the tests start: that they work, do as told, and end."""

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from services import NotStarted, RedisServer, ReplyError

from engines.redis import PROGRAMS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_was_acknowledged_is_kept(program: str) -> None:
    with RedisServer(program=program) as redis:
        redis.execute("XADD", "stream", "*", "name", b"\r\n\xff")
        redis.kill()
        assert not redis.is_running
        with pytest.raises(OSError, match="refused"):
            redis.execute("PING")
        port = redis.port
        redis.start()
        assert redis.execute("XRANGE", "stream", "-", "+")[0][1] == [b"name", b"\r\n\xff"]  # type: ignore[index]
        redis.restart(keep_data=False)
        assert redis.execute("XLEN", "stream") == 0
        assert redis.port == port


def test_it_says_why_it_did_not_start() -> None:
    server = RedisServer(config=["maxmemory lots"])
    with pytest.raises(NotStarted, match="ended with status 1") as raised, server:
        raise AssertionError
    assert "argument must be a memory value" in str(raised.value)
    assert not server.folder.exists()


def test_what_it_refuses_is_an_error(redis: RedisServer) -> None:
    with pytest.raises(ReplyError, match="ERR unknown command"):
        redis.execute("NONSENSE")


def test_a_killed_process_leaves_nothing_running() -> None:
    program = (
        "import sys; from engines.redis import RedisServer; server = RedisServer(); server.start();"
        "print(server.pid, server.folder, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        server = os.pidfd_open(int(pid))
        process.kill()
    assert select.select([server], [], [], 20)[0]
    os.close(server)
    shutil.rmtree(folder)
