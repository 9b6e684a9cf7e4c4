"""Each profile does what the program does that it is named after, or what is told of it."""

import pytest
from proxies.parity import ACCEPTED, Played, Verdict, accepted, cells
from proxies.programs import PROGRAMS
from proxies.scenarios import MATRICES, SCENARIOS
from proxies.tables import BEGIN, END, README, of_matrix, replaced, tables


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("matrix", MATRICES)
def test_a_profile_does_what_its_program_does(played: Played, program: str, matrix: str) -> None:
    different = {
        name: f"real: {played.real[program][name]}; profile: {played.profile[program][name]}"
        for name in played.different().get(program, [])
        if SCENARIOS[name].matrix == matrix
    }
    assert not different


def test_every_accepted_difference_is_there(played: Played) -> None:
    seen = {
        accepted(program, name, played.profile[program][name])
        for program, name in cells()
        if played.compared(program, name) is Verdict.ACCEPTED
    }
    assert set(ACCEPTED) - seen == set()


def test_the_readme_has_every_scenario_and_every_program() -> None:
    made = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    counted, *_ = made.strip().split("\n\n")
    assert counted.splitlines()[0] == f"| profile | {' | '.join(MATRICES.values())} |"
    assert [line.split("`")[1] for line in counted.splitlines()[2:]] == list(PROGRAMS)
    for matrix, title in MATRICES.items():
        part = made.partition(f"<summary>{title}</summary>")[2].partition("</details>")[0]
        rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][2:]
        assert [row[0].removeprefix("| ").partition("<br>")[0] for row in rows] == [
            scenario.title for scenario in of_matrix(matrix)
        ]
        for row in rows:
            assert {program for program in PROGRAMS if f"`{program}`" in row[1]} == set(PROGRAMS)
    assert "DIFFERENT" not in made


def test_the_tables_are_put_between_their_marks() -> None:
    assert replaced(f"before\n{BEGIN}\nold\n{END}\nbehind", "new") == f"before\n{BEGIN}\nnew\n{END}\nbehind"


def test_the_tables_tell_what_was_played(played: Played) -> None:
    made = tables(played)
    assert "BROKEN" not in made
    assert made.count("<details>") == len(MATRICES)
    assert all(scenario.title in made for scenario in SCENARIOS.values())
