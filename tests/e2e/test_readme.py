"""What the README shows is run as it stands there."""

import json
import re
import shlex
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from subprocess import PIPE

import httpx
import pytest
import trio
from cli.running import COMMAND, Running, running
from clocks import HANG_SECONDS
from services import RedisServer
from serving import serving

from engines.daemon import Port

README = (Path(__file__).parents[2] / "README.md").read_text()
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


async def test_embedding_in_eight_lines() -> None:
    program = next(code for code in PYTHON if "tricast.serve" in code)
    assert len([line for line in program.splitlines() if line]) <= 8
    async with trio.open_nursery() as nursery:
        with trio.fail_after(HANG_SECONDS):
            command = [sys.executable, "-u", "-c", program]
            process = await nursery.start(partial(trio.run_process, command, stdout=PIPE, check=False))
            printed = b""
            while not printed.endswith(b"\n"):
                printed += await process.stdout.receive_some()
            url, event_id = printed.decode().split()
            async with httpx.AsyncClient(base_url=url, timeout=HANG_SECONDS) as client:
                answer = await client.get("/events?topic=news&last_id=0-0")
        process.kill()
    assert answer.json() == {
        "events": [{"id": event_id, "topic": "news", "type": "message", "data": {"n": 1}}],
        "last_id": event_id,
    }


async def test_the_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trio_websocket import open_websocket_url

    (tmp_path / "readme_app.py").write_text(next(code for code in PYTHON if "async def shout" in code))
    monkeypatch.syspath_prepend(tmp_path)
    entry = {"path": "/shout", "handler": "readme_app:shout"}
    with trio.fail_after(HANG_SECONDS):
        async with (
            serving(websocket={"handler": [entry]}) as server,
            open_websocket_url(f"{server.url.replace('http', 'ws')}/shout") as client,
        ):
            await client.send_message("hello")
            assert await client.get_message() == "HELLO"
            await server.hub.publish("news", {"n": 1})
            assert '"data":{"n":1}' in await client.get_message()


async def test_two_servers_on_one_log_behind_a_round_robin(redis: RedisServer) -> None:
    lines = next(code for code in CONSOLE if "scripts/services up redis" in code).splitlines()
    assert lines[0].startswith("$ url=$(scripts/services up redis)")
    text = "\n".join(lines[1:]).replace('"$url"', redis.url)
    ports = {port: Port() for port in ("8080", "8081", "8000")}
    for port, ours in ports.items():
        text = text.replace(f":{port}", f":{ours.number}").replace(f"--port {port}", f"--port {ours.number}")
    commands = [shlex.split(line.removesuffix("&")) for line in text.splitlines()]
    started: list[Running] = []
    with trio.fail_after(HANG_SECONDS):
        async with AsyncExitStack() as stack:
            for dollar, program, *arguments in commands:
                assert (dollar, program) == ("$", ".venv/bin/tricast")
                command = await stack.enter_async_context(running(*arguments))
                started.append(command)
                if arguments[0] in ("serve", "proxy"):
                    await command.err.until("listening on ")
                elif arguments[0] == "subscribe":
                    await command.err.until("connected by ")
            *_, subscriber, publisher = started
            code, given, _ = await publisher.end()
            assert code == 0
            assert json.loads(await subscriber.out.next()) == {
                "id": given.strip(),
                "topic": "news",
                "type": "message",
                "data": {"n": 1},
            }
    for ours in ports.values():
        ours.release()


async def test_looking_into_the_log(tmp_path: Path) -> None:
    """What is told of a log there is what the command tells."""
    shown = next(code for code in CONSOLE if "tricast log info" in code)
    async with serving(log={"url": f"sqlite:///{tmp_path / 'events.db'}"}) as server:
        await server.hub.publish("news.a", {"n": 1})
    names: list[str] = []
    told: list[str] = []
    for line in shown.splitlines():
        if not line.startswith("$"):
            names.append(line.split()[0])
            continue
        _, program, *arguments = shlex.split(line, comments=True)
        assert program == ".venv/bin/tricast"
        with trio.fail_after(HANG_SECONDS):
            done = await trio.run_process(
                [*COMMAND, *(each for each in arguments if each != "--follow")],
                cwd=tmp_path,
                stdin=b"y\n",
                capture_stdout=True,
                capture_stderr=True,
            )
        if arguments[1] == "info":
            assert names == []
            told = [each.split()[0] for each in done.stdout.decode().splitlines()]
        elif arguments[1] == "tail":
            assert json.loads(done.stdout)["topic"] == "news.a"
        else:
            assert done.stdout.startswith(b"dropped 0 events")
    assert names == told
