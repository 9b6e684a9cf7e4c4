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
        name: of the profile, and what else is configured.
        kind: of real proxy.
        config: of it.
        options: of it.
        settings: of the profile: the same timers, section to key to value.
    """

    name: str
    kind: str
    config: str
    settings: dict[str, dict[str, str]]
    options: tuple[str, ...] = ()

    @property
    def profile(self) -> str:
        """The profile's name alone."""
        return self.name.partition(" ")[0]


_CLIENT = dict.fromkeys(("header_timeout", "body_timeout", "send_timeout", "keepalive_timeout"), _T)
_UPSTREAM = dict.fromkeys(("send_timeout", "response_header_timeout", "read_timeout"), _T)
_HTTP = {"client": _CLIENT, "upstream": _UPSTREAM}
_TUNNEL = _HTTP | {"tunnel": {"idle_timeout": _T}}
# Where a client pauses in the middle of a body, it is the server's timer that runs out.
_NO_BODY = {"client": {name: value for name, value in _CLIENT.items() if name != "body_timeout"}}


def _nginx(name: str, settings: dict[str, dict[str, str]], more: str = "") -> Program:
    return Program(name, "nginx", _NGINX % {"t": _T, "more": more}, settings)


def _haproxy(name: str, settings: dict[str, dict[str, str]], **timers: float) -> Program:
    lines = "\n    ".join(f"timeout {key} {value * 1000:.0f}ms" for key, value in timers.items())
    return Program(name, "haproxy", _HAPROXY % {"timers": lines}, settings)


def _apache(name: str, settings: dict[str, dict[str, str]], more: str = "") -> Program:
    return Program(name, "apache", _APACHE % {"t": f"{TIMER:.0f}", "more": more}, settings)


def _caddy(name: str, settings: dict[str, dict[str, str]], more: str = "") -> Program:
    return Program(name, "caddy", _CADDY % {"more": more}, settings)


def _varnish(name: str, settings: dict[str, dict[str, str]], more: str = "") -> Program:
    return Program(name, "varnish", _VARNISH % {"more": more}, settings, _VARNISH_OPTIONS)


_UPGRADE = (
    "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;"
)
# Without keepalive: it lets the timer of a read run while a connection waits for its next request.
_CADDY_TIMERS = f"transport http {{\n keepalive off\n response_header_timeout {_T}\n read_timeout {_T}\n }}"

PROGRAMS = {
    program.name: program
    for program in (
        _nginx("nginx-default", _HTTP),
        _nginx("nginx-websocket", _TUNNEL, _UPGRADE),
        _nginx("nginx-sse", _HTTP, "proxy_buffering off;"),
        _haproxy("haproxy-default", {}),
        _haproxy("haproxy-debian", _TUNNEL | _NO_BODY, connect=5, client=TIMER, server=TIMER),
        _haproxy(
            "haproxy-tunnel",
            _HTTP | _NO_BODY | {"tunnel": {"idle_timeout": f"{2 * TIMER:.0f}s"}},
            connect=5,
            client=TIMER,
            server=TIMER,
            tunnel=2 * TIMER,
        ),
        _caddy("caddy-2.6", {}),
        _caddy(
            "caddy-2.6 with timers",
            {
                "upstream": {"response_header_timeout": _T, "read_timeout": _T},
                "tunnel": {"idle_timeout": _T, "idle_reset": "upstream"},
            },
            _CADDY_TIMERS,
        ),
        _apache("apache-default", _HTTP),
        _apache("apache-websocket", _TUNNEL, "upgrade=websocket"),
        _varnish("varnish-default", _HTTP | _NO_BODY),
        _varnish("varnish-pipe", _TUNNEL | _NO_BODY, _VARNISH_PIPE),
    )
}
