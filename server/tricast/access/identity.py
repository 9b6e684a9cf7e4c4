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
        expires_at: unix seconds; None for never.
    """

    account: str
    subject: str | None
    subscribe: tuple[str, ...]
    publish: tuple[str, ...]
    expires_at: float | None = None


#: Everybody, where nobody is asked who they are.
ANYBODY = Identity("", None, (">",), (">",))
