"""Who the client is, behind real proxies: told in fields of HTTP, and in both versions of the PROXY protocol.

The proxies come from 127.0.0.1, which is trusted, and the clients from other addresses, which are not.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from clients import TRANSPORTS, Answer, Wire, attempt, head, query_of, read_answer, subscribe, subscription_headers
from encryption import tls_section
from proxies.real import RealProxy, real_proxy
from serving import serving, until
from structlog.testing import LogCapture

import tricast

_NGINX = """\
events {}
http {
    server {
        listen 127.0.0.1:@port@;
        location / {
            proxy_pass http://@origin@;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $http_connection;
            proxy_buffering off;
            %(fields)s
        }
    }
}
"""
_HAPROXY = """\
defaults
    mode %(mode)s
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    timeout check 20s
    %(more)s
frontend front
    bind 127.0.0.1:@port@
    %(fields)s
    default_backend origin
backend origin
    %(check)s
    server origin @origin@ %(options)s
"""


def _haproxy(*fields: str, mode: str = "http", check: str = "", options: str = "") -> str:
    lines = "\n    ".join(fields)
    # Else it would learn that a client has left its poll when that is answered.
    more = "option http-no-delay\n    option abortonclose" if mode == "http" else ""
    return _HAPROXY % {"more": more, "mode": mode, "fields": lines, "check": check, "options": options}


class Way(NamedTuple):
    """How a proxy is set up, and what the server believes.

    Attributes:
        kind: of proxy.
        config: of it.
        section: ``server`` of the server's configuration.
    """

    kind: str
    config: str
    section: dict[str, Any]


_TRUSTED = {"trusted_proxies": ["127.0.0.1", "unix"]}
_INTRODUCED = _TRUSTED | {"proxy_protocol": True}
WAYS = {
    "nginx": Way(
        "nginx", _NGINX % {"fields": "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"}, _TRUSTED
    ),
    "haproxy": Way("haproxy", _haproxy("option forwardfor"), _TRUSTED),
    "haproxy-forwarded": Way(
        "haproxy",
        _haproxy('http-request add-header Forwarded "for=%[src];proto=http"'),
        _TRUSTED | {"forwarded": "forwarded"},
    ),
    "send-proxy": Way("haproxy", _haproxy(mode="tcp", options="send-proxy"), _INTRODUCED),
    "send-proxy-v2": Way("haproxy", _haproxy(mode="tcp", options="send-proxy-v2"), _INTRODUCED),
    "send-proxy-v2-http": Way(
        "haproxy", _haproxy(options="send-proxy-v2 proxy-v2-options unique-id,crc32c"), _INTRODUCED
    ),
}


def as_client(number: int, proxy: RealProxy, scheme: str = "http") -> str:
    """The proxy's URL for a client with an address of its own."""
    return proxy.url.replace("http://", f"{scheme}://127.0.0.{number}@")


def clients_of(records: LogCapture) -> list[str]:
    """Who has asked, as the access log says, but for those who look whether the server is there."""
    return [
        str(entry.get("client", entry["peer"]))
        for entry in records.entries
        if entry["event"] == "request" and entry["target"] != "/readyz"
    ]


async def asked(url: str, *headers: str) -> Answer:
    with await Wire.open(url) as wire:
        await wire.send(head("GET", "/healthz", *headers))
        return await read_answer(wire)


@pytest.mark.parametrize("name", WAYS)
async def test_the_client_is_who_the_proxy_tells_of(name: str) -> None:
    way, records = WAYS[name], LogCapture()
    async with (
        serving(records=records, server=way.section, logging={"access": True}) as server,
        real_proxy(way.kind, way.config, origin=f"127.0.0.1:{server.port}") as proxy,
    ):
        lie = ("X-Forwarded-For: 198.51.100.1", "Forwarded: for=198.51.100.1")
        for headers in ((), lie, (*lie, *lie)):
            assert (await asked(as_client(7, proxy), *headers)).status == 200
        for transport in TRANSPORTS:
            with await subscribe(transport, as_client(8, proxy), "news", last_id="0-1") as subscriber:
                await server.hub.publish("news", 1)
                await subscriber.gap()
                await subscriber.event()
    found = clients_of(records)
    assert found[:3] == ["127.0.0.7"] * 3
    assert set(found[3:]) == {"127.0.0.8"}
    assert len(found) >= 3 + len(TRANSPORTS)
    assert not server._runtime.counters.failed


@pytest.mark.parametrize("name", WAYS)
async def test_each_client_has_its_own_places(name: str) -> None:
    way = WAYS[name]
    limits = {"connections_per_address": 2}
    async with (
        serving(server=way.section, limits=limits) as server,
        real_proxy(way.kind, way.config, origin=f"127.0.0.1:{server.port}") as proxy,
    ):
        with ExitStack() as wires:
            for number, transport in ((7, "sse"), (7, "ws"), (8, "poll"), (8, "sse"), (9, "ws")):
                count = server.hub.statistics().subscribers
                wire = wires.enter_context(await Wire.open(as_client(number, proxy)))
                await wire.send(head("GET", "/events?topic=news", *subscription_headers(transport)))
                await until(lambda count=count: server.hub.statistics().subscribers > count)
            for transport in TRANSPORTS:
                answer = await attempt(transport, as_client(7, proxy), query_of(["news"]))
                assert (answer.status, answer.code) == (429, "limit-exceeded")
            assert (await asked(as_client(9, proxy))).status == 200
            assert server._runtime.counters.refusals == {"limits.connections_per_address": len(TRANSPORTS)}
        await until(lambda: server.hub.statistics().subscribers == 0)
        assert (await asked(as_client(7, proxy))).status == 200


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
async def test_over_a_unix_socket(kind: str, tmp_path: Path) -> None:
    path, way, records = tmp_path / "socket", WAYS[kind], LogCapture()
    section = way.section | {"host": f"unix:{path}", "unix_mode": "0666"}
    origin = f"unix:{path}" if kind == "nginx" else f"unix@{path}"
    async with (
        serving(records=records, server=section, logging={"access": True}),
        real_proxy(way.kind, way.config, origin=origin) as proxy,
    ):
        assert (await asked(as_client(7, proxy))).status == 200
    assert clients_of(records) == ["127.0.0.7"]


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
async def test_tls_through_a_proxy_that_only_tells_who_it_is(version: str) -> None:
    config, records = _haproxy(mode="tcp", options=version), LogCapture()
    sections = {"server": _INTRODUCED, "tls": tls_section(), "logging": {"access": True}}
    async with (
        serving(records=records, **sections) as server,
        real_proxy("haproxy", config, origin=f"127.0.0.1:{server.port}") as proxy,
    ):
        assert (await asked(as_client(7, proxy, "https"))).status == 200
    assert clients_of(records) == ["127.0.0.7"]


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
async def test_a_proxy_that_looks_after_the_server_speaks_for_itself(version: str) -> None:
    """Its checks come with LOCAL, or in version 1 UNKNOWN, and are not limited."""
    options = f"{version} check check-send-proxy inter 20ms"
    config = _haproxy(check="option httpchk GET /readyz", options=options)
    records = LogCapture()
    sections: dict[str, Any] = {"limits": {"connections_per_address": 1, "accept_rate_per_address": 1}}
    async with (
        serving(records=records, server=_INTRODUCED, logging={"access": True}, **sections) as server,
        real_proxy("haproxy", config, origin=f"127.0.0.1:{server.port}"),
    ):
        await until(lambda: checks(records, server) >= 5)
    (peer,) = {entry["peer"] for entry in records.entries if entry["event"] == "request"}
    assert peer == "127.0.0.1"
    assert not server._runtime.counters.refusals


def checks(records: LogCapture, server: tricast.Server) -> int:
    assert not server._runtime.counters.refused
    return sum(entry["event"] == "request" and entry["status"] == 200 for entry in records.entries)


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
async def test_a_proxy_that_does_not_introduce_anybody_is_told(kind: str) -> None:
    async with (
        serving(server=_INTRODUCED) as server,
        real_proxy(kind, WAYS[kind].config, origin=f"127.0.0.1:{server.port}") as proxy,
    ):
        answer = await asked(as_client(7, proxy))
        assert (answer.status, answer.code) == (400, "proxy-protocol-malformed")
