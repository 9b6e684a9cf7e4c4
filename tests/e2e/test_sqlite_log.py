"""Servers that share a log in a file, in processes of their own; restarts, crashes, and files that cannot be used."""

import resource
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
import trio
from cli.running import running
from clients import (
    TEXT,
    TRANSPORTS,
    WEBSOCKET_HEADERS,
    Answer,
    Closed,
    Event,
    Wire,
    ask,
    frame,
    head,
    open_websocket,
    publish,
    read_answer,
    subscribe,
)
from clocks import HANG_SECONDS
from serving import ServerProcess, failures, pause, serving, serving_process, until
from structlog.testing import LogCapture

import tricast
from tricast.errors import leaf
from tricast.log.wake import Wake


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def process_at(path: Path, **events: object):  # type: ignore[no-untyped-def]
    return serving_process(log={"url": url_of(path)}, events=events)


@asynccontextmanager
async def two_at(path: Path) -> AsyncIterator[tuple[ServerProcess, ServerProcess]]:
    async with process_at(path) as first, process_at(path) as second:
        yield first, second


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


# Several servers


async def test_subscribers_of_both_see_what_is_published_on_either_in_one_order(path: Path) -> None:
    each = 40
    async with two_at(path) as servers:
        ids: list[str] = []
        start = await publish(servers[0].url, "news.start", 0)
        seen: dict[tuple[str, str], list[Event]] = {}

        async def publish_many(server: ServerProcess, name: str) -> None:
            ids.extend([await publish(server.url, f"news.{name}", {"from": name, "n": n}) for n in range(each)])

        async def follow(server: ServerProcess, transport: str) -> None:
            with await subscribe(transport, server.url, "news.*", last_id=start) as subscriber:
                seen[server.url, transport] = await subscriber.events(2 * each)

        async with trio.open_nursery() as nursery:
            for server in servers:
                for transport in TRANSPORTS:
                    nursery.start_soon(follow, server, transport)
            for server, name in zip(servers, "ab", strict=True):
                nursery.start_soon(publish_many, server, name)
        in_order = sorted(ids, key=lambda text: tuple(map(int, text.split("-"))))
        for events in seen.values():
            assert [event.id for event in events] == in_order
            for name in "ab":
                assert [event.data["n"] for event in events if event.data["from"] == name] == list(range(each))


async def test_a_burst_longer_than_the_history_reaches_the_other_server_whole(path: Path) -> None:
    async with process_at(path, history=5) as first, process_at(path, history=5) as second:
        start = await publish(first.url, "news", "start")
        with await subscribe("ws", second.url, "news", last_id=start) as subscriber:
            for burst in range(3):
                lines = b"".join(b'{"topic":"news","data":%d}\n' % n for n in range(500))
                answer = await ask(first.url, "POST", "/publish", "Content-Type: application/x-ndjson", body=lines)
                assert answer.status == 200, burst
                assert [event.id for event in await subscriber.events(500)] == answer.json()["ids"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_resuming_on_the_other_server(path: Path, transport: str) -> None:
    async with two_at(path) as servers:
        position = await publish(servers[0].url, "news", "the first")
        for n in range(8):
            here, there = servers[n % 2], servers[(n + 1) % 2]
            await publish(here.url, "news", n)
            # At once, before that one may have heard of it.
            with await subscribe(transport, there.url, "news", last_id=position) as subscriber:
                event = await subscriber.event()
                assert event.data == n
                position = event.id
            with await subscribe(transport, here.url, "news", last_id=position) as subscriber:
                await publish(there.url, "other", n)
                assert subscriber.last_id == position


async def test_a_repeated_publish_on_the_other_server_gets_the_first_answer(path: Path) -> None:
    async with two_at(path) as (first, second):
        key = "Idempotency-Key: k"
        answers = [
            await ask(server.url, "POST", "/publish?topic=news", key, body=b"1") for server in (first, second, first)
        ]
        assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
        other = await ask(second.url, "POST", "/publish?topic=news", key, body=b"2")
        assert (other.status, other.code) == (422, "idempotency-key-reused")
        kept = await ask(first.url, "GET", "/events?topic=news&last_id=0-0")
        assert len(kept.json()["events"]) == 1


# Ends


async def kept_events(url: str, topic: str) -> list[Event]:
    """Everything that is kept of a topic, up to an end that is published for it, in the form of a WebSocket."""
    await publish(url, topic, "end")
    events = []
    with await subscribe("ws", url, topic, last_id="0-0") as subscriber:
        while (event := await subscriber.event()).data != "end":
            events.append(event)
    return events


async def test_what_a_killed_server_acknowledged_is_in_the_log(path: Path) -> None:
    acknowledged: list[tuple[str, int]] = []

    async def publish_until_it_dies(url: str, name: int) -> None:
        for n in range(name * 10**6, (name + 1) * 10**6):
            try:
                acknowledged.append((await publish(url, "news", n), n))
            except (OSError, AssertionError, Closed):
                return

    async with process_at(path, history=10**6) as survivor:
        with await subscribe("ws", survivor.url, "news") as live:
            async with process_at(path, history=10**6) as victim, trio.open_nursery() as nursery:
                for name in range(8):
                    nursery.start_soon(publish_until_it_dies, victim.url, name)
                await until(lambda: len(acknowledged) >= 200)
                victim.process.send_signal(signal.SIGKILL)
            events = await kept_events(survivor.url, "news")
            # Who was connected to the other one has got the same, from the first event on.
            assert [event.id for event in await live.events(len(events))] == [event.id for event in events]
        assert set(acknowledged) <= {(event.id, event.data) for event in events}
        async with process_at(path, history=10**6) as successor:
            with await subscribe("ws", successor.url, "news", last_id=events[0].id) as subscriber:
                assert await subscriber.events(len(events) - 1) == events[1:]


@pytest.mark.parametrize("synchronous", ["full", "normal", "off"])
async def test_a_restart_keeps_events_and_order(path: Path, synchronous: str) -> None:
    ids = []
    log = {"url": url_of(path), "synchronous": synchronous}
    for n in range(3):
        async with serving_process(log=log) as server:
            if ids:
                with await subscribe("sse", server.url, "news", last_id=ids[0]) as subscriber:
                    assert [event.id for event in await subscriber.events(len(ids) - 1)] == ids[1:]
            ids += [await publish(server.url, "news", n) for _ in range(3)]
            server.process.send_signal((signal.SIGTERM, signal.SIGKILL, signal.SIGINT)[n])
            await server.process.wait()
    assert ids == sorted(ids, key=lambda text: tuple(map(int, text.split("-"))))


# Files that cannot be used


def make_text(path: Path) -> Path:
    path.write_text("Dear diary, " * 100)
    return path


def make_foreign(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE addresses (name TEXT)")
    return path


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.parent / "no" / "log.db", "its folder does not exist"),
        (lambda path: path.parent, "the database file cannot be opened, nor made"),
        (lambda _: Path("/proc/log.db"), "the database file cannot be opened, nor made"),
        (make_text, "the file is not a database"),
        (make_foreign, "the file is a SQLite database of another program"),
    ],
)
async def test_a_server_without_its_log_does_not_begin(path: Path, make: Callable[[Path], Path], why: str) -> None:
    unusable = make(path)
    with trio.fail_after(HANG_SECONDS):
        async with running("serve", "--port", "0", "--log-url", url_of(unusable)) as server:
            status, out, said = await server.end()
    assert (status, out) == (1, "")
    assert said == f"error: the log is not available: {unusable}: {why}\n"


async def test_a_log_whose_thread_fails_ends_the_server(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Wake) -> None:
        raise RuntimeError("a bug")

    async def serve() -> None:
        async with serving(records=records, log={"url": url_of(path)}) as server:
            with await subscribe("sse", server.url, "news"):
                await publish(server.url, "news", 1)
                await trio.sleep_forever()

    records = LogCapture()
    bugs: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", bugs.append)
    monkeypatch.setattr(Wake, "wake_others", fail)
    with pytest.raises(ExceptionGroup) as caught:
        await serve()
    error = leaf(caught.value)
    assert str(error) == f"the log is not available: {path}: its thread has failed"
    assert isinstance(error, tricast.LogUnavailable)
    assert [entry["event"] for entry in records.entries if entry["log_level"] == "error"] == ["the log has ended"]
    await until(lambda: bool(bugs))


async def test_a_path_from_the_current_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    async with serving(log={"url": "sqlite:///here.db"}) as server:
        await publish(server.url, "news", 1)
        assert (path.parent / "here.db").exists()


# A log that is not available for a while


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


async def until_ready(url: str) -> None:
    """Returns when the server says that it is ready; the test's deadline ends a vain wait."""
    while (await ask(url, "GET", "/readyz")).status != 200:
        await pause()


def refused(answer: Answer, why: str) -> None:
    assert (answer.status, answer.code) == (503, "log-unavailable")
    assert answer.json()["detail"] == f"the log is not available: {why}"
    assert answer.headers["retry-after"]


async def test_answers_do_not_wait_for_what_is_published_behind_them(path: Path) -> None:
    async with serving(log={"url": url_of(path)}) as server:
        with await Wire.open(server.url) as wire, await open_websocket(server.url, "/ws") as websocket:
            operations = (b'{"op":"ping","ref":1}', b'{"op":"publish","topic":"news","data":2}')
            with locked(path):
                await wire.send(
                    head("GET", "/healthz") + head("POST", "/publish?topic=news", "Content-Length: 1") + b"1"
                )
                assert (await read_answer(wire)).json() == {"status": "ok"}
                await websocket.wire.send(b"".join(frame(TEXT, operation) for operation in operations))
                assert await websocket.reply() == {"ok": "ping", "ref": 1}
            # Had it waited, so long that the log gave up, these would be refusals.
            assert (await read_answer(wire)).status == 200
            assert (await websocket.reply())["ok"] == "publish"


async def test_publishing_while_the_file_is_locked(path: Path) -> None:
    why = "the database is locked by another program"
    records = LogCapture()
    async with serving(records=records, log={"url": url_of(path)}) as server:
        with await subscribe("sse", server.url, "news") as subscriber:
            first = await publish(server.url, "news", 1)
            with locked(path):
                for _ in range(3):
                    refused(await ask(server.url, "POST", "/publish?topic=news", body=b"2"), why)
                refused(await ask(server.url, "GET", "/readyz"), why)
                assert (await ask(server.url, "GET", "/healthz")).status == 200
                # What is there can be had all the same.
                with await subscribe("ws", server.url, "news", last_id="0-0") as other:
                    assert (await other.event()).id == first
            await until_ready(server.url)
            second = await publish(server.url, "news", 3)
            assert [event.id for event in await subscriber.events(2)] == [first, second]
    assert len(failures(records)) == 1
    assert [entry["event"] for entry in records.entries if entry["event"].startswith("the log")] == [
        "the log is not available", "the log is available again"
    ]  # fmt: skip


@contextmanager
def away(path: Path) -> Iterator[None]:
    """The file is somewhere else, with what belongs to it."""
    names = ["log.db", "log.db-wal", "log.db-shm"]
    for name in names:
        path.with_name(name).rename(path.with_name(f"away-{name}"))
    yield
    for name in reversed(names):  # the database last: without the others it has lost its newest
        path.with_name(f"away-{name}").rename(path.with_name(name))


async def refused_while_away(server: tricast.Server) -> None:
    answer = await ask(server.url, "POST", "/publish?topic=news", body=b"1")
    assert (answer.status, answer.code) == (503, "log-unavailable")
    assert answer.headers["retry-after"]


async def test_a_poll_that_comes_back_while_the_file_is_away(path: Path) -> None:
    records = LogCapture()
    async with serving(records=records, log={"url": url_of(path), "cache_size": "1B"}) as server:
        ids = [await publish(server.url, "news", n) for n in range(3)]
        with away(path):
            answer = await ask(server.url, "GET", f"/events?topic=news&last_id={ids[0]}")
            assert (answer.status, answer.code) == (503, "log-unavailable")
            assert answer.headers["retry-after"]
            await refused_while_away(server)
        with await subscribe("poll", server.url, "news", last_id=ids[0]) as subscriber:
            assert [event.id for event in await subscriber.events(2)] == ids[1:]
    assert [entry["event"] for entry in records.entries].count("the log cannot be read") == 1


@pytest.mark.parametrize("transport", ["sse", "ws"])
async def test_who_stays_while_the_file_is_away_gets_everything_after_it(path: Path, transport: str) -> None:
    records = LogCapture()

    def said(event: str) -> int:
        return [entry["event"] for entry in records.entries].count(event)

    async with serving(records=records, log={"url": url_of(path), "cache_size": "1B"}) as server:
        ids = [await publish(server.url, "news", n) for n in range(3)]
        with await subscribe("sse", server.url, "news") as witness:
            with away(path):
                # Where the file is needed for it.
                subscriber = await subscribe(transport, server.url, "news", last_id=ids[0])
                await until(lambda: said("the log cannot be read") == 1)
                await refused_while_away(server)
                if transport == "ws":
                    # Before it has found out where to begin, which is before the upgrade.
                    answer = await ask(server.url, "GET", "/events?topic=news&last_id=0-0", *WEBSOCKET_HEADERS)
                    assert (answer.status, answer.code) == (503, "log-unavailable")
            with subscriber:
                assert [event.id for event in await subscriber.events(2)] == ids[1:]
                await until_ready(server.url)
                last = await publish(server.url, "news", "all is well")
                assert [(await each.event()).id for each in (witness, subscriber)] == [last, last]
    assert not said("connection failed")
    assert said("the log cannot be read") == said("the log can be read again") == 1


async def test_a_disk_that_is_full(path: Path) -> None:
    def limit(size: int) -> None:
        hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, hard))

    body = b'"' + b"x" * 50_000 + b'"'
    async with process_at(path) as server:
        acknowledged = [await publish(server.url, "news", body)]
        limit(300_000)
        answer = await ask(server.url, "POST", "/publish?topic=news", body=body)
        while answer.status == 200:
            acknowledged.append(answer.json()["id"])
            answer = await ask(server.url, "POST", "/publish?topic=news", body=body)
        assert (answer.status, answer.code) == (503, "log-unavailable")
        assert (await ask(server.url, "GET", "/readyz")).status == 503
        limit(resource.RLIM_INFINITY)
        await until_ready(server.url)
        acknowledged.append(await publish(server.url, "news", body))
        assert set(acknowledged) <= {event.id for event in await kept_events(server.url, "news")}
    async with process_at(path) as server:
        assert set(acknowledged) <= {event.id for event in await kept_events(server.url, "news")}
