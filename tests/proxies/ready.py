"""The proxies of ``config/``, each with the very file from there, but for where it listens and logs, and as whom."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from proxies.real import RealProxy, real_proxy

CONFIG = Path(__file__).parents[2] / "config"

Edits = tuple[tuple[str, str], ...]


class Ready(NamedTuple):
    """One of the ready configurations, and what a test changes in it.

    Attributes:
        file: its name in ``config/``.
        places: where it listens and logs, which user it becomes, where the server is, and how long it may take to say
            that it is ready: it is in a process that has more to do.
        second: adds a second server, as a comment there shows it.
        timers: of silence, and for how long something is tried again.
    """

    file: str
    places: Edits
    second: Edits
    timers: Edits


READY = {
    "nginx": Ready(
        "nginx.conf",
        (
            ("user www-data;\n", ""),
            ("pid /run/nginx.pid;\n", ""),
            ("        listen 80;\n", "        listen 127.0.0.1:@port@;\n"),
            ("        listen [::]:80;\n", ""),
            ("        server 127.0.0.1:8080;", "        server 127.0.0.1:@origin_port@;"),
        ),
        (("        # server 127.0.0.1:8081;", "        server 127.0.0.1:@second_port@;"),),
        (("proxy_read_timeout 75s;", "proxy_read_timeout @idle@s;"),),
    ),
    "haproxy": Ready(
        "haproxy.cfg",
        (
            ("    log /dev/log local0\n", "    log stdout format raw local0\n"),
            ("    user haproxy\n    group haproxy\n", ""),
            # More than a user's limit of descriptors allows is an error.
            ("    maxconn 30000\n", "    maxconn 300\n"),
            ("    bind :80\n", "    bind 127.0.0.1:@port@\n"),
            ("    server one 127.0.0.1:8080", "    server one 127.0.0.1:@origin_port@"),
            ("    default-server check ", "    timeout check 60s\n    default-server check "),
        ),
        (("    # server two 127.0.0.1:8081\n", "    server two 127.0.0.1:@second_port@\n"),),
        (
            ("    timeout client 75s\n", "    timeout client @idle@s\n"),
            ("    timeout server 75s\n", "    timeout server @idle@s\n"),
            ("    timeout tunnel 75s\n", "    timeout tunnel @idle@s\n"),
        ),
    ),
    "apache": Ready(
        "apache.conf",
        (
            ("<VirtualHost *:80>\n", "<VirtualHost *:@port@>\n"),
            ('    BalancerMember "http://127.0.0.1:8080"', '    BalancerMember "http://127.0.0.1:@origin_port@"'),
        ),
        (('    # BalancerMember "http://127.0.0.1:8081"', '    BalancerMember "http://127.0.0.1:@second_port@"'),),
        (
            ("\n    Timeout 75\n", "\n    Timeout @idle@\n"),
            (
                '@origin_port@" upgrade=websocket connectiontimeout=5 timeout=75 ',
                '@origin_port@" upgrade=websocket connectiontimeout=5 timeout=@idle@ ',
            ),
        ),
    ),
    "caddy": Ready(
        "Caddyfile",
        (
            ("\tgrace_period 10s\n", "\tgrace_period 10s\n\tadmin off\n\tauto_https off\n"),
            ("push.example.com {\n", ":@port@ {\n\tbind 127.0.0.1\n"),
            ("\t\tto 127.0.0.1:8080 ", "\t\tto 127.0.0.1:@origin_port@ "),
            ("\t\thealth_timeout 1s\n", "\t\thealth_timeout 60s\n"),
        ),
        (("\t\t# to 127.0.0.1:8081\n", "\t\tto 127.0.0.1:@second_port@\n"),),
        (
            ("\t\tlb_try_duration 5s\n", "\t\tlb_try_duration @idle@s\n"),
            ("\t\t\tread_timeout 75s\n", "\t\t\tread_timeout @idle@s\n"),
            ("\t\t\tresponse_header_timeout 75s\n", "\t\t\tresponse_header_timeout @idle@s\n"),
            # The file tells why: with checks, these timers are not all there is.
            ("\t\thealth_interval 2s\n", "\t\thealth_interval 1h\n"),
        ),
    ),
    "varnish": Ready(
        "varnish.vcl",
        (
            ('    .port = "8080";\n', '    .port = "@origin_port@";\n'),
            ("    .timeout = 1s;\n", "    .timeout = 60s;\n"),
        ),
        (
            (
                "# backend two { ... }\n",
                'backend two {\n    .host = "127.0.0.1";\n    .port = "@second_port@";\n    .probe = ready;\n}\n',
            ),
            ("    # tricast.add_backend(two);\n", "    tricast.add_backend(two);\n"),
        ),
        (
            (".first_byte_timeout = 75s;", ".first_byte_timeout = @idle@s;"),
            (".between_bytes_timeout = 75s;", ".between_bytes_timeout = @idle@s;"),
            ("-p pipe_timeout=75 ", "-p pipe_timeout=@idle@ "),
        ),
    ),
}


def edited(text: str, edits: Edits) -> str:
    """The text with each first part of an edit, which is there exactly once, replaced by the second.

    Raises:
        ValueError: it is not there, or more often: the file was changed, and so must be the edit.
    """
    for before, after in edits:
        if (count := text.count(before)) != 1:
            raise ValueError(f"{before!r} is there {count} times")
        text = text.replace(before, after)
    return text


@asynccontextmanager
async def ready_proxy(
    kind: str, origin_port: int, *, second_port: int = 0, idle: int = 0, changed: Edits = ()
) -> AsyncIterator[RealProxy]:
    """A real proxy with the ready configuration.

    Args:
        kind: as in ``proxies.real``.
        origin_port: where the server is, on 127.0.0.1.
        second_port: where another one is, if there is one.
        idle: seconds for all timers of silence, instead of what the file says.
        changed: what else is different.
    """
    ready, values = READY[kind], {"origin_port": origin_port}
    text = edited((CONFIG / ready.file).read_text(encoding="utf-8"), ready.places)
    if second_port:
        text, values["second_port"] = edited(text, ready.second), second_port
    if idle:
        text, values["idle"] = edited(text, ready.timers), idle
    text = edited(text, changed)
    # Varnish is started with what a comment says.
    options = (
        [part for option in re.findall(r"-p \w+=\S+", text) for part in option.split()] if kind == "varnish" else []
    )
    options = [option.replace("@idle@", str(idle)) for option in options]
    async with real_proxy(kind, text, options=options, **values) as proxy:
        yield proxy
