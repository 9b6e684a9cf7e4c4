"""Each profile does what the program does that it is named after, or what is told of it."""

import pytest
from proxies.parity import ACCEPTED, Played, Verdict, accepted, cells
from proxies.programs import PROGRAMS
from proxies.scenarios import MATRICES, SCENARIOS


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
