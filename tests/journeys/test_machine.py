"""People and crashes, by chance: `make machine STEPS=1000 SEED=1` takes as many steps as one likes."""

import os

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from journeys.machine import People

STEPS = int(os.environ.get("MACHINE_STEPS", "120"))
SEED = int(os.environ.get("MACHINE_SEED", "1"))
IN_A_RUN = 40  # steps, after which another merge is begun


def test_whatever_people_do_the_model_is_what_they_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = settings(
        max_examples=max(1, STEPS // IN_A_RUN),
        stateful_step_count=IN_A_RUN,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    run_state_machine_as_test(seed(SEED)(People), settings=options)
