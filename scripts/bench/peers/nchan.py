"""Nchan, the push module of nginx, from Debian's packages."""

import os
import re
import resource
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from peers.base import (
    HOST,
    Capability,
    Missing,
    Opening,
    Peer,
    Running,
    checked,
    free_port,
    http_request,
    launched,
    websocket_request,
)

_PACKAGES = ["nginx", "libnginx-mod-nchan"]
_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
_NGINX = "/usr/sbin/nginx"
_CONFIG = """\
daemon off;
pid nginx.pid;
error_log stderr warn;
load_module {module};
worker_processes 1;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    keepalive_requests 1000000000;  # the default of 1,000 would cut publishers off
    client_body_buffer_size 128k;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    nchan_shared_memory_size 512m;
    nchan_message_timeout 1h;
    nchan_message_buffer_length {history};
    server {{
        listen {host}:{port} backlog=4096;
        location = /publish {{
            nchan_publisher http;
            nchan_channel_id $arg_topic;
        }}
        location = /events {{
            nchan_subscriber;
            nchan_channel_id $arg_topic;
            nchan_subscriber_first_message newest;
            nchan_eventsource_ping_interval 15;
            nchan_websocket_ping_interval 20;
        }}
        location = /replay {{
            nchan_subscriber;
            nchan_channel_id $arg_topic;
            nchan_subscriber_first_message oldest;
            nchan_eventsource_ping_interval 15;
            nchan_websocket_ping_interval 20;
        }}
    }}
}}
"""


class RunningNchan(Running):
    """An nginx with Nchan; where a subscriber begins is a matter of the location."""

    beginning = "oldest"

    def subscribe(self, transport: str, topic: str, *, last_id: str | None = None) -> Opening:
        """How to subscribe; a comment comes first on an event stream, a WebSocket is followed when it is accepted."""
        target = f"{'/replay' if last_id == self.beginning else '/events'}?topic={quote(topic)}"
        fields = [] if last_id in (None, self.beginning) else [f"Last-Event-ID: {last_id}"]
        if transport == Capability.SSE:
            return Opening(http_request("GET", target, "Accept: text/event-stream", *fields), b": hi\n")
        if transport == Capability.WEBSOCKET:
            return Opening(websocket_request(target, *fields), b"\r\n\r\n")
        return Opening(http_request("GET", target, *fields), b"HTTP/1.1 200")

    def poll_next(self, topic: str, head: bytes) -> bytes:
        """A poll is a conditional request."""
        parts = [line.partition(":") for line in head.decode().split("\r\n")]
        fields = {name.lower(): value.strip() for name, _, value in parts}
        return http_request(
            "GET",
            f"/events?topic={quote(topic)}",
            f"If-Modified-Since: {fields['last-modified']}",
            f"If-None-Match: {fields['etag']}",
        )


class Nchan(Peer):
    """Nchan with one worker. Option: ``history``."""

    name = "Nchan"
    about = "nginx with Nchan, one worker, access log off, 10 events kept in shared memory (its default), pings on"
    capabilities = frozenset(
        {Capability.SSE, Capability.WEBSOCKET, Capability.POLL, Capability.TOPICS, Capability.REPLAY}
    )

    def make_ready(self, build: Path) -> None:
        """Installs the packages where that is possible."""
        del build
        if _MODULE.exists() and Path(_NGINX).exists():
            return
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise Missing(f"run this once as root on Debian: apt-get install {' '.join(_PACKAGES)}")
        # The bench starts its own nginx; with this, invoke-rc.d does not start the system's one as well.
        quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        checked(["apt-get", "update", "-qq"], environment=quiet)
        checked(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *_PACKAGES], environment=quiet)

    def version(self) -> str:
        """Those of the packages."""
        shown = checked(["dpkg-query", "-W", "-f", "${Package} ${Version}, ", *_PACKAGES])
        return re.sub(r"\b\d+:", "", shown).strip(", ")

    @contextmanager
    def run(self, folder: Path, *, options: Mapping[str, str]) -> Iterator[Running]:
        """A server that is not the system's own."""
        port = free_port()
        text = _CONFIG.format(
            module=_MODULE,
            connections=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            history=options.get("history", "10"),
            host=HOST,
            port=port,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nginx.conf").write_text(text)
        place = str(folder.absolute())
        with launched([_NGINX, "-e", "stderr", "-p", place, "-c", f"{place}/nginx.conf"], folder, port=port) as (
            pid,
            _,
        ):
            yield RunningNchan(pid, port)
