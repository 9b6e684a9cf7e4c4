"""Shows what a proxy in front of the server breaks: three acts to be watched in a browser, told in the terminal.

Each act is a server, the proxy in front of it, and somebody who publishes. The proxy always has the same address, and
the events are in one log, so that the page stays open from act to act, and goes on where it was.
"""

import argparse
import itertools
import math
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import trio

import tricast
from tricast.command_line import in_words
from tricast.errors import leaves
from tricast.hub import Hub
from tricast.log.memory import MemoryLog
from tricast_proxy import proxy
from tricast_proxy.program import load_stages, overrides_of

TOPIC = "demo"
#: Seconds between two events.
RHYTHM = 1.0
#: Events between two silences, and how long a silence is: so many times what the proxy bears.
BURST, SILENCE = 3, 3
#: What the server's keepalives are of what the proxy bears.
KEEPALIVE = 0.4
#: Seconds for the last event of an act to arrive. What is cut right behind an event was not cut for its silence.
ARRIVAL = 0.3
#: Seconds of the first act until the page says that events are held back; and of the others, behind a burst and the
#: silence that follows, until what comes then has been seen.
HELD, SEEN = 6.0, 2.0
#: For a server that never breaks a silence.
NEVER = "1h"
#: Less than that and the proxy's patience would end between two events.
LEAST_IDLE = 2.0

AUTO = "go on by itself after so long; an act lasts until what it tells can have happened, by --idle, however short"
EPILOG = """Enter goes from act to act, Ctrl-C ends it. Exit status: 0 when it was shown to the end, 1 when the port
cannot be had or there is nobody to press Enter, 2 for wrong usage, 130 when it was interrupted."""


class Act(NamedTuple):
    """What is shown.

    Attributes:
        title: in a line.
        profile: which proxy to be.
        settings: on top of it, as ``--set`` takes them.
        keepalive: the longest silence of the server; a duration as the configuration has them.
        burst: events between two silences.
        silence: seconds.
        told: what there is to be seen, and why.
    """

    title: str
    profile: str
    settings: Sequence[str]
    keepalive: str
    burst: float
    silence: float
    told: str

    @property
    def least(self) -> float:
        """Seconds until all that is told can have happened, with the page open from the beginning."""
        return self.burst * RHYTHM + self.silence + SEEN if self.silence else HELD


def acts_of(idle: float) -> list[Act]:
    """The acts, with a proxy that bears so many seconds of silence."""
    keepalive, silence = idle * KEEPALIVE, idle * SILENCE
    # proxy_set_header Host $http_host: the server takes a WebSocket of its own pages only.
    host = "headers.host=preserve"
    # What nginx calls proxy_read_timeout.
    timers = ("tunnel.idle_timeout", "upstream.read_timeout", "upstream.response_header_timeout")
    impatient = [host, *(f"{timer}={idle:g}s" for timer in timers)]
    return [
        Act(
            title="nginx with nothing but proxy_pass",
            profile="nginx-default",
            settings=[host, "response.x_accel_buffering=ignore"],
            keepalive=NEVER,
            burst=math.inf,
            silence=0,
            told="""
                Long polling        lives: every event is an answer of its own, and a proxy sees where it ends.
                Server-Sent Events  held back: nginx asks in HTTP/1.0, in which a stream has no end to be seen, and
                                    passes it on 4 KiB at a time. Tricast forbids that with X-Accel-Buffering: no,
                                    which is ignored here, so that you can see it.
                WebSocket           refused: nginx does not forward Upgrade unless it is told to. The server is asked
                                    for no WebSocket, and answers 426 instead of 101.
            """,
        ),
        Act(
            title="nginx as it is documented for WebSocket, in front of a server without keepalive",
            profile="nginx-websocket",
            settings=impatient,
            keepalive=NEVER,
            burst=BURST,
            silence=silence,
            told=f"""
                All three connect. {BURST} events come, then none for {silence:g} s, then {BURST} again, and so on.
                After {idle:g} s of silence all three are cut (nginx waits for 60 s; here it has less patience):
                the long poll with HTTP 504, the stream and the WebSocket without a word.
                Each comes back after the last id it saw, so that nothing is missed.
            """,
        ),
        Act(
            title="the same nginx, in front of a server with keepalive",
            profile="nginx-websocket",
            settings=impatient,
            keepalive=f"{keepalive:g}s",
            burst=BURST,
            silence=silence,
            told=f"""
                The same silences, but now the server says something every {keepalive:g} s:
                poll.timeout answers the long poll with 204, sse.keepalive writes a comment into the stream,
                websocket.ping_interval sends a ping. Nothing is cut any more.
            """,
        ),
    ]


async def main(options: argparse.Namespace) -> None:
    """Shows all acts."""
    acts = acts_of(options.idle)
    log = MemoryLog(history=1000, history_age=86400.0, history_size=2**24, clock=time.time)
    numbers = itertools.count(1)
    port = options.port
    for number, act in enumerate(acts, 1):
        async with performed(act, log, port) as (hub, front):
            if number == 1:
                port = front.port
                print(f"Open this in a browser, and leave it open:  {front.url}/?topic={TOPIC}", flush=True)
            tell(f"Act {number} of {len(acts)}: {act.title}", act)
            async with trio.open_nursery() as publishing:
                publishing.start_soon(publish_forever, hub, act, numbers)
                await turn(options.auto and max(options.auto, act.least), is_last=number == len(acts))
                publishing.cancel_scope.cancel()
            following = f"act {number + 1}: {acts[number].title}" if number < len(acts) else "the end"
            await hub.publish(TOPIC, following, type="next")
            await trio.sleep(ARRIVAL)
    print("\nThe end: server and proxy are gone, and the page cannot come back.", flush=True)


def tell(title: str, act: Act) -> None:
    """Prints what is shown, and how to have the same by hand."""
    print(f"\n{title}\n")
    settings = "".join(f" \\\n        --set {setting}" for setting in act.settings)
    print(f"    tricast proxy --profile {act.profile}{settings}\n")
    print(textwrap.indent(textwrap.dedent(act.told).strip(), "  "), flush=True)


@asynccontextmanager
async def performed(act: Act, log: MemoryLog, port: int) -> AsyncIterator[tuple[Hub, proxy.Proxy]]:
    """A server, the proxy in front of it on this port (0: a free one), until the end of the block."""
    config = tricast.Config.model_validate(
        {
            "server": {"port": 0},
            "poll": {"timeout": act.keepalive},
            "sse": {"keepalive": act.keepalive, "retry": "500ms"},
            "websocket": {"ping_interval": act.keepalive, "ping_timeout": "2h"},
        }
    )
    async with trio.open_nursery() as nursery:
        server: tricast.Server = await nursery.start(partial(tricast.serve, config, log=log))
        overrides = overrides_of(
            listen=f"127.0.0.1:{port}",
            upstreams=[f"127.0.0.1:{server.port}"],
            profile=act.profile,
            settings=act.settings,
        )
        front: proxy.Proxy = await nursery.start(proxy.serve, load_stages(None, overrides)[0])
        yield server.hub, front
        nursery.cancel_scope.cancel()


async def publish_forever(hub: Hub, act: Act, numbers: Iterator[int]) -> None:
    """Publishes numbers in the act's rhythm, until cancelled."""
    for count in itertools.count(1):
        await hub.publish(TOPIC, {"n": next(numbers)})
        await trio.sleep(act.silence if count % act.burst == 0 else RHYTHM)


async def turn(auto: float | None, *, is_last: bool) -> None:
    """Returns when it is time for what comes next.

    Raises:
        Nobody: there is nobody to say so.
    """
    if auto is not None:
        await trio.sleep(auto)
        return
    print(f"\nEnter {'ends it' if is_last else 'for the next act'}, Ctrl-C ends it at once.", flush=True)
    # Not sys.stdin: a thread that waits in it would hold its lock when the program ends.
    if not await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 4096, abandon_on_cancel=True):
        raise Nobody


class Nobody(Exception):
    """Standard input has ended."""


async def run(options: argparse.Namespace) -> int:
    """Shows all acts, until the end or a signal; returns the exit status."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_at_signal, scope, signals)
                await main(options)
            nursery.cancel_scope.cancel()
    return 130 if scope.cancelled_caught else 0


async def cancel_at_signal(scope: trio.CancelScope, signals: AsyncIterator[int]) -> None:
    """Cancels at the first signal."""
    async for _ in signals:
        scope.cancel()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options. Exits with 2 where they make no sense."""
    parser = argparse.ArgumentParser(prog="demo-proxy", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--port", type=parse_port, default=0, help="listen there (default: a free port)")
    parser.add_argument("--auto", metavar="SECONDS", type=parse_seconds, help=AUTO)
    parser.add_argument(
        "--idle",
        metavar="SECONDS",
        type=parse_seconds,
        default=5.0,
        help="silence that the proxy bears in the second and the third act, at least 2 (default: 5)",
    )
    options = parser.parse_args(arguments)
    if options.idle < LEAST_IDLE:
        parser.error(f"--idle: expected at least {LEAST_IDLE:g} seconds, found {options.idle:g}")
    return options


def parse_port(text: str) -> int:
    """Returns a port; 0 is a free one."""
    if not (text.isascii() and text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"expected a port, found {text!r}")
    return int(text)


def parse_seconds(text: str) -> float:
    """Returns a number of seconds above zero."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, found {text!r}")
    return seconds


def begin(arguments: Sequence[str]) -> int:
    """Does what the command line asks for; returns the exit status."""
    options = parse(arguments)
    status, problems = 0, list[str]()
    try:
        status = trio.run(run, options)
    except* OSError as group:
        problems = [f"cannot listen on {error.filename}: {in_words(error)}" for error in leaves(group)]
    except* Nobody:
        problems = ["standard input has ended; without somebody to press Enter, use --auto SECONDS"]
    for problem in problems:
        print(f"demo-proxy: {problem}", file=sys.stderr)
    return 1 if problems else status


if __name__ == "__main__":
    sys.exit(begin(sys.argv[1:]))
