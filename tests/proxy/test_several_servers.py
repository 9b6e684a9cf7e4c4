"""In front of several servers: who gets what, and what clients notice when a server goes, comes back or drains."""

import re
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from clients import (
    WEBSOCKET_HEADERS,
    Answer,
    Closed,
    Ended,
    Event,
    Wire,
    ask,
    head,
    publish,
    read_answer,
    read_head,
    subscribe,
)
from clocks import HANG_SECONDS
from encryption import tls_section
from forwarding import administer, forwarding
from proxies.real import reserved_port
from serving import pause, serving, serving_process, until
from structlog.testing import LogCapture

from tricast_proxy.config import load_proxy_config
from tricast_proxy.proxy import Proxy
from tricast_proxy.servers import Health

ADMIN = {"enabled": True, "port": 0}
PROTECTED_FOR_LONG = {"fail_timeout": "1h"}


class Origin:
    """A server of a few lines, that can be told to be unwell.

    Attributes:
        url: where it listens.
        name: what it answers with.
        status: of its answers to ``/healthz``.
        heard: the heads of all other requests.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.url = ""
        self.status = 200
        self.heard: list[str] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        asked = b""
        try:
            while True:
                while b"\r\n\r\n" not in asked:
                    more = await stream.receive_some()
                    if not more:
                        return
                    asked += more
                first, _, asked = asked.partition(b"\r\n\r\n")
                is_check = first.startswith(b"GET /healthz ")
                if not is_check:
                    self.heard.append(first.decode())
                status = self.status if is_check else 200
                body = self.name.encode()
                await stream.send_all(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def origin(name: str, port: int = 0) -> AsyncIterator[Origin]:
    """An origin, gone at the end of the block with all its connections."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        made = Origin(name)
        made.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        await nursery.start(trio.serve_listeners, made.serve, [listener])
        yield made
        nursery.cancel_scope.cancel()


async def who(proxy: Proxy, *fields: str, method: str = "GET") -> str:
    """Who answers a request."""
    answer = await ask(proxy.url, method, "/", *fields)
    return answer.body.decode() if answer.status == 200 else str(answer.status)


async def whos(proxy: Proxy, count: int, *fields: str) -> str:
    return "".join([await who(proxy, *fields) for _ in range(count)])


def busy(proxy: Proxy) -> list[int]:
    """How many exchanges and tunnels each server has."""
    return [server.active for server in proxy.servers]


# Who gets what


async def test_in_turn_by_weight() -> None:
    async with origin("a") as a, origin("b") as b, forwarding({"address": a.url, "weight": 2}, b.url) as proxy:
        assert await whos(proxy, 6) == "abaaba"


async def test_those_with_the_fewest_tunnels_and_streams() -> None:
    async with (
        serving() as a,
        serving() as b,
        forwarding(a.url, b.url, balance={"method": "least_connections"}) as proxy,
    ):
        with ExitStack() as streams:
            for transport in ("ws", "sse", "ws", "sse"):
                streams.enter_context(await subscribe(transport, proxy.url, "news"))
            assert busy(proxy) == [2, 2]
            on_b = [await subscribe("ws", b.url, "news")]  # past the proxy, which knows nothing of it
            streams.enter_context(on_b[0])
            gone = await subscribe("ws", proxy.url, "news")
            assert sorted(busy(proxy)) == [2, 3]
            gone.wire.close()
            await until(lambda: busy(proxy) == [2, 2])
        await until(lambda: busy(proxy) == [0, 0])


async def test_a_full_server_is_left_alone_and_a_backup_takes_over() -> None:
    entries = {"max_connections": 1}
    async with serving() as a, serving() as b, origin("x") as x:
        backup = {"address": x.url, "backup": True}
        async with forwarding({"address": a.url} | entries, {"address": b.url} | entries, backup) as proxy:
            with await subscribe("ws", proxy.url, "news"), await subscribe("sse", proxy.url, "news"):
                assert busy(proxy) == [1, 1, 0]
                assert await who(proxy) == "x"
        async with forwarding({"address": a.url} | entries) as proxy:
            with await subscribe("ws", proxy.url, "news"):
                answer = await ask(proxy.url, "GET", "/healthz")
                assert answer.status == 503
                assert proxy.counters.refused == {"no-server": 1}
            await until(lambda: busy(proxy) == [0])
            assert (await ask(proxy.url, "GET", "/healthz")).status == 200


async def test_the_same_key_meets_the_same_server() -> None:
    balance = {"method": "hash", "hash_key": "query:user"}
    async with (
        origin("a") as a,
        origin("b") as b,
        origin("c") as c,
        forwarding(a.url, b.url, c.url, balance=balance) as p,
    ):

        async def of_users() -> dict[int, str]:
            return {n: (await ask(p.url, "GET", f"/?user={n}")).body.decode() for n in range(30)}

        before = await of_users()
        assert set(before.values()) == set("abc")
        p.ask_of(p.servers[0], Health.DOWN)
        after = await of_users()
        assert {user for user in before if before[user] != after[user]} == {u for u in before if before[u] == "a"}


# A server is gone


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_clients_do_not_notice_that_a_server_is_gone(method: str) -> None:
    with reserved_port() as port:
        async with (
            origin("b") as b,
            forwarding(f"127.0.0.1:{port}", b.url, health=PROTECTED_FOR_LONG) as proxy,
        ):
            for _ in range(4):
                assert await who(proxy, method=method) == "b"
            assert [server.counts for server in proxy.servers] == [{"requests": 1, "failed": 1}, {"requests": 4}]
            assert proxy.counters.retries == 1


async def test_a_server_that_is_gone_is_tried_again_after_its_time() -> None:
    records = LogCapture()
    with reserved_port() as port:
        gone = {"address": f"127.0.0.1:{port}", "name": "one"}
        async with (
            origin("b") as b,
            forwarding(gone, b.url, health={"fail_timeout": "50ms"}, records=records) as proxy,
        ):
            assert await whos(proxy, 2) == "bb"
            async with origin("a", port):
                while await who(proxy) != "a":
                    await pause()
                assert set(await whos(proxy, 2)) == {"a", "b"}
    changes = [(entry["event"], entry["reason"]) for entry in records.entries if entry.get("server") == "one"]
    assert changes == [("server is down", "exchanges fail"), ("server is up", "exchanges succeed")]


async def test_nobody_is_there() -> None:
    with reserved_port() as one, reserved_port() as other:
        async with forwarding(f"127.0.0.1:{one}", f"127.0.0.1:{other}", health=PROTECTED_FOR_LONG) as proxy:
            assert [await who(proxy) for _ in range(3)] == ["502", "503", "503"]
            assert proxy.counters.refused == {"connect": 1, "no-server": 2}


async def test_the_only_server_is_always_tried() -> None:
    with reserved_port() as port:
        async with forwarding(f"127.0.0.1:{port}", health=PROTECTED_FOR_LONG) as proxy:
            assert [await who(proxy) for _ in range(3)] == ["502", "502", "502"]
            async with origin("a", port):
                assert await who(proxy) == "a"


async def test_without_http_the_next_server_is_connected_to() -> None:
    with reserved_port() as port:
        async with (
            origin("b") as b,
            forwarding(f"127.0.0.1:{port}", b.url, proxy={"mode": "tcp"}, health=PROTECTED_FOR_LONG) as proxy,
        ):
            for _ in range(3):
                assert await who(proxy) == "b"
            await until(lambda: busy(proxy) == [0, 0])
            assert proxy.counters.retries == 1
            assert proxy.counters.tunnels == 3


# Sticky clients


async def cookie(answer: Answer) -> str:
    """What a client sends back."""
    pair, *attributes = answer.headers["set-cookie"].split("; ")
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax"]
    return f"Cookie: {pair}"


STICKY = {"sticky": True}


async def test_a_client_stays_with_its_server_which_knows_nothing_of_it() -> None:
    async with origin("a") as a, origin("b") as b, forwarding(a.url, b.url, balance=STICKY) as proxy:
        first = await ask(proxy.url, "GET", "/")
        second = await ask(proxy.url, "GET", "/", "Cookie: theme=dark")
        assert (first.body, second.body) == (b"a", b"b")
        of_a, of_b = await cookie(first), await cookie(second)
        for _ in range(3):
            answer = await ask(proxy.url, "GET", "/", of_a + "; theme=dark")
            assert answer.body == b"a"
            assert "set-cookie" not in answer.headers
            assert await who(proxy, of_b) == "b"
        told = [line for head_ in a.heard + b.heard for line in head_.split("\r\n") if line.startswith("Cookie")]
        assert set(told) == {"Cookie: theme=dark"}


async def test_a_client_that_came_by_tls_gets_a_cookie_for_tls() -> None:
    async with origin("a") as a, forwarding(a.url, balance=STICKY, tls=tls_section()) as proxy:
        assert proxy.url.startswith("https:")
        answer = await ask(proxy.url, "GET", "/")
        assert answer.headers["set-cookie"].endswith("; HttpOnly; SameSite=Lax; Secure")


async def test_a_websocket_makes_a_client_stay() -> None:
    async with serving() as a, serving() as b, forwarding(a.url, b.url, balance=STICKY) as proxy:
        with await Wire.open(proxy.url) as wire:
            await wire.send(head("GET", "/ws", *WEBSOCKET_HEADERS))
            answer = await read_head(wire)
            assert answer.status == 101
            field = await cookie(answer)
            assert busy(proxy) == [1, 0]
            for _ in range(4):
                assert (await ask(proxy.url, "GET", "/healthz", field)).status == 200
            with await Wire.open(proxy.url) as again:
                await again.send(head("GET", "/ws", *WEBSOCKET_HEADERS, field))
                answer = await read_head(again)
                assert answer.status == 101
                assert "set-cookie" not in answer.headers
                assert busy(proxy) == [2, 0]
        assert proxy.servers[1].counts["requests"] == 0


async def test_a_sticky_client_whose_server_is_gone_moves_for_good() -> None:
    with reserved_port() as port:
        balance, address = STICKY | {"cookie_secret": "s"}, f"127.0.0.1:{port}"
        async with origin("a", port), origin("b") as b, forwarding(address, b.url, balance=balance) as proxy:
            field = await cookie(await ask(proxy.url, "GET", "/"))
            assert await who(proxy, field) == "a"
        async with (
            origin("b") as b,
            forwarding(address, b.url, balance=balance, health=PROTECTED_FOR_LONG) as proxy,
        ):
            answer = await ask(proxy.url, "GET", "/", field)
            assert answer.body == b"b"
            new = await cookie(answer)
            assert new != field
            async with origin("a", port):
                proxy.servers[0].checked(trio.current_time(), is_well=True, detail="it is there")
                assert await who(proxy, new) == "b"
                assert await who(proxy, field) == "a"


async def test_a_sticky_client_whose_server_is_gone_and_that_must_not_move() -> None:
    balance = STICKY | {"cookie_secret": "s", "sticky_failover": "fail"}
    with reserved_port() as port:
        address = f"127.0.0.1:{port}"
        async with origin("a", port), origin("b") as b, forwarding(address, b.url, balance=balance) as proxy:
            field = await cookie(await ask(proxy.url, "GET", "/"))
        async with (
            origin("b") as b,
            forwarding(address, b.url, balance=balance, health=PROTECTED_FOR_LONG) as proxy,
        ):
            assert [await who(proxy, field) for _ in range(2)] == ["502", "503"]
            assert await who(proxy) == "b"


# Checks


async def test_a_server_that_is_not_well_gets_nothing_until_it_is() -> None:
    health = {"path": "/healthz", "interval": "10ms", "timeout": "10s", "rise": 2, "fall": 2}
    async with origin("a") as a, origin("b") as b, forwarding(a.url, b.url, health=health, admin=ADMIN) as proxy:
        assert await whos(proxy, 4) == "abab"

        async def told() -> list[str]:
            servers = (await administer(proxy, "GET", "/servers")).json()["servers"]
            return [server["health"] for server in servers]

        a.status = 503
        while await told() != ["down", "up"]:
            await pause()
        assert await whos(proxy, 4) == "bbbb"
        b.status = 500
        while await told() != ["down", "down"]:
            await pause()
        assert await who(proxy) == "503"
        assert (await administer(proxy, "GET", "/readyz")).status == 503
        a.status = b.status = 200
        while await told() != ["up", "up"]:
            await pause()
        assert set(await whos(proxy, 4)) == {"a", "b"}
        assert proxy.servers[0].counts["failed"] == 0, "clients have noticed nothing of it"


# Drain of one server


async def test_a_server_drains_while_its_streams_live_on() -> None:
    balance = STICKY | {"method": "first"}
    async with (
        serving() as a,
        serving() as b,
        forwarding(
            {"address": a.url, "name": "a"}, {"address": b.url, "name": "b"}, balance=balance, admin=ADMIN
        ) as proxy,
    ):
        answered = 0
        stop = trio.Event()

        async def load() -> None:
            nonlocal answered
            with await Wire.open(proxy.url) as wire:
                while not stop.is_set():
                    await wire.send(head("GET", "/healthz"))
                    assert (await read_answer(wire)).status == 200
                    answered += 1

        field = await cookie(await ask(proxy.url, "GET", "/healthz"))
        with await subscribe("sse", proxy.url, "news") as sse, await subscribe("ws", proxy.url, "news") as ws:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(load)
                await until(lambda: answered > 50)
                assert proxy.servers[1].counts["requests"] == 0
                assert (await administer(proxy, "POST", "/servers/a?state=drain")).json()["health"] == "draining"
                before = proxy.servers[0].counts["requests"]
                so_far = answered
                await until(lambda: answered > so_far + 50)
                # Those that were on their way when it began to drain are all that it got.
                assert proxy.servers[0].counts["requests"] == before
                # What waited for another request is closed; the streams are not.
                await until(lambda: a.connections == 2)
                assert proxy.servers[0].active == 2
                for number in range(3):
                    await a.hub.publish("news", number)
                    assert (await sse.event()).data == (await ws.event()).data == number
                assert (await ask(proxy.url, "GET", "/healthz", field)).status == 200
                assert proxy.servers[0].counts["requests"] == before + 1, "who sticks to it may go on"
                await until(lambda: a.connections == 2)
                assert (await administer(proxy, "POST", "/servers/a?state=down")).status == 200
                assert (await ask(proxy.url, "GET", "/healthz", field)).status == 200
                assert proxy.servers[0].counts["requests"] == before + 1
                await a.hub.publish("news", "still there")
                assert (await sse.event()).data == (await ws.event()).data == "still there"
                assert (await administer(proxy, "POST", "/servers/a?state=up")).status == 200
                so_far = proxy.servers[0].counts["requests"]
                await until(lambda: proxy.servers[0].counts["requests"] > so_far + 20)
                stop.set()


# What can be seen


async def test_what_connections_do_can_be_seen() -> None:
    async with serving() as a, forwarding({"address": a.url, "name": "a"}, admin=ADMIN) as proxy:

        async def seen() -> dict[str, Any]:
            views = (await administer(proxy, "GET", "/connections")).json()["connections"]
            return {view["state"]: view for view in views}

        async def wait_seen(*states: str) -> dict[str, Any]:
            while set(found := await seen()) != set(states):
                pass
            return found

        with await subscribe("ws", proxy.url, "news") as ws:
            view = (await wait_seen("tunnel"))["tunnel"]
            assert view["peer"].startswith("127.0.0.1:")
            assert view["server"] == "a"
            assert view["request"] == "GET /events?topic=news"
            before = view["sent"]
            await a.hub.publish("news", "x" * 1000)
            assert isinstance(await ws.event(), Event)
            view = (await seen())["tunnel"]
            assert before + 1000 < view["sent"] < before + 1200
            assert 0 <= view["idle_sent"] <= view["idle_received"] <= view["age"]
        await wait_seen()
        with await subscribe("sse", proxy.url, "news"):
            view = (await wait_seen("response"))["response"]
            assert (view["request"], view["server"]) == ("GET /events?topic=news", "a")
        await wait_seen()
        with await Wire.open(proxy.url) as wire:
            view = (await wait_seen("idle"))["idle"]
            assert (view["request"], view["server"], view["received"], view["sent"]) == ("", "", 0, 0)
            await wire.send(b"GET /events")
            assert (await wait_seen("head"))["head"]["received"] == len(b"GET /events")
            await wire.send(b"?topic=news HTTP/1.1\r\nHost: test\r\n\r\n")
            assert (await wait_seen("waiting"))["waiting"]["server"] == "a"
            await until(lambda: a.hub.statistics().subscribers == 1)
            await a.hub.publish("news", 1)
            assert (await read_answer(wire)).status == 200
            await wait_seen("idle")
            await wire.send(head("POST", "/publish?topic=news", "Content-Length: 2") + b"1")
            assert (await wait_seen("request"))["request"]["request"] == "POST /publish?topic=news"
            await wire.send(b"1")
            assert (await read_answer(wire)).status == 200
        await wait_seen()


async def test_what_happened_is_counted_and_logged() -> None:
    records = LogCapture()
    async with (
        serving() as a,
        forwarding({"address": a.url, "name": "a"}, admin=ADMIN, logging={"access": True}, records=records) as proxy,
    ):
        assert (await ask(proxy.url, "GET", "/healthz")).status == 200
        assert (await ask(proxy.url, "GET", "/no\x7fne")).status == 400
        for transport in ("ws", "sse"):
            with await subscribe(transport, proxy.url, "news"):
                pass
            await until(lambda: not proxy.clients)
        counters = proxy.counters
        assert counters.requests == {"2xx": 2, "4xx": 1, "1xx": 1}
        assert (counters.accepted, counters.tunnels, counters.opened) == (4, 1, 3 - counters.reused)
        assert counters.cuts == {"client": 1}
        assert counters.refused.total() == 1
        assert counters.received > 300
        assert counters.sent > 500
        metrics = (await administer(proxy, "GET", "/metrics")).body.decode()
        assert f"tricast_proxy_received_bytes_total {float(counters.received)}" in metrics
        assert 'tricast_proxy_cuts_total{reason="client"} 1.0' in metrics
    lines = [entry for entry in records.entries if entry["event"] == "request"]
    told = [(line["method"], line["target"], line["status"], line["server"], line["why"]) for line in lines]
    assert told == [
        ("GET", "/healthz", 200, "a", "done"),
        ("", "", 400, "", "refused"),
        ("GET", "/events?topic=news", 101, "a", "client"),
        ("GET", "/events?topic=news", 200, "a", "client"),
    ]
    assert lines[0]["bytes"] == len(b'{"status":"ok"}\n')
    assert all(line["seconds"] >= 0 for line in lines)


async def test_draining_the_proxy_by_its_admin_listener() -> None:
    async with serving() as a, forwarding(a.url, admin=ADMIN, drain={"grace": "10s"}) as proxy:
        with await subscribe("ws", proxy.url, "news") as ws:
            assert (await administer(proxy, "POST", "/drain")).status == 202
            assert (await administer(proxy, "GET", "/readyz")).status == 503
            await a.hub.publish("news", 1)
            assert (await ws.event()).data == 1
        await proxy.wait_stopped()


# Events, wherever they come from

FOLLOWED = ("poll", "sse", "ws")


class Followers:
    """One subscriber for each transport, which comes back wherever it was cut off.

    Args:
        url: where they subscribe.
        first: the id behind which they begin.
        per_connection: so many events, and then they leave and come back.
    """

    def __init__(self, url: str, first: str, per_connection: int) -> None:
        self._url = url
        self._first = first
        self._per_connection = per_connection
        self.seen: dict[str, list[int]] = {transport: [] for transport in FOLLOWED}

    async def follow(self, transport: str, count: int) -> None:
        """Follows until it has seen so many."""
        last_id: str | None = self._first
        seen = self.seen[transport]
        while len(seen) < count:
            try:
                with await subscribe(transport, self._url, "news", last_id=last_id) as subscriber:
                    for _ in range(self._per_connection):
                        seen.append((await subscriber.event()).data["n"])
                        last_id = subscriber.last_id
                        if len(seen) == count:
                            break
            except (Closed, Ended):
                continue

    async def wait_seen(self, number: int) -> None:
        """Returns when all have seen this one."""
        await until(lambda: all(number in seen for seen in self.seen.values()))


async def test_nothing_is_lost_by_moving_between_servers_that_share_a_log(tmp_path: Path) -> None:
    log = {"url": f"sqlite:///{tmp_path / 'log.db'}"}
    async with (
        serving_process(log=log) as a,
        serving_process(log=log) as b,
        forwarding(a.url, b.url) as proxy,
    ):
        followers = Followers(proxy.url, await publish(proxy.url, "news", {"n": 0}), per_connection=3)
        async with trio.open_nursery() as nursery:
            for transport in FOLLOWED:
                nursery.start_soon(followers.follow, transport, 60)
            for number in range(1, 61):
                await publish(proxy.url, "news", {"n": number})
                await followers.wait_seen(number - 3 if number > 3 else 1)
        for seen in followers.seen.values():
            assert seen == list(range(1, 61))
        assert min(server.counts["requests"] for server in proxy.servers) > 45


async def test_nothing_is_lost_when_a_server_dies(tmp_path: Path) -> None:
    log = {"url": f"sqlite:///{tmp_path / 'log.db'}"}
    retry, balance = {"on": ["connect", "empty"]}, {"method": "least_connections"}
    async with (
        serving_process(log=log) as a,
        serving_process(log=log) as b,
        forwarding(a.url, b.url, retry=retry, balance=balance, health=PROTECTED_FOR_LONG) as proxy,
    ):
        followers = Followers(proxy.url, await publish(proxy.url, "news", {"n": 0}), per_connection=1000)

        async def publish_surely(number: int) -> None:
            """Again until it is known to be there, which the key makes safe: it may be there already."""
            body = b'{"n": %d}' % number
            while True:
                key = f"Idempotency-Key: number-{number}"
                if (await ask(proxy.url, "POST", "/publish?topic=news", key, body=body)).status == 200:
                    return

        async with trio.open_nursery() as nursery:
            for transport in FOLLOWED:
                nursery.start_soon(followers.follow, transport, 40)
            for number in range(1, 41):
                if number == 20:
                    await until(lambda: min(busy(proxy)) >= 1)  # some are with either
                    a.process.kill()
                await publish_surely(number)
                await followers.wait_seen(number)
        for seen in followers.seen.values():
            assert seen == list(range(1, 41))
        assert proxy.servers[0].health(trio.current_time()) is Health.DOWN
        assert proxy.servers[1].counts["failed"] == 0


# The README


async def test_the_example_of_the_readme(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "proxy" / "README.md").read_text()
    (example,) = [code for code in re.findall(r"```toml\n(.*?)```", readme, re.DOTALL) if "several.toml" in code]
    pattern = r"^\$ curl(?: -X (\w+))? '?http://127\.0\.0\.1:9091(/[^\s']*)'?(?: -d '(.*)')?$"
    commands = re.findall(pattern, readme, re.MULTILINE)
    assert len(commands) == readme.count("$ curl")
    async with serving() as a, serving() as b:
        path = tmp_path / "several.toml"
        path.write_text(example.replace("8081", str(a.port)).replace("8082", str(b.port)))
        config = load_proxy_config(path, overrides={"proxy": {"port": 0}})
        assert config.admin.enabled
        assert config.admin.port == 9091
        sections = config.model_dump(exclude={"server", "proxy", "admin"})
        sections["health"]["timeout"] = HANG_SECONDS
        entries = [entry.model_dump() for entry in config.server]
        async with forwarding(*entries, admin=ADMIN, **sections) as proxy:
            with await subscribe("sse", proxy.url, "news"), await subscribe("ws", proxy.url, "news"):
                assert busy(proxy) == [1, 1]
                states, faults = [], []
                for method, target, body in commands:
                    answer = await administer(proxy, method or "GET", target, body.encode())
                    assert answer.status == 200
                    if "/servers" in target:
                        states.append(proxy.servers[0].health(trio.current_time()))
                    else:
                        faults.append(answer.json())
                assert states == [Health.DRAINING, Health.DRAINING, Health.UP]
                assert [bool(fault) for fault in faults] == [True, True, False]
