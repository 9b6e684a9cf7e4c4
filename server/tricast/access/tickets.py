"""Tickets: a short stretch of text that stands for an identity, once and not for long, where a token must not be.

A ticket is sealed: it holds whose it is and until when, encrypted, so that a URL in a log tells nothing, and so that
every process that has the secret can take it. That it is used once takes a memory: see ``Uses``.
"""

import base64
import binascii
import fcntl
import hashlib
import math
import os
import re
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tricast.access.identity import Identity
from tricast.config import AuthSection
from tricast.errors import LimitExceeded, Unauthorized

#: What a ticket is sealed as. Something else that was sealed with the same secret is none.
_PURPOSE = b"tricast ticket 1"
_NONCE_BYTES = 12
_TAG_BYTES = 16
#: A slot: the ticket's nonce, and when it expires. A bucket is what is locked and read at once.
_SLOT = struct.Struct(f"<{_NONCE_BYTES}sd")
_SLOTS = 32
_BUCKET_BYTES = _SLOTS * _SLOT.size
#: A bucket is locked for some microseconds, or as long as somebody who just has it is not given a CPU.
_TRIES = 50
_PAUSE_SECONDS = 0.0005
#: RFC 4648 5, without the padding.
_ALPHABET = re.compile(r"[A-Za-z0-9_-]+")


class NoRoom(Exception):
    """So many tickets are remembered that one more cannot be."""


class Uses(Protocol):
    """What was used, and must not be again."""

    def add(self, ticket: bytes, expires_at: float, now: float) -> bool:
        """Remembers a ticket until it expires; returns False for one that is remembered already.

        Raises:
            NoRoom: it cannot be remembered.
        """
        ...


class OwnUses:
    """What was used in this process.

    Args:
        capacity: how many are remembered at most.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used: set[bytes] = set()
        self._by_end: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._used)

    def add(self, ticket: bytes, expires_at: float, now: float) -> bool:
        """See ``Uses.add``."""
        while self._by_end and self._by_end[0][0] <= now:
            self._used.remove(heappop(self._by_end)[1])
        if ticket in self._used:
            return False
        if len(self._used) >= self._capacity:
            raise NoRoom
        self._used.add(ticket)
        heappush(self._by_end, (expires_at, ticket))
        return True


class SharedUses:
    """What was used in any of the processes that have a piece of memory in common: a table of buckets with slots.

    A bucket is locked while one process looks and writes. The kernel takes the lock back from one that dies.

    Args:
        fd: as ``create`` made it, here or in another process; this object does not own it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buckets = os.fstat(fd).st_size // _BUCKET_BYTES

    @staticmethod
    def create(capacity: int) -> int:
        """Makes the memory for about so many tickets, and returns its descriptor. What is not used takes none."""
        # With twice the room, a bucket is hardly ever full before all of them together are.
        buckets = -(-2 * capacity // _SLOTS)
        fd = os.memfd_create("tricast-tickets")
        os.ftruncate(fd, buckets * _BUCKET_BYTES)
        return fd

    def add(self, ticket: bytes, expires_at: float, now: float) -> bool:
        """See ``Uses.add``."""
        begin = int.from_bytes(ticket[:8]) % self._buckets * _BUCKET_BYTES
        self._lock(begin)
        try:
            slots = list(_SLOT.iter_unpack(os.pread(self._fd, _BUCKET_BYTES, begin)))
            if any(used == ticket for used, _ in slots):
                return False
            free = next((index for index, (_, end) in enumerate(slots) if end <= now), None)
            if free is None:
                raise NoRoom
            os.pwrite(self._fd, _SLOT.pack(ticket, expires_at), begin + free * _SLOT.size)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, _BUCKET_BYTES, begin)
        return True

    def _lock(self, begin: int) -> None:
        # Not for as long as it takes: who has it may have been stopped.
        for _ in range(_TRIES):
            with suppress(BlockingIOError):
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _BUCKET_BYTES, begin)
                return
            time.sleep(_PAUSE_SECONDS)
        raise NoRoom


class _Content(NamedTuple):
    expires_at: float
    identity: Identity


_decoder = msgspec.msgpack.Decoder(_Content)


class Tickets:
    """Issues and redeems tickets.

    Args:
        auth: the configuration; without a secret, one is made that this process alone has.
        uses: what was used before.
        clock: unix seconds.
    """

    def __init__(self, auth: AuthSection, uses: Uses, *, clock: Callable[[], float]) -> None:
        secret = auth.ticket_secret.encode() or os.urandom(32)
        self._cipher = AESGCM(hashlib.sha256(_PURPOSE + secret).digest())
        self._auth = auth
        self._uses = uses
        self._clock = clock

    def issue(self, identity: Identity) -> str:
        """See ``Access.issue_ticket``."""
        until = self._clock() + self._auth.ticket_lifetime
        if identity.expires_at is not None:
            until = min(until, identity.expires_at)
        # 2**32 random nonces are safe with one secret (NIST SP 800-38D 8.3).
        nonce = os.urandom(_NONCE_BYTES)
        content = msgspec.msgpack.encode(_Content(until, identity))
        return base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, content, _PURPOSE)).rstrip(b"=").decode()

    def redeem(self, ticket: str) -> Identity:
        """See ``Access.redeem``."""
        sealed = self._unpack(ticket)
        nonce = sealed[:_NONCE_BYTES]
        try:
            content = _decoder.decode(self._cipher.decrypt(nonce, sealed[_NONCE_BYTES:], _PURPOSE))
        except InvalidTag:
            raise Unauthorized("this server did not issue the ticket", code="ticket-unknown") from None
        now = self._clock()
        if now >= content.expires_at:
            ago = math.ceil(now - content.expires_at)
            raise Unauthorized(f"the ticket expired {ago} s ago", code="ticket-expired")
        if not self._remember(nonce, content.expires_at, now):
            raise Unauthorized("the ticket was used before", code="ticket-used")
        return content.identity

    def _remember(self, nonce: bytes, expires_at: float, now: float) -> bool:
        """Whether it was not used before, which is so no more."""
        try:
            return self._uses.add(nonce, expires_at, now)
        except NoRoom:
            wait = b"%d" % math.ceil(self._auth.ticket_lifetime)
            raise LimitExceeded(
                "auth.max_tickets",
                self._auth.max_tickets,
                status=503,
                close_code=1013,
                headers=((b"retry-after", wait),),
            ) from None

    def _unpack(self, ticket: str) -> bytes:
        """The bytes of a ticket."""
        # The decoder takes the signs of both alphabets of RFC 4648; a ticket is written in one way only.
        is_one = len(ticket) <= self._auth.max_token * 2 and _ALPHABET.fullmatch(ticket) is not None
        try:
            sealed = base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4)) if is_one else b""
        except binascii.Error:
            sealed = b""
        if len(sealed) <= _NONCE_BYTES + _TAG_BYTES:
            raise Unauthorized("this is no ticket", code="ticket-malformed")
        return sealed
