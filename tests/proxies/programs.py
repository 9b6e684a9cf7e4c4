"""The programs that are compared, each with the profile that is to behave like it."""

from typing import NamedTuple

from proxies.scenarios import TIMER

_T = f"{TIMER:.0f}s"

_NGINX = """\
worker_processes 1;
events { worker_connections 4096; }
http {
    access_log off;
    client_header_timeout %(t)s; client_body_timeout %(t)s; send_timeout %(t)s; keepalive_timeout %(t)s;
    proxy_read_timeout %(t)s; proxy_send_timeout %(t)s;
    map $http_upgrade $connection_upgrade { default upgrade; '' close; }
    server {
        listen 127.0.0.1:@port@ backlog=1024;
        location / {
            proxy_pass http://127.0.0.1:@origin_port@;
            %(more)s
        }
    }
}
"""

_HAPROXY = """\
global
    maxconn 4000
defaults
    mode http
    %(timers)s
frontend front
    bind 127.0.0.1:@port@
    default_backend origin
backend origin
    server origin 127.0.0.1:@origin_port@
"""

_APACHE = """\
AcceptFilter http none
ServerLimit 1
StartServers 1
ThreadLimit 400
ThreadsPerChild 400
MaxRequestWorkers 400
Timeout %(t)s
KeepAliveTimeout %(t)s
RequestReadTimeout header=%(t)s body=%(t)s
ProxyPass / http://127.0.0.1:@origin_port@/ %(more)s
"""

_CADDY = """\
{
    admin off
    auto_https off
}
:@port@ {
    bind 127.0.0.1
    reverse_proxy 127.0.0.1:@origin_port@ {
        %(more)s
    }
}
"""

_VARNISH = """\
vcl 4.1;
backend default {
    .host = "127.0.0.1";
    .port = "@origin_port@";
}
%(more)s
"""

_VARNISH_PIPE = """\
sub vcl_recv { if (req.http.upgrade) { return(pipe); } }
sub vcl_pipe { set bereq.http.Upgrade = req.http.Upgrade; set bereq.http.Connection = req.http.Connection; }
"""

_VARNISH_PARAMETERS = {
    "first_byte_timeout": TIMER,
    "between_bytes_timeout": TIMER,
    "pipe_timeout": TIMER,
    "timeout_idle": TIMER,
    "thread_pools": 1,
    "thread_pool_min": 200,
}
_VARNISH_OPTIONS = tuple(part for name, value in _VARNISH_PARAMETERS.items() for part in ("-p", f"{name}={value}"))


class Program(NamedTuple):
    """A program as it is configured.

    Attributes:
        name: the profile's, with what else is configured.
        kind: of real proxy.
        config: of it.
        options: of it.
        settings: of the profile: the same timers.
    """

    name: str
    kind: str
    config: str
    options: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def _nginx(name: str, more: str = "") -> Program:
    return Program(name, "nginx", _NGINX % {"t": _T, "more": more})


def _haproxy(name: str, **timers: float) -> Program:
    lines = "\n    ".join(f"timeout {key} {value * 1000:.0f}ms" for key, value in timers.items())
    return Program(name, "haproxy", _HAPROXY % {"timers": lines})


_UPGRADE = (
    "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;"
)

PROGRAMS = {
    program.name: program
    for program in (
        _nginx("nginx-default"),
        _nginx("nginx-websocket", _UPGRADE),
        _nginx("nginx-sse", "proxy_http_version 1.1; proxy_buffering off;"),
        _haproxy("haproxy-default"),
        _haproxy("haproxy-debian", connect=5, client=TIMER, server=TIMER),
        _haproxy("haproxy-tunnel", connect=5, client=TIMER, server=TIMER, tunnel=2 * TIMER),
        Program("caddy-2.6", "caddy", _CADDY % {"more": ""}),
        Program("apache-default", "apache", _APACHE % {"t": f"{TIMER:.0f}", "more": ""}),
        Program("apache-websocket", "apache", _APACHE % {"t": f"{TIMER:.0f}", "more": "upgrade=websocket"}),
        Program("varnish-default", "varnish", _VARNISH % {"more": ""}, _VARNISH_OPTIONS),
        Program("varnish-pipe", "varnish", _VARNISH % {"more": _VARNISH_PIPE}, _VARNISH_OPTIONS),
    )
}
