"""What all exchanges of a proxy share. Built by ``proxy.py``, handed to everything below it."""

import random
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

import trio

from tricast.logs import Logger
from tricast_proxy.balance import Balancer
from tricast_proxy.coalesce import Coalescer
from tricast_proxy.config import ProxyConfig
from tricast_proxy.faults import FaultPlan
from tricast_proxy.fields import FieldPolicy
from tricast_proxy.overview import Counters
from tricast_proxy.pump import Pump
from tricast_proxy.reports import Reports
from tricast_proxy.timers import Timers
from tricast_proxy.upstream import Pool


class Background:
    """Tasks that outlive the client that they were begun for. What fails in one is logged, and nobody else's affair.

    Args:
        nursery: where they run.
        logger: where to log.
    """

    def __init__(self, nursery: trio.Nursery, logger: Logger) -> None:
        self._nursery = nursery
        self._logger = logger

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """See ``trio.Nursery.start_soon``."""
        self._nursery.start_soon(self._guard, function, *args)

    async def _guard(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        try:
            await function(*args)
        except Exception:
            self._logger.exception("a task in the background failed")


class Shared(NamedTuple):
    """The shared parts of one proxy.

    Attributes:
        config: with timers divided already.
        balancer: chooses servers.
        policy: of header fields.
        pool: of connections to servers.
        timers: keeps the time.
        pump: passes on what comes.
        random: for jitter only, so it need not be secret.
        counters: what happened.
        logger: where to log.
        faults: what goes wrong on purpose.
        numbers: counts exchanges.
        coalescer: has answers shared; None where they are not.
        background: for what outlives a client.
        reports: tells of what went wrong.
    """

    config: ProxyConfig
    balancer: Balancer
    policy: FieldPolicy
    pool: Pool
    timers: Timers
    pump: Pump
    random: random.Random
    counters: Counters
    logger: Logger
    faults: FaultPlan
    numbers: Iterator[int]
    coalescer: Coalescer | None
    background: Background
    reports: Reports
