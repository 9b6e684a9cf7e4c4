"""``tricast proxy``: the command that runs the proxy."""
# ruff: noqa: PLC0415 - everything heavy is imported by the command, so that --help is quick.

from typing import Any

import click

_SET = """Set a key, as in tunnel.idle_timeout=10s; a list is retry.on=connect,empty or '["connect","empty"]', a table
headers.request_add='{X-A="b"}'."""
_FAULT = """Something that goes wrong on purpose, as in transport=sse,reset_after=10s; once for each. The keys are those
of [[fault]], and these take the place of those in the file."""


@click.command()
@click.option("--config", "file", metavar="FILE", show_default="none", help="Read this TOML file.")
@click.option("--listen", metavar="H:P", show_default="127.0.0.1:8000", help="Listen there; port 0 picks a free one.")
@click.option(
    "--upstream",
    "upstreams",
    metavar="H:P",
    multiple=True,
    show_default="127.0.0.1:8080",
    help="A server to forward to; may be given several times.",
)
@click.option("--profile", metavar="NAME", show_default="plain", help="Behave like this product; see --list-profiles.")
@click.option("--chain", metavar="A,B,C", help="Several proxies one behind the other, the first one in front.")
@click.option("--speed", metavar="N", type=float, show_default="1", help="Divide every timer by this.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help=_SET)
@click.option("--fault", "faults", metavar="KEY=VALUE,…", multiple=True, help=_FAULT)
@click.option("--list-profiles", is_flag=True, help="Print the profiles, and what each of them does.")
@click.option("--print-config", is_flag=True, help="Print the configuration, and how each value is known.")
@click.option("--check", is_flag=True, help="Check the configuration, and do nothing else.")
def proxy(**options: Any) -> None:
    """Run the reverse proxy, which behaves like those that people deploy.

    Settings come from the defaults, then the profile, then the file, then TRICAST_PROXY_SECTION__KEY variables, then
    these options.
    """
    from tricast_proxy.program import main

    main(**options)
