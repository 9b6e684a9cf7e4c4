"""Tickets: a short stretch of text that stands for an identity, once and not for long, where a token must not be.

A ticket is sealed: it holds whose it is and until when, encrypted, so that a URL in a log tells nothing, and so that
every process that has the secret can take it. That it is used once takes a memory: see ``Uses``.
"""

import base64
import binascii
import hashlib
import math
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tricast.access.identity import Identity
from tricast.config import AuthSection
from tricast.errors import LimitExceeded, Unauthorized, Unavailable

#: What a ticket is sealed as. Something else that was sealed with the same secret is none.
_PURPOSE = b"tricast ticket 1"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_FILE = re.compile(r"ticket-([0-9]{1,12})-[0-9a-f]{24}")


class Uses(Protocol):
    """What was used, and must not be again."""

    def __len__(self) -> int:
        """How many are remembered here."""
        ...

    def add(self, ticket: bytes, expires_at: float) -> bool:
        """Remembers a ticket until it expires; returns False for one that is remembered already."""
        ...

    def forget(self, now: float) -> None:
        """Forgets those that have expired."""
        ...


class OwnUses:
    """What was used in this process."""

    def __init__(self) -> None:
        self._used: set[bytes] = set()
        self._by_end: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._used)

    def add(self, ticket: bytes, expires_at: float) -> bool:
        """See ``Uses.add``."""
        if ticket in self._used:
            return False
        self._used.add(ticket)
        heappush(self._by_end, (expires_at, ticket))
        return True

    def forget(self, now: float) -> None:
        """See ``Uses.forget``."""
        while self._by_end and self._by_end[0][0] <= now:
            self._used.remove(heappop(self._by_end)[1])


class SharedUses:
    """What was used in any of the processes that share a folder: an empty file for each.

    That a name can be taken by one process alone needs no lock, which somebody who died might hold.

    Args:
        folder: there, and nobody else's.
        now: unix seconds; what is left there from before is cleared away.
    """

    def __init__(self, folder: Path, now: float) -> None:
        self._folder = folder
        self._by_end: list[tuple[float, str]] = []
        for name in os.listdir(folder):  # noqa: PTH208 - names are what is wanted
            match = _FILE.fullmatch(name)
            if match is not None and int(match[1]) <= now:
                self._remove(name)

    def __len__(self) -> int:
        return len(self._by_end)

    def add(self, ticket: bytes, expires_at: float) -> bool:
        """See ``Uses.add``.

        Raises:
            Unavailable: the folder cannot be written to.
        """
        name = f"ticket-{math.ceil(expires_at)}-{ticket.hex()}"
        try:
            # Unlike open this takes no descriptor, of which there may be none just when many come back.
            os.mknod(self._folder / name, stat.S_IFREG | stat.S_IRUSR | stat.S_IWUSR)
        except FileExistsError:
            return False
        except OSError as error:
            why = error.strerror or str(error)
            raise Unavailable(f"tickets cannot be taken: {why}", code="tickets-unavailable") from None
        heappush(self._by_end, (math.ceil(expires_at), name))
        return True

    def forget(self, now: float) -> None:
        """See ``Uses.forget``."""
        while self._by_end and self._by_end[0][0] <= now:
            self._remove(heappop(self._by_end)[1])

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            (self._folder / name).unlink()


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
        self._uses.forget(now)
        if len(self._uses) >= self._auth.max_tickets:
            wait = b"%d" % math.ceil(self._auth.ticket_lifetime)
            raise LimitExceeded(
                "auth.max_tickets",
                self._auth.max_tickets,
                status=503,
                close_code=1013,
                headers=((b"retry-after", wait),),
            )
        if not self._uses.add(nonce, content.expires_at):
            raise Unauthorized("the ticket was used before", code="ticket-used")
        return content.identity

    def _unpack(self, ticket: str) -> bytes:
        """The bytes of a ticket."""
        is_short = len(ticket) <= self._auth.max_token * 2
        try:
            sealed = base64.b64decode(ticket + "=" * (-len(ticket) % 4), b"-_", validate=True) if is_short else b""
        except (binascii.Error, ValueError):  # ValueError: not even ASCII
            sealed = b""
        if len(sealed) <= _NONCE_BYTES + _TAG_BYTES:
            raise Unauthorized("this is no ticket", code="ticket-malformed")
        return sealed
