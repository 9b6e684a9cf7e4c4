"""Addresses as text: how they are written, which network they belong to, and whose networks are trusted. Pure."""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

#: What stands for the address of whoever comes over a Unix socket, and in a list of networks for all of those.
UNIX = "unix"
#: What stands for the address of whoever comes by a proxy that cannot tell it; nobody trusts those.
UNKNOWN = "unknown"

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: One customer gets a network of this size at the least (RFC 6177), so that within it addresses cost nothing.
_PREFIX_BITS = 64
_REMEMBERED = 4096
_IPV4_WITH_PORT = re.compile(r"([0-9.]+)(?::[\w.-]+)?", re.ASCII)
_IPV6_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[\w.-]+)?", re.ASCII)


def normalized(address: str) -> str:
    """The address in its one way of writing, without a zone; an IPv4 address that IPv6 carries as IPv4.

    Raises:
        ValueError: it is no address.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def of_peer(address: object) -> str:
    """What the kernel says of a peer (``accept``), as text."""
    if not isinstance(address, tuple):
        return UNIX  # a client's end of a Unix socket has no name, or one that says nothing
    text = str(address[0])
    # A listener for both versions sees IPv4 as IPv6 (RFC 4291 2.5.5.2).
    return text.removeprefix("::ffff:") if "." in text else text


def of_node(node: str) -> str | None:
    """The address in what proxies write: with a port, in brackets; None where it is no address.

    RFC 7239 6 has ports as numbers, or as names with an underscore in front.
    """
    match = _IPV4_WITH_PORT.fullmatch(node) or _IPV6_WITH_PORT.fullmatch(node)
    try:
        return normalized(match[1] if match is not None else node) if "%" not in node else None
    except ValueError:
        return None


@lru_cache(maxsize=_REMEMBERED)
def network_of(address: str) -> str:
    """Whose address it is, as far as one can tell: an IPv4 address is itself, of IPv6 it is the network of 64 bits."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], _PREFIX_BITS), strict=False))


def is_of_this_machine(address: str) -> bool:
    """Whether nobody from elsewhere can be there, or come from there."""
    return address == UNIX or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def parse_network(text: str) -> _Network | None:
    """A network, of which an address is the smallest; None for ``unix``.

    Raises:
        ValueError: it is neither.
    """
    return None if text == UNIX else ipaddress.ip_network(text, strict=False)


class Networks:
    """Networks, and who belongs to them.

    Args:
        texts: such as ``10.0.0.0/8``; ``unix`` for those who come over a Unix socket.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._networks = [parse_network(text) for text in texts]
        self._holds = lru_cache(maxsize=_REMEMBERED)(self._look)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: object) -> bool:
        return bool(self._networks) and isinstance(address, str) and self._holds(address)

    def _look(self, address: str) -> bool:
        if address in (UNIX, UNKNOWN):
            return address == UNIX and None in self._networks
        found = ipaddress.ip_address(address.partition("%")[0])
        return any(network is not None and found in network for network in self._networks)
