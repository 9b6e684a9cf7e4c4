"""The commands as processes; the server is one as well where that matters."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import trio
from cli.running import run, run_here, running, serving_command
from clocks import HANG_SECONDS
from serving import serving

from engines.daemon import Port

TRANSPORTS = {"auto": "WebSocket", "ws": "WebSocket", "sse": "Server-Sent Events", "poll": "long polling"}


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch):
    monkeypatch.delenv("TRICAST_SERVER__PORT", raising=False)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_publish_and_subscribe(transport):
    with trio.fail_after(HANG_SECONDS):
        async with (
            serving_command() as (_, url),
            running("subscribe", "news", "a.>", "--url", url, "--transport", transport) as subscriber,
        ):
            # A busy machine may be given up on before.
            await subscriber.err.until(f"connected by {TRANSPORTS[transport]}; waiting for ")
            code, given, _ = await run("publish", "news", '{"n": 1}', "--url", url, "--type", "x")
            assert code == 0
            line = await subscriber.out.next()
            assert line == f'{{"id":"{given.strip()}","topic":"news","type":"x","data":{{"n": 1}}}}'
            await run("publish", "a.b", "--url", url, stdin=b"two\nlines\n")
            assert json.loads(await subscriber.out.next())["data"] == "two\nlines"
            subscriber.process.send_signal(signal.SIGINT)
            assert await subscriber.end() == (130, "", "")


async def test_publishing_lines():
    lines = b'{"topic":"news","data":1}\n\n{"topic":"news","type":"x","data":{"a":2}}'
    with trio.fail_after(HANG_SECONDS):
        async with serving() as server:
            code, given, said = await run("publish", "--ndjson", "--url", server.url, stdin=lines)
            assert (code, said) == (0, "")
            assert len(given.splitlines()) == 2
            subscribed = running("subscribe", "news", "--last-id", "0-0", "--format", "data", "--url", server.url)
            async with subscribed as subscriber:
                assert [await subscriber.out.next() for _ in range(2)] == ["1", '{"a":2}']


async def test_publishing_lines_as_they_come():
    with trio.fail_after(HANG_SECONDS):
        async with serving() as server, running("publish", "--ndjson", "--url", server.url) as publisher:
            await publisher.stdin.send_all(b'{"topic":"news","data":1}\n{"topic":"ne')
            assert await publisher.out.next()
            await publisher.stdin.send_all(b'ws","data":2}\n')
            assert await publisher.out.next()
            await publisher.stdin.send_all(b"nonsense\n")
            said = await publisher.err.next()
            assert said == "2 lines were published, and nothing from line 3 on"
            code, given, said = await publisher.end()
            assert (code, given) == (1, "")
            assert "error: the server answered 400 " in said


async def test_more_lines_than_a_server_takes_at_a_time():
    with trio.fail_after(HANG_SECONDS):
        async with serving() as server:
            lines = b'{"topic":"news","data":1}\n' * 1234
            async with running("publish", "--ndjson", "--url", server.url) as publisher:
                await publisher.stdin.send_all(lines)
                await publisher.stdin.aclose()
                code, given, said = await publisher.end()
            assert (code, said) == (0, "")
            assert len(set(given.splitlines())) == 1234


async def test_data_over_several_lines_is_printed_on_one():
    with trio.fail_after(HANG_SECONDS):
        async with serving() as server:
            await run_here("publish", "news", '{\n  "a": 1.50\n}', "--url", server.url)
            async with running("subscribe", "news", "--last-id", "0-0", "--url", server.url) as subscriber:
                assert '"data":{"a":1.50}}' in await subscriber.out.next()


@pytest.fixture
def port():
    """One that stays this test's own while nobody listens there."""
    held = Port()
    yield held.number
    held.release()


async def test_a_restarted_server_is_a_gap(port):
    with trio.fail_after(HANG_SECONDS):
        async with (
            serving_command(port=port) as (server, url),
            running("subscribe", "news", "--url", url) as subscriber,
        ):
            await subscriber.err.until("connected by WebSocket")
            _, given, _ = await run_here("publish", "news", "1", "--url", url)
            await subscriber.out.next()
            server.process.send_signal(signal.SIGTERM)
            assert "trying again in" in await subscriber.err.next()
            assert (await server.end())[0] == 0
            async with serving_command(port=port):
                await subscriber.err.until(f"connected by WebSocket; waiting for events after {given.strip()}")
                gap = await subscriber.err.next()
                assert gap.startswith(f"gap: events after {given.strip()} and up to ")
                assert gap.endswith("may be missing: the server was restarted and began anew")
                await run_here("publish", "news", "2", "--url", url)
                assert json.loads(await subscriber.out.next())["data"] == 2


async def test_nobody_reads_any_more():
    with trio.fail_after(HANG_SECONDS):
        async with (
            serving() as server,
            running("subscribe", "news", "--url", server.url) as subscriber,
        ):
            await subscriber.err.until("connected")
            await subscriber.process.stdout.aclose()
            await run_here("publish", "news", "1", "--url", server.url)
            assert await subscriber.process.wait() == 141
            assert await subscriber.err.rest() == ""


@pytest.mark.parametrize("args", [["publish", "news"], ["publish", "--ndjson"]])
async def test_interrupted_while_reading(args):
    with trio.fail_after(HANG_SECONDS):
        async with serving() as server, running(*args, "--url", server.url) as publisher:
            if "--ndjson" in args:  # its answer shows that it reads again
                await publisher.stdin.send_all(b'{"topic":"news","data":1}\n')
                await publisher.out.next()
            else:
                # Two pipefuls, so that it reads by the time the second has gone in.
                await publisher.stdin.send_all(b"1" * 2**18)
            publisher.process.send_signal(signal.SIGINT)
            assert await publisher.process.wait() == 130
            assert await publisher.err.rest() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_server_is_stopped(number):
    with trio.fail_after(HANG_SECONDS):
        async with serving_command() as (server, _):
            server.process.send_signal(number)
            code, out, said = await server.end()
            assert (code, out) == (0, "")
            assert "Traceback" not in said


async def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, said = await run("serve", "--port", port)
    assert (code, out) == (1, "")
    assert said == f"error: cannot listen on 127.0.0.1:{port}: address already in use\n"


async def test_an_address_of_somebody_else():
    code, _, said = await run("serve", "--host", "192.0.2.1", "--port", "0")
    assert (code, said) == (1, "error: cannot listen on 192.0.2.1:0: cannot assign requested address\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 1\n", "error: {file}: server.prot: unknown key 'prot'; did you mean 'port'?\n"),
        ("[server", "error: {file}: not TOML: "),
        (None, "error: {file}: No such file or directory\n"),
    ],
)
@pytest.mark.parametrize("command", [["check"], ["serve", "--config"]])
async def test_a_bad_configuration(command, text, said, tmp_path):
    file = tmp_path / "server.toml"
    if text is not None:
        file.write_text(text)
    code, out, err = await run_here(*command, str(file))
    assert (code, out) == (1, "")
    assert err.startswith(said.format(file=file))
    assert err.count("\n") == 1


async def test_check_prints_every_error(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text('[server]\nport = "x"\nhots = "a"\n[sse]\nretry = 1\n')
    code, _, said = await run_here("check", str(file))
    assert code == 1
    assert len(said.splitlines()) == 3
    assert all(line.startswith(f"error: {file}: ") for line in said.splitlines())


async def test_check(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text("[server]\nport = 1\n")
    assert await run("check", str(file)) == (0, f"{file}: ok\n", "")


async def test_serve_takes_its_file_and_its_options(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text('[server]\nhost = "192.0.2.1"\nport = 1\n')
    with trio.fail_after(HANG_SECONDS):
        async with serving_command("--config", str(file), "--host", "127.0.0.1", "--log-url", "memory:") as (_, url):
            assert (await run_here("publish", "news", "1", "--url", url))[0] == 0


async def test_a_log_that_does_not_exist():
    code, _, said = await run_here("serve", "--log-url", "nothing:")
    assert code == 1
    assert said.startswith("error: command line: log.url: ")
    assert said.count("\n") == 1


async def test_nobody_serves():
    with socket.socket() as held:  # so that nobody else listens there meanwhile
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        code, out, said = await run("publish", "news", "1", "--url", f"http://127.0.0.1:{port}")
    assert (code, out) == (1, "")
    assert said == f"error: cannot connect to http://127.0.0.1:{port}: connection refused\n"


async def test_a_refused_topic():
    with trio.fail_after(HANG_SECONDS):
        async with serving() as server:
            code, out, said = await run_here("subscribe", "a..b", "--transport", "sse", "--url", server.url)
    assert (code, out) == (1, "")
    assert said.startswith("error: the server answered 400 ")
    assert said.count("\n") == 1


async def test_wrong_usage():
    code, out, said = await run("publish")
    assert (code, out) == (2, "")
    assert said.endswith("Error: Missing argument 'TOPIC'.\n")


async def test_version():
    code, out, said = await run("--version")
    assert (code, said) == (0, "")
    assert out.startswith("tricast ")


async def test_nobody_reads_stderr_either():
    with trio.fail_after(HANG_SECONDS):
        async with running("check", "/nowhere") as command:
            await command.process.stderr.aclose()
            assert await command.process.wait() == 1


async def test_stdin_cannot_be_read():
    only_for_writing = os.open(os.devnull, os.O_WRONLY)
    try:
        async with running("publish", "news", stdin=only_for_writing) as command:
            assert await command.end() == (1, "", "error: cannot read from stdin: bad file descriptor\n")
    finally:
        os.close(only_for_writing)


@pytest.mark.parametrize("args", [["--version"], ["publish", "news", "1"]])
async def test_stdout_is_full(args):
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with trio.fail_after(HANG_SECONDS):
            async with serving() as server:
                at = ["--url", server.url] if "publish" in args else []
                async with running(*args, *at, stdout=full) as command:
                    assert await command.err.rest() == "error: cannot write to stdout: no space left on device\n"
                    assert await command.process.wait() == 1
    finally:
        os.close(full)


async def test_check_tells_of_handlers_and_certificates_together(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[tls]\ncertificate = "/nowhere.pem"\n[[websocket.handler]]\npath = "/a"\nhandler = "nowhere_at_all:a"\n'
    )
    code, out, err = await run_here("check", str(file))
    assert (code, out) == (1, "")
    handler, certificate = err.splitlines()
    assert handler.startswith(f"error: {file}: websocket.handler.0.handler: ModuleNotFoundError")
    assert certificate == f"error: {file}: tls.certificate: /nowhere.pem: No such file or directory"
