#!/usr/bin/env python3
"""Measures what an idle connection costs: resident memory of the server, and CPU time to accept it.

Prints JSON. ``bytes_per_connection`` is the growth of the server's resident memory over the connections, after a
first hundred that are not counted: they pay for what is made once.
"""

import argparse

from harness import Subscribers, raise_descriptor_limit, report, server_process

WARM_UP = 100


def measure(transport: str, connections: int, settle: float) -> dict[str, object]:
    """One run with a server of its own."""
    with server_process() as server:
        crowd = Subscribers(transport, server.port)
        crowd.open(WARM_UP)
        crowd.receive_for(settle)
        memory, cpu = server.resident_bytes(), server.cpu_seconds()
        crowd.open(connections)
        used = server.cpu_seconds() - cpu
        crowd.receive_for(settle)
        grown = server.resident_bytes() - memory
        crowd.close()
    return {
        "benchmark": "idle_memory",
        "transport": transport,
        "connections": connections,
        "resident_bytes_grown": grown,
        "bytes_per_connection": round(grown / connections),
        "accept_cpu_us": round(used / connections * 1e6, 1),
    }


def main() -> None:
    """Reads the command line and runs what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--transport", choices=["sse", "websocket"], action="append", help="default: both")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--settle", type=float, default=1.0, help="seconds to wait before memory is read")
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    raise_descriptor_limit(arguments.connections + WARM_UP + 100)
    report(
        [
            measure(transport, arguments.connections, arguments.settle)
            for _ in range(arguments.repeat)
            for transport in arguments.transport or ["sse", "websocket"]
        ]
    )


if __name__ == "__main__":
    main()
