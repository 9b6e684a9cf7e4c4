"""Real programs do what they are known to do: the scenarios tell what they are meant to tell."""

import pytest
from proxies.matrix import Outcomes
from proxies.observed import OBSERVED, expected
from proxies.programs import PROGRAMS
from proxies.scenarios import BROKEN, SCENARIOS


@pytest.mark.parametrize("scenario", OBSERVED)
def test_real_programs_do_what_was_recorded(real_outcomes: Outcomes, scenario: str) -> None:
    stories = {program: story for (program, name), story in expected().items() if name == scenario}
    assert stories
    assert {program: str(real_outcomes[program][scenario]) for program in stories} == stories


def test_every_scenario_was_played_to_its_end(real_outcomes: Outcomes) -> None:
    assert set(real_outcomes) == set(PROGRAMS)
    for outcomes in real_outcomes.values():
        assert set(outcomes) == set(SCENARIOS)
        assert not [outcome for outcome in outcomes.values() if str(outcome).startswith(BROKEN)]
