"""Real programs do what they are known to do: the scenarios tell what they are meant to tell."""

import pytest
from proxies.observed import OBSERVED, expected
from proxies.parity import Played
from proxies.programs import PROGRAMS
from proxies.scenarios import BROKEN, SCENARIOS


@pytest.mark.parametrize("scenario", OBSERVED)
def test_real_programs_do_what_was_recorded(played: Played, scenario: str) -> None:
    stories = {program: story for (program, name), story in expected().items() if name == scenario}
    assert stories
    assert {program: str(played.real[program][scenario]) for program in stories} == stories


def test_every_scenario_was_played_to_its_end(played: Played) -> None:
    for side in (played.real, played.profile):
        assert set(side) == set(PROGRAMS)
        for outcomes in side.values():
            assert set(outcomes) == set(SCENARIOS)
            assert not [outcome for outcome in outcomes.values() if str(outcome).startswith(BROKEN)]
