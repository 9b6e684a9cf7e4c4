"""What is probed: the URL, and the token with which the server's companion endpoints are asked."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from tricast.client.endpoint import Endpoint
from tricast.client.settings import ClientSettings
from tricast.wire.probe import PROBE_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A way to a server.

    Attributes:
        endpoint: where it is.
        token: of the server's ``[probe]`` section; empty for a server that has none.
        token_in_query: whether it goes into the URL, because something on the way keeps Authorization for itself.
        settings: patience and TLS of connecting.
    """

    endpoint: Endpoint
    token: str = field(default="", repr=False)
    token_in_query: bool = False
    settings: ClientSettings = field(default_factory=ClientSettings)

    def companion(self, name: str, query: Iterable[tuple[str, object]] = ()) -> str:
        """The request target of a companion endpoint.

        Args:
            name: ``echo``, ``sse``, ``poll``, ``ws``, ``hdr``, ``sink``, ``once`` or ``report``.
            query: parameters in order.
        """
        pairs = [(key, f"{value:.6f}" if isinstance(value, float) else str(value)) for key, value in query]
        if self.token_in_query:
            pairs.append(("token", self.token))
        return self.endpoint.target(f"{PROBE_PREFIX}{name}", pairs)

    def path(self, path: str) -> str:
        """The request target of any path, under the URL that is probed."""
        return self.endpoint.target(path, ())

    def credentials(self) -> list[tuple[str, str]]:
        """The headers with which companion endpoints are asked."""
        return [] if self.token_in_query or not self.token else [("Authorization", f"Bearer {self.token}")]


#: Where a Tricast server answers, which is what people copy from their browser.
_PATHS_OF_SERVER = ("/events", "/ws", "/publish", "/healthz", "/readyz", "/metrics")


def server_of(url: str) -> str | None:
    """The URL of the server of which this would be a path, were it a Tricast server; None if it is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    path = parts.path.rstrip("/")
    before, is_companion, _ = path.partition(PROBE_PREFIX)
    known = next((known for known in _PATHS_OF_SERVER if path.endswith(known)), None)
    if is_companion:
        path = before
    elif known is not None:
        path = path.removesuffix(known)
    elif not (parts.query or parts.fragment) or path:
        return None
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def new_nonce() -> str:
    """A name for one request, which nobody else uses."""
    return secrets.token_hex(8)
