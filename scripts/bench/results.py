"""The results of a run, as they are kept in results.json."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "results.json"
#: What others are compared with: neither is a server that anybody would pick.
FLOOR = "C floor"
PROTOTYPE = "Trio prototype"
REFERENCES = frozenset({FLOOR, PROTOTYPE})
TRICAST = "Tricast"


@dataclass
class PeerFacts:
    """A server that was to be measured.

    Attributes:
        missing: why it is not here; empty where it is.
        capabilities: what it can do, by name.
    """

    name: str
    about: str
    version: str = ""
    missing: str = ""
    capabilities: list[str] = field(default_factory=list)


@dataclass
class Measurement:
    """One scenario with one server, once.

    Attributes:
        transport: over which; empty where the scenario is about none.
        values: its figures; empty where it failed.
        failed: why it failed; empty where it did not.
        load_average: how many processes wanted a core around then.
    """

    scenario: str
    transport: str
    peer: str
    repetition: int
    values: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    load_average: float = 0.0

    @property
    def identity(self) -> tuple[str, str, str, int]:
        """What it is a measurement of."""
        return self.scenario, self.transport, self.peer, self.repetition


@dataclass
class Results:
    """A whole run.

    Attributes:
        made: when it began, as ISO 8601.
        is_quick: whether everything was smaller; such figures are for trying the bench out.
        sizes: how much of everything there was, by scenario.
        nice: the priority that servers and clients had: one for all, or they could not be compared.
        machine: what it ran on.
    """

    made: str
    is_quick: bool
    machine: dict[str, object]
    sizes: dict[str, dict[str, float]]
    nice: int = 0
    peers: list[PeerFacts] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)

    def pick(self, scenario: str, transport: str, peer: str, key: str) -> dict[int, float]:
        """Returns one figure by repetition."""
        return {
            one.repetition: one.values[key]
            for one in self._of(scenario, transport, peer)
            if key in one.values and not one.failed
        }

    def failures(self, scenario: str, transport: str, peer: str) -> list[str]:
        """Returns why it failed, each reason once."""
        return list(dict.fromkeys(one.failed for one in self._of(scenario, transport, peer) if one.failed))

    def was_measured(self, scenario: str, transport: str) -> bool:
        """Returns whether anybody was."""
        return any(one.scenario == scenario and one.transport == transport for one in self.measurements)

    def _of(self, scenario: str, transport: str, peer: str) -> Iterable[Measurement]:
        return (one for one in self.measurements if one.identity[:3] == (scenario, transport, peer))

    def save(self, folder: Path) -> None:
        """Writes the file; a reader sees the old one or the new one."""
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{FILE}.new"
        fresh.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        fresh.replace(folder / FILE)


def read_results(path: Path) -> Results:
    """Reads the file of a run."""
    content = json.loads(path.read_text(encoding="utf-8"))
    peers = [PeerFacts(**one) for one in content.pop("peers")]
    measurements = [Measurement(**one) for one in content.pop("measurements")]
    return Results(**content, peers=peers, measurements=measurements)
