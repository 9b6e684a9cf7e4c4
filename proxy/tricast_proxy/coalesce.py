"""One fetch for many clients: an answer is shared while it streams and for a while after, as Varnish does by default.

Who asks for what is being fetched waits for its head, gets what has come so far, and then what comes. The fetch goes
on when all of them have left. An answer that grows beyond what is kept can be joined no more, and goes on for those who
have it, at the pace of the fastest. Which answers are shared is as observed with Varnish 7.1.1 and its built-in rules;
its grace, and its own answers to conditional and range requests, are not imitated.
"""

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from tricast_proxy.config import ResponseSection
from tricast_proxy.faults import Starts
from tricast_proxy.heads import Fields, RequestHead, ResponseHead
from tricast_proxy.relay import Cut, Source, pour_by_turns

#: Takes the whole answer; returns when it has ended, one way or the other.
Fetch = Callable[[], Awaitable[None]]
#: Runs a fetch, in a task of its own, and does what has to be done with the connection to the server after it.
Keep = Callable[[Fetch], Awaitable[None]]

#: What nobody can join any more runs so far ahead of those who read it.
_AHEAD_BYTES = 2**20
#: One receive.
_PIECE_BYTES = 64 * 2**10
#: So many targets are remembered whose answers are not to be shared, so that nobody waits for the next one in vain.
_MAX_UNSHARED = 10_000

#: For one client alone, or not to be kept (RFC 9111 5.2.2); the built-in rules of Varnish pass all of these.
_UNSHARED = {b"no-store", b"no-cache", b"private"}
_LIFETIME = re.compile(rb'(?:s-maxage|max-age)="?(\d{1,9})"?')


class CoalescerLimits(NamedTuple):
    """How much is kept.

    Attributes:
        all_bytes: of all answers that can be joined. Of the others, those who are slower than the fastest have as much.
        answer_bytes: of one; an event stream has no end.
        answers: how many.
    """

    all_bytes: int = 64 * 2**20
    answer_bytes: int = 8 * 2**20
    answers: int = 1000


DEFAULT_LIMITS = CoalescerLimits()


class _Key(NamedTuple):
    host: bytes
    target: bytes


class _Claim(NamedTuple):
    """Somebody asks a server for what others may be waiting for."""

    request: RequestHead
    is_settled: trio.Event


class SharedSource:
    """A shared answer as one of its clients sees it: a ``Source``. To be closed by whoever has it.

    Attributes:
        head: see ``Source``; a copy of its own, with ``Age``.
        length: see ``Source``; known as well where the whole answer is there.
        is_chunked: see ``Source``.
    """

    def __init__(self, answer: "_Answer", trim: Callable[["_Answer"], None]) -> None:
        self._answer = answer
        self._trim = trim
        self.position = 0
        head = answer.source.head
        self.head = ResponseHead(head.status, head.reason, answer.fields(), head.version)
        self.length = answer.end if answer.is_whole else answer.source.length
        self.is_chunked = answer.source.is_chunked and self.length is None
        answer.readers.add(self)

    @property
    def trailers(self) -> Fields:
        """See ``Source``."""
        return self._answer.source.trailers

    async def receive(self) -> bytes:
        """See ``Source.receive``. Somebody who is far slower than the others is cut off."""
        await trio.lowlevel.checkpoint()
        while (payload := self.receive_now()) is None:
            await self._answer.more.wait()
        return payload

    def receive_now(self) -> bytes | None:
        """See ``Source.receive_now``."""
        answer = self._answer
        if self.position < answer.dropped:
            raise Cut("fell too far behind the others who share the answer")
        if self.position < answer.end:
            at = self.position - answer.dropped
            payload = bytes(answer.body[at : at + _PIECE_BYTES])
            self.position += len(payload)
            self._trim(answer)
            return payload
        if answer.cut is not None:
            raise answer.cut
        return b"" if answer.is_ended else None

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """See ``Source.pour``."""
        return await pour_by_turns(self, take)

    def close(self) -> None:
        """Leaves the answer to the others. Closing twice is no error."""
        self._answer.readers.discard(self)
        self._trim(self._answer)


class _Answer:
    """An answer, what has come of it, and those who read it."""

    def __init__(self, key: _Key, request: RequestHead, source: Source) -> None:
        self.key = key
        self.source = source
        self.varies = {name: request.members(name) for name in source.head.members(b"vary")}
        self.began = trio.current_time()
        self.expires = self.began + _lifetime(source.head)
        self.body = bytearray()
        #: How much of the body was before what is still there.
        self.dropped = 0
        self.is_listed = True
        self.is_ended = False
        self.cut: Cut | None = None
        self.readers: set[SharedSource] = set()
        self.scope = trio.CancelScope()
        #: What readers wait for, and what the fetch does.
        self.more = trio.Event()
        self.room = trio.Event()

    @property
    def end(self) -> int:
        return self.dropped + len(self.body)

    @property
    def is_whole(self) -> bool:
        return self.is_ended and self.cut is None and not self.source.trailers

    @property
    def furthest(self) -> int:
        return max((reader.position for reader in self.readers), default=self.end)

    def suits(self, request: RequestHead) -> bool:
        """Whether it is what this request would get as well (RFC 9111 4.1)."""
        return all(request.members(name) == value for name, value in self.varies.items())

    def fields(self) -> Fields:
        """The fields of its head, with its age (RFC 9111 5.1)."""
        head = self.source.head
        age = int(trio.current_time() - self.began)
        before = head.get(b"age") or b""
        age += int(before) if before.isdigit() and len(before) < 10 else 0
        return [*(field for field in head.fields if field[0].lower() != b"age"), (b"Age", b"%d" % age)]

    def tell_readers(self) -> None:
        self.more.set()
        self.more = trio.Event()


class Coalescer:
    """Answers that are shared, and requests that wait for one of them.

    Args:
        config: how long an answer is kept when it has ended.
        nursery: where fetches run; it outlives all clients.
        limits: how much is kept.
    """

    def __init__(self, config: ResponseSection, nursery: Starts, limits: CoalescerLimits = DEFAULT_LIMITS) -> None:
        self._lifetime = config.cache_ttl
        self._nursery = nursery
        self._limits = limits
        #: Those that can be joined, of which who was joined last comes last.
        self._listed: OrderedDict[_Answer, None] = OrderedDict()
        self._by_key: dict[_Key, list[_Answer]] = {}
        self._claims: dict[_Key, _Claim] = {}
        self._unshared: OrderedDict[_Key, float] = OrderedDict()
        self._listed_bytes = 0
        self._other_bytes = 0

    async def join(self, request: RequestHead) -> SharedSource | None:
        """The answer that somebody else got or is getting; waits for its head where somebody has asked already.

        Where there is none, the caller asks a server, and must then call ``share`` or ``forgo``.
        """
        if not _can_be_shared(request):
            return None
        key = _Key(request.host.lower(), request.target)
        while True:
            answer = self._find(key, request)
            if answer is not None:
                self._listed.move_to_end(answer)
                return SharedSource(answer, self._trim)
            if self._unshared.get(key, 0.0) > trio.current_time():
                return None
            claim = self._claims.get(key)
            if claim is None:
                self._claims[key] = _Claim(request, trio.Event())
                return None
            await claim.is_settled.wait()

    def share(self, request: RequestHead, source: Source, keep: Keep) -> Source:
        """Lets others have the answer to a request that ``join`` had none for.

        Args:
            request: that was asked.
            source: the answer.
            keep: is called with the fetch, in a task of its own.

        Returns:
            A shared source, where the answer is now shared: then ``source`` is no longer the caller's, but this one is
            the caller's to close. Or ``source``, where it is for this client alone.
        """
        key = self._settle(request)
        if key is None:
            return source
        if not self._is_shareable(request, source):
            self._unshared[key] = trio.current_time() + self._lifetime
            self._unshared.move_to_end(key)
            if len(self._unshared) > _MAX_UNSHARED:
                self._unshared.popitem(last=False)
            return source
        self._unshared.pop(key, None)
        answer = _Answer(key, request, source)
        self._listed[answer] = None
        self._by_key.setdefault(key, []).append(answer)
        shared = SharedSource(answer, self._trim)
        self._make_room()
        self._nursery.start_soon(keep, lambda: self._fetch(answer))
        return shared

    def forgo(self, request: RequestHead) -> None:
        """Says that there is no answer to share after all; does nothing where there was one."""
        self._settle(request)

    def _settle(self, request: RequestHead) -> _Key | None:
        """Lets those go on who wait for this request; returns what it asked for, if any could."""
        key = _Key(request.host.lower(), request.target)
        claim = self._claims.get(key)
        if claim is None or claim.request is not request:
            return None
        del self._claims[key]
        claim.is_settled.set()
        return key

    def _is_shareable(self, request: RequestHead, source: Source) -> bool:
        head = source.head
        return (
            head.status == 200
            and head.get(b"set-cookie") is None
            and b"*" not in head.members(b"vary")
            and not {member.partition(b"=")[0] for member in head.members(b"cache-control")} & _UNSHARED
            and b"no-store" not in request.members(b"cache-control")  # RFC 9111 5.2.1.5
            and _lifetime(head) > 0
            and (source.length or 0) <= self._limits.answer_bytes
        )

    def _find(self, key: _Key, request: RequestHead) -> _Answer | None:
        now = trio.current_time()
        for answer in list(self._by_key.get(key, ())):
            if answer.expires <= now:
                self._unlist(answer)
            elif answer.suits(request):
                return answer
        return None

    # Fetches

    async def _fetch(self, answer: _Answer) -> None:
        """Takes the whole answer, or as much of it as somebody wants."""
        cut: Cut | None = Cut("the answer was given up")
        try:
            with answer.scope:
                while payload := await answer.source.receive():
                    await self._add(answer, payload)
                _ = answer.source.trailers  # which the configuration may have none of
                cut = None
        except Cut as broken:
            cut = broken
        finally:
            self._end(answer, cut)

    async def _add(self, answer: _Answer, payload: bytes) -> None:
        answer.body += payload
        self._count(answer, len(payload))
        if answer.end > self._limits.answer_bytes:
            self._unlist(answer)
        self._make_room()
        self._trim(answer)
        answer.tell_readers()
        while not answer.is_listed and answer.end - answer.furthest >= _AHEAD_BYTES:
            answer.room = trio.Event()
            await answer.room.wait()

    def _end(self, answer: _Answer, cut: Cut | None) -> None:
        answer.is_ended = True
        answer.cut = cut
        answer.expires = min(answer.expires, trio.current_time() + self._lifetime)
        if cut is not None:
            self._unlist(answer)
        self._trim(answer)
        answer.tell_readers()

    # Room

    def _make_room(self) -> None:
        """Lets no more be joined than may be kept; of what has ended, who was not joined for longest goes first."""
        limits = self._limits
        while self._listed and (self._listed_bytes > limits.all_bytes or len(self._listed) > limits.answers):
            ended = (answer for answer in self._listed if answer.is_ended)
            self._unlist(next(ended, next(iter(self._listed))))

    def _unlist(self, answer: _Answer) -> None:
        """Lets nobody join it any more."""
        if answer.is_listed:
            self._count(answer, -len(answer.body))
            answer.is_listed = False
            self._count(answer, len(answer.body))
            del self._listed[answer]
            others = self._by_key[answer.key]
            others.remove(answer)
            if not others:
                del self._by_key[answer.key]
            self._trim(answer)

    def _count(self, answer: _Answer, count: int) -> None:
        if answer.is_listed:
            self._listed_bytes += count
        else:
            self._other_bytes += count

    def _trim(self, answer: _Answer) -> None:
        """Drops what nobody will read any more, and ends a fetch that nobody wants."""
        if answer.is_listed:
            return
        limits = self._limits
        allowed = limits.answer_bytes if self._other_bytes <= limits.all_bytes else _AHEAD_BYTES
        last = min((reader.position for reader in answer.readers), default=answer.end)
        count = max(last, answer.furthest - allowed) - answer.dropped
        if count > 0:
            del answer.body[:count]
            answer.dropped += count
            self._count(answer, -count)
        if not answer.readers:
            answer.scope.cancel()
        answer.room.set()


def _can_be_shared(request: RequestHead) -> bool:
    """Whether the answer to a request may be somebody else's as well."""
    personal = (b"cookie", b"authorization", b"range")
    return (
        request.method == b"GET"
        and not request.has_body
        and not request.upgrades
        and all(request.get(name) is None for name in personal)
    )


def _lifetime(head: ResponseHead) -> float:
    """Seconds for which an answer is fresh by its own word (RFC 9111 4.2.1); infinity where it says nothing."""
    members = sorted(head.members(b"cache-control"), reverse=True)  # s-maxage goes before max-age
    matches = (_LIFETIME.fullmatch(member) for member in members)
    return next((float(match[1]) for match in matches if match is not None), float("inf"))
