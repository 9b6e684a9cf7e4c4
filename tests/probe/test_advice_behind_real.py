"""What the probe advises, written into real proxies as it stands there, leaves nothing to be advised."""

import re

from probe.again import WITHIN, until_right
from probe.probing import TOKEN, probed
from proxies.real import real_proxy

from tricast.probe.advice import PROBLEMS, advise
from tricast.probe.findings import Verdict
from tricast.probe.run import Outcome, Plan, examine


def advised(proxy):
    """The whole snippet for one proxy."""
    ((_, lines),) = advise([proxy], PROBLEMS)
    return "\n".join(lines)


def nginx():
    mapping, _, location = advised("nginx").partition("\n")
    upstream = "upstream tricast { server 127.0.0.1:@origin_port@; keepalive 32; }"
    return f"events {{}}\nhttp {{\n{mapping}\n{upstream}\nserver {{ listen 127.0.0.1:@port@;\n{location}\n}} }}\n"


def haproxy():
    front = "frontend front\n    bind 127.0.0.1:@port@\n    default_backend tricast\n"
    return f"{advised('haproxy')}\n    mode http\n{front}backend tricast\n    server origin 127.0.0.1:@origin_port@\n"


def caddy():
    site = advised("caddy").replace("127.0.0.1:8080", "127.0.0.1:@origin_port@")
    return f"{{\n    admin off\n    auto_https off\n}}\n:@port@ {{\n    bind 127.0.0.1\n{site}\n}}\n"


def apache():
    lines = re.sub(r"(?m)^(SetEnv|CacheDisable) .*$", "", advised("apache"))  # of modules that are not loaded here
    return lines.replace("127.0.0.1:8080", "127.0.0.1:@origin_port@")


def varnish():
    backend = 'backend default { .host = "127.0.0.1"; .port = "@origin_port@"; }'
    return f"vcl 4.1;\n{backend}\n{advised('varnish')}\n"


CONFIGS = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy, "apache": apache, "varnish": varnish}


async def test_what_is_advised_helps():
    found: dict[str, Outcome] = {}

    async def probe(kind: str, _: float) -> None:
        async with real_proxy(kind, CONFIGS[kind](), origin_port=server.port) as proxy:
            found[kind] = Outcome(plan=Plan(url=proxy.url, token=TOKEN))
            await examine(found[kind])

    def check(kind: str) -> None:
        assert found[kind].is_companion
        assert found[kind].proxies[:1] == [kind]
        faulty = (Verdict.ADVICE, Verdict.BROKEN)
        left = [f"{f.title}: {f.summary}" for f in found[kind].findings if f.verdict in faulty]
        # Whatever is configured, these two notice that a client has left only when there is something to write to it.
        if kind in ("apache", "varnish"):
            left = [words for words in left if not words.startswith(("poll leaving", "silent sse leaving"))]
        assert left == []

    async with probed(within=WITHIN) as (server, _):
        await until_right(CONFIGS, probe, check)
