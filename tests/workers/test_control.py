"""What supervisor and worker say to each other."""

import socket
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio
from clocks import HANG_SECONDS

from tricast.workers.control import Accept, Begin, Control, Drain, Failed, Message, Ready, Retire


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Control, Control]]:
    ends = tuple(map(Control, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)))
    yield ends  # type: ignore[misc]
    for end in ends:
        end.close()


BEGIN = Begin(
    worker=1,
    restarts=2,
    config=msgspec.Raw(b'{"server":{"port":0}}'),
    path=["", "/somewhere"],
    listeners=[[3], [4]],
    admin_listeners=[],
    boards=[5, 6],
    folder="",
    tickets=7,
)
MESSAGES: list[Message] = [BEGIN, Accept([0, 2]), Retire(), Drain(), Ready(), Failed(["one", "another"])]


async def test_messages_come_whole_and_in_order(pair: tuple[Control, Control]) -> None:
    for message in MESSAGES:
        pair[0].tell(message)
    for message in MESSAGES:
        assert await pair[1].next() == message


async def test_the_end_is_told(pair: tuple[Control, Control]) -> None:
    pair[0].tell(Ready())
    pair[0].close()
    assert await pair[1].next() == Ready()
    assert await pair[1].next() is None


async def test_the_end_is_told_also_when_not_everything_was_read(pair: tuple[Control, Control]) -> None:
    pair[1].tell(Ready())
    pair[0].close()
    assert await pair[1].next() is None


async def test_nobody_waits_for_one_who_does_not_listen(pair: tuple[Control, Control]) -> None:
    while pair[0].tell(Accept([1])):
        pass
    assert await pair[1].next() == Accept([1])


async def test_there_is_room_again_when_the_other_side_listens(pair: tuple[Control, Control]) -> None:
    async def listen() -> None:
        while await pair[1].next() != Accept([2]):
            pass

    with trio.fail_after(HANG_SECONDS):
        while pair[0].tell(Accept([1])):
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            while not pair[0].tell(Accept([2])):
                await pair[0].wait_room()


async def test_nobody_minds_one_who_is_gone(pair: tuple[Control, Control]) -> None:
    pair[1].close()
    pair[0].tell(Ready())
    assert await pair[0].next() is None


async def test_a_message_may_be_long_and_one_that_is_too_long_is_an_error(pair: tuple[Control, Control]) -> None:
    pair[0].tell(Failed(["x" * 100_000]))
    with trio.fail_after(HANG_SECONDS):
        assert await pair[1].next() == Failed(["x" * 100_000])
    with pytest.raises(OSError, match="too long"):
        pair[0].tell(Failed(["x" * 10_000_000]))
