"""Servers, as programs, on Unix sockets and on sockets that systemd has opened, of one process and of several."""

import os
import re
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli.running import COMMAND, run
from clients import TRANSPORTS, Wire, ask, head, publish, read_answer, subscribe
from serving import ServerProcess, serving, serving_as, until

QUICK = {"TRICAST_DRAIN__PERIOD": "100ms", "TRICAST_DRAIN__GRACE": "5s"}


class OnSocket(ServerProcess):
    """A server that tells of a Unix socket rather than a port."""

    async def wait_begun(self) -> None:
        """See ``ServerProcess.wait_begun``."""
        (line,) = await self.wait_said(" listening on ")
        found = re.search(r"listening on (\S+)", line)
        assert found is not None
        self.url = found[1]


# Unix sockets


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_events_over_a_unix_socket(transport: str, tmp_path: Path) -> None:
    limits = {"send_buffer": "64KiB"}
    async with serving(server={"host": f"unix:{tmp_path}/socket"}, limits=limits) as server:
        assert (server.url, server.port) == (f"unix:{tmp_path}/socket", 0)
        with await subscribe(transport, server.url, "news", last_id="0-1") as subscriber:
            await publish(server.url, "news", {"n": 1})
            await subscriber.gap()
            assert (await subscriber.event()).data == {"n": 1}
        await until(lambda: server.connections == 0)
    assert not (tmp_path / "socket").exists()


async def test_the_admin_listener_on_another(tmp_path: Path) -> None:
    admin = {"enabled": True, "host": f"unix:{tmp_path}/admin"}
    async with serving(server={"host": f"unix:{tmp_path}/socket"}, admin=admin) as server:
        assert server.admin_urls == (f"unix:{tmp_path}/admin",)
        assert (await ask(server.admin_urls[0], "GET", "/readyz")).status == 200
        assert (await ask(server.url, "GET", "/readyz")).status == 404


async def test_who_comes_over_a_unix_socket_is_one_client_unless_it_is_trusted(tmp_path: Path) -> None:
    section = {"host": f"unix:{tmp_path}/socket"}
    limits = {"connections_per_address": 1}
    async with serving(server=section, limits=limits) as server:
        with await subscribe("sse", server.url, "news"):
            assert (await ask(server.url, "GET", "/healthz", "X-Forwarded-For: 192.0.2.1")).status == 429
    async with serving(server=section | {"trusted_proxies": ["unix"]}, limits=limits) as server:
        with await subscribe("sse", server.url, "news"):
            assert (await ask(server.url, "GET", "/healthz", "X-Forwarded-For: 192.0.2.1")).status == 200


async def test_limits_on_those_who_come_over_a_unix_socket(tmp_path: Path) -> None:
    async with serving(server={"host": f"unix:{tmp_path}/socket"}, limits={"connections": 1}) as server:
        with await subscribe("sse", server.url, "news"):
            assert (await ask(server.url, "GET", "/healthz")).status == 503


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_program_on_a_unix_socket(workers: int, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command = (*COMMAND, "serve", "--host", f"unix:{path}", "--workers", str(workers))
    async with serving_as(*command, kind=OnSocket, env=os.environ | QUICK) as server:
        assert server.url == f"unix:{path}"
        with await subscribe("sse", server.url, "news") as stream:
            await publish(server.url, "news", 1)
            assert (await stream.event()).data == 1
            status, _, said = await run("serve", "--host", f"unix:{path}")
            assert (status, f"cannot listen on {path}: address already in use" in said.lower()) == (1, True), said
        server.process.terminate()
        await server.process.wait()
    assert not path.exists()


async def test_a_program_that_was_killed_can_be_started_again(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command = (*COMMAND, "serve", "--host", f"unix:{path}")
    async with serving_as(*command, kind=OnSocket) as server:
        server.process.kill()
        await server.process.wait()
    assert path.is_socket()
    async with serving_as(*command, kind=OnSocket) as server:
        assert (await ask(server.url, "GET", "/healthz")).status == 200


# systemd

#: Becomes the program with the sockets as descriptors 3 and up, as systemd does it.
_HAND_OVER = """
import os, sys
count, names, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}
os.execv(command[0], command)
"""


def activated(sockets: Sequence[socket.socket], names: str, *arguments: str) -> tuple[str, ...]:
    """The command of a server that is handed these sockets, which have to be descriptors 3 and up where it starts."""
    moves = "; ".join(f"os.dup2({sock.fileno()}, {100 + index})" for index, sock in enumerate(sockets))
    settles = "; ".join(f"os.dup2({100 + index}, {3 + index})" for index in range(len(sockets)))
    program = f"import os; {moves}; {settles}\n{_HAND_OVER}"
    return (sys.executable, "-c", program, str(len(sockets)), names, *COMMAND, "serve", *arguments)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_restart_under_systemd_turns_nobody_away(workers: int, tmp_path: Path) -> None:
    with ExitStack() as kept:
        tcp = kept.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = kept.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"{tmp_path}/socket")
        unix.listen()
        sockets = (tcp, unix)
        url, file_url = f"http://127.0.0.1:{tcp.getsockname()[1]}", f"unix:{tmp_path}/socket"
        command = activated(sockets, "tricast.socket:tricast.socket", "--host", "systemd:", "--workers", str(workers))
        options = {"pass_fds": [sock.fileno() for sock in sockets], "env": os.environ | QUICK}
        async with serving_as(*command, **options) as server:
            assert server.url == url
            await server.wait_said(f"listening on {file_url}")
            for where in (url, file_url):
                assert (await ask(where, "GET", "/healthz")).status == 200
            server.process.terminate()
            await server.process.wait()
        # Nobody is there, and clients wait rather than being refused.
        with await Wire.open(url) as one, await Wire.open(file_url) as other:
            for wire in (one, other):
                await wire.send(head("GET", "/healthz"))
            async with serving_as(*command, **options) as server:
                for wire in (one, other):
                    assert (await read_answer(wire)).status == 200
        assert (tmp_path / "socket").exists(), "it is systemd's"


async def test_by_name_for_clients_and_for_those_who_run_it(tmp_path: Path) -> None:
    with ExitStack() as kept:
        web, admin = (kept.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        command = activated((admin, web), "admin:web", "--host", "systemd:web")
        environment = os.environ | QUICK | {"TRICAST_ADMIN__ENABLED": "true", "TRICAST_ADMIN__HOST": "systemd:admin"}
        pass_fds = [admin.fileno(), web.fileno()]
        async with serving_as(*command, pass_fds=pass_fds, env=environment) as server:
            assert server.url == f"http://127.0.0.1:{web.getsockname()[1]}"
            await server.wait_said("admin listening on")
            assert (await ask(server.url, "GET", "/readyz")).status == 404
            assert (await ask(f"http://127.0.0.1:{admin.getsockname()[1]}", "GET", "/readyz")).status == 200


async def test_a_file_that_is_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("precious")
    status, _, said = await run("serve", "--host", f"unix:{path}")
    assert (status, said) == (1, f"error: cannot listen on {path}: a file that is no socket is there\n")


async def test_without_systemd_that_is_said() -> None:
    status, _, said = await run("serve", "--host", "systemd:web")
    assert status == 1
    assert "cannot listen on systemd:web: systemd has handed over no such socket" in said
