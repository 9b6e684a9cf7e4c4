"""Commands that verify a server by an authority of one's own, and show it a certificate."""

import json
from pathlib import Path

import pytest
import trio
from cli.running import run, run_here, running, serving_command
from clocks import HANG_SECONDS
from encryption import authority, authority_file, certificate_file

CONFIG = f"""
[tls]
certificate = {json.dumps(certificate_file())}
client_ca = {json.dumps(authority_file())}
[publish]
require_client_certificate = true
"""


@pytest.fixture
def shown(tmp_path: Path) -> list[str]:
    """The options of a client with a certificate, and its key in another file."""
    issued = authority().issue_cert("client@example.org", common_name="client")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    return ["--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem"), "--cacert", authority_file()]


async def test_publish_subscribe_bench_and_probe(shown: list[str], tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text(CONFIG)
    trusting = ["--cacert", authority_file()]
    with trio.fail_after(HANG_SECONDS):
        async with serving_command("--config", str(config)) as (_, url):
            code, _, said = await run("publish", "news", "1", "--url", url)
            assert (code, "its certificate is not trusted" in said) == (1, True)
            code, _, said = await run("publish", "news", "1", "--url", url, *trusting)
            assert (code, "publishing takes a client certificate" in said) == (1, True)
            async with running("subscribe", "news", "--url", url, *trusting) as subscriber:
                assert "connected" in await subscriber.err.next()
                code, given, said = await run("publish", "news", "2", "--url", url, *shown)
                assert code == 0, said
                assert json.loads(await subscriber.out.next())["id"] == given.strip()
                code, given, said = await run("publish", "--ndjson", "--url", url, *shown, stdin=b'{"topic":"news"}\n')
                assert (code, "data" in said) == (1, True)
            load = ("--duration", "0.5", "--warm-up", "0", "--subscribers", "3", "--transport", "mix", "--json")
            code, printed, said = await run("bench", "--url", url, *load, *shown)
            assert code == 0, said
            assert json.loads(printed)["deliveries"] > 0
            code, _, said = await run("probe", url, "--quick", "--transport", "poll")
            assert (code, "its certificate is not trusted" in said) == (2, True)
            code, printed, said = await run("probe", url, "--quick", "--transport", "poll", "--json", *shown)
            assert code in (0, 1), said


@pytest.mark.parametrize("option", ["--cert", "--cacert"])
async def test_files_that_cannot_be_used(option: str, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    url = "https://127.0.0.1:1"
    for command, status in (
        (["publish", "news", "1", "--url"], 1),
        (["subscribe", "news", "--url"], 1),
        (["probe"], 2),
    ):
        code, _, said = await run(*command, url, option, str(tmp_path / "none.pem"))
        assert (code, said) == (status, f"error: cannot read {tmp_path}/none.pem: no such file or directory\n")
        code, _, said = await run(*command, url, option, str(garbage))
        assert code == status
        assert said.startswith(f"error: cannot use {garbage}: ")


async def test_the_key_that_cannot_be_used_is_named(shown: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "Mine"  # with a capital, as it has to be said
    folder.mkdir()
    authority().issue_cert("other@example.org").private_key_pem.write_to_path(folder / "other.pem")
    command = ["publish", "news", "1", "--url", "https://127.0.0.1:1", *shown[:2], "--key"]
    code, _, said = await run_here(*command, str(folder / "none.pem"))
    assert (code, said) == (1, f"error: cannot read {folder}/none.pem: no such file or directory\n")
    code, _, said = await run_here(*command, str(folder / "other.pem"))
    assert (code, said) == (1, f"error: cannot use {shown[1]} and {folder}/other.pem: key values mismatch\n")


async def test_a_key_without_a_certificate() -> None:
    code, _, said = await run("publish", "news", "1", "--key", "key.pem")
    assert (code, "--key is for the certificate of --cert" in said) == (2, True)
