"""What proxies say of the client they forward for: ``Forwarded`` (RFC 7239) and ``X-Forwarded-*``.

Anybody can send these, so they are read from the right, where the nearest proxy has added to them, and only as far as
those who have written them are trusted: the client is the first address that is not a trusted proxy's. What stands
further left is what that client says of itself.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tricast.addresses import Networks, of_node
from tricast.errors import RemoteProtocolError
from tricast.wire.http1 import Request

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#: A parameter, and what ends it. Of values that are no tokens, an address with a port is often left without quotes.
_PAIR = re.compile(
    rf'({_NAME})=(?:([\[\]:!#$%&\'*+.^_`|~0-9A-Za-z-]+)|"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x1f\x7f])*)")'
    r"[ \t]*([;,]|$)[ \t]*"
)
_SEPARATORS = re.compile(r"[ \t]*([;,])[ \t]*")
#: RFC 9110 4.2.1, as far as it names hosts that there are; with a port.
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
#: Some say so for what is an upgrade to WebSocket.
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class Origin(NamedTuple):
    """Where a request comes from.

    Attributes:
        client: the client's address; the last proxy's where that does not tell it.
        scheme: ``http`` or ``https``, as the client knows it; None where nobody says.
        authority: the host that the client has asked for, with its port; None where nobody says.
    """

    client: str
    scheme: str | None
    authority: str | None


def origin_by_forwarded(request: Request, peer: str, trusted: Networks) -> Origin:
    """Where a request comes from, by ``Forwarded``.

    Args:
        request: its head.
        peer: the address of who sent it here.
        trusted: whose word counts.

    Raises:
        RemoteProtocolError: the field is malformed. As a whole, for an open quote of a client's could hide what the
            proxy has added behind it.
    """
    if peer not in trusted:
        return Origin(peer, None, None)
    elements = _elements(", ".join(_lines(request, b"forwarded")))
    client, hops = _walk(peer, [element.get("for", "unknown") for element in elements], trusted)
    told: Mapping[str, str] = elements[-max(hops, 1)] if elements else {}
    return Origin(client, _scheme(told.get("proto")), _authority(told.get("host")))


def origin_by_x_forwarded(request: Request, peer: str, trusted: Networks) -> Origin:
    """Where a request comes from, by ``X-Forwarded-For``, ``-Proto`` and ``-Host``. See ``origin_by_forwarded``.

    Raises:
        RemoteProtocolError: something that a trusted proxy has written is malformed.
    """
    if peer not in trusted:
        return Origin(peer, None, None)
    client, hops = _walk(peer, _members(request, b"x-forwarded-for"), trusted)

    def told(name: bytes) -> str | None:
        """What the same proxy has said in another field, in which some write nothing where something stands already."""
        members = _members(request, name)
        return members[max(0, len(members) - max(hops, 1))] if members else None

    return Origin(client, _scheme(told(b"x-forwarded-proto")), _authority(told(b"x-forwarded-host")))


def _walk(peer: str, nodes: Sequence[str], trusted: Networks) -> tuple[str, int]:
    """The client, and how many of the nodes, from the right, trusted proxies have written."""
    client = peer
    for hops, node in enumerate(reversed(nodes)):
        if client not in trusted:
            return client, hops
        if node.lower() == "unknown" or node.startswith("_"):  # RFC 7239 6.2, 6.3
            return client, hops + 1
        address = of_node(node)
        if address is None:
            raise _malformed(f"{node[:64]!a} is no address")
        client = address
    return client, len(nodes)


def _lines(request: Request, name: bytes) -> list[str]:
    return [value.decode("latin-1") for found, value in request.headers if found == name]


def _members(request: Request, name: bytes) -> list[str]:
    return [member for member in map(str.strip, ",".join(_lines(request, name)).split(",")) if member]


def _elements(text: str) -> list[dict[str, str]]:
    """The elements of ``Forwarded`` (RFC 7239 4), in order; names in lower case."""
    elements: list[dict[str, str]] = [{}]
    place = 0
    while place < len(text):
        separators = _SEPARATORS.match(text, place)
        if separators is not None:  # an empty element, or parameter
            place = separators.end()
            if separators[1] == ",":
                elements.append({})
            continue
        pair = _PAIR.match(text, place)
        if pair is None:
            raise _malformed("Forwarded is malformed")
        name, token, quoted, end = pair.groups()
        if name.lower() in elements[-1]:
            raise _malformed(f"Forwarded has {name.lower()[:64]} twice for one proxy")
        elements[-1][name.lower()] = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        if end == ",":
            elements.append({})
        place = pair.end()
    return [element for element in elements if element]


def _scheme(text: str | None) -> str | None:
    if text is None:
        return None
    scheme = _SCHEMES.get(text.lower())
    if scheme is None:
        raise _malformed(f"{text[:64]!a} is no scheme")
    return scheme


def _authority(text: str | None) -> str | None:
    if text is not None and _AUTHORITY.fullmatch(text) is None:
        raise _malformed(f"{text[:64]!a} is no host")
    return text


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"what a proxy says of the client cannot be read: {detail}", code="bad-forwarded")
