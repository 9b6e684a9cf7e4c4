"""The comparison of profiles and programs as Markdown: the parts of the proxy's pages that are made from a run."""

from collections.abc import Iterator
from contextlib import redirect_stdout
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path

import trio
from proxies.parity import ACCEPTED, Played, Verdict, play_everything
from proxies.programs import PROGRAMS
from proxies.scenarios import MATRICES, SCENARIOS, Scenario

README = Path(__file__).parents[2] / "proxy" / "README.md"
PARITY = README.with_name("PARITY.md")
BEGIN = "<!-- made by scripts/proxy-parity: begin -->"
END = "<!-- made by scripts/proxy-parity: end -->"
#: Behind the name of a program whose profile does something else.
MARKS = {Verdict.SAME: "", Verdict.STRICTER: "\\*", Verdict.ACCEPTED: "†", Verdict.DIFFERENT: " **DIFFERENT**"}


def summary(played: Played) -> str:
    """What the README shows."""
    return "\n".join(_summary(played))


def tables(played: Played) -> str:
    """All the rest."""
    return "\n".join([*_differences(), *_details(played)])


def _summary(played: Played) -> Iterator[str]:
    yield f"| profile | {' | '.join(MATRICES.values())} |"
    yield "| --- |" + " --- |" * len(MATRICES)
    for program in PROGRAMS:
        cells = (_counted(played, program, matrix) for matrix in MATRICES)
        yield f"| `{program}` | {' | '.join(cells)} |"


def _counted(played: Played, program: str, matrix: str) -> str:
    verdicts = [played.compared(program, one.name) for one in of_matrix(matrix)]
    parts = [f"{verdicts.count(Verdict.SAME)}"]
    parts += [
        f"{count} {verdict.value}"
        for verdict in (Verdict.STRICTER, Verdict.ACCEPTED, Verdict.DIFFERENT)
        if (count := verdicts.count(verdict))
    ]
    return ", ".join(parts)


def _differences() -> Iterator[str]:
    yield "| accepted difference | with |"
    yield "| --- | --- |"
    for one in ACCEPTED:
        titles = [scenario.title for scenario in SCENARIOS.values() if fnmatch(scenario.name, one.scenarios)]
        yield f"| {_escaped(one.reason)} ({'; '.join(titles)}) | {_escaped(one.programs)} |"


def _details(played: Played) -> Iterator[str]:
    for matrix, title in MATRICES.items():
        yield f"\n<details>\n<summary>{title}</summary>\n"
        yield "| scenario | the client sees / the origin sees |"
        yield "| --- | --- |"
        for scenario in of_matrix(matrix):
            rule = f"<br>\\* {scenario.rule}" if scenario.rule else ""
            yield f"| {scenario.title}{rule} | {'<br>'.join(_stories(played, scenario))} |"
        yield "\n</details>"


def _stories(played: Played, scenario: Scenario) -> list[str]:
    """What happens, each with the programs with which it does."""
    stories: dict[str, list[str]] = {}
    for program in PROGRAMS:
        mark = MARKS[played.compared(program, scenario.name)]
        stories.setdefault(str(played.real[program][scenario.name]), []).append(f"`{program}`{mark}")
    return [f"{_escaped(story)}: {', '.join(programs)}" for story, programs in stories.items()]


def _escaped(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n").replace("*", "\\*").replace("|", "\\|")


def of_matrix(matrix: str) -> list[Scenario]:
    """The scenarios of a matrix, in their order."""
    return [one for one in SCENARIOS.values() if one.matrix == matrix]


def replaced(text: str, made: str) -> str:
    """A text with what is between the marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main() -> None:
    """Plays everything and writes the tables into the two pages."""
    with redirect_stdout(StringIO()):  # what the programs logged
        played = trio.run(play_everything)
    for page, made in ((README, summary(played)), (PARITY, tables(played))):
        page.write_text(replaced(page.read_text(encoding="utf-8"), made), encoding="utf-8")
    for program, names in played.different().items():
        for name in names:
            print(f"{program}, {SCENARIOS[name].title}:")
            print(f"  real:    {played.real[program][name]}\n  profile: {played.profile[program][name]}")


if __name__ == "__main__":
    main()
