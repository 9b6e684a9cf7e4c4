"""What a configuration leaves open to others than this machine: nothing wrong, but nothing that should surprise.

Knows addresses and the configuration; whoever calls it decides where it is told.
"""

from ipaddress import ip_address

from tricast.config import SYSTEMD_HOST, UNIX_HOST, Config


def is_host_for_others(host: str) -> bool:
    """Whether ``server.host`` lets other machines connect; what systemd opens is not known before it is there."""
    if host.startswith((UNIX_HOST, SYSTEMD_HOST)) or host == "localhost":
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:  # a name, or every address
        return True


def exposures(config: Config) -> list[str]:
    """What anybody can do, or see, of a server that other machines reach, in words for the log."""
    found = []
    if not config.auth.is_on:
        everything = "subscribe" if config.publish.require_client_certificate else "subscribe and publish"
        found.append(f"without [auth], whoever can connect may {everything} to everything")
    if not config.tls.certificate and not config.server.trusted_proxies:
        found.append(
            "there is no [tls], and no proxy in server.trusted_proxies: who is on the way reads everything, tokens too"
        )
    return found
