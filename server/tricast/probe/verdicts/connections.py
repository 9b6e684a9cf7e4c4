"""Verdicts about connections: P1 HTTP versions, P2 who is in front, P3 WebSockets, P16 several servers. Does no I/O."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tricast.probe import advice
from tricast.probe.findings import Finding, Verdict
from tricast.probe.fingerprint import NAMES, Suspect

# P1


class Echoes(NamedTuple):
    """Requests one after the other on one connection.

    Attributes:
        answered: the HTTP version of the answers.
        received: in which HTTP version the server got each.
        connections: the server's number of the connection on which each came, with the server's name.
        is_kept: whether the client's own connection could be used for all of them.
    """

    answered: str
    received: Sequence[str]
    connections: Sequence[tuple[str, int]]
    is_kept: bool


def versions(path: Echoes, direct: Echoes | None = None) -> Finding:
    """P1: which HTTP the server is asked in, and whether connections are used again."""
    received = path.received[0]
    reused = len(set(path.connections)) < len(path.connections)
    words = [f"HTTP/{received} to the server"]
    words.append("connections to it are used again" if reused else "a new connection for each request")
    if not path.is_kept:
        words.append("the client's connection is closed after each")
    verdict = Verdict.OK if reused and received != "1.0" else Verdict.INFO
    if received == "1.0":
        words[0] += ", so that streams may be held back"
    server = None if direct is None else {"http_version": direct.received[0], "is_kept": direct.is_kept}
    return Finding(
        check="P1",
        title="HTTP version",
        verdict=verdict,
        summary="; ".join(words),
        detail={"http_version": received, "is_reused": reused, "is_kept": path.is_kept, "direct": server},
    )


# P2


def fingerprint(suspects: Sequence[Suspect]) -> Finding:
    """P2: who is in the way."""
    if suspects:
        words = ", then ".join(f"{NAMES[suspect.proxy]} ({'; '.join(suspect.marks[:2])})" for suspect in suspects)
    else:
        words = "nothing that gives its name away"
    return Finding(
        check="P2",
        title="in front",
        verdict=Verdict.INFO,
        summary=words,
        detail={"proxies": [suspect.proxy for suspect in suspects], "marks": {s.proxy: s.marks for s in suspects}},
    )


class Guess(NamedTuple):
    """Who is in the way, going by nothing but what it does.

    Attributes:
        proxy: a key of ``fingerprint.NAMES``.
        why: in words.
    """

    proxy: str
    why: str


#: How the owners of timers are called in ``known`` and ``blame``.
_CALLED = {
    "nginx": "nginx",
    "HAProxy": "haproxy",
    "Caddy": "caddy",
    "Apache": "apache",
    "Varnish": "varnish",
    "Envoy": "envoy",
    "Traefik": "traefik",
    "AWS": "alb",
    "Google": "gcp",
    "Azure": "azure",
    "Cloudflare": "cloudflare",
    "Heroku": "heroku",
    "Fastly": "fastly",
}
#: HAProxy waits so long for more to send along, where option http-no-delay does not forbid it.
_HAPROXY_WAITS = (0.1, 0.4)
#: One timer that somebody is known for can be anybody's.
_ENOUGH_TIMERS = 2


def guess(findings: Iterable[Finding]) -> Guess | None:
    """Who is in the way where nothing gives its name away: the only one that what was found is known of."""
    reasons: dict[str, list[str]] = {}
    timers: Counter[str] = Counter()
    for finding in findings:
        detail = finding.detail
        low, high = _HAPROXY_WAITS
        if finding.check == "P4" and detail.get("kind") == "coalesced" and low <= detail.get("period", 0.0) <= high:
            reasons["haproxy"] = ["events are coalesced"]
        if finding.check in ("P12", "P13") and detail.get("culprit") not in (None, "", "server"):
            limit = detail.get("total") or detail.get("idle") or {}
            said = f"{limit.get('owners', '')} {detail.get('hint', '')}"
            owners = {proxy for name, proxy in _CALLED.items() if name in said}
            timers.update(owners if len(owners) == 1 else ())
    for proxy, count in timers.items():
        if proxy in reasons or count >= _ENOUGH_TIMERS:
            reasons.setdefault(proxy, []).append("it is known for such timers")
    if len(reasons) != 1:
        return None
    ((proxy, why),) = reasons.items()
    return Guess(proxy, ", ".join(why))


# P3


class Handshake(NamedTuple):
    """What became of the opening handshake of a WebSocket (RFC 6455 4.1).

    Attributes:
        status: of the answer; None if none came.
        is_accepted: whether it was 101 with the right Sec-WebSocket-Accept.
        is_alive: whether a message came through afterwards.
        reached: whether the server is asked to upgrade; None if that is not known.
        is_servers: whether the answer is known to be the server's own.
        why: what happened, when there is no answer.
    """

    status: int | None
    is_accepted: bool = False
    is_alive: bool = False
    reached: bool | None = None
    is_servers: bool = False
    why: str = ""


def websocket(path: Handshake, direct: Handshake | None = None) -> Finding:
    """P3: whether WebSockets come through."""
    policy, words = _policy(path)
    verdict = Verdict.OK if policy == "forwarded" else Verdict.INFO if policy == "refused" else Verdict.BROKEN
    if verdict is Verdict.BROKEN and direct is not None and not direct.is_accepted:
        verdict, words = Verdict.INFO, f"{words}; but the server itself takes none either"
    return Finding(
        check="P3",
        title="WebSocket",
        verdict=verdict,
        summary=words,
        detail={"policy": policy, "status": path.status, "direct": None if direct is None else direct.status},
        advice=advice.NO_WEBSOCKET if verdict is Verdict.BROKEN else None,
    )


def _policy(path: Handshake) -> tuple[str, str]:
    if path.is_accepted and path.is_alive:
        return "forwarded", "yes: a message went there and back"
    if path.is_accepted:
        return "broken", "no: it is opened, but no message comes through"
    if path.status is None:
        return "broken", f"no: {path.why or 'no answer'}"
    if path.status == 101:
        return "broken", "no: the answer to the handshake is not the right one"
    return _refusal(path)


def _refusal(path: Handshake) -> tuple[str, str]:
    if path.reached is False:
        return "stripped", f"no: Upgrade is taken out on the way; the server gets a plain GET and says {path.status}"
    if path.is_servers:
        return "refused", f"the server itself refuses it with {path.status}"
    # What a server says to a plain GET, when it is not known whose answer it is.
    if path.reached is None and path.status in (200, 204, 400, 404, 426):
        return "stripped", f"no: the handshake is answered {path.status}, as if Upgrade had been taken out on the way"
    return "denied", f"no: the handshake is refused on the way with {path.status}"


# P16


class Visits(NamedTuple):
    """Which server answered each of several requests.

    Attributes:
        without: to requests without cookies.
        with_cookies: to requests that brought back the cookies they were given.
        cookies: the names of these.
    """

    without: Sequence[str]
    with_cookies: Sequence[str]
    cookies: Sequence[str]


def stickiness(path: Visits) -> Finding:
    """P16: whether clients stay with one of several servers."""
    servers, stays = len(set(path.without) | set(path.with_cookies)), len(set(path.with_cookies)) == 1
    if servers == 1:
        words = "one server answers"
    elif len(set(path.without)) == 1:
        words = f"{servers} servers; a client stays with one without a cookie"
    elif stays:
        words = f"{servers} servers; a client stays with one by the cookie {', '.join(path.cookies)}"
    else:
        words = f"{servers} servers; requests go to any of them, which is all right for Tricast when they share a log"
    return Finding(
        check="P16",
        title="servers",
        verdict=Verdict.OK if servers == 1 else Verdict.INFO,
        summary=words,
        detail={"servers": servers, "cookies": list(path.cookies), "is_sticky": stays},
    )
