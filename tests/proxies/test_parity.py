"""Each profile does what the program does that it is named after, or what is told of it.

All of it is one test, because all of it is played once, and tests that share it could be given to several processes.
"""

from pathlib import Path

import pytest
from proxies.observed import OBSERVED, expected, unexpected
from proxies.parity import ACCEPTED, Played, Verdict, accepted, cells, compared, play_everything
from proxies.programs import PROGRAMS
from proxies.scenarios import BROKEN, MATRICES, SCENARIOS, Outcome
from proxies.tables import BEGIN, END, PARITY, README, of_matrix, replaced, summary, tables


async def test_every_profile_does_what_its_program_does() -> None:
    played = await play_everything()
    for side in (played.real, played.profile):
        assert {program: set(outcomes) for program, outcomes in side.items()} == {
            program: set(SCENARIOS) for program in PROGRAMS
        }
    told = {
        f"{program}, {name}": f"real: {played.real[program][name]}; profile: {played.profile[program][name]}"
        for program, name in cells()
    }
    assert not {cell: story for cell, story in told.items() if BROKEN in story}
    # That the real ones do what they are known to do shows that the scenarios tell what they are meant to tell.
    surprises = [f"{program}, {name}" for program, names in unexpected(played.real).items() for name in names]
    assert not {cell: told[cell] for cell in surprises}
    differences = [f"{program}, {name}" for program, names in played.different().items() for name in names]
    assert not {cell: told[cell] for cell in differences}
    seen = {
        accepted(program, name, played.profile[program][name])
        for program, name in cells()
        if played.compared(program, name) is Verdict.ACCEPTED
    }
    assert not set(ACCEPTED) - seen, "these differences are none any more"
    assert "DIFFERENT" not in tables(played)


def test_what_is_expected_is_of_scenarios_and_programs_that_there_are() -> None:
    assert set(OBSERVED) <= set(SCENARIOS)
    assert {program for program, _ in expected()} == set(PROGRAMS)


@pytest.mark.parametrize(
    ("program", "scenario", "real", "profile", "verdict"),
    [
        ("nginx-default", "c-slow-no-answer-to-get", "504 after T", "504 after T", Verdict.SAME),
        ("nginx-default", "c-slow-no-answer-to-get", "504 after T", "504", Verdict.DIFFERENT),
        ("haproxy-default", "c-framing-no-host", "200, stays open", "400, FIN", Verdict.STRICTER),
        ("haproxy-default", "c-framing-no-host", "400, FIN", "200, stays open", Verdict.DIFFERENT),
        ("varnish-pipe", "c-leave-stops-reading-a-large-body", "", "", Verdict.SAME),
    ],
)
def test_verdicts(program: str, scenario: str, real: str, profile: str, verdict: Verdict) -> None:
    def outcome(story: str) -> Outcome:
        return Outcome(tuple(story.split(", ")), ("nothing",))

    assert compared(program, scenario, outcome(real), outcome(profile)) is verdict


def test_a_difference_is_accepted_with_its_program_alone() -> None:
    scenario, waits, sent = (
        "c-leave-stops-reading-a-large-body",
        Outcome((), ("waits",)),
        Outcome((), ("all of it sent",)),
    )
    assert compared("varnish-pipe", scenario, sent, waits) is Verdict.ACCEPTED
    assert compared("nginx-default", scenario, sent, waits) is Verdict.DIFFERENT


def test_what_is_doubtful_for_two_reasons_is_played_again_once() -> None:
    real = {program: dict.fromkeys(SCENARIOS, Outcome(("nothing known",), ())) for program in PROGRAMS}
    profile = {program: dict.fromkeys(SCENARIOS, Outcome(("else",), ())) for program in PROGRAMS}
    played = Played(real, profile)
    assert "c-end-no-answer-fin" in played.different()["caddy-2.6"]
    assert "c-end-no-answer-fin" in unexpected(real)["caddy-2.6"]
    assert played.doubtful() == {program: set(SCENARIOS) for program in PROGRAMS}


def made_in(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def test_the_pages_have_every_scenario_and_every_program() -> None:
    made, counted = made_in(PARITY), made_in(README).strip()
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
    assert "DIFFERENT" not in made + counted


def test_the_tables_are_put_between_their_marks() -> None:
    assert replaced(f"before\n{BEGIN}\nold\n{END}\nbehind", "new") == f"before\n{BEGIN}\nnew\n{END}\nbehind"


def test_the_tables_tell_what_was_played() -> None:
    same = {program: dict.fromkeys(SCENARIOS, Outcome(("a|b*",), ())) for program in PROGRAMS}
    other = same | {"nginx-sse": dict.fromkeys(SCENARIOS, Outcome(("else",), ()))}
    made = tables(Played(same, other))
    assert made.count("<details>") == len(MATRICES)
    assert "a\\|b\\* / nothing" in made
    assert made.count("`nginx-sse` **DIFFERENT**") == len(SCENARIOS)
    (sse,) = [line for line in summary(Played(same, other)).splitlines() if line.startswith("| `nginx-sse`")]
    assert sse.count("different") == len(MATRICES)
