#!/usr/bin/env python3
"""Measures what one delivery costs: events at a steady rate to many subscribers, the CPU time of the server over them.

Prints JSON. ``cpu_us_per_delivery`` is user and system time of the server's process, publishing and flushing
included, over the events that arrived; ``lost`` must be 0.
"""

import argparse
import time

from harness import Subscribers, event_of_size, publish, raise_descriptor_limit, report, server_process


def measure(transport: str, subscribers: int, rate: float, events: int, size: int) -> dict[str, object]:
    """One run with a server of its own."""
    with server_process() as server:
        crowd = Subscribers(transport, server.port)
        crowd.open(subscribers)
        data = event_of_size(size)
        publish(server.port, data)  # the first event is not measured: it meets cold caches
        crowd.receive_until(subscribers, 10)
        before, cpu = crowd.received, server.cpu_seconds()
        began = time.monotonic()
        for number in range(events):
            crowd.receive_for(began + number / rate - time.monotonic())
            publish(server.port, data)
        crowd.receive_until(before + events * subscribers, 30)
        used = server.cpu_seconds() - cpu
        delivered = crowd.received - before
        crowd.close()
    return {
        "benchmark": "fanout",
        "transport": transport,
        "subscribers": subscribers,
        "events_per_second": rate,
        "event_bytes": size,
        "deliveries": delivered,
        "lost": events * subscribers - delivered,
        "server_cpu_seconds": round(used, 3),
        "cpu_us_per_delivery": round(used / delivered * 1e6, 2),
    }


def main() -> None:
    """Reads the command line and runs what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--transport", choices=["sse", "websocket"], action="append", help="default: both")
    parser.add_argument("--subscribers", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=5.0, help="events per second")
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--size", type=int, default=160, help="bytes of data: about 230 as an SSE event")
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    raise_descriptor_limit(arguments.subscribers + 100)
    report(
        [
            measure(transport, arguments.subscribers, arguments.rate, arguments.events, arguments.size)
            for _ in range(arguments.repeat)
            for transport in arguments.transport or ["sse", "websocket"]
        ]
    )


if __name__ == "__main__":
    main()
