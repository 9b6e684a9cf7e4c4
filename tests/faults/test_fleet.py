"""The servers of a round: that they are started again, and that what they say of bugs is found."""

from pathlib import Path

import trio
from clients import ask, publish
from clocks import HANG_SECONDS
from faults.fleet import TricastServer
from serving import until


async def test_a_server_that_ends_is_started_again_and_ending_by_itself_is_a_problem(tmp_path: Path) -> None:
    problems: list[str] = []
    server = TricastServer(0, tmp_path, {"log": {"url": "memory:"}})
    try:
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.supervise, problems)
                server.is_wanted = True
                await server.wait_well()
                await publish(server.url, "news", 1)
                server.is_wanted = False
                server.kill()  # as a fault does: nobody's problem
                server.is_wanted = True
                await server.wait_well()
                assert not problems
                pid = server.pid
                server._process.kill()  # type: ignore[union-attr]
                await until(lambda: server.is_running and server.pid != pid)
                await server.wait_well()
                assert (await ask(server.url, "GET", "/healthz")).status == 200
                nursery.cancel_scope.cancel()
    finally:
        server.close()
    (problem,) = problems
    assert problem.startswith("server 0 ended by itself: ")
    assert server.complaints() == []


def test_what_a_server_says_of_bugs_is_found(tmp_path: Path) -> None:
    server = TricastServer(0, tmp_path, {})
    said = "2026-11-23T12:00:00 [info] ready\nTraceback (most recent call last):\n  File x\nValueError: y\n"
    (tmp_path / "log").write_text(said, encoding="utf-8")
    (complaint,) = server.complaints()
    assert complaint.startswith("Traceback")
    assert "ValueError: y" in complaint
    server.close()
