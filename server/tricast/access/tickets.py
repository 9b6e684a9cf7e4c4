"""Tickets: a short stretch of text that stands for an identity, once and not for long, where a token must not be.

A ticket is sealed: it holds whose it is and until when, encrypted, so that a URL in a log tells nothing, and so that
every process that has the secret can take it. That it is used once takes a memory: see ``uses.py``.
"""

import base64
import binascii
import hashlib
import math
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tricast.access import api_keys
from tricast.access.identity import Identity
from tricast.access.uses import NONCE_BYTES, NoRoom, Uses
from tricast.config import AuthSection
from tricast.errors import LimitExceeded, Unauthorized

#: What a ticket begins with: what begins so is in no log, wherever in a URL it was put.
PREFIX = api_keys.PREFIX + "ticket_"
#: What a ticket is sealed as. Something else that was sealed with the same secret is none.
_PURPOSE = b"tricast ticket 1"
_TAG_BYTES = 16
#: RFC 4648 5, without the padding.
_ALPHABET = re.compile(r"[A-Za-z0-9_-]+")


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
        nonce = os.urandom(NONCE_BYTES)
        content = msgspec.msgpack.encode(_Content(until, identity))
        sealed = nonce + self._cipher.encrypt(nonce, content, _PURPOSE)
        return PREFIX + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def redeem(self, ticket: str) -> Identity:
        """See ``Access.redeem``."""
        sealed = self._unpack(ticket)
        nonce = sealed[:NONCE_BYTES]
        try:
            content = _decoder.decode(self._cipher.decrypt(nonce, sealed[NONCE_BYTES:], _PURPOSE))
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
        text = ticket.removeprefix(PREFIX)
        # The decoder takes the signs of both alphabets of RFC 4648; a ticket is written in one way only.
        is_one = text != ticket and len(text) <= self._auth.max_token * 2 and _ALPHABET.fullmatch(text) is not None
        try:
            sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if is_one else b""
        except binascii.Error:
            sealed = b""
        if len(sealed) <= NONCE_BYTES + _TAG_BYTES:
            raise Unauthorized("this is no ticket", code="ticket-malformed")
        return sealed
