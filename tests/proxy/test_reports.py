"""What the log says of cuts and of servers that do not answer, and of who the proxy is."""

import re
import signal
import sys
from functools import partial
from typing import Any

import trio
from clients import WEBSOCKET_HEADERS, Wire, ask, head, read_head
from forwarding import forwarding
from proxies.real import reserved_port
from proxy.origins import Visit, origin, silent
from proxy.test_modes import stacked
from serving import capturing_logger, serving_as, until
from structlog.testing import LogCapture

from tricast_proxy import chain
from tricast_proxy.config import ProxyConfig
from tricast_proxy.reports import Reports

COMMAND = (sys.executable, "-m", "tricast", "proxy", "--listen", "127.0.0.1:0")
SWITCHING = b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


def said(records: LogCapture, what: str) -> list[str]:
    return [entry["event"] for entry in records.entries if what in entry["event"]]


async def test_a_cut_tunnel_is_told_with_the_key_that_cut_it() -> None:
    records = LogCapture()

    async def agree(visit: Visit) -> None:
        await visit.request()
        await visit.wire.send(SWITCHING)
        await visit.wire.rest()

    sections: dict[str, Any] = {"proxy": {"speed": 20}, "tunnel": {"idle_timeout": "4s"}}
    sections["upstream"] = {"response_header_timeout": "off"}
    async with origin(agree) as server, forwarding(server.url, records=records, **sections) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/", *WEBSOCKET_HEADERS))
            assert (await read_head(wire)).status == 101
            assert await wire.rest() == b""
        await until(lambda: said(records, "cut by"))
        (entry,) = [entry for entry in records.entries if "cut by" in entry["event"]]
    assert entry["event"] == "cut by tunnel.idle_timeout = 4s (0.2 s at speed 20)"
    assert entry["log_level"] == "info"
    assert entry["peer"].startswith("127.0.0.1:")
    assert entry["server"] == server.url.removeprefix("http://")
    assert entry["after"].endswith("s")


async def test_a_late_answer_is_told_with_its_key() -> None:
    records = LogCapture()
    async with (
        origin(silent) as server,
        forwarding(server.url, records=records, upstream={"response_header_timeout": "200ms"}) as proxy,
    ):
        assert (await ask(proxy.url, "GET", "/")).status == 504
        await until(lambda: said(records, "cut by"))
    assert said(records, "cut by") == ["cut by upstream.response_header_timeout = 0.2s"]


def test_of_several_timers_the_one_that_ran_out_is_told() -> None:
    records = LogCapture()
    upstream = {"response_timeout": "5s", "max_stream_duration": "3s", "response_header_timeout": "9s"}
    reports = Reports(ProxyConfig.model_validate({"upstream": upstream}), capturing_logger(records))
    for why in ("response-timeout", "stream-duration", "request-timeout", "timeout"):
        reports.ended(why, peer="p", server="a", seconds=1)
    keys = ("response_timeout = 5s", "max_stream_duration = 3s", "response_header_timeout = 9s")
    assert said(records, "") == [f"cut by upstream.{key}" for key in (*keys, keys[-1])]


async def test_a_head_that_does_not_come_is_told_with_its_key() -> None:
    records = LogCapture()
    async with forwarding("127.0.0.1:1", records=records, client={"header_timeout": "200ms"}) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(b"GET / HT")
            assert (await read_head(wire)).status == 408
        await until(lambda: said(records, "cut by"))
    assert said(records, "cut by") == ["cut by client.header_timeout = 0.2s"]


async def test_a_dead_server_is_told_of_once_and_why() -> None:
    records = LogCapture()
    with reserved_port() as port:
        address = f"127.0.0.1:{port}"
        async with forwarding(address, records=records) as proxy:
            for _ in range(3):
                assert (await ask(proxy.url, "GET", "/")).status == 502
            await until(lambda: not proxy.clients)
    (told,) = said(records, "cannot connect")
    assert told == f"cannot connect to {address}: connection refused; told once, until a request is answered"


def test_what_is_told_once_is_told_again_after_an_answer() -> None:
    records = LogCapture()
    reports = Reports(ProxyConfig(), capturing_logger(records))

    def fail(why: str) -> None:
        reports.ended("empty", peer="p", server="a", seconds=1, detail=why)

    for why in ("gone", "gone", "mute"):
        fail(why)
    reports.answered("b")
    fail("gone")
    assert [event.partition(";")[0] for event in said(records, "")] == ["gone", "mute"]
    reports.answered("a")
    reports.answered("a")
    fail("gone")
    assert [event.partition(";")[0] for event in said(records, "")][2:] == ["a answers again", "gone"]


async def test_it_says_who_it_is_and_for_whom() -> None:
    records = LogCapture()
    async with forwarding("127.0.0.1:1", records=records, proxy={"profile": "aws-alb", "speed": 20}) as proxy:
        (entry,) = [entry for entry in records.entries if "listening on" in entry["event"]]
    assert entry["event"] == f"listening on {proxy.url}"
    assert (entry["profile"], entry["speed"], entry["servers"]) == ("aws-alb", "20", "127.0.0.1:1")


async def test_of_a_chain_the_one_in_front_says_where_it_listens() -> None:
    records = LogCapture()
    stages = stacked("cloudflare", "aws-alb", upstream="http://127.0.0.1:1")
    async with trio.open_nursery() as nursery:
        proxy = await nursery.start(partial(chain.serve, stages, logger=capturing_logger(records)))
        proxy.drain()
    (entry,) = [entry for entry in records.entries if "listening on" in entry["event"]]
    assert entry["event"] == f"listening on {proxy.url}"
    assert (entry["profile"], entry["servers"]) == ("cloudflare,aws-alb", "127.0.0.1:1")
    (behind,) = [entry for entry in records.entries if "behind it" in entry["event"]]
    assert behind["log_level"] == "debug"
    assert re.fullmatch(r"behind it: aws-alb on http://127\.0\.0\.1:\d+", behind["event"])


async def test_a_signal_drains_and_another_ends_it() -> None:
    async with origin(silent) as server:
        address = server.url.removeprefix("http://")
        async with serving_as(*COMMAND, "--upstream", address) as proxy:
            with await Wire.open(proxy.url) as wire:
                await wire.send(head("GET", "/"))
                await server.wait_requests(1)
                proxy.process.send_signal(signal.SIGINT)
                await proxy.wait_said("draining", 1)
                proxy.process.send_signal(signal.SIGINT)
                assert await proxy.process.wait() == 0
            await proxy.wait_said("stopped", 1)
    assert "draining: waiting up to 30 s for 1 connection; again ends it at once" in proxy.said("draining")[0]
