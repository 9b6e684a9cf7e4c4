"""``tricast log``: looking into a log in a file, following it, and dropping what is old."""

import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import httpx
import pytest
import trio
from cli.running import run_here, running, serving_command
from click.testing import CliRunner, Result
from clocks import HANG_SECONDS
from log.worlds import Clock, sqlite_log
from services import RedisServer
from serving import pause

from tricast import cli, log_command
from tricast.config import Config
from tricast.event import Draft, EventId
from tricast.log.inspection import Holding

Run = Callable[..., Result]
TOPICS = ("news.a", "news.b", "other", "news.a")


@pytest.fixture
def ids(tmp_path: Path) -> list[str]:
    """The ids of four events, one a minute, the last of them a minute ago."""
    return trio.run(_fill, tmp_path / "log.db", TOPICS)


async def _fill(path: Path, topics: Sequence[str]) -> list[str]:
    clock = Clock(float(int(time.time()) - 60 * len(topics)))
    log = sqlite_log(path, clock, history_age=86400.0)
    found: list[str] = []
    async with log.open(lambda _: None):
        for number, topic in enumerate(topics):
            found += map(str, await log.append([Draft(topic, "message", b'{"n": %d}' % number)]))
            clock.seconds += 60
    return found


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command; ``{log}`` in its arguments is the URL."""
    monkeypatch.delenv("TRICAST_LOG__URL", raising=False)

    def invoke(*args: str, stdin: str = "") -> Result:
        filled = [arg.replace("{log}", f"sqlite:///{tmp_path / 'log.db'}") for arg in args]
        return CliRunner().invoke(cli.cli, ["log", *filled], input=stdin)

    return invoke


def printed(result: Result) -> list[str]:
    """The ids of the events on stdout."""
    assert result.exit_code == 0, result.stderr
    return [json.loads(line)["id"] for line in result.stdout.splitlines()]


def failure_of(result: Result, exit_code: int = 1) -> str:
    assert result.exit_code == exit_code
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (command, option)
        for command in log_command.log.commands.values()
        for option in command.params
        if isinstance(option, click.Option)
    ],
    ids=lambda it: it.name,
)
def test_help_tells_every_default(command: click.Command, option: click.Option) -> None:
    context = click.Context(command, parent=click.Context(cli.cli, **cli.cli.context_settings), info_name=command.name)
    record = option.get_help_record(context)
    assert record is not None
    assert option.is_flag or "default: " in record[1]


def client_of(url: str) -> httpx.AsyncClient:
    """A client that waits, however busy the machine is."""
    return httpx.AsyncClient(base_url=url, timeout=HANG_SECONDS)


# Which log


@pytest.mark.parametrize("args", [("info",), ("tail",), ("tail", "-f"), ("trim", "--keep", "1"), ("info", "memory:")])
def test_the_memory_of_a_server_cannot_be_looked_into(invoke: Run, args: tuple[str, ...]) -> None:
    said = failure_of(invoke(*args))
    assert "memory: is the server's own memory" in said
    assert "--config FILE" in said


def test_the_log_of_a_configuration(invoke: Run, ids: list[str], tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'[log]\nurl = "sqlite:///{tmp_path / "log.db"}"\n')
    assert json.loads(invoke("info", "--config", str(file), "--json").stdout)["events"] == 4
    assert printed(invoke("tail", "--config", str(file))) == ids
    # The one that is given goes before.
    assert "there is no such file" in failure_of(invoke("info", "sqlite:///missing.db", "--config", str(file)))
    file.write_text("[log]\nurl = 5\n")
    assert "log.url" in failure_of(invoke("info", "--config", str(file)))


@pytest.mark.parametrize("command", [("info",), ("tail",), ("tail", "--follow"), ("trim", "--keep", "1", "--yes")])
def test_a_log_that_is_not_there_is_not_made(invoke: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    assert "there is no such file" in failure_of(invoke(*command, "{log}"))
    assert list(tmp_path.iterdir()) == []


def test_passwords_are_not_told(invoke: Run) -> None:
    said = invoke("info", "redis://somebody:hunter2@nowhere:port")
    assert "hunter2" not in said.output
    assert said.exit_code == 1


# info


def test_what_a_log_holds(invoke: Run, ids: list[str], tmp_path: Path) -> None:
    result = invoke("info", "{log}")
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines.pop("place") == str(tmp_path / "log.db")
    assert re.fullmatch(r"[0-9]+ B", lines.pop("size"))
    assert re.fullmatch(r"4 min [0-9]+ s ago", lines.pop("oldest"))
    assert lines == {"kind": "sqlite", "events": "4", "topics": "3", "first": ids[0], "last": ids[3]}


def test_the_same_for_programs(invoke: Run, ids: list[str], tmp_path: Path) -> None:
    found = json.loads(invoke("info", "{log}", "--json").stdout)
    (shard,) = found["shards"]
    age, size = found["oldest_age_seconds"], found["bytes"]
    assert 240 <= age < 300
    assert size > 0
    everything = {"events": 4, "is_counted": True, "topics": 3, "bytes": size, "oldest_age_seconds": age}
    assert shard == {"shard": 0, "first": ids[0], "last": ids[3], **everything}
    assert found == {"kind": "sqlite", "place": str(tmp_path / "log.db"), **everything, "shards": [shard]}


def test_an_empty_log(invoke: Run, tmp_path: Path) -> None:
    trio.run(_fill, tmp_path / "log.db", ())
    lines = invoke("info", "{log}").stdout.splitlines()
    assert [line.split()[1] for line in lines if line.split()[0] in ("events", "oldest", "first")] == ["0", "—", "—"]
    found = json.loads(invoke("info", "{log}", "--json").stdout)
    assert (found["events"], found["oldest_age_seconds"], found["shards"][0]["first"]) == (0, None, None)


SHARDS = {
    0: Holding(EventId(1000, 0), EventId(9000, 3), 1200, 3, 2048, 1.0),
    1: Holding(None, EventId(0, 0), 0, 0, 100, None),
}


def test_every_shard_is_told_of() -> None:
    config = Config.model_validate({"log": {"url": "redis+cluster://app:hunter2@one:7000,[::1]", "shards": 2}})
    assert log_command._as_lines(config, SHARDS, 87_401.0, is_sharded=True) == [
        "kind    redis cluster",
        "place   one:7000,[::1]:6379, tricast:*",
        "events  1,200",
        "topics  3",
        "size    2.1 KiB",
        "oldest  1 d 0 h ago",
        "",
        "shard  events  topics  size     oldest       first   last",
        "0      1,200   3       2.0 KiB  1 d 0 h ago  1000-0  9000-3",
        "1      0       0       100 B    —            —       0-0",
    ]


def test_what_is_not_counted_is_at_most_so_much() -> None:
    shards = {0: SHARDS[0]._replace(is_counted=False), 1: SHARDS[1]._replace(is_counted=False)}
    config = Config.model_validate({"log": {"url": "kafka://one/events", "shards": 2}})
    lines = log_command._as_lines(config, shards, 2.0, is_sharded=True)
    assert lines[2] == "events  at most 1,200"
    assert [line[7:20].strip() for line in lines[-2:]] == ["at most 1,200", "0"]
    found = log_command._as_json(config, shards | {1: SHARDS[1]}, 2.0)
    assert (found["events"], found["is_counted"]) == (1200, False)
    assert [shard["is_counted"] for shard in found["shards"]] == [False, True]


@pytest.mark.parametrize(
    ("section", "kind", "place"),
    [
        ({"url": "redis://u:p@h/3", "namespace": "x"}, "redis", "h:6379/3, x:*"),
        ({"url": "rediss+sentinel://u:p@a,b:1/main"}, "redis sentinel", "a:26379,b:1/main/0, tricast:*"),
        ({"url": "redis://h", "delivery": "pubsub"}, "redis, pubsub", "h:6379/0, tricast:*"),
        ({"url": "kafka://a,b:1/events"}, "kafka", "a:9092,b:1/events"),
    ],
)
def test_where_a_log_is(section: dict[str, str], kind: str, place: str) -> None:
    assert log_command._kind_and_place(Config.model_validate({"log": section})) == (kind, place)


def test_what_cannot_be_told_of_one_shard_cannot_be_told_of_all() -> None:
    shards = {0: SHARDS[0], 1: SHARDS[1]._replace(size=None, topics=None)}
    found = log_command._as_json(Config.model_validate({"log": {"url": "kafka://a/b"}}), shards, 2.0)
    assert (found["bytes"], found["topics"], found["events"], found["oldest_age_seconds"]) == (None, None, 1200, 1.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (59, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90061, "1 d 1 h"),
        (864000, "10 d 0 h"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert log_command._duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (2**20, "1.0 MiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**43, "8,192.0 GiB"),
    ],
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert log_command._size(count) == words


# tail


def test_the_newest_events(invoke: Run, ids: list[str]) -> None:
    assert printed(invoke("tail", "{log}")) == ids
    assert printed(invoke("tail", "{log}", "--count", "2")) == ids[2:]
    assert printed(invoke("tail", "{log}", "-n", "0")) == []
    assert printed(invoke("tail", "{log}", "--topic", "news.*", "-n", "2")) == [ids[1], ids[3]]
    assert printed(invoke("tail", "{log}", "--topic", "news.b", "--topic", "other")) == ids[1:3]
    line = f'{{"id":"{ids[3]}","topic":"news.a","type":"message","data":{{"n": 3}}}}\n'
    assert invoke("tail", "{log}", "-n", "1").stdout == line


def test_what_is_behind_a_position(invoke: Run, ids: list[str]) -> None:
    assert printed(invoke("tail", "{log}", "--last-id", "0-0")) == ids
    assert printed(invoke("tail", "{log}", "--last-id", ids[1])) == ids[2:]
    assert printed(invoke("tail", "{log}", "--last-id", ids[0], "--count", "2")) == ids[1:3]
    assert printed(invoke("tail", "{log}", "--last-id", "0-0", "--count", "0")) == []
    assert printed(invoke("tail", "{log}", "--last-id", "0-0", "--topic", "other")) == [ids[2]]


def test_a_gap_is_told(invoke: Run, ids: list[str]) -> None:
    result = invoke("tail", "{log}", "--last-id", "1-0")
    assert printed(result) == ids
    assert re.match(r"gap: events after 1-0 and up to \S+ may be missing: the log began anew", result.stderr)
    result = invoke("tail", "{log}", "--last-id", "0.1-0_1.1-0")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert result.stderr.endswith("the log does not know that position\n")


def test_wrong_usage_of_tail(invoke: Run) -> None:
    assert "expected a topic or a pattern" in failure_of(invoke("tail", "{log}", "--topic", "a..b"), 2)
    assert "last_id must be" in failure_of(invoke("tail", "{log}", "--last-id", "x"), 2)


async def test_a_log_is_followed_while_a_server_writes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    with trio.fail_after(HANG_SECONDS):
        async with serving_command("--log-url", url) as (_, server), client_of(server) as client:

            async def publish(topic: str, data: str) -> str:
                return str((await client.post("/publish", params={"topic": topic}, content=data)).json()["id"])

            before = [await publish("news", data) for data in ("1", "2", "3")]
            async with running("log", "tail", url, "-f", "-n", "2", "--topic", "news") as tail:
                assert [json.loads(await tail.out.next())["id"] for _ in range(2)] == before[1:]
                await publish("other", "4")
                after = await publish("news", '{"n": 5}')
                assert await tail.out.next() == f'{{"id":"{after}","topic":"news","type":"message","data":{{"n": 5}}}}'
                tail.process.send_signal(signal.SIGINT)
                assert await tail.end() == (130, "", "")
            args = ("log", "tail", url, "--follow", "--last-id", before[0], "--count", "3", "--topic", "news")
            async with running(*args) as tail:
                found = [json.loads(await tail.out.next())["id"] for _ in range(3)]
                assert found == [*before[1:], after]
                assert await tail.end() == (0, "", "")


async def test_following_drops_nothing(tmp_path: Path) -> None:
    """Servers of this log keep more than the defaults say; whoever looks must not trim it."""
    path = tmp_path / "log.db"
    await _fill(path, ["a"])
    with sqlite3.connect(path) as database:
        years_ago = int((time.time() - 9 * 365 * 86400) * 1000)
        database.execute("UPDATE events SET id = ? << 20", (years_ago,))
    with trio.fail_after(HANG_SECONDS):
        async with running("log", "tail", f"sqlite:///{path}", "-f", "-n", "1") as tail:
            assert json.loads(await tail.out.next())["id"] == f"{years_ago}-0"
            tail.process.send_signal(signal.SIGINT)
            await tail.end()
        code, out, _ = await run_here("log", "info", f"sqlite:///{path}", "--json")
    assert (code, json.loads(out)["events"]) == (0, 1)


# trim


def test_old_events_are_dropped(invoke: Run, ids: list[str]) -> None:
    result = invoke("trim", "{log}", "--keep", "3", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"dropped 1 events, 3 are left, from {ids[1]} on\n"
    assert printed(invoke("tail", "{log}")) == ids[1:]
    assert invoke("trim", "{log}", "--before", ids[2], "--yes").stdout.startswith("dropped 1 events, 2 are left")
    # Ages in between the events, however long this takes.
    assert invoke("trim", "{log}", "--older-than", "1h", "--yes").stdout.startswith("dropped 0 events, 2 are left")
    assert invoke("trim", "{log}", "--older-than", "1ms", "--yes").stdout == "dropped 2 events, none is left\n"
    result = invoke("tail", "{log}", "--last-id", ids[0])
    assert printed(result) == []
    assert result.stderr.startswith(f"gap: events after {ids[0]} and up to {ids[3]} may be missing")


def test_it_is_asked_first(invoke: Run, ids: list[str], tmp_path: Path) -> None:
    asked = f"sqlite, {tmp_path / 'log.db'}: drop all but the newest 1, of 4 events? [y/N]: "
    said = failure_of(invoke("trim", "{log}", "--keep", "1", stdin="n\n"))
    assert said == f"{asked}n\nerror: nothing was dropped\n"
    said = failure_of(invoke("trim", "{log}", "--keep", "1"), 130)
    assert "nothing was dropped; --yes is for where there is nobody to be asked" in said
    assert printed(invoke("tail", "{log}")) == ids
    assert f"drop what is before {ids[1]}, of" in invoke("trim", "{log}", "--before", ids[1], stdin="n\n").stderr
    assert "drop what came more than 1 d 12 h ago, of" in invoke("trim", "{log}", "--older-than", "36h").stderr
    assert invoke("trim", "{log}", "--keep", "1", stdin="y\n").stdout.startswith("dropped 3 events")


def test_wrong_usage_of_trim(invoke: Run, ids: list[str]) -> None:
    assert "says what to drop" in failure_of(invoke("trim", "{log}"), 2)
    assert "says what to drop" in failure_of(invoke("trim", "{log}", "--keep", "1", "--before", "1-0"), 2)
    assert "expected a duration" in failure_of(invoke("trim", "{log}", "--older-than", "old"), 2)
    assert "Invalid value" in failure_of(invoke("trim", "{log}", "--keep", "0"), 2)
    assert "is no position in this log" in failure_of(invoke("trim", "{log}", "--before", "0.1-0", "--yes"))
    assert printed(invoke("tail", "{log}")) == ids


async def test_while_a_server_runs_its_clients_go_on_and_the_next_one_announces_a_gap(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"

    async def publish(server: str, data: str) -> str:
        async with client_of(server) as client:
            return str((await client.post("/publish", params={"topic": "a"}, content=data)).json()["id"])

    async def missed(server: str, last_id: str) -> dict[str, object]:
        async with client_of(server) as client:
            found = (await client.get("/events", params={"topic": "a", "last_id": last_id})).json()
        return {"events": [event["id"] for event in found["events"]], "gap": found.get("gap")}

    with trio.fail_after(HANG_SECONDS):
        async with serving_command("--log-url", url) as (_, server):
            ids = [await publish(server, data) for data in ("1", "2", "3")]
            code, out, _ = await run_here("log", "trim", url, "--keep", "1", "--yes")
            assert (code, out) == (0, f"dropped 2 events, 1 are left, from {ids[2]} on\n")
            ids.append(await publish(server, "4"))
            assert await missed(server, ids[0]) == {"events": ids[1:], "gap": None}
        async with serving_command("--log-url", url) as (_, server):
            gap = {"reason": "evicted", "after": ids[0], "resumed_at": ids[1]}
            assert await missed(server, ids[0]) == {"events": ids[2:], "gap": gap}
            assert await missed(server, ids[1]) == {"events": ids[2:], "gap": None}


async def test_several_shards_in_redis(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_LOG__URL", redis.url)
    monkeypatch.setenv("TRICAST_LOG__SHARDS", "2")
    with trio.fail_after(HANG_SECONDS):
        async with serving_command() as (_, server), client_of(server) as client:
            monkeypatch.setenv("TRICAST_LOG__SHARDS", "3")
            code, _, said = await run_here("log", "info")
            assert (code, said.partition(" (")[0]) == (
                1,
                "error: configuration: log.shards: expected 2, as on the servers that share this log in Redis",
            )
            monkeypatch.delenv("TRICAST_LOG__SHARDS")  # the log tells how many there are

            async def publish(topic: str) -> str:
                while (
                    answer := await client.post("/publish", params={"topic": topic}, content="1")
                ).status_code == 503:
                    await pause()  # it has not noticed yet that Redis is back
                return str(answer.json()["id"])

            ids = [await publish(f"topic.{number}") for number in range(8)]
            async with running("log", "tail", "--follow", "-n", "3") as tail:
                assert {json.loads(await tail.out.next())["id"] for _ in range(3)} == set(ids[5:])
                ids.append(await publish("a"))
                assert ids[-1] in json.loads(await tail.out.next())["id"].split("_")
                redis.kill()
                await tail.err.until("the log is not available")
                redis.start()
                await tail.err.until("the log is available again")
                ids.append(await publish("a"))
                # It has seen both shards.
                assert ids[-1] in json.loads(await tail.out.next())["id"].split("_")
            again = await publish("topic.0")
            async with running("subscribe", "topic.0", "--last-id", ids[0], "--url", server) as subscriber:
                assert json.loads(await subscriber.out.next())["id"] == again
            code, out, said = await run_here("log", "info")
            assert (code, said) == (0, "")
            lines = [line.split() for line in out.splitlines()]
            assert ["kind", "redis"] in lines
            assert ["events", "11"] in lines
            assert lines[-3] == ["shard", "events", "topics", "size", "oldest", "first", "last"]
            assert [line[0] for line in lines[-2:]] == ["0", "1"]
            code, out, said = await run_here("log", "trim", "--before", ids[0], "--yes")
            assert (code, said) == (0, "")
            shard = ids[0].partition(".")[0]
            # A mark went, which is no event.
            assert re.fullmatch(rf"shard {shard}: dropped 0 events, \d are left, from \S+ on\n", out)
            code, out, said = await run_here("log", "trim", "--keep", "1", "--yes")
            assert (code, said) == (0, "")
            found = re.findall(r"shard \d: dropped (\d+) events, 1 are left", out)
            assert sum(map(int, found)) + len(found) == 11


async def test_what_is_only_passed_on_can_be_followed(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_LOG__URL", redis.url)
    monkeypatch.setenv("TRICAST_LOG__DELIVERY", "pubsub")
    with trio.fail_after(HANG_SECONDS):
        # The log tells which delivery it has.
        untold = {name: value for name, value in os.environ.items() if name != "TRICAST_LOG__DELIVERY"}
        async with (
            serving_command() as (_, server),
            client_of(server) as client,
            running("log", "tail", "-f", "--topic", "a", env=untold) as tail,
            trio.open_nursery() as nursery,
        ):
            published: list[str] = []
            is_over = trio.Event()

            async def publish() -> None:
                while not is_over.is_set():  # rather than until cancelled, which httpx leaves the body half sent at
                    answer = await client.post("/publish", params={"topic": "a"}, content="1")
                    published.append(answer.json()["id"])
                    await pause()

            nursery.start_soon(publish)
            # It says nothing when it begins: of what comes before that it tells nothing.
            first = json.loads(await tail.out.next())["id"]
            second = json.loads(await tail.out.next())["id"]
            await tail.out.next()  # so the answer to the one before has come
            is_over.set()
        assert published.index(second) == published.index(first) + 1
        for args in (("tail",), ("info",), ("trim", "--keep", "1", "--yes")):
            code, _, said = await run_here("log", *args)
            assert code == 1
            assert "events are only passed on" in said
