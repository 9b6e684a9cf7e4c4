"""API keys: random, long, and known to the server by their hashes alone."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from tricast.access.identity import Identity
from tricast.config import ApiKeyEntry
from tricast.errors import Unauthorized

#: What an API key begins with, so that one that got lost can be found in what is about to be published.
PREFIX = "tricast_"
#: What is shorter was not made at random. Its hash could be undone by trying.
MIN_LENGTH = 32
_MAX_LENGTH = 256
_RANDOM_BYTES = 32


def make() -> str:
    """A new key."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_of(key: str) -> str:
    """The hash of a key, as the configuration has it.

    One round of SHA-256 is enough: a key is 256 random bits, and no password that could be guessed.
    """
    return f"sha256:{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"


class ApiKeys:
    """Finds out whose an API key is.

    Args:
        entries: the keys of the configuration.
    """

    def __init__(self, entries: Sequence[ApiKeyEntry]) -> None:
        self._entries = [
            (entry.hash, Identity(f"key:{entry.name}", None, entry.subscribe, entry.publish)) for entry in entries
        ]

    def identify(self, key: str) -> Identity:
        """Whose key it is, and what it allows. Takes as long for every key.

        Raises:
            Unauthorized: it is nobody's.
        """
        is_plausible = MIN_LENGTH <= len(key) <= _MAX_LENGTH
        hashed = hash_of(key[:_MAX_LENGTH])
        found = [identity for known, identity in self._entries if hmac.compare_digest(known, hashed)]
        if not found or not is_plausible:
            raise Unauthorized("this server does not know the API key", code="api-key-unknown")
        return found[0]
