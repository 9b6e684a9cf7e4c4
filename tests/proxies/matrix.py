"""All scenarios, run through all real programs and through the profiles that are to behave like them."""

import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio
from clocks import HANG_SECONDS
from proxies.origin import Origin
from proxies.played import endings, framing, headers, interim, leaving, slowness, streams, tunnels
from proxies.programs import PROGRAMS, Program
from proxies.real import real_proxy
from proxies.scenarios import SCENARIOS, Outcome, Pace, play_all
from serving import serving_as

#: What happens by program and scenario, each by name.
Outcomes = dict[str, dict[str, Outcome]]
#: Scenarios by program, each by name.
Wanted = Mapping[str, Collection[str]]
#: Seconds that one program's scenarios may take in all: there are hundreds.
LONGEST = 8 * HANG_SECONDS
#: Seconds between the programs' beginnings, so that their busiest moments are not the same.
STAGGER = 0.4

assert all((tunnels, streams, endings, leaving, slowness, interim, headers, framing)), "importing them adds them"


@asynccontextmanager
async def real(program: Program, origin: Origin) -> AsyncIterator[int]:
    """The real program, in front of the origin; yields its port."""
    async with real_proxy(program.kind, program.config, options=program.options, origin_port=origin.port) as proxy:
        yield proxy.port


@asynccontextmanager
async def profile(program: Program, origin: Origin, **sections: dict[str, object]) -> AsyncIterator[int]:
    """The proxy with the profile, as a program of its own, in front of the origin; yields its port.

    Args:
        program: whose profile and settings are used.
        origin: to forward to.
        sections: more of the configuration.
    """
    base = {"proxy": {"profile": program.profile, "port": 0}, "drain": {"grace": "0s"}}
    text = toml({key: base.get(key, {}) | value for key, value in (base | program.settings | sections).items()})
    text += f'[[server]]\naddress = "127.0.0.1:{origin.port}"\n'
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "proxy.toml"
        file.write_text(text, encoding="utf-8")
        command = (sys.executable, "-m", "tricast", "proxy", "--config", str(file))
        async with serving_as(*command, within=LONGEST) as process:
            yield int(process.url.rpartition(":")[2])


def toml(sections: dict[str, dict[str, object]]) -> str:
    """A configuration file of sections; the values are written alike in JSON and TOML."""
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for name, values in sections.items()
    )


Beginning = Callable[[Program, Origin], AbstractAsyncContextManager[int]]
#: Seconds between the beginnings of two scenarios: what the program does in Python takes longer.
PACES: dict[Beginning, float] = {real: 0.003, profile: 0.006}


async def play_programs(begin: Beginning, wanted: Wanted | None = None) -> Outcomes:
    """The outcomes of scenarios with programs: with all of them at once, each in front of an origin of its own.

    Args:
        begin: starts one.
        wanted: what to play; all scenarios with all programs if it is None.
    """
    outcomes: Outcomes = {}

    async def play(program: Program, names: Collection[str]) -> None:
        origin = Origin({name: one.script for name, one in SCENARIOS.items()})
        async with origin.listening(), begin(program, origin) as port:
            outcomes[program.name] = await play_all(port, origin, names, pace)

    pace = Pace(PACES[begin])
    wanted = wanted if wanted is not None else dict.fromkeys(PROGRAMS, SCENARIOS)
    async with trio.open_nursery() as nursery:
        for name, names in wanted.items():
            nursery.start_soon(play, PROGRAMS[name], names)
            await trio.sleep(STAGGER)
    return {name: outcomes[name] for name in wanted}
