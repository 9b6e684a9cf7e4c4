"""A server as a program, of as many processes as the configuration says."""

from collections.abc import Callable

from tricast import server
from tricast.config import Config, workers_of
from tricast.logs import Logger
from tricast.workers.supervisor import Supervisor


async def run(config: Config, *, logger: Logger | None = None, reload: Callable[[], Config] | None = None) -> None:
    """Serves as a program does: raises the descriptor limit, and goes down on SIGTERM or SIGINT.

    The first signal drains, the second ends it at once. With ``server.workers`` of 2 or more this process supervises as
    many others, and SIGHUP replaces them one by one. A SIGHUP that comes because the terminal was closed drains, too,
    unless the program was started with ``nohup``. Cancelling ends all connections at once.

    Args:
        config: the configuration.
        logger: where to log; the default is stderr, where workers always log.
        reload: loads the configuration again for SIGHUP; the default is that it does not change.

    Raises:
        ConfigError: a WebSocket handler cannot be imported.
        WorkerFailed: a worker could not begin, for whatever reason.
        OSError: a listener's address cannot be had.
    """
    count = workers_of(config)
    if count == 1:
        await server.run(config, logger=logger, reload=reload)
    else:
        await Supervisor(config, count, logger=logger, reload=reload or (lambda: config)).run()
