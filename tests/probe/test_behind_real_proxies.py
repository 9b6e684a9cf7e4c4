"""What the probe finds out of real proxies whose timers are known: idle timers, who cut, and who tells the server."""

from typing import NamedTuple

import msgspec
from probe.again import WITHIN, until_right
from probe.probing import probed, target_of
from proxies.real import DEFAULTS, real_proxy

from tricast.probe.blame import Culprit
from tricast.probe.cells import POOL, Plan, plan_of
from tricast.probe.checks.leaving import measure_leaving
from tricast.probe.checks.timers import Timers
from tricast.probe.findings import Finding, Verdict
from tricast.probe.verdicts.leaving import Left
from tricast.probe.verdicts.timers import Timing, timers, timing

#: All of them give up after three seconds, which is a minute at this speed.
SPEED = 20
SECONDS = 3.0

NGINX = """\
events {}
http {
    map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
    upstream origin { server 127.0.0.1:@origin_port@; keepalive 8; keepalive_timeout 1s; }
    server {
        listen 127.0.0.1:@port@;
        location / {
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Host $http_host;
            @timers@
        }
    }
}
"""
#: Where both timers end at the same time, chance has it which one does, and whether the server sees a FIN or a RST.
HAPROXY = """\
defaults
    mode http
    timeout connect 3s
    timeout client 10s
    timeout server 3s
frontend front
    bind 127.0.0.1:@port@
    default_backend origin
backend origin
    server origin 127.0.0.1:@origin_port@
"""
APACHE = """\
@timers@
ProxyPass / http://127.0.0.1:@origin_port@/ upgrade=websocket
"""
VARNISH = """\
vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "@origin_port@"; }
sub vcl_recv {
    if (req.http.upgrade ~ "(?i)websocket") { return (pipe); }
    return (pass);
}
sub vcl_pipe {
    set bereq.http.upgrade = req.http.upgrade;
    set bereq.http.connection = req.http.connection;
}
"""


class Real(NamedTuple):
    """A proxy, and what is to be found of it.

    Attributes:
        kind: which.
        config: of it.
        poll_status: with what it answers a poll that takes too long.
        has_websocket: whether it lets WebSockets through.
        at_server: how its cut looks at the server.
        counts: whose bytes keep a WebSocket alive.
        sse_end: how it ends an event stream.
        tells_at_once: whether the server learns at once that the client of a poll has left.
    """

    kind: str
    config: str
    poll_status: int
    has_websocket: bool = True
    at_server: str = "FIN"
    counts: str = "either"
    sse_end: str = "fin"
    tells_at_once: bool = True


PROXIES = {
    "nginx by default": Real("nginx", DEFAULTS["nginx"], 504, has_websocket=False),
    "nginx for WebSockets": Real("nginx", NGINX, 504),
    "HAProxy": Real("haproxy", HAPROXY, 504, at_server="RST", tells_at_once=False),
    "Caddy 2.6": Real("caddy", DEFAULTS["caddy"], 504, counts="server", sse_end="complete"),
    "Apache": Real("apache", APACHE, 502, tells_at_once=False),
    "Varnish": Real("varnish", VARNISH, 503, tells_at_once=False),
}


class Found(NamedTuple):
    """What was found of one."""

    by_transport: dict[str, Timing]
    findings: list[Finding]
    left: dict[str, Left]


def check(found: Found, real: Real) -> None:
    streams = ["sse", "poll", *(["ws"] if real.has_websocket else [])]
    for transport in streams:
        each = found.by_transport[transport]
        assert each.idle is not None, each
        assert each.total is None, each
        # Nginx leaves a timer as it is that would move by less than 0.3 s; and this machine may be busy.
        assert SECONDS * SPEED * 0.9 <= each.idle.low <= SECONDS * SPEED * 1.2, each
        assert each.culprit == Culprit.PATH, each
        assert f"{real.at_server} at the server" in each.form, each
    assert found.by_transport["sse"].how == real.sse_end
    assert found.by_transport["sse"].counts == "either"
    assert (found.by_transport["poll"].how, found.by_transport["poll"].form.split()[1]) == (
        "status",
        str(real.poll_status),
    )
    if real.has_websocket:
        ws = found.by_transport["ws"]
        assert (ws.how, ws.counts, ws.tcp_keepalive, ws.pinged) == ("fin", real.counts, False, True), ws
    else:
        assert found.by_transport["ws"].refused == "no WebSocket: status 426"
    told = found.left["poll"]
    assert told.why == ""
    assert (told.seconds is not None and told.seconds < 1) == real.tells_at_once, told
    assert not [each for each in found.findings if "server itself" in each.summary]


def check_pool(pool: Finding, name: str) -> None:
    assert pool.check == "P17"
    if name == "nginx by default":
        assert pool.summary == "none is kept when its client has left"
    elif name == "nginx for WebSockets":
        assert pool.verdict is Verdict.OK
        assert SPEED * 0.95 <= pool.detail["kept"] <= SPEED * 2, POOL


async def test_timers_and_who_has_them() -> None:
    found: dict[str, Found] = {}

    async def measure(name: str, _: float) -> None:
        real = PROXIES[name]
        plan: Plan = plan_of(130, speed=SPEED, copies=2, transports=("ws", "sse", "poll"))
        # None of them forgets a connection in silence; without the rungs there are few enough to be measured well.
        plan = msgspec.structs.replace(plan, ladder=(), poll_ladder=())
        async with real_proxy(real.kind, real.config, timeout=SECONDS, origin_port=server.port) as proxy:
            target = target_of(proxy.url)
            run = Timers(target, plan)
            await run.run()
            left = {each.kind: each for each in await measure_leaving(target, patience=1.5)}
        by_transport = {transport: timing(run.outcomes, transport, plan) for transport in plan.transports}
        found[name] = Found(by_transport, list(timers(run.outcomes, plan)), left)

    def check_all(name: str) -> None:
        check(found[name], PROXIES[name])
        check_pool(found[name].findings[-1], name)

    async with probed(within=WITHIN) as (server, _):
        await until_right(PROXIES, measure, check_all)
