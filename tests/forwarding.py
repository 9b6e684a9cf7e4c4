"""The proxy for a test, in the test's own Trio run, with a look at what it logged when it is over."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from clients import Answer, Wire, head, read_answer
from clocks import HANG_SECONDS
from serving import capturing_logger, failures, serving
from structlog.testing import LogCapture

import tricast
from tricast_proxy.config import load_proxy_config
from tricast_proxy.proxy import Proxy, serve


@asynccontextmanager
async def forwarding(
    *servers: str | dict[str, Any],
    records: LogCapture | None = None,
    within: float = HANG_SECONDS,
    **sections: dict[str, Any],
) -> AsyncIterator[Proxy]:
    """A proxy on a free port, gone at the end of the block. It waits long for connections, if not told otherwise.

    Args:
        servers: behind it: addresses or URLs, or tables of the configuration with one as ``address``.
        records: takes what is logged, and then it is the test's to judge; otherwise any failure fails the test.
        within: seconds the whole block may take.
        sections: of the configuration, as dicts; ``proxy={"profile": …}`` chooses what lies beneath.
    """
    captured = records if records is not None else LogCapture()
    tables = [{"address": server} if isinstance(server, str) else server for server in servers]
    entries: Any = [table | {"address": table["address"].removeprefix("http://")} for table in tables]
    own = {"port": 0} | sections.pop("proxy", {})
    upstream = {"connect_timeout": HANG_SECONDS} | sections.pop("upstream", {})
    config = load_proxy_config(overrides={"server": entries, **sections, "proxy": own, "upstream": upstream})
    with trio.fail_after(within):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(partial(serve, config, logger=capturing_logger(captured)))
            nursery.cancel_scope.cancel()
    if records is None:
        assert not failures(captured)


async def administer(proxy: Proxy, method: str, target: str, body: bytes = b"") -> Answer:
    """One request to the admin listener."""
    length = [f"Content-Length: {len(body)}"] if body else []
    with await Wire.open(proxy.admin_urls[0]) as wire:
        await wire.send(head(method, target, *length, host="localhost") + body)
        return await read_answer(wire, method)


#: Where the proxy has to allow as much as the server does.
_SAME_LIMITS = {"target_size": "request_line", "head_size": "header_total"}


@asynccontextmanager
async def serving_behind(profile: str, **sections: Any) -> AsyncIterator[tuple[tricast.Server, str]]:
    """A server with the URL by which clients reach it: that of the proxy in front of it, which has this profile."""
    limits = {ours: sections["limits"][its] for its, ours in _SAME_LIMITS.items() if its in sections.get("limits", {})}
    async with serving(**sections) as server:
        address = f"127.0.0.1:{server.port}"
        own = {"profile": profile}
        # HAProxy's delay of each event is shortened: hundreds of them are waited for, one after the other.
        cork = load_proxy_config(overrides={"proxy": own}).response.cork / 200
        async with forwarding(address, proxy=own, limits=limits, response={"cork": cork}) as proxy:
            yield server, proxy.url
