"""Real proxies for a test: nginx, HAProxy, Apache httpd, Caddy and Varnish, as programs of the test's own.

Each runs in the foreground from a temporary folder on a free port of 127.0.0.1, as root and as any other user, and
touches nothing of an installed service: no pid file, no log, no cache, no administration port.
"""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import trio
from clocks import HANG_SECONDS
from serving import until

HOST = "127.0.0.1"
#: Seconds a proxy may take to end when told to; then it is killed.
STOP_SECONDS = 2

#: The plainest configuration of each that forwards to an origin: what one has who types no more than that.
DEFAULTS = {
    "nginx": """\
events {}
http {
    server {
        listen 127.0.0.1:@port@;
        location / {
            proxy_pass http://127.0.0.1:@origin_port@;
            @timers@
        }
    }
}
""",
    "haproxy": """\
defaults
    mode http
    @timers@
frontend front
    bind 127.0.0.1:@port@
    default_backend origin
backend origin
    server origin 127.0.0.1:@origin_port@
""",
    "apache": """\
@timers@
ProxyPass / http://127.0.0.1:@origin_port@/
""",
    "caddy": """\
{
    admin off
    auto_https off
}
:@port@ {
    bind 127.0.0.1
    reverse_proxy 127.0.0.1:@origin_port@ {
        @timers@
    }
}
""",
    "varnish": """\
vcl 4.1;
backend default {
    .host = "127.0.0.1";
    .port = "@origin_port@";
}
""",
}

KINDS = tuple(DEFAULTS)


class RealProxy(NamedTuple):
    """A proxy that accepts.

    Attributes:
        kind: which of the ``KINDS``.
        port: where it listens, on 127.0.0.1.
        url: the same as a URL.
        folder: of its configuration and whatever it writes; gone afterwards.
        process: the program; what it starts is in its process group.
    """

    kind: str
    port: int
    url: str
    folder: Path
    process: trio.Process

    def log(self) -> str:
        """What it has logged so far."""
        return _read_log(self.folder)


class NotStarted(Exception):
    """The proxy has ended, or has not accepted in time; the message is what it logged."""


def fill(text: str, **values: object) -> str:
    """Replaces each ``@name@`` with the value of that name.

    Raises:
        ValueError: there is a name without a value, or a value without a place for it.
    """
    wanted = set(re.findall(r"@(\w+)@", text))
    if missing := sorted(wanted - set(values)):
        raise ValueError(f"no value for {', '.join(missing)}")
    if unused := sorted(set(values) - wanted):
        raise ValueError(f"no place for {', '.join(unused)}")
    return re.sub(r"@(\w+)@", lambda match: str(values[match[1]]), text)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 that nobody else is given for as long as the block lasts.

    A socket that is bound and does not listen keeps the kernel from handing the port out, but does not hinder a
    program that sets SO_REUSEADDR before it binds, as all servers do (socket(7)).
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]


@asynccontextmanager
async def real_proxy(
    kind: str,
    config: str,
    *,
    options: Sequence[str] = (),
    timeout: float | None = None,  # noqa: ASYNC109 - the proxy's, not this function's
    **values: object,
) -> AsyncIterator[RealProxy]:
    """A real proxy that accepts, ended with all its processes at the end of the block. Its log is printed then.

    Args:
        kind: one of the ``KINDS``.
        config: in the proxy's own language, with ``@name@`` wherever a value goes. ``@port@``, ``@folder@`` and
            ``@timers@`` are known without being given. What the program needs in order to run in the foreground out of
            a folder is added to it: see ``_Program``.
        options: further arguments of the program.
        timeout: seconds, rounded up for Apache, after which it gives up on an exchange or a tunnel that is silent.
            Goes where ``@timers@`` is; Varnish has it as options. Without, the proxy's own defaults apply.
        values: for the other names.

    Raises:
        NotStarted: it does not run like that.
    """
    program = _PROGRAMS[kind]
    with reserved_port() as port, tempfile.TemporaryDirectory(prefix=f"{kind}-") as name:
        folder = Path(name)
        known = {"port": port, "folder": folder, "timers": program.timers(timeout) if timeout is not None else ""}
        known = {key: value for key, value in known.items() if f"@{key}@" in config}
        if kind == "varnish" and timeout is not None:
            options = [*options, *_varnish_timers(timeout)]
        file = folder / "config"
        file.write_text(program.complete(fill(config, **known, **values), folder, port), encoding="utf-8")
        command = [_find(program.name), *program.arguments(file, port), *options]
        async with _running(command, folder, program.stop_signal) as process:
            proxy = RealProxy(kind, port, f"http://{HOST}:{port}", folder, process)
            await _wait_accepting(proxy)
            yield proxy


@asynccontextmanager
async def _running(command: Sequence[str], folder: Path, stop_signal: signal.Signals) -> AsyncIterator[trio.Process]:
    """A program in a process group of its own, all of which has ended at the end of the block."""
    # Caddy keeps things below the home folder, or below these.
    environment = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_SECONDS):
                process.send_signal(stop_signal)
                await process.wait()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()  # a killed process ends
            with trio.fail_after(HANG_SECONDS):
                await until(lambda: not processes_of_group(process.pid))  # so do those that it has started
        print(f"--- {' '.join(command)}\n{_read_log(folder)}")


def processes_of_group(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


async def _wait_accepting(proxy: RealProxy) -> None:
    with trio.move_on_after(HANG_SECONDS):  # Varnish compiles its configuration with a C compiler first
        while proxy.process.poll() is None:
            with trio.socket.socket() as sock:
                try:
                    await sock.connect((HOST, proxy.port))
                except ConnectionRefusedError:
                    await trio.sleep(0.01)  # between two looks: there is nothing to wait on
                else:
                    return
    raise NotStarted(proxy.log())


def _read_log(folder: Path) -> str:
    return (folder / "log").read_text(encoding="utf-8", errors="replace")


def _find(name: str) -> str:
    # Debian has servers in sbin, which is not on the PATH of every user.
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; scripts/test, run without arguments, installs it")
    return found


# What the programs want


class _Program(NamedTuple):
    """How one of them is started.

    Attributes:
        name: the executable's.
        arguments: from the configuration's file and the port.
        complete: makes a configuration, its folder and the port into the whole that the program runs with.
        timers: the lines that set its timers, from seconds.
        stop_signal: ends it at once, connections included.
    """

    name: str
    arguments: Callable[[Path, int], list[str]]
    complete: Callable[[str, Path, int], str]
    timers: Callable[[float], str]
    stop_signal: signal.Signals = signal.SIGTERM


def _as_it_is(config: str, folder: Path, port: int) -> str:
    return config


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _nginx_arguments(file: Path, port: int) -> list[str]:
    # Its workers belong to nobody otherwise, who may not reach into the folder.
    user = "user root; " if os.geteuid() == 0 else ""
    main = f"daemon off; pid {file.parent}/pid; {user}"
    return ["-e", "stderr", "-p", str(file.parent), "-c", str(file), "-g", main]


def _complete_nginx(config: str, folder: Path, port: int) -> str:
    """With its folders for temporary files; it makes all five of them on starting, for what is not used as well."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    lines = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    log = "" if re.search(r"^\s*access_log\b", config, re.MULTILINE) else "    access_log /dev/stdout;\n"
    completed, count = re.subn(r"^http \{\n", lambda match: match[0] + lines + log, config, flags=re.MULTILINE)
    if count != 1:
        raise ValueError("nginx: one line has to be 'http {'")
    return completed


def _nginx_timers(seconds: float) -> str:
    return f"proxy_read_timeout {_ms(seconds)}; proxy_send_timeout {_ms(seconds)};"


def _haproxy_arguments(file: Path, port: int) -> list[str]:
    return ["-db", "-f", str(file)]


def _haproxy_timers(seconds: float) -> str:
    return "\n    ".join(f"timeout {name} {_ms(seconds)}" for name in ("connect", "client", "server"))


#: Beside the modules that Debian's package has built in: those it enables that matter here, and the proxy's.
_APACHE_MODULES = (
    *("mpm_event", "authz_core", "authz_host", "deflate", "env", "filter", "headers", "mime", "reqtimeout", "setenvif"),
    *("proxy", "proxy_http", "proxy_wstunnel", "slotmem_shm", "proxy_balancer"),
    *("lbmethod_byrequests", "lbmethod_bybusyness"),
)


def _apache_arguments(file: Path, port: int) -> list[str]:
    return ["-DFOREGROUND", "-d", str(file.parent), "-f", str(file)]


def _complete_apache(config: str, folder: Path, port: int) -> str:
    """Behind what Debian has in apache2.conf and ports.conf."""
    lines = [
        f"ServerRoot {folder}",
        f"DefaultRuntimeDir {folder}",
        f"PidFile {folder}/pid",
        f"ErrorLog {folder}/log",
        f"Listen {HOST}:{port}",
        "ServerName localhost",
        *(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in _APACHE_MODULES),
        "TypesConfig /dev/null",
        # It refuses to run its children as root.
        *(["User nobody", "Group nogroup"] if os.geteuid() == 0 else []),
    ]
    return "\n".join([*lines, config])


def _apache_timers(seconds: float) -> str:
    # Whole seconds only. A tunnel ends after the longer one of the client's timer and the origin's.
    return f"Timeout {math.ceil(seconds)}\nProxyTimeout {math.ceil(seconds)}"


def _caddy_arguments(file: Path, port: int) -> list[str]:
    return ["run", "--adapter", "caddyfile", "--config", str(file)]


def _caddy_timers(seconds: float) -> str:
    timers = "".join(f"{name} {_ms(seconds)}\n" for name in ("response_header_timeout", "read_timeout"))
    return f"transport http {{\n{timers}}}"


def _varnish_arguments(file: Path, port: int) -> list[str]:
    place = ["-n", str(file.parent / "work"), "-f", str(file)]
    # No jail, which wants users of its own; no administration port; a log of 1 MB instead of 80.
    return ["-F", "-j", "none", "-a", f"{HOST}:{port}", "-T", "none", "-p", "vsl_space=1M", *place]


def _varnish_timers(seconds: float) -> list[str]:
    names = ("first_byte_timeout", "between_bytes_timeout", "pipe_timeout")
    return [argument for name in names for argument in ("-p", f"{name}={seconds}")]


_PROGRAMS = {
    "nginx": _Program("nginx", _nginx_arguments, _complete_nginx, _nginx_timers),
    "haproxy": _Program("haproxy", _haproxy_arguments, _as_it_is, _haproxy_timers),
    "apache": _Program("apache2", _apache_arguments, _complete_apache, _apache_timers),
    # Told to end, it would wait for its connections to end first (caddyserver.com/docs/command-line#signals).
    "caddy": _Program("caddy", _caddy_arguments, _as_it_is, _caddy_timers, signal.SIGQUIT),
    "varnish": _Program("varnishd", _varnish_arguments, _as_it_is, lambda seconds: ""),
}
