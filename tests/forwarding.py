"""The proxy for a test, in the test's own Trio run, with a look at what it logged when it is over."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from serving import capturing_logger, failures, serving
from structlog.testing import LogCapture

import tricast
from tricast_proxy.config import load_proxy_config
from tricast_proxy.proxy import Proxy, serve


@asynccontextmanager
async def forwarding(*addresses: str, within: float = 20.0, **sections: dict[str, Any]) -> AsyncIterator[Proxy]:
    """A proxy on a free port, gone at the end of the block; a bug that it logs fails the test.

    Args:
        addresses: of the servers behind it.
        within: seconds the whole block may take.
        sections: of the configuration, as dicts; ``proxy={"profile": …}`` chooses what lies beneath.
    """
    records = LogCapture()
    servers: Any = [{"address": address} for address in addresses]
    own = {"port": 0} | sections.pop("proxy", {})
    config = load_proxy_config(overrides={"server": servers, **sections, "proxy": own})
    with trio.fail_after(within):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(partial(serve, config, logger=capturing_logger(records)))
            nursery.cancel_scope.cancel()
    assert not failures(records)


@asynccontextmanager
async def serving_behind(profile: str, **sections: Any) -> AsyncIterator[tuple[tricast.Server, str]]:
    """A server with the URL by which clients reach it: that of the proxy in front of it, which has this profile."""
    async with (
        serving(**sections) as server,
        forwarding(f"127.0.0.1:{server.port}", proxy={"profile": profile}) as proxy,
    ):
        yield server, proxy.url
