"""What each check says of a token, for the person who wonders why it is refused.

Tells more than a server tells its clients, such as what was expected: who asks has the configuration.
"""

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from tricast.access.access import Access, Credentials
from tricast.access.api_keys import PREFIX
from tricast.access.identity import Identity
from tricast.access.tokens import Claims, Token
from tricast.config import AuthSection
from tricast.errors import RemoteProtocolError, Unavailable
from tricast.event import shorten


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "ok"
    FAILED = "FAILED"
    SKIPPED = "-"  # there was nothing to check, since another failed


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        check: its name.
        outcome: how it ended.
        says: what it found.
        code: what a server calls the failure; "" where there is none.
    """

    check: str
    outcome: Outcome
    says: str
    code: str = ""


class Explanation:
    """All checks of one token, or API key, in their order.

    Args:
        auth: the configuration.
        access: made from it, and open.
        clock: unix seconds.

    Attributes:
        findings: of each check.
        identity: who that is, as far as everything it takes to tell could be read; not to be believed.
    """

    def __init__(self, auth: AuthSection, access: Access, clock: Callable[[], float]) -> None:
        self._auth = auth
        self._access = access
        self._clock = clock
        self.findings: list[Finding] = []
        self.identity: Identity | None = None

    @property
    def failure(self) -> Finding | None:
        """What a server would answer with: the first that failed."""
        return next((finding for finding in self.findings if finding.outcome is Outcome.FAILED), None)

    async def explain(self, text: str) -> None:
        """Makes all checks that can be made."""
        if text.startswith(PREFIX):
            self.identity = await self._identify(text)
            return
        tokens = self._access.tokens
        if not self._check("size", lambda: tokens.check_size(text), f"{len(text)} of {self._auth.max_token} bytes"):
            return
        token = self._read(text)
        if token is None:
            return
        accepted = ", ".join(tokens.algorithms) or "none, for there are no keys"
        said = shorten(str(token.algorithm))
        is_known = self._check("algorithm", lambda: tokens.check_algorithm(token), said, f"accepted: {accepted}")
        if is_known:
            await self._check_signature(token)
        else:
            self._skip("signature")
        claims = self._claims(token)
        if claims is not None:
            self._check_claims(claims)

    def check_topic(self, doing: str, topic: str) -> None:
        """Whether that who was identified may do that with the topic.

        Args:
            doing: ``subscribe`` or ``publish``.
            topic: a topic, or a pattern where it is to be subscribed to.
        """
        name = f"{doing} {topic}"
        if self.identity is None:
            self._skip(name)
            return
        identity = self.identity._replace(expires_at=None)  # which was told of exp
        if doing == "subscribe":
            self._check(name, lambda: self._access.check_subscribe(identity, [topic]))
        else:
            self._check(name, lambda: self._access.check_publish(identity, topic))

    async def _identify(self, text: str) -> Identity | None:
        found: list[Identity] = []

        async def identify() -> None:
            found.append(await self._access.identify(Credentials(api_key=text)))

        if await self._check_async("API key", identify, lambda: found[0].account.removeprefix("key:")):
            self._tell_grants(found[0])
        return found[0] if found else None

    def _read(self, text: str) -> Token | None:
        read: list[Token] = []
        self._check("structure", lambda: read.append(self._access.tokens.read(text)))
        return read[0] if read else None

    async def _check_signature(self, token: Token) -> None:
        named = "no kid" if token.key_id is None else f"kid {shorten(token.key_id)}"

        def by() -> str:
            keys, _ = self._access.tokens.keys_for(token)
            return f"{named}; {len(keys)} {'key' if len(keys) == 1 else 'keys'} to try"

        await self._check_async("signature", lambda: self._access.tokens.check_signature(token), by, named)

    def _claims(self, token: Token) -> Claims | None:
        read: list[Claims] = []
        self._check("claims", lambda: read.append(self._access.tokens.claims_of(token)))
        return read[0] if read else None

    def _check_claims(self, claims: Claims) -> None:
        tokens, auth = self._access.tokens, self._auth
        leeway = f"leeway {auth.leeway:g} s"
        self._check("exp", lambda: tokens.check_not_expired(claims), self._moment(claims.exp), leeway)
        self._check("nbf", lambda: tokens.check_begun(claims), self._moment(claims.nbf), leeway)
        self._check("iss", lambda: tokens.check_issuer(claims), _said(claims.iss), f"expected: {_any_of(auth.issuer)}")
        wanted = _any_of(auth.audience, none="no aud")
        self._check("aud", lambda: tokens.check_audience(claims), _said(claims.aud), f"expected: {wanted}")
        found: list[Identity] = []
        if self._check("sub", lambda: found.append(tokens.identity_of(claims)), _said(claims.sub)):
            self.identity = found[0]
            self._tell_grants(self.identity)
            granted = [[each] if isinstance(each, str) else each for each in (claims.subscribe, claims.publish)]
            dropped = sum(map(len, granted)) - len(self.identity.subscribe) - len(self.identity.publish)
            if dropped:
                says = f"patterns with {{sub}} that cover nothing: {dropped}; the subject is no single word of a topic"
                self.findings.append(Finding("{sub}", Outcome.PASSED, says))

    def _tell_grants(self, identity: Identity) -> None:
        for name, patterns in (("subscribe", identity.subscribe), ("publish", identity.publish)):
            says = ", ".join(map(shorten, patterns)) or "nothing"
            self.findings.append(Finding(name, Outcome.PASSED, says))

    def _check(self, name: str, check: Callable[[], None], found: str = "", expected: str = "") -> bool:
        try:
            check()
        except RemoteProtocolError as error:
            self._tell_failure(name, error, found, expected)
            return False
        self.findings.append(Finding(name, Outcome.PASSED, found))
        return True

    async def _check_async(
        self, name: str, check: Callable[[], Awaitable[None]], passed: Callable[[], str], found: str = ""
    ) -> bool:
        try:
            await check()
        except (RemoteProtocolError, Unavailable) as error:
            self._tell_failure(name, error, found, "")
            return False
        self.findings.append(Finding(name, Outcome.PASSED, passed()))
        return True

    def _tell_failure(self, name: str, error: RemoteProtocolError | Unavailable, found: str, expected: str) -> None:
        about = "; ".join(filter(None, (f"found: {found}" if found else "", expected)))
        says = f"{error.detail} ({about})" if about else error.detail
        self.findings.append(Finding(name, Outcome.FAILED, says, error.reason))

    def _skip(self, name: str) -> None:
        self.findings.append(Finding(name, Outcome.SKIPPED, "not checked"))

    def _moment(self, value: float | UnsetType) -> str:
        """A date, and how far it is from now."""
        if value is UNSET:
            return "not given"
        try:
            written = datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")
        except (OverflowError, ValueError, OSError):
            return "no date"
        distance = value - self._clock()
        return f"{written}, {math.ceil(abs(distance))} s {'from now' if distance > 0 else 'ago'}"


def _said(value: str | list[str] | UnsetType) -> str:
    if value is UNSET:
        return "not given"
    return _any_of([value] if isinstance(value, str) else value, none="an empty list")


def _any_of(names: list[str] | tuple[str, ...], *, none: str = "any") -> str:
    return " or ".join(map(shorten, names)) or none
