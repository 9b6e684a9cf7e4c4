"""Which server gets a request: the methods, the weights, who may not, and the cookie that holds a client."""

import random
from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tricast_proxy.balance import Balancer, Choice
from tricast_proxy.config import BalanceSection, HealthSection, ServerEntry
from tricast_proxy.heads import Fields, RequestHead
from tricast_proxy.servers import Health, Server

PEER = "192.0.2.1"


def request(target: str = "/", *fields: tuple[str, str]) -> RequestHead:
    encoded: Fields = [(name.encode(), value.encode()) for name, value in fields]
    return RequestHead(b"GET", target.encode(), encoded, b"1.1")


def with_cookie(value: str) -> RequestHead:
    return request("/", ("Cookie", value))


class World:
    """Some servers, and a balancer in front of them.

    Args:
        servers: label to what its entry has beside.
        config: the section ``[balance]``.
    """

    def __init__(self, servers: dict[str, dict[str, Any]], health: dict[str, Any] | None = None, **config: Any) -> None:
        self.now = 1000.0
        rules = HealthSection(**(health or {}))
        entries = [
            ServerEntry(address=f"127.0.0.1:{8081 + n}", name=name, **servers[name]) for n, name in enumerate(servers)
        ]
        self.servers = {entry.label: Server(entry, rules) for entry in entries}
        section = BalanceSection(**config)
        self.balancer = Balancer(list(self.servers.values()), section, random.Random(7), lambda: self.now)

    def choose(self, asked: RequestHead | None = None, peer: str = PEER, exclude: Collection[str] = ()) -> str | None:
        choice = self.choice(asked, peer, exclude)
        return None if choice is None else choice.server.label

    def choice(
        self, asked: RequestHead | None = None, peer: str = PEER, exclude: Collection[str] = (), **more: Any
    ) -> Choice | None:
        excluded = [self.servers[label] for label in exclude]
        return self.balancer.choose(asked if asked is not None else request(), peer, excluded, **more)

    def in_a_row(self, count: int) -> str:
        return "".join(self.choose() or "-" for _ in range(count))

    def down(self, *labels: str) -> None:
        for label in labels:
            self.servers[label].ask(Health.DOWN, self.now)

    def up(self, *labels: str) -> None:
        for label in labels:
            self.servers[label].ask(Health.UP, self.now)

    def drain(self, *labels: str) -> None:
        for label in labels:
            self.servers[label].ask(Health.DRAINING, self.now)


def three(**config: Any) -> World:
    return World({"a": {}, "b": {}, "c": {}}, **config)


# The methods


def test_in_turn() -> None:
    assert three().in_a_row(7) == "abcabca"


def test_in_turn_by_weight_and_never_in_a_burst() -> None:
    assert World({"a": {"weight": 5}, "b": {}, "c": {}}).in_a_row(14) == "aabacaa" * 2


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_whole_turn_gives_each_what_it_weighs(weights: list[int]) -> None:
    world = World({str(n): {"weight": weight} for n, weight in enumerate(weights)})
    for _ in range(3):
        turn = Counter(world.in_a_row(sum(weights)))
        assert turn == {str(n): weight for n, weight in enumerate(weights)}


def test_the_least_busy() -> None:
    world = three(method="least_connections")
    world.servers["a"].active, world.servers["b"].active, world.servers["c"].active = 2, 1, 2
    assert world.choose() == "b"
    world.servers["b"].active = 2
    assert world.in_a_row(3) == "abc", "in turn where all are as busy"


def test_the_least_busy_by_weight() -> None:
    world = World({"a": {"weight": 3}, "b": {}}, method="least_connections")
    given = []
    for _ in range(8):
        label = world.choose()
        assert label is not None
        world.servers[label].active += 1
        given.append(label)
    assert Counter(given) == {"a": 6, "b": 2}


def test_at_random_by_weight() -> None:
    drawn = Counter(World({"a": {"weight": 3}, "b": {}}, method="random").in_a_row(1000))
    assert 650 < drawn["a"] < 850
    assert drawn["a"] + drawn["b"] == 1000


def test_the_first_that_can() -> None:
    world = three(method="first")
    assert world.in_a_row(3) == "aaa"
    world.down("a")
    assert world.in_a_row(3) == "bbb"
    world.servers["b"].entry = world.servers["b"].entry.model_copy(update={"max_connections": 1})
    world.servers["b"].active = 1
    assert world.choose() == "c"


# By a hash


@pytest.mark.parametrize(
    ("key", "of_one", "of_another"),
    [
        ("path", request("/a?x=1"), request("/b?x=1")),
        ("header:X-User", request("/", ("x-user", "a")), request("/", ("X-USER", "b"))),
        ("query:sid", request("/?x=1&sid=a"), request("/?x=1&sid=b")),
        ("query:sid", request("/?sid=%61%26"), request("/?sid=b%26")),
        ("cookie:uid", with_cookie("x=1; uid=a"), with_cookie("x=1; uid=b")),
    ],
)
def test_what_is_hashed(key: str, of_one: RequestHead, of_another: RequestHead) -> None:
    world = World({str(n): {} for n in range(200)}, method="hash", hash_key=key)
    one, another = world.choose(of_one, "192.0.2.1"), world.choose(of_another, "192.0.2.1")
    assert one != another, "with 200 servers, the same one by chance would be bad luck that does not change"
    for peer in ("192.0.2.2", "192.0.2.3"):
        assert world.choose(of_one, peer) == one
        assert world.choose(of_another, peer) == another


def test_the_same_key_written_in_another_way() -> None:
    world = World({str(n): {} for n in range(200)}, method="hash", hash_key="query:sid")
    assert world.choose(request("/?sid=a%2Fb")) == world.choose(request("/elsewhere?more=1&sid=a/b"))
    world = World({str(n): {} for n in range(200)}, method="hash", hash_key="path")
    assert world.choose(request("/a?x=1")) == world.choose(request("/a"))


def test_the_address_is_hashed() -> None:
    world = World({str(n): {} for n in range(200)}, method="hash")
    assert world.choose(request("/a"), "192.0.2.1") == world.choose(request("/b"), "192.0.2.1")
    assert len({world.choose(peer=f"192.0.2.{n}") for n in range(20)}) > 10


@pytest.mark.parametrize("key", ["header:X-User", "query:sid", "cookie:uid"])
def test_without_a_key_they_are_shared_in_turn(key: str) -> None:
    assert three(method="hash", hash_key=key).in_a_row(6) == "abcabc"


def test_an_empty_key_is_a_key() -> None:
    world = three(method="hash", hash_key="query:sid")
    assert len({world.choose(request("/?sid=")) for _ in range(5)}) == 1


labels = st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=2, max_size=8, unique=True)


@given(labels, st.lists(st.text(max_size=12), max_size=50), st.data())
def test_when_a_server_goes_only_its_keys_move(labels: list[str], keys: list[str], data: st.DataObject) -> None:
    weights = {label: {"weight": data.draw(st.integers(1, 10))} for label in labels}
    world = World(weights, method="hash")
    before = {key: world.choose(peer=key) for key in keys}
    gone = data.draw(st.sampled_from(labels))
    world.down(gone)
    for key, label in before.items():
        now = world.choose(peer=key)
        assert now == label if label != gone else now != gone
    world.up(gone)
    assert {key: world.choose(peer=key) for key in keys} == before


def test_keys_are_spread_by_weight() -> None:
    world = World({"a": {"weight": 3}, "b": {}, "c": {}}, method="hash")
    spread = Counter(world.choose(peer=f"{n}") for n in range(2000))
    assert 1000 * 0.85 < spread["a"] / 1.2 < 1000 * 1.15
    for label in "bc":
        assert 400 * 0.8 < spread[label] < 400 * 1.2


def test_another_process_chooses_the_same() -> None:
    # What these keys get must never change: two proxies, or one before and after a restart, would not agree.
    world = three(method="hash")
    assert "".join(world.choose(peer=f"192.0.2.{n}") or "" for n in range(20)) == "bbaabbbaaacabbbcbcbb"


# Who may not


def test_who_is_down_gets_nothing() -> None:
    world = three()
    world.down("b")
    assert world.in_a_row(4) == "acac"
    world.down("a", "c")
    assert world.choose() is None


def test_who_was_tried_is_not_tried_again() -> None:
    world = three()
    assert world.choose(exclude="a") == "b"
    assert world.choose(exclude="ab") == "c"
    assert world.choose(exclude="abc") is None


def test_who_is_full_gets_nothing() -> None:
    world = World({"a": {"max_connections": 2}, "b": {}})
    world.servers["a"].active = 2
    assert world.in_a_row(2) == "bb"
    world.servers["a"].active = 1
    assert set(world.in_a_row(2)) == {"a", "b"}


@pytest.mark.parametrize("method", ["round_robin", "least_connections", "random", "first", "hash"])
def test_backups_stand_in_when_no_other_can(method: str) -> None:
    world = World({"a": {"max_connections": 1}, "b": {}, "x": {"backup": True}, "y": {"backup": True}}, method=method)
    assert {world.choose(peer=str(n)) for n in range(60)} <= {"a", "b"}
    world.down("b")
    assert {world.choose(peer=str(n)) for n in range(60)} == {"a"}
    assert world.choose(exclude="a") in ("x", "y")
    world.servers["a"].active = 1
    backups = {world.choose(peer=str(n)) for n in range(60)}
    assert backups == ({"x"} if method == "first" else {"x", "y"})
    world.up("b")
    assert world.choose() == "b"


@pytest.mark.parametrize("method", ["round_robin", "least_connections", "random", "first", "hash"])
@given(data=st.data())
def test_nobody_gets_what_it_must_not(method: str, data: st.DataObject) -> None:
    labels = "abcde"
    world = World(
        {label: {"backup": data.draw(st.booleans()), "max_connections": 1} for label in labels}, method=method
    )
    for server in world.servers.values():
        server.active = data.draw(st.integers(0, 1))
        server.ask(data.draw(st.sampled_from(Health)), world.now)
    exclude = data.draw(st.sets(st.sampled_from(labels)))
    able = {
        label: server.entry.backup
        for label, server in world.servers.items()
        if not server.active and server.health(world.now) is Health.UP and label not in exclude
    }
    best = {label for label, is_backup in able.items() if not is_backup} or set(able)
    chosen = world.choose(peer=data.draw(st.text()), exclude=exclude)
    assert chosen in best if best else chosen is None


def test_a_server_that_has_come_up_starts_slowly() -> None:
    world = World({"a": {}, "b": {}}, health={"slow_start": 10.0})
    world.down("b")
    world.up("b")
    world.now += 1.0
    assert 5 < Counter(world.in_a_row(100))["b"] < 15
    world.now += 4.0
    assert 28 < Counter(world.in_a_row(100))["b"] < 38
    world.now += 5.0
    assert Counter(world.in_a_row(100))["b"] in (49, 50, 51)


def test_what_is_not_http_is_known_by_its_address_alone() -> None:
    world = World({str(n): {} for n in range(200)}, method="hash")
    assert world.balancer.choose(None, PEER) == Choice(world.servers[world.choose() or ""], [])
    for key in ("path", "header:X-User", "query:sid", "cookie:uid"):
        balancer = three(method="hash", hash_key=key, sticky=True).balancer
        choices = [balancer.choose(None, PEER) for _ in range(4)]
        assert [choice.server.label for choice in choices if choice is not None] == ["a", "b", "c", "a"]
        assert not any(choice.fields for choice in choices if choice is not None)


# The cookie


def cookie_of(choice: Choice | None) -> tuple[str, list[str]]:
    """The pair of a ``Set-Cookie``, and its attributes."""
    assert choice is not None
    ((name, value),) = choice.fields
    assert name == b"Set-Cookie"
    pair, *attributes = value.decode().split("; ")
    return pair, attributes


def test_a_new_client_gets_a_cookie_and_comes_back_by_it() -> None:
    world = three(sticky=True)
    pairs = {}
    for label in "abc":
        choice = world.choice()
        assert choice is not None
        assert choice.server.label == label
        pairs[label], attributes = cookie_of(choice)
        assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax"]
    assert len(set(pairs.values())) == 3
    for label, pair in pairs.items():
        for field in (pair, f"x=1; {pair}", f"{pair};y=2", f"tricast_server=; {pair}"):
            assert world.choice(with_cookie(field)) == Choice(world.servers[label], []), "and no cookie again"


def test_a_client_that_came_by_tls_sends_its_cookie_no_other_way() -> None:
    _, attributes = cookie_of(three(sticky=True).choice(is_secure=True))
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax", "Secure"]


def test_a_cookie_for_some_time() -> None:
    _, attributes = cookie_of(three(sticky=True, cookie_ttl=90.5).choice())
    assert attributes == ["Path=/", "Max-Age=91", "HttpOnly", "SameSite=Lax"]


def test_the_cookie_tells_nothing_of_the_server() -> None:
    world = World({"secret-name": {}}, sticky=True, cookie="sid")
    pair, _ = cookie_of(world.choice())
    name, _, value = pair.partition("=")
    assert name == "sid"
    assert len(bytes.fromhex(value)) == 32
    assert "secret" not in pair


def test_a_shared_secret_holds_across_proxies_and_restarts() -> None:
    one, other = three(sticky=True, cookie_secret="s"), three(sticky=True, cookie_secret="s")
    pair, _ = cookie_of(one.choice())
    for _ in range(3):
        assert other.choose(with_cookie(pair)) == "a"


@pytest.mark.parametrize("secrets", [("", ""), ("s", "t"), ("s", "")])
def test_a_cookie_of_another_making_is_none(secrets: tuple[str, str]) -> None:
    one, other = (three(sticky=True, cookie_secret=secret) for secret in secrets)
    pair, _ = cookie_of(one.choice())
    choices = [other.choice(with_cookie(pair)) for _ in range(3)]
    assert [choice.server.label for choice in choices if choice is not None] == ["a", "b", "c"]
    assert all(choice is not None and choice.fields for choice in choices)


@pytest.mark.parametrize("value", ["a", "127.0.0.1:8081", "", "0" * 64, "é", '"a"'])
def test_a_cookie_that_was_made_up_is_none(value: str) -> None:
    world = three(sticky=True, cookie_secret="s")
    assert [world.choose(with_cookie(f"tricast_server={value}")) for _ in range(3)] == ["a", "b", "c"]


def test_a_client_goes_elsewhere_when_its_server_is_gone_and_stays_there() -> None:
    world = three(sticky=True)
    pair, _ = cookie_of(world.choice())
    world.down("a")
    moved = world.choice(with_cookie(pair))
    assert moved is not None
    assert moved.server.label != "a"
    new_pair, _ = cookie_of(moved)
    world.up("a")
    for _ in range(3):
        assert world.choice(with_cookie(new_pair)) == Choice(moved.server, [])


@pytest.mark.parametrize("why", ["down", "full", "tried"])
def test_a_client_that_must_not_go_elsewhere(why: str) -> None:
    world = World({"a": {"max_connections": 1}, "b": {}}, sticky=True, sticky_failover="fail")
    pair, _ = cookie_of(world.choice())
    exclude = "a" if why == "tried" else ""
    if why == "down":
        world.down("a")
    world.servers["a"].active = why == "full"
    assert world.choose(with_cookie(pair), exclude=exclude) is None
    assert world.choose(exclude=exclude) == "b", "a new client has nothing to lose"


def test_a_server_that_drains_keeps_its_clients_and_gets_no_others() -> None:
    world = three(sticky=True)
    pair, _ = cookie_of(world.choice())
    world.drain("a")
    for _ in range(3):
        assert world.choice(with_cookie(pair)) == Choice(world.servers["a"], [])
    assert "a" not in world.in_a_row(6)
    world.servers["a"].checked(world.now, is_well=False, detail="gone")
    assert world.choose(with_cookie(pair)) in ("b", "c"), "to drain is no reason to send anybody to who is down"


def test_without_stickiness_a_server_that_drains_gets_nothing() -> None:
    world = three(method="hash")
    world.drain("a", "b")
    assert {world.choose(peer=str(n)) for n in range(30)} == {"c"}
    world.drain("c")
    assert world.choose() is None


def test_a_client_stays_with_a_backup() -> None:
    world = World({"a": {}, "x": {"backup": True}}, sticky=True)
    world.down("a")
    pair, _ = cookie_of(world.choice())
    world.up("a")
    assert world.choose(with_cookie(pair)) == "x"
    assert world.choose() == "a"


# What the server sees of it

OWN = "tricast_server=1"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([OWN], []),
        ([f"a=1; {OWN}"], ["a=1"]),
        ([f"{OWN}; a=1"], ["a=1"]),
        ([f"a=1;{OWN};b=2"], ["a=1;b=2"]),
        ([f"a=1; {OWN}; {OWN}2; b=2"], ["a=1; b=2"]),
        ([f"a=1; {OWN}", "b=2", OWN], ["a=1", "b=2"]),
        (["my_tricast_server=1; b=tricast_server"], ["my_tricast_server=1; b=tricast_server"]),
        (["a=1 ;; b "], ["a=1 ;; b "]),
    ],
)
def test_the_server_does_not_see_the_cookie(before: list[str], after: list[str]) -> None:
    def fields(values: list[str]) -> Fields:
        return [(b"Host", b"x"), *((b"cOOkie", value.encode()) for value in values), (b"X", OWN.encode())]

    assert three(sticky=True).balancer.without_cookie(fields(before)) == fields(after)
    for world in (three(), three(sticky=True, cookie_strip=False)):
        assert world.balancer.without_cookie(fields(before)) == fields(before)
