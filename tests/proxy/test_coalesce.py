"""Shared answers: who gets which, what they get of it, and that neither memory nor a fetch is left behind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from proxy.fake_bodies import EndlessSource, FakeSink, FakeSource, response_head
from trio.testing import MockClock, wait_all_tasks_blocked

from tricast_proxy.coalesce import DEFAULT_LIMITS, Coalescer, CoalescerLimits, Fetch, SharedSource
from tricast_proxy.config import ResponseSection
from tricast_proxy.heads import RequestHead, ResponseHead
from tricast_proxy.relay import Cut, relay_at_once

STREAM: list[bytes | float | Cut] = [b"0", 1.0, b"1", 1.0, b"2", 1.0]


def request(*fields: tuple[bytes, bytes], target: bytes = b"/events", method: bytes = b"GET") -> RequestHead:
    return RequestHead(method, target, [(b"Host", b"a"), *fields], b"1.1")


class Origin:
    """A server behind a coalescer.

    Args:
        coalescer: in front of it.
        script: what it answers to each request.

    Attributes:
        asked: how often it was asked.
        kept: fetches that run now.
        delay: seconds before the head.
        head: of its answers.
    """

    def __init__(self, coalescer: Coalescer, script: list[bytes | float | Cut]) -> None:
        self._script = script
        self.coalescer = coalescer
        self.asked = 0
        self.kept = 0
        self.delay = 0.0
        self.head: ResponseHead | None = None

    async def get(self, asked: RequestHead, sink: FakeSink | None = None, *, delay: float = 0.0) -> FakeSink:
        """Asks as a client does, after a while."""
        sink = sink or FakeSink()
        await trio.sleep(delay)
        source = await self.open(asked)
        try:
            await relay_at_once(source, sink)
        finally:
            if isinstance(source, SharedSource):
                source.close()
        return sink

    async def open(self, asked: RequestHead, source: FakeSource | None = None) -> FakeSource | SharedSource:
        """The answer to a request, shared or not."""
        joined = await self.coalescer.join(asked)
        if joined is not None:
            return joined
        try:
            self.asked += 1
            await trio.sleep(self.delay)
            head = None
            if self.head is not None:
                head = ResponseHead(self.head.status, b"OK", list(self.head.fields), b"1.1")
            shared = self.coalescer.share(asked, source or FakeSource(self._script, head=head), self._keep)
            assert isinstance(shared, (FakeSource, SharedSource))
            return shared
        finally:
            self.coalescer.forgo(asked)

    async def _keep(self, fetch: Fetch) -> None:
        self.kept += 1
        try:
            await fetch()
        finally:
            self.kept -= 1


@asynccontextmanager
async def origin(
    script: list[bytes | float | Cut], limits: CoalescerLimits = DEFAULT_LIMITS, **keys: object
) -> AsyncIterator[Origin]:
    async with trio.open_nursery() as nursery:
        coalescer = Coalescer(ResponseSection.model_validate({"cache": "coalesce", **keys}), nursery, limits)
        yield Origin(coalescer, script)
        nursery.cancel_scope.cancel()


async def together(*calls: Any) -> list[FakeSink]:
    """What all of them got."""
    sinks: dict[int, FakeSink] = {}

    async def one(number: int, call: Any) -> None:
        sinks[number] = await call()

    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(one, number, call)
    return [sinks[number] for number in range(len(calls))]


async def test_who_joins_gets_the_past_and_then_the_present(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:
        first, second, third = await together(
            lambda: server.get(request()),
            lambda: server.get(request(), delay=1.5),
            lambda: server.get(request(), delay=10),
        )
        assert server.asked == 1
        assert first.events == [(0.0, b"0"), (1.0, b"1"), (2.0, b"2")]
        assert second.events == [(1.5, b"01"), (2.0, b"2")]
        assert third.body == b"012"


async def test_who_asks_before_the_head_is_there_waits_for_it(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:
        server.delay = 5.0
        sinks = await together(*[lambda: server.get(request())] * 3)
        assert server.asked == 1
        assert [sink.events for sink in sinks] == [[(5.0, b"0"), (6.0, b"1"), (7.0, b"2")]] * 3


async def test_the_age_is_told(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:
        server.head = response_head((b"Age", b"7"), (b"X", b"1"))
        first = await server.open(request())
        await trio.sleep(2.6)
        second = await server.open(request())
        await trio.sleep(10)
        third = await server.open(request())
        assert [source.head.get(b"age") for source in (first, second, third)] == [b"7", b"9", b"19"]
        assert [source.length for source in (first, second, third)] == [None, None, 3]
        assert third.head.get(b"x") == b"1"
        second.head.fields.clear()
        assert third.head.fields


async def test_it_is_kept_for_a_while_after_its_end(autojump_clock: MockClock) -> None:
    async with origin(STREAM, cache_ttl="100s") as server:
        await server.get(request())
        await server.get(request(), delay=99)
        assert server.asked == 1
        await server.get(request(), delay=2)
        assert server.asked == 2


@pytest.mark.parametrize(
    ("control", "joins"),
    [(b"max-age=50", True), (b"max-age=5", False), (b"max-age=0, s-maxage=50", True), (b'max-age="5"', False)],
)
async def test_what_an_answer_says_of_its_freshness_counts(
    autojump_clock: MockClock, control: bytes, joins: bool
) -> None:
    async with origin(STREAM) as server:
        server.head = response_head((b"Cache-Control", control))
        await server.get(request())
        await server.get(request(), delay=10)
        assert (server.asked == 1) is joins


@pytest.mark.parametrize(
    "asked",
    [
        request((b"Cookie", b"a=1")),
        request((b"Authorization", b"Bearer x")),
        request((b"Range", b"bytes=0-1")),
        request(method=b"POST"),
        request(method=b"HEAD"),
        request((b"Content-Length", b"1")),
        request((b"Connection", b"upgrade"), (b"Upgrade", b"websocket")),
    ],
)
async def test_requests_that_share_nothing(autojump_clock: MockClock, asked: RequestHead) -> None:
    async with origin(STREAM) as server:
        for each in (asked, asked, request(), asked):
            await server.get(each)
        assert server.asked == 4


@pytest.mark.parametrize(
    "head",
    [
        response_head((b"Cache-Control", b"no-store")),
        response_head((b"Cache-Control", b"public, PRIVATE")),
        response_head((b"Cache-Control", b'private="x-a"')),
        response_head((b"Cache-Control", b"no-cache")),
        response_head((b"Cache-Control", b"max-age=0")),
        response_head((b"Set-Cookie", b"a=1")),
        response_head((b"Vary", b"Accept, *")),
        response_head(status=404),
        response_head(status=206),
    ],
)
async def test_answers_that_are_not_shared(autojump_clock: MockClock, head: ResponseHead) -> None:
    async with origin(STREAM) as server:
        server.head = head
        server.delay = 1.0
        sinks = await together(*[lambda: server.get(request())] * 3)
        assert server.asked == 3
        # Who waited for the first head goes on by itself from then on, and whoever comes later does not wait.
        assert sorted(sink.at("head") or 0 for sink in sinks) == [1.0, 2.0, 2.0]
        late = await together(*[lambda: server.get(request())] * 2)
        assert [sink.at("head") for sink in late] == [1.0, 1.0]
        assert server.kept == 0


async def test_a_request_that_forbids_to_keep_its_answer(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:
        await server.get(request((b"Cache-Control", b"no-store")))
        await server.get(request((b"Cache-Control", b"no-store")))
        assert server.asked == 2


async def test_what_is_not_shared_may_be_shared_again_later(autojump_clock: MockClock) -> None:
    async with origin(STREAM, cache_ttl="50s") as server:
        server.head = response_head(status=500)
        await server.get(request())
        server.head = None
        await server.get(request(), delay=60)
        await server.get(request())
        assert server.asked == 2


async def test_only_so_many_are_remembered_as_not_to_be_shared(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tricast_proxy.coalesce._MAX_UNSHARED", 2)
    async with origin(STREAM) as server:
        server.head = response_head(status=404)
        server.delay = 1.0
        for number in range(3):
            await server.get(request(target=b"/%d" % number))
        for number, heads in ((2, [1.0, 1.0]), (0, [1.0, 2.0])):
            sinks = await together(*[lambda number=number: server.get(request(target=b"/%d" % number))] * 2)
            assert sorted(sink.at("head") or 0 for sink in sinks) == heads


async def test_variants_are_forgotten_one_by_one(autojump_clock: MockClock) -> None:
    one, other = request((b"Accept", b"a")), request((b"Accept", b"b"))
    async with origin([b"x"], CoalescerLimits(answers=2)) as server:
        server.head = response_head((b"Vary", b"Accept"))
        for asked in (one, other, request(target=b"/third")):
            await server.get(asked)
        assert server.asked == 3
        await server.get(other)
        assert server.asked == 3
        await server.get(one)
        assert server.asked == 4


async def test_only_the_same_is_the_same(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:
        for asked in (request(), request(target=b"/events?a"), RequestHead(b"GET", b"/events", [], b"1.1", b"other")):
            await server.get(asked)
        assert server.asked == 3


async def test_answers_that_vary(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:
        server.head = response_head((b"Vary", b"Accept-Encoding, X-Who"))
        one, other = request((b"Accept-Encoding", b"gzip")), request((b"Accept-Encoding", b"br"))
        for asked in (one, other, one, other, request(), request((b"X-Who", b"me"), (b"Accept-Encoding", b"gzip"))):
            await server.get(asked)
        assert server.asked == 4


async def test_a_failed_request_lets_the_next_one_try(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:
        first = request()
        assert await server.coalescer.join(first) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.get, request())
            nursery.start_soon(server.get, request())
            await wait_all_tasks_blocked()
            assert server.asked == 0
            server.coalescer.forgo(request())  # of somebody who has no claim
            await wait_all_tasks_blocked()
            assert server.asked == 0
            server.coalescer.forgo(first)
        assert server.asked == 1


async def test_the_fetch_goes_on_when_all_have_left(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:
        with trio.move_on_after(0.5):
            await server.get(request())
        await wait_all_tasks_blocked()
        assert server.kept == 1
        late = await server.get(request(), delay=100)
        assert (server.asked, server.kept, late.body) == (1, 0, b"012")


async def test_a_cut_reaches_all_after_what_had_come_and_is_not_kept(autojump_clock: MockClock) -> None:
    async with origin([b"ab", 1.0, b"c", 1.0, Cut("gone")]) as server:
        sinks = [FakeSink(), FakeSink(bytes_per_second=0.5)]
        cuts = []

        async def get(sink: FakeSink) -> None:
            with pytest.raises(Cut, match="gone"):
                await server.get(request(), sink)
            cuts.append(sink.body)

        async with trio.open_nursery() as nursery:
            for sink in sinks:
                nursery.start_soon(get, sink)
        assert cuts == [b"abc", b"abc"]
        assert server.asked == 1
        with pytest.raises(Cut):
            await server.get(request())
        assert server.asked == 2


async def test_trailers_reach_all(autojump_clock: MockClock) -> None:
    async with origin([]) as server:
        source = FakeSource([b"abc"], trailers=[(b"x", b"y")])
        first = await server.open(request(), source)
        await trio.sleep(1)
        second = await server.open(request())
        for shared in (first, second):
            assert shared.length is None
            sink = FakeSink()
            await relay_at_once(shared, sink)
            assert sink.trailers == [(b"x", b"y")]


async def test_what_is_known_to_be_too_large_is_not_shared() -> None:
    async with origin([], CoalescerLimits(answer_bytes=10)) as server:
        source = FakeSource([b"x" * 11], length=11)
        assert await server.open(request(), source) is source


async def test_what_becomes_too_large_goes_on_for_those_who_have_it(autojump_clock: MockClock) -> None:
    size = 2**22
    async with origin([], CoalescerLimits(answer_bytes=2**20)) as server:
        first = await server.open(request(), EndlessSource(size))
        assert isinstance(first, SharedSource)
        second = await server.open(request())
        await wait_all_tasks_blocked()
        assert not isinstance(await server.open(request(), FakeSource([])), FakeSource)
        assert server.asked == 2
        sinks = [FakeSink(), FakeSink()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay_at_once, first, sinks[0])
            nursery.start_soon(relay_at_once, second, sinks[1])
        assert [sink.taken for sink in sinks] == [size, size]
        assert server.kept == 0


async def test_one_slow_client_holds_up_the_server_once_it_is_alone(autojump_clock: MockClock) -> None:
    async with origin([], CoalescerLimits(answer_bytes=2**20)) as server:
        source = EndlessSource(2**24)
        first = await server.open(request(), source)
        await wait_all_tasks_blocked()
        assert 2**20 < source.given < 2**20 + 3 * 2**16
        sink = FakeSink(bytes_per_second=2**20)
        await relay_at_once(first, sink)
        assert sink.taken == 2**24


async def test_who_is_far_slower_than_the_others_is_cut_off(autojump_clock: MockClock) -> None:
    async with origin([], CoalescerLimits(answer_bytes=2**20)) as server:
        fast = await server.open(request(), EndlessSource(2**23))
        slow = await server.open(request())
        await wait_all_tasks_blocked()
        assert await slow.receive()
        sink = FakeSink()
        await relay_at_once(fast, sink)
        assert sink.taken == 2**23
        with pytest.raises(Cut, match="too far behind"):
            await slow.receive()


async def test_what_nobody_can_join_ends_with_its_last_client(autojump_clock: MockClock) -> None:
    async with origin([], CoalescerLimits(answer_bytes=10)) as server:
        source = await server.open(request(), FakeSource([b"x" * 20, 1000.0, b"y"]))
        assert isinstance(source, SharedSource)
        assert await source.receive() == b"x" * 20
        await wait_all_tasks_blocked()
        assert server.kept == 1
        source.close()
        source.close()
        await wait_all_tasks_blocked()
        assert server.kept == 0
        assert trio.current_time() < 1000


async def test_the_oldest_goes_when_there_are_too_many(autojump_clock: MockClock) -> None:
    async with origin([b"x" * 100], CoalescerLimits(all_bytes=250)) as server:
        for target in (b"/a", b"/b", b"/a", b"/c"):
            await server.get(request(target=target))
        assert server.asked == 3
        await server.get(request(target=b"/a"))
        assert server.asked == 3
        await server.get(request(target=b"/b"))
        assert server.asked == 4


async def test_there_are_no_more_than_a_number(autojump_clock: MockClock) -> None:
    async with origin([b"x"], CoalescerLimits(answers=2)) as server:
        for target in (b"/a", b"/b", b"/c", b"/b", b"/c"):
            await server.get(request(target=target))
        assert server.asked == 3
        await server.get(request(target=b"/a"))
        assert server.asked == 4


async def test_the_past_is_bounded_when_all_still_stream(autojump_clock: MockClock) -> None:
    async with origin([b"x" * 100, 1000.0, b"y"], CoalescerLimits(all_bytes=250)) as server:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(server.get, request(target=b"/%d" % number))
            await wait_all_tasks_blocked()
            assert (server.asked, server.kept) == (5, 5)
            assert server.coalescer._listed_bytes == 200
            assert server.coalescer._other_bytes == 0
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert server.kept == 2


async def test_cancelled_waiting_leaves_nothing(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:
        server.delay = 10.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.get, request())
            await wait_all_tasks_blocked()
            with trio.move_on_after(1) as scope:
                await server.get(request())
            assert scope.cancelled_caught
        assert server.asked == 1
        with trio.move_on_after(1):
            await server.get(request(target=b"/other"))
        await server.get(request(target=b"/other"))
        assert server.asked == 3


async def test_a_fetch_that_is_ended_from_outside_is_a_cut(autojump_clock: MockClock) -> None:
    async with origin(STREAM) as server:

        async def keep(fetch: Fetch) -> None:
            with trio.move_on_after(0.5):
                await fetch()

        asked = request()
        assert await server.coalescer.join(asked) is None
        source = server.coalescer.share(asked, FakeSource(STREAM), keep)
        assert await source.receive() == b"0"
        assert source.receive_now() is None
        with pytest.raises(Cut, match="given up"):
            await source.receive()


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=50), max_size=20),
    clients=st.lists(
        st.tuples(st.floats(0, 5), st.sampled_from([float("inf"), 100.0, 20.0]), st.booleans()), min_size=1, max_size=6
    ),
    answer_bytes=st.sampled_from([10, 100, 10_000]),
)
def test_everybody_gets_the_whole_or_is_cut(
    pieces: list[bytes], clients: list[tuple[float, float, bool]], answer_bytes: int
) -> None:
    """Clients come at any time, are fast or slow, and some leave in the middle."""
    whole = b"".join(pieces)

    async def main() -> None:
        script = [item for piece in pieces for item in (0.25, piece)]
        async with origin(script, CoalescerLimits(answer_bytes=answer_bytes, all_bytes=20_000)) as server:

            async def client(delay: float, rate: float, leaves: bool) -> None:
                sink = FakeSink(bytes_per_second=rate)
                with trio.move_on_after(delay + 1.0 if leaves else float("inf")) as scope:
                    try:
                        await server.get(request(), sink, delay=delay)
                    except Cut:
                        assert answer_bytes < len(whole), "somebody was cut off although it fits"
                        return
                assert whole.startswith(sink.body)
                assert scope.cancelled_caught or sink.body == whole

            async with trio.open_nursery() as nursery:
                for each in clients:
                    nursery.start_soon(client, *each)
            await trio.sleep(1000)
            assert server.kept == 0
            coalescer = server.coalescer
            assert coalescer._listed_bytes == sum(len(answer.body) for answer in coalescer._listed)
            assert coalescer._other_bytes == 0
            assert not coalescer._claims

    trio.run(main, clock=MockClock(autojump_threshold=0))
