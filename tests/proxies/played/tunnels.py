"""Upgrade and tunnel: what becomes of a handshake, and how a tunnel ends."""

from contextlib import suppress
from functools import partial

import trio
from proxies.origin import Exchange, hold
from proxies.recorder import Gone, Recorder
from proxies.scenarios import HORIZON, SOON, TIMER, Cell, Outcome, add, has_final, one_answer, scenario, settled

HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
#: A text frame from the client, and the same from the server (RFC 6455 5.7).
CLIENT_FRAME = b"\x81\x85\x00\x00\x00\x00hello"
SERVER_FRAME = b"\x81\x05hello"
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nX-Origin: yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def switch(exchange: Exchange, behind: bytes = b"") -> bool:
    """Answers a handshake with 101, and whatever follows that at once, and any other request with 426."""
    if exchange.get("upgrade") is None:
        await exchange.answer(b"no", "426 Upgrade Required", "Upgrade: websocket", "Connection: Upgrade")
        return False
    await exchange.send(SWITCHING + behind)
    return True


async def switch_and_hold(exchange: Exchange) -> None:
    """Opens a tunnel, and is silent."""
    if await switch(exchange):
        await hold(exchange)


async def switch_and_echo(exchange: Exchange) -> None:
    """Opens a tunnel, and says the frame for the frame."""
    if await switch(exchange):
        while await exchange.peer.wait(lambda: CLIENT_FRAME in exchange.behind, float("inf")):
            exchange.place += len(CLIENT_FRAME)
            await exchange.send(SERVER_FRAME)
        exchange.close()


async def switch_and_speak(exchange: Exchange) -> None:
    """Opens a tunnel, and says something three times in the time of a timer, for the time of two."""
    if await switch(exchange):
        for _ in range(6):
            await trio.sleep(TIMER / 3)
            await exchange.send(SERVER_FRAME)
        await hold(exchange)


async def open_tunnel(cell: Cell, *fields: str, version: str = "1.1") -> tuple[Recorder, Exchange | None]:
    """A client with the answer to its handshake, and what the origin saw of that if it was 101."""
    client = await cell.ask(*(fields or HANDSHAKE), version=version)
    await client.wait(lambda: b"\r\n\r\n" in client.data, SOON)
    if not client.data.startswith(b"HTTP/1.1 101"):
        return client, None
    return client, await cell.exchange()


def upgrade_seen(cell: Cell) -> str:
    """In words, what became of the Upgrade on the way to the origin."""
    exchanges = cell.origin.of(cell.name)
    if not exchanges:
        return "nothing"
    token = exchanges[0].get("upgrade")
    return f"HTTP/{exchanges[0].version}, " + ("no Upgrade" if token is None else f"Upgrade: {token}")


async def refused(cell: Cell, client: Recorder) -> Outcome:
    """What is told of a handshake that did not succeed."""
    await settled(client)
    return Outcome(tuple(cell.told(client)), (upgrade_seen(cell),))


async def frame_and_back(cell: Cell, version: str = "1.1", fields: tuple[str, ...] = HANDSHAKE) -> Outcome:
    """A handshake, and one frame each way."""
    client, exchange = await open_tunnel(cell, *fields, version=version)
    if exchange is None:
        return await refused(cell, client)
    await client.send(CLIENT_FRAME)
    echoed = await client.wait_data(SERVER_FRAME, SOON)
    return Outcome(("101", "echo" if echoed else "no echo", cell.ending(client.end)), (upgrade_seen(cell),))


async def switch_to_any(exchange: Exchange) -> None:
    """Opens a tunnel of whatever protocol was asked for, and says the frame for the frame."""
    if (token := exchange.get("upgrade")) is None:
        await switch(exchange)
        return
    await exchange.send(SWITCHING.replace(b"websocket", token.encode()))
    await exchange.peer.wait(lambda: CLIENT_FRAME in exchange.behind, float("inf"))
    await exchange.send(SERVER_FRAME)
    await hold(exchange)


add("tunnel", "handshake, a frame each way", frame_and_back, switch_and_echo)
_STRIPPED = r"426 'no', (stays open|FIN) / HTTP/1\.[01], no Upgrade"
_NOT_ASKED_FOR = r"50[23], (stays open|FIN) / nothing"
add(
    "tunnel",
    "handshake in HTTP/1.0",
    partial(frame_and_back, version="1.0"),
    switch_and_echo,
    rule="RFC 9110 7.8: Upgrade in HTTP/1.0 is ignored",
    strict=_STRIPPED,
)
add(
    "tunnel",
    "Upgrade to another protocol",
    partial(frame_and_back, fields=("Connection: Upgrade", "Upgrade: chat")),
    switch_to_any,
)
add(
    "tunnel",
    "Upgrade that Connection does not name",
    partial(frame_and_back, fields=HANDSHAKE[1:]),
    switch_and_echo,
    rule="RFC 9110 7.8: Upgrade goes with Connection: upgrade",
    strict=_STRIPPED,
)


@scenario("tunnel", "silent tunnel", switch_and_hold)
async def silent_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await client.wait_end(HORIZON)
    await exchange.peer.wait_end(SOON / 2)
    return Outcome(("101", cell.ending(client.end)), (cell.ending(exchange.end),))


@scenario("tunnel", "only the client speaks", switch_and_hold)
async def only_the_client_speaks(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    for _ in range(6):
        await client.wait_end(TIMER / 3)
        if client.end is None:
            try:
                await client.send(CLIENT_FRAME)
            except Gone:
                break
    return Outcome(("101", cell.ending(client.end)), (cell.ending(exchange.end),))


@scenario("tunnel", "only the origin speaks", switch_and_speak)
async def only_the_origin_speaks(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await client.wait_end(6.5 * TIMER / 3)
    return Outcome(("101", cell.ending(client.end)), (cell.ending(exchange.end),))


async def switch_and_speak_at_once(exchange: Exchange) -> None:
    """Opens a tunnel, with a frame in the same bytes as the head."""
    if await switch(exchange, SERVER_FRAME):
        await hold(exchange)


@scenario("tunnel", "frame in the same bytes as the 101", switch_and_speak_at_once)
async def frame_with_the_101(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    came = await client.wait_data(SERVER_FRAME, SOON)
    return Outcome(("101", "frame" if came else "no frame"), ())


@scenario(
    "tunnel",
    "frame in the same bytes as the handshake",
    switch_and_hold,
    rule="RFC 9110 9.3.6: a tunnel passes on all that came, also what came before it was there",
    strict=r"101 / frame",
)
async def frame_with_the_handshake(cell: Cell) -> Outcome:
    client = await cell.connect()
    await cell.send(client, cell.request(*HANDSHAKE) + CLIENT_FRAME + b"\r\n\r\n")
    exchange = await cell.exchange()
    await client.wait(lambda: b"\r\n\r\n" in client.data, SOON)
    if exchange is None or not client.data.startswith(b"HTTP/1.1 101"):
        return await refused(cell, client)
    came = await exchange.peer.wait_data(CLIENT_FRAME, SOON)
    return Outcome(("101",), ("frame" if came else "no frame",))


async def switch_and_answer_the_end(exchange: Exchange) -> None:
    """Opens a tunnel; when the other side has ended its direction, says something and ends it as well."""
    if await switch(exchange):
        await exchange.peer.wait_end(float("inf"))
        await exchange.send(SERVER_FRAME)
        exchange.close()


@scenario("tunnel", "client ends its direction of the tunnel", switch_and_answer_the_end)
async def client_half_closes_a_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    cell.begun = trio.current_time()
    client.finish()
    await client.wait_end(HORIZON)
    await exchange.peer.wait_end(SOON / 2)
    late = ["frame"] if SERVER_FRAME in client.data else []
    return Outcome(("101", *late, cell.ending(client.end)), (cell.ending(exchange.end),))


async def switch_and_finish(exchange: Exchange) -> None:
    """Opens a tunnel, and ends its own direction of it when the other side has said something."""
    if await switch(exchange):
        await exchange.peer.wait(lambda: CLIENT_FRAME in exchange.behind, float("inf"))
        exchange.finish()
        await hold(exchange)


@scenario("tunnel", "origin ends its direction of the tunnel", switch_and_finish)
async def origin_half_closes_a_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await cell.send(client, CLIENT_FRAME)
    await client.wait_end(HORIZON)
    await exchange.peer.wait_end(SOON / 2)
    was_open = exchange.end is None
    with suppress(Gone):
        await client.send(b"late")
    late = ["late bytes"] if was_open and await exchange.peer.wait_data(b"late", SOON / 2) else []
    client.close()
    await exchange.peer.wait_end(SOON)
    return Outcome(("101", cell.ending(client.end)), (*late, cell.ending(exchange.end)))


@scenario("tunnel", "client resets the tunnel", switch_and_echo)
async def client_resets_a_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await client.send(CLIENT_FRAME)
    await client.wait_data(SERVER_FRAME, SOON)
    cell.begun = trio.current_time()
    client.reset()
    await exchange.peer.wait_end(HORIZON)
    return Outcome(("101",), (cell.ending(exchange.end),))


@scenario("tunnel", "client closes the tunnel", switch_and_echo)
async def client_closes_a_tunnel(cell: Cell) -> Outcome:
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await client.send(CLIENT_FRAME)
    await client.wait_data(SERVER_FRAME, SOON)
    cell.begun = trio.current_time()
    client.close()
    await exchange.peer.wait_end(HORIZON)
    return Outcome(("101",), (cell.ending(exchange.end),))


async def switch_and_end(exchange: Exchange, *, reset: bool) -> None:
    """Opens a tunnel, and ends it when the other side has said something."""
    if await switch(exchange):
        await exchange.peer.wait(lambda: CLIENT_FRAME in exchange.behind, float("inf"))
        if reset:
            exchange.reset()
        else:
            exchange.close()


async def origin_ends_a_tunnel(cell: Cell) -> Outcome:
    """The tunnel's end as the client sees it."""
    client, exchange = await open_tunnel(cell)
    if exchange is None:
        return await refused(cell, client)
    await cell.send(client, CLIENT_FRAME)
    await client.wait_end(HORIZON)
    return Outcome(("101", cell.ending(client.end)), ())


add("tunnel", "origin resets the tunnel", origin_ends_a_tunnel, partial(switch_and_end, reset=True))
add("tunnel", "origin closes the tunnel", origin_ends_a_tunnel, partial(switch_and_end, reset=False))


async def refuse(exchange: Exchange) -> None:
    """Answers with 426."""
    await exchange.answer(b"no", "426 Upgrade Required", "Upgrade: websocket", "Connection: Upgrade")


@scenario("tunnel", "frame after a refused handshake", refuse)
async def frame_after_a_refusal(cell: Cell) -> Outcome:
    client = await cell.ask(*HANDSHAKE)
    await client.wait(has_final(client), SOON)
    await cell.send(client, CLIENT_FRAME + b"\r\n\r\n")
    await client.wait_end(SOON)
    passed = ["frame"] if cell.origin.saw(CLIENT_FRAME) and passed_on(cell, CLIENT_FRAME) else []
    return Outcome(tuple(cell.told(client)), tuple(passed))


def passed_on(cell: Cell, data: bytes) -> bool:
    """Whether the data reached the origin behind a request of this scenario."""
    return any(data in exchange.peer.data for exchange in cell.origin.of(cell.name))


@scenario("tunnel", "request after a refused handshake", refuse)
async def request_after_a_refusal(cell: Cell) -> Outcome:
    client = await cell.ask(*HANDSHAKE)
    await client.wait(has_final(client), SOON)
    inner = cell.request("x-iNNer: yes", suffix="?inner")
    await cell.send(client, inner)
    await settled(client, count=2)
    unseen = passed_on(cell, inner)
    return Outcome(tuple(cell.told(client)), ("byte for byte as the client sent it" if unseen else "a request",))


async def switch_unasked(exchange: Exchange) -> None:
    """Answers a request without Upgrade with 101, and ends the connection a little later."""
    await exchange.send(SWITCHING + SERVER_FRAME)
    await exchange.peer.wait_end(SOON / 4)
    exchange.close()


_SWITCH = "RFC 9110 7.8: a server switches to no protocol that was not asked for"
add("tunnel", "101 that was not asked for", one_answer, switch_unasked, rule=_SWITCH, strict=_NOT_ASKED_FOR)


async def switch_to_another(exchange: Exchange) -> None:
    """Answers a handshake with 101 to another protocol."""
    if exchange.get("upgrade") is None:
        await switch(exchange)
    else:
        await exchange.send(SWITCHING.replace(b"websocket", b"other"))
        await hold(exchange)


async def switch_to_nothing(exchange: Exchange) -> None:
    """Answers a handshake with 101 that names no protocol."""
    if exchange.get("upgrade") is None:
        await switch(exchange)
    else:
        await exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nX-Origin: yes\r\n\r\n")
        await hold(exchange)


for title, script in {
    "101 to another protocol": switch_to_another,
    "101 that names no protocol": switch_to_nothing,
}.items():
    add(
        "tunnel",
        title,
        lambda cell: one_answer(cell, *HANDSHAKE),
        script,
        rule=_SWITCH,
        strict=_NOT_ASKED_FOR,
    )


@scenario(
    "tunnel",
    "POST with Upgrade and a body",
    switch,
    rule="where a body ends and a tunnel begins is not to be mistaken: one or the other",
    strict=_STRIPPED,
)
async def post_with_upgrade(cell: Cell) -> Outcome:
    client = await cell.ask(*HANDSHAKE, "Content-Length: 4", method="POST", body=b"body")
    await settled(client)
    return Outcome(tuple(cell.told(client)), (upgrade_seen(cell),))
