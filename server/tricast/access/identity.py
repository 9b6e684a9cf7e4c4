"""Who is asking, as everything behind the door sees it."""

from typing import NamedTuple


class Identity(NamedTuple):
    """Who is asking, and what that one may do.

    Attributes:
        account: for whom limits count this: ``sub:`` with the subject, ``key:`` with the API key's name; empty for
            somebody unknown, who is counted by address.
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


#: Everybody, where nobody is asked who they are.
ANYBODY = Identity("", None, (">",), (">",))
