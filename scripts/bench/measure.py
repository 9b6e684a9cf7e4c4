"""One measurement in a process of its own: prints its figures as JSON, or why there are none."""

import argparse
import json
import os
import resource
import sys
from pathlib import Path

from load import LoadError
from peers import PEERS
from peers.base import PeerError
from publisher import PublishError
from scenarios import SCENARIOS
from scenarios.base import MeasureError, Stage


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--transport", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--build", required=True, type=Path)
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    scenario = next(one for one in SCENARIOS if one.name == arguments.scenario)
    peer = next(one for one in PEERS if one.name == arguments.peer)
    raise_descriptor_limit()
    os.nice(arguments.nice)  # servers and clients alike: they are all started from here
    peer.prepare(arguments.build)
    stage = Stage(peer, arguments.transport, scenario.sizes_for(is_quick=arguments.quick), arguments.folder)
    try:
        print(json.dumps({"values": scenario.measure(stage)}))
    except (PeerError, LoadError, PublishError, MeasureError, OSError) as error:
        print(json.dumps({"failed": str(error)}))
        sys.exit(1)


def raise_descriptor_limit() -> None:
    """Every client and every connection of the server is a descriptor; servers inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
