"""What of a request target may be logged: URLs are read by more people than may use what is in them."""

import re
from urllib.parse import unquote_plus

#: The parameters of a query by which somebody says who it is; the second as RFC 6750 2.3 has it.
TICKET = "ticket"
QUERY_TOKEN = "access_token"  # noqa: S105
#: Also where they mean nothing: what was put there by mistake is no less secret.
_SECRET_PARAMETERS = frozenset({TICKET, QUERY_TOKEN, "token"})
_HIDDEN = b"..."
#: What is secret by its looks, wherever it was put: a JWT, whose head is a JSON object in Base64 (RFC 7519 3.1), an API
#: key, and a ticket. It is looked for where a word begins, and not within one again and again.
_SECRET = re.compile(
    rb"(?:(?<![A-Za-z0-9_-])|(?<=%[0-9A-Fa-f][0-9A-Fa-f]))"
    rb"(?:e[wy][A-Za-z0-9_-]{8,}(?:\.|%2[Ee])[A-Za-z0-9_-]+(?:\.|%2[Ee])[A-Za-z0-9_-]+|tricast_[A-Za-z0-9_-]{32,})"
)


def without_secrets(target: bytes) -> bytes:
    """The target as it may be logged: what may be a token, a ticket or a key in it is taken out."""
    path, mark, query = target.partition(b"?")
    return _SECRET.sub(_HIDDEN, path + mark + b"&".join(map(_without_secret, query.split(b"&"))))


def _without_secret(pair: bytes) -> bytes:
    name, mark, _ = pair.partition(b"=")
    is_secret = unquote_plus(name.decode("latin-1")).lower() in _SECRET_PARAMETERS
    return name + mark + _HIDDEN if mark and is_secret else pair
