"""What a server tells that other machines can reach, and of which nobody said who may do what."""

import socket
from typing import Any

import pytest
from credentials import AUTH
from serving import capturing_logger
from structlog.testing import LogCapture

from tricast import Config
from tricast.exposure import exposures, is_host_for_others
from tricast.listening import announce


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", False),
        ("127.8.9.1", False),
        ("::1", False),
        ("localhost", False),
        ("unix:/run/tricast.sock", False),
        ("systemd:", False),
        ("", True),
        ("0.0.0.0", True),
        ("::", True),
        ("10.0.0.7", True),
        ("push.example", True),
    ],
)
def test_which_hosts_are_for_others(host: str, *, expected: bool) -> None:
    assert is_host_for_others(host) is expected


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, ["auth", "tls"]),
        ({"auth": AUTH}, ["tls"]),
        ({"server": {"trusted_proxies": ["10.0.0.7"]}}, ["auth"]),
        ({"tls": {"certificate": "server.pem"}}, ["auth"]),
        ({"auth": AUTH, "tls": {"certificate": "server.pem"}}, []),
    ],
)
def test_what_is_open(sections: dict[str, Any], expected: list[str]) -> None:
    told = exposures(Config(**sections))
    assert [words.split("[")[1].split("]")[0] for words in told] == expected


def test_who_shows_no_certificate_may_only_subscribe() -> None:
    config = Config(
        tls={"certificate": "server.pem", "client_ca": "ca.pem"}, publish={"require_client_certificate": True}
    )
    assert exposures(config) == ["without [auth], whoever can connect may subscribe to everything"]


@pytest.mark.parametrize(("host", "warnings"), [("127.0.0.1", 0), ("0.0.0.0", 2)])
def test_it_is_told_with_the_address(host: str, warnings: int) -> None:
    logged = LogCapture()
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as local:
        listener.bind((host, 0))
        announce([local, listener], [], Config(), capturing_logger(logged))
    assert [entry["log_level"] for entry in logged.entries] == ["info"] * 2 + ["warning"] * warnings
    assert [entry["event"] for entry in logged.entries[2:]] == exposures(Config())[:warnings]
