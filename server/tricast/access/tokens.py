"""Tokens: JSON Web Tokens (RFC 7519), each check on its own, and all of them in their order.

Owns what has to be right about a token and what is said of one that is not. Where keys come from is in ``keys.py`` and
``jwks.py``. No message repeats a token, or a part of one that somebody else may not know.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jwt
import msgspec
from msgspec import UNSET, UnsetType

from tricast.access.identity import Identity
from tricast.access.jwks import RemoteKeys
from tricast.access.keys import PUBLIC_ALGORITHMS, Key
from tricast.config import AuthSection
from tricast.errors import LimitExceeded, Unauthorized, Unavailable
from tricast.event import SUBJECT, is_token, is_valid_pattern, shorten

#: The end of the year 9999. What is later is a mistake, such as milliseconds.
_LATEST_DATE = 253402300800
_MAX_TOLD = 100


class Token(NamedTuple):
    """A token that was read, and of which nothing is believed yet; nothing of it is in the representation.

    Attributes:
        algorithm: what its head says that it is signed with.
        key_id: what its head says which key it was; None where it does not say.
        signed: what the signature is of.
        payload: the claims, as JSON.
        signature: the signature.
    """

    algorithm: object
    key_id: str | None
    signed: bytes
    payload: bytes
    signature: bytes

    def __repr__(self) -> str:
        return "Token(…)"


class Claims(msgspec.Struct, frozen=True):
    """What a token says. Claims that are not for this server are left out.

    Attributes:
        sub: whose it is.
        iss: who made it.
        aud: whom it is for.
        exp: unix seconds from which on it is good no more.
        nbf: unix seconds before which it is not good.
        subscribe: patterns of topics.
        publish: the same.
    """

    sub: str | UnsetType = UNSET
    iss: str | UnsetType = UNSET
    aud: str | list[str] | UnsetType = UNSET
    exp: int | float | UnsetType = UNSET
    nbf: int | float | UnsetType = UNSET
    subscribe: str | list[str] = msgspec.field(default_factory=list)
    publish: str | list[str] = msgspec.field(default_factory=list)

    def __repr__(self) -> str:
        return "Claims(…)"


_claims_decoder = msgspec.json.Decoder(Claims)
_signatures = jwt.PyJWS()


class Tokens:
    """Finds out whose a token is.

    A token that was good is known again by its hash, so that it costs one signature however often it comes. That is
    forgotten when the token expires, and when the keys change.

    Args:
        auth: the configuration.
        keys: the keys of the configuration.
        remote: the keys of its JWKS URL, where it has one.
        clock: unix seconds.
    """

    def __init__(
        self, auth: AuthSection, keys: Sequence[Key], remote: RemoteKeys | None, *, clock: Callable[[], float]
    ) -> None:
        self._auth = auth
        self._keys = tuple(keys)
        self._remote = remote
        self._clock = clock
        self._known: dict[bytes, Identity] = {}
        algorithms = {key.algorithm: None for key in keys} | dict.fromkeys(PUBLIC_ALGORITHMS if remote else ())
        #: What a token may be signed with.
        self.algorithms = tuple(algorithms)

    def forget(self) -> None:
        """Checks every token anew from now on: there are other keys."""
        self._known.clear()

    async def identify(self, text: str) -> Identity:
        """Whose token it is, and what it allows.

        Raises:
            Unauthorized: it is not good; the code says which check it was.
            LimitExceeded: it is too long, or grants too many patterns.
            Unavailable: the key it may be signed with cannot be fetched.
        """
        self.check_size(text)
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        known = self._known.get(digest)
        if known is not None:
            self.check_not_over(known)
            return known
        token = self.read(text)
        self.check_algorithm(token)
        await self.check_signature(token)
        claims = self.claims_of(token)
        for check in self.claim_checks:
            check(claims)
        identity = self.identity_of(claims)
        self._remember(digest, identity)
        return identity

    def _remember(self, digest: bytes, identity: Identity) -> None:
        if self._auth.cached_tokens:
            if len(self._known) >= self._auth.cached_tokens:
                del self._known[next(iter(self._known))]
            self._known[digest] = identity

    # The checks, in their order

    def check_size(self, text: str) -> None:
        """Returns if the token is not too long to be looked at.

        Raises:
            LimitExceeded: it is.
        """
        if len(text) > self._auth.max_token:
            raise LimitExceeded("auth.max_token", self._auth.max_token, len(text), status=431)

    def read(self, text: str) -> Token:
        """Takes it apart.

        Raises:
            Unauthorized: it is no token.
        """
        try:
            parts = _signatures.decode_complete(text, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise _malformed(error) from None
        header = parts["header"]
        signed = text.rpartition(".")[0].encode()
        return Token(header.get("alg"), header.get("kid"), signed, parts["payload"], parts["signature"])

    def check_algorithm(self, token: Token) -> None:
        """Returns if there are keys for what the token says that it is signed with.

        Raises:
            Unauthorized: there are none, nor will there be.
        """
        if token.algorithm in self.algorithms:
            return
        said = shorten(token.algorithm) if isinstance(token.algorithm, str) else "nothing that has a name"
        raise Unauthorized(
            f"the token says that it is signed with {said}, which this server does not take", code="token-algorithm"
        )

    async def check_signature(self, token: Token) -> None:
        """Returns if one of the keys has signed it. Fetches keys where that may help, and it is time.

        Raises:
            Unauthorized: there is no such key, or it has not signed it.
            Unavailable: there may be such a key, which cannot be fetched.
        """
        problem = self._problem_with_signature(token)
        remote = self._remote_for(token)
        if remote is not None and problem is not None and problem.code == "token-key-unknown":
            await remote.refresh()
            problem = self._problem_with_signature(token)
            if problem is not None and remote.is_stale:
                raise Unavailable(
                    "the keys with which tokens are checked cannot be fetched",
                    code="keys-unavailable",
                    retry_after=self._auth.jwks_cooldown,
                )
        if problem is not None:
            raise problem

    def _problem_with_signature(self, token: Token) -> Unauthorized | None:
        keys, is_named = self.keys_for(token)
        if any(key.has_signed(token.signed, token.signature) for key in keys):
            return None
        remote = self._remote_for(token)
        # Another key than these, where there may be one that was not fetched yet.
        may_be_another = remote is not None and not is_named and (token.key_id is not None or remote.is_stale)
        if keys and not may_be_another:
            return Unauthorized("the token was not signed with the key of this server", code="token-signature")
        named = "" if token.key_id is None else f" with the id {shorten(token.key_id)}"
        return Unauthorized(f"this server has no key{named} for {token.algorithm}", code="token-key-unknown")

    def _remote_for(self, token: Token) -> RemoteKeys | None:
        """Where there may be more keys for it."""
        return self._remote if token.algorithm in PUBLIC_ALGORITHMS else None

    def keys_for(self, token: Token) -> tuple[Sequence[Key], bool]:
        """The keys that may have signed it, and whether the token says that it was one of these."""
        remote = self._remote.keys if self._remote is not None else ()
        keys = [key for key in (*self._keys, *remote) if key.algorithm == token.algorithm]
        if token.key_id is None:
            return keys, False
        named = [key for key in keys if key.id == token.key_id]
        return (named, True) if named else ([key for key in keys if not key.id], False)

    def claims_of(self, token: Token) -> Claims:
        """What it says.

        Raises:
            Unauthorized: it is not written as RFC 7519 4.1 has it.
        """
        try:
            return _claims_decoder.decode(token.payload)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            why = "they are nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise Unauthorized(f"the claims of the token cannot be read: {why}", code="token-claims") from None

    @property
    def claim_checks(self) -> tuple[Callable[[Claims], None], ...]:
        """The checks of what it says; each raises ``Unauthorized``."""
        return self.check_not_expired, self.check_begun, self.check_issuer, self.check_audience

    def check_not_expired(self, claims: Claims) -> None:
        """Returns if the token is still good (RFC 7519 4.1.4)."""
        if claims.exp is UNSET:
            if self._auth.require_exp:
                raise Unauthorized("the token has no exp, and has to expire", code="token-claims")
            return
        self._check_not_over(_date("exp", claims.exp))

    def check_not_over(self, identity: Identity) -> None:
        """Returns if that who was identified is so still.

        Raises:
            Unauthorized: the token has expired since.
        """
        if identity.expires_at is not None and identity.is_over(self._clock()):
            self._check_not_over(identity.expires_at - self._auth.leeway)

    def _check_not_over(self, exp: float) -> None:
        ago = self._clock() - exp
        if ago >= self._auth.leeway:
            raise Unauthorized(f"the token expired {_in_seconds(ago)} ago", code="token-expired")

    def check_begun(self, claims: Claims) -> None:
        """Returns if the token is good already (RFC 7519 4.1.5)."""
        if claims.nbf is UNSET:
            return
        ahead = _date("nbf", claims.nbf) - self._clock()
        if ahead > self._auth.leeway:
            raise Unauthorized(f"the token is not good before {_in_seconds(ahead)} from now", code="token-not-yet")

    def check_issuer(self, claims: Claims) -> None:
        """Returns if the token is of an issuer that is trusted (RFC 7519 4.1.1)."""
        if self._auth.issuer and claims.iss not in self._auth.issuer:
            found = "has no iss" if claims.iss is UNSET else "is of another issuer"
            raise Unauthorized(f"the token {found}", code="token-issuer")

    def check_audience(self, claims: Claims) -> None:
        """Returns if the token is for this server (RFC 7519 4.1.3)."""
        wanted = self._auth.audience
        if claims.aud is UNSET:
            if wanted:
                raise Unauthorized("the token has no aud", code="token-audience")
            return
        found = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        if not set(found) & set(wanted):
            raise Unauthorized("the token is for another audience", code="token-audience")

    def identity_of(self, claims: Claims) -> Identity:
        """Who that is, and what that one may do.

        Args:
            claims: checked.

        Raises:
            Unauthorized: what the token grants is no pattern.
            LimitExceeded: there are too many.
        """
        subject = None if claims.sub is UNSET else claims.sub
        if subject == "":
            raise Unauthorized("the token has an empty sub", code="token-claims")
        return Identity(
            "" if subject is None else f"sub:{subject}",
            subject,
            self._patterns("subscribe", claims.subscribe, subject),
            self._patterns("publish", claims.publish, subject),
            None if claims.exp is UNSET else claims.exp + self._auth.leeway,
        )

    def _patterns(self, claim: str, patterns: str | list[str], subject: str | None) -> tuple[str, ...]:
        """The patterns of a claim, for the subject."""
        if isinstance(patterns, str):
            patterns = [patterns]
        if len(patterns) > self._auth.max_patterns:
            raise LimitExceeded("auth.max_patterns", self._auth.max_patterns, len(patterns), status=431)
        for pattern in patterns:
            if not is_valid_pattern(pattern):
                raise Unauthorized(
                    f"the token's {claim} has what is no topic or pattern: {shorten(pattern)}", code="token-claims"
                )
        # A subject such as "*" or "a.b" would reach what is not its own.
        is_part = subject is not None and is_token(subject)
        return tuple(
            pattern.replace(SUBJECT, subject or "") for pattern in patterns if is_part or SUBJECT not in pattern
        )


def _malformed(error: Exception) -> Unauthorized:
    # What PyJWT says of the form is for whoever made it; some of the rest is for who called PyJWT.
    why = str(error)[:_MAX_TOLD]
    is_of_the_form = isinstance(error, jwt.DecodeError) and not isinstance(error.__cause__, UnicodeDecodeError)
    if not why.startswith(("Invalid ", "Not enough ")) or not is_of_the_form:
        why = "its head is not as RFC 7515 has it"
    return Unauthorized(f"this is no JSON Web Token: {why}", code="token-malformed")


def _date(claim: str, value: float) -> float:
    if not -_LATEST_DATE < value < _LATEST_DATE or not math.isfinite(value):
        raise Unauthorized(f"the token's {claim} is no date in seconds", code="token-claims")
    return value


def _in_seconds(seconds: float) -> str:
    return f"{math.ceil(seconds)} s"
