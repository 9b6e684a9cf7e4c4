"""Several proxies one behind the other in one process, as a request meets them on its way through the world."""

from collections.abc import Sequence
from functools import partial

import trio

from tricast.logs import Logger
from tricast_proxy import proxy
from tricast_proxy.config import ProxyConfig


async def serve(
    stages: Sequence[ProxyConfig],
    *,
    logger: Logger | None = None,
    task_status: trio.TaskStatus[proxy.Proxy] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs proxies one behind the other, until the one in front has drained.

    Args:
        stages: their configurations, the one in front first.
        logger: see ``proxy.serve``.
        task_status: started with the proxy in front.

    Raises:
        ConfigError: see ``proxy.serve``.
        OSError: see ``proxy.serve``.
    """
    async with trio.open_nursery() as nursery:
        servers = stages[-1].server
        for number, config in reversed([*enumerate(stages, 1)][1:]):
            # Each has a pseudonym of its own in Via, or the second would take itself for the first (RFC 9110 7.6.3).
            via = config.headers.via and f"{config.headers.via}-{number}"
            headers = config.headers.model_copy(update={"via": via})
            behind = config.model_copy(update={"server": servers, "headers": headers})
            started: proxy.Proxy = await nursery.start(partial(proxy.serve, behind, logger=logger, is_behind=True))
            servers = (servers[0].model_copy(update={"address": f"127.0.0.1:{started.port}", "name": ""}),)
        first = stages[0].model_copy(update={"server": servers})
        about = {**proxy.about_one(stages[-1]), "profile": ",".join(stage.proxy.profile for stage in stages)}
        in_front: proxy.Proxy = await nursery.start(partial(proxy.serve, first, logger=logger, about=about))
        task_status.started(in_front)
        await in_front.wait_stopped()
        nursery.cancel_scope.cancel()
