"""``tricast probe`` as a command."""

import json
import signal
import socket
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
import trio
from cli.running import run, run_here, running
from probe.again import WITHIN, until_right
from probe.misbehaving import relaying
from probe.probing import TOKEN, probed
from serving import serving

from tricast.probe.advice import BUFFERED
from tricast.probe.findings import Verdict
from tricast.probe.run import Outcome, Plan, examine
from tricast.probe.target import server_of

QUICK = ("--quick", "--transport", "ws")


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch):
    monkeypatch.delenv("TRICAST_PROBE__TOKEN", raising=False)


@asynccontextmanager
async def stripping():
    """A server behind a relay that takes Upgrade out; yields the relay's URL and the server's."""
    async with probed() as (server, _):
        port = urlsplit(server.url).port
        assert port is not None
        async with relaying(port, upgrade="strip") as url:
            yield url, server.url


@asynccontextmanager
async def answering(answer):
    """Something that answers each connection by itself; yields its URL."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_server_with_nothing_in_front(monkeypatch):
    monkeypatch.setenv("TRICAST_PROBE__TOKEN", TOKEN)
    told = {}

    async def measure(name, _):
        told[name] = await run("probe", server.url, "--quick", "--origin", server.url)

    def check(name):
        code, out, err = told[name]
        assert (code, err.count("error")) == (0, 0)
        assert "Nothing wrong was found." in out
        assert "ok      WebSocket" in out
        assert "ok      SSE" in out

    async with probed(within=WITHIN) as (server, _):
        await until_right(["direct"], measure, check)


async def test_a_relay_that_takes_upgrade_out():
    async with stripping() as (url, origin):
        code, out, _ = await run(
            "probe", url, *QUICK, "--token", TOKEN, "--origin", origin, "--advice", "nginx,haproxy", "--json"
        )
    found = json.loads(out)
    assert (code, found["exit_code"], found["schema"]) == (2, 2, 1)
    assert (found["url"], found["origin"], found["is_companion"]) == (url, origin, True)
    (websocket,) = [finding for finding in found["findings"] if finding["check"] == "P3"]
    assert websocket["detail"]["policy"] == "stripped"
    assert [advice["proxy"] for advice in found["advice"]] == ["nginx"]
    assert TOKEN not in out


@pytest.mark.parametrize(("conditions", "code"), [("host,retries", 0), ("host,no-ws", 2)])
async def test_what_to_fail_on(conditions, code):
    async with stripping() as (url, _):
        ended, out, _ = await run("probe", url, *QUICK, "--token", TOKEN, "--fail-on", conditions)
    assert ended == code
    assert ("Not wanted, but so: no-ws." in out) is bool(code)


async def test_what_is_not_known_is_no_pass():
    async with serving() as server:
        code, out, _ = await run("probe", server.url, "--quick", "--fail-on", "no-ws,buffered,host")
    assert code == 2
    assert "Not known: buffered, host." in out


async def test_ctrl_c():
    async with (
        stripping() as (url, _),
        running("probe", url, "--idle", "60", "--token", TOKEN, "--fail-on", "idle<60,total,host") as probe,
    ):
        await probe.err.until("waiting for timers")
        probe.process.send_signal(signal.SIGINT)
        code, out, _ = await probe.end()
    assert code == 2
    assert "broken  WebSocket" in out
    assert "nothing ends a silence of" in out
    assert "Interrupted: this is what was known by then. Not known: idle<60, total." in out


async def test_shortened_timers_behind_a_server_itself():
    told = {}

    async def measure(name, slower):
        speed = f"{20 / slower:g}"
        told[name] = await run("probe", server.url, "--idle", "20", "--speed", speed, "--token", TOKEN, "--json")

    def check(name):
        code, out, _ = told[name]
        idle = {finding["title"]: finding for finding in json.loads(out)["findings"] if finding["check"] == "P13"}
        assert code == 0
        assert set(idle) == {"ws idle", "sse idle", "keepalive idle"}

    async with probed(within=WITHIN) as (server, _):
        await until_right(["direct"], measure, check)


async def test_nobody_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, out, err = await run("probe", url, "--quick")
    assert (code, out) == (2, "")
    assert err == f"error: cannot connect to {url}: connection refused\n"


async def test_nobody_at_the_origin():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with probed() as (server, _):
            code, out, err = await run("probe", server.url, "--quick", "--token", TOKEN, "--origin", origin)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: the server itself, {origin}: cannot connect")


async def test_a_wrong_token():
    async with probed() as (server, _):
        code, out, err = await run("probe", server.url, "--quick", "--token", "not-the-right-token")
    assert (code, out) == (2, "")
    assert err == "error: the token is not the one in [probe] token of the server's configuration\n"


async def test_a_server_without_a_token():
    async with serving() as server:
        code, out, _ = await run("probe", server.url, *QUICK, "--token", TOKEN)
    assert code == 0
    assert out.startswith("The server has no probe endpoints: only what shows from outside is told.")
    assert "ok      WebSocket" in out


async def test_what_is_no_tricast_server():
    async def answer(stream):
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")

    async with answering(answer) as url:
        code, out, _ = await run("probe", url, *QUICK)
        _, queried, _ = await run("probe", f"{url}/?topic=news", *QUICK)
    assert code == 0
    assert out.startswith("There is no Tricast server at this URL")
    assert queried.startswith(f"Probing {url}/, without what is behind it.\nThere is no Tricast server")
    assert "unknown WebSocket" in out


@pytest.mark.parametrize("token", [(), ("--token", TOKEN)])
async def test_a_proxy_that_reaches_no_server(token):
    problem = b'{"type":"urn:tricast:proxy","title":"Bad gateway","detail":"nobody \\u001blistens"}'
    head = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"

    async def answer(stream):
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(problem), problem))

    async with answering(answer) as url:
        code, out, err = await run("probe", url, "--quick", "--fail-on", "no-ws,buffered", *token)
    assert (code, out) == (2, "")
    assert err == "error: the proxy answers 502 (nobody listens): it cannot reach a server\n"


@pytest.mark.parametrize("is_origin_known", [False, True])
async def test_a_proxy_that_holds_a_stream_back_from_its_head_on(monkeypatch, is_origin_known):
    monkeypatch.setattr("tricast.probe.run._FIRST_SECONDS", 0.3)
    told = {}

    async def hold(stream):
        async with stream:
            if b"nonsense" in await stream.receive_some(65536):  # as nginx does, whatever it holds back else
                await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nContent-Length: 0\r\n\r\n")
            await stream.receive_some(1)

    async def begin(stream):
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
            await stream.receive_some(1)

    async def measure(name, slower):
        monkeypatch.setattr("tricast.probe.checks.blackbox._STREAM_SECONDS", slower)
        told[name] = Outcome(plan=Plan(url=f"{url}/stream", origin=f"{origin}/stream" if is_origin_known else None))
        assert told[name].doing != "connecting"
        await examine(told[name])

    def check(name):
        assert told[name].notes == ["It connects, but there is no answer within 0.3 s."]
        (held,) = [finding for finding in told[name].findings if finding.check == "P4"]
        assert ("that begins at once at the server itself shows nothing" in held.summary) is is_origin_known
        assert ("--origin tells which" in held.summary) is not is_origin_known
        assert (held.verdict, held.advice) == (Verdict.BROKEN, BUFFERED)
        assert told[name].proxies == ["nginx"]

    async with answering(hold) as url, answering(begin) as origin:
        await until_right(["proxy"], measure, check)


async def test_what_speaks_no_http():
    async def answer(stream):
        async with stream:
            await stream.send_all(b"220 mail.example ESMTP\r\n")
            await stream.receive_some(65536)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        code, out, err = await run("probe", f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", *QUICK)
        nursery.cancel_scope.cancel()
    assert (code, out) == (2, "")
    assert err.startswith("error: the connection ended before the answer")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--fail-on", "nonsense"), "expected any of no-ws, buffered"),
        (("--fail-on", ","), "expected any of no-ws, buffered"),
        (
            ("--transport", "sse", "--fail-on", "buffered,no-ws"),
            "no-ws in --fail-on cannot be known with --transport sse",
        ),
        (("--transport", "ws", "--fail-on", "poll<30"), "poll<30 in --fail-on cannot be known"),
        (("--quick", "--fail-on", "idle<30"), "cannot be known with --quick"),
        (("--quick", "--deep"), "exclude each other"),
        (("--idle", "5"), "not in the range"),
        (("--transport", "smoke"), "expected any of ws, sse, poll, found 'smoke'"),
        (("--transport", ","), "expected any of ws, sse, poll, found nothing"),
        (("--advice", "squid"), "expected any of auto, nginx, haproxy"),
        (("--advice", "auto,nginx"), "auto cannot be combined"),
        (("--origin", "ftp://x"), "expected the URL of a server"),
    ],
)
async def test_wrong_usage(args, words):
    code, out, err = await run_here("probe", "http://127.0.0.1:1", *args)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())


@pytest.mark.parametrize("path", ["/events?topic=news", "/?topic=news", "/healthz"])
async def test_a_path_of_the_server(path):
    async with stripping() as (url, _):
        code, out, _ = await run("probe", f"{url}{path}", *QUICK, "--token", TOKEN, "--fail-on", "no-ws")
    assert code == 2
    assert " ".join(out.split()).startswith(f"{url}{path} is a path of a Tricast server; probing {url}.")
    assert "Not wanted, but so: no-ws." in out


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("http://a/events", "http://a"),
        ("http://a/push/events/?topic=x#y", "http://a/push"),
        ("http://a:8/.tricast/probe/echo", "http://a:8"),
        ("http://a/?topic=news", "http://a"),
        ("http://a/push", None),
        ("http://a", None),
        ("http://a/stream?x=1", None),
        ("http://[", None),
    ],
)
def test_whose_path_it_would_be(url, server):
    assert server_of(url) == server


async def test_what_help_tells():
    _, commands, _ = await run_here("--help")
    assert "Find out what a proxy in front does.\n" in commands
    _, out, _ = await run_here("probe", "--help")
    assert "130 when it was interrupted" in " ".join(out.split())


async def test_websocket_is_ws():
    async with stripping() as (url, _):
        code, out, _ = await run("probe", url, "--quick", "--transport", "websocket", "--token", TOKEN, "--json")
    found = json.loads(out)
    assert code == 2
    assert {"P3", "P7"} <= {finding["check"] for finding in found["findings"]}
    assert "P4" not in {finding["check"] for finding in found["findings"]}


async def test_nothing_to_probe():
    code, out, err = await run_here("probe")
    assert (code, out) == (2, "")
    assert "Missing argument 'URL'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("args", [("--idle", "URL"), ("URL", "--deep"), ("--full", "400", "URL")])
async def test_how_long_to_wait_need_not_be_told(args):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, _, err = await run("probe", *(url if word == "URL" else word for word in args))
    assert (code, "cannot connect" in err) == (2, True), err
