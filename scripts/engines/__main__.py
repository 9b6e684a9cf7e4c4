"""What ``scripts/services`` does: starts servers that stay, tells where they are, and stops them."""

import argparse
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from engines.arguments import NAMES, parse
from engines.daemon import NotStarted, Service
from engines.left import Left, Start, end, remember, start_again
from engines.redis import RedisServer
from engines.redis_cluster import RedisCluster
from engines.redis_sentinel import RedisSentinel

_STATE = "services.json"
_KAFKA_TOPIC = "tricast"
_NOT_RUNNING = 3  # as init scripts say it


class Failed(Exception):
    """What was asked for cannot be done."""


class Running(NamedTuple):
    """A service as it was started.

    Attributes:
        url: for ``tricast serve --log-url``.
        programs: of which it consists.
        starts: how each of them is started.
    """

    url: str
    programs: list[Left]
    starts: list[Start]

    @property
    def is_running(self) -> bool:
        """Whether all of it is."""
        return all(program.is_running for program in self.programs)


class State:
    """The services of a folder, as its ``services.json`` has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services: dict[str, Running] = {}
        path = folder / _STATE
        if path.exists():
            entries = json.loads(path.read_text(encoding="utf-8"))
            self.services = {
                name: Running(
                    entry["url"],
                    [Left(*program) for program in entry["programs"]],
                    [Start(*start) for start in entry["starts"]],
                )
                for name, entry in entries.items()
            }

    def save(self) -> None:
        """Writes it whole or not at all."""
        entries = {name: running._asdict() for name, running in self.services.items()}
        new = self.folder / f"{_STATE}.new"
        new.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        new.rename(self.folder / _STATE)

    def remove(self, name: str) -> None:
        """Ends a service, and removes its part of the folder."""
        end(self.services[name].programs)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        del self.services[name]
        self.save()


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is asked for, and returns the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        status = _COMMANDS[options.command](options)
    except (Failed, NotStarted) as error:
        print(f"services: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


def up(options: argparse.Namespace) -> int:
    """Starts what is not running, and prints the URLs."""
    folder = options.folder
    _make(folder)
    with _locked(folder):
        state = State(folder)
        try:
            for name in _names(options):
                _ensure(state, name, options)
                print(state.services[name].url, flush=True)
        finally:
            if not state.services:
                _clear(folder)
    return 0


def down(options: argparse.Namespace) -> int:
    """Stops what is there, and removes the folder with the last."""
    if not options.folder.exists():
        return 0
    with _locked(options.folder):
        state = State(options.folder)
        for name in _names(options):
            if name in state.services:
                state.remove(name)
        if not state.services:
            _clear(options.folder)
    return 0


def restart(options: argparse.Namespace) -> int:
    """Stops what is there, and starts it again where it was, with what it holds; prints the URLs."""
    if not options.folder.exists():
        raise Failed("nothing is there: scripts/services up starts it")
    with _locked(options.folder):
        state = State(options.folder)
        asked = _names(options) if options.names else list(state.services)
        for name in asked:
            if name not in state.services:
                raise Failed(f"{name} is not there: scripts/services up {name} starts it")
        for name in asked:
            print(f"services: restarting {name}", file=sys.stderr)
            url, programs, starts = state.services[name]
            end(programs)
            started = start_again(starts)
            state.services[name] = Running(url, [remember(daemon.pid) for daemon in started], starts)
            state.save()
            for daemon in started:
                daemon.leave()
            print(url, flush=True)
    return 0


def status(options: argparse.Namespace) -> int:
    """Prints a line for each service that there is; whether all that were asked for are running is the status."""
    services = State(options.folder).services
    asked = _names(options) if options.names else list(services)
    for name in asked:
        running = services.get(name)
        word = "down" if running is None else "running" if running.is_running else "broken"
        print(f"{name:14} {word:7} {running.url if running else ''}".rstrip())
    return 0 if asked and all(name in services and services[name].is_running for name in asked) else _NOT_RUNNING


def _names(options: argparse.Namespace) -> list[str]:
    return list(NAMES) if "all" in options.names or not options.names else list(dict.fromkeys(options.names))


def _ensure(state: State, name: str, options: argparse.Namespace) -> None:
    if name in state.services:
        if state.services[name].is_running:
            return
        print(f"services: {name} has ended, and is started anew", file=sys.stderr)
        state.remove(name)
    folder = state.folder / name
    if folder.exists():
        raise Failed(f"{folder} is there already, and not a service's")
    print(f"services: starting {name} in {folder}", file=sys.stderr)
    try:
        service = _build(name, folder, options)
        try:
            service.start()
            url = _url_of(service)
        except BaseException:
            service.close()
            raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # From here on nothing that was started is forgotten: first it is written down, then let go.
    pids = [daemon.pid for daemon in service.daemons]
    state.services[name] = Running(url, [remember(pid) for pid in pids], [Start.of(each) for each in service.daemons])
    state.save()
    service.leave()


def _build(name: str, folder: Path, options: argparse.Namespace) -> Service:
    if name == "redis":
        return RedisServer(folder, program=options.program)
    if name == "redis-cluster":
        return RedisCluster(folder, replicas=options.replicas, program=options.program)
    if name == "redis-sentinel":
        return RedisSentinel(folder, program=options.program)
    from engines.kafka import KafkaServer  # noqa: PLC0415 - whoever wants Redis alone need not have Kafka's client

    return KafkaServer(folder, brokers=options.brokers)


def _url_of(service: Any) -> str:
    """With a topic, where it is Kafka: what it has to hold is not made by itself."""
    if not hasattr(service, "create_topic"):
        return str(service.url)
    service.create_topic(_KAFKA_TOPIC, config={"max.message.bytes": str(2 << 20)})
    return str(service.topic_url(_KAFKA_TOPIC))


def _make(folder: Path) -> None:
    """The folder, which has to be the user's own: the one that is there by default is where anybody may make one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise Failed(f"{folder} is somebody else's")


def _clear(folder: Path) -> None:
    (folder / _STATE).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time starts or stops what is in the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not folder.exists() or os.fstat(descriptor).st_ino != folder.stat().st_ino:
            raise Failed(f"{folder} was removed meanwhile")
        yield
    finally:
        os.close(descriptor)


def set_up(options: argparse.Namespace) -> int:
    """What the script has installed before this begins is made to start sooner."""
    if "kafka" in _names(options):
        from engines.kafka import share_classes  # noqa: PLC0415 - whoever wants Redis alone need not have Kafka's client

        share_classes()
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": up,
    "down": down,
    "restart": restart,
    "status": status,
    "set-up": set_up,
}

if __name__ == "__main__":
    sys.exit(main())
