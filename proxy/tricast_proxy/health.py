"""Active health checks: every now and then each server is asked whether it is well.

What is believed of a server on account of that, and of the exchanges with it, is ``servers.py``'s; here is who asks.
"""

import random
from collections.abc import Sequence

import h11
import trio

from tricast.logs import Logger
from tricast_proxy.config import HealthSection
from tricast_proxy.servers import Changed, Health, Server
from tricast_proxy.upstream import why_refused

#: Checks under way at the same time.
_AT_ONCE = 16
#: Rounds begin so much earlier or later, as a share of the interval, so that several proxies do not all ask at once.
_JITTER = 0.1
_RECEIVE_BYTES = 4096
#: A server whose answer has a longer head is not well.
_MAX_HEAD_BYTES = 64 * 2**10


def log_changes(logger: Logger) -> Changed:
    """Says what becomes of servers, once for each change."""

    def changed(server: Server, health: Health, reason: str) -> None:
        log = logger.warning if health is Health.DOWN else logger.info
        log(f"server is {health.value}", server=server.label, reason=reason)

    return changed


async def check_forever(servers: Sequence[Server], config: HealthSection, randomness: random.Random) -> None:
    """Checks all servers in rounds until cancelled; returns at once where no path is configured.

    A round begins when the interval since the one before is over, and not before that one has ended.
    """
    if not config.path:
        return
    limiter = trio.CapacityLimiter(_AT_ONCE)
    while True:
        next_round = trio.current_time() + config.interval * (1 + _JITTER * randomness.uniform(-1, 1))
        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(_check, server, config, limiter)
        await trio.sleep_until(next_round)


async def _check(server: Server, config: HealthSection, limiter: trio.CapacityLimiter) -> None:
    async with limiter:
        is_well, detail = await ask(server, config)
    server.checked(trio.current_time(), is_well=is_well, detail=f"check: {detail}")


async def ask(server: Server, config: HealthSection) -> tuple[bool, str]:
    """Asks a server once, on a connection of its own; returns whether it is well, and what it said."""
    with trio.move_on_after(config.timeout):
        try:
            status = await _status_of(server, config.path)
        except OSError as error:
            return False, why_refused(error)
        except trio.BrokenResourceError:
            return False, "it broke off"
        except h11.RemoteProtocolError as error:
            return False, f"not HTTP: {error}"
        low, _, high = config.expect.partition("-")
        return int(low) <= status <= int(high or low), f"answered {status}"
    return False, f"no answer within {config.timeout:g} s"


async def _status_of(server: Server, path: str) -> int:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
    headers = [("Host", server.address), ("User-Agent", "tricast-health-check"), ("Connection", "close")]
    request = connection.send(h11.Request(method="GET", target=path, headers=headers))
    assert request is not None
    async with await trio.open_tcp_stream(server.host, server.port) as stream:
        await stream.send_all(request)
        while not isinstance(event := connection.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(_RECEIVE_BYTES))
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("it closed without an answer")
            else:
                await trio.lowlevel.checkpoint()  # interim answers may come without end
        return event.status_code
