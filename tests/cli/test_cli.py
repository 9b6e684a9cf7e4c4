"""The parts of the command line that need no process."""

import errno
import os
import sys
from functools import partial

import click
import pytest
import trio
from click.testing import CliRunner

import tricast
from tricast import cli
from tricast.client import Connected, Disconnected
from tricast.config import Config
from tricast.event import EventId, Gap, GapReason

COMMANDS = cli.cli.commands


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (command, option)
        for command in COMMANDS.values()
        for option in command.params
        if isinstance(option, click.Option)
    ],
    ids=lambda it: it.name,
)
def test_help_tells_every_default(command, option):
    context = click.Context(command, parent=click.Context(cli.cli, **cli.cli.context_settings), info_name=command.name)
    _, text = option.get_help_record(context)
    assert option.is_flag or "default: " in text


def test_the_defaults_in_the_help_are_true():
    text = " ".join(CliRunner().invoke(cli.cli, ["serve", "--help"]).output.split())
    config = Config()
    assert f"server.host, else {config.server.host})" in text
    assert f"server.port, else {config.server.port})" in text
    assert f"log.url, else {config.log.url})" in text
    assert cli.DEFAULT_URL == f"http://{config.server.host}:{config.server.port}"  # noqa: SIM300


@pytest.mark.parametrize("reason", GapReason)
def test_notices(reason, capsys):
    for item in (
        Connected("ws", None),
        Connected("poll", "7-0"),
        Disconnected("it broke", 0.44),
        Disconnected("no WebSocket", 0.0),
        Gap(reason, EventId(1, 0), EventId(2, 0)),
    ):
        cli._notify(item)
    out, said = capsys.readouterr()
    assert out == ""
    *lines, gap = said.splitlines()
    assert lines == [
        "connected by WebSocket; waiting for new events",
        "connected by long polling; waiting for events after 7-0",
        "it broke; trying again in 0.4 s",
        "no WebSocket; trying another transport",
    ]
    assert gap.startswith("gap: events after 1-0 and up to 2-0 may be missing: ")


def test_a_server_cannot_control_the_terminal(capsys):
    cli._say("\x1b[2Jgone\r\n\x9b")
    assert capsys.readouterr().err == "\N{REPLACEMENT CHARACTER}[2Jgone" + "\N{REPLACEMENT CHARACTER}" * 3 + "\n"


@pytest.mark.parametrize("no_colour", [True, False])
def test_colours(no_colour, monkeypatch, capsys):
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda stream, color: color is False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    cli._say("words", label="error: ", colour="red")
    cli._say("words", colour="green")
    said = capsys.readouterr().err
    assert ("\x1b[" in said) is not no_colour


async def refuse(error, config):
    # As nurseries do it, at any depth.
    raise ExceptionGroup("", [ExceptionGroup("", [error])])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "x"), "permission denied (ports below 1024 need a privilege)"),
        (OSError("no reason"), "no reason"),
        (trio.socket.gaierror(-2, "Name or service not known"), "name or service not known"),
    ],
)
def test_what_cannot_be_listened_on(error, words):
    config = Config(admin={"enabled": True})
    with pytest.raises(
        cli.Failure,
        match=f"^cannot listen on 127.0.0.1:8080 or 127.0.0.1:9090: {words}$".replace("(", r"\(").replace(")", r"\)"),
    ):
        cli._run(cli._serve, partial(refuse, error, config), config)


def test_which_of_two_cannot_be_listened_on():
    config = Config(admin={"enabled": True})
    error = OSError(errno.EADDRINUSE, "x", "127.0.0.1:9090")
    with pytest.raises(cli.Failure, match=r"^cannot listen on 127\.0\.0\.1:9090: address already in use$"):
        cli._run(cli._serve, partial(refuse, error, config), config)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141), (cli.Failure("a", "b"), 1)]
)
def test_groups_become_exit_codes(error, code):
    async def fail():
        raise BaseExceptionGroup("", [BaseExceptionGroup("", [error])])

    with pytest.raises((click.exceptions.Exit, cli.Failure)) as caught:
        cli._run(fail)
    assert caught.value.exit_code == code


def test_all_that_went_wrong_is_told():
    async def fail():
        raise ExceptionGroup("", [tricast.TricastError("one"), ExceptionGroup("", [tricast.TricastError("two")])])

    with pytest.raises(cli.Failure) as caught:
        cli._run(fail)
    assert caught.value.lines == ("one", "two")


def test_interrupted_while_it_starts(monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tricast.config.load_config", interrupt)
    monkeypatch.setattr("sys.argv", ["tricast", "check", "x"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130


async def test_reading_from_a_terminal_says_so(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.write(writing, b"typed\r\n")
    os.close(writing)
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(reading if descriptor == 0 else descriptor, size))
    try:
        assert await cli._read_all() == b"typed"
    finally:
        os.close(reading)
    assert capsys.readouterr().err == "reading from the terminal; end with Ctrl-D\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["publish"], "Missing argument 'TOPIC'"),
        (["publish", "--ndjson", "news"], "topic and type are in the lines"),
        (["publish", "--ndjson", "--type", "x"], "topic and type are in the lines"),
        (["publish", "news", "1", "--url", "nothing"], "expected the URL of a server"),
        (["subscribe"], "Missing argument 'TOPIC...'"),
        (["subscribe", "news", "--last-id", "7"], "last_id must be an event id"),
        (["subscribe", "news", "--transport", "pigeon"], "'pigeon' is not one of"),
        (["serve", "--port", "70000"], "70000 is not in the range"),
        (["check"], "Missing argument 'FILE'"),
        (["nothing"], "No such command 'nothing'"),
    ],
)
def test_wrong_usage(args, said):
    result = CliRunner().invoke(cli.cli, args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


@pytest.mark.parametrize(
    ("url", "extra", "library"),
    [("redis://:hidden@127.0.0.1:1", "redis", "coredis"), ("kafka://127.0.0.1:1/events", "kafka", "confluent_kafka")],
)
def test_check_tells_of_an_extra_that_is_missing_and_connects_to_nothing(url, extra, library, tmp_path, monkeypatch):
    file = tmp_path / "server.toml"
    file.write_text(f'[log]\nurl = "{url}"\n[[websocket.handler]]\npath = "/x"\nhandler = "nowhere:none"\n')
    monkeypatch.setattr(sys, "path", sys.path[:])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, library, None)
        found = CliRunner().invoke(cli.cli, ["check", str(file)])
    missing = f"this log needs {library}, which is not installed: pip install 'tricast[{extra}]'"
    assert f"error: {file}: log.url: {missing}" in found.stderr.splitlines()
    assert len(found.stderr.splitlines()) == 2  # and the handler
    assert found.exit_code == 1
    file.write_text(f'[log]\nurl = "{url}"\n')
    found = CliRunner().invoke(cli.cli, ["check", str(file)])
    assert (found.exit_code, found.stdout, found.stderr) == (0, f"{file}: ok\n", "")


def test_check_tells_of_a_file_that_the_log_cannot_use(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    file = tmp_path / "server.toml"
    file.write_text('[log]\nurl = "rediss://127.0.0.1:1"\ntls_ca = "/nowhere"\n')
    found = CliRunner().invoke(cli.cli, ["check", str(file)])
    assert found.stderr == f"error: {file}: log.tls_ca: /nowhere cannot be read\n"
    assert found.exit_code == 1
