"""Which proxy is in front, by the marks it leaves. A table, and a function that looks up in it.

Marks are of three kinds: fields that the proxy adds to answers, the pages it shows when something is wrong, and what it
does to the request on its way, which the server's companion endpoint tells. Each was seen with the real program, or is
in its vendor's documentation. Does no I/O.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

#: (name, value) in wire order, as they were written.
Fields = Sequence[tuple[str, str]]

#: How each proxy is called in words; the keys are what ``--advice`` takes, beside those without advice of their own.
NAMES = {
    "nginx": "nginx",
    "haproxy": "HAProxy",
    "caddy": "Caddy",
    "apache": "Apache httpd",
    "varnish": "Varnish",
    "envoy": "Envoy",
    "traefik": "Traefik",
    "alb": "AWS Application Load Balancer",
    "cloudfront": "Amazon CloudFront",
    "gcp": "Google Cloud load balancer",
    "azure": "Azure Application Gateway or Front Door",
    "cloudflare": "Cloudflare",
    "heroku": "Heroku router",
    "fastly": "Fastly",
    "tricast": "tricast proxy",
}


class Mark(NamedTuple):
    """One thing that gives a proxy away.

    Attributes:
        place: where to look: ``answer`` is a field of an answer, ``request`` a field of a request as the server got it,
            ``page`` the body of an answer that is not the server's.
        name: of the field, in lower case; empty for a page.
        pattern: that its value or the page has to match somewhere, whatever the case.
        proxy: a key of ``NAMES``.
        weight: 3 only this one does it, 2 it says so itself (which another program could), 1 a hint.
    """

    place: str
    name: str
    pattern: str
    proxy: str
    weight: int


class Suspect(NamedTuple):
    """A proxy that may be in front.

    Attributes:
        proxy: a key of ``NAMES``.
        weight: of all its marks.
        marks: what was seen, in words.
    """

    proxy: str
    weight: int
    marks: tuple[str, ...]


class Seen(NamedTuple):
    """What was seen of one answer.

    Attributes:
        fields: of its head.
        page: its body, when it is not what the server sent; empty otherwise.
    """

    fields: Fields
    page: str = ""


MARKS = (
    Mark("answer", "server", r"^(nginx|openresty)\b", "nginx", 2),
    Mark("page", "", r"<center>(nginx|openresty)(/[\d.]+)?</center>", "nginx", 3),
    Mark("answer", "server", r"^caddy$", "caddy", 2),
    Mark("answer", "via", r"\bcaddy\b", "caddy", 2),
    Mark("answer", "server", r"^apache\b", "apache", 2),
    Mark("page", "", r"<address>apache\b", "apache", 3),
    # The page of mod_proxy when the server did not answer, whatever ServerSignature says.
    Mark("page", "", r"<title>50[23] Proxy Error</title>|an invalid\s+response from an upstream server", "apache", 2),
    Mark("answer", "x-varnish", r"^\d+", "varnish", 3),
    Mark("request", "x-varnish", r"^\d+", "varnish", 3),
    Mark("answer", "via", r"\bvarnish\b", "varnish", 2),
    Mark("page", "", r"Guru Meditation|<p>Varnish cache server</p>", "varnish", 3),
    Mark("page", "", r"^<html><body><h1>\d{3} [\w -]+</h1>\s[^<]+\s</body></html>\s*$", "haproxy", 2),
    Mark("answer", "server", r"^envoy$", "envoy", 2),
    Mark("answer", "x-envoy-upstream-service-time", r"", "envoy", 3),
    Mark("request", "x-envoy-expected-rq-timeout-ms", r"", "envoy", 3),
    Mark("request", "x-envoy-external-address", r"", "envoy", 2),
    Mark("answer", "server", r"^awselb/", "alb", 3),
    Mark("request", "x-amzn-trace-id", r"", "alb", 3),
    Mark("answer", "set-cookie", r"^AWSALB(APP|TG)?(CORS)?=", "alb", 3),
    Mark("answer", "x-amz-cf-id", r"", "cloudfront", 3),
    Mark("answer", "via", r"\bcloudfront\b", "cloudfront", 2),
    Mark("answer", "server", r"^(google frontend|gws)$", "gcp", 2),
    Mark("answer", "via", r"^1\.1 google$", "gcp", 2),
    Mark("request", "x-cloud-trace-context", r"", "gcp", 2),
    Mark("answer", "set-cookie", r"^GCLB=", "gcp", 3),
    Mark("answer", "x-azure-ref", r"", "azure", 3),
    Mark("request", "x-azure-ref", r"", "azure", 3),
    Mark("request", "x-appgw-trace-id", r"", "azure", 3),
    Mark("answer", "server", r"^microsoft-azure-application-gateway", "azure", 3),
    Mark("answer", "set-cookie", r"^ApplicationGatewayAffinity(CORS)?=", "azure", 3),
    Mark("answer", "cf-ray", r"", "cloudflare", 3),
    Mark("answer", "server", r"^cloudflare$", "cloudflare", 2),
    Mark("request", "cf-connecting-ip", r"", "cloudflare", 3),
    Mark("answer", "via", r"\bvegur\b|\bheroku-router\b", "heroku", 3),
    Mark("request", "via", r"\bvegur\b|\bheroku-router\b", "heroku", 3),
    Mark("answer", "server", r"^(heroku|cowboy)$", "heroku", 1),
    Mark("answer", "x-served-by", r"^cache-", "fastly", 3),
    Mark("request", "x-forwarded-server", r"traefik", "traefik", 2),
    Mark("request", "via", r"\b1\.[01] tricast$", "tricast", 2),
    Mark("answer", "via", r"\b1\.[01] tricast$", "tricast", 2),
)


def suspects(answers: Iterable[Seen], request: Fields = (), changes: Iterable[str] = ()) -> list[Suspect]:
    """The proxies that left marks, the likeliest first; several where several are in a row.

    Args:
        answers: what came back, whoever made it.
        request: what the server got of a request, empty if that is not known.
        changes: what became of the request on its way, as ``habits`` names it.
    """
    found: dict[str, dict[str, int]] = {}
    for mark, words in _found(list(answers), request):
        found.setdefault(mark.proxy, {}).setdefault(words, mark.weight)
    for change in changes:
        for proxy, words in _HABITS.get(change, {}).items():
            found.setdefault(proxy, {}).setdefault(words, 1)
    ranked = [Suspect(proxy, sum(marks.values()), tuple(marks)) for proxy, marks in found.items()]
    # A single habit is shared by many programs, so that it names nobody.
    return sorted((suspect for suspect in ranked if suspect.weight > 1), key=lambda suspect: -suspect.weight)


#: What some do to every request: no proof, but together with others enough for a guess.
_HABITS = {
    "lower case": {
        "haproxy": "names of fields are written in lower case",
        "envoy": "names of fields are written in lower case",
    },
    "kept connection": {"haproxy": "the client's own Connection options are passed on"},
    "joined": {"apache": "fields that came twice are joined to one"},
    "x-forwarded-server": {"apache": "X-Forwarded-Server is added", "traefik": "X-Forwarded-Server is added"},
    "x-forwarded-host": {"caddy": "X-Forwarded-Host is added", "apache": "X-Forwarded-Host is added"},
    "x-real-ip": {"traefik": "X-Real-Ip is added"},
    "x-forwarded-port": {"traefik": "X-Forwarded-Port is added", "alb": "X-Forwarded-Port is added"},
    "accept-encoding": {"caddy": "Accept-Encoding: gzip is added"},
    "http/1.0": {"nginx": "the server is asked in HTTP/1.0"},
    "underscores": {"nginx": "fields with an underscore in their name are dropped"},
}


def _found(answers: Sequence[Seen], request: Fields) -> Iterator[tuple[Mark, str]]:
    for mark in MARKS:
        if mark.place == "page":
            if any(answer.page and re.search(mark.pattern, answer.page, re.IGNORECASE) for answer in answers):
                yield mark, "its error page"
            continue
        places = [answer.fields for answer in answers] if mark.place == "answer" else [request]
        for name, value in (field for fields in places for field in fields):
            if re.fullmatch(mark.name, name, re.IGNORECASE) and re.search(mark.pattern, value, re.IGNORECASE):
                whose = "" if mark.place == "answer" else "the request gets "
                yield mark, f"{whose}{name}: {value.partition(';')[0][:60]}"
                break
