"""Who a proxy is."""

import pytest

from tricast.probe.fingerprint import MARKS, NAMES, Seen, suspects

HAPROXY_PAGE = "<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>\n"
NGINX_PAGE = (
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
    "<hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n"
)
APACHE_PAGE = (
    '<!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2.0//EN">\n<html><head>\n<title>502 Proxy Error</title>\n</head><body>\n'
    "<h1>Proxy Error</h1>\n<p>The proxy server received an invalid\r\nresponse from an upstream server.<br />\r\n"
)


def test_every_mark_names_a_proxy():
    assert {mark.proxy for mark in MARKS} == set(NAMES)
    assert {mark.place for mark in MARKS} == {"answer", "request", "page"}


@pytest.mark.parametrize(
    ("seen", "request_fields", "proxy"),
    [
        (Seen([("Server", "nginx/1.22.1")]), [], "nginx"),
        (Seen([], NGINX_PAGE), [], "nginx"),
        (Seen([], HAPROXY_PAGE), [], "haproxy"),
        (Seen([], APACHE_PAGE), [], "apache"),
        (Seen([("Server", "Caddy")]), [], "caddy"),
        (Seen([("Via", "1.1 Caddy")]), [], "caddy"),
        (Seen([("X-Varnish", "32770"), ("Via", "1.1 varnish (Varnish/7.1)")]), [], "varnish"),
        (Seen([("server", "envoy"), ("x-envoy-upstream-service-time", "1")]), [], "envoy"),
        (Seen([("Server", "awselb/2.0")]), [], "alb"),
        (Seen([]), [("X-Amzn-Trace-Id", "Root=1-67891233-abcdef")], "alb"),
        (Seen([]), [("X-Amzn-Trace-Id", "Self=1-67891233-abc;Root=1-67891233-abcdef")], "alb"),
        (Seen([("CF-RAY", "8f"), ("Server", "cloudflare")]), [], "cloudflare"),
        (Seen([("Via", "1.1 vegur")]), [], "heroku"),
        (Seen([("X-Azure-Ref", "0")]), [], "azure"),
        (Seen([("X-Served-By", "cache-fra-1")]), [], "fastly"),
    ],
)
def test_a_mark(seen, request_fields, proxy):
    found = suspects([Seen([("Server", "tricast")]), seen], request_fields)
    assert [suspect.proxy for suspect in found] == [proxy]
    assert found[0].marks


def test_several_in_a_row():
    answers = [Seen([("CF-RAY", "8f"), ("Server", "cloudflare")]), Seen([], NGINX_PAGE)]
    assert [suspect.proxy for suspect in suspects(answers)] == ["cloudflare", "nginx"]


def test_nobody():
    assert suspects([Seen([("Server", "tricast"), ("Content-Type", "text/plain")])]) == []
    assert suspects([Seen([("Server", "not-nginx")])]) == []


def test_one_habit_is_no_proof_but_several_are():
    assert suspects([], changes={"lower case"}) == []
    (found,) = suspects([], changes={"lower case", "kept connection"})
    assert found.proxy == "haproxy"
    assert len(found.marks) == 2
