"""The probe behind real proxies names the Upgrade policy, how event streams come, and who the proxy is."""

from collections.abc import Mapping
from typing import NamedTuple

from probe.again import WITHIN, until_right
from probe.probing import TOKEN, probed
from proxies.real import DEFAULTS, real_proxy

from tricast.probe.run import Outcome, Plan, examine


class Setup(NamedTuple):
    """A proxy with its configuration, and what has to be found of it."""

    kind: str
    config: str
    policy: str
    ours: str
    plain: str
    is_plain_shared: bool = False
    details: Mapping[str, Mapping[str, object]] = {}


def nginx(*lines):
    return DEFAULTS["nginx"].replace("@timers@", "\n            ".join([*lines, "@timers@"]))


_WEBSOCKET = (
    "proxy_http_version 1.1;",
    "proxy_set_header Upgrade $http_upgrade;",
    "proxy_set_header Connection upgrade;",
)
_GZIP = (
    "proxy_http_version 1.1;",
    "gzip on;",
    "gzip_types text/event-stream;",
    "gzip_min_length 0;",
    "gzip_proxied any;",
)
_PIPE = """
sub vcl_recv { if (req.http.upgrade ~ "(?i)websocket") { return (pipe); } return (pass); }
sub vcl_pipe {
    if (req.http.upgrade) {
        set bereq.http.upgrade = req.http.upgrade;
        set bereq.http.connection = req.http.connection;
    }
}
"""

SETUPS = {
    "nginx as it comes": Setup(
        *("nginx", DEFAULTS["nginx"], "stripped", "streaming", "held"),
        details={"SSE without these fields": {"buffer_bytes": 4096}},
    ),
    "nginx for WebSockets": Setup("nginx", nginx(*_WEBSOCKET), "forwarded", "streaming", "streaming"),
    "nginx that compresses": Setup(
        *("nginx", nginx(*_GZIP), "stripped", "streaming", "streaming"),
        details={"compression": {"plain": "held", "plain_encoding": "gzip"}},
    ),
    "HAProxy as it comes": Setup("haproxy", DEFAULTS["haproxy"], "forwarded", "coalesced", "coalesced"),
    "HAProxy without delay": Setup(
        "haproxy",
        DEFAULTS["haproxy"].replace("mode http", "mode http\n    option http-no-delay"),
        "forwarded",
        "streaming",
        "streaming",
    ),
    "Caddy": Setup("caddy", DEFAULTS["caddy"], "forwarded", "streaming", "streaming"),
    "Apache as it comes": Setup("apache", DEFAULTS["apache"], "stripped", "streaming", "streaming"),
    "Apache for WebSockets": Setup(
        "apache",
        DEFAULTS["apache"].replace("@origin_port@/", "@origin_port@/ upgrade=websocket"),
        "forwarded",
        "streaming",
        "streaming",
    ),
    "Varnish as it comes": Setup(
        "varnish", DEFAULTS["varnish"], "stripped", "streaming", "streaming", is_plain_shared=True
    ),
    "Varnish for WebSockets": Setup("varnish", DEFAULTS["varnish"] + _PIPE, "forwarded", "streaming", "streaming"),
}


async def test_what_it_finds():
    """All at the same time, since each takes seconds."""
    found: dict[str, Outcome] = {}

    async def probe(name: str, _: float) -> None:
        setup = SETUPS[name]
        timers = {"timeout": 60} if "@timers@" in setup.config else {}
        async with real_proxy(setup.kind, setup.config, origin_port=server.port, **timers) as proxy:
            found[name] = Outcome(plan=Plan(url=proxy.url, token=TOKEN, transports=("ws", "sse")))
            await examine(found[name])

    async with probed(within=WITHIN) as (server, _):
        await until_right(SETUPS, probe, lambda name: check(found[name], SETUPS[name]))


def check(found: Outcome, setup: Setup) -> None:
    by_title = {finding.title: finding for finding in found.findings}
    ours, plain = by_title["SSE"], by_title.get("SSE without these fields", by_title["SSE"])
    assert found.proxies[:1] == [setup.kind]
    assert by_title["WebSocket"].detail["policy"] == setup.policy
    assert (ours.detail["kind"], plain.detail["kind"]) == (setup.ours, setup.plain)
    assert by_title["shared or cached"].detail["is_plain_shared"] is setup.is_plain_shared
    # Whatever is found, it is the way's fault, which direct asking would not show.
    assert not [f for f in found.findings if f.verdict == "unknown" and f.check != "P9"]
    for title, details in setup.details.items():
        assert {name: by_title[title].detail[name] for name in details} == details
    if setup.ours == "coalesced":
        assert 0.15 < ours.detail["period"] < 0.35
