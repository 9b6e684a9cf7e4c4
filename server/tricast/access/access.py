"""Who may do what, as the rest of the server asks it. How tokens are checked is in ``tokens.py``."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from tricast.access.identity import ANYBODY, Identity
from tricast.config import AuthSection
from tricast.errors import Forbidden, Unauthorized
from tricast.event import covers
from tricast.logs import Logger


class Credentials(NamedTuple):
    """What a client shows to say who it is; none of it is in the representation.

    Attributes:
        token: a JWT.
        api_key: an API key.
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
        logger: told of keys that cannot be fetched.

    Raises:
        ConfigError: a key cannot be read, or cannot be used with its algorithm.
    """

    def __init__(self, auth: AuthSection, *, clock: Callable[[], float], logger: Logger) -> None:
        self.is_on = auth.is_on
        #: Who shows nothing.
        self.anonymous = ANYBODY
        if self.is_on:
            self.anonymous = Identity("", None, auth.anonymous_subscribe, auth.anonymous_publish, is_anonymous=True)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """The scope in which keys are fetched and kept fresh."""
        yield

    async def identify(self, credentials: Credentials) -> Identity:
        """Who shows these; ``anonymous`` for who shows none, and for everybody where access is open to all.

        Raises:
            Unauthorized: they are not good, and why.
            LimitExceeded: the token is too long, or grants too many patterns.
            Unavailable: the keys to check it with could not be fetched.
        """
        raise NotImplementedError

    def check_subscribe(self, identity: Identity, names: Sequence[str]) -> None:
        """Returns if the identity may subscribe to all of these topics and patterns.

        Raises:
            Forbidden: it may not.
            Unauthorized: nobody said who they are, and not everybody may.
        """
        for name in names:
            self._check(identity, "subscribe", identity.subscribe, name)

    def check_publish(self, identity: Identity, topic: str) -> None:
        """Returns if the identity may publish to the topic.

        Raises:
            Forbidden: it may not.
            Unauthorized: nobody said who they are, and not everybody may.
        """
        self._check(identity, "publish", identity.publish, topic)

    def _check(self, identity: Identity, doing: str, patterns: Sequence[str], name: str) -> None:
        if any(covers(pattern, name) for pattern in patterns):
            return
        if identity.is_anonymous:
            raise Unauthorized("…", code="token-missing")
        raise Forbidden("…", code="topic-not-allowed")

    def issue_ticket(self, identity: Identity) -> str:
        """A ticket for the identity: good once, for ``auth.ticket_lifetime``, wherever a query takes one.

        Raises:
            LimitExceeded: the identity grants so much that the ticket would not fit into a URL.
        """
        raise NotImplementedError

    def redeem(self, ticket: str) -> Identity:
        """Whose ticket it is; from then on it is good for nothing.

        Raises:
            Unauthorized: it is none of ours, has expired, or was used before.
            LimitExceeded: so many were used just now that no more can be remembered.
        """
        raise NotImplementedError
