"""The fake subscriber is trusted with judging the hub, so it is judged first."""

import pytest
import trio
from hub.fakes import FORMS, DeafLog, FakeSubscriber, Got, Switched, at_once, decode

from tricast.event import BEGINNING, Draft, Event, EventId, Gap, GapReason, TopicSet
from tricast.sent import Sent

ONE = Event(EventId(1, 0), "a.1", "message", b"1")
TWO = Event(EventId(2, 0), "b", "message", b"2")
GAP = Gap(GapReason.EVICTED, EventId(0, 5), EventId(1, 1))


async def _value(value: int) -> int:
    return value


async def _wait() -> None:
    await trio.lowlevel.checkpoint()


def test_what_the_forms_write_is_read_back() -> None:
    lines = FORMS[0].block([ONE, TWO], GAP).splitlines()
    assert [decode(line) for line in lines] == [GAP, Got(ONE.id, "a.1"), Got(TWO.id, "b")]
    assert decode(b"switched 1-0 a b.*") == Switched(EventId(1, 0), TopicSet(["a", "b.*"]))
    with pytest.raises(AssertionError):
        decode(b"event-ish 1-0 a")


def test_at_once_runs_what_does_not_wait_and_refuses_what_does() -> None:
    assert at_once(_value(3)) == 3
    with pytest.raises(AssertionError, match="waited"):
        at_once(_wait())


def test_an_open_wire_takes_everything() -> None:
    subscriber = FakeSubscriber()
    assert subscriber.push(FORMS[0].block([ONE, TWO])) is Sent.ALL
    assert subscriber.ids == [ONE.id, TWO.id]
    assert subscriber.gaps == []


def test_a_blocked_wire_keeps_a_tail_and_then_takes_nothing() -> None:
    subscriber = FakeSubscriber()
    block = FORMS[0].block([ONE, TWO])
    subscriber.block(len(block) - 3)
    assert subscriber.push(block) is Sent.PART
    assert subscriber.ids == [ONE.id]
    assert subscriber.push(block) is Sent.NOTHING
    subscriber.unblock()
    assert subscriber.ids == [ONE.id, TWO.id]
    assert subscriber.push(FORMS[0].block([ONE])) is Sent.ALL


def test_a_cut_wire_loses_what_had_not_arrived_whole() -> None:
    subscriber = FakeSubscriber()
    subscriber.block(5)
    subscriber.push(FORMS[0].block([ONE]))
    subscriber.cut()
    subscriber.push(FORMS[0].block([TWO]))
    assert subscriber.ids == [TWO.id]


def test_a_broken_wire_raises_and_failures_are_kept() -> None:
    subscriber = FakeSubscriber()
    subscriber.error = ConnectionError("reset")
    with pytest.raises(ConnectionError, match="reset"):
        subscriber.push(b"")
    subscriber.fail(subscriber.error)
    assert subscriber.failures == [subscriber.error]


async def test_a_deaf_log_keeps_and_does_not_tell() -> None:
    log = DeafLog(history=10, history_age=60, history_size=10**6, clock=lambda: 1000.0)
    told: list[Event] = []
    async with log.open(told.extend):
        log.is_deaf = True
        (first,) = await log.append([Draft("a", "message", b"1")])
        log.is_deaf = False
        (second,) = await log.append([Draft("a", "message", b"2")])
    assert [event.id for event in told] == [second]
    kept = (await log.read(TopicSet(["a"]), BEGINNING, max_bytes=1000)).events
    assert [event.id for event in kept] == [first, second]
