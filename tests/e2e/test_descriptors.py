"""More clients than there is room for: they are told, the others go on, and it is over when some leave."""

import errno
import os
import resource
from contextlib import ExitStack

import trio
from clients import Wire, ask, head, publish, read_answer, subscribe
from serving import ServerProcess, serving, serving_process, until

import tricast
from tricast.descriptors import Spare
from tricast.listeners import url_of
from tricast.listening import Acceptor, listen


async def refused(url: str) -> None:
    """One request that must be turned away."""
    answer = await ask(url, "GET", "/healthz")
    assert (answer.status, answer.code) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["connection"] == "close"


async def test_one_more_than_allowed_is_told_so() -> None:
    async with serving(limits={"connections": 2}) as server:
        with await subscribe("sse", server.url, "news") as stream:
            with await subscribe("ws", server.url, "news") as websocket:
                for _ in range(20):
                    await refused(server.url)
                await server.hub.publish("news", 1)
                assert (await stream.event()).data == (await websocket.event()).data == 1
                assert server.connections == 2
                assert server._runtime.counters.refused == 20
            await until(lambda: server.connections == 1)
            assert (await ask(server.url, "GET", "/healthz")).status == 200


async def test_many_at_once_over_the_limit() -> None:
    async with serving(limits={"connections": 1}) as server:
        with await subscribe("sse", server.url, "news") as stream, ExitStack() as wires:
            crowd = [wires.enter_context(await Wire.open(server.url)) for _ in range(20)]
            for wire in crowd:
                await wire.send(head("GET", "/healthz"))
            for wire in crowd:
                assert (await read_answer(wire)).status == 503
            await server.hub.publish("news", 1)
            assert (await stream.event()).data == 1


async def test_those_who_are_turned_away_and_stay_hold_up_nobody() -> None:
    async with serving(limits={"connections": 1, "reserved_descriptors": 8}) as server:
        with ExitStack() as wires:
            with await subscribe("sse", server.url, "news"):
                for _ in range(20):
                    wires.enter_context(await Wire.open(server.url))
                await until(lambda: server._runtime.counters.refused == 20)
            await until(lambda: server.connections == 0)
            assert (await ask(server.url, "GET", "/healthz")).status == 200


async def test_those_who_are_turned_away_may_say_nothing_or_leave() -> None:
    async with serving(limits={"connections": 1}) as server:
        with await subscribe("sse", server.url, "news") as stream:
            for leave in ("close", "reset", "finish_sending"):
                with await Wire.open(server.url) as wire:
                    getattr(wire, leave)()
            await refused(server.url)
            await server.hub.publish("news", 1)
            assert (await stream.event()).data == 1


def descriptors_of(server: ServerProcess) -> set[int]:
    """Those that the process has."""
    return {int(name) for name in os.listdir(f"/proc/{server.process.pid}/fd")}  # noqa: PTH208


def limit_descriptors(server: ServerProcess, room: int) -> None:
    """Leaves the process room for so many more descriptors."""
    in_use = descriptors_of(server)
    limit = 0
    while room or limit in in_use:
        room -= limit not in in_use
        limit += 1
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, hard))


async def test_when_there_are_no_descriptors_clients_are_told_and_nothing_spins() -> None:
    # The limit falls while it runs, which stands for whatever else takes descriptors behind the server's back.
    async with serving_process() as server:
        with ExitStack() as streams:
            first = streams.enter_context(await subscribe("sse", server.url, "news"))
            at_first = len(descriptors_of(server))
            limit_descriptors(server, room=3)
            others = [streams.enter_context(await subscribe("sse", server.url, "news")) for _ in range(3)]
            for _ in range(5):
                await refused(server.url)
            assert 1 <= len(await server.wait_said("no descriptor")) <= 6, server.lines
            for stream in others:
                stream.wire.close()
            await until(lambda: len(descriptors_of(server)) <= at_first)  # it has seen all others leave
            await publish(server.url, "news", 1)
            assert (await first.event()).data == 1
            limited = len(server.said("no descriptor"))
            await publish(server.url, "news", 2)
            assert (await first.event()).data == 2
            assert len(server.said("no descriptor")) == limited


async def test_the_spare_descriptor_is_kept_when_a_listener_is_given_up_meanwhile() -> None:
    async def serve_nobody(*_: object) -> None:
        raise AssertionError

    spare = Spare()
    async with serving() as server, trio.open_nursery() as nursery:
        with ExitStack() as sockets:
            (listener,) = await listen(sockets, "127.0.0.1", 0, tricast.Config())
            acceptor = Acceptor(server._runtime, serve_nobody, nursery, spare, capacity=1, max_refusing=1)
            with await Wire.open(url_of(listener)):  # says nothing, so that its answer waits
                nursery.start_soon(acceptor._exhausted, listener, OSError(errno.EMFILE, "too many"))
                await until(lambda: server._runtime.counters.refused == 1)
                assert spare._fd is None
                nursery.cancel_scope.cancel()
                await trio.lowlevel.checkpoint()
    assert spare._fd is not None
    spare.give_up()
