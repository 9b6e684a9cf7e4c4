"""Who is asking, as everything behind the door sees it."""

from typing import NamedTuple


class Identity(NamedTuple):
    """Who is asking, and what that one may do.

    Attributes:
        account: for whom limits count this: ``sub:`` with the subject, ``key:`` with the API key's name,
            ``cert:`` with the name in a client certificate; empty for somebody unknown, who is counted by address.
        subject: the token's ``sub``, or None.
        subscribe: patterns of topics that may be subscribed to.
        publish: patterns of topics that may be published to.
        expires_at: the unix seconds from which on this is nobody any more, the leeway added; None for never.
        is_anonymous: whether nobody said who it is, where that matters.
    """

    account: str
    subject: str | None
    subscribe: tuple[str, ...]
    publish: tuple[str, ...]
    expires_at: float | None = None
    is_anonymous: bool = False

    def is_over(self, now: float) -> bool:
        """Whether this is nobody any more, at these unix seconds."""
        return self.expires_at is not None and now >= self.expires_at


class Certified(NamedTuple):
    """Who somebody is by a client certificate that one of ``tls.client_ca`` vouches for.

    Attributes:
        name: the subject's common name, or else the first of its alternative names.
        expires_at: the unix seconds from which on it is none any more.
    """

    name: str
    expires_at: float


#: Everybody, where nobody is asked who they are.
ANYBODY = Identity("", None, (">",), (">",))


def identity_of(certified: Certified, anonymous: Identity) -> Identity:
    """Who shows a client certificate, and nothing else: may publish to every topic, and subscribe as everybody may."""
    return Identity(f"cert:{certified.name}", None, anonymous.subscribe, (">",), certified.expires_at)
