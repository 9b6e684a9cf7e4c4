"""Header fields on their way through: what is for one connection only, and what the proxy adds. No I/O."""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from tricast.wire.heads import BadHead
from tricast_proxy.config import HeadersSection
from tricast_proxy.heads import Fields, RequestHead, ResponseHead, nominated

#: RFC 9110 7.6.1: for one connection only, whether Connection names them or not. The framing is the proxy's own.
_HOP_BY_HOP = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade", b"content-length")
)
#: For this proxy, if for any (RFC 9110 11.7): they must not reach a server, nor a server's reach a client.
_PROXY_AUTH = frozenset((b"proxy-authorization", b"proxy-authenticate", b"proxy-authentication-info"))
#: Whoever names these as being for one connection only wants to have them removed on their way: that is ignored
#: (RFC 9110 7.6.1: it must not be done to what is for all recipients; CVE-2022-31813, CVE-2024-45410).
_NOT_NOMINATED = re.compile(
    rb"host|cache-control|authorization|cookie|x-forwarded-.*|x-real-ip|forwarded|via|last-event-id|origin|"
    rb"sec-websocket-.*|content-.*|expect|range|set-cookie"
)


class Hop(NamedTuple):
    """What the proxy knows of the client's side of an exchange.

    Attributes:
        peer: the client's address.
        port: the client's port.
        scheme: ``http`` or ``https``.
        own_port: the port that the client came by.
    """

    peer: str
    port: int
    scheme: str
    own_port: int


class FieldPolicy:
    """Does to fields what the configuration says.

    Args:
        config: it.
        clock: Unix time.
        new_id: makes up an id for a request.
    """

    def __init__(self, config: HeadersSection, clock: Callable[[], float], new_id: Callable[[], str]) -> None:
        self._config = config
        self._clock = clock
        self._new_id = new_id
        self._trusted = [ipaddress.ip_network(text, strict=False) for text in config.trusted]
        self._request_remove = _names(config.request_remove)
        self._response_remove = _names(config.response_remove)
        self._request_add = _pairs(config.request_add)
        self._response_add = _pairs(config.response_add)
        self._via = config.via.encode()
        self._case = _CASES[config.case]
        self._is_trusted = lru_cache(maxsize=1024)(self._looks_trusted)

    def check_request(self, request: RequestHead) -> None:
        """Refuses what must not be forwarded.

        Raises:
            BadHead: it has come here before, or has names that the configuration refuses.
        """
        if self._via and any(member.split()[1:2] == [self._via.lower()] for member in request.members(b"via")):
            raise BadHead("this proxy has forwarded this request before", status=508)
        if self._config.underscores == "reject" and any(b"_" in name for name, _ in request.fields):
            raise BadHead("a field's name has an underscore")

    def for_server(self, request: RequestHead, hop: Hop, authority: str) -> Fields:
        """The fields of a request as a server gets them, without those of its framing and its upgrade.

        Args:
            request: as it came.
            hop: the client's side.
            authority: of the server.
        """
        config = self._config
        dropped = self._dropped(request, self._request_remove)
        fields = [
            (name, value)
            for name, value in request.fields
            if name.lower() not in dropped and not (config.underscores == "drop" and b"_" in name)
        ]
        # In HTTP/1.0 nobody need say which host is meant: then it is the only one that is known.
        host = (b"" if config.host == "upstream" else request.host) or authority.encode()
        fields = [(name, value) for name, value in fields if name.lower() != b"host"]
        fields.insert(0, (b"Host", host))
        _put(fields, b"X-Forwarded-For", self._forwarded_for(request, hop))
        trusted = self._is_trusted(hop.peer)
        self._put_others_forwarded(fields, request, hop, trusted=trusted)
        if config.forwarded:
            before = request.all(b"forwarded") if trusted else []
            _put(fields, b"Forwarded", b", ".join((*before, _forwarded(request, hop))))
        if self._via:
            received = b"%b %b" % (request.version, self._via)
            _put(fields, b"Via", b", ".join((*request.all(b"via"), received)))
        # By what is left of them: a client may have had them taken out by Connection.
        left = {name.lower() for name, _ in fields}
        if config.request_id and config.request_id.lower().encode() not in left:
            fields.append((config.request_id.encode(), self._new_id().encode()))
        if config.request_start:
            _put(fields, config.request_start.encode(), b"%d" % (self._clock() * 1000))
        if config.accept_encoding and b"accept-encoding" not in left:
            fields.append((b"Accept-Encoding", config.accept_encoding.encode()))
        if request.method in (b"TRACE", b"OPTIONS"):
            _count_forward(fields)
        fields += self._request_add
        return self._written(fields)

    def _put_others_forwarded(self, fields: Fields, request: RequestHead, hop: Hop, *, trusted: bool) -> None:
        config = self._config
        for name, mode, value in (
            (b"X-Forwarded-Proto", config.x_forwarded_proto, hop.scheme.encode()),
            (b"X-Forwarded-Host", config.x_forwarded_host, request.host or None),
            (b"X-Forwarded-Port", config.x_forwarded_port, b"%d" % hop.own_port),
        ):
            if mode == "remove":
                _put(fields, name, None)
            elif mode == "append":
                _put(fields, name, b", ".join((*request.all(name.lower()), *([value] if value else ()))) or None)
            elif mode == "set" and not (trusted and request.get(name.lower())):
                _put(fields, name, value)

    def for_client(self, response: ResponseHead) -> Fields:
        """The fields of an answer as the client gets them, without those of its framing and its upgrade."""
        dropped = self._dropped(response, self._response_remove)
        fields = [(name, value) for name, value in response.fields if name.lower() not in dropped]
        if self._config.server:
            _put(fields, b"Server", self._config.server.encode())
        if self._via and self._config.via_response:
            received = b"%b %b" % (response.version, self._via)
            _put(fields, b"Via", b", ".join((*response.all(b"via"), received)))
        fields += self._response_add
        return self._written(fields)

    def trailers_for_client(self, response: ResponseHead, trailers: Fields) -> Fields:
        """The fields behind an answer's body as the client gets them: RFC 9110 7.6.1 goes for them as well.

        Args:
            response: the answer as it came.
            trailers: those of them that may stand there.
        """
        dropped = self._dropped(response, self._response_remove)
        return self._written([(name, value) for name, value in trailers if name.lower() not in dropped])

    def _dropped(self, head: RequestHead | ResponseHead, removed: frozenset[bytes]) -> frozenset[bytes]:
        dropped = _HOP_BY_HOP | _PROXY_AUTH | removed
        if not self._config.strip_nominated:
            return dropped
        return dropped | {name for name in nominated(head) if _NOT_NOMINATED.fullmatch(name) is None}

    def _written(self, fields: Fields) -> Fields:
        if self._config.join:
            fields = _joined(fields)
        if self._case is not None:
            case = self._case
            fields = [(case(name), value) for name, value in fields]
        return fields

    def _forwarded_for(self, request: RequestHead, hop: Hop) -> bytes | None:
        mode = self._config.x_forwarded_for
        before = request.all(b"x-forwarded-for")
        if mode == "keep":
            return b", ".join(before) if before else None
        if mode == "remove":
            return None
        peer = hop.peer
        if self._config.x_forwarded_for_port:
            peer = f"[{peer}]:{hop.port}" if ":" in peer else f"{peer}:{hop.port}"
        if mode == "replace" and not self._is_trusted(hop.peer):
            before = []
        return b", ".join((*before, peer.encode()))

    def _looks_trusted(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _names(names: Iterable[str]) -> frozenset[bytes]:
    return frozenset(name.lower().encode() for name in names)


def _pairs(pairs: Mapping[str, str]) -> Fields:
    return [(name.encode(), value.encode()) for name, value in pairs.items()]


def _put(fields: Fields, name: bytes, value: bytes | None) -> None:
    """Puts one field in place of all of its name; None for none."""
    lower = name.lower()
    at = next((index for index, (found, _) in enumerate(fields) if found.lower() == lower), len(fields))
    fields[:] = [field for field in fields if field[0].lower() != lower]
    if value is not None:
        fields.insert(at, (name, value))


def _count_forward(fields: Fields) -> None:
    """Takes this forwarding off ``Max-Forwards`` (RFC 9110 7.6.2)."""
    for index, (name, value) in enumerate(fields):
        if name.lower() == b"max-forwards" and (left := forwards_left(value)):
            fields[index] = (name, b"%d" % (left - 1))


def forwards_left(value: bytes) -> int | None:
    """What ``Max-Forwards`` says, or None where it says nothing; more than anybody needs is as good as a million."""
    if not value.isdigit():
        return None
    digits = value.lstrip(b"0")
    return 10**6 if len(digits) > 6 else int(digits or b"0")


def _forwarded(request: RequestHead, hop: Hop) -> bytes:
    """A member of ``Forwarded`` (RFC 7239 4); an IPv6 address and a host with a port are quoted."""
    peer = f'"[{hop.peer}]"' if ":" in hop.peer else hop.peer
    host = request.host.replace(b"\\", b"").replace(b'"', b"")
    return b'for=%b;host="%b";proto=%b' % (peer.encode(), host, hop.scheme.encode())


def _joined(fields: Fields) -> Fields:
    """Fields of one name as one, in the place of the first (RFC 9110 5.2), but for those that cannot be."""
    joined: dict[bytes, list[bytes]] = {}
    names: dict[bytes, bytes] = {}
    for number, (name, value) in enumerate(fields):
        key = name.lower()
        if key == b"set-cookie":
            key = b"%b %d" % (key, number)
        names.setdefault(key, name)
        joined.setdefault(key, []).append(value)
    return [(names[key], (b"; " if key == b"cookie" else b", ").join(values)) for key, values in joined.items()]


def _canonical(name: bytes) -> bytes:
    return b"-".join(part.capitalize() for part in name.split(b"-"))


_CASES: Mapping[str, Callable[[bytes], bytes] | None] = {
    "preserve": None,
    "lower": bytes.lower,
    "canonical": _canonical,
}
