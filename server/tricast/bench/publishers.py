"""Publishers: each has one connection, and one request under way at a time.

What becomes due while a request is under way waits for its answer and then goes with the next one, as many events as
one may take. That is no closed loop: when each event is due does not depend on it, and latency is counted from then.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from tricast.bench.engine import WRITABLE, Engine
from tricast.bench.http_answers import AnswerReader, Head, Malformed
from tricast.bench.link import Link, LinkLost, Target
from tricast.bench.schedule import Feed
from tricast.client.endpoint import Endpoint

_RETRY_SECONDS = 0.2
#: A request without an answer for so long is made again, on a new connection.
_ANSWER_SECONDS = 10.0
#: How long after the last event was due those left may still be sent.
_OVERTIME_NS = 500_000_000


class Course(NamedTuple):
    """What the publishers of a run share.

    Attributes:
        engine: the loop.
        target: where the server is.
        endpoint: the server as its URL names it.
        headers: lines that every request has.
        feed: what is to be published.
        begin: when the feed begins, in nanoseconds of the monotonic clock.
    """

    engine: Engine
    target: Target
    endpoint: Endpoint
    headers: tuple[str, ...]
    feed: Feed
    begin: int


class _Problem(msgspec.Struct):
    """What is read of an ``application/problem+json`` body (RFC 9457)."""

    title: str = ""
    detail: str = ""


class _Request(NamedTuple):
    """Events under way: the bytes that ask for it, and how many events they publish."""

    data: bytes
    events: int


class Publisher:
    """One publisher.

    Args:
        course: what all publishers share.
        index: which publisher this is.
        ended: called once, when nothing more will be published.

    Attributes:
        published: how many events the server has taken.
        requests: how many requests were answered.
        late_ns: how long after it was due an event was sent at most.
        errors: what went wrong, by kind.
        given_up: how many events there was no server for in time, by why not; or nothing.
        refusal: what the server answered when it will not take the events at all; or nothing.
        has_ended: whether nothing more will be published.
    """

    def __init__(self, course: Course, index: int, ended: Callable[[], None]) -> None:
        self._engine, self._target, self._endpoint, headers, self._feed, self._begin = course
        self._headers = "".join(f"{line}\r\n" for line in headers)
        self._index = index
        self._ended = ended
        self._last_due = self._feed.due_at(index, max(0, self._feed.events_of(index) - 1))
        self._link: Link | None = None
        self._answers = AnswerReader()
        self._request: _Request | None = None
        self._is_sent = False
        self._prepared = 0
        self._attempts = 0
        #: What went wrong since the server has last taken something.
        self._why = ""
        self.published = 0
        self.requests = 0
        self.late_ns = 0
        self.errors: dict[str, int] = {}
        self.given_up: dict[str, int] = {}
        self.refusal = ""
        self.has_ended = False

    def open(self) -> None:
        """Begins to connect."""
        if self.has_ended:
            return
        try:
            self._link = Link(self._engine, self, self._target, 0)
        except LinkLost as lost:
            self._broken(str(lost), _RETRY_SECONDS)

    def stop(self) -> None:
        """Publishes nothing more."""
        if self.has_ended:
            return
        self.has_ended = True
        self._close()
        self._ended()

    def _end(self) -> None:
        """Stops at the end of the feed."""
        left = self._feed.events_of(self._index) - self.published
        if left and self._why:
            self.given_up = {self._why: left}
        self.stop()

    def ready(self, mask: int) -> None:
        """See ``Party.ready``."""
        link = self._link
        assert link is not None
        try:
            if link.is_open:
                if mask & WRITABLE:
                    link.flush()
                if data := link.receive():
                    self._received(data)
            elif link.go_on():
                self.go_on()
        except LinkLost as lost:
            if link.is_open and not self._is_sent:
                self._come_back(0)  # servers close connections that are idle for long
            else:
                self._broken(str(lost), _RETRY_SECONDS)
        except Malformed as malformed:
            self._broken(f"protocol: {malformed}", _RETRY_SECONDS)

    def go_on(self) -> None:
        """Sends what is due, or waits for it."""
        if self.has_ended or self._link is None or not self._link.is_open or self._is_sent:
            return
        now = time.monotonic_ns()
        if self.published == self._feed.events_of(self._index) or now > self._begin + self._last_due + _OVERTIME_NS:
            self._end()
            return
        if self._request is None:
            due = self._feed.due_until(self._index, now - self._begin) - self.published
            if due <= 0:
                self._engine.call_at(self._begin + self._feed.due_at(self._index, self.published), self.go_on)
                return
            self._prepare(min(due, self._feed.most_in_request), now)
        self._send()

    def _prepare(self, events: int, now: int) -> None:
        feed, first = self._feed, self.published
        at = [self._begin + feed.due_at(self._index, number) for number in range(first, first + events)]
        self.late_ns = max(self.late_ns, now - at[0])
        bodies = [feed.data(self._index, first + number, due) for number, due in enumerate(at)]
        topics = [feed.topic_name(feed.topic_of(self._index, first + number)) for number in range(events)]
        self._prepared += 1
        if events == 1:
            target, kind, body = (
                self._endpoint.target("/publish", [("topic", topics[0])]),
                "application/json",
                bodies[0],
            )
        else:
            target, kind = self._endpoint.target("/publish", []), "application/x-ndjson"
            body = b"".join(map(_line, topics, bodies))
        # The key lets a request be made again when its answer was lost, without anything being published twice.
        head = (
            f"POST {target} HTTP/1.1\r\nHost: {self._endpoint.authority}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nIdempotency-Key: {feed.run}-{self._index}-{self._prepared}\r\n"
            f"{self._headers}\r\n"
        )
        self._request = _Request(head.encode("latin-1") + body, events)

    def _send(self) -> None:
        assert self._link is not None
        assert self._request is not None
        self._is_sent = True
        self._attempts += 1
        attempt = self._attempts
        self._link.send(self._request.data)
        self._engine.call_in(_ANSWER_SECONDS, lambda: self._give_up(attempt))

    def _give_up(self, attempt: int) -> None:
        if self._is_sent and attempt == self._attempts:
            self._broken("no answer in time", 0)

    def _received(self, data: bytes) -> None:
        answer = self._answers.feed(data)
        if answer is None:
            return
        if not self._is_sent:  # 408: no request came in time (RFC 9110 15.5.9)
            self._come_back(0)
            return
        head = answer.head
        if head.status == 200:
            assert self._request is not None
            self.published += self._request.events
            self.requests += 1
            self._request = None
            self._is_sent = False
            self._why = ""
            if head.closes:
                self._come_back(0)
            else:
                self.go_on()
        elif head.status >= 500 or head.status in (408, 409, 429):
            self._broken(f"status {head.status}", _RETRY_SECONDS if head.retry_after is None else head.retry_after)
        else:
            self.refusal = _in_words(head, answer.body)
            self.stop()

    def _broken(self, why: str, delay: float) -> None:
        kind = f"publishing: {why}"
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self._why = why
        self._come_back(delay)

    def _come_back(self, delay: float) -> None:
        self._close()
        self._answers = AnswerReader()
        self._is_sent = False
        overtime = self._begin + self._last_due + _OVERTIME_NS
        if time.monotonic_ns() + delay * 1e9 > overtime:
            self._end()
        else:
            self._engine.call_in(delay, self.open)

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


def _line(topic: str, data: bytes) -> bytes:
    return b'{"topic":%b,"data":%b}\n' % (msgspec.json.encode(topic), data)


def _in_words(head: Head, body: bytes) -> str:
    try:
        problem = msgspec.json.decode(body, type=_Problem)
        said = problem.detail or problem.title
    except (msgspec.DecodeError, RecursionError):
        said = body[:300].decode(errors="replace")
    return f"the server answered {head.status} to a publish: {said}".removesuffix(": ")
