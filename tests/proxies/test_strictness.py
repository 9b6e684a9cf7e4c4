"""No request that breaks a rule gets through, whichever way it comes, and nginx refuses nothing that gets through.

Each vector is also sent byte by byte, with other bytes behind it, and in variations that are made from it.
"""

import random
import re
from contextlib import suppress
from typing import NamedTuple

import pytest
import trio
import trio.lowlevel
from clocks import HANG_SECONDS
from proxies.matrix import profile, real
from proxies.origin import Origin
from proxies.played.framing import REFUSED, VECTORS, Vector
from proxies.programs import PROGRAMS
from proxies.recorder import Gone, Recorder, read_responses

#: With nothing of an imitation about it but that it is strict.
PLAIN = PROGRAMS["nginx-default"]._replace(name="plain", settings={})
#: How many variations there are of each vector, and from which seed they are made.
VARIATIONS = 4
SEED = 1
FORBIDDEN = [vector for vector in VECTORS if vector.rule and vector.strict == REFUSED]


class Sent(NamedTuple):
    """What became of a request.

    Attributes:
        status: of the first response; 0 if there was none.
        reached: whether the origin saw any of it.
    """

    status: int
    reached: bool

    @property
    def was_refused(self) -> bool:
        """Whether nobody answered it but whoever read it first."""
        return self.status == 0 or self.status >= 400


def variations(vector: Vector, number: int) -> list[bytes]:
    """The vector as it is, and with fields more, which leave what is odd about it in it."""
    source = random.Random(f"{SEED} {vector.title}")
    fields = (b"X-More: %d", b"Accept: text/%d", b"Cookie: a=%d", b"Connection: keep-alive, x%d")
    made = [vector.data(name_of(number, 0))]
    for variation in range(1, VARIATIONS + 1):
        lines = vector.data(name_of(number, variation)).split(b"\r\n")
        at = next((place for place, line in enumerate(lines) if line.startswith(b"Host:")), 0)
        if at:  # before Host, where nothing is odd yet, or behind it
            lines.insert(at + source.randrange(2), source.choice(fields) % source.randrange(1000))
        made.append(b"\r\n".join(lines))
    return made


def name_of(number: int, variation: int) -> str:
    return f"c-vector-{number}-{variation}"


async def send(port: int, origin: Origin, data: bytes, name: str, *, bytewise: bool = False) -> Sent:
    """Sends a request, and waits for what comes for it."""
    async with trio.open_nursery() as nursery:
        sock = trio.socket.socket()
        with sock:
            await sock.connect(("127.0.0.1", port))
            client = Recorder(sock)
            nursery.start_soon(client.record)
            with suppress(Gone):  # it is told as what came before
                for part in (data[at : at + 1] for at in range(len(data))) if bytewise else (data,):
                    await client.send(part)
            await client.wait_data(b"\r\n\r\n", HANG_SECONDS)
            nursery.cancel_scope.cancel()
    responses, _ = read_responses(bytes(client.data), ended=client.end and client.end.how)
    return Sent(responses[0].status if responses else 0, origin.saw(name.encode()))


@pytest.mark.parametrize("bytewise", [False, True], ids=["at once", "byte by byte"])
async def test_what_a_rule_forbids_is_refused_and_reaches_nobody(bytewise: bool) -> None:
    origin = Origin({})
    let_through = []
    async with origin.listening(), profile(PLAIN, origin) as port:
        for number, vector in enumerate(FORBIDDEN):
            made = variations(vector, number)
            for variation, data in enumerate(made[:1] if bytewise else made):
                sent = await send(port, origin, data, name_of(number, variation), bytewise=bytewise)
                # What is wrong with a chunk is seen only when the head has gone up, if it does not come with it.
                may_reach = vector.is_streamed and bytewise
                if sent.status < 400 or (sent.reached and not may_reach):
                    let_through.append((vector.title, data[:200], sent))
    assert not let_through


async def test_nginx_refuses_nothing_that_the_proxy_lets_through() -> None:
    """Some of what is sent has nothing wrong with it, so that it is seen that something gets through at all."""
    behind_nginx, behind_proxy = Origin({}), Origin({})
    let_through, passed = [], 0
    async with (
        behind_nginx.listening(),
        behind_proxy.listening(),
        real(PROGRAMS["nginx-websocket"], behind_nginx) as nginx,
        profile(PLAIN, behind_proxy) as proxy,
    ):
        for number, vector in enumerate(VECTORS):
            for variation, data in enumerate(variations(vector, number)):
                name = name_of(number, variation)
                of_nginx = await send(nginx, behind_nginx, data, name)
                of_proxy = await send(proxy, behind_proxy, data, name)
                passed += not of_proxy.was_refused
                if of_nginx.was_refused and not of_proxy.was_refused and not is_fine(vector):
                    let_through.append((vector.title, data[:200], of_nginx, of_proxy))
    assert not let_through
    assert passed > VARIATIONS


def is_fine(vector: Vector) -> bool:
    """Whether the RFCs have it accepted, or leave it to everybody: nginx is stricter, or has other limits."""
    return not vector.rule or re.fullmatch(vector.strict, "400, FIN / nothing") is None
