"""Commands that say who they are."""

import json
from pathlib import Path

import pytest
import trio
from cli.running import run, run_here, running, serving_command
from clocks import HANG_SECONDS
from credentials import AUTH, SECRET, token

CONFIG = f"""
[auth]
issuer = {json.dumps(AUTH["issuer"])}
audience = {json.dumps(AUTH["audience"])}
[[auth.key]]
algorithm = "HS256"
id = "main"
secret = "{SECRET}"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "server.toml"
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRICAST_TOKEN", "TRICAST_API_KEY"):
        monkeypatch.delenv(name, raising=False)


async def test_publish_subscribe_and_bench(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(token() + "\n")
    with trio.fail_after(HANG_SECONDS):
        async with serving_command("--config", config) as (_, url):
            code, _, said = await run("publish", "news", "1", "--url", url)
            assert (code, "401 Unauthorized" in said) == (1, True)
            code, _, said = await run_here("bench", "--url", url, "--duration", "0.5")
            assert (code, "401 Unauthorized" in said) == (1, True)
            async with running("subscribe", "news", "--url", url, "--token", f"@{file}") as subscriber:
                assert "connected" in await subscriber.err.next()
                monkeypatch.setenv("TRICAST_TOKEN", token())
                code, given, _ = await run("publish", "news", "2", "--url", url)
                assert code == 0
                assert json.loads(await subscriber.out.next())["id"] == given.strip()
            load = ("--duration", "0.5", "--warm-up", "0", "--subscribers", "6", "--transport", "mix", "--json")
            code, printed, said = await run("bench", "--url", url, *load)
            assert code == 0, said
            found = json.loads(printed)
            assert (found["opened"], found["lost"]) == (6, 0)
            assert found["deliveries"] > 0
            assert token().split(".")[0] not in printed + said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--token", "a\nb"), "visible ASCII"),
        (("--token", "@/none/of/that"), "cannot read /none/of/that"),
        (("--api-key", "@/none/of/that"), "cannot read /none/of/that"),
    ],
)
async def test_what_is_no_token(given: tuple[str, str], words: str) -> None:
    code, _, said = await run_here("publish", "news", "1", "--url", "http://127.0.0.1:9", *given)
    assert code in (1, 2)
    assert words in said
    assert "a\nb" not in said


async def test_a_file_that_is_no_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"s3cr\xff")
    code, _, said = await run_here("publish", "news", "1", "--token", f"@{file}", "--url", "http://127.0.0.1:9")
    assert (code, "holds no token" in said) == (1, True)
    assert "s3cr" not in said
