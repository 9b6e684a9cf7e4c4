"""Addresses as text, and the networks that they belong to."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast.addresses import UNIX, UNKNOWN, Networks, is_of_this_machine, network_of, normalized, of_node, of_peer


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_address_has_one_way_of_writing(address: str, written: str) -> None:
    assert normalized(address) == written


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2", "192.0.2.1:80", "192.0.2.01", "1", "[::1]", UNIX])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        normalized(text)


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        (("192.0.2.1", 4711), "192.0.2.1"),
        (("2001:db8::1", 4711, 0, 0), "2001:db8::1"),
        (("fe80::1%eth0", 4711, 0, 2), "fe80::1%eth0"),
        (("::ffff:192.0.2.1", 4711, 0, 0), "192.0.2.1"),
        (("::ffff:0:c000:201", 4711, 0, 0), "::ffff:0:c000:201"),
        ("", UNIX),
        ("/somewhere", UNIX),
        (b"\0abstract", UNIX),
    ],
)
def test_what_the_kernel_says_of_a_peer(address: object, peer: str) -> None:
    assert of_peer(address) == peer


@pytest.mark.parametrize(
    ("node", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("192.0.2.1:_secret", "192.0.2.1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:DB8::1]:4711", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("192.0.2.256", None),
        ("192.0.2.1:", None),
        ("[2001:db8::1", None),
        ("[2001:db8::1]4711", None),
        ("fe80::1%eth0", None),
        ("[fe80::1%eth0]", None),
        ("unknown", None),
        ("", None),
        (UNIX, None),
        ("١٢.0.0.1", None),
    ],
)
def test_what_proxies_write(node: str, address: str | None) -> None:
    assert of_node(node) == address


@given(st.text(max_size=60))
def test_whatever_a_proxy_writes_is_an_address_or_none(node: str) -> None:
    address = of_node(node)
    assert address is None or normalized(address) == address


@given(st.ip_addresses())
def test_every_address_is_understood(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert of_node(str(address)) == normalized(str(address))
    assert network_of(str(address))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (UNIX, UNIX),
    ],
)
def test_whose_address_it_is(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", UNIX])
def test_who_is_of_this_machine(address: str) -> None:
    assert is_of_this_machine(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "fe80::1%eth0", "2001:db8::1"])
def test_who_may_be_of_elsewhere(address: str) -> None:
    assert not is_of_this_machine(address)


def test_networks_hold_addresses() -> None:
    networks = Networks(("10.0.0.0/8", "192.0.2.7", "2001:db8::1/32", UNIX))
    for inside in ("10.0.0.1", "10.255.255.255", "192.0.2.7", "2001:db8:ffff::1", UNIX):
        assert inside in networks, inside
    for outside in ("11.0.0.1", "192.0.2.8", "2001:db9::1", "fe80::1%eth0", 10):
        assert outside not in networks, outside
    assert networks


def test_no_networks_hold_nobody() -> None:
    networks = Networks(())
    assert not networks
    assert "127.0.0.1" not in networks
    assert UNIX not in networks
    assert UNIX not in Networks(("0.0.0.0/0", "::/0"))


def test_nobody_trusts_whom_nobody_knows() -> None:
    assert UNKNOWN not in Networks(("0.0.0.0/0", "::/0", UNIX))
    assert network_of(UNKNOWN) == UNKNOWN
