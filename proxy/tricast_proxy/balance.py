"""Which server gets a request. No I/O; knows nothing of connections but how many there are.

A client that is held to a server by a cookie gets that one as long as it is not down, also while it drains and also
when it is a backup. All others are shared among the servers that are up; the backups among them stand in where no
other can take a request.
"""

import hashlib
import hmac
import math
import random
import secrets
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qsl

from tricast_proxy.config import BalanceSection
from tricast_proxy.heads import Fields, RequestHead
from tricast_proxy.servers import Health, Server

#: Chooses among servers that can take a request from an address.
Pick = Callable[[Sequence[Server], RequestHead | None, str], Server]
#: What of a request, and of the address it came from, decides; None where it is not there.
KeyOf = Callable[[RequestHead | None, str], bytes | None]


class Choice(NamedTuple):
    """Where a request goes.

    Attributes:
        server: to it.
        fields: what its answer carries, whatever the status, so that the client comes back to it.
    """

    server: Server
    fields: Fields


class Balancer:
    """Chooses servers.

    Args:
        servers: in the order of the configuration.
        config: how.
        randomness: for the method ``random``.
        clock: seconds; the same as the servers are told.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        config: BalanceSection,
        randomness: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._servers = servers
        self._config = config
        self._randomness = randomness
        self._clock = clock
        self._sticky = Stickiness(servers, config) if config.sticky else None
        self._owed = dict.fromkeys(servers, 0.0)
        methods: dict[str, Pick] = {
            "round_robin": self._in_turn,
            "least_connections": self._least_busy,
            "random": self._at_random,
            "first": self._first,
            "hash": partial(self._by_hash, key_of(config.hash_key)),
        }
        self._pick = methods[config.method]

    def choose(
        self, request: RequestHead | None, peer: str, exclude: Container[Server] = (), *, is_secure: bool = False
    ) -> Choice | None:
        """The server for a request, or None when there is none that may have it.

        Args:
            request: as it came from the client; None where it is not HTTP, so that only its address is known.
            peer: the client's address.
            exclude: servers that have failed it already.
            is_secure: whether the client came by TLS, and its cookie must not go any other way.
        """
        if self._sticky is None or request is None:
            server = self._share(request, peer, exclude)
            return None if server is None else Choice(server, [])
        held = self._sticky.server_of(request)
        if held is not None:
            if held not in exclude and not held.is_full and held.health(self._clock()) is not Health.DOWN:
                return Choice(held, [])
            if self._config.sticky_failover == "fail":
                return None
        server = self._share(request, peer, exclude)
        return None if server is None else Choice(server, [self._sticky.cookie_for(server, is_secure=is_secure)])

    def has_another(self, exclude: Container[Server]) -> bool:
        """Whether a request could be had by any server but those that have failed it, as of now."""
        return bool(self._able(exclude))

    def without_cookie(self, fields: Fields) -> Fields:
        """The fields of a request as the server may see them."""
        if self._sticky is None or not self._config.cookie_strip:
            return fields
        return self._sticky.strip(fields)

    def _share(self, request: RequestHead | None, peer: str, exclude: Container[Server]) -> Server | None:
        able = self._able(exclude)
        able = [server for server in able if not server.entry.backup] or able
        return self._pick(able, request, peer) if able else None

    def _able(self, exclude: Container[Server]) -> list[Server]:
        now = self._clock()
        return [s for s in self._servers if s not in exclude and not s.is_full and s.health(now) is Health.UP]

    def _in_turn(self, able: Sequence[Server], _request: RequestHead | None, _peer: str) -> Server:
        # Smooth, as in nginx: each gains its weight, and who has most is chosen and pays what all have gained. With
        # weights of 5, 1 and 1 that is a a b a c a a, and not five times a in a row.
        now = self._clock()
        total = 0.0
        for server in able:
            weight = server.weight(now)
            self._owed[server] += weight
            total += weight
        chosen = max(able, key=self._owed.__getitem__)
        self._owed[chosen] -= total
        return chosen

    def _least_busy(self, able: Sequence[Server], request: RequestHead | None, peer: str) -> Server:
        # One more than it has, so that of idle servers the heavier one is the less busy.
        now = self._clock()
        load = {server: (server.active + 1) / server.weight(now) for server in able}
        least = min(load.values())
        return self._in_turn([server for server in able if load[server] == least], request, peer)

    def _at_random(self, able: Sequence[Server], _request: RequestHead | None, _peer: str) -> Server:
        now = self._clock()
        return self._randomness.choices(able, [server.weight(now) for server in able])[0]

    def _first(self, able: Sequence[Server], _request: RequestHead | None, _peer: str) -> Server:
        return able[0]

    def _by_hash(self, key_of_request: KeyOf, able: Sequence[Server], request: RequestHead | None, peer: str) -> Server:
        key = key_of_request(request, peer)
        if key is None:
            return self._in_turn(able, request, peer)
        now = self._clock()
        return max(able, key=lambda server: score(server.label, server.weight(now), key))


def score(label: str, weight: float, key: bytes) -> float:
    """How much a server is the one for a key (rendezvous hashing): who has most gets it.

    What one server scores depends on no other, so when one goes only its keys move, and when it comes back only those
    move back. Among many keys each wins a share as large as its weight's: minus the logarithm of a uniform number is
    exponentially distributed, and the least of several such times, each divided by a weight, is so with a probability
    as large as that weight's share.
    """
    digest = hashlib.blake2b(b"%b\0%b" % (label.encode(), key), digest_size=8).digest()
    uniform = (int.from_bytes(digest) + 1) / (2**64 + 1)
    return weight / -math.log(uniform) if uniform < 1 else math.inf


def key_of(name: str) -> KeyOf:
    """What ``balance.hash_key`` stands for. A request without it is shared in turn: there is nothing to hold it by."""
    kind, _, wanted = name.partition(":")
    if kind == "address":
        return lambda _, peer: peer.encode()
    if kind == "path":
        return lambda request, _: None if request is None else request.path
    found = {"header": _header, "query": _query, "cookie": _cookie}[kind]
    return lambda request, _: None if request is None else found(request, wanted)


def _header(request: RequestHead, name: str) -> bytes | None:
    return request.get(name.lower().encode())


def _query(request: RequestHead, name: str) -> bytes | None:
    query = request.target.partition(b"?")[2].decode("latin-1")
    values = (value for found, value in parse_qsl(query, keep_blank_values=True, encoding="latin-1") if found == name)
    return next((value.encode("latin-1") for value in values), None)


def _cookie(request: RequestHead, name: str) -> bytes | None:
    return next(iter(_cookies(request, name.encode())), None)


def _cookies(request: RequestHead, name: bytes) -> list[bytes]:
    """The values of all cookies of a name (RFC 6265 4.2.1)."""
    pairs = (pair.strip().partition(b"=") for field in request.all(b"cookie") for pair in field.split(b";"))
    return [value for found, _, value in pairs if found == name]


class Stickiness:
    """Holds a client to a server by a cookie that only this proxy, and others with the same secret, could have made.

    The cookie says nothing of the server but to those who know the secret: it is the HMAC-SHA256 of its label.

    Args:
        servers: all of them.
        config: the cookie's name, secret and age. Without a secret there is one for this process alone: after a
            restart, or at another proxy in front of the same servers, all clients are shared anew.
    """

    def __init__(self, servers: Sequence[Server], config: BalanceSection) -> None:
        secret = config.cookie_secret.encode() or secrets.token_bytes(32)
        self._name = config.cookie.encode()
        self._ttl = config.cookie_ttl
        self._values = {
            server: hmac.new(secret, server.label.encode(), hashlib.sha256).hexdigest().encode() for server in servers
        }

    def server_of(self, request: RequestHead) -> Server | None:
        """The server that a client is held to; None where it is new, or has a cookie that is not of this making."""
        # A client that has been given two, by whatever way, is held by the first that can be.
        for value in _cookies(request, self._name):
            # All are compared, each in constant time: how long it takes tells nothing of the right ones.
            found = [server for server, right in self._values.items() if hmac.compare_digest(right, value)]
            if found:
                return found[0]
        return None

    def cookie_for(self, server: Server, *, is_secure: bool) -> tuple[bytes, bytes]:
        """The field that holds a client to a server (RFC 6265 4.1)."""
        age = b"; Max-Age=%d" % math.ceil(self._ttl) if self._ttl else b""
        secure = b"; Secure" if is_secure else b""
        value = b"%b=%b; Path=/%b; HttpOnly; SameSite=Lax%b" % (self._name, self._values[server], age, secure)
        return b"Set-Cookie", value

    def strip(self, fields: Fields) -> Fields:
        """The fields without the cookie; other cookies stay as they were written."""
        if not any(name.lower() == b"cookie" and self._name in value for name, value in fields):
            return fields
        kept: Fields = []
        for name, value in fields:
            if name.lower() == b"cookie":
                others = [pair for pair in value.split(b";") if pair.strip().partition(b"=")[0] != self._name]
                value = b";".join(others).strip()  # noqa: PLW2901
                if not value:
                    continue
            kept.append((name, value))
        return kept
