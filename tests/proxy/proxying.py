"""A proxy for a test, in the test's own Trio run, in front of whatever is listening."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from clients import Answer, Wire, head, read_answer
from serving import capturing_logger, failures
from structlog.testing import LogCapture

from tricast_proxy.config import ProxyConfig
from tricast_proxy.proxy import Proxy, serve


@asynccontextmanager
async def proxying(
    *upstreams: str | dict[str, Any], records: LogCapture | None = None, within: float = 20.0, **sections: Any
) -> AsyncIterator[Proxy]:
    """A proxy on a free port, gone at the end of the block.

    Args:
        upstreams: URLs of servers, or their entries in the configuration, where ``address`` may be a URL.
        records: takes what is logged, and then it is the test's to judge; otherwise any failure fails the test.
        within: seconds the whole block may take.
        sections: of the configuration, as dicts.
    """
    captured = records if records is not None else LogCapture()
    entries = [{"address": upstream} if isinstance(upstream, str) else upstream for upstream in upstreams]
    servers = [entry | {"address": entry["address"].removeprefix("http://")} for entry in entries]
    own = {"port": 0} | sections.pop("proxy", {})
    config = ProxyConfig.model_validate({"proxy": own, "server": servers} | sections)
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
