"""What of a request target may be logged: URLs are read by more people than may use what is in them."""

from urllib.parse import unquote_plus

#: The parameters of a query by which somebody says who it is; the second as RFC 6750 2.3 has it.
TICKET = "ticket"
QUERY_TOKEN = "access_token"  # noqa: S105
#: Also where they mean nothing: what was put there by mistake is no less secret.
_SECRET_PARAMETERS = frozenset({TICKET, QUERY_TOKEN, "token"})
_HIDDEN = b"..."


def without_secrets(target: bytes) -> bytes:
    """The target as it may be logged: what may be a token or a ticket in its query is taken out."""
    path, mark, query = target.partition(b"?")
    return path + mark + b"&".join(map(_without_secret, query.split(b"&"))) if mark else target


def _without_secret(pair: bytes) -> bytes:
    name, mark, _ = pair.partition(b"=")
    is_secret = unquote_plus(name.decode("latin-1")).lower() in _SECRET_PARAMETERS
    return name + mark + _HIDDEN if mark and is_secret else pair
