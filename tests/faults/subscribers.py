"""Subscribers that come, are given something, and go: to another server, at any moment, over any transport."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import trio
from clients import (
    Answer,
    Closed,
    CutOff,
    Ended,
    Event,
    EventStream,
    Item,
    Subscription,
    WebSocket,
    WebSocketClosed,
    Wire,
    head,
    query_of,
    read_answer,
    read_head,
    subscription_headers,
)
from faults.history import BEGINNING, Follower, Gap, Id, Violation

TRANSPORTS = ("poll", "sse", "sse-envelope", "ws")
#: What the end of a connection, or its absence, looks like.
GONE = (Closed, CutOff, Ended, OSError, WebSocketClosed)


class Refused(Exception):
    """The server answered with something else."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.body[:200].decode()}")
        self.status = answer.status


class FaultySubscriber:
    """One subscriber, with a connection at a time.

    Args:
        follower: where all is noted that it is given.
        transport: one of the ``TRANSPORTS``.
        urls: of the servers.
        numbers: decides where it goes, and when.
        clock: seconds since the start of the round.
        begins_at: the position to begin at; None is now.
    """

    def __init__(
        self,
        follower: Follower,
        transport: str,
        urls: Sequence[str],
        *,
        numbers: random.Random,
        clock: Callable[[], float],
        begins_at: str | None = None,
    ) -> None:
        self.follower = follower
        self._transport = transport
        self._urls = urls
        self._numbers = numbers
        self._clock = clock
        self._last_id = begins_at
        self._ends: dict[str, tuple[int, Id]] | None = None
        self._scope = trio.CancelScope()
        if begins_at == BEGINNING:
            follower.told(BEGINNING, clock())

    @property
    def is_done(self) -> bool:
        """Whether it has come to the end."""
        follower = self.follower
        return self._ends is not None and follower.start is not None and follower.has_come_to(self._ends)

    def finish(self, ends: dict[str, tuple[int, Id]]) -> None:
        """Has it come to the end, which is there, and wait for nothing else.

        Args:
            ends: the last event of each topic.
        """
        self._ends = ends
        self._scope.cancel()

    async def run(self, seconds: float) -> None:
        """Subscribes again and again until it has come to the end, or for so long."""
        leaves_at = self._clock() + seconds
        while not self.is_done:
            if self._ends is None and self._clock() > leaves_at:
                self.follower.is_retired = True
                return
            with trio.move_on_after(self._numbers.expovariate(1 / 4)) as self._scope:
                await self._connect()
            if self._scope.cancelled_caught:
                self.follower.note(self._clock(), "leaves")
            is_away = self._ends is None and self._numbers.random() < 0.1
            with trio.move_on_after(self._numbers.expovariate(1 / 5 if is_away else 5)) as self._scope:
                await trio.sleep_forever()

    async def _connect(self) -> None:
        """One connection, for as long as it lasts."""
        number = self._numbers.randrange(len(self._urls))
        asked = f"asks server {number} for {self._last_id or 'what comes'} ({self._transport})"
        self.follower.note(self._clock(), asked)
        budget = self._numbers.choice([None, None, None, int(self._numbers.expovariate(1 / 3000)) + 1])
        try:
            await self._listen(self._urls[number], budget)
        except GONE as error:
            self.follower.note(self._clock(), f"lost: {type(error).__name__} {error}")
        except Refused as error:
            self.follower.note(self._clock(), f"refused: {error}")
            if error.status != 503:
                self.follower.journal.violations.append(Violation("refused", str(error), self.follower))

    async def _listen(self, url: str, budget: int | None) -> None:
        with await Wire.open(url, budget=budget) as wire:
            if self._transport == "poll":
                await self._poll(wire)
                return
            more = {"envelope": "json"} if self._transport == "sse-envelope" else {}
            query = query_of(self.follower.topics, self._last_id, **more)
            await wire.send(head("GET", f"/events?{query}", *subscription_headers(self._transport)))
            answer = await read_head(wire)
            stream: Subscription
            if self._transport == "ws":
                stream = WebSocket(wire, self._last_id)
                self._check(answer, 101)
                self._told((await stream.reply())["last_id"])
            else:
                self._check(answer, 200)
                stream = EventStream(wire, self._last_id, envelope=self._transport == "sse-envelope")
                while stream.retry is None:
                    await stream._read()
                assert stream.last_id is not None
                self._told(stream.last_id)
            while not self.is_done:
                self._take(await stream.next())

    async def _poll(self, wire: Wire) -> None:
        if self._last_id is None:
            await wire.send(head("HEAD", f"/events?{query_of(self.follower.topics)}"))
            answer = await read_answer(wire, "HEAD")
            self._check(answer, 200)
            self._told(answer.headers["last-event-id"])
        while not self.is_done:
            await wire.send(head("GET", f"/events?{query_of(self.follower.topics, self._last_id)}"))
            answer = await read_answer(wire)
            if answer.status == 200:
                self._take_poll(answer.json())
            else:
                self._check(answer, 204)
            self._told(answer.headers["last-event-id"])

    def _take_poll(self, body: dict[str, Any]) -> None:
        events = [Event(**event) for event in body["events"]]
        gap = Gap(**body["gap"]) if "gap" in body else None
        if gap is not None:
            self._take(gap)
        for event in events:
            self._take(event)

    def _take(self, item: Item | Gap) -> None:
        if isinstance(item, Event):
            self.follower.event(item.id, item.data["n"], item.topic)
            self._last_id = item.id
        else:
            self.follower.gap(Gap(*item), self._clock())
            self._last_id = item.resumed_at

    def _told(self, position: str) -> None:
        if position != self._last_id:
            self.follower.told(position, self._clock())
            self._last_id = position

    @staticmethod
    def _check(answer: Answer, status: int) -> None:
        if answer.status != status:
            raise Refused(answer)
