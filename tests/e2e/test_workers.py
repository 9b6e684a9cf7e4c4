"""A server of several processes: its workers die, hang, are replaced and end, and clients notice as little as can be.

Everything here runs as a program: the supervisor and its workers, on a free port.
"""

import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from io import FileIO
from pathlib import Path

import pytest
import trio
from cli.running import COMMAND, run
from clients import TRANSPORTS, Answer, Closed, Ended, EventStream, Wire, ask, id_of, publish, read_answer, subscribe
from credentials import SECRET, bearer, token
from prometheus_client.parser import text_string_to_metric_families
from serving import ServerProcess, pause, serving, serving_as, serving_process, until
from structlog.testing import LogCapture

SLOW_TO_END = '[drain]\nperiod = "1h"\ngrace = "1h"\n'
QUICK_TO_END = '[drain]\nperiod = "100ms"\ngrace = "5s"\n'


class Workers(ServerProcess):
    """A server of several processes.

    Attributes:
        file: its configuration.
        temporary: the folder where it may make folders.
    """

    file: Path
    temporary: Path

    async def pids(self) -> list[int]:
        """The processes that it began with, by number."""
        (line,) = await self.wait_said("workers count=")
        return [int(pid) for pid in re.findall(r"\d+", line.partition("pids=")[2])]

    async def reload(self, text: str) -> list[int]:
        """Lets it read another configuration; returns the processes that it has then."""
        before = len(self.said("reloaded"))
        self.file.write_text(text)
        self.process.send_signal(signal.SIGHUP)
        line = (await self.wait_said("reloaded", before + 1))[-1]
        return [int(pid) for pid in re.findall(r"\d+", line.partition("pids=")[2])]

    def every_pid(self) -> set[int]:
        """All processes that it has ever told of."""
        return {int(pid) for line in self.lines for pid in re.findall(r"\bpid=(\d+)", line)}


@asynccontextmanager
async def serving_workers(folder: Path, text: str = QUICK_TO_END, *, workers: int = 2) -> AsyncIterator[Workers]:
    """``tricast serve`` with several workers and this configuration."""
    file, temporary = folder / "server.toml", folder / "temporary"
    file.write_text(text)
    temporary.mkdir()
    command = (*COMMAND, "serve", "--config", str(file), "--port", "0", "--workers", str(workers))
    environment = os.environ | {"TMPDIR": str(temporary)}
    options = {"cwd": folder, "env": environment, "start_new_session": True}
    async with serving_as(*command, kind=Workers, **options) as server:
        server.file, server.temporary = file, temporary
        yield server
    assert not server.said("Traceback"), server.lines


async def samples(url: str, name: str) -> dict[str, float]:
    """What ``/metrics`` tells by this name, for each worker."""
    answer = await ask(url, "GET", "/metrics")
    families = text_string_to_metric_families(answer.body.decode())
    return {
        sample.labels["worker"]: sample.value for family in families for sample in family.samples if sample.name == name
    }


async def samples_when(url: str, name: str, are_right: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The same, once it is as it should be."""
    while not are_right(found := await samples(url, name)):
        await pause()
    return found


async def connections_when(url: str, least: int) -> None:
    """Returns when there are so many connections, in however many processes."""
    while True:
        text = (await ask(url, "GET", "/metrics")).body.decode()
        found = re.findall(r"^tricast_connections(?:{.*})? (\S+)$", text, re.MULTILINE)
        if sum(map(float, found)) >= least:
            return
        await trio.lowlevel.checkpoint()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def gone(pid: int) -> None:
    """Returns when the process has ended, whether or not somebody has asked how."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    await trio.lowlevel.wait_readable(process)
    os.close(process)


# Sharing


async def test_connections_are_spread_and_whoever_is_asked_tells_of_all(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        with ExitStack() as streams:
            for _ in range(40):
                streams.enter_context(await subscribe("sse", server.url, "news"))
            for _ in range(10):
                found = await samples_when(
                    server.url, "tricast_subscribers", lambda subscribers: sum(subscribers.values()) == 40
                )
                assert sorted(found) == ["0", "1"]
                assert min(found.values()) > 0
        rss = await samples(server.url, "process_resident_memory_bytes")
        assert sorted(rss) == ["0", "1"]
        assert min((await samples(server.url, "process_open_fds")).values()) > 5


async def test_one_worker_is_one_process_as_ever() -> None:
    async with serving_process(server={"port": 0, "workers": 1}) as server:
        assert 'worker="' not in (await ask(server.url, "GET", "/metrics")).body.decode()
        assert not server.said("workers")


async def test_one_process_cannot_reload_and_goes_on() -> None:
    async with serving_process() as server:
        server.process.send_signal(signal.SIGHUP)
        (line,) = await server.wait_said("not reloaded: that needs server.workers of 2 or more")
        assert "warning" in line
        assert (await ask(server.url, "GET", "/readyz")).status == 200


async def test_whoever_embeds_it_is_told_that_this_is_one_process() -> None:
    for workers, times in ((1, 0), (2, 1)):
        records = LogCapture()
        async with serving(records=records, server={"workers": workers}):
            said = [entry for entry in records.entries if "only tricast.run starts several" in entry["event"]]
            assert [(entry["log_level"], entry["workers"]) for entry in said] == [("warning", workers)] * times


async def test_auto_is_one_for_each_cpu(tmp_path: Path) -> None:
    program = (
        "import os, trio, tricast\n"
        "from tricast.config import workers_of\n"
        "print(workers_of(tricast.Config(server={'workers': 'auto'})), len(os.sched_getaffinity(0)))"
    )
    done = await trio.run_process([sys.executable, "-c", program], capture_stdout=True)
    counted, cpus = done.stdout.split()
    assert counted == cpus


# One stream of events


async def test_what_is_published_anywhere_reaches_everybody_in_one_order(tmp_path: Path) -> None:
    async with serving_workers(tmp_path, workers=3) as server:
        with ExitStack() as subscribers:
            begin = await position(server.url)
            crowd = [
                subscribers.enter_context(await subscribe(transport, server.url, "news", last_id=begin))
                for transport in TRANSPORTS * 5
            ]
            await samples_when(server.url, "tricast_subscribers", lambda each: sum(each.values()) == len(crowd))
            ids: list[str] = []

            async def publish_some(publisher: int) -> None:
                ids.extend([await publish(server.url, "news", [publisher, number]) for number in range(25)])

            async with trio.open_nursery() as publishers:
                for publisher in range(4):
                    publishers.start_soon(publish_some, publisher)
            in_order = sorted(ids, key=id_of)
            assert len({*in_order}) == 100
            for subscriber in crowd:
                events = await subscriber.events(100)
                assert [event.id for event in events] == in_order
                for publisher in range(4):
                    assert [n for who, n in (event.data for event in events) if who == publisher] == [*range(25)]


async def test_nothing_acknowledged_is_missed_whoever_is_killed(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        pids = await server.pids()
        begin = await position(server.url)
        published: list[str] = []
        received: dict[str, list[str]] = {transport: [] for transport in TRANSPORTS}

        async def publish_all() -> None:
            for number in range(90):
                published.append(await publish_surely(server.url, "news", number))
                if number % 30 == 15:
                    victim = number // 30 % 2
                    os.kill(pids[victim], signal.SIGKILL)
                    line = (await server.wait_said("worker replaced", number // 30 + 1))[-1]
                    pids[victim] = int(line.partition("pid=")[2].split()[0])

        async def follow(transport: str) -> None:
            last_id, ids = begin, received[transport]
            while len(ids) < 90:
                with suppress(Closed), await subscribe(transport, server.url, "news", last_id=last_id) as subscriber:
                    while len(ids) < 90:
                        ids.append((await subscriber.event()).id)
                        last_id = ids[-1]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_all)
            for transport in TRANSPORTS:
                nursery.start_soon(follow, transport)
        assert len({*published}) == 90
        for ids in received.values():
            assert ids == published


async def position(url: str) -> str:
    """Where the stream is now."""
    return (await ask(url, "HEAD", "/events?topic=news")).headers["last-event-id"]


async def publish_surely(url: str, topic: str, data: int) -> str:
    """Publishes one event once, if need be by asking again."""
    while True:
        with suppress(Closed):
            key = f"Idempotency-Key: {topic}-{data}"
            answer = await ask(url, "POST", f"/publish?topic={topic}", key, body=str(data).encode())
            assert answer.status == 200, answer
            return str(answer.json()["id"])


async def test_events_stay_when_all_workers_are_replaced(tmp_path: Path) -> None:
    text = QUICK_TO_END + f'[log]\nurl = "sqlite:///{tmp_path}/events.db"\n'
    async with serving_workers(tmp_path, text) as server:
        assert list(server.temporary.iterdir()) == []
        ids = [await publish(server.url, "news", number) for number in range(10)]
        await server.reload(text)
        for transport in TRANSPORTS:
            with await subscribe(transport, server.url, "news", last_id=ids[3]) as subscriber:
                assert [event.id for event in await subscriber.events(6)] == ids[4:]


async def test_events_in_memory_are_in_a_private_folder(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        await server.wait_said("log.url is memory:, which several workers cannot share")
        (folder,) = server.temporary.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700


# Tickets

AUTH = f"""
[auth]
issuer = ["https://issuer.test"]
audience = ["tricast"]
[[auth.key]]
algorithm = "HS256"
secret = "{SECRET}"
"""


async def ticket_of(url: str) -> str:
    """A ticket that one of the processes issued."""
    return str((await ask(url, "POST", "/ticket", bearer(token()))).json()["ticket"])


async def uses_of(url: str, ticket: str, times: int) -> list[str]:
    """What so many who come with the same ticket are told, sorted."""
    told = []

    async def come() -> None:
        answer = await ask(url, "GET", f"/events?topic=news&last_id=0-0&ticket={ticket}")
        told.append("events" if answer.status == 200 else str(answer.json()["type"]).rpartition(":")[2])

    async with trio.open_nursery() as nursery:
        for _ in range(times):
            nursery.start_soon(come)
    return sorted(told)


async def test_a_ticket_is_good_once_whichever_process_is_asked(tmp_path: Path) -> None:
    text = QUICK_TO_END + AUTH
    async with serving_workers(tmp_path, text) as server:
        answer = await ask(server.url, "POST", "/publish?topic=news", bearer(token()), body=b"1")
        assert answer.status == 200
        for _ in range(3):
            ticket = await ticket_of(server.url)
            assert await uses_of(server.url, ticket, 20) == ["events"] + ["ticket-used"] * 19
        # Those who take the place of the processes take their tickets, and know which were used.
        used, unused = await ticket_of(server.url), await ticket_of(server.url)
        assert await uses_of(server.url, used, 1) == ["events"]
        await server.reload(text)
        assert await uses_of(server.url, used, 10) == ["ticket-used"] * 10
        assert await uses_of(server.url, unused, 10) == ["events"] + ["ticket-used"] * 9
    assert list(server.temporary.iterdir()) == []


async def test_access_that_is_turned_on_by_a_reload(tmp_path: Path) -> None:
    text = QUICK_TO_END + '[log]\nurl = "sqlite:///log.db"\n'
    async with serving_workers(tmp_path, text) as server:
        assert (await ask(server.url, "POST", "/publish?topic=news", body=b"1")).status == 200
        assert list(server.temporary.iterdir()) == []
        await server.reload(text + AUTH)
        # Until then those without it may let somebody in.
        await server.wait_said("draining: replaced by another", 2)
        assert (await ask(server.url, "POST", "/publish?topic=news", body=b"1")).status == 401
        assert await uses_of(server.url, await ticket_of(server.url), 10) == ["events"] + ["ticket-used"] * 9
    assert list(server.temporary.iterdir()) == []


# Workers that die


class Knocking:
    """Asks again and again on new connections; every answer must come, and be the right one.

    Attributes:
        answered: how many came.
    """

    def __init__(self, url: str, target: str = "/readyz") -> None:
        self.answered = 0
        self._url = url
        self._target = target

    async def run(self) -> None:
        while True:
            answer: Answer = await ask(self._url, "GET", self._target)
            assert answer.status == 200, answer
            self.answered += 1

    async def answers(self, count: int) -> None:
        """Returns when so many more have come."""
        goal = self.answered + count
        await until(lambda: self.answered >= goal)


@asynccontextmanager
async def knocking(*targets: tuple[str, str]) -> AsyncIterator[list[Knocking]]:
    """Knocks at these URLs and paths during the block."""
    async with trio.open_nursery() as nursery:
        visitors = [Knocking(*target) for target in targets for _ in range(3)]
        for visitor in visitors:
            nursery.start_soon(visitor.run)
        yield visitors
        for visitor in visitors:
            await visitor.answers(20)
        nursery.cancel_scope.cancel()


async def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        first, second = await server.pids()
        with ExitStack() as streams:
            crowd = [streams.enter_context(await subscribe("sse", server.url, "news")) for _ in range(40)]
            found = await samples_when(server.url, "tricast_subscribers", lambda each: sum(each.values()) == 40)
            os.kill(second, signal.SIGKILL)
            (line,) = await server.wait_said("worker died")
            assert f"worker died: SIGKILL again_in=0.0s pid={second} worker=1" in line
            (line,) = await server.wait_said("worker replaced")
            last_id = await publish(server.url, "news", "still here")
            lost = 0
            for stream in crowd:
                try:
                    assert (await stream.event()).id == last_id
                except Closed:
                    lost += 1
            assert lost == found["1"]
            after = await samples_when(server.url, "tricast_worker_restarts_total", lambda each: len(each) == 2)
            assert after == {"0": 0, "1": 1}
        assert is_alive(first)


async def test_a_worker_that_keeps_dying_is_replaced_ever_later(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        (pid, _) = await server.pids()
        for deaths, shortest in enumerate([0.0, 0.25, 0.5], start=1):
            os.kill(pid, signal.SIGKILL)
            line = (await server.wait_said("worker died: SIGKILL", deaths))[-1]
            delay = float(line.partition("again_in=")[2].partition("s")[0])
            assert shortest <= delay <= 2 * shortest
            async with knocking((server.url, "/readyz")):
                line = (await server.wait_said("worker replaced", deaths))[-1]
            pid = int(line.partition("pid=")[2].split()[0])
        assert await samples(server.url, "tricast_worker_restarts_total") == {"0": 3, "1": 0}


async def test_clients_of_a_worker_that_cannot_come_back_are_served_by_the_others(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    source = "async def shout(session):\n    pass\n"
    module.write_text(source)
    handler = '[[websocket.handler]]\npath = "/shout"\nhandler = "mine:shout"\n'
    async with serving_workers(tmp_path, QUICK_TO_END + handler, workers=3) as server:
        pids = await server.pids()
        module.write_text("raise ValueError('a bad day')\n")
        for pid in pids[:2]:
            os.kill(pid, signal.SIGKILL)
        lines = await server.wait_said("problem='configuration: websocket.handler.0.handler: ValueError: a bad day'", 4)
        assert all("worker died: exit code 1" in line for line in lines)
        # Of so many some would be for each of them.
        for _ in range(30):
            assert (await ask(server.url, "GET", "/readyz")).status == 200
        assert sorted(await samples(server.url, "tricast_connections")) == ["2"]
        assert not server.said("worker replaced")
        module.write_text(source)
        await server.wait_said("worker replaced", 2)
        await samples_when(server.url, "tricast_connections", lambda each: sorted(each) == ["0", "1", "2"])


# Reloading


async def test_a_reload_replaces_all_and_turns_nobody_away(tmp_path: Path) -> None:
    admin = "[admin]\nenabled = true\nport = 0\n"
    async with serving_workers(tmp_path, QUICK_TO_END + admin) as server:
        before = await server.pids()
        (line,) = server.said("admin listening")
        admin_url = line.split()[-1]
        async with knocking((server.url, "/"), (admin_url, "/readyz")) as visitors:
            with await subscribe("sse", server.url, "news") as stream:
                after = await server.reload(QUICK_TO_END + admin + '[sse]\nretry = "70s"\n')
                for visitor in visitors:
                    await visitor.answers(20)
                with pytest.raises(Ended):
                    await stream.event()
            for pid in before:
                await gone(pid)
        assert len({*before, *after}) == 4
        for _ in range(10):
            with await subscribe("sse", server.url, "news") as stream:
                assert isinstance(stream, EventStream)
                assert stream.retry is not None
                assert stream.retry >= 70_000


async def test_a_wrong_configuration_changes_nothing_and_all_of_it_is_told(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        before = await server.pids()
        server.file.write_text('[sse]\nretry = 7\nkepalive = "1s"\n')
        server.process.send_signal(signal.SIGHUP)
        first, second = await server.wait_said("not reloaded: the configuration is wrong", 2)
        assert "sse.retry" in first
        assert "did you mean 'keepalive'?" in second
        assert (await ask(server.url, "GET", "/readyz")).status == 200
        assert all(map(is_alive, before))
        # It is not the end of reloading.
        assert len({*before, *await server.reload(QUICK_TO_END)}) == 4


async def test_what_takes_a_restart_is_told_and_the_rest_is_done(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        before = await server.pids()
        text = '[admin]\nenabled = true\nport = 1\n[sse]\nretry = "70s"\n'
        await server.reload(QUICK_TO_END + text)
        said = server.said("not changed: that takes a restart")
        assert [line.partition("key=")[2] for line in said] == ["admin.enabled", "admin.port"]
        for pid in before:
            await gone(pid)
        with await subscribe("sse", server.url, "news") as stream:
            assert isinstance(stream, EventStream)
            assert stream.retry is not None
            assert stream.retry >= 70_000


async def test_a_send_buffer_can_be_changed_but_not_given_back(tmp_path: Path) -> None:
    async with serving_workers(tmp_path, QUICK_TO_END) as server:
        await server.reload(QUICK_TO_END + '[limits]\nsend_buffer = "8KiB"\n')
        assert not server.said("takes a restart")
        await server.reload(QUICK_TO_END)
        assert len(server.said("limits.send_buffer")) == 1


async def test_a_reload_that_fails_half_way_is_undone(tmp_path: Path) -> None:
    # The first worker that begins with it is the only one that can.
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nPath('begun').touch(exist_ok=False)\nasync def shout(session):\n    pass\n"
    )
    async with serving_workers(tmp_path) as server:
        before = await server.pids()
        handler = '[[websocket.handler]]\npath = "/shout"\nhandler = "mine:shout"\n[logging]\nformat = "json"\n'
        server.file.write_text(QUICK_TO_END + handler)
        async with knocking((server.url, "/readyz")):
            server.process.send_signal(signal.SIGHUP)
            (line,) = await server.wait_said("not reloaded: a worker could not begin")
            assert "FileExistsError" in line
            assert "set_back=[0] worker=1" in line
            # The one with the new configuration tells in JSON that it is replaced in its turn.
            await gone(before[0])
            await server.wait_said('"event": "draining: replaced by another"')
        assert is_alive(before[1])
        for _ in range(20):
            assert (await ask(server.url, "GET", "/shout")).status == 404
        assert not server.said('"event": "not reloaded')
        # Who dies now comes back with what the others have.
        os.kill(before[1], signal.SIGKILL)
        await server.wait_said("worker replaced")
        assert len({*before, *await server.reload(QUICK_TO_END)}) == 4


async def test_workers_that_cannot_begin_replace_nobody(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        before = await server.pids()
        handler = '[[websocket.handler]]\npath = "/a"\nhandler = "nowhere_at_all:a"\n'
        server.file.write_text(QUICK_TO_END + handler)
        server.process.send_signal(signal.SIGHUP)
        (line,) = await server.wait_said("not reloaded: a worker could not begin")
        assert "ModuleNotFoundError: No module named 'nowhere_at_all'" in line
        assert all(map(is_alive, before))
        assert (await ask(server.url, "GET", "/readyz")).status == 200


# Beginning


async def test_handlers_are_found_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("async def shout(session):\n    await session.send('hello')\n")
    handler = '[[websocket.handler]]\npath = "/shout"\nhandler = "mine:shout"\n'
    async with serving_workers(tmp_path, QUICK_TO_END + handler) as server:
        answer = await ask(server.url, "GET", "/shout")
        assert answer.status == 426


async def test_a_handler_that_cannot_be_imported_ends_it_with_a_line(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('[[websocket.handler]]\npath = "/a"\nhandler = "nowhere_at_all:a"\n')
    said = {await run("serve", "--config", str(file), "--port", "0", "--workers", count) for count in ("1", "2")}
    (told,) = said
    assert told == (
        1,
        "",
        "error: configuration: websocket.handler.0.handler: ModuleNotFoundError: No module named 'nowhere_at_all'\n",
    )


async def test_a_log_that_cannot_be_used_ends_it_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_text("This is no database, but long enough to be looked at as if it were one. " * 99)
    url = f"sqlite:///{tmp_path}/events.db"
    said = {await run("serve", "--port", "0", "--log-url", url, "--workers", count) for count in ("1", "2")}
    ((code, out, told),) = said
    assert (code, out) == (1, "")
    assert told.startswith("error: the log is not available: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_port_that_another_server_with_workers_has(tmp_path: Path, workers: int) -> None:
    async with serving_workers(tmp_path) as server:
        port = server.url.rpartition(":")[2]
        code, out, said = await run("serve", "--port", port, "--workers", str(workers))
        assert (code, out) == (1, "")
        assert said == f"error: cannot listen on 127.0.0.1:{port}: address already in use\n"


async def test_a_number_of_workers_that_is_none() -> None:
    code, _, said = await run("serve", "--workers", "many")
    assert code == 1
    assert said == "error: command line: server.workers: expected a number from 1 to 1024, or \"auto\", found 'many'\n"


# Going down


async def nothing_left(server: Workers, pids: set[int]) -> None:
    for pid in pids:
        await gone(pid)
    assert list(server.temporary.iterdir()) == []
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((host, int(port)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_all_workers(tmp_path: Path, number: signal.Signals) -> None:
    async with serving_workers(tmp_path) as server:
        pids = {*await server.pids()}
        with ExitStack() as streams:
            crowd = [streams.enter_context(await subscribe("sse", server.url, "news")) for _ in range(20)]
            # As a terminal does it: to the whole group, of which the workers must be no part.
            os.killpg(server.process.pid, number)
            for stream in crowd:
                with pytest.raises(Ended):
                    await stream.event()
        assert await server.process.wait() == 0
        await nothing_left(server, pids | server.every_pid())
        await server.wait_said("stopped", 3)
    assert "stopped" in server.lines[-1]
    assert "worker=" not in server.lines[-1]
    assert len([line for line in server.said("draining connections=") if "worker=" in line]) == 2


@pytest.mark.parametrize("first", ["supervisor", "workers"])
async def test_a_signal_to_all_processes_at_once_drains_them(tmp_path: Path, first: str) -> None:
    # As systemd stops a service: all get the signal, in any order.
    text = '[drain]\nperiod = "100ms"\ngrace = "1h"\n[limits]\nhead_timeout = "1h"\n'
    async with serving_workers(tmp_path, text) as server:
        pids = await server.pids()
        everybody = [server.process.pid, *pids] if first == "supervisor" else [*pids, server.process.pid]
        with ExitStack() as wires:
            crowd = [wires.enter_context(await Wire.open(server.url)) for _ in range(20)]
            for wire in crowd:
                await wire.send(b"GET /healthz HTTP/1.1\r\n")
            await samples_when(server.url, "tricast_connections", lambda each: sum(each.values()) > 20)
            for pid in everybody:
                os.kill(pid, signal.SIGTERM)
            await server.wait_said("draining", 3)
            for pid in pids:  # again, which must not matter either
                os.kill(pid, signal.SIGTERM)
            # Requests that had begun are answered.
            for wire in crowd:
                await wire.send(b"Host: a\r\n\r\n")
                assert (await read_answer(wire)).status == 200
        assert await server.process.wait() == 0
        await nothing_left(server, {*pids})
    assert not server.said("ending at once")
    assert not server.said("goes down")
    assert not server.every_pid()  # nobody was replaced


async def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    async with serving_workers(tmp_path, SLOW_TO_END) as server:
        pids = {*await server.pids()}
        with ExitStack() as streams:
            crowd = [streams.enter_context(await subscribe("sse", server.url, "news")) for _ in range(20)]
            server.process.terminate()
            await server.wait_said("draining", 3)
            server.process.terminate()
            for stream in crowd:
                with pytest.raises((Ended, Closed)):
                    await stream.event()
        assert await server.process.wait() == 0
        await nothing_left(server, pids)


#: A program that makes the terminal which is its stdin its own, as a shell's, and becomes the command that is given.
_IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@asynccontextmanager
async def serving_in_a_terminal(how: str, workers: int, folder: Path) -> AsyncIterator[tuple[ServerProcess, FileIO]]:
    """``tricast serve``, and the other side of its terminal."""
    serve = (*COMMAND, "serve", "--port", "0", "--workers", str(workers))
    command = (sys.executable, "-c", _IN_A_TERMINAL, how, *serve)
    ours, theirs = (FileIO(fd) for fd in os.openpty())
    with ours, theirs:
        options = {"cwd": folder, "stdin": theirs, "start_new_session": True}
        async with serving_as(*command, **options) as server:
            yield server, ours


@pytest.mark.parametrize("workers", [1, 2])
async def test_it_drains_when_its_terminal_is_closed(tmp_path: Path, workers: int) -> None:
    async with serving_in_a_terminal("at once", workers, tmp_path) as (server, terminal):
        with await Wire.open(server.url) as wire:
            await wire.send(b"GET /healthz HTTP/1.1\r\n")
            await connections_when(server.url, 2)
            terminal.close()
            await server.wait_said("draining", workers + 1 if workers > 1 else 1)
            server.process.send_signal(signal.SIGHUP)  # the shell tells it as well
            server.process.send_signal(signal.SIGHUP)
            await wire.send(b"Host: a\r\n\r\n")
            assert (await read_answer(wire)).status == 200
        assert await server.process.wait() == 0
    assert not server.said("ending at once")
    assert server.said("draining")
    assert not server.said("reload")


async def test_with_a_terminal_sighup_means_what_it_means_without(tmp_path: Path) -> None:
    async with serving_in_a_terminal("at once", 1, tmp_path) as (server, _):
        server.process.send_signal(signal.SIGHUP)
        await server.wait_said("not reloaded: that needs server.workers of 2 or more")
        assert (await ask(server.url, "GET", "/readyz")).status == 200


async def test_started_with_nohup_it_outlives_its_terminal(tmp_path: Path) -> None:
    async with serving_in_a_terminal("nohup", 1, tmp_path) as (server, terminal):
        terminal.close()
        await server.wait_said("not reloaded: that needs server.workers of 2 or more")
        assert (await ask(server.url, "GET", "/readyz")).status == 200


async def test_a_worker_that_hangs_is_killed(tmp_path: Path) -> None:
    async with serving_workers(tmp_path, SLOW_TO_END) as server:
        pids = await server.pids()
        os.kill(pids[0], signal.SIGSTOP)
        server.process.terminate()
        await server.wait_said("draining", 2)
        server.process.terminate()
        await server.wait_said(f"worker killed, it did not end in time pid={pids[0]} worker=0")
        assert await server.process.wait() == 0
        await nothing_left(server, {*pids})


async def test_a_worker_that_somebody_tells_to_end_is_replaced_while_it_drains(tmp_path: Path) -> None:
    async with serving_workers(tmp_path, SLOW_TO_END + '[limits]\nhead_timeout = "1h"\n') as server:
        pids = await server.pids()
        with ExitStack() as wires:
            for _ in range(20):
                wire = wires.enter_context(await Wire.open(server.url))
                await wire.send(b"GET /readyz HTTP/1.1\r\n")
            await samples_when(server.url, "tricast_connections", lambda each: sum(each.values()) > 20)
            os.kill(pids[1], signal.SIGTERM)
            (line,) = await server.wait_said("worker goes down, which its supervisor did not ask for")
            assert f"pid={pids[1]} worker=1" in line
            await server.wait_said("worker replaced")
            assert is_alive(pids[1])
            os.kill(pids[1], signal.SIGINT)
            await gone(pids[1])
        assert not server.said("worker died")


async def test_a_worker_that_goes_down_by_itself_has_not_died(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        pid = (await server.pids())[1]
        for times, number in enumerate([signal.SIGKILL, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL], start=1):
            os.kill(pid, number)
            line = (await server.wait_said("worker replaced", times))[-1]
            pid = int(line.partition("pid=")[2].split()[0])
        first, second = server.said("worker died")
        assert "again_in=0.0s" in first
        delay = float(second.partition("again_in=")[2].partition("s")[0])
        assert 0.25 <= delay <= 0.5  # as of the second that died, not of the fourth
        assert await samples(server.url, "tricast_worker_restarts_total") == {"0": 0, "1": 2}


async def test_a_worker_disregards_sighup(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        pids = await server.pids()
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)  # so that the one before was seen
            await gone(pid)
        assert not server.said("SIGHUP")
        assert not server.said("worker died")


async def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    async with serving_workers(tmp_path) as server:
        pids = {*await server.pids()}
        with ExitStack() as streams:
            crowd = [streams.enter_context(await subscribe("sse", server.url, "news")) for _ in range(20)]
            server.process.kill()
            for stream in crowd:
                with pytest.raises(Ended):
                    await stream.event()
        await nothing_left(server, pids)
        assert len(server.said("draining: the supervisor is gone")) == 2
