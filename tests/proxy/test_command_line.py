"""What the options of ``tricast proxy`` say, and what is said of those that make no sense."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tricast_proxy.cli import proxy
from tricast_proxy.config import After, ProxyConfig
from tricast_proxy.program import load_stages, overrides_of


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("TRICAST_"):
            monkeypatch.delenv(name)


def with_set(*settings: str) -> ProxyConfig:
    return load_stages(None, overrides_of(settings=settings))[0]


@pytest.mark.parametrize("text", ["connect,empty", "connect, empty", '["connect", "empty"]'])
def test_a_list_may_be_written_with_commas(text: str) -> None:
    assert with_set(f"retry.on={text}").retry.on == ("connect", "empty")


def test_a_list_of_one_and_of_none() -> None:
    assert with_set("headers.request_remove=X-A").headers.request_remove == ("X-A",)
    assert with_set("retry.on=").retry.on == ()


def test_a_table() -> None:
    assert with_set('headers.request_add={X-A="b,c"}').headers.request_add == {"X-A": "b,c"}


def test_what_is_no_list_keeps_its_commas() -> None:
    assert with_set("headers.server=a,b").headers.server == "a,b"


def test_faults() -> None:
    given = ["transport=sse,reset_after=10s", "inject_1xx=[102,103],drop_request_header=Last-Event-ID,probability=0.5"]
    first, second = load_stages(None, overrides_of(faults=given))[0].fault
    assert (first.transport, first.reset_after) == ("sse", After(seconds=10))
    assert (second.inject_1xx, second.drop_request_header, second.probability) == ((102, 103), ("Last-Event-ID",), 0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--chain", "plain,aws-alb", "--profile", "plain"], "--chain names the profile of each proxy"),
        (["--upstream", "h:1", "--upstream", "h:2", "--upstream", "h:1"], "--upstream: h:1 is there twice"),
        (["--set", "server.address=h:1"], "use --upstream, or a file"),
        (["--fault", "reset_after"], "--fault takes KEY=VALUE[,KEY=VALUE], found 'reset_after'"),
    ],
)
def test_wrong_usage(options: list[str], told: str) -> None:
    result = CliRunner().invoke(proxy, [*options, "--check"])
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--fault", "delay=1s"], "command line: fault.0.delay: unknown key 'delay'; did you mean 'delay_"),
        (["--profile", "aws-al"], "command line: proxy.profile: unknown profile 'aws-al'; did you mean 'aws-alb'?"),
        (["--chain", "plain,aws-al"], "command line: proxy.chain: unknown profile 'aws-al'; did you mean 'aws-alb'?"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(options: list[str], told: str) -> None:
    result = CliRunner().invoke(proxy, [*options, "--check"])
    assert result.exit_code == 1
    assert told in result.output


def test_a_chain_of_a_file_is_told_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text('[proxy]\nchain = ["nope"]')
    result = CliRunner().invoke(proxy, ["--config", str(file), "--check"])
    assert f"{file}: proxy.chain: unknown profile 'nope'" in result.output
