"""What the tests of the probe share: a server with its companion endpoints, and the way to it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from serving import serving

from tricast import Server
from tricast.client.endpoint import Endpoint
from tricast.probe.target import Target

TOKEN = "a-token-for-tests"


def target_of(url: str, token: str = TOKEN) -> Target:
    """The way to the server at a URL."""
    return Target(endpoint=Endpoint.parse(url), token=token)


@asynccontextmanager
async def probed(**sections: Any) -> AsyncIterator[tuple[Server, Target]]:
    """A server with companion endpoints, and the direct way to it."""
    async with serving(**({"probe": {"token": TOKEN}} | sections)) as server:
        yield server, target_of(server.url)
