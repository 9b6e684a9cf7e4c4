"""The certificate is renewed while the server serves: those who are there stay, those who come see the new one."""

import re
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from cli.running import COMMAND, run
from clients import TRANSPORTS, Wire, ask, head, publish, read_answer, subscribe
from encryption import TlsSocket, client_context, connected, write_certificate
from prometheus_client.parser import text_string_to_metric_families
from serving import ServerProcess, serving, serving_as, until
from structlog.testing import LogCapture

import tricast

QUICK_TO_END = '[drain]\nperiod = "100ms"\ngrace = "5s"\n'
EXPIRY = "tricast_certificate_expiry_timestamp_seconds"


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """A certificate and its key in one file."""
    file = tmp_path / "server.pem"
    write_certificate(file)
    return file


def break_file(pem: Path) -> None:
    """Takes away the end of the last certificate in it."""
    pem.write_bytes(pem.read_bytes()[:-100])


async def serial_shown(url: str) -> int:
    """The serial number of the certificate that a new connection is shown."""
    with Wire(sock := TlsSocket(await connected(url))):
        await sock.shake_hands()
        await sock.flush()
        shown = sock.tls.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)


async def expiry_told(url: str) -> set[float]:
    """What the metrics tell of the end, in all processes."""
    text = (await ask(url, "GET", "/metrics")).body.decode()
    return {
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == EXPIRY
    }


@asynccontextmanager
async def serving_files(folder: Path, pem: Path, *more: str, text: str = QUICK_TO_END) -> AsyncIterator[ServerProcess]:
    """``tricast serve`` with this certificate."""
    (folder / "server.toml").write_text(f'[tls]\ncertificate = "{pem}"\n' + text)
    command = (*COMMAND, "serve", "--config", "server.toml", "--port", "0", *more)
    async with serving_as(*command, cwd=folder, start_new_session=True) as server:
        yield server
    assert not server.said("Traceback"), server.lines


# In one's own program


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_is_there_stays_and_who_comes_sees_the_new_one(pem: Path, transport: str) -> None:
    async with serving(tls={"certificate": str(pem)}) as server:
        with await Wire.open(server.url) as idle, await subscribe(transport, server.url, "news") as subscriber:
            await idle.send(head("GET", "/healthz"))
            assert (await read_answer(idle)).status == 200
            await until(lambda: server.hub.statistics().subscribers == 1)
            following = write_certificate(pem)
            server.renew_certificate()
            assert await serial_shown(server.url) == following
            await publish(server.url, "news", "x" * 50_000)
            assert (await subscriber.event()).data == "x" * 50_000
            await idle.send(head("GET", "/healthz"))
            assert (await read_answer(idle)).status == 200


async def test_who_is_shaking_hands_goes_on_with_what_it_began_with(pem: Path) -> None:
    async with serving(tls={"certificate": str(pem)}) as server:
        before = await serial_shown(server.url)
        await until(lambda: server.connections == 0)
        with Wire(sock := TlsSocket(await connected(server.url))) as wire:
            await until(lambda: server.connections == 1)
            write_certificate(pem)
            server.renew_certificate()
            await sock.shake_hands()
            await sock.flush()
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).status == 200
            shown = sock.tls.getpeercert()
            assert shown is not None
            assert int(str(shown["serialNumber"]), 16) == before


@pytest.mark.parametrize("highest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_from_before_is_not_resumed_but_nobody_is_turned_away(
    pem: Path, highest: ssl.TLSVersion
) -> None:
    context = client_context()
    context.maximum_version = highest

    async def visit(session: ssl.SSLSession | None) -> TlsSocket:
        sock = TlsSocket(await connected(server.url), context, session=session)
        await sock.shake_hands()
        with Wire(sock) as wire:
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).status == 200
        return sock

    async with serving(tls={"certificate": str(pem)}) as server:
        first = await visit(None)
        assert (await visit(first.tls.session)).tls.session_reused
        write_certificate(pem)
        server.renew_certificate()
        assert not (await visit(first.tls.session)).tls.session_reused


async def test_what_cannot_be_used_changes_nothing(pem: Path) -> None:
    records = LogCapture()
    async with serving(records=records, tls={"certificate": str(pem)}) as server:
        before = await serial_shown(server.url)
        break_file(pem)
        with pytest.raises(tricast.ConfigError, match=r"server\.pem cannot be used"):
            server.renew_certificate()
        assert await serial_shown(server.url) == before
    assert not [entry for entry in records.entries if "renewed" in entry["event"]]


async def test_without_tls_there_is_nothing_to_renew() -> None:
    async with serving() as server:
        with pytest.raises(tricast.ConfigError, match="there is none in use"):
            server.renew_certificate()
        assert not await expiry_told(server.url)


async def test_the_metrics_tell_of_the_end(pem: Path) -> None:
    write_certificate(pem, expires=60)
    async with serving(tls={"certificate": str(pem)}) as server:
        (before,) = await expiry_told(server.url)
        assert before == pytest.approx(datetime.now(UTC).timestamp() + 60 * 86400, abs=3600)
        write_certificate(pem, expires=90)
        server.renew_certificate()
        (after,) = await expiry_told(server.url)
        assert after - before == pytest.approx(30 * 86400, abs=3600)


async def test_one_that_has_expired_is_told_and_served_to_those_who_take_it(pem: Path) -> None:
    records = LogCapture()
    write_certificate(pem, begins=-2, expires=-1)
    async with serving(records=records, tls={"certificate": str(pem)}) as server:
        (entry,) = [entry for entry in records.entries if "the certificate expired on" in entry["event"]]
        assert entry["log_level"] == "error"
        with pytest.raises(ssl.SSLCertVerificationError):
            await serial_shown(server.url)
        context = client_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with Wire(await TlsSocket.over(await connected(server.url), context)) as wire:
            await wire.send(head("GET", "/healthz"))
            assert (await read_answer(wire)).status == 200


# SIGHUP, with one process


async def test_sighup_renews_it(tmp_path: Path, pem: Path) -> None:
    async with serving_files(tmp_path, pem) as server:
        with await subscribe("sse", server.url, "news") as stream:
            # From a file to another, as certbot's links do it, and then by another name.
            following = write_certificate(pem)
            server.process.send_signal(signal.SIGHUP)
            await server.wait_said("certificate renewed")
            assert await serial_shown(server.url) == following
            other = tmp_path / "other.pem"
            following = write_certificate(other)
            (tmp_path / "server.toml").write_text(f'[tls]\ncertificate = "{other}"\n' + QUICK_TO_END)
            server.process.send_signal(signal.SIGHUP)
            await server.wait_said("certificate renewed", 2)
            assert await serial_shown(server.url) == following
            last_id = await publish(server.url, "news", "still here")
            assert (await stream.event()).id == last_id
        assert not server.said("not reloaded")
        assert not server.said("warning")


async def test_sighup_with_one_that_is_broken_keeps_the_one_before(tmp_path: Path, pem: Path) -> None:
    async with serving_files(tmp_path, pem) as server:
        before = await serial_shown(server.url)
        break_file(pem)
        server.process.send_signal(signal.SIGHUP)
        (line,) = await server.wait_said("not reloaded: the configuration is wrong")
        assert "error" in line
        assert f"tls.certificate: the certificate in {pem} cannot be used with its key" in line
        assert await serial_shown(server.url) == before
        (tmp_path / "server.toml").write_text("[tls]\ncertificat = 1\n")
        server.process.send_signal(signal.SIGHUP)
        await server.wait_said("did you mean 'certificate'?")
        (tmp_path / "server.toml").write_text("")
        server.process.send_signal(signal.SIGHUP)
        await server.wait_said("expected one, where TLS is in use: to end that takes a restart")
        assert await serial_shown(server.url) == before


async def test_sighup_tells_what_else_has_changed(tmp_path: Path, pem: Path) -> None:
    async with serving_files(tmp_path, pem) as server:
        following = write_certificate(pem)
        text = f'[tls]\ncertificate = "{pem}"\n[sse]\nretry = "9s"\n[poll]\ntimeout = "9s"\n' + QUICK_TO_END
        (tmp_path / "server.toml").write_text(text)
        server.process.send_signal(signal.SIGHUP)
        (line,) = await server.wait_said("not reloaded: that needs server.workers of 2 or more")
        assert "keys='poll.timeout, sse.retry'" in line
        assert await serial_shown(server.url) == following


# SIGHUP, with several


async def test_sighup_renews_it_in_all_workers_and_replaces_none(tmp_path: Path, pem: Path) -> None:
    write_certificate(pem, expires=60)
    async with serving_files(tmp_path, pem, "--workers", "2") as server:
        assert len(await expiry_told(server.url)) == 1
        with ExitStack() as streams:
            crowd = [streams.enter_context(await subscribe("sse", server.url, "news")) for _ in range(20)]
            following = write_certificate(pem, expires=90)
            server.process.send_signal(signal.SIGHUP)
            lines = await server.wait_said("certificate renewed expires=", 2)
            assert sorted(match[0] for line in lines if (match := re.search(r"worker=\d", line))) == [
                "worker=0",
                "worker=1",
            ]
            for _ in range(10):
                assert await serial_shown(server.url) == following
            last_id = await publish(server.url, "news", "still here")
            for stream in crowd:
                assert (await stream.event()).id == last_id
            other = tmp_path / "other.pem"
            following = write_certificate(other)
            (tmp_path / "server.toml").write_text(f'[tls]\ncertificate = "{other}"\n' + QUICK_TO_END)
            server.process.send_signal(signal.SIGHUP)
            await server.wait_said("certificate renewed expires=", 4)
            # Who comes in place of one that dies has the new one as well, though the old file is gone.
            await trio.Path(pem).unlink()
            (pid,) = re.findall(r"pids=\[(\d+)", server.said("workers count=")[0])
            await trio.run_process(["kill", "-KILL", pid])
            await server.wait_said("worker replaced")
            for _ in range(10):
                assert await serial_shown(server.url) == following
        for word in ("reloading", "draining", "replaced by another"):
            assert not [line for line in server.said(word) if "worker replaced" not in line], word


async def test_sighup_with_a_broken_one_keeps_the_one_before_in_all_workers(tmp_path: Path, pem: Path) -> None:
    async with serving_files(tmp_path, pem, "--workers", "2") as server:
        before = await serial_shown(server.url)
        await trio.Path(pem).write_text("nothing")
        with await subscribe("sse", server.url, "news") as stream:
            server.process.send_signal(signal.SIGHUP)
            (line,) = await server.wait_said("not reloaded: the configuration is wrong")
            assert f"tls.certificate: {pem}: holds no certificate in PEM format" in line
            for _ in range(5):
                assert await serial_shown(server.url) == before
            last_id = await publish(server.url, "news", "still here")
            assert (await stream.event()).id == last_id


async def test_sighup_with_nothing_changed_or_more_replaces_the_workers_as_ever(tmp_path: Path, pem: Path) -> None:
    async with serving_files(tmp_path, pem, "--workers", "2") as server:
        server.process.send_signal(signal.SIGHUP)  # what handlers import may have changed
        await server.wait_said("reloaded pids=")
        following = write_certificate(pem)
        (tmp_path / "server.toml").write_text(f'[tls]\ncertificate = "{pem}"\n[sse]\nretry = "9s"\n' + QUICK_TO_END)
        server.process.send_signal(signal.SIGHUP)
        await server.wait_said("reloaded pids=", 2)
        for _ in range(5):
            assert await serial_shown(server.url) == following
        assert not server.said("certificate renewed")
        # What it has now is what it compares with.
        following = write_certificate(pem)
        server.process.send_signal(signal.SIGHUP)
        await server.wait_said("certificate renewed expires=", 2)
        assert await serial_shown(server.url) == following


async def test_workers_without_a_certificate_that_can_be_used_do_not_begin(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('[tls]\ncertificate = "/nowhere"\n')
    command = ("serve", "--config", str(tmp_path / "server.toml"), "--port", "0", "--workers")
    said = {await run(*command, count) for count in ("1", "2")}
    assert said == {(1, "", "error: configuration: tls.certificate: /nowhere: No such file or directory\n")}


# Checking


async def test_check_says_what_clients_would_not_like(
    tmp_path: Path, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.toml").write_text('[server]\nhost = "push.example"\n[tls]\ncertificate = "server.pem"\n')
    start = "error: server.toml: tls.certificate: the certificate in server.pem "
    assert await run("check", "server.toml") == (
        1,
        "",
        f"{start}is not for push.example, but for 127.0.0.1, localhost\n",
    )
    write_certificate(pem, "push.example", begins=-2, expires=-1)
    code, _, said = await run("check", "server.toml")
    assert code == 1
    assert re.fullmatch(re.escape(start) + r"expired on \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", said)
    write_certificate(pem, "push.example", begins=-60, expires=5)
    # An address to listen on is not what clients call it.
    (tmp_path / "server.toml").write_text('[server]\nhost = "0.0.0.0"\n[tls]\ncertificate = "server.pem"\n')
    code, out, said = await run("check", "server.toml")
    everybody = "without [auth], whoever can connect may subscribe and publish to everything"
    assert (code, said) == (0, f"warning: the certificate expires soon\nwarning: {everybody}\n")
    assert out.startswith("server.toml: ok, with a certificate for push.example until ")
    hosts = ("--host-name", "push.example", "--host-name", "other.example")
    assert await run("check", "server.toml", *hosts) == (
        1,
        "",
        f"{start}is not for other.example, but for push.example\n",
    )
