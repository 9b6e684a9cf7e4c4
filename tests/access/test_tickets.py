"""Tickets: whose they are, how long they are good, and that each is good once."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from access.making import NOW, SECRET, Clock, Fixture, auth_of
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tricast.access.identity import Identity
from tricast.access.tickets import PREFIX, Tickets
from tricast.access.uses import OwnUses, SharedUses, Uses
from tricast.errors import LimitExceeded, Unauthorized

BOB = Identity("sub:bob", "bob", ("users.bob.>", "open"), ("chat.*",), NOW + 600.5)
SHARED = "a secret that servers have in common"


def refusal_of(tickets: Tickets, ticket: str) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        tickets.redeem(ticket)
    assert caught.value.status == 401
    return caught.value


def tickets_of(clock: Clock, uses: Uses | None = None, **keys: object) -> Tickets:
    return Tickets(auth_of(**keys), OwnUses(1000) if uses is None else uses, clock=clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory() -> Iterator[int]:
    """What several processes have in common, for so many tickets as one bucket holds."""
    fd = SharedUses.create(1)
    yield fd
    os.close(fd)


@pytest.fixture(params=["own", "shared"])
def uses(request: pytest.FixtureRequest, memory: int) -> Uses:
    return OwnUses(32) if request.param == "own" else SharedUses(memory)


@pytest.mark.parametrize("identity", [BOB, Identity("key:ci", None, (), ("a",)), Identity("", None, (), ())])
def test_whose_it_is(clock: Clock, uses: Uses, identity: Identity) -> None:
    tickets = tickets_of(clock, uses)
    assert tickets.redeem(tickets.issue(identity)) == identity


def test_it_can_be_in_a_url_and_tells_nothing(clock: Clock) -> None:
    ticket = tickets_of(clock).issue(BOB)
    assert ticket.replace("-", "").replace("_", "").isalnum()
    assert ticket.isascii()
    content = base64.urlsafe_b64decode(ticket + "==")
    assert b"bob" not in content
    assert b"chat" not in content
    assert len({tickets_of(clock, ticket_secret=SHARED).issue(BOB) for _ in range(10)}) == 10


def test_it_is_good_once(clock: Clock, uses: Uses) -> None:
    tickets = tickets_of(clock, uses)
    first, second = tickets.issue(BOB), tickets.issue(BOB)
    tickets.redeem(first)
    assert refusal_of(tickets, first).code == "ticket-used"
    tickets.redeem(second)
    # Other ways to write the same are the same.
    for again in (first, first + "=", first + "==", second):
        assert refusal_of(tickets, again).code in {"ticket-used", "ticket-malformed"}


def test_it_is_not_good_for_long(clock: Clock, uses: Uses) -> None:
    tickets = tickets_of(clock, uses, ticket_lifetime="30s")
    early, late = tickets.issue(BOB), tickets.issue(BOB)
    clock.now = NOW + 29.9
    assert tickets.redeem(early) == BOB
    clock.now = NOW + 30
    assert refusal_of(tickets, late).code == "ticket-expired"
    clock.now = NOW + 42
    refused = refusal_of(tickets, late)
    assert (refused.code, refused.detail) == ("ticket-expired", "the ticket expired 12 s ago")
    # One that was used is not used again because nobody remembers it any more.
    assert refusal_of(tickets, early).code == "ticket-expired"


def test_it_is_good_no_longer_than_the_token(clock: Clock) -> None:
    tickets = tickets_of(clock)
    ticket = tickets.issue(BOB._replace(expires_at=NOW + 5))
    clock.now = NOW + 5
    assert refusal_of(tickets, ticket).code == "ticket-expired"


def test_another_server_takes_it_only_when_they_have_a_secret_in_common(clock: Clock) -> None:
    alone = tickets_of(clock), tickets_of(clock), tickets_of(clock, ticket_secret=SHARED)
    for issuer in alone:
        for other in alone:
            if issuer is not other:
                assert refusal_of(other, issuer.issue(BOB)).code == "ticket-unknown"
    together = tickets_of(clock, ticket_secret=SHARED)
    ticket = alone[2].issue(BOB)
    assert together.redeem(ticket) == BOB
    # Those that have no more than the secret in common remember for themselves.
    assert alone[2].redeem(ticket) == BOB
    assert refusal_of(together, ticket).code == "ticket-used"


@pytest.mark.parametrize(
    "ticket",
    [
        "",
        "x",
        "!" * 60,
        "A" * 37,
        "A" * 100_000,
        "\u00fc" * 60,
        "A B" * 20,
        "\ud800" * 60,
        PREFIX,
        PREFIX + "A" * 37,
        PREFIX + "!" * 60,
        "A" * 100,
    ],
)
def test_what_is_no_ticket(clock: Clock, ticket: str) -> None:
    refused = refusal_of(tickets_of(clock), ticket)
    assert (refused.code, refused.detail) == ("ticket-malformed", "this is no ticket")


def test_made_up_tickets(clock: Clock) -> None:
    tickets = tickets_of(clock, ticket_secret=SHARED)
    assert refusal_of(tickets, PREFIX + base64.urlsafe_b64encode(os.urandom(60)).decode()).code == "ticket-unknown"
    # Nor is a ticket what was sealed with the same secret for something else, nor the secret a key as it is.
    sealed = bytes(12) + AESGCM(SHARED.encode()[:32]).encrypt(bytes(12), b"x" * 20, b"")
    assert refusal_of(tickets, PREFIX + base64.urlsafe_b64encode(sealed).decode()).code == "ticket-unknown"


GOOD_TICKETS = tickets_of(Clock())
GOOD = GOOD_TICKETS.issue(BOB)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_ticket_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD) - 1))
    changed = GOOD[:at] + data.draw(st.sampled_from("AbC09-_=+/ \u00fc")) + GOOD[at + data.draw(st.integers(0, 2)) :]
    if changed != GOOD:
        # The last character may stand for bits that no byte has.
        try:
            identity = GOOD_TICKETS.redeem(changed)
        except Unauthorized:
            return
        assert identity == BOB
        assert changed[:-1] == GOOD[:-1]


# What is remembered


def test_so_many_are_remembered(clock: Clock, uses: Uses) -> None:
    tickets = tickets_of(clock, uses, max_tickets=32, ticket_lifetime="30s")
    issued = [tickets.issue(BOB) for _ in range(33)]
    for ticket in issued[:32]:
        tickets.redeem(ticket)
    with pytest.raises(LimitExceeded) as caught:
        tickets.redeem(issued[32])
    assert (caught.value.reason, caught.value.status, caught.value.close_code) == ("auth.max_tickets", 503, 1013)
    assert caught.value.headers == ((b"retry-after", b"30"),)
    # Rather than one that was used, one that was not is refused.
    assert {refusal_of(tickets, ticket).code for ticket in issued[:32]} == {"ticket-used"}
    clock.now = NOW + 29
    late = [tickets.issue(BOB) for _ in range(32)]
    clock.now = NOW + 30
    assert {tickets.redeem(ticket) for ticket in late} == {BOB}
    assert {refusal_of(tickets, ticket).code for ticket in late} == {"ticket-used"}


def test_an_access_remembers_as_many_as_it_is_told_to() -> None:
    fixture = Fixture(max_tickets=2)
    for _ in range(2):
        fixture.access.redeem(fixture.access.issue_ticket(BOB))
    with pytest.raises(LimitExceeded):
        fixture.access.redeem(fixture.access.issue_ticket(BOB))


def test_what_has_expired_is_forgotten(clock: Clock) -> None:
    uses = OwnUses(100)
    tickets = tickets_of(clock, uses)
    for _ in range(100):
        tickets.redeem(tickets.issue(BOB))
        clock.now += 1
    assert len(uses) <= 31


@pytest.mark.parametrize("capacity", [1, 100, 3000])
def test_processes_that_have_memory_in_common(clock: Clock, capacity: int) -> None:
    fd = SharedUses.create(capacity)
    one, other = (tickets_of(clock, SharedUses(fd), ticket_secret=SHARED) for _ in range(2))
    for number in range(min(capacity, 500)):
        ticket = one.issue(BOB)
        first, second = (one, other) if number % 2 else (other, one)
        assert first.redeem(ticket) == BOB
        assert refusal_of(second, ticket).code == "ticket-used"
        assert refusal_of(first, ticket).code == "ticket-used"
    os.close(fd)


_TAKING = """
import sys
from tricast.access.uses import NoRoom, SharedUses

def take(ticket):
    while True:
        try:
            return uses.add(ticket, 2.0, 1.0)
        except NoRoom:
            pass

uses = SharedUses(int(sys.argv[1]))
print(flush=True)
sys.stdin.readline()
print(*(int(take(number.to_bytes(12, "little"))) for number in range(1, 2**64, 2**64 // 300)))
"""


def test_of_processes_that_come_at_once_one_is_let_in() -> None:
    """Several with each of many tickets, in the same order."""
    fd = SharedUses.create(3000)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "pass_fds": [fd]}
    with ExitStack() as processes:
        command = [sys.executable, "-c", _TAKING, str(fd)]
        children = [processes.enter_context(subprocess.Popen(command, **pipes)) for _ in range(2)]
        for child in children:
            assert child.stdout.readline() == b"\n"
        for child in children:
            child.stdin.write(b"\n")
            child.stdin.flush()
        taken = [child.stdout.read().split() for child in children]
    os.close(fd)
    assert len(taken[0]) >= 300
    assert [sum(map(int, each)) for each in zip(*taken, strict=True)] == [1] * len(taken[0])


def test_a_process_that_was_stopped_at_the_wrong_moment_holds_nobody_up(clock: Clock, memory: int) -> None:
    holding = "import fcntl,sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "pass_fds": [memory]}
    command = [sys.executable, "-c", holding, str(memory)]
    tickets = tickets_of(clock, SharedUses(memory))
    ticket = tickets.issue(BOB)
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        with pytest.raises(LimitExceeded):
            tickets.redeem(ticket)
        process.kill()
    # What died holds nothing.
    assert tickets.redeem(ticket) == BOB


def test_tickets_of_an_access() -> None:
    fixture = Fixture(ticket_secret=SHARED, key=[{"algorithm": "HS256", "secret": SECRET}])
    ticket = fixture.access.issue_ticket(BOB)
    assert fixture.access.redeem(ticket) == BOB
    with pytest.raises(Unauthorized):
        fixture.access.redeem(ticket)
