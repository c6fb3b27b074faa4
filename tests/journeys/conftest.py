"""The process that the journeys' commands are forked from starts before the first test, and is no leak of it."""

import pytest
from support.commands import start_forking
from support.hub import hub, on_hub

__all__ = ["hub", "on_hub"]  # fixtures for every journey


@pytest.fixture(scope="session", autouse=True)
def _forking() -> None:
    start_forking()
