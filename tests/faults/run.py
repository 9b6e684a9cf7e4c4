"""Plays rounds of random faults and tells what was broken: scripts/faults."""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from functools import partial

import trio
from faults.logs import LOGS, log_named
from faults.round import Effort, play

_EPILOG = """Three servers on one log, publishers, and subscribers that go from one server to another, while servers and
the log are killed, stopped and cut off. The same seed makes the same plan of faults. Exit status: 0 when every
subscriber got what was acknowledged, in order, or was told of a gap; 1 otherwise, with what was broken and what
happened around it; 2 for wrong usage."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays rounds, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__, epilog=_EPILOG)
    parser.add_argument("--seconds", type=float, default=600, help="of faults; a minute more for the rest (600)")
    parser.add_argument("--seed", type=int, help="another one each time by default")
    parser.add_argument("--log", choices=LOGS, default="sqlite", help="the log (sqlite)")
    parser.add_argument("--shards", type=int, default=1, help="of the log, where it can have several (1)")
    parser.add_argument("--replicas", type=int, default=0, help="that have what is acknowledged (0)")
    parser.add_argument("--subscribers", type=int, default=150, help="at a time (150)")
    parser.add_argument("--rate", type=float, default=60, help="requests to publish per second (60)")
    parser.add_argument("--history", type=int, default=Effort.history, help="events kept per topic")
    parser.add_argument("--no-loss", action="store_true", help="the log does not lose its data")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}, {options.log}, {options.seconds:.0f} s", flush=True)
    more = {"shards": options.shards} if options.shards > 1 else {}
    more |= {"replicas": options.replicas} if options.replicas else {}
    effort = Effort(seed, options.seconds, options.subscribers, rate=options.rate, history=options.history, log=more)
    with log_named(options.log, loses=not options.no_loss, more=more) as log:
        began = time.monotonic()
        outcome = trio.run(partial(play, log, effort, partial(print, flush=True)))
    print(f"{outcome.summary}; {time.monotonic() - began:.0f} s")
    if outcome.violations:
        print(outcome.text)
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
