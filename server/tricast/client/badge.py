"""What a client shows with every request to say who it is."""

import re
from collections.abc import Awaitable, Callable

from tricast.client.failures import ClientError

#: A token, or what finds one whenever a connection is made: tokens end.
Token = str | Callable[[], Awaitable[str]]

_UNAUTHORIZED = 401
#: What a field of a request may hold without quoting or folding (RFC 9110 5.5).
_VISIBLE = re.compile(r"[!-~]+")


class Badge:
    """A token or an API key; neither is in its representation.

    Args:
        token: a token; empty for none.
        api_key: an API key; empty for none.
    """

    def __init__(self, token: Token = "", api_key: str = "") -> None:
        self._token = token
        self._api_key = api_key
        self._shown = ""

    async def headers(self) -> list[tuple[str, str]]:
        """The headers to be added to a request.

        Raises:
            ClientError: what is to be shown cannot be in a header.
        """
        self._shown = await self._find_token()
        shown = [("Authorization", "Bearer ", self._shown), ("X-API-Key", "", self._api_key)]
        return [(name, prefix + _checked(secret)) for name, prefix, secret in shown if secret]

    async def may_be_renewed(self, refusal: ClientError) -> bool:
        """Whether it was refused for what was shown, and there is something newer to show."""
        return refusal.status == _UNAUTHORIZED and await self._find_token() != self._shown

    async def _find_token(self) -> str:
        return self._token if isinstance(self._token, str) else await self._token()


def _checked(secret: str) -> str:
    if _VISIBLE.fullmatch(secret) is None:
        raise ClientError("a token or an API key is one word of visible ASCII characters")
    return secret
