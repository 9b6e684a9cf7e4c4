"""What all exchanges of a proxy share. Built by ``proxy.py``, handed to everything below it."""

import random
from typing import NamedTuple

from tricast.logs import Logger
from tricast_proxy.balance import Balancer
from tricast_proxy.config import ProxyConfig
from tricast_proxy.fields import FieldPolicy
from tricast_proxy.overview import Counters
from tricast_proxy.timers import Timers
from tricast_proxy.upstream import Pool


class Shared(NamedTuple):
    """The shared parts of one proxy.

    Attributes:
        config: with timers divided already.
        balancer: chooses servers.
        policy: of header fields.
        pool: of connections to servers.
        timers: keeps the time.
        random: for jitter only, so it need not be secret.
        counters: what happened.
        logger: where to log.
    """

    config: ProxyConfig
    balancer: Balancer
    policy: FieldPolicy
    pool: Pool
    timers: Timers
    random: random.Random
    counters: Counters
    logger: Logger
