"""What to write into the configuration of a proxy, against each problem. Data, and a function that picks from it.

A snippet is lines, of which those that help against a problem that was found are shown, within those that they have to
stand in. Does no I/O.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

#: Problems that a proxy's configuration can solve.
NO_WEBSOCKET = "no-ws"
BUFFERED = "buffered"
COMPRESSED = "compressed"
SHARED = "shared"
IDLE = "idle"
TOTAL = "total"
POLL = "poll"
RETRIES = "retries"
BODIES = "bodies"
LEAVERS = "leavers"
STICKY = "sticky"
HOST = "host"
PROBLEMS = (NO_WEBSOCKET, BUFFERED, COMPRESSED, SHARED, IDLE, TOTAL, POLL, RETRIES, BODIES, LEAVERS, STICKY, HOST)


class Line(NamedTuple):
    """One line of a snippet.

    Attributes:
        text: as it is written.
        against: the problems it helps against; empty for a line that is always there.
    """

    text: str
    against: frozenset[str] = frozenset()


class Snippet(NamedTuple):
    """What to write for one proxy.

    Attributes:
        proxy: its key in ``fingerprint.NAMES``.
        where: where it is written, in words.
        lines: of the snippet.
    """

    proxy: str
    where: str
    lines: tuple[Line, ...]


def _lines(text: str) -> tuple[Line, ...]:
    """The lines of a text; what follows a tab is the problems that the line is against."""
    return tuple(_line(line) for line in text.strip("\n").split("\n"))


def _line(text: str) -> Line:
    words, _, against = text.partition("\t")
    problems = frozenset(against.split())
    assert problems <= frozenset(PROBLEMS), f"unknown problem in {text!r}"
    return Line(words.rstrip(), problems)


SNIPPETS = (
    Snippet(
        "nginx",
        "nginx.conf: map in http {}, the rest in server {}; a whole one is config/nginx.conf",
        _lines("""
map $http_upgrade $connection_upgrade { default upgrade; '' ''; }\tno-ws
location / {
    proxy_pass http://tricast;                      # upstream tricast { server …; keepalive 32; }
    proxy_http_version 1.1;                         # the default since 1.29.7; HTTP/1.0 is held back\tno-ws buffered
    proxy_set_header Upgrade $http_upgrade;\tno-ws
    proxy_set_header Connection $connection_upgrade;\tno-ws
    proxy_set_header Host $http_host;               # pages of the same origin are known by it\thost no-ws
    proxy_buffering off;                            # or X-Accel-Buffering: no in the answer\tbuffered
    gzip off;                                       # with buffering it holds events back\tcompressed
    proxy_cache off;\tshared
    proxy_request_buffering off;                    # bodies reach the server as they come\tbodies
    proxy_read_timeout 75s;                         # longer than any silence: pings, comments, long polls\tidle poll
    proxy_next_upstream error;                      # a long poll that timed out is not asked again\tretries
}
"""),
    ),
    Snippet(
        "haproxy",
        "haproxy.cfg; a whole one is config/haproxy.cfg",
        _lines("""
defaults\tbuffered bodies idle poll retries leavers
    option http-no-delay                            # without it each event waits about 200 ms\tbuffered
    no option http-buffer-request\tbodies
    timeout client 75s                              # longer than any silence: pings, comments, long polls\tidle poll
    timeout server 75s\tidle poll
    timeout tunnel 1h                               # WebSockets; without it they follow client and server\tidle
    retry-on conn-failure                           # nothing that the server may have seen already\tretries
    option abortonclose                             # clients that leave a long poll are noticed\tleavers
backend tricast\tsticky
    cookie srv insert indirect nocache httponly     # and: server a … cookie a\tsticky
# no "compression algo" for text/event-stream\tcompressed
"""),
    ),
    Snippet(
        "caddy",
        "Caddyfile, within the site; a whole one is config/Caddyfile",
        _lines("""
reverse_proxy 127.0.0.1:8080 {
    # no buffer_responses (before 2.7) and no response_buffers\tbuffered
    # no buffer_requests (before 2.7) and no request_buffers\tbodies
    # no stream_timeout: it ends WebSockets by the clock\ttotal
    # no lb_retries and no lb_try_duration, which ask again\tretries
    lb_policy cookie srv\tsticky
    transport http {\tidle poll
        read_timeout 75s                            # only what the server sends counts\tidle poll
        response_header_timeout 75s\tpoll
    }\tidle poll
}
"""),
    ),
    Snippet(
        "apache",
        "the virtual host; a2enmod proxy proxy_http; a whole one is config/apache.conf",
        _lines("""
ProxyPass        / http://127.0.0.1:8080/ upgrade=websocket\tno-ws
# pages of the same origin are known by Host\thost no-ws
ProxyPreserveHost On\thost no-ws
# or no mod_deflate for text/event-stream\tcompressed
SetEnv no-gzip 1\tcompressed
CacheDisable /\tshared
# of the host, not of ProxyPass: it rules WebSockets too\tidle
Timeout 75\tidle
# longer than a long poll\tpoll
ProxyTimeout 75\tpoll
ProxyPass        / balancer://tricast/ stickysession=SRV\tsticky
"""),
    ),
    Snippet(
        "varnish",
        "default.vcl; a whole one is config/varnish.vcl",
        _lines("""
sub vcl_recv {\tno-ws shared
    if (req.http.upgrade ~ "(?i)websocket") { return (pipe); }\tno-ws
    return (pass);                                  # otherwise subscribers share one cached stream\tshared
}\tno-ws shared
sub vcl_pipe {\tno-ws
    if (req.http.upgrade) {\tno-ws
        set bereq.http.upgrade = req.http.upgrade;\tno-ws
        set bereq.http.connection = req.http.connection;\tno-ws
    }\tno-ws
}\tno-ws
sub vcl_backend_response { set beresp.do_stream = true; set beresp.do_gzip = false; }\tbuffered compressed
# varnishd -p pipe_timeout=75                       # WebSockets\tidle
# varnishd -p first_byte_timeout=75 -p between_bytes_timeout=75\tidle poll
"""),
    ),
    Snippet(
        "envoy",
        "the HTTP connection manager and its route; a whole one is config/envoy.yaml",
        _lines("""
http_connection_manager:\tno-ws idle
  upgrade_configs: [{ upgrade_type: websocket }]\tno-ws
  stream_idle_timeout: 75s                          # longer than any silence\tidle
route:\tidle total poll retries sticky
  cluster: tricast\tidle total poll retries sticky
  timeout: 0s                                       # the default cuts every stream after 15 s\ttotal poll
  idle_timeout: 75s\tidle
  retry_policy: { retry_on: connect-failure }\tretries
  hash_policy: [{ cookie: { name: srv, ttl: 0s } }] # with lb_policy RING_HASH\tsticky
# no buffer and no compressor filter on this route\tbuffered compressed bodies
"""),
    ),
    Snippet(
        "traefik",
        "the static and the dynamic configuration",
        _lines("""
# no buffering and no compress middleware on this router\tbuffered compressed bodies
serversTransport:\tpoll
  forwardingTimeouts: { responseHeaderTimeout: 0s } # long polls\tpoll
entryPoints:\tidle total
  web: { transport: { respondingTimeouts: { readTimeout: 0, writeTimeout: 0, idleTimeout: 180s } } }\tidle total
services:\tsticky
  tricast: { loadBalancer: { sticky: { cookie: { name: srv } } } }\tsticky
# no retry middleware on this router\tretries
"""),
    ),
    Snippet(
        "alb",
        "AWS command line; the server's limits.idle_timeout has to be longer",
        _lines("""
aws elbv2 modify-load-balancer-attributes --load-balancer-arn ARN \\\tidle poll
    --attributes Key=idle_timeout.timeout_seconds,Value=120\tidle poll
aws elbv2 modify-target-group-attributes --target-group-arn ARN \\\tsticky
    --attributes Key=stickiness.enabled,Value=true Key=stickiness.type,Value=lb_cookie\tsticky
"""),
    ),
    Snippet(
        "gcp",
        "Google Cloud command line",
        _lines("""
# The timeout counts from the request on, whatever is sent: streams still end, only later.\ttotal
gcloud compute backend-services update BACKEND --global --timeout=3600\ttotal idle poll
gcloud compute backend-services update BACKEND --global --no-enable-cdn\tshared
gcloud compute backend-services update BACKEND --global --session-affinity=GENERATED_COOKIE\tsticky
"""),
    ),
    Snippet(
        "azure",
        "Azure",
        _lines("""
# Application Gateway: turn response buffering off\tbuffered
# Application Gateway: turn request buffering off\tbodies
# Application Gateway: backend settings, request timeout 120 s\tidle poll
# Front Door: no caching on this route, otherwise Upgrade is dropped\tno-ws shared
# Front Door does not support Server-Sent Events: use WebSocket or long polling behind it\tbuffered
"""),
    ),
    Snippet(
        "cloudflare",
        "Cloudflare's dashboard",
        _lines("""
# Network: turn WebSockets on\tno-ws
# Caching: a rule "bypass cache" for these paths; no features that look into bodies\tbuffered compressed shared
# The read timeout (100 s or 120 s) is the longest silence, of long polls too\tidle poll
"""),
    ),
    Snippet(
        "heroku",
        "Heroku; nothing can be configured",
        _lines("""
# A first byte within 30 s and one byte every 55 s are required: long polls have to be shorter\tidle poll
heroku features:enable http-session-affinity\tsticky
"""),
    ),
    Snippet(
        "fastly",
        "Fastly",
        _lines("""
# WebSockets are a product of their own, off by default\tno-ws
# VCL: return (pass) for these paths; set beresp.do_stream = true\tbuffered shared
# Host settings: first_byte_timeout 75000, between_bytes_timeout 75000\tidle poll
"""),
    ),
    Snippet(
        "tricast",
        "proxy.toml",
        _lines("""
# the key tunnel.upgrade\tno-ws
# the keys of [response]\tbuffered compressed shared
# the keys of [tunnel] and [upstream]\tidle total poll
# the keys of [retry]\tretries
# the key request.buffering\tbodies
"""),
    ),
)

_BY_PROXY = {snippet.proxy: snippet for snippet in SNIPPETS}


def advise(proxies: Collection[str], problems: Collection[str]) -> Iterator[tuple[Snippet, list[str]]]:
    """The snippets that help, each with its lines.

    Args:
        proxies: keys of ``fingerprint.NAMES``; those for which there is no advice are passed over.
        problems: what was found.
    """
    found = frozenset(problems)
    for proxy in proxies:
        snippet = _BY_PROXY.get(proxy)
        if snippet is not None and any(line.against & found for line in snippet.lines):
            yield snippet, [line.text for line in snippet.lines if not line.against or line.against & found]


#: Keys of the proxies for which there is advice.
KNOWN = tuple(_BY_PROXY)
