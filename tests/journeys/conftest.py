"""The process that the journeys' commands are forked from starts before the first test, and is no leak of it."""

import pytest
from support.commands import FORKING, PRELOADED


@pytest.fixture(scope="session", autouse=True)
def _forking() -> None:
    FORKING.set_forkserver_preload(PRELOADED)
    process = FORKING.Process(target=int)
    process.start()
    process.join()
    process.close()
