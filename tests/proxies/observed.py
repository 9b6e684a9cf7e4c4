"""What real programs are known to do.

Recorded with nginx 1.22.1, HAProxy 2.6.12, Apache httpd 2.4.71, Caddy 2.6.2 and Varnish 7.1.1.
"""

from fnmatch import fnmatch

from proxies.matrix import Outcomes
from proxies.programs import PROGRAMS

NGINX, HAPROXY, CADDY, APACHE, VARNISH = "nginx-*", "haproxy-*", "caddy-*", "apache-*", "varnish-*"
HAPROXY_TIMED = ("haproxy-debian", "haproxy-tunnel")
STRIPPING = ("apache-default", "varnish-default")
TUNNELLING = ("nginx-websocket", HAPROXY, CADDY, "apache-websocket", "varnish-pipe")
BUFFERING = ("nginx-default", "nginx-websocket")

#: By the scenario's name: what happens, and with which programs.
OBSERVED: dict[str, dict[str, tuple[str, ...]]] = {
    "c-tunnel-handshake-a-frame-each-way": {
        "426 'no', stays open / HTTP/1.0, no Upgrade": ("nginx-default", "nginx-sse"),
        "426 'no', stays open / HTTP/1.1, no Upgrade": STRIPPING,
        "101, echo, stays open / HTTP/1.1, Upgrade: websocket": TUNNELLING,
    },
    "c-tunnel-handshake-in-http-1-0": {
        "426 'no', FIN / HTTP/1.0, no Upgrade": ("nginx-default", "nginx-sse"),
        "426 'no', FIN / HTTP/1.1, no Upgrade": STRIPPING,
        "101, echo, stays open / HTTP/1.1, Upgrade: websocket": ("nginx-websocket", CADDY),
        "101, echo, stays open / HTTP/1.0, Upgrade: websocket": (HAPROXY, "varnish-pipe"),
    },
    "c-tunnel-upgrade-to-another-protocol": {
        "101, echo, stays open / HTTP/1.1, Upgrade: chat": ("nginx-websocket", HAPROXY, CADDY, "varnish-pipe"),
        "426 'no', stays open / HTTP/1.1, no Upgrade": ("apache-websocket",),
    },
    "c-tunnel-silent-tunnel": {
        "101, FIN after T / FIN after T": (
            *("nginx-websocket", "apache-websocket", "varnish-pipe", "caddy-2.6 with timers"),
        ),
        "101, FIN after T / RST after T": ("haproxy-debian",),
        "101, FIN after 2T / RST after 2T": ("haproxy-tunnel",),
        "101, stays open / stays open": ("haproxy-default", "caddy-2.6"),
    },
    "c-tunnel-only-the-client-speaks": {
        "101, stays open / stays open": ("nginx-websocket", HAPROXY, "caddy-2.6", "apache-websocket", "varnish-pipe"),
        "101, FIN after T / FIN after T": ("caddy-2.6 with timers",),
    },
    "c-tunnel-only-the-origin-speaks": {"101, stays open / stays open": TUNNELLING},
    "c-tunnel-frame-in-the-same-bytes-as-the-101": {"101, frame / nothing": TUNNELLING},
    "c-tunnel-client-ends-its-direction-of-the-tunnel": {
        "101, FIN / FIN": ("nginx-websocket", CADDY),
        "101, frame, FIN / FIN": (HAPROXY, "apache-websocket", "varnish-pipe"),
    },
    "c-tunnel-origin-ends-its-direction-of-the-tunnel": {
        "101, FIN / FIN": ("nginx-websocket", HAPROXY, CADDY),
        "101, FIN / late bytes, FIN": ("apache-websocket", "varnish-pipe"),
    },
    "c-tunnel-client-resets-the-tunnel": {
        "101 / FIN": ("nginx-websocket", CADDY, "apache-websocket", "varnish-pipe"),
        "101 / RST": (HAPROXY,),
    },
    "c-tunnel-frame-after-a-refused-handshake": {
        "426 'no', 400, FIN / nothing": (NGINX, HAPROXY, CADDY, APACHE, "varnish-default"),
    },
    "c-tunnel-request-after-a-refused-handshake": {
        "426 'no', 426 'no', stays open / a request": (NGINX, HAPROXY, CADDY, APACHE, "varnish-default"),
        "426 'no', 426 'no', stays open / byte for byte as the client sent it": ("varnish-pipe",),
    },
    "c-tunnel-101-that-was-not-asked-for": {
        "101, other bytes, stays open / nothing": (NGINX,),
        "502, stays open / nothing": (HAPROXY, APACHE),
        "200, stays open / nothing": (CADDY,),
        "503, stays open / nothing": (VARNISH,),
    },
    "c-stream-events-framed-as-the-request-s-version-allows": {
        "200, events at the end / nothing": ("nginx-default",),
        "200, events at once / nothing": ("nginx-websocket", "nginx-sse", CADDY, APACHE, VARNISH),
        "200, events 0.2 s late / nothing": (HAPROXY,),
    },
    "c-stream-the-same-with-x-accel-buffering-no": {
        "200, events at once, does not see X-Accel-Buffering / nothing": (NGINX,),
        "200, events 0.2 s late, sees X-Accel-Buffering / nothing": (HAPROXY,),
        "200, events at once, sees X-Accel-Buffering / nothing": (CADDY, APACHE, VARNISH),
    },
    "c-stream-events-up-to-the-end-of-the-connection": {"200, events at the end / nothing": BUFFERING},
    "c-stream-head-long-before-the-first-event": {
        "200, head at the end, events at the end / nothing": ("nginx-default",),
        "200, head with the first event, events at once / nothing": ("nginx-websocket",),
        "200, head at once, events at once / nothing": ("nginx-sse", CADDY, APACHE, VARNISH),
    },
    "c-stream-second-client-for-the-same-stream": {
        "events of its own / 2 requests": (NGINX, HAPROXY, CADDY, APACHE),
        "the events that others got before / 1 request": (VARNISH,),
    },
    "c-end-no-last-chunk-fin": {
        "200 'part' cut short, FIN / 1 request": (NGINX, HAPROXY, APACHE, VARNISH),
        "200 'part', then, 200 'next', stays open / 1 request": (CADDY,),
    },
    "c-end-no-answer-fin": {
        "502, then, 200 'next', stays open / 1 request": (NGINX, HAPROXY, CADDY, APACHE),
        "503, then, 200 'next', stays open / 1 request": (VARNISH,),
    },
    "c-end-bytes-behind-a-length": {
        "200 'whole', then, 200 'next', stays open / 1 request": (NGINX, HAPROXY, CADDY, APACHE, VARNISH),
    },
    "c-end-field-of-6-kb": {"502, then, 200 'next', stays open / 1 request": (NGINX,)},
    "c-end-field-of-12-kb": {
        "502, then, 200 'next', stays open / 1 request": (NGINX, APACHE),
        "503, then, 200 'next', stays open / 1 request": (VARNISH,),
    },
    "c-leave-closes-during-a-stream": {
        "nothing / FIN at once": (NGINX, CADDY),
        "nothing / RST two writes later": (HAPROXY,),
        "nothing / FIN two writes later": (APACHE,),
        "nothing / never": (VARNISH,),
    },
    "c-leave-closes-during-a-stream-with-a-cookie": {"nothing / FIN two writes later": (VARNISH,)},
    "c-leave-resets-during-a-stream": {
        "nothing / RST at the next write": (HAPROXY,),
        "nothing / FIN at the next write": (APACHE,),
    },
    "c-leave-closes-while-it-waits": {
        "nothing / FIN": (NGINX, CADDY),
        "nothing / stays open until it answers": (HAPROXY, APACHE, VARNISH),
    },
    "c-leave-ends-its-direction-while-it-waits": {
        "FIN / FIN": (NGINX,),
        "200, FIN / FIN": (CADDY,),
        "200 'late', FIN / stays open until it answers": (HAPROXY, APACHE, VARNISH),
    },
    "c-leave-stops-reading-a-large-body": {
        "nothing / all of it sent": BUFFERING,
        "nothing / waits": (HAPROXY, CADDY, APACHE),
    },
    "c-slow-no-answer-to-get": {
        "504 after T, stays open / FIN after T": (NGINX,),
        "504 after T, stays open / RST after T": HAPROXY_TIMED,
        "stays open / stays open": ("haproxy-default", "caddy-2.6"),
        "502 after T, stays open / FIN after T": (APACHE,),
        "503 after T, stays open / FIN after T": (VARNISH,),
    },
    "c-slow-silence-in-chunks": {
        "200 'part' cut short, FIN after T / FIN after T": (NGINX, APACHE, VARNISH),
        "200 'part' cut short, FIN after T / RST after T": HAPROXY_TIMED,
        "200 'part' unfinished, stays open / stays open": ("haproxy-default", "caddy-2.6"),
    },
    "c-slow-events-three-times-as-often-as-the-timer": {"200, 6 of 6 events / nothing": ("*",)},
    "c-slow-no-next-request": {
        "200 'origin', FIN after T / nothing": (NGINX, *HAPROXY_TIMED, APACHE, VARNISH),
        "200 'origin', stays open / nothing": ("haproxy-default", CADDY),
    },
    "c-slow-connection-without-a-request": {
        "FIN after T / nothing": (NGINX, VARNISH),
        "408 after T, FIN after T / nothing": HAPROXY_TIMED,
        "stays open / nothing": ("haproxy-default", CADDY),
    },
    "c-slow-half-a-head": {
        "FIN after T / nothing": (NGINX, VARNISH),
        "408 after T, FIN after T / nothing": (*HAPROXY_TIMED, APACHE),
        "stays open / nothing": ("haproxy-default", CADDY),
    },
    "c-body-103-then-200": {
        "103 with the final one, 200 'whole', stays open / nothing": ("nginx-default",),
        "103, 200 'whole', stays open / nothing": (HAPROXY, CADDY, APACHE),
        "503, stays open / nothing": (VARNISH,),
    },
    "c-body-trailer-field-of-a-response": {
        "200 'whole', stays open, no trailer / nothing": (NGINX, APACHE),
        "200 'whole', stays open, trailer / nothing": (HAPROXY, CADDY),
        "200 'whole' cut short, FIN, no trailer / nothing": (VARNISH,),
    },
    "c-body-request-body-in-chunks": {
        "200 'whole', stays open / not before all of it, a length": (NGINX, APACHE),
        "200 'whole', stays open / from its first bytes, chunks": (HAPROXY, CADDY, VARNISH),
    },
    "c-body-expect-100-continue": {
        "100, 200 'whole', stays open / no Expect": (NGINX, VARNISH),
        "100, 200 'whole', stays open / head before the body, Expect": (HAPROXY, APACHE),
        "100, 100, 200 'whole', stays open / head before the body, Expect": (CADDY,),
    },
    "c-body-expect-something-else": {
        "200 'origin', stays open / no Expect": (NGINX,),
        "200 'origin', stays open / Expect": (HAPROXY,),
        "417, FIN / nothing": (CADDY, APACHE, VARNISH),
    },
    "c-field-version": {
        "nothing / HTTP/1.0": ("nginx-default",),
        "nothing / HTTP/1.1": (HAPROXY, CADDY, APACHE, VARNISH),
    },
    "c-field-host": {
        "nothing / origin": (NGINX, APACHE),
        "nothing / test.example": (HAPROXY, CADDY, VARNISH),
    },
    "c-field-field-that-connection-names": {
        "nothing / X-Named": (NGINX, HAPROXY),
        "nothing / none": (CADDY, APACHE, VARNISH),
    },
    "c-field-x-forwarded-for": {
        "nothing / 192.0.2.7": (NGINX, HAPROXY),
        "nothing / client": (CADDY,),
        "nothing / 192.0.2.7, client": (APACHE, VARNISH),
    },
    "c-field-field-that-comes-twice": {
        "nothing / one, two": (APACHE,),
        "nothing / one | two": (NGINX, HAPROXY, CADDY, VARNISH),
    },
    "c-field-name-with-underscores": {
        "nothing / none": (NGINX,),
        "nothing / X_Under_Score": (HAPROXY, CADDY, APACHE, VARNISH),
    },
    "c-framing-length-and-chunks": {"400, FIN / nothing": (NGINX, VARNISH)},
    "c-framing-request-line-of-9-kb": {"414, FIN / nothing": (NGINX, APACHE)},
    "c-framing-field-of-9-kb": {"400, FIN / nothing": (NGINX, APACHE, VARNISH)},
    "c-framing-120-fields": {"400, FIN / nothing": (HAPROXY, APACHE, VARNISH)},
}


def expected() -> dict[tuple[str, str], str]:
    """What is known to happen, by program and scenario."""
    return {
        (program, scenario): story
        for scenario, stories in OBSERVED.items()
        for story, patterns in stories.items()
        for program in PROGRAMS
        if any(fnmatch(program, pattern) for pattern in patterns)
    }


def unexpected(outcomes: Outcomes) -> dict[str, list[str]]:
    """The scenarios in which something else happened, by program."""
    found: dict[str, list[str]] = {}
    for (program, scenario), story in expected().items():
        if str(outcomes[program][scenario]) != story:
            found.setdefault(program, []).append(scenario)
    return found
