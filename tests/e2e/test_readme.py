"""What the README shows is run as it stands there."""

import re
import sys
from functools import partial
from pathlib import Path
from subprocess import PIPE

import httpx
import pytest
import trio
from serving import serving

README = (Path(__file__).parents[2] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


async def test_embedding_in_eight_lines() -> None:
    program = next(code for code in PYTHON if "tricast.serve" in code)
    assert len([line for line in program.splitlines() if line]) <= 8
    async with trio.open_nursery() as nursery:
        with trio.fail_after(30):
            command = [sys.executable, "-u", "-c", program]
            process = await nursery.start(partial(trio.run_process, command, stdout=PIPE, check=False))
            printed = b""
            while not printed.endswith(b"\n"):
                printed += await process.stdout.receive_some()
            url, event_id = printed.decode().split()
            async with httpx.AsyncClient(base_url=url) as client:
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
    with trio.fail_after(10):
        async with (
            serving(websocket={"handler": [entry]}) as server,
            open_websocket_url(f"{server.url.replace('http', 'ws')}/shout") as client,
        ):
            await client.send_message("hello")
            assert await client.get_message() == "HELLO"
            await server.hub.publish("news", {"n": 1})
            assert '"data":{"n":1}' in await client.get_message()
