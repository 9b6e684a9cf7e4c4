"""Bytes both ways, and nothing else: what a connection is behind an answer of 101, or all of it without HTTP.

Knows how a tunnel ends: by either side, by a timer, or by the proxy going down; and how each of them looks.
"""

import random
import struct
from collections.abc import Callable
from functools import partial

import trio

from tricast.errors import ConnectionLost
from tricast.sent import ALL, NOTHING
from tricast_proxy.config import TunnelSection
from tricast_proxy.faults import Duplex
from tricast_proxy.pump import Pump
from tricast_proxy.timers import CLIENT, UPSTREAM, Rule, Timers, Watch

#: A close frame with nothing but its code (RFC 6455 5.5.1), as a server sends it.
_CLOSE_FRAME = struct.Struct("!BBH")
#: Whoever is told nothing gives up at some time; this ends what is left of the others.
_LONGEST_SILENCE = 900.0


def rules_of(config: TunnelSection, randomness: random.Random) -> tuple[Rule, ...]:
    """The timers of a tunnel."""
    resets = config.idle_reset
    lifetime = config.max_lifetime * (1 + config.max_lifetime_jitter * randomness.uniform(-1, 1))
    return (
        Rule(
            "tunnel-idle",
            config.idle_timeout,
            by_upstream=resets in ("either", "upstream"),
            by_client=resets in ("either", "client"),
        ),
        Rule("tunnel-lifetime", lifetime),
    )


class Tunnel:
    """Two connections, of which each gets what comes from the other.

    Args:
        client: the client's.
        upstream: the server's.
        config: how it ends.
        pump: passes on what comes.
        is_websocket: whether frames of WebSocket are in it.

    Attributes:
        why: how it ended, in a word.
        is_cut: whether it was cut: by a timer, or because one side was lost.
    """

    __slots__ = ("_client", "_config", "_is_websocket", "_open", "_pump", "_upstream", "_watch", "is_cut", "why")

    def __init__(
        self,
        client: Duplex,
        upstream: Duplex,
        config: TunnelSection,
        pump: Pump,
        *,
        is_websocket: bool,
    ) -> None:
        self._pump = pump
        self._client = client
        self._upstream = upstream
        self._config = config
        self._is_websocket = is_websocket
        self._watch: Watch | None = None
        self._open = 2
        self.why = ""
        self.is_cut = False

    async def run(self, timers: Timers, rules: tuple[Rule, ...]) -> None:
        """Passes bytes on until it ends, as the configuration wants its end to look; closes nothing that is left.

        Both connections are the caller's to close.
        """
        watch = self._watch = Watch(timers)
        watch.obey(*rules)
        try:
            with watch.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, self._upstream, self._client, UPSTREAM)
                    await self._pass_on(self._client, self._upstream, CLIENT)
        finally:
            watch.end()
        if watch.expired:
            self.why = watch.expired
            self.is_cut = True
            await self._cut()

    def end(self, why: str) -> None:
        """Ends it without waiting."""
        if self._watch is not None:
            self.why = self.why or why
            self._watch.scope.cancel()

    def say_goodbye(self, code: int) -> None:
        """Sends a close frame of WebSocket to the client, if that is possible here and now."""
        if self._is_websocket and not self._client.has_tail and not self._client.is_closed:
            try:
                self._client.send_now(_CLOSE_FRAME.pack(0x88, 2, code))
            except ConnectionLost:
                return

    async def _pass_on(self, source: Duplex, sink: Duplex, side: int) -> None:
        watch = self._watch
        assert watch is not None
        try:
            while data := await source.receive():
                watch.touch(side)
                await sink.send(data)
                await self._flow(source, sink, partial(watch.touch, side))
        except ConnectionLost as lost:
            self.is_cut = not self.why
            self.end(lost.reason)
            return
        self._open -= 1
        self.why = self.why or ("client" if side == CLIENT else "upstream")
        half_close = self._config.half_close
        if not self._open or half_close == "close-both" or (half_close == "forward-client" and side == UPSTREAM):
            self.end(self.why)
        else:
            sink.shutdown_write()

    async def _flow(self, source: Duplex, sink: Duplex, touch: Callable[[], None]) -> None:
        """Passes bytes on for as long as nobody has to wait for room; does nothing where they are not to go at once."""
        unsent = b""

        def step() -> bool:
            nonlocal unsent
            data = source.receive_now()
            if not data:
                return data is None
            touch()
            sent = sink.send_now(data)
            if sent is NOTHING:  # TLS has something of its own to say, which waits for room
                unsent = data
            return sent is ALL

        if source.descriptor is not None and sink.sends_at_once:
            await self._pump.flow(source.descriptor, step)
            await (sink.send(unsent) if unsent else sink.drain())

    async def _cut(self) -> None:
        """Ends it as a timer does."""
        how = self._config.on_idle
        if how == "close-frame":
            self.say_goodbye(self._config.close_code)
        elif how == "rst":
            self._client.reset()
        elif how in ("silent", "silent-then-rst"):
            with trio.move_on_after(_LONGEST_SILENCE):
                async with trio.open_nursery() as nursery:
                    for connection in (self._client, self._upstream):
                        nursery.start_soon(_swallow, connection, how == "silent-then-rst")


async def _swallow(connection: Duplex, resets: bool) -> None:
    """Lets nothing through any more, and says nothing, until the other side gives up."""
    try:
        while await connection.receive():
            if resets:
                connection.reset()
                return
    except ConnectionLost:
        return
