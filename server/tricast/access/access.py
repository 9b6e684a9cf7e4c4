"""Who may do what, as the rest of the server asks it.

How credentials are checked is in ``tokens.py``, ``api_keys.py`` and ``tickets.py``.
"""
# ruff: noqa: PLC0415 - what needs cryptography, 9 MB of a process, is imported where access control is on.

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tricast.access.api_keys import PREFIX, ApiKeys
from tricast.access.identity import ANYBODY, Identity
from tricast.access.uses import OwnUses, Uses
from tricast.config import AuthSection
from tricast.errors import Forbidden, Unauthorized
from tricast.event import covers, shorten
from tricast.logs import Logger

if TYPE_CHECKING:
    from tricast.access.jwks import Fetch, RemoteKeys
    from tricast.access.tickets import Tickets
    from tricast.access.tokens import Tokens

#: So many patterns are told to who asked for what none of them covers.
_MAX_TOLD = 5
#: So many answers are remembered to whether patterns cover a name.
_REMEMBERED = 4096
#: Longer names are looked at before anybody says that they are too long, and would be a lot of memory.
_MAX_REMEMBERED_CHARS = 256


class Credentials(NamedTuple):
    """What a client shows to say who it is; none of it is in the representation.

    Attributes:
        token: a JWT, or an API key as ``tricast token key`` makes them; "" for none.
        api_key: an API key; "" for none. It does not count where there is a token.
    """

    token: str = ""
    api_key: str = ""

    def __repr__(self) -> str:
        return f"Credentials({'…' if self.token else ''}, {'…' if self.api_key else ''})"


class Access:
    """Who may do what.

    Args:
        auth: the configuration.
        clock: unix seconds.
        logger: told of keys that are fetched, or cannot be.
        uses: tickets that were used, where several processes have to know; the default is for this one alone.
        fetch: how to fetch what is at the JWKS URL; the default is in a thread.

    Attributes:
        is_on: whether anybody is asked who they are; where not, everybody may do everything.
        anonymous: who shows nothing, and what that one may do.
        remote: the keys of the JWKS URL; None where there is none.
        api_keys: the API keys.

    Raises:
        ConfigError: a key cannot be read, or cannot be used with its algorithm.
    """

    def __init__(
        self,
        auth: AuthSection,
        *,
        clock: Callable[[], float],
        logger: Logger,
        uses: Uses | None = None,
        fetch: "Fetch | None" = None,
    ) -> None:
        self.is_on = auth.is_on
        self.anonymous = ANYBODY
        if self.is_on:
            self.anonymous = Identity("", None, auth.anonymous_subscribe, auth.anonymous_publish, is_anonymous=True)
        self._auth = auth
        self._clock = clock
        self._uses = OwnUses(auth.max_tickets) if uses is None else uses
        self.remote = self._remote_keys(fetch, logger) if auth.jwks_url else None
        self.api_keys = ApiKeys(auth.api_key)
        # Publishers mostly publish to the same topics again.
        self._remembering = lru_cache(_REMEMBERED)(_is_covered)
        if self.is_on:
            _ = self.tokens  # keys that cannot be used are told of now

    @cached_property
    def tokens(self) -> "Tokens":
        """The checks of tokens."""
        from tricast.access.keys import load_keys
        from tricast.access.tokens import Tokens

        return Tokens(self._auth, load_keys(self._auth), self.remote, clock=self._clock)

    def _remote_keys(self, fetch: "Fetch | None", logger: Logger) -> "RemoteKeys":
        from tricast.access.jwks import RemoteKeys, fetching_in_threads

        fetch = fetching_in_threads() if fetch is None else fetch
        return RemoteKeys(self._auth, logger=logger, fetch=fetch, changed=self._forget_tokens)

    @cached_property
    def _tickets(self) -> "Tickets":
        from tricast.access.tickets import Tickets

        return Tickets(self._auth, self._uses, clock=self._clock)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """The scope in which keys are fetched and kept fresh. Without it, there are those of the configuration."""
        if self.remote is None:
            yield
        else:
            async with self.remote.open():
                yield

    async def identify(self, credentials: Credentials) -> Identity:
        """Who shows these; ``anonymous`` for who shows none, and for everybody where access is open to all.

        Cancelling it while it waits for keys leaves everything as it was.

        Raises:
            Unauthorized: they are not good; the code says which check it was.
            LimitExceeded: the token is too long, or grants too many patterns.
            Unavailable: the keys to check it with could not be fetched.
        """
        if not self.is_on:
            return ANYBODY
        if credentials.token.startswith(PREFIX):
            return self.api_keys.identify(credentials.token)
        if credentials.token:
            return await self.tokens.identify(credentials.token)
        if credentials.api_key:
            return self.api_keys.identify(credentials.api_key)
        return self.anonymous

    def check_subscribe(self, identity: Identity, names: Iterable[str]) -> None:
        """Returns if the identity may subscribe to all of these topics and patterns.

        Each has to be covered by one of its patterns, or of those for everybody, as a whole: what two of them cover
        together is not looked for.

        Raises:
            Forbidden: it may not.
            Unauthorized: nobody said who they are, and not everybody may; or what was shown for it is over by now.
        """
        if identity is ANYBODY:
            return
        self._check_not_over(identity)
        for name in names:
            if not self._covers(identity.subscribe, name) and not self._covers(self.anonymous.subscribe, name):
                raise _refusal(identity, "subscribe to", "subscribe", identity.subscribe, name)

    def check_publish(self, identity: Identity, topic: str) -> None:
        """Returns if the identity may publish to the topic.

        Raises:
            Forbidden: it may not.
            Unauthorized: nobody said who they are, and not everybody may; or what was shown for it is over by now.
        """
        if identity is ANYBODY:
            return
        # A body may take its time, and a connection that is being ended for this may still be read from.
        self._check_not_over(identity)
        if not self._covers(identity.publish, topic) and not self._covers(self.anonymous.publish, topic):
            raise _refusal(identity, "publish to", "publish", identity.publish, topic)

    def issue_ticket(self, identity: Identity) -> str:
        """A ticket for the identity, made of characters that a URL may hold as they are.

        It is good once, for ``auth.ticket_lifetime`` and not longer than the identity.
        """
        return self._tickets.issue(identity)

    def redeem(self, ticket: str) -> Identity:
        """Whose ticket it is; from then on it is good for nothing.

        Raises:
            Unauthorized: it is none of this server, has expired, or was used before.
            LimitExceeded: so many were used just now that no more can be remembered.
        """
        return self._tickets.redeem(ticket)

    def _check_not_over(self, identity: Identity) -> None:
        # Who has a certificate is somebody also where access control is off, and needs no checks of tokens.
        if identity.is_over(self._clock()):
            self.tokens.check_not_over(identity)

    def _covers(self, patterns: tuple[str, ...], name: str) -> bool:
        return (self._remembering if len(name) <= _MAX_REMEMBERED_CHARS else _is_covered)(patterns, name)

    def _forget_tokens(self) -> None:
        self.tokens.forget()


def _is_covered(patterns: tuple[str, ...], name: str) -> bool:
    return any(covers(pattern, name) for pattern in patterns)


def _refusal(
    identity: Identity, doing: str, claim: str, patterns: Sequence[str], name: str
) -> Unauthorized | Forbidden:
    if identity.is_anonymous:
        return Unauthorized(f"not everybody may {doing} {shorten(name)}: show a token", code="token-missing")
    # Who holds a token can read in it what it grants.
    granted = ", ".join(map(shorten, patterns[:_MAX_TOLD])) or "nothing"
    more = ", …" if len(patterns) > _MAX_TOLD else ""
    return Forbidden(
        f"you may not {doing} {shorten(name)}: {claim} grants {granted}{more}, which does not cover it",
        code="topic-not-allowed",
    )
