"""The process that commands are forked from starts before the first test."""

import pytest
from support.commands import start_forking


@pytest.fixture(scope="session", autouse=True)
def _forking() -> None:
    start_forking()
